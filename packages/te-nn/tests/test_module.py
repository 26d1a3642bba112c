import copy
import pickle
import tracemalloc

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te


class Inner(nn.Module):
    def __init__(self):
        self.weight = nn.Parameter([1.0, 2.0])
        self.register_buffer("count", te.Tensor(3))


class Outer(nn.Module):
    def __init__(self):
        self.first = Inner()
        self.scale = nn.Parameter([[0.5]])
        self.second = Inner()
        self.plain = te.ones(2)
        self.name = "outer"

    def forward(self, x, *, shift=0.0):
        return x * self.scale + shift


def test_state_has_parameters_then_buffers_then_children():
    assert list(Outer().state_dict()) == [
        "scale",
        "first.weight",
        "first.count",
        "second.weight",
        "second.count",
    ]


def test_named_parameters_and_prefix():
    outer = Outer()
    names = dict(outer.named_parameters("model"))
    assert list(names) == ["model.scale", "model.first.weight", "model.second.weight"]
    assert names["model.scale"] is outer.scale
    assert next(iter(outer.state_dict("model"))) == "model.scale"
    assert [b.item() for b in outer.buffers()] == [3, 3]


def test_calling_is_forward():
    outer = Outer()
    x = te.ones(1, 1)
    assert outer(x, shift=1.0).tolist() == outer.forward(x, shift=1.0).tolist() == [[1.5]]


def test_modules_and_children():
    outer = Outer()
    assert list(outer.children()) == [outer.first, outer.second]
    assert list(outer.modules()) == [outer, outer.first, outer.second]
    assert [name for name, _ in outer.named_modules()] == ["", "first", "second"]


def test_tied_parameters_count_once_but_are_listed_under_each_name():
    outer = Outer()
    outer.second.weight = outer.first.weight
    assert len(list(outer.parameters())) == 2
    state = outer.state_dict()
    assert np.shares_memory(state["first.weight"].data, state["second.weight"].data)


def test_shared_module_counts_once():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert len(list(model.parameters())) == 2
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_round_trip():
    source, target = Outer(), Outer()
    with source.first.weight.lock() as array:
        array[:] = [7, 8]
    with source.second.count.lock() as array:
        array[...] = 9
    assert target.load_state_dict(source.state_dict()) == ([], [])
    assert target.first.weight.tolist() == [7, 8]
    assert target.second.count.item() == 9
    assert target.first.weight.requires_grad


def test_state_is_a_reference_and_loading_copies():
    model = nn.Linear(2, 2)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert not np.shares_memory(state["weight"].data, model.weight.data)
    assert np.shares_memory(model.state_dict()["weight"].data, model.weight.data)


def test_loading_lists_every_problem_and_changes_nothing():
    model = Outer()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    state = {
        "scale": np.full((1, 1), 9.0),
        "first.weight": np.ones((2, 1)),
        "second.weight": np.ones(3),
        "first.count": np.array(5),
        "third": np.ones(1),
    }
    with pytest.raises(nn.StateDictError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    for part in (
        "missing: second.count",
        "unexpected: third",
        "first.weight: shape (2, 1), expected (2,)",
        "second.weight: shape (3,), expected (2,)",
    ):
        assert part in message
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), before[name])


@pytest.mark.parametrize(
    "value",
    [[["a", "b"]], [[None, 1.0]], np.ones((1, 2), complex)],
    ids=["text", "object", "complex"],
)
def test_loading_what_is_no_number_changes_nothing(value):
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False))
    before = model[0].weight.numpy().copy()
    with pytest.raises(nn.StateDictError, match="real numbers"):
        model.load_state_dict({"0.weight": np.zeros((1, 2)), "1.weight": value})
    assert np.array_equal(model[0].weight.numpy(), before)


def test_loading_into_read_only_memory_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False))
    frozen = np.ones((1, 2), np.float32)
    frozen.flags.writeable = False
    model[1].weight = nn.Parameter._wrap(frozen)
    before = model[0].weight.numpy().copy()
    with pytest.raises(nn.StateDictError, match="read-only"):
        model.load_state_dict({"0.weight": np.zeros((1, 2)), "1.weight": np.zeros((1, 2))})
    assert np.array_equal(model[0].weight.numpy(), before)


def test_loading_from_its_own_memory():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = model.state_dict()
    first, second = (state[f"{n}.weight"].numpy().copy() for n in "01")
    exchanged = {f"{1 - int(name[0])}{name[1:]}": value for name, value in state.items()}
    model.load_state_dict(exchanged)
    assert np.array_equal(model[0].weight.numpy(), second)
    assert np.array_equal(model[1].weight.numpy(), first)


