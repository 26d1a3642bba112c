"""Which kernels run: by processor, system, environment and choice; from many threads and forks."""

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import te_tensor as te
from te_tensor import executable, machine, memory
from te_tensor.machine import Matrix, exponential, kernel
from te_tensor.machine.target import TARGETS

kernels = sys.modules["te_tensor.machine.kernel"]

here = pytest.mark.skipif(
    te.kernel_info()["kernels"] == "numpy", reason="no kernels on this processor"
)


@pytest.fixture
def patch():
    """Undone before other fixtures put the choice of the process back."""
    te.kernel_info()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("current", "target"):
            patched.setattr(kernels._state, name, getattr(kernels._state, name))
        yield patched


def fresh():
    @kernel
    def function(out: Matrix, x: Matrix) -> None:
        out.store(exponential(x.load() * 2.0))

    return function


# -- choices ---------------------------------------------------------------------------------


def test_choices(target):
    assert te.kernel_info() == {"kernels": target}
    x = np.ones(3, np.float32)
    assert machine.runs(x)
    assert not machine.runs(x, x.astype(np.float64))
    assert not machine.runs(np.ones((3, 3), np.float32).T)
    te.set_kernels("numpy")
    assert te.kernel_info() == {"kernels": "numpy"}
    assert not machine.runs(x)
    te.set_kernels("auto")
    assert te.kernel_info()["kernels"] in TARGETS


def test_one_kernel_runs_as_each_kind():
    function, x, found = fresh(), np.linspace(-1, 1, 100, dtype=np.float32), {}
    for name in TARGETS:
        try:
            te.set_kernels(name)
        except OSError:
            continue
        found[name] = np.empty_like(x)
        function.flat(found[name], x)
    for result in found.values():
        np.testing.assert_allclose(result, np.exp(2 * x), rtol=3e-7)
    assert set(function._programs) == set(found)


@pytest.mark.parametrize("name", TARGETS)
def test_what_does_not_fit_is_refused(name, patch):
    before = te.kernel_info()
    patch.setattr(kernels, "_fitting", lambda: [n for n in TARGETS if n != name])
    with pytest.raises(OSError, match=f"kernels of {name} don't run on this processor"):
        te.set_kernels(name)
    assert te.kernel_info() == before


def test_a_kernel_that_nobody_asked_for(patch):
    patch.setattr(kernels._state, "target", None)
    x = np.ones(3, np.float32)
    with pytest.raises(RuntimeError, match="kernel function: `runs` has to be asked first"):
        fresh().flat(x, x)


# -- processors and systems ------------------------------------------------------------------

