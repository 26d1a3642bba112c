"""Other people's files, read and run without PyTorch, against results that PyTorch gave for them.

python tests/test_real_models.py     # asks PyTorch again, and writes the results
"""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import te_io
import te_tensor as te

spec = importlib.util.spec_from_file_location(
    "real_models", Path(__file__).with_name("real_models.py")
)
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)

RESULTS = Path(__file__).with_name("real_models.json")
SILERO = models.data_of("silero_vad", "data", "silero_vad.jit")
needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")


def face_file(kind):
    return models.data_of("facenet_pytorch", "data", f"{kind}.pt")


def voice_activity():
    model = models.VoiceActivity()
    state = te_io.load_torchscript(SILERO).state_dict()
    own = {k.removeprefix("_model."): v for k, v in state.items() if k.startswith("_model.")}
    model.load_state_dict(own)
    return model.eval()


def face_network(kind):
    model = models.FaceNetwork(kind)
    te_io.load_into_module(model, face_file(kind))
    return model.eval()


def of_torch_silero():
    """Each chunk's probability from the archive itself."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole
        archive = torch.jit.load(SILERO)
    archive.reset_states()
    signal = torch.from_numpy(models.speech())
    with torch.no_grad():
        return [archive(chunk[None], 16000).item() for chunk in signal.split(models.CHUNK)]


def of_torch_face(kind):
    """The outputs of the same network in PyTorch's functions."""
    import torch
    from torch.nn import functional as f

    weights = torch.load(face_file(kind), weights_only=True)

    def conv(name, x):
        return f.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(name, x):
        return f.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    trunk, dense = models.FACES[kind]
    x = torch.from_numpy(models.faces(kind))
    with torch.no_grad():
        for step in trunk:
            if len(step) == 2:
                x = f.max_pool2d(x, *step, ceil_mode=True)
            else:
                x = f.prelu(conv(step[0], x), weights[f"prelu{step[0][-1]}.weight"])
        if not dense:
            return [conv("conv4_1", x).softmax(1).tolist(), conv("conv4_2", x).tolist()]
        first, *rest = (name for name, _, _ in dense)
        x = linear(first, x.permute(0, 3, 2, 1).reshape(len(x), -1))
        x = f.prelu(x, weights[f"prelu{first[-1]}.weight"])
        probability, *others = (linear(name, x) for name in rest)
        return [probability.softmax(1).tolist(), *(other.tolist() for other in others)]


def stored(name):
    return json.loads(RESULTS.read_text(encoding="utf-8"))[name]


@pytest.mark.skipif(SILERO is None, reason="silero-vad isn't installed")
def test_silero_vad_in_62_chunks():
    found = models.probabilities(voice_activity(), models.speech())
    np.testing.assert_allclose(found, stored("silero_vad"), atol=1e-5)
    assert found.max() > 0.5 > found.min()  # there is something to tell apart


@needs_torch
@pytest.mark.skipif(SILERO is None, reason="silero-vad isn't installed")
def test_silero_vad_beside_pytorch():
    found = models.probabilities(voice_activity(), models.speech())
    np.testing.assert_allclose(found, of_torch_silero(), atol=1e-5)


@pytest.mark.parametrize("kind", sorted(models.FACES))
def test_face_detectors(kind):
    if face_file(kind) is None:
        pytest.skip("facenet-pytorch isn't installed")
    with te.no_grad():
        found = face_network(kind)(te.Tensor(models.faces(kind)))
    for one, other in zip(found, stored(kind), strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-5)


@needs_torch
@pytest.mark.parametrize("kind", sorted(models.FACES))
def test_face_detectors_beside_pytorch(kind):
    if face_file(kind) is None:
        pytest.skip("facenet-pytorch isn't installed")
    with te.no_grad():
        found = face_network(kind)(te.Tensor(models.faces(kind)))
    for one, other in zip(found, of_torch_face(kind), strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-5)


@needs_torch
@pytest.mark.skipif(SILERO is None, reason="silero-vad isn't installed")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_silero_vad_exported(tmp_path):
    import torch

    state = te.zeros(1, 128), te.zeros(1, 128)
    chunks = list(models.chunks(models.speech()))
    te_io.export_torchscript(voice_activity(), (chunks[0], state), tmp_path / "voice.pt")
    archive = torch.jit.load(tmp_path / "voice.pt")
    found, state = [], (torch.zeros(1, 128), torch.zeros(1, 128))
    for chunk in chunks:
        with torch.no_grad():
            probability, state = archive(torch.from_numpy(chunk.copy()), state)
        found.append(probability.item())
    np.testing.assert_allclose(found, stored("silero_vad"), atol=1e-5)


@needs_torch
@pytest.mark.parametrize("kind", sorted(models.FACES))
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_face_detectors_exported(kind, tmp_path):
    if face_file(kind) is None:
        pytest.skip("facenet-pytorch isn't installed")
    import torch

    images = models.faces(kind)
    te_io.export_torchscript(face_network(kind), images[:1], tmp_path / "face.pt")
    with torch.no_grad():
        found = torch.jit.load(tmp_path / "face.pt")(torch.from_numpy(images))
    for one, other in zip(found, stored(kind), strict=True):
        np.testing.assert_allclose(one.numpy(), other, atol=1e-5)


if __name__ == "__main__":
    results = {"silero_vad": of_torch_silero()}
    results |= {kind: of_torch_face(kind) for kind in sorted(models.FACES)}
    text = json.dumps(json.loads(json.dumps(results), parse_float=lambda x: round(float(x), 8)))
    RESULTS.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {RESULTS.name}\n")
