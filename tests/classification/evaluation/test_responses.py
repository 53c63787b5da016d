from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones import plain_cifar, resnet50, resnet_cifar
from detres.classification.evaluation.responses import layer_responses
from tests.backbones.nets import randomise_norms


class TwoLayers(nn.Module):
    """A 3x3 and a 1x1 convolution that hand their input through, each with a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3, eps=0)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, eps=0)
        nn.init.dirac_(self.conv1.weight)
        nn.init.dirac_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x))))


def outputs_by_hand(net: nn.Module, batches: list[Tensor]) -> dict[str, np.ndarray]:
    """Every norm's outputs over all batches, block by block: before the nonlinearity and the
    addition.
    """
    found: dict[str, list[np.ndarray]] = {}

    def conv_norm(name: str, number: int, parent: nn.Module, x: Tensor) -> Tensor:
        y = getattr(parent, f"bn{number}")(getattr(parent, f"conv{number}")(x))
        found.setdefault(f"{name}bn{number}", []).append(y.numpy().copy().ravel())
        return y

    with torch.inference_mode():
        for batch in batches:
            x = conv_norm("", 1, net, batch).relu()
            for stage in ("layer1", "layer2", "layer3"):
                for index, block in enumerate(getattr(net, stage)):
                    y = conv_norm(f"{stage}.{index}.", 1, block, x).relu()
                    y = conv_norm(f"{stage}.{index}.", 2, block, y)
                    if block.residual:
                        y = y + (x if block.downsample is None else block.downsample(x))
                    x = y.relu()
    return {name: np.concatenate(values) for name, values in found.items()}


def test_a_layer_by_hand() -> None:
    images = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)  # mean 3, deviation 2
    net = TwoLayers()
    net.bn1.running_mean.fill_(7.0)
    net.bn1.running_var.fill_(16.0)
    assert layer_responses(net, [images]) == {"bn1": pytest.approx(0.5)}
    assert layer_responses(net, [images[:1]]) == {"bn1": 0.0}  # one value alone does not vary
    assert layer_responses(net, [images[:1], images[1:], images]) == {
        "bn1": pytest.approx(0.5)
    }  # over all batches, not within each
    assert layer_responses(net, [images[:1], images[1:], images[1:], images[1:]]) == {
        "bn1": pytest.approx(np.std([1, 5, 5, 5]) / 4)
    }


@pytest.mark.parametrize("make", [resnet_cifar, plain_cifar])
def test_responses_equal_numpys_deviation_of_outputs_collected_by_hand(make) -> None:
    net = randomise_norms(make(14)).eval()
    batches = [torch.randn(num, 3, 16, 20) for num in (3, 2, 1)]
    expected = outputs_by_hand(net, batches)
    found = layer_responses(net, batches)
    names = [
        "bn1",
        *(f"layer{stage}.{block}.bn{n}" for stage in (1, 2, 3) for block in (0, 1) for n in (1, 2)),
    ]
    assert list(found) == list(expected) == names  # 6n + 1 layers, in network order
    for name, values in expected.items():
        assert found[name] == pytest.approx(float(np.std(values.astype(np.float64))), rel=1e-5)
    assert len({round(value, 4) for value in found.values()}) == len(names)


def test_only_the_3x3_convolutions_of_a_bottleneck_count() -> None:
    found = layer_responses(resnet50(num_classes=2), [torch.randn(1, 3, 32, 32)])
    assert list(found) == [
        f"layer{stage}.{n}.bn2"
        for stage, blocks in enumerate((3, 4, 6, 3), start=1)
        for n in range(blocks)
    ]


def test_the_order_and_the_batching_of_images_do_not_matter() -> None:
    net = randomise_norms(resnet_cifar(8))
    images = torch.randn(6, 3, 8, 8)
    whole = layer_responses(net, [images])
    for parts in (images.split(1), images.flip(0).split(4)):
        assert layer_responses(net, parts) == pytest.approx(whole, rel=1e-5)


def hooks_of(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training: bool) -> None:
    net = randomise_norms(resnet_cifar(8)).train(training)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    layer_responses(net, [torch.randn(2, 3, 8, 8)])
    assert hooks_of(net) == 0
    assert all(module.training == training for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match=r"expected images \(N, 3, H, W\)"):
        layer_responses(net, [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)])
    assert hooks_of(net) == 0
    assert all(module.training == training for module in net.modules())


def test_hooks_of_others_stay() -> None:
    net = resnet_cifar(8)
    seen = []
    net.bn1.register_forward_hook(
        lambda _module, _inputs, output: seen.append(float(output.std(correction=0)))
    )
    found = layer_responses(net, [torch.randn(2, 3, 8, 8)])
    assert hooks_of(net) == 1
    assert found["bn1"] == pytest.approx(seen[0], rel=1e-5)


def test_response_errors() -> None:
    with pytest.raises(ValueError, match="no images to measure the responses on"):
        layer_responses(resnet_cifar(8), [])
    with pytest.raises(ValueError, match="no images to measure the responses on"):
        layer_responses(TwoLayers(), [torch.zeros(0, 3, 4, 4)])
    with pytest.raises(ValueError, match="no 3x3 convolution convN with a norm bnN behind it"):
        layer_responses(
            nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), [torch.zeros(1, 3, 4, 4)]
        )
    one_by_one = TwoLayers()
    one_by_one.conv1 = one_by_one.conv2
    with pytest.raises(ValueError, match="no 3x3 convolution"):
        layer_responses(one_by_one, [torch.zeros(1, 3, 4, 4)])
