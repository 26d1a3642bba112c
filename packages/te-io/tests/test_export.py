"""Exported archives as files, and what can't be exported. test_torch_export.py runs them."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

import te_tensor as te
from te_io import FormatError, export_torchscript, load_torchscript


class Calls:
    """A module that calls a function, with tensors by name."""

    def __init__(self, function, parameters=None, buffers=None):
        self.function = function
        self.parameters = parameters or {}
        self.buffers = buffers or {}

    def __call__(self, *inputs, **named):
        return self.function(*inputs, **named)

    def named_parameters(self):
        return self.parameters.items()

    def state_dict(self):
        return {**self.parameters, **self.buffers}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.pt")


def code_of(path):
    with zipfile.ZipFile(path) as archive:
        return archive.read("archive/code/__torch__.py").decode()


def small():
    weight, scale = te.Tensor([[1.0, 2.0, 3.0]], requires_grad=True), te.Tensor([2.0])

    class Small(Calls):
        def forward(self, x, self_made):
            """Only here for the names of the arguments."""

    return Small(
        lambda x, y: (te.linear(x, weight).reshape(-1) * 0.5, [y * scale]),
        {"layers.0.weight": weight},
        {"layers.class": scale},
    )


def test_code(path):
    export_torchscript(small(), (te.ones(4, 3), te.ones(2)), path)
    assert code_of(path) == (
        """\
