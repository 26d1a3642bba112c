"""TorchScript code for attention, with its masks and its distance bias."""

from __future__ import annotations

from te_tensor.dtypes import bool_
from te_tensor.ops.attention import Attention

from .script_code import Call, listed, real

#: Functions of the distance, by name.
DISTANCE_FUNCTIONS = {
    "logarithmic": "torch.log1p({0})",
    "gaussian": "torch.mul({0}, {0})",
    "alibi": "{0}",
}
_HIDDEN = real(float("-inf"))


def attention(call: Call) -> str:
    """The rule: products and a softmax, in which a row that may attend to nothing gives zeros.

    Args:
        call: the attention.

    Returns:
        The expression of its result.

    Raises:
        FormatError: it has dropout, or a function of the distance that has no code.
    """
    operation: Attention = call.operation
    if call.attribute("dropout"):
        raise call.error("with dropout isn't supported: call eval() on the module")
    q, k, v = (_heads_apart(call, i) for i in range(3))
    names = call.attribute("operands")
    given = dict(zip(names, range(3, 3 + len(names)), strict=True))
    keys, heads = _heads(call, 1), _heads(call, 0)
    if keys != heads:
        k, v = (
            call.let(f"torch.repeat_interleave({x}, {heads // keys}, 1, output_size=None)")
            for x in (k, v)
        )
    scale = call.attribute("scale")
    if scale is None:
        scale = 1 / (_width(call) or 1) ** 0.5
    scores = call.let(f"torch.matmul(torch.mul({q}, {real(scale)}), torch.transpose({k}, -1, -2))")
    if "distance" in given:
        scores = _biased(call, scores, given, heads)
    if "mask" in given:
        mask = call.inputs[given["mask"]]
        if call.dtype(given["mask"]) == bool_:
            scores = call.let(f"torch.masked_fill({scores}, torch.logical_not({mask}), {_HIDDEN})")
        else:
            scores = call.let(f"torch.add({scores}, {mask})")
    if call.attribute("causal"):
        scores = _causal(call, scores)
    weights = call.let(f"torch.softmax({scores}, -1, None)")
    if given:
        nothing = call.let(f"torch.all(torch.eq({scores}, {_HIDDEN}), -1, True)")
        weights = call.let(f"torch.masked_fill({weights}, {nothing}, 0.0)")
    mixed = f"torch.matmul({weights}, {v})"
    if not operation.joined[0]:
        return mixed
    batch, rows, _ = call.shape(0)
    joined = call.let(f"torch.permute({mixed}, [0, 2, 1, 3])")
    return f"torch.reshape({joined}, {listed([batch, rows, -1])})"


def _heads(call: Call, index: int) -> int:
    """The heads of q, k or v."""
    joined = call.operation.joined[index]
    if joined:
        return int(call.attribute("kv_heads" if index else "heads"))
    return call.fixed(index, 1)


def _width(call: Call) -> int:
    """The features of a head of q."""
    width = call.fixed(0, -1)
    return width // _heads(call, 0) if call.operation.joined[0] else width


def _heads_apart(call: Call, index: int) -> str:
    """(B, S, heads·d) as (B, heads, S, d); four axes stay."""
    name = call.inputs[index]
    if not call.operation.joined[index]:
        return name
    batch, rows, _ = call.shape(index)
    heads = _heads(call, index)
    width = call.fixed(index, 2) // heads
    apart = call.let(f"torch.reshape({name}, {listed([batch, rows, heads, width])})")
    return call.let(f"torch.permute({apart}, [0, 2, 1, 3])")


def _biased(call: Call, scores: str, given: dict[str, int], heads: int) -> str:
    """The scores less slopes·phi(rates·distance), -inf where the distance or phi is infinite."""
    distance = call.inputs[given["distance"]]
    if call.ndim(given["distance"]) == 2:
        distance = call.let(f"torch.unsqueeze({distance}, 0)")
    if call.ndim(given["distance"]) < 4:
        distance = call.let(f"torch.unsqueeze({distance}, 1)")
    slopes, rates = (
        call.let(f"torch.reshape({call.inputs[given[name]]}, [1, {heads}, 1, 1])")
        if name in given
        else None
        for name in ("slopes", "rates")
    )
    scaled = distance if rates is None else call.let(f"torch.mul({distance}, {rates})")
    phi = _phi(call, scaled, heads)
    hidden = call.let(f"torch.logical_or(torch.isinf({phi}), torch.isinf({distance}))")
    finite = call.let(f"torch.masked_fill({phi}, {hidden}, 0.0)")
    lowered = call.let(f"torch.sub({scores}, torch.mul({slopes}, {finite}))")
    return call.let(f"torch.masked_fill({lowered}, {hidden}, {_HIDDEN})")


def _phi(call: Call, distance: str, heads: int) -> str:
    """Phi of all heads, or of each."""
    call.attribute("bias_function")  # the same in all runs
    names = [function.name for function in call.operation.functions()]
    for name in names:
        if name not in DISTANCE_FUNCTIONS:
            known = ", ".join(DISTANCE_FUNCTIONS)
            raise call.error(f"has the distance function {name!r}: expected one of {known}")
    made = {
        name: call.let(DISTANCE_FUNCTIONS[name].format(distance)) for name in dict.fromkeys(names)
    }
    if len(made) == 1:
        return made[names[0]]
    parts = [
        f"torch.slice(torch.expand({made[name]}, [-1, {heads}, -1, -1], implicit=False), "
        f"1, {head}, {head + 1}, 1)"
        for head, name in enumerate(names)
    ]
    return call.let(f"torch.cat({listed(parts)}, 1)")


def _causal(call: Call, scores: str) -> str:
    """The scores, -inf in the columns after a row's own."""
    rows, columns = (call.shape(i)[1 if call.operation.joined[i] else 2] for i in (0, 1))
    whole = call.let(
        f"torch.ones([{rows}, {columns}], dtype=11, layout=None, "
        f"device=ops.prim.device({scores}), pin_memory=None)"
    )
    later = call.let(f"torch.triu({whole}, {call.attribute('offset') + 1})")
    return call.let(f"torch.masked_fill({scores}, {later}, {_HIDDEN})")
