"""The worker threads: results, failures, nesting, contexts, forks."""

import contextvars
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import te_tensor as te
from te_tensor import parallel


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100])
def test_every_index_is_called_once(count, threads):
    calls = []
    parallel.parallel_for(calls.append, count)
    assert sorted(calls) == list(range(count))


def test_several_threads_take_part():
    te.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=10)
    parallel.parallel_for(lambda _: meeting.wait(), 2)  # would break if one thread ran both


def test_one_thread_keeps_to_the_caller():
    te.set_num_threads(1)
    seen = set()
    parallel.parallel_for(lambda _: seen.add(threading.get_ident()), 50)
    assert seen == {threading.get_ident()}


def test_the_failure_with_the_lowest_index_is_raised(threads):
    finished = []

    def work(index):
        if index in (2, 5):
            time.sleep(0.02 if index == 2 else 0)  # the later one fails first
            raise ValueError(f"index {index}")
        finished.append(index)

    with pytest.raises(ValueError, match="index 2"):
        parallel.parallel_for(work, 8)
    if threads > 1:
        assert sorted(finished) == [0, 1, 3, 4, 6, 7]
    parallel.parallel_for(finished.append, 3)  # and it goes on working


def test_nested_calls_run_directly():
    te.set_num_threads(3)
    total = []

    def outer(i):
        assert parallel.in_parallel()
        owner = threading.get_ident()

        def inner(j):
            assert threading.get_ident() == owner
            total.append((i, j))

        parallel.parallel_for(inner, 5)

    parallel.parallel_for(outer, 4)
    assert sorted(total) == [(i, j) for i in range(4) for j in range(5)]
    assert not parallel.in_parallel()


def test_a_failure_ends_the_region():
    te.set_num_threads(2)

    def fail(index):
        raise KeyError(index)

    with pytest.raises(KeyError):
        parallel.parallel_for(fail, 4)
    assert not parallel.in_parallel()


def test_workers_see_the_callers_context():
    te.set_num_threads(2)
    variable = contextvars.ContextVar("variable", default="default")
    variable.set("mine")
    seen = []
    meeting = threading.Barrier(2, timeout=10)

    def work(_):
        meeting.wait()
        seen.append((variable.get(), te.is_grad_enabled()))
        variable.set("changed by a worker")

    with te.no_grad():
        parallel.parallel_for(work, 2)
    assert seen == [("mine", False)] * 2


def test_a_waiting_worker_keeps_no_arrays_alive():
    import weakref

    te.set_num_threads(2)

    class Data:
        pass

    data = Data()
    dead = weakref.ref(data)
    meeting = threading.Barrier(2, timeout=10)

    def work(_, data=data):
        meeting.wait()

    parallel.parallel_for(work, 2)
    del work, data
    for _ in range(100):
        if dead() is None:
            break
        time.sleep(0.01)
    assert dead() is None


def test_several_users_threads_at_once():
    te.set_num_threads(3)
    x = te.randn(600, 700)
    expected = te.exp(x).numpy()
    wrong = []

    def work():
        for _ in range(10):
            if not np.array_equal(te.exp(x).numpy(), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong
    assert not any(w.is_alive() for w in workers)


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "2", None, True])
def test_bad_numbers_of_threads_raise(value):
    before = te.get_num_threads()
    with pytest.raises(ValueError, match=f"number of threads is {value!r}"):
        te.set_num_threads(value)
    assert te.get_num_threads() == before


def test_a_number_of_threads_may_come_from_an_array():
    before = te.get_num_threads()
    te.set_num_threads(np.int64(2))
    assert te.get_num_threads() == 2
    assert type(te.get_num_threads()) is int
    te.set_num_threads(before)


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_the_environment_sets_the_number_of_threads():
    code = "import te_tensor as te; print(te.get_num_threads())"
    assert _python(code, TE_NUM_THREADS="5").stdout.strip() == "5"
    ran = _python(code, TE_NUM_THREADS="many")
    assert "TE_NUM_THREADS is 'many'" in ran.stderr


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_the_quota_of_a_cgroup(monkeypatch, files, expected):
    def read_text(path):
        if path.as_posix() not in files:
            raise FileNotFoundError(path)
        return files[path.as_posix()]

    monkeypatch.setattr(parallel.Path, "read_text", read_text)
    assert parallel._cgroup_quota() == expected


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [(8, None, 8), (8, 1.5, 2), (8, 0.5, 1), (1, 4.0, 1)],
)
def test_cpus_follow_affinity_and_quota(monkeypatch, affinity, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(parallel, "_cgroup_quota", lambda: quota)
    assert parallel.available_cpus() == expected


def test_available_cpus():
    assert 1 <= parallel.available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes():
    # In a process of its own: forking this one, with all its threads, is another matter.
    ran = _python("""
        import os, warnings
        import numpy as np
        import te_tensor as te
        warnings.simplefilter("ignore", DeprecationWarning)  # on fork with threads
        te.set_num_threads(2)
        x = te.ones(600, 700, requires_grad=True)
        y = te.exp(x)  # starts the workers
        child = os.fork()
        if not child:
            z = (te.exp(x) @ te.ones(700, 300)).sum()
            z.backward()
            good = np.allclose(x.grad.numpy(), 300 * np.e)
            os._exit(0 if good else 1)
        _, status = os.waitpid(child, 0)
        assert np.array_equal(te.exp(x).numpy(), y.numpy())
        print("child", os.waitstatus_to_exitcode(status))
    """)
    assert ran.stdout.strip() == "child 0", ran.stderr


def test_an_exit_does_not_wait_for_workers():
    start = time.monotonic()
    ran = _python("import te_tensor as te; te.set_num_threads(4); te.exp(te.ones(600, 700))")
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - start < 30


# -- cutting ------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 5, 100])
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 200])
def test_split(total, parts):
    pieces = parallel.split(total, parts)
    covered = [i for piece in pieces for i in range(piece.start, piece.stop)]
    assert covered == list(range(total))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    if total:
        assert min(sizes) >= 1
        assert len(pieces) == min(parts, total)


