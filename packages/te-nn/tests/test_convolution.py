"""What convolution and pooling layers refuse, and how they show themselves."""

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te

WRONG = {
    "channels": (lambda: nn.Conv2D(0, 3, 3), ["in_channels is 0"]),
    "kernel": (lambda: nn.Conv2D(2, 3, 0), ["kernel_size is 0", "2 of them"]),
    "kernel axes": (lambda: nn.Conv2D(2, 3, (3, 3, 3)), ["kernel_size is (3, 3, 3)"]),
    "kernel fraction": (lambda: nn.Conv1D(2, 3, 2.5), ["kernel_size is 2.5"]),
    "kernel bool": (lambda: nn.Conv1D(2, 3, True), ["kernel_size is True"]),
    "stride": (lambda: nn.Conv1D(2, 3, 3, stride=0), ["stride is 0"]),
    "dilation": (lambda: nn.Conv1D(2, 3, 3, dilation=-1), ["dilation is -1"]),
    "padding": (lambda: nn.Conv2D(2, 3, 3, padding=(1, -1)), ["padding is (1, -1)"]),
    "padding name": (lambda: nn.Conv2D(2, 3, 3, padding="full"), ["'full'", "same, valid"]),
    "same": (lambda: nn.Conv2D(2, 3, 3, 2, "same"), ["'same'", "stride 2"]),
    "mode": (lambda: nn.Conv2D(2, 3, 3, padding_mode="mirror"), ["'mirror'", "reflect"]),
    "groups": (lambda: nn.Conv2D(4, 6, 3, groups=4), ["groups is 4", "out_channels 6"]),
    "pool": (lambda: nn.MaxPool2D(0), ["kernel_size is 0"]),
    "pool padding": (lambda: nn.MaxPool2D(3, padding=2), ["padding is 2", "kernel_size 3"]),
    "divisor": (lambda: nn.AvgPool2D(2, divisor_override=0), ["divisor_override is 0"]),
    "adaptive": (lambda: nn.AdaptiveAvgPool2D((1, 2, 3)), ["output_size is (1, 2, 3)"]),
    "adaptive size": (lambda: nn.AdaptiveAvgPool1D(0), ["output_size is 0"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(name):
    make, said = WRONG[name]
    with pytest.raises(ValueError) as caught:
        make()
    for part in said:
        assert part in str(caught.value)


def test_repr():
    assert repr(nn.Conv2D(2, 4, 3, padding="same", groups=2, bias=False)) == (
        "Conv2D(in_channels=2, out_channels=4, kernel_size=(3, 3), stride=(1, 1), padding='same', "
        "dilation=(1, 1), groups=2, padding_mode='zeros', bias=False)"
    )
    assert repr(nn.MaxPool1D(2)) == (
        "MaxPool1D(kernel_size=(2,), stride=(2,), padding=(0,), dilation=(1,), ceil_mode=False)"
    )


def test_a_small_network_learns():
    te.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2D(1, 4, 3), nn.ReLU(), nn.MaxPool2D(2), nn.Flatten(), nn.Linear(16, 2))
    )
    x = np.random.default_rng(0).standard_normal((40, 1, 6, 6)).astype("f4")
    labels = (x[:, 0, 2, 2] > x[:, 0, 3, 3]).astype(int)
    losses = []
    for _ in range(60):
        loss = nn.CrossEntropyLoss()(model(te.Tensor(x)), te.Tensor(labels))
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        for parameter in model.parameters():
            with parameter.lock() as array:
                array -= 0.3 * parameter.grad.numpy()
    assert losses[-1] < 0.5 * losses[0]
