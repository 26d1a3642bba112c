"""Other people's models, built again from te_nn's layers, and what the tests give them."""

import importlib.util
from pathlib import Path

import numpy as np

import te_nn as nn
import te_tensor as te

#: Samples of a chunk at 16 kHz, and what each chunk is given of the one before.
CHUNK, CONTEXT = 512, 64
CHUNKS = 62


def data_of(package, *path):
    """A file inside an installed package, which is not imported; None where it isn't installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0], *path) if spec else None


class Encoder(nn.Module):
    """A convolution and ReLU, under silero-vad's name."""

    def __init__(self, inputs, outputs, stride):
        self.reparam_conv = nn.Conv1D(inputs, outputs, 3, stride=stride, padding=1)

    def forward(self, x):
        return self.reparam_conv(x).relu()


class Stft(nn.Module):
    """Magnitudes of the short-time Fourier transform, as a convolution with its basis."""

    def __init__(self):
        self.register_buffer("forward_basis_buffer", te.zeros(258, 1, 256))

    def forward(self, x):
        padded = te.pad(x.unsqueeze(1), [(0, 64)], mode="reflect")
        both = te.conv1d(padded, self.forward_basis_buffer, stride=128)
        real, imaginary = both[:, :129], both[:, 129:]
        return (real * real + imaginary * imaginary).sqrt()


class Decoder(nn.Module):
    """An LSTM cell over chunks, and the probability of speech."""

    def __init__(self):
        self.rnn = nn.LSTMCell(128, 128)
        self.decoder = nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Conv1D(128, 1, 1), nn.Sigmoid())

    def forward(self, x, state):
        h, c = self.rnn(x.squeeze(-1), state)
        return self.decoder(h.unsqueeze(-1)), (h, c)


class VoiceActivity(nn.Module):
    """silero-vad at 16 kHz: a chunk of 64 + 512 samples to the probability of speech in it."""

    def __init__(self):
        self.stft = Stft()
        self.encoder = nn.Sequential(
            Encoder(129, 128, 1), Encoder(128, 64, 2), Encoder(64, 64, 2), Encoder(64, 128, 1)
        )
        self.decoder = Decoder()

    def forward(self, x, state=None):
        x, state = self.decoder(self.encoder(self.stft(x)), state)
        return x.squeeze(1).mean(axis=1, keepdims=True), state


def speech():
    """Two seconds of something with pitch, breath and pauses, shape (CHUNKS * CHUNK,)."""
    time = np.arange(CHUNKS * CHUNK) / 16000
    rng = np.random.default_rng(0)
    pitch = 120 + 30 * np.sin(2 * np.pi * 3 * time)
    tone = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16000) / k for k in range(1, 20))
    envelope = np.clip(np.sin(2 * np.pi * 1.7 * time), 0, None)
    return (0.1 * envelope * tone + 0.003 * rng.standard_normal(len(time))).astype(np.float32)


def chunks(signal):
    """The chunks with their contexts, each of shape (1, CONTEXT + CHUNK)."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), signal])
    for start in range(0, len(signal), CHUNK):
        yield padded[None, start : start + CONTEXT + CHUNK]


def probabilities(model, signal):
    """The probability of speech in each chunk, the state going from one to the next."""
    state, found = None, []
    with te.no_grad():
        for chunk in chunks(signal):
            probability, state = model(te.Tensor(chunk), state)
            found.append(probability.item())
    return np.array(found)


#: MTCNN's three networks (Zhang et al., arXiv:1604.02878): convolutions with channels and kernel,
#: pools with kernel and stride, fully connected layers, and the outputs by name.
FACES = {
    "pnet": ([("conv1", 3, 10, 3), (2, 2), ("conv2", 10, 16, 3), ("conv3", 16, 32, 3)], []),
    "rnet": (
        [("conv1", 3, 28, 3), (3, 2), ("conv2", 28, 48, 3), (3, 2), ("conv3", 48, 64, 2)],
        [("dense4", 576, 128), ("dense5_1", 128, 2), ("dense5_2", 128, 4)],
    ),
    "onet": (
        [
            *(("conv1", 3, 32, 3), (3, 2), ("conv2", 32, 64, 3), (3, 2)),
            *(("conv3", 64, 64, 3), (2, 2), ("conv4", 64, 128, 2)),
        ],
        [("dense5", 1152, 256), ("dense6_1", 256, 2), ("dense6_2", 256, 4), ("dense6_3", 256, 10)],
    ),
}
#: Height and width of the images.
SIDES = {"pnet": (37, 30), "rnet": (24, 24), "onet": (48, 48)}


class FaceNetwork(nn.Module):
    """One of MTCNN's networks: an image to the probability of a face, its box, its landmarks."""

    def __init__(self, kind):
        self.trunk, self.dense = FACES[kind]
        for step in self.trunk:
            if len(step) == 4:
                name, inputs, outputs, kernel = step
                setattr(self, name, nn.Conv2D(inputs, outputs, kernel))
                setattr(self, f"prelu{name[-1]}", nn.PReLU(outputs))
        for name, inputs, outputs in self.dense:
            setattr(self, name, nn.Linear(inputs, outputs))
        if self.dense:
            first = self.dense[0]
            setattr(self, f"prelu{first[0][-1]}", nn.PReLU(first[2]))
        else:
            self.conv4_1, self.conv4_2 = nn.Conv2D(32, 2, 1), nn.Conv2D(32, 4, 1)

    def forward(self, x):
        for step in self.trunk:
            if len(step) == 2:
                x = te.max_pool2d(x, step[0], stride=step[1], ceil_mode=True)
            else:
                x = getattr(self, f"prelu{step[0][-1]}")(getattr(self, step[0])(x))
        if not self.dense:
            return self.conv4_1(x).softmax(1), self.conv4_2(x)
        (first, _, _), *rest = self.dense
        x = x.permute(0, 3, 2, 1).reshape(len(x), -1)
        x = getattr(self, f"prelu{first[-1]}")(getattr(self, first)(x))
        probability, *others = (getattr(self, name)(x) for name, _, _ in rest)
        return probability.softmax(1), *others


def faces(kind):
    """Two images, shape (2, 3, height, width)."""
    return np.random.default_rng(1).uniform(-1, 1, (2, 3, *SIDES[kind])).astype(np.float32)
