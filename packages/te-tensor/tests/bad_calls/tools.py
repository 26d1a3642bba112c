"""Bad calls of what makes and differentiates: the call, the error, and words that it holds."""

import numpy as np

import te_tensor as te


def t(*shape, dtype="float32"):
    return te.ones(*shape, dtype=dtype)


def leaf(dtype="float64"):
    return te.ones(2, dtype=dtype, requires_grad=True)


NAN, INF = float("nan"), float("inf")
LIKE = ["zeros_like", "ones_like", "rand_like", "randn_like"]

BAD = {
    "Tensor uneven lists": (lambda: te.Tensor([[1, 2], [3]]), ValueError, ["no array"]),
    **{
        f"Tensor large {place}": (
            lambda data=data: te.Tensor(data), OverflowError, ["out of the range of int64"])
        for place, data in enumerate(
            [1 << 63, -(1 << 63) - 1, [1 << 63, -1], [[1, 2], [3, 1 << 64]], [1 << 63, True]])
    },
    "full large": (lambda: te.full(2, 1 << 63), OverflowError, ["out of the range of int64"]),
    "Tensor text": (lambda: te.Tensor("abc"), TypeError, ["str"]),
    "Tensor texts": (lambda: te.Tensor(["a"]), TypeError, ["list"]),
    "Tensor None": (lambda: te.Tensor(None), TypeError, ["NoneType"]),
    "Tensor objects": (lambda: te.Tensor([1, None]), TypeError, ["list"]),
    "Tensor dtype": (lambda: te.Tensor([1], dtype="float23"), TypeError, ["'float23'", "bfloat16"]),
    "astype None": (lambda: te.Tensor([1.0]).astype(None), TypeError, ["None"]),
    "Tensor complex128": (lambda: te.Tensor(np.array([1j])), TypeError, ["complex128"]),
    "astype timedelta": (
        lambda: te.Tensor([1]).astype(np.dtype("m8[s]")), TypeError, ["expected one of"]),
    "from_numpy": (lambda: te.from_numpy([1]), TypeError, ["list", "ndarray"]),
    "from_numpy dtype": (lambda: te.from_numpy(np.array(["a"])), TypeError, ["<U1"]),
    "from_dlpack": (lambda: te.from_dlpack([1]), TypeError, ["list", "__dlpack__"]),
    "Tensor.item": (lambda: t(2).item(), ValueError, ["(2,)"]),
    "Tensor.item of nothing": (lambda: t(0).item(), ValueError, ["(0,)"]),
    "Tensor truth": (lambda: bool(t(2)), ValueError, ["(2,)"]),
    "Tensor length": (lambda: len(t()), TypeError, ["without axes"]),
    "zeros": (lambda: te.zeros(2, -1), ValueError, ["(2, -1)"]),
    "zeros fraction": (lambda: te.zeros(2.5), ValueError, ["2.5"]),
    "ones dtype": (lambda: te.ones(2, dtype="real"), TypeError, ["'real'"]),
    "eye": (lambda: te.eye(-1), ValueError, ["-1"]),
    "arange": (lambda: te.arange(0, 5, 0), ValueError, ["step 0"]),
    "linspace": (lambda: te.linspace(0, 1, -1), ValueError, ["-1"]),
    "randint": (lambda: te.randint(3, 3, (2,)), ValueError, ["3 to 3"]),
    "rand dtype": (lambda: te.rand(2, dtype="int64"), TypeError, ["int64"]),
    "randn dtype": (lambda: te.randn(2, dtype="bool"), TypeError, ["bool"]),
    "randn_like": (lambda: te.randn_like(te.ones(2, dtype="int8")), TypeError, ["int8"]),
    "zeros grad": (
        lambda: te.zeros(2, dtype="int64", requires_grad=True), TypeError, ["int64"]),
    **{
        f"{name} text": (lambda name=name: getattr(te, name)("a"), TypeError, ["str", "no numbers"])
        for name in [*LIKE, "as_tensor"]
    },
    **{
        f"{name} dtype": (
            lambda name=name: getattr(te, name)(np.ones(2, "c16")), TypeError, ["complex128"])
        for name in [*LIKE, "as_tensor", "from_numpy"]
    },
    **{
        f"{name} {what}": (lambda name=name, n=n: getattr(te, name)(n), ValueError, [repr(n)])
        for name in ["zeros", "ones", "rand", "randn", "eye"]
        for what, n in [("negative", -1), ("bool", True), ("fraction", 2.0), ("None", None)]
    },
    **{
        f"{name} masked": (
            lambda f=f: f(np.ma.masked_array([1.0, 2.0], [True, False])),
            TypeError, ["masked array", "(2,)", "filled()"])
        for name, f in {
            "Tensor": te.Tensor, "as_tensor": te.as_tensor, "from_numpy": te.from_numpy}.items()
    },
    "from_numpy byte order": (
        lambda: te.from_numpy(np.ones(2, ">f4")), TypeError, [">f4", "byte order"]),
    "Tensor large": (lambda: te.Tensor([1 << 70]), OverflowError, ["int64"]),
    "Tensor NaN": (lambda: te.Tensor([NAN], dtype="int64"), ValueError, ["NaN", "integer"]),
    "Tensor shape": (lambda: te.Tensor([1, 2], [3]), ValueError, ["(2,)", "(3,)"]),
    "Tensor shape bool": (lambda: te.Tensor([1], True), TypeError, ["True", "whole numbers"]),
    "Tensor shape fraction": (lambda: te.Tensor([1, 2], 2.0), TypeError, ["2.0", "whole numbers"]),
    "Tensor integers' gradient": (
        lambda: te.Tensor([1], requires_grad=True), TypeError, ["int64", "only floats"]),
    "Tensor records": (lambda: te.Tensor(np.zeros(2, [("a", "f4")])), TypeError, ["'a'"]),
    "full text": (lambda: te.full(2, "a"), TypeError, ["str"]),
    "full list": (lambda: te.full(2, [1, 2]), ValueError, ["(2,)", "a number"]),
    "full shape": (lambda: te.full(-1, 0.0), ValueError, ["(-1,)"]),
    "full integers": (lambda: te.full(2, 300, dtype="int8"), OverflowError, ["int8"]),
    "full NaN": (lambda: te.full(2, NAN, dtype="int64"), ValueError, ["NaN", "integer"]),
    "full_like list": (lambda: te.full_like(t(2), [1, 2]), ValueError, ["(2,)", "a number"]),
    "arange text": (lambda: te.arange("a"), TypeError, ["stop is 'a'", "number"]),
    "arange None": (lambda: te.arange(None), TypeError, ["stop is None", "number"]),
    "arange bool": (lambda: te.arange(True), TypeError, ["stop is True", "number"]),
    "arange NaN": (lambda: te.arange(0, NAN), ValueError, ["stop is nan", "finite"]),
    "arange infinite": (lambda: te.arange(0, INF), ValueError, ["stop is inf", "finite"]),
    "arange dtype": (lambda: te.arange(300, dtype="int8"), OverflowError, ["299", "int8", "127"]),
    "linspace text": (lambda: te.linspace("a", 1, 3), TypeError, ["start is 'a'"]),
    "linspace NaN": (lambda: te.linspace(0, NAN, 3), ValueError, ["stop is nan"]),
    "linspace list": (lambda: te.linspace([0, 1], 1, 3), TypeError, ["start is [0, 1]"]),
    "linspace fraction": (lambda: te.linspace(0, 1, 2.5), ValueError, ["2.5"]),
    "linspace dtype": (lambda: te.linspace(0, 300, 3, dtype="int8"), OverflowError, ["int8"]),
    "linspace endpoint": (
        lambda: te.linspace(0, 1, 3, endpoint=2), ValueError, ["endpoint is 2", "True or False"]),
    "eye k": (lambda: te.eye(2, k=0.5), ValueError, ["k is 0.5", "whole number"]),
    "randint_like order": (
        lambda: te.randint_like(t(2), 3, 3), ValueError, ["from 3 to 3", "low < high"]),
    "randint_like dtype": (
        lambda: te.randint_like(t(2, dtype="int8"), 200, 201), OverflowError, ["int8"]),
    "randint_like text": (lambda: te.randint_like("a", 0, 3), TypeError, ["str"]),
    "randint fraction": (lambda: te.randint(0.5, 3, 2), ValueError, ["low is 0.5", "whole"]),
    "randint text": (lambda: te.randint(0, "a", 2), ValueError, ["high is 'a'", "whole"]),
    "randint large": (lambda: te.randint(0, 1 << 70, 2), ValueError, [str(1 << 70), "int64"]),
    "randint dtype": (lambda: te.randint(299, 300, 2, dtype="int8"), OverflowError, ["int8"]),
    "randint shape": (lambda: te.randint(0, 3, (-1,)), ValueError, ["(-1,)"]),
    "rand generator": (
        lambda: te.rand(2, generator=np.random.default_rng()), TypeError, ["te_tensor Generator"]),
    "use_generator": (
        lambda: te.use_generator(3), TypeError, ["builtins.int", "te_tensor Generator"]),
    "manual_seed negative": (lambda: te.manual_seed(-1), ValueError, ["seed is -1"]),
    "manual_seed fraction": (lambda: te.manual_seed(1.5), ValueError, ["seed is 1.5"]),
    "Generator": (lambda: te.Generator("a"), ValueError, ["seed is 'a'"]),
    "set_rng_state": (lambda: te.set_rng_state((1,)), ValueError, ["(1,)", "(seed, draws)"]),
    "set_rng_state number": (lambda: te.set_rng_state(3), ValueError, ["3", "(seed, draws)"]),
    "set_num_threads": (lambda: te.set_num_threads(0), ValueError, ["0", "at least 1"]),
    "set_num_threads bool": (lambda: te.set_num_threads(True), ValueError, ["True"]),
    "set_kernels": (lambda: te.set_kernels("sse"), ValueError, ["'sse'", "avx512"]),
    "set_blas": (lambda: te.set_blas("mkl"), ValueError, ["'mkl'", "openblas"]),
    "promote": (
        lambda: te.promote("float32", "float23"), TypeError, ["'float23'", "expected one of"]),
    "promote stored": (
        lambda: te.promote(te.uint16, "float32"), TypeError, ["uint16", "storage only"]),
    "promote number": (lambda: te.promote(3, 4), TypeError, ["3", "expected one of"]),
    "allclose": (lambda: te.allclose(t(2), t(3)), ValueError, ["(2,)", "(3,)"]),
    "allclose text": (lambda: te.allclose("a", t(2)), TypeError, ["str"]),
    "allclose tolerance": (lambda: te.allclose(t(2), t(2), rtol=-1), ValueError, ["rtol is -1"]),
    "allclose NaN": (lambda: te.allclose(t(2), t(2), atol=NAN), ValueError, ["atol is nan"]),
    # switches
    **{
        f"{name} switch {given!r}": (
            lambda f=f, given=given: f(given), ValueError, [said, f"is {given!r}", "True or False"])
        for given in ("no", 1, None)
        for name, said, f in [
            ("Tensor", "requires_grad", lambda s: te.Tensor([1.0], requires_grad=s)),
            ("zeros", "requires_grad", lambda s: te.zeros(2, requires_grad=s)),
            ("full", "requires_grad", lambda s: te.full(2, 1.0, requires_grad=s)),
            ("randn", "requires_grad", lambda s: te.randn(2, requires_grad=s)),
            ("Tensor.backward", "retain_graph", lambda s: leaf().sum().backward(retain_graph=s)),
            ("grad", "retain_graph", lambda s: te.grad(leaf().sum(), leaf(), retain_graph=s)),
            ("Tensor.lock", "write", lambda s: t(2).lock(s).__enter__()),
        ]
    },
    "Tensor.backward create_graph": (
        lambda: leaf().sum().backward(create_graph="no"), ValueError, ["create_graph is 'no'"]),
    "grad create_graph": (
        lambda: te.grad(leaf().sum(), leaf(), create_graph=2), ValueError, ["create_graph is 2"]),
    "grad allow_unused": (
        lambda: te.grad(leaf().sum(), leaf(), allow_unused=0), ValueError, ["allow_unused is 0"]),
    # gradients
    "grad output": (lambda: te.grad(3, leaf()), TypeError, ["output 0", "int", "Tensor"]),
    "grad input": (lambda: te.grad(leaf() * 2, 3), TypeError, ["input 0", "int", "Tensor"]),
    "grad none": (lambda: te.grad(t(2), leaf()), RuntimeError, ["output 0 needs no gradient"]),
    "grad start": (lambda: te.grad(leaf() * 2, leaf(), [1.0]), ValueError, ["(2,)"]),
    "grad unused": (lambda: te.grad(leaf().sum(), leaf()), RuntimeError, ["input 0", "(2,)"]),
    "gradcheck function": (lambda: te.gradcheck(3, [leaf()]), TypeError, ["int", "function"]),
    "gradcheck input": (lambda: te.gradcheck(abs, [3]), TypeError, ["input 0", "int", "Tensor"]),
    "gradcheck tensor": (lambda: te.gradcheck(abs, leaf()), TypeError, ["Tensor", "a list"]),
    "gradcheck number": (lambda: te.gradcheck(abs, 3), TypeError, ["int", "a list"]),
    "gradcheck none": (lambda: te.gradcheck(abs, [t(2)]), ValueError, ["requires a gradient"]),
    "gradcheck dtype": (
        lambda: te.gradcheck(abs, [leaf("float32")]), TypeError, ["float32", "float64"]),
    "gradcheck output": (
        lambda: te.gradcheck(lambda x: 3, [leaf()]), TypeError, ["output 0", "int", "Tensor"]),
    "gradcheck directions": (
        lambda: te.gradcheck(abs, [leaf()], directions=0), ValueError, ["directions is 0"]),
    "gradcheck eps": (lambda: te.gradcheck(abs, [leaf()], eps=0), ValueError, ["eps is 0"]),
    "gradcheck_operation": (
        lambda: te.gradcheck_operation(3), TypeError, ["3", "class of Operation"]),
    "gradcheck_operation samples": (
        lambda: te.gradcheck_operation(te.Operation), ValueError, ["no samples"]),
    "to_dot": (lambda: te.to_dot(3), TypeError, ["int", "Tensor"]),
    "checkpoint": (lambda: te.checkpoint(3, t(2)), TypeError, ["int", "function"]),
    "checkpoint result": (lambda: te.checkpoint(lambda x: 3, leaf()), TypeError, ["int", "Tensor"]),
    "shard": (lambda: te.shard(3, t(2)), TypeError, ["int", "function"]),
    "shard nothing": (lambda: te.shard(abs, 3), TypeError, ["no tensor"]),
    "shard axis": (lambda: te.shard(abs, t(2), axis=5), IndexError, ["axis is 5"]),
    "shard axis bool": (lambda: te.shard(abs, t(2, 2), axis=True), TypeError, ["axis is True"]),
    "shard shards": (lambda: te.shard(abs, t(2), shards=1.5), ValueError, ["shards is 1.5"]),
    "shard lengths": (
        lambda: te.shard(max, t(2), t(3), shards=2), ValueError, ["(2,)", "(3,)", "axis 0"]),
    "shard mean": (
        lambda: te.shard(lambda x: x.sum(), t(4), shards=2), ValueError, ["()", "slice of 2"]),
    "Tensor.apply number": (
        lambda: te.Tensor.apply(te.Operation(), 3), TypeError, ["int", "expected Tensors"]),
    "Tensor.apply class": (
        lambda: te.Tensor.apply(te.Operation, t(2)), TypeError, ["Operation", "an instance"]),
    "Tensor.apply nothing": (lambda: te.Tensor.apply(3, t(2)), TypeError, ["int", "an instance"]),
    "astype": (lambda: te.astype(t(2), "float23"), TypeError, ["'float23'", "expected one of"]),
    "Tensor.to": (lambda: t(2).to(None), TypeError, ["None", "expected one of"]),
    "Tensor.backward": (lambda: t(2).backward(), RuntimeError, ["requires_grad=True"]),
    "Tensor.backward elements": (
        lambda: (leaf() * 2).backward(), RuntimeError, ["(2,)", "one element"]),
    "Tensor.backward shape": (
        lambda: (leaf() * 2).backward([1, 2, 3]), ValueError, ["(3,)", "(2,)"]),
    "Tensor.backward text": (lambda: (leaf() * 2).backward("a"), TypeError, ["str", "no numbers"]),
    "Tensor.backward complex": (
        lambda: (leaf() * 2).backward(np.ones(2, "c8")), TypeError, ["complex64", "float64"]),
    "Tensor.grad shape": (lambda: setattr(t(2), "grad", [1.0]), ValueError, ["(1,)", "(2,)"]),
    "Tensor.grad text": (lambda: setattr(t(2), "grad", "a"), TypeError, ["str"]),
    "Tensor.lock": (
        lambda: t(1).expand(2).lock().__enter__(), ValueError, ["read-only", "clone()"]),
    "Tensor.register_hook": (lambda: leaf().register_hook(3), TypeError, ["int", "function"]),
    "Tensor.register_hook leaf": (
        lambda: t(2).register_hook(abs), RuntimeError, ["requires_grad=True"]),
    "Tensor.register_post_accumulate_grad_hook": (
        lambda: leaf().register_post_accumulate_grad_hook(3), TypeError, ["int", "function"]),
    "Tensor.register_post_accumulate_grad_hook result": (
        lambda: (leaf() * 2).register_post_accumulate_grad_hook(abs), RuntimeError, ["a leaf"]),
    "Tensor.retain_grad": (lambda: t(2).retain_grad(), RuntimeError, ["requires_grad=True"]),
    "no_grad generator": (
        lambda: te.no_grad()(lambda: (yield)), TypeError, ["no_grad", "generator"]),
    "enable_grad generator": (
        lambda: te.enable_grad()(lambda: (yield)), TypeError, ["enable_grad", "generator"]),
    "detect_anomaly generator": (
        lambda: te.detect_anomaly()(lambda: (yield)), TypeError, ["detect_anomaly", "generator"]),
    "trace generator": (lambda: te.trace()(lambda: (yield)), TypeError, ["trace", "generator"]),
}  # fmt: skip