def test_loading_what_fits():
    model = Outer()
    keys = model.load_state_dict({"scale": [[4.0]], "other": [1.0]}, strict=False)
    assert model.scale.item() == 4
    assert keys.unexpected == ["other"]
    assert "first.weight" in keys.missing
    with pytest.raises(nn.StateDictError, match="expected"):
        model.load_state_dict({"scale": [4.0, 5.0]}, strict=False)


def test_loading_counts_as_a_change():
    model = nn.Linear(2, 1)
    x = te.ones(3, 2, requires_grad=True)
    loss = model(x).sum()
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="Linear"):
        loss.backward()


def test_loading_casts_to_the_parameters_dtype():
    model = nn.Linear(2, 1, bias=False)
    model.load_state_dict({"weight": np.ones((1, 2), np.float64)})
    assert model.weight.dtype == te.float32


def test_train_and_eval_reach_all():
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5)))
    assert all(module.training for module in model.modules())
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())


def test_requires_grad_and_zero_grad():
    model = nn.Linear(2, 1)
    model(te.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None
    model.zero_grad()
    assert model.weight.grad is None
    model.requires_grad_(False)
    assert not model(te.ones(1, 2)).requires_grad


def test_apply_goes_children_first():
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    seen = []
    assert model.apply(lambda module: seen.append(type(module).__name__)) is model
    assert seen[-1] == "Sequential" and set(seen) == {"Sequential", "Linear", "ReLU"}


def test_a_parameter_is_not_replaced_by_something_else():
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match="weight"):
        model.weight = te.ones(1, 2)
    model.weight = nn.Parameter([[1.0, 1.0]])
    model.bias = None
    assert list(model.state_dict()) == ["weight"]


def test_buffers_keep_their_names_and_are_checked():
    model = nn.Module()
    with pytest.raises(ValueError, match=r"a\.b"):
        model.register_buffer("a.b", te.ones(1))
    with pytest.raises(TypeError, match="list"):
        model.register_buffer("a", [1.0])
    model.register_buffer("a", te.ones(1))
    model.a = te.zeros(2)
    assert model.state_dict()["a"].tolist() == [0, 0]
    with pytest.raises(TypeError, match="buffer"):
        model.a = None
    with pytest.raises(ValueError, match="forward"):
        model.register_buffer("forward", te.ones(1))


def test_repr_shows_the_tree():
    text = repr(nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.GELU("tanh"))))
    assert "(0): Linear(in_features=4, out_features=8, bias=True)" in text
    assert "    (0): GELU(approximate='tanh')" in text


def test_deepcopy_is_apart_and_ties_stay():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    copied = copy.deepcopy(model)
    assert copied[1].weight is copied[0].weight
    assert not np.shares_memory(copied[0].weight.data, model[0].weight.data)
    assert isinstance(copied[0].weight, nn.Parameter)


def test_pickling_points_to_state_dicts():
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(nn.Linear(1, 1))


def test_module_list():
    modules = nn.ModuleList([nn.ReLU()])
    modules.append(nn.Linear(2, 1))
    assert len(modules) == 2 and isinstance(modules[-1], nn.Linear)
    assert [type(m).__name__ for m in modules[0:2]] == ["ReLU", "Linear"]
    assert list(modules.state_dict()) == ["1.weight", "1.bias"]
    with pytest.raises(TypeError, match="str"):
        modules.append("relu")
    with pytest.raises(IndexError):
        modules[2]


def kinds(modules):
    return [type(module).__name__ for module in modules]


def names(modules):
    return [name for name, _ in modules.named_children()]


