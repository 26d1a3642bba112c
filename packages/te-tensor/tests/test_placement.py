"""Rows that are copied to another distance from each other, with zeros around them or without."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.dtypes import float32
from te_tensor.machine.placement import Frame, copied_rows, room_for, surrounded

pytestmark = pytest.mark.skipif(
    te.kernel_info()["kernels"] != "avx512", reason="programs are for AVX-512"
)


def numbers(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(float32)


@pytest.mark.parametrize("length", [1, 3, 15, 16, 17, 40])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize(
    "around", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 3, 0), (2, 0, 0, 40), (1, 0, 37, 1)]
)
def test_zeros_around_rows(rows, length, around):
    above, below, left, right = around
    whole = numbers((3, rows + 2, length + 5))
    source = whole[:, 1 : 1 + rows, 2 : 2 + length]
    line = left + length + right
    for further in (0, 16):
        plane = (above + rows + below) * line + further
        row, planes = (stride // 4 for stride in (source.strides[1], source.strides[0]))
        frame = Frame(rows, length, row, planes, above * line + left, line, plane)
        made = np.empty(room_for(3, frame), np.float32)
        surrounded(source, frame, made).run()
        made = made[: 3 * plane].reshape(3, plane)
        padded = np.pad(source, ((0, 0), (above, below), (left, right))).reshape(3, -1)
        assert np.array_equal(made, np.pad(padded, ((0, 0), (0, further))))


@pytest.mark.parametrize("length", [1, 16, 21, 64])
def test_rows_and_nothing_between(length):
    source = numbers((2, 4, length + 6))[:, 1:, 3:-3]
    whole = np.full((2, 5, length + 20), 7, float32)
    out = whole[:, 1:4, 4 : 4 + length]
    copied_rows(source, out).run()
    assert np.array_equal(out, source)
    out[...] = 7
    assert (whole == 7).all()
