"""Files that PyTorch writes, read without it and compared with what it reads itself."""

import io
import zipfile
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import te_tensor as te
from te_io import FormatError, OpaqueObject, load_torch, load_torch_state_dict, load_torchscript

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:Lite Interpreter:DeprecationWarning",
    "ignore::UserWarning",
)

LEGACY = {"_use_new_zipfile_serialization": False}
DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.bool]
DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
DTYPES += [torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def script(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def same(ours: object, theirs: object) -> None:
    """That two structures are equal, to the bit in their tensors."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, te.Tensor)
        assert (ours.shape, str(ours.dtype)) == (
            tuple(theirs.shape),
            str(theirs.dtype).removeprefix("torch."),
        )
        assert ours.numpy().tobytes() == bits(theirs)
        assert ours.requires_grad == (theirs.requires_grad and theirs.dtype.is_floating_point)
    elif isinstance(theirs, dict):
        assert type(ours) is type(theirs)
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            same(ours[key], value)
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is (tuple if isinstance(theirs, torch.Size) else type(theirs))
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


# -- tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, LEGACY, {"pickle_protocol": 4}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_shapes(tmp_path, dtype, options):
    torch.manual_seed(0)
    raw = torch.randint(0, 256, (240,), dtype=torch.uint8)
    if dtype == torch.bool:
        raw = raw % 2
    whole = raw.view(dtype)[:24].reshape(2, 3, -1)  # any bits, NaNs and infinities among them
    tensors = {
        "whole": whole,
        "turned": whole.permute(2, 0, 1),
        "part": whole[1:, ::2],
        "scalar": whole[0, 0, 0],
        "empty": whole[:, :0],
        "copy": whole[:, 1].clone(),
        "expanded": whole[0, :, :1].clone().expand(3, 5),
    }
    path = tmp_path / "f.pt"
    torch.save(tensors, path, **options)
    for source in [path, path.read_bytes()]:
        same(load_torch(source), tensors)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=str)
def test_conjugate_and_negative_views(options):
    values = torch.complex(torch.arange(6.0), torch.arange(6.0) - 2).reshape(2, 3)
    tensors = [values, values.conj(), values.conj().T[1:], values[0].conj()]
    loaded = load_torch(saved(tensors, **options))
    same(loaded, tensors)
    # conjugate views of one storage still share it
    with loaded[1].lock() as array:
        array[0, 2] = 7
    assert loaded[2].data[1, 0] == loaded[3].data[2] == 7
    same(load_torch(saved(values.conj().imag, **options)), values.conj().imag)
    same(load_torch(saved(torch._neg_view(torch.arange(3)))), torch._neg_view(torch.arange(3)))


def test_special_values():
    tensor = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e30, -1e-30, -0.0])
    same(load_torch(saved(tensor)), tensor)


def test_parameters_and_tensors_with_attributes():
    parameter = nn.Parameter(torch.arange(3.0))
    marked = nn.Parameter(torch.arange(2.0))
    marked.label = "marked"
    fixed = nn.Parameter(torch.arange(4), requires_grad=False)
    tagged = torch.arange(2.0)
    tagged.tag = "x"
    tensors = [parameter, parameter.data, marked, fixed, tagged]
    tensors += [torch.ones(2, requires_grad=True), nn.Buffer(torch.ones(3))]
    loaded = load_torch(saved(tensors))
    same(loaded, tensors)
    with loaded[0].lock() as array:  # they share their memory, as the parameter and its data do
        array[0] = 5
    assert loaded[1].data[0] == 5


def test_complex_parameters_come_without_gradients():
    loaded = load_torch(saved(nn.Parameter(torch.ones(2, dtype=torch.complex64))))
    assert loaded.tolist() == [1, 1]
    assert not loaded.requires_grad


@pytest.mark.parametrize("options", [{}, LEGACY], ids=str)
def test_tied_tensors(options):
    weight = torch.arange(6.0).reshape(2, 3)
    first, again, turned, part = load_torch(
        saved([weight, weight, weight.T, weight.view(-1)[2:4]], **options)
    )
    assert first is again
    with first.lock() as array:
        array[0, 2] = 9
    assert turned.data[2, 0] == part.data[0] == 9


UNSUPPORTED = {
    "complex128": (lambda: torch.ones(2, dtype=torch.complex128), "is complex128"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "is a quantized tensor",
    ),
    "sparse": (lambda: torch.eye(2).to_sparse(), "is a sparse tensor"),
    "sparse rows": (lambda: torch.eye(2).to_sparse_csr(), "is a sparse tensor"),
    "meta": (lambda: torch.ones(2, device="meta"), "is a meta tensor, which has no values"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)]), "is a nested tensor"),
    "complex32": (lambda: torch.ones(2, dtype=torch.complex32), "has dtype torch.complex32"),
    "fnuz": (lambda: torch.ones(2).to(torch.float8_e5m2fnuz), "has dtype torch.float8_e5m2fnuz"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_tensors_that_te_tensor_lacks(kind):
    make, words = UNSUPPORTED[kind]
    with pytest.raises(FormatError, match=f"^<bytes>: tensor 'model.weight': {words}"):
        load_torch(saved({"epoch": "3", "model": {"bias": torch.ones(1), "weight": make()}}))


# -- structures -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, LEGACY, {"pickle_protocol": 5}], ids=str)
def test_a_training_checkpoint(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, amsgrad=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
        schedule.step()
    checkpoint = {
        "epoch": 2,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "rng": torch.get_rng_state(),
        "best": float("inf"),
        "shape": torch.Size([3, 4]),
    }
    content = saved(checkpoint, **options)
    loaded = load_torch(content)
    same(loaded, checkpoint)
    assert loaded["model"]._metadata == checkpoint["model"]._metadata
    same(OrderedDict(load_torch_state_dict(content)), checkpoint["model"])
    same(OrderedDict(load_torch_state_dict(content, "model")), checkpoint["model"])


def test_several_state_dicts():
    weight = {"weight": torch.ones(1)}
    content = saved({"model": weight, "ema": weight, "none": {}})
    with pytest.raises(FormatError, match="several state dicts: give one of the keys 'model', 'em"):
        load_torch_state_dict(content)
    assert list(load_torch_state_dict(content, "ema")) == ["weight"]
    assert list(load_torch_state_dict(saved({"state_dict": weight}))) == ["weight"]
    both = saved({"generator": weight, "critic": weight})  # nothing says that they are apart
    assert list(load_torch_state_dict(both)) == ["generator.weight", "critic.weight"]
    dotted = saved({"a.b": {"c": weight}, "a": {"x": 1}})
    assert list(load_torch_state_dict(dotted, "a.b.c")) == ["weight"]
    with pytest.raises(FormatError, match=r"tensor 'a\.b': has its name twice"):
        load_torch_state_dict(saved({"a.b": weight["weight"], "a": {"b": weight["weight"]}}))


def test_files_without_checksums():
    torch.serialization.set_crc32_options(False)
    try:
        content = saved({"x": torch.arange(3.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(FormatError, match="verify=False reads files that were written without"):
        load_torch(content)
    assert load_torch(content, verify=False)["x"].tolist() == [0, 1, 2]


def test_archives_packed_anew(tmp_path):
    """By other programs, which add folders, leave out alignment, or pack everything."""
    content = saved({"x": torch.arange(3.0), "y": torch.arange(5)})
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / "new.pt"
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
            new.mkdir("archive/data")
            for info in old.infolist():
                stored = "/data/" in info.filename
                packed = zipfile.ZIP_STORED if stored else method
                new.writestr(info.filename, old.read(info), packed)
        loaded = load_torch(path)
        assert loaded["x"].tolist() == [0, 1, 2]
        assert loaded["y"].tolist() == [0, 1, 2, 3, 4]


def test_numpy_values_as_inert_objects():
    content = saved({"score": np.float64(0.5), "weight": torch.ones(2)})
    with pytest.raises(
        FormatError, match=r"tensor 'score': names numpy\._core\.multiarray\.scalar"
    ):
        load_torch(content)
    loaded = load_torch(content, on_unknown="opaque")
    assert loaded["score"].name == "numpy._core.multiarray.scalar"
    assert loaded["weight"].tolist() == [1, 1]


def test_whole_modules_as_inert_objects():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LSTM(2, 3))
    model.register_buffer("scratch", torch.ones(1), persistent=False)
    content = saved(model)
    loaded = load_torch(content, on_unknown="opaque")
    assert isinstance(loaded, OpaqueObject)
    state = load_torch_state_dict(content, on_unknown="opaque")
    expected = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].numpy().tobytes() == bits(tensor)


# -- TorchScript ----------------------------------------------------------------------------


class Net(nn.Module):
    """Modules in a list and a dict, tied weights, buffers of both kinds, and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)])
        self.layers[1].weight = self.layers[0].weight
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.BatchNorm1d(3)})
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("missing", None)
        self.plain = torch.arange(2)
        self.names = ["x", "y"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) * self.mask
        return self.heads["a"](self.heads["b"](x)) + self.scratch[0]