AVX2, AVX512 = TARGETS["avx2"].needs, TARGETS["avx512"].needs
BOTH = tuple(a | b for a, b in zip(AVX2, AVX512, strict=True))
FOUND = {
    "nothing": ((0, 0, 0), []),
    "both": (BOTH, ["avx512", "avx2"]),
    "AVX2": (AVX2, ["avx2"]),
    "no FMA": ((1 << 28, *AVX2[1:]), []),
    "registers of AVX aren't saved": ((*AVX2[:2], 0b10), []),
    "registers of AVX-512 aren't saved": ((*BOTH[:2], 0b110), ["avx2"]),
    "AVX-512 without DQ": ((BOTH[0], BOTH[1] & ~(1 << 17), BOTH[2]), ["avx2"]),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_processors_can_do(name, patch):
    features, fitting = FOUND[name]
    patch.setattr(executable, "possible", lambda: True)
    patch.setattr(kernels, "_features", lambda: (*features, 0))
    assert kernels._fitting() == fitting
    te.set_kernels("auto")
    assert te.kernel_info()["kernels"] == (fitting[0] if fitting else "numpy")


@here
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_what_this_processor_can_do():
    """As the kernel says, which asks the processor on its own."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = set(next(line for line in text.splitlines() if line.startswith("flags")).split())
    assert ("avx2" in kernels._fitting()) == ({"avx2", "fma"} <= flags)
    needed = {"avx512f", "avx512dq", "avx512bw", "avx512vl"}
    assert ("avx512" in kernels._fitting()) == (needed <= flags)


def refuse(*_):
    raise OSError("the system forbids to run code made at run time")


@pytest.mark.parametrize("reason", ["memory", "machine", "objects"])
def test_machines_that_run_no_kernels(reason, patch):
    before = te.kernel_info()
    if reason == "memory":
        patch.setattr(kernels, "Code", refuse)
    elif reason == "machine":
        patch.setattr(platform, "machine", lambda: "aarch64")
    else:
        patch.setattr(memory, "DATA_COMES_FIRST", False)
    for name in TARGETS:
        with pytest.raises(OSError, match=rf"kernels of {name} don't run .* numpy would"):
            te.set_kernels(name)
    assert te.kernel_info() == before
    te.set_kernels("auto")
    assert te.kernel_info() == {"kernels": "numpy"}
    assert not machine.runs(np.ones(3, np.float32))
    result = te.softmax(te.Tensor([[0.0, 0.0]]), axis=-1)
    np.testing.assert_array_equal(result.numpy(), [[0.5, 0.5]])


@here
def test_code_is_never_both_writable_and_run():
    code = executable.Code(b"\xc3")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux")
    for line in maps.read_text(encoding="utf-8").splitlines():
        span, rights = line.split()[:2]
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= code.address < high:
            assert rights.startswith("r-x")
            break
    else:
        pytest.fail("the code isn't in memory")


@here
def test_memory_that_may_not_be_run(patch):
    patch.setattr(executable.mmap, "PROT_EXEC", 1 << 20)  # no such right
    with pytest.raises(OSError, match="the system forbids to run code made at run time"):
        executable.Code(b"\xc3")
    te.set_kernels("auto")
    assert te.kernel_info() == {"kernels": "numpy"}


# -- where arrays are ------------------------------------------------------------------------


class Own(np.ndarray):
    pass


def test_addresses_of_data(tmp_path):
    """Kernels read them from array objects: whatever kind of array it is."""
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    (tmp_path / "numbers").write_bytes(x.tobytes())
    arrays = [
        x,
        x[1:, 2:],
        x[::-1],
        x.T,
        x[:0],
        x.view(Own),
        np.frombuffer(bytes(64), np.float32),
        np.memmap(tmp_path / "numbers", np.float32, "r"),
        np.broadcast_to(x, (3, 4, 6)),
        np.ma.masked_array(x),
        np.asarray(te.Tensor([1.0, 2.0]).numpy()),
    ]
    for array in arrays:
        assert memory.address(array) == array.ctypes.data
        if memory.DATA_COMES_FIRST:
            assert memory._address_in_object(array) == array.ctypes.data


# -- threads, forks and environments ---------------------------------------------------------


@here
def test_first_calls_at_the_same_time(target):
    x = np.linspace(-1, 1, 1000, dtype=np.float32)
    for _ in range(20):
        function, outs = fresh(), [np.empty_like(x) for _ in range(8)]
        barrier, errors = threading.Barrier(8), []

        def run(out, function=function, barrier=barrier, errors=errors):
            try:
                barrier.wait()
                function.flat(out, x)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(out,)) for out in outs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        for out in outs:
            np.testing.assert_array_equal(out, outs[0])
        assert list(function._programs) == [target]


def test_kinds_change_while_others_run():
    """Each call takes record and code of one kind."""
    names = [*kernels._fitting(), "numpy"]
    if len(names) < 2:
        pytest.skip("no kernels on this processor")
    te.set_kernels(names[0])
    function, x = fresh(), np.linspace(-1, 1, 1003, dtype=np.float32)
    expected, wrong, stop = np.exp(2 * x), [], threading.Event()

    def run():
        out = np.empty_like(x)
        while not stop.is_set():
            out[:] = 0
            function.flat(out, x)
            if not np.allclose(out, expected, rtol=1e-6):
                wrong.append(out.copy())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        for name in names:
            te.set_kernels(name)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def python(code, **environment):
    """A process of its own."""
    paths = os.pathsep.join(filter(None, [str(Path(te.__file__).parents[1]), *sys.path]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", [*TARGETS, "numpy"])
def test_environment(name):
    if name not in [*kernels._fitting(), "numpy"]:
        pytest.skip(f"no kernels of {name} on this processor")
    code = "import te_tensor as te; te.softmax(te.ones(2, 9)); print(te.kernel_info()['kernels'])"
    done = python(code, TE_KERNELS=name)
    assert done.stdout.split() == [name], done.stderr


def test_environment_that_names_nothing():
    done = python("import te_tensor as te; te.kernel_info()", TE_KERNELS="sse9")
    assert done.returncode
    assert "'sse9': expected one of auto, avx512, avx2, numpy" in done.stderr


FORK = """
import os
import numpy as np
import te_tensor as te
from te_tensor.machine import Matrix, kernel

def doubled(out: Matrix, x: Matrix) -> None:
    out.store(x.load() + x.load())

before, x, out = kernel(doubled), np.ones(99, np.float32), np.zeros(99, np.float32)
te.kernel_info()
before.flat(out, x)
child = os.fork()
out[:] = 0
before.flat(out, x)  # compiled before
assert (out == 2).all()
out[:] = 0
kernel(doubled).flat(out, x)  # compiled here
assert (out == 2).all()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("both")
"""


@here
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks():
    done = python(FORK)
    assert done.stdout.split() == ["both"], done.stderr
