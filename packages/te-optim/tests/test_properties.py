"""Any shapes, any groups: the same as each parameter alone, and resumable anywhere."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import te_tensor as te
from te_optim import SGD, Adagrad, Adam, AdamW, RMSProp

MAKE = [
    lambda **k: SGD(0.1, 0.9, dampening=0.5, **k),
    lambda **k: SGD(0.1, 0.9, 0.1, True, **k),
    lambda **k: Adam(0.1, weight_decay=0.1, **k),
    lambda **k: AdamW(0.1, amsgrad=True, **k),
    lambda **k: RMSProp(0.1, momentum=0.5, centered=True, eps=0.1, **k),
    lambda **k: Adagrad(0.1, initial_accumulator_value=0.1, **k),
]
SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=12)
DTYPES = st.sampled_from(["float32", "float64", "bfloat16"])


@st.composite
def jobs(draw):
    """An optimizer, groups of values, and for each step which parameters have gradients."""
    make = draw(st.sampled_from(MAKE))
    values = [
        np.random.default_rng(place).standard_normal(shape).astype(np.float32)
        for place, shape in enumerate(draw(SHAPES))
    ]
    dtypes = [draw(DTYPES) for _ in values]
    cut = draw(st.integers(0, len(values)))
    present = st.lists(st.booleans(), min_size=len(values), max_size=len(values))
    return make, values, dtypes, cut, draw(st.lists(present, min_size=2, max_size=5))


def train(optimizer, tensors, plan, begin=0):
    for step, present in enumerate(plan, begin):
        for place, (tensor, there) in enumerate(zip(tensors, present, strict=True)):
            rng = np.random.default_rng((place, step))
            tensor.grad = rng.standard_normal(tensor.shape) if there else None
        optimizer.step()


def leaves(values, dtypes):
    return [
        te.Tensor(value, dtype=dtype, requires_grad=True)
        for value, dtype in zip(values, dtypes, strict=True)
    ]


def grouped(make, tensors, cut):
    groups = [{"parameters": tensors[:cut], "lr": 0.5}, {"parameters": tensors[cut:]}]
    return make(parameters=groups)


@given(jobs())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_together_as_alone_and_resumed_as_never_stopped(job):
    make, values, dtypes, cut, plan = job
    together = leaves(values, dtypes)
    train(grouped(make, together, cut), together, plan)

    alone = leaves(values, dtypes)
    for place, tensor in enumerate(alone):
        optimizer = make(parameters=[{"parameters": tensor, "lr": 0.5 if place < cut else 0.1}])
        for step, present in enumerate(plan):
            rng = np.random.default_rng((place, step))
            tensor.grad = rng.standard_normal(tensor.shape) if present[place] else None
            optimizer.step()

    half = len(plan) // 2
    first = leaves(values, dtypes)
    optimizer = grouped(make, first, cut)
    train(optimizer, first, plan[:half])
    second = leaves([tensor.numpy() for tensor in first], dtypes)
    resumed = grouped(make, second, cut)
    resumed.load_state_dict(optimizer.state_dict())
    train(resumed, second, plan[half:], half)

    for one, other, last in zip(together, alone, second, strict=True):
        assert np.array_equal(one.numpy(), other.numpy(), equal_nan=one.dtype != te.bfloat16)
        assert np.array_equal(one.numpy(), last.numpy(), equal_nan=one.dtype != te.bfloat16)