@pytest.mark.parametrize("make", [nn.ModuleList, lambda modules=(): nn.Sequential(*modules)])
def test_lists_of_modules_change(make):
    modules = make([nn.ReLU()])
    assert modules.append(nn.Tanh()) is modules
    assert modules.extend([nn.GELU(), nn.SiLU()]) is modules
    modules.insert(1, nn.Sigmoid())
    modules.insert(-1, nn.Softmax())
    assert kinds(modules) == ["ReLU", "Sigmoid", "Tanh", "GELU", "Softmax", "SiLU"]
    modules[-1] = nn.LeakyReLU()
    del modules[0], modules[1:3]
    assert kinds(modules) == ["Sigmoid", "Softmax", "LeakyReLU"]
    assert names(modules) == ["0", "1", "2"]
    part = modules[1:]
    assert type(part) is type(modules) and kinds(part) == ["Softmax", "LeakyReLU"]
    assert part[0] is modules[1] and kinds(modules[::-2]) == ["LeakyReLU", "Sigmoid"]
    for change in (
        lambda: modules.extend([nn.ReLU(), 3]), lambda: modules.insert(0, "relu"),
        lambda: modules.__setitem__(0, 3), lambda: modules.__setitem__("a", nn.ReLU()),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            change()
    for index in (3, -4):
        with pytest.raises(IndexError):
            modules[index] = nn.ReLU()
        with pytest.raises(IndexError):
            del modules[index]
    assert kinds(modules) == ["Sigmoid", "Softmax", "LeakyReLU"]


def test_a_sequential_with_names():
    layers = {"first": nn.Linear(2, 3), "between": nn.ReLU(), "last": nn.Linear(3, 1)}
    model = nn.Sequential(layers)
    assert list(model.state_dict())[::2] == ["first.weight", "last.weight"]
    x = te.randn(4, 2)
    assert model(x).tolist() == nn.Sequential(*layers.values())(x).tolist()
    assert names(model[1:]) == ["between", "last"] and model.last is model[-1]
    model[0] = nn.Linear(2, 3)
    assert names(model.append(nn.Tanh())) == ["first", "between", "last", "0"]
    assert names(nn.Sequential(nn.ReLU(), nn.Tanh(), nn.GELU())[1:].append(nn.SiLU())) == [
        "1", "2", "3",
    ]  # fmt: skip
    for name in ("append", "a.b", "", 3):
        with pytest.raises(ValueError, match=f"module name is {name!r}"):
            nn.Sequential({name: nn.ReLU()})
    with pytest.raises(TypeError, match="int"):
        nn.Sequential({"a": 3})


def test_appending_after_a_deletion_replaces_nothing():
    modules = nn.ModuleList([nn.ReLU(), nn.Tanh()])
    del modules.__dict__["0"]
    modules.append(nn.GELU())
    assert [type(module).__name__ for module in modules] == ["Tanh", "GELU"]


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Inner"):
        Inner()(1)


def test_a_state_on_foreign_memory_is_not_copied_first():
    """Loading a large module takes no memory beside it; views of the module's own are copied."""
    model = nn.Linear(1000, 1000, bias=False)
    foreign = {"weight": np.ones((1000, 1000), np.float32)}
    own = {"weight": model.weight.data[::-1]}
    for state, most in ((foreign, 500_000), (own, 4_500_000)):
        tracemalloc.start()
        model.load_state_dict(state)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most
    assert peak > 4_000_000


def test_a_state_of_rotated_parameters():
    """Each parameter gets the former value of another, whatever the order of writing."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    before = [layer.weight.data.copy() for layer in model]
    names = list(model.state_dict())
    tensors = list(model.state_dict().values())
    model.load_state_dict(dict(zip(names, tensors[1:] + tensors[:1], strict=True)))
    for layer, expected in zip(model, before[1:] + before[:1], strict=True):
        np.testing.assert_array_equal(layer.weight.data, expected)


def test_a_large_state_goes_into_tied_parameters_in_order():
    """Threads copy it; the last of several names for one parameter counts, as without threads."""
    model = nn.Sequential(*(nn.Linear(800, 800, bias=False) for _ in range(4)))
    for layer in list(model)[1:]:
        layer.weight = model[0].weight
    free = nn.Linear(800, 800, bias=False)
    model.append(free)
    for _ in range(5):
        names = list(model.state_dict())
        state = {n: np.full((800, 800), i, np.float32) for i, n in enumerate(names)}
        model.load_state_dict(state)
        assert np.all(model[0].weight.data == 3)
        assert np.all(free.weight.data == 4)


def test_module_dict():
    heads = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.ReLU()})
    heads["c"] = nn.Tanh()
    assert list(heads) == list(heads.keys()) == ["a", "b", "c"]
    assert [type(m).__name__ for m in heads.values()] == ["Linear", "ReLU", "Tanh"]
    assert dict(heads.items())["a"] is heads["a"] and len(heads) == 3
    heads["b"] = nn.GELU()
    assert isinstance(heads["b"], nn.GELU) and list(heads) == ["a", "b", "c"]
    del heads["c"]
    heads["d"] = taken = nn.SiLU()
    assert heads.pop("d") is taken
    with pytest.raises(KeyError, match="no module 'd': there are a, b"):
        heads.pop("d")
    assert "c" not in heads and "training" not in heads
    with pytest.raises(KeyError, match="there are a, b"):
        heads["c"]
    for name in ("update", "a.b", "", "training"):
        with pytest.raises(ValueError, match=name or "''"):
            heads[name] = nn.ReLU()
    with pytest.raises(TypeError, match="int"):
        heads.update({"d": nn.ReLU(), "e": 3})
    assert "d" not in heads