class Small(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  layers : __torch__.Small_layers
  def forward(self: __torch__.Small, x: Tensor, self_made: Tensor) -> Tuple[Tensor, List[Tensor]]:
    batch = torch.size(x, 0)
    _0 = getattr(self.layers, "0").weight
    _1 = torch.linear(x, _0, None)
    _2 = torch.reshape(_1, [batch])
    _3 = torch.mul(_2, CONSTANTS.c0)
    _4 = getattr(self.layers, "class")
    _5 = torch.mul(self_made, _4)
    return (_3, [_5], )

class Small_layers(Module):
  __parameters__ = []
  __buffers__ = ["class", ]
  __annotations__["class"] = Tensor
  training : bool
  __annotations__["0"] = __torch__.Small_layers_0

class Small_layers_0(Module):
  __parameters__ = ["weight", ]
  __buffers__ = []
  weight : Tensor
  training : bool
"""
    )


def test_our_own_reader(path):
    module = small()
    module.buffers["layers.small"] = te.randn(4).astype("bfloat16")
    module.buffers["wide"] = te.arange(3).astype("float64")[::-1]
    export_torchscript(module, (te.ones(4, 3), te.ones(2)), path)
    found = load_torchscript(path)
    assert set(found.parameters) == {"layers.0.weight"}
    for name, tensor in module.state_dict().items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].tolist() == tensor.tolist()
    assert [constant.tolist() for constant in found.constants.values()] == [0.5]


def test_same_bytes_whatever_the_name(path, tmp_path):
    for name in (path, tmp_path / "other.pt"):
        export_torchscript(small(), (te.randn(4, 3), te.randn(2)), name)
    assert Path(path).read_bytes() == (tmp_path / "other.pt").read_bytes()
    with zipfile.ZipFile(path) as archive, Path(path).open("rb") as file:
        assert archive.testzip() is None
        for member in archive.infolist():
            file.seek(member.header_offset + 26)
            lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(
                file.read(2), "little"
            )
            assert (member.header_offset + 30 + lengths) % 64 == 0


def test_equal_constants_are_stored_once(path):
    export_torchscript(Calls(lambda x: (x + 2) * 2 + te.full((3,), 2)), te.ones(4, 3), path)
    assert [c.tolist() for c in load_torchscript(path).constants.values()] == [2.0, [2.0] * 3]


def test_names_of_arguments(path):
    module = Calls(lambda **named: sum(named.values()))
    names = ("x", "batch", "lambda", "_0", "é")
    export_torchscript(module, {name: te.ones(2) for name in names}, path)
    arguments = "x: Tensor, input1: Tensor, input2: Tensor, input3: Tensor, input4: Tensor"
    assert arguments in code_of(path)


def test_batch_first_tells_the_axis(path):
    module = Calls(lambda x: x.reshape(3, x.shape[1], 2))
    module.forward = module.function
    module.batch_first = False
    export_torchscript(module, te.ones(3, 4, 2), path)
    assert "batch = torch.size(x, 1)" in code_of(path)
    assert "[3, batch, 2]" in code_of(path)


# -- what can't be exported -----------------------------------------------------------------


class Unknown(te.Operation):
    """An operation from outside."""

    def forward(self, x):
        return x * 2


def of_pairs(x):
    """As many elements as there are pairs of rows."""
    return (x[:, None] * x).reshape(-1)


def by_value(x):
    return x * 2 if x.data.max() > 0.99 else x.exp()


REFUSED = {
    "foreign": (lambda x: te.Tensor.apply(Unknown(), x), "operation Unknown has no rule"),
    "dropout": (lambda x: te.dropout(x, 0.5), "operation Dropout has no rule"),
    "loss": (lambda x: te.mse_loss(x, x), "operation MSELoss has no rule"),
    "pairs": (of_pairs, r"shape of the result of Reshape is 12, 27, 75 .*factor·batch"),
    "value": (lambda x: x * float(x.data.max()), r"array of shape \(\) that isn't computed"),
    "comparison": (lambda x: te.where(x > 0.5, x, -x), r"array of shape .* isn't computed"),
    "index": (lambda x: x[x.argmax(axis=0)], "operation Gather has another index"),
    "rows": (lambda x: te.arange(len(x)).astype("float32").reshape(-1, 1) * x, "isn't computed"),
    "random": (lambda x: x + te.randn(3), "isn't computed by operations"),
    "branch": (by_value, "Mul or Exp differs between runs"),
    "loop": (lambda x: sum(x[i] for i in range(len(x))), "differs between runs"),
    "list": (lambda x: [x] * len(x), "what is returned differs"),
    "source": (lambda x: x if len(x) < 3 else te.ones(3), "what an operation works on differs"),
    "none": (lambda x: (x, None), "forward returned NoneType: expected a Tensor"),
    "empty": (lambda x: (), "forward returned tuple"),
    "mixed": (lambda x: [x, (x, x)], "expected one type"),
    "normalized": (lambda x: te.layer_norm(x.T, len(x)), "along axis -1, whose length depends"),
    "uint16": (lambda x: x.astype("uint16"), "uint16, which TorchScript doesn't have"),
    "nothing": (lambda x: x.sum(axis=()), "operation Sum over no axes"),
    "step": (lambda x: x[:, :: 1 if len(x) == 2 else 2], "Slice has another step"),
    "key": (lambda x: {'a"b': x}, "the key"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, path):
    function, reason = REFUSED[name]
    with pytest.raises(FormatError, match=reason) as caught:
        export_torchscript(Calls(function), te.Tensor(np.eye(3, dtype=np.float32)[:2]), path)
    assert caught.value.file == path
    assert not list(Path(path).parent.iterdir())


def test_registered_distance_functions_are_refused(path):
    quartic = te.register_distance_function("quartic", lambda d: d**4, lambda d: 4 * d**3)
    options = {"distance": np.ones((5, 5)), "slopes": np.ones(2), "bias_function": quartic}
    module = Calls(lambda q: te.attention(q, q, q, **options))
    with pytest.raises(FormatError, match=r"Attention has the distance function 'quartic'"):
        export_torchscript(module, te.randn(2, 2, 5, 4), path)


def test_a_forward_that_changes_buffers(path):
    count = te.Tensor([0.0])

    def forward(x):
        with count.lock() as array:
            array += 1
        return x + count

    with pytest.raises(FormatError, match="tensor 'count': forward changes it"):
        export_torchscript(Calls(forward, buffers={"count": count}), te.ones(2), path)
    assert count.tolist() == [0.0]


def test_errors_of_forward_say_at_what_batch_size(path):
    module = Calls(lambda x: x + te.ones(4))
    with pytest.raises(ValueError, match="Add of shapes") as caught:
        export_torchscript(module, te.ones(4), path)
    assert "batch size 2" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (name, "can't be the name of an attribute")
        for name in ("training", "a..b", "a.forward", 'a"b', "a\n")
    ],
)
def test_names_that_cannot_stand(name, reason, path):
    module = Calls(lambda x: x, {name: te.ones(1)})
    with pytest.raises(FormatError, match=reason):
        export_torchscript(module, te.ones(2), path)
    both = Calls(lambda x: x, {"a": te.ones(1), "a.b": te.ones(1)})
    with pytest.raises(FormatError, match="tensor 'a'"):
        export_torchscript(both, te.ones(2), path)


def test_dtypes_without_a_storage(path):
    module = Calls(lambda x: x, buffers={"codes": te.ones(2).astype("uint16")})
    with pytest.raises(FormatError, match="holds a tensor of uint16: TorchScript stores bool"):
        export_torchscript(module, te.ones(2), path)


@pytest.mark.parametrize(
    ("module", "examples", "kind", "reason"),
    [
        (abs, te.ones(2), TypeError, "expected a module that can be called"),
        ({"w": te.ones(2)}, te.ones(2), TypeError, "got dict"),
        (None, (), TypeError, "example_inputs are"),
        (None, 3, TypeError, "example_inputs are 3"),
        (None, (te.ones(2), 3), TypeError, "the example of input1 is a int"),
    ],
)
def test_wrong_arguments(module, examples, kind, reason, path):
    with pytest.raises(kind, match=reason):
        export_torchscript(module or Calls(lambda x: x), examples, path)


@pytest.mark.parametrize("axes", [2, [0], [0, 0, 0], [0, 1], [0, 5]])
def test_wrong_batch_axes(axes, path):
    with pytest.raises(ValueError, match="expected"):
        export_torchscript(
            Calls(lambda x, y: x @ y), (te.ones(2, 3), te.ones(2, 4)), path, batch_axes=axes
        )


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        export_torchscript(Calls(lambda x: x), te.ones(2), tmp_path / "no" / "model.pt")
