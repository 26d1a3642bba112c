"""Workers that wait awake: their machine code, and that work gets done whoever is there."""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import te_tensor as te
from te_tensor import crew, executable, parallel
from te_tensor.machine import Matrix, kernel, runs

pytestmark = pytest.mark.skipif(
    parallel.crew() is None or not runs(), reason="for Linux on x86-64 with AVX"
)


@kernel
def _double(out: Matrix, x: Matrix) -> None:
    out.store(x.load() * 2.0)


@pytest.mark.skipif(shutil.which("as") is None, reason="needs the GNU assembler")
@pytest.mark.parametrize("name", ["SERVE", "SHARE_BOTH", "SHARE", "RECALL", "CALL"])
def test_listings_are_what_the_assembler_makes_of_them(name, tmp_path):
    listing = getattr(crew, name)
    lines = [line.split(maxsplit=1)[1] for line in listing.strip().split("\n")]
    source, result = tmp_path / "code.s", tmp_path / "code.o"
    source.write_text(".intel_syntax noprefix\n" + "\n".join(lines) + "\n")
    subprocess.run(["as", str(source), "-o", str(result)], check=True)
    raw = tmp_path / "code.bin"
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(result), str(raw)], check=True)
    assert raw.read_bytes() == executable.from_listing(listing)


def _calls(counts: list[int]) -> tuple[list[tuple[int, bytes]], list[np.ndarray], list[object]]:
    """Products of 1 × 1 matrices as many as there are counts, by a function of our own."""
    results = [np.zeros(1, np.int64) for _ in counts]

    def made(result, count):
        def run(*arguments: int) -> None:
            time.sleep(count / 1000)
            result[0] += arguments[0]

        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(run)

    functions = [made(r, c) for r, c in zip(results, counts, strict=True)]
    pack = crew.struct.Struct("=13qdd").pack
    address = parallel.crew().caller
    work = [
        (address, pack(ctypes.cast(f, ctypes.c_void_p).value, 7 + i, *[0] * 11, 0.0, 0.0))
        for i, f in enumerate(functions)
    ]
    return work, results, functions


@pytest.mark.parametrize("awake", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_all_work_is_done_once_whoever_is_awake(count, awake):
    te.set_num_threads(count)
    if awake:
        parallel.parallel_for(lambda index: time.sleep(0.001), count)
    work, results, _functions = _calls([0] * count)
    parallel.share(work, short=False)
    assert [int(r[0]) for r in results] == [7 + i for i in range(count)]


@pytest.mark.parametrize("pauses", [[0, 30], [30, 0], [0, 30, 5], [1, 1, 1]])
def test_a_caller_waits_for_long_work(pauses):
    te.set_num_threads(len(pauses))
    for _ in range(3):
        parallel.parallel_for(lambda index: time.sleep(0.001), len(pauses))
        work, results, _functions = _calls(pauses)
        parallel.crew().share(work, keep_gil=False)
        assert [int(r[0]) for r in results] == [7 + i for i in range(len(pauses))]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_threads_that_share_one_cpu_do_all_work_once():
    code = """
import os, threading
import numpy as np, te_tensor as te
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
te.set_num_threads(3)
a, b = te.randn(96, 128), te.randn(128, 160)
first = (a @ b).data.copy()
done = []

def call():
    for _ in range(500):
        assert np.array_equal((a @ b).data, first)
        x = te.ones(1 << 16).gelu().data
        assert (x == x[0]).all()
    done.append(True)

threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert done == [True, True]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_workers_fall_asleep_and_wake_up_again():
    te.set_num_threads(2)
    crew_here = parallel.crew()
    x, out = np.ones(1000, np.float32), np.zeros(1000, np.float32)
    _double.flat(out, x)
    for _ in range(3):
        work, results, _functions = _calls([0, 0])
        parallel.share(work, short=False)
        deadline = time.monotonic() + 5
        while crew_here.awake(0) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not crew_here.awake(0)
        assert [int(r[0]) for r in results] == [7, 8]


def test_many_callers_share_one_crew():
    te.set_num_threads(3)
    rng = np.random.default_rng(0)
    a = [rng.standard_normal((96, 128)).astype(np.float32) for _ in range(4)]
    b = rng.standard_normal((128, 160)).astype(np.float32)
    wanted = [te.Tensor(m) @ te.Tensor(b) for m in a]
    failures: list[int] = []

    def call(index: int) -> None:
        for _ in range(200):
            found = te.Tensor(a[index]) @ te.Tensor(b)
            if not np.array_equal(found.data, wanted[index].data):
                failures.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_forked_child_has_a_crew_of_its_own():
    code = """
import os, numpy as np, te_tensor as te
te.set_num_threads(2)
a = te.randn(256, 256)
first = (a @ a).data.copy()
child = os.fork()
if not child:
    same = all(np.array_equal((a @ a).data, first) for _ in range(20))
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal((a @ a).data, first)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_a_process_ends_while_workers_wait():
    code = "import te_tensor as te; te.set_num_threads(4); a = te.randn(512, 512); a @ a"
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_a_crew_products_are_the_same(monkeypatch):
    te.set_num_threads(2)
    a, b = te.randn(256, 192), te.randn(192, 320)
    row = te.randn(1, 192)
    expected = [(a @ b).data, (row @ b).data, (b.T @ a.T).data]
    monkeypatch.setattr(parallel._pool, "crew", None)
    found = [(a @ b).data, (row @ b).data, (b.T @ a.T).data]
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-5)


def test_elsewhere_there_is_none(monkeypatch):
    monkeypatch.setattr(crew.sys, "platform", "darwin")
    with pytest.raises(OSError, match="Linux"):
        crew.Crew(1)
