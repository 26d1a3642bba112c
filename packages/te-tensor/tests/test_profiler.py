"""Profiles count what runs, in both directions and in all threads."""

import te_tensor as te


def test_calls_bytes_and_seconds():
    x = te.ones(1000, requires_grad=True)
    with te.profile() as found:
        for _ in range(3):
            (x.exp() * x).sum().backward()
    assert {name: r.calls for name, r in found.forward.items()} == {"Exp": 3, "Mul": 3, "Sum": 3}
    assert {name: r.calls for name, r in found.backward.items()} == {"Exp": 3, "Mul": 3, "Sum": 3}
    assert found.forward["Exp"].nbytes == 3 * 4000
    assert found.backward["Mul"].nbytes == 3 * 8000
    inside = sum(r.seconds for d in (found.forward, found.backward) for r in d.values())
    assert 0 < inside < found.seconds


def test_nothing_is_recorded_outside():
    x = te.ones(3)
    with te.profile() as found:
        pass
    x.exp()
    assert not found.forward and not found.backward


def test_shards_are_looked_into():
    w = te.ones(4, 4, requires_grad=True)
    x = te.ones(6, 4)
    with te.profile() as found:
        te.shard(lambda part: (part @ w).tanh(), x, shards=3).sum().backward()
    assert found.forward["MatMul"].calls == found.backward["Tanh"].calls == 3
    assert "Shard" not in found.forward and "Shard" not in found.backward


def test_the_table():
    x = te.ones(1000, requires_grad=True)
    with te.profile() as found:
        x.exp().sum().backward()
    lines = str(found).splitlines()
    assert lines[1].split() == ["operation", *("calls", "ms", "MB") * 2]
    row = next(line.split() for line in lines if line.startswith("Exp"))
    assert row[1] == row[4] == "1"
    assert "in all" in lines[-1]


def test_the_example_of_the_documentation_holds_in_no_grad():
    with te.profile() as found, te.no_grad():
        te.ones(3).exp()
    assert found.forward["Exp"].calls == 1 and not found.backward