@pytest.mark.parametrize("size", [0, 1, 10, 100_000])
def test_fixed_blocks(size):
    blocks = parallel.fixed_blocks(size)
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(size))


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ({"index3": "32768K\n"}, 1 << 18),
        ({"index3": "4096K\n"}, 1 << 16),
        ({"index2": "512K\n"}, 1 << 15),
        ({}, 1 << 15),
    ],
)
def test_blocks_fit_the_cache(monkeypatch, cache, expected):
    def read_text(path):
        if path.parent.name not in cache:
            raise FileNotFoundError(path)
        return cache[path.parent.name]

    monkeypatch.setattr(parallel, "available_cpus", lambda: 2)
    monkeypatch.setattr(parallel.Path, "read_text", read_text)
    assert parallel._block_size() == expected


# -- operations on large arrays -----------------------------------------------------------

LARGE = np.random.default_rng(0).uniform(0.3, 2, (700, 800)).astype("float32")  # > 1 << 18
ELEMENTWISE = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y,
    "row": lambda x, y: x * y[0],
    "column": lambda x, y: x * y[:, :1],
    "scalar": lambda x, y: x * 3 + y,
    "transposed": lambda x, y: x.T + y.T,
    "mixed": lambda x, y: x + y.reshape(800, 700).T,
    "neg": lambda x, y: -x,
    "abs": lambda x, y: (x - 1).abs(),
    "exp": lambda x, y: x.exp(),
    "log": lambda x, y: x.log(),
    "sqrt": lambda x, y: x.sqrt(),
    "relu": lambda x, y: (x - 1).relu(),
    "sigmoid": lambda x, y: x.sigmoid(),
    "tanh": lambda x, y: x.tanh(),
    "gelu": lambda x, y: x.gelu(),
    "gelu tanh": lambda x, y: x.gelu("tanh"),
    "softmax": lambda x, y: x.softmax(1),
    "softmax 0": lambda x, y: x.softmax(0),
    "log_softmax": lambda x, y: x.log_softmax(1),
    "layer_norm": lambda x, y: te.layer_norm(x, 800),
    "dropout": lambda x, y: te.dropout(x, 0.3),
    "mse": lambda x, y: te.mse_loss(x, y),
    "mse none": lambda x, y: te.mse_loss(x, y, "none"),
    "sum": lambda x, y: x.sum(0),
    "mean": lambda x, y: x.mean(1),
    "max": lambda x, y: x.max(1),
}


def _run(f, count, part=slice(None)):
    te.set_num_threads(count)
    te.manual_seed(5)
    x, y = (te.Tensor(a[part], requires_grad=True) for a in (LARGE, LARGE[::-1].copy()))
    result = f(x, y)
    result.backward(np.random.default_rng(1).uniform(-1, 1, result.shape))
    return [result.numpy(), x.grad.numpy()] + ([] if y.grad is None else [y.grad.numpy()])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_number_of_threads_does_not_change_elementwise_bits(name):
    one, two, three = (_run(ELEMENTWISE[name], count) for count in (1, 2, 3))
    for a, b, c in zip(one, two, three, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("name", ["mul", "div", "exp", "tanh", "sigmoid", "gelu", "relu", "row"])
def test_blocks_give_what_small_arrays_give(name):
    te.set_num_threads(2)
    f = ELEMENTWISE[name]
    x, y = te.Tensor(LARGE), te.Tensor(LARGE[::-1].copy())
    whole = f(x, y).numpy()
    rows = {i: y[i : i + 7] for i in (0, 350, 693)}
    if name == "row":  # its second operand is the first row of y
        rows = {i: te.concat([y[:1], part[1:]]) for i, part in rows.items()}
    for i, part in rows.items():
        np.testing.assert_allclose(whole[i : i + 7], f(x[i : i + 7], part).numpy(), rtol=1e-6)