@pytest.mark.parametrize("how", ["script", "trace", "lite"])
def test_scripted_modules(how):
    torch.manual_seed(0)
    net = Net().eval()
    example = torch.ones(2, 3)
    module = torch.jit.trace(net, example) if how == "trace" else torch.jit.script(net)
    content = module._save_to_buffer_for_lite_interpreter() if how == "lite" else script(module)
    archive = load_torchscript(content)
    theirs = torch.jit.load(io.BytesIO(content))
    same(archive.state_dict(), dict(theirs.state_dict(keep_vars=True)))
    same(load_torch(content), dict(theirs.state_dict(keep_vars=True)))
    assert list(archive.buffers) == [name for name, _ in theirs.named_buffers()]
    assert set(archive.parameters) == {
        name for name, _ in theirs.named_parameters(remove_duplicate=False)
    }
    if how == "script":
        assert archive.attributes["names"] == ["x", "y"]
        same(archive.attributes["plain"], net.plain)


def test_extra_files():
    buffer = io.BytesIO()
    extra = {"notes.txt": "hello", "folder/bytes": b"\0\xff"}
    torch.jit.save(torch.jit.script(Net()), buffer, _extra_files=extra)
    archive = load_torchscript(buffer.getvalue())
    assert archive.extra_files == {"notes.txt": b"hello", "folder/bytes": b"\0\xff"}


def test_frozen_modules():
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(3, 2).eval()))
    archive = load_torchscript(script(frozen))
    assert archive.frozen
    assert sorted(tensor.shape for tensor in archive.constants.values()) == [(2,), (2, 3)]


# -- files of other people ------------------------------------------------------------------


def in_package(package: str, path: str) -> Path:
    """A file of an installed package, which isn't imported."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} isn't installed")
    return Path(spec.submodule_search_locations[0], path)


@pytest.mark.parametrize("name", ["pnet", "rnet", "onet"])
def test_facenet(name):
    path = in_package("facenet_pytorch", f"data/{name}.pt")
    theirs = torch.load(path, weights_only=True)
    assert len(theirs) > 10
    same(load_torch(path), theirs)


def test_silero_vad():
    path = in_package("silero_vad", "data/silero_vad.jit")
    theirs = torch.jit.load(path)
    archive = load_torchscript(path)
    assert len(archive.tensors) == 30
    same(archive.state_dict(), dict(theirs.state_dict(keep_vars=True)))
    assert archive.buffers["_model.stft.forward_basis_buffer"].shape == (258, 1, 256)
    assert archive.final["_model.encoder.0.reparam_conv.stride"] == (1,)
