"""Products with what a convolution's kernel sees, read where it lies: no columns are copied.

The images of a batch lie innermost, so that the places of a row of the output are contiguous
elements of a row of the images, for each element of the kernel at an offset of its own. Both
products keep 24 sums in registers, as matrix products do, and take vectors from the images at an
address and these offsets.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import ceil

from .. import memory
from ..dtypes import Array
from ..executable import Code
from .assembler import (
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    RAX,
    RBP,
    RBX,
    RCX,
    RDX,
    RSI,
    Memory,
)
from .compiler import LANES, VECTOR
from .program import Call, Record, Writer, last_mask, program
from .target import AVX512

#: Sums of `correlation`: outputs, and vectors of places. Of `sums_over_places`: outputs, and
#: elements of the kernel.
OUTPUTS, _VECTORS = 6, 4
_GRADS, _ELEMENTS = 4, 6
_MASK = 1
_ITEM, _OFFSET = 4, 8


# -- the correlation -------------------------------------------------------------------------

_FORWARD = Record(
    *(
        "image",
        "image_row",
        "offsets",
        "offsets_end",
        "weights",
        "weights_block",
        "weight_step",
        "bias",
    ),
    *("out", "out_step", "out_row", "out_block", "rows", "blocks", "whole", "mask", "advance"),
)


@lru_cache(OUTPUTS * _VECTORS)
def _correlation(outputs: int, vectors: int) -> Code:
    """Code for so many outputs beyond whole blocks, and vectors in a row's last block.

    For each row, each block of its vectors, each block of outputs: sums over the kernel's elements.
    """
    image, out, offset = RAX, RDX, RSI
    weights, target, bias, weight, distance = R8, R9, R10, R11, RCX
    end, block, blocks, row = R12, R13, R14, R15
    record = _FORWARD

    def sums(code: Writer, outputs: int, vectors: int, mask: int) -> None:
        held, of_image = [range(i, 24, OUTPUTS) for i in range(outputs)], range(24, 28)
        for i, j in product(range(outputs), range(vectors)):
            code.vector("vbroadcastss", held[i][j], Memory(bias, offset=_ITEM * i))
        code.load(offset, record["offsets"])
        code.move(weight, weights)
        loop = code.here()
        code.load(distance, Memory(offset))
        for j in range(vectors):
            last = mask if j == vectors - 1 else 0
            place = Memory(image, distance, VECTOR * j)
            code.vector("vmovups", of_image[j], place, mask=last, zero=bool(last))
        for i in range(outputs):
            factor = 28 + i % 4
            code.vector("vbroadcastss", factor, Memory(weight, offset=_ITEM * i))
            for j in range(vectors):
                code.vector("vfmadd231ps", held[i][j], factor, of_image[j])
        code.add(weight, record["weight_step"])
        code.add_number(offset, _OFFSET)
        code.compare(offset, end)
        code.jump("below", loop)
        code.move(distance, target)
        for i in range(outputs):
            for j in range(vectors):
                last = mask if j == vectors - 1 else 0
                code.store(Memory(distance, offset=VECTOR * j), held[i][j], last)
            code.add(distance, record["out_step"])

    def all_outputs(code: Writer, vectors: int, mask: int) -> None:
        code.load(weights, record["weights"])
        code.load(bias, record["bias"])
        code.move(target, out)
        with code.times(block, record["whole"]):
            sums(code, OUTPUTS, vectors, mask)
            code.add(weights, record["weights_block"])
            code.add_number(bias, _ITEM * OUTPUTS)
            code.add(target, record["out_block"])
        if outputs:
            sums(code, outputs, vectors, mask)

    def write(code: Writer) -> None:
        code.load_mask(_MASK, record["mask"])
        code.load(image, record["image"])
        code.load(out, record["out"])
        code.load(end, record["offsets_end"])
        with code.times(row, record["rows"]):
            with code.times(blocks, record["blocks"]):
                all_outputs(code, _VECTORS, 0)
                code.add(image, record["advance"])
                code.add(out, record["advance"])
            all_outputs(code, vectors, _MASK)
            code.add(image, record["image_row"])
            code.add(out, record["out_row"])

    return program(write)


def correlation(image: Array, offsets: Array, weights: Array, bias: Array, out: Array) -> Call:
    """out[o, y, x] = bias[o] + Σ weights[o // 6, k, o % 6] · image[0, y, x + offsets[k]].

    Args:
        image: shape (C, H, …), rows of which each is contiguous.
        offsets: of the K elements of the kernel, in bytes, int64; what is there is kept as it is.
        weights: shape (⌈O / 6⌉, K, 6), of which each six are contiguous: `OUTPUTS` is 6.
        bias: shape (O,), contiguous.
        out: shape (O, rows, elements), contiguous rows.
    """
    outputs, rows, columns = out.shape
    vectors = ceil(columns / LANES)
    blocks, last = divmod(vectors - 1, _VECTORS)
    whole, rest = divmod(outputs, OUTPUTS)
    done = blocks * _VECTORS * VECTOR
    end = memory.address(offsets) + offsets.nbytes
    words = (
        *((image, 0), image.strides[1] - done, (offsets, 0), end),
        *((weights, 0), *weights.strides[:2], (bias, 0)),
        *((out, 0), out.strides[0], out.strides[1] - done),
        *(out.strides[0] * OUTPUTS, rows, blocks, whole),
        *(last_mask(columns), _VECTORS * VECTOR),
    )
    return Call(_correlation(rest, last + 1), words)


# -- sums over places ------------------------------------------------------------------------

_BACKWARD = Record(
    *("image", "image_row", "offsets", "grad", "grad_step", "grad_row", "grad_block"),
    *("out", "out_step", "out_block", "rows", "vectors", "mask", "outputs", "elements"),
    variables=("output", "element", "grads", "target", "line"),
)


#: Addresses of the images at each element, and of the gradients of each output; a place in the
#: table of offsets; counts; and what comes and goes.
_IMAGES, _OF_GRADS = (RAX, RSI, RDX, R8, R9, R10), (R11, R12, R13, R14)
_OFFSET_AT, _ROW, _COLUMN, _NUMBER = R15, RBX, RCX, RBP
#: Vector registers: sums come first, those of an element side by side.
_GRAD, _FACTOR = 24, 28


@lru_cache(_GRADS * _ELEMENTS)
def _places(outputs: int, elements: int) -> Code:
    """Code for so many outputs, and so many elements of the kernel, beyond whole blocks.

    For each block of outputs, each block of elements: sums over all places.
    """
    record = _BACKWARD

    def write(code: Writer) -> None:
        code.load_mask(_MASK, record["mask"])
        for variable, start in (("grads", "grad"), ("line", "out")):
            code.load(_NUMBER, record[start])
            code.keep(record[variable], _NUMBER)
        with code.times_kept(record["output"], record["outputs"], _NUMBER):
            _all_elements(code, _GRADS, elements)
            for variable, distance in (("grads", "grad_block"), ("line", "out_block")):
                code.load(_NUMBER, record[variable])
                code.add(_NUMBER, record[distance])
                code.keep(record[variable], _NUMBER)
        if outputs:
            _all_elements(code, outputs, elements)

    return program(write)


def _all_elements(code: Writer, outputs: int, rest: int) -> None:
    """A block of outputs with all elements of the kernel, of which `rest` fill no block."""
    record = _BACKWARD
    code.load(_OFFSET_AT, record["offsets"])
    code.load(_NUMBER, record["line"])
    code.keep(record["target"], _NUMBER)
    with code.times_kept(record["element"], record["elements"], _NUMBER):
        _sums_over_places(code, outputs, _ELEMENTS)
        code.add_number(_OFFSET_AT, _OFFSET * _ELEMENTS)
        code.load(_NUMBER, record["target"])
        code.add_number(_NUMBER, _ITEM * _ELEMENTS)
        code.keep(record["target"], _NUMBER)
    if rest:
        _sums_over_places(code, outputs, rest)


def _sums_over_places(code: Writer, outputs: int, elements: int) -> None:
    """A block of outputs with a block of elements."""
    record = _BACKWARD
    for j in range(elements):
        code.load(_IMAGES[j], Memory(_OFFSET_AT, offset=_OFFSET * j))
        code.add(_IMAGES[j], record["image"])
    code.load(_OF_GRADS[0], record["grads"])
    for i in range(1, outputs):
        code.move(_OF_GRADS[i], _OF_GRADS[i - 1])
        code.add(_OF_GRADS[i], record["grad_step"])
    for i, j in product(range(outputs), range(elements)):
        code.vector("vxorps", held := _GRADS * j + i, held, held)
    with code.times(_ROW, record["rows"]):
        code.load(_COLUMN, record["vectors"])  # counted up to 0 from below
        code.add_number(_COLUMN, 0)
        none = code.jump("zero")
        loop = code.here()
        _one_vector(code, outputs, elements, 0)
        code.add_number(_COLUMN, VECTOR)
        code.jump("not zero", loop)
        code.land(none)
        _one_vector(code, outputs, elements, _MASK)
        for j in range(elements):
            code.add(_IMAGES[j], record["image_row"])
        for i in range(outputs):
            code.add(_OF_GRADS[i], record["grad_row"])
    _store_sums(code, outputs, elements)


def _one_vector(code: Writer, outputs: int, elements: int, mask: int) -> None:
    """The products of a vector of places."""
    for i in range(outputs):
        place = Memory(_OF_GRADS[i], _COLUMN)
        code.vector("vmovups", _GRAD + i, place, mask=mask, zero=bool(mask))
    for j in range(elements):
        place, factor = Memory(_IMAGES[j], _COLUMN), _FACTOR + j % 4
        code.vector("vmovups", factor, place, mask=mask, zero=bool(mask))
        for i in range(outputs):
            code.vector("vfmadd231ps", _GRADS * j + i, factor, _GRAD + i)


def _store_sums(code: Writer, outputs: int, elements: int) -> None:
    """The sums of lanes, each to its place."""
    code.load(_NUMBER, _BACKWARD["target"])
    for i in range(outputs):
        for j in range(elements):
            held, turned = _GRADS * j + i, _GRAD + j % 4
            for name, order in AVX512.turns:
                sources = (held, held) if name == "vshuff32x4" else (held,)
                code.vector(name, turned, *sources, immediate=order)
                code.vector("vaddps", held, held, turned)
            code.store_lowest(Memory(_NUMBER, offset=_ITEM * j), held)
        code.add(_NUMBER, _BACKWARD["out_step"])


def sums_over_places(image: Array, offsets: Array, grad: Array, out: Array) -> Call:
    """out[o, k] = Σ grad[o, y, x] · image[0, y, x + offsets[k]], over all places y, x.

    Args:
        image: shape (C, H, …), rows of which each is contiguous.
        offsets: of the K elements of the kernel, in bytes, int64; what is there is kept as it is.
        grad: shape (O, rows, elements), contiguous rows.
        out: shape (O, K), contiguous rows.
    """
    outputs, rows, columns = grad.shape
    ahead = (ceil(columns / LANES) - 1) * VECTOR
    whole, rest = divmod(outputs, _GRADS)
    blocks, further = divmod(len(offsets), _ELEMENTS)
    words = (
        *((image, ahead), image.strides[1], (offsets, 0)),
        *((grad, ahead), *grad.strides[:2], grad.strides[0] * _GRADS),
        *((out, 0), out.strides[0], out.strides[0] * _GRADS),
        *(rows, -ahead, last_mask(columns), whole, blocks),
    )
    return Call(_places(rest, further), words)
