"""Files of Caffe, written here byte by byte as caffe.proto says."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backbones import WeightsError, load_weights, resnet50, resnet101, vgg16
from backbones.caffe_files import load_caffe_model
from backbones.files import DamagedFileError
from tests.backbones.nets import randomise_norms


def number(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(index: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return number(index << 3) + number(content)
    return number(index << 3 | 2) + number(len(content)) + content


def blob(tensor: Tensor, *, legacy: bool) -> bytes:
    values = field(5, tensor.contiguous().numpy().astype("<f4").tobytes())
    if legacy:
        sides = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
        return b"".join(field(n, side) for n, side in enumerate(sides, start=1)) + values
    return values + field(7, field(1, b"".join(map(number, tensor.shape))))


def model(layers: dict[str, list[Tensor]], *, legacy: bool = False) -> bytes:
    """A network; every layer also has fields that are of no interest, of all wire types."""
    content = field(1, b"a network") + field(5, 1)
    for name, blobs in layers.items():
        odd = field(3, b"top") + number(40 << 3 | 5) + struct.pack("<f", 1.5)
        odd += number(41 << 3 | 1) + struct.pack("<d", 2.5)
        of_name, of_blobs, of_layer = (4, 6, 2) if legacy else (1, 7, 100)
        parts = b"".join(field(of_blobs, blob(tensor, legacy=legacy)) for tensor in blobs)
        content += field(of_layer, odd + field(of_name, name.encode()) + parts)
    return content


def caffe_block(layer: int, index: int, long: bool) -> str:
    """res2a, res2b, ...; in the long stages of ResNet-101 res4a, res4b1, res4b2, ..."""
    letter = f"b{index}" if long and index else chr(ord("a") + index)
    return f"{layer + 1}{letter}"


def caffe_layers(net: nn.Module, long_stages: tuple[int, ...]) -> dict[str, list[Tensor]]:
    """The layers of a ResNet as its authors published them: statistics are sums to be divided."""
    layers: dict[str, list[Tensor]] = {}

    def norm(name: str, module: nn.Module, count: float) -> None:
        layers[f"bn{name}"] = [
            module.running_mean * count,
            module.running_var * count,
            torch.tensor([count]),
        ]
        layers[f"scale{name}"] = [module.weight.data, module.bias.data]

    layers["conv1"] = [net.conv1.weight.data]
    norm("_conv1", net.bn1, 2.0)
    for stage in (1, 2, 3, 4):
        for index, part in enumerate(getattr(net, f"layer{stage}")):
            block = caffe_block(stage, index, stage in long_stages)
            convolutions = {
                f"2{'abc'[n]}": (getattr(part, f"conv{n + 1}"), getattr(part, f"bn{n + 1}"))
                for n in range(3)
            }
            if part.downsample is not None:
                convolutions["1"] = (part.downsample[0], part.downsample[1])
            for branch, (conv, its_norm) in convolutions.items():
                layers[f"res{block}_branch{branch}"] = [conv.weight.data]
                norm(f"{block}_branch{branch}", its_norm, 999.0)
    layers["fc1000"] = [net.fc.weight.data, net.fc.bias.data]
    return layers


@pytest.mark.parametrize(("build", "long_stages"), [(resnet50, ()), (resnet101, (2, 3))])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_resnet_of_its_authors(build, long_stages, legacy, tmp_path: Path):
    options = {"stride_placement": "original", "pool1": "caffe", "width": 0.25, "num_classes": 5}
    net = randomise_norms(build(**options)).eval()
    path = tmp_path / "ResNet-model.caffemodel"
    path.write_bytes(model(caffe_layers(net, long_stages), legacy=legacy))
    other = build(**options).eval()
    report = load_weights(other, path)
    assert report.naming == "Caffe"
    assert (other.input_spec.channel_order, other.input_spec.std) == ("bgr", (1.0, 1.0, 1.0))
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(other.state_dict()[name], tensor, msg=name)
    assert {why for name, why in report.skipped.items()} == {
        "not in the file; the counter keeps its value"
    }
    with pytest.raises(WeightsError, match="Build it with pool1='caffe'"):
        load_weights(build(**{**options, "pool1": "torch"}), path)
    with pytest.raises(WeightsError, match="Build it with stride_placement='original'"):
        load_weights(build(**{**options, "stride_placement": "torchvision"}), path)


def test_the_bias_of_conv1_goes_into_its_norm(tmp_path: Path):
    """The authors' ResNet-50 has one."""
    options = {"stride_placement": "original", "pool1": "caffe", "width": 0.25, "num_classes": 5}
    net = randomise_norms(resnet50(**options)).eval()
    layers, bias = caffe_layers(net, ()), torch.randn(64)
    layers["conv1"].append(bias)
    (tmp_path / "w.caffemodel").write_bytes(model(layers))
    load_weights(net, tmp_path / "w.caffemodel")
    mean, count, _ = layers["bn_conv1"][0], 2.0, None
    torch.testing.assert_close(net.bn1.running_mean, mean / count - bias)


@pytest.mark.parametrize("legacy", [False, True])
def test_vgg16_of_its_authors_with_fc6_and_fc7(legacy, tmp_path: Path):
    net = vgg16(fc_width=6, num_classes=4)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.bias)
    names = [
        f"conv{s}_{n}" for s, depth in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, depth + 1)
    ]
    convolutions = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    linear = {"fc6": net.fc6, "fc7": net.fc7, "fc8": net.get_classifier()}
    layers = {
        name: [layer.weight.data, layer.bias.data]
        for name, layer in [*zip(names, convolutions, strict=True), *linear.items()]
    }
    path = tmp_path / "VGG_ILSVRC_16_layers.caffemodel"
    path.write_bytes(model(layers, legacy=legacy))
    other = vgg16(fc_width=6, num_classes=4)
    report = load_weights(other, path)
    assert not report.skipped
    assert other.input_spec.mean == (103.939, 116.779, 123.68)
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def vgg_layers(fc6: list[Tensor]) -> dict[str, list[Tensor]]:
    net = vgg16(fc_width=6, num_classes=0)
    convolutions = iter(layer for layer in net.features if isinstance(layer, nn.Conv2d))
    layers = {
        f"conv{stage}_{n}": [layer.weight.data, layer.bias.data]
        for stage, depth in enumerate((2, 2, 3, 3, 3), 1)
        for n, layer in zip(range(1, depth + 1), convolutions, strict=False)
    }
    return {**layers, "fc6": fc6, "fc7": [net.fc7.weight.data, net.fc7.bias.data]}


def test_fc6_as_a_convolution(tmp_path: Path):
    """The same numbers; the widely used "fc_reduced" has another layer, which starts fresh."""
    path, weight = tmp_path / "w.caffemodel", torch.randn(6, 512, 7, 7)
    net = vgg16(fc_width=6, num_classes=0)
    path.write_bytes(model(vgg_layers([weight, torch.ones(6)])))
    assert not load_weights(net, path).skipped
    x = torch.randn(2, 512, 7, 7, dtype=torch.float64)
    expected = nn.functional.conv2d(x, weight.double(), torch.ones(6).double()).flatten(1)
    torch.testing.assert_close(net.double().fc6(x.flatten(1)), expected)
    net = vgg16(fc_width=6, num_classes=0)
    path.write_bytes(model(vgg_layers([torch.randn(1024, 512, 3, 3), torch.ones(1024)])))
    report = load_weights(net, path)
    assert {name for name in report.skipped if "classifier.0" in name} == {
        "classifier.0.weight",
        "classifier.0.bias",
    }


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        ("fc1000", [(5, 512), (5,), (1,)]),
        ("fc1000", [(2, 2, 5, 512), (5,)]),
        ("res2a_branch2a", [(16, 64, 1, 1), (16,), (2,)]),
        ("scale_conv1", [(64,), (64,), (3,)]),
        ("bn_conv1", [(64,), (64,), (0,)]),
    ],
)
def test_blobs_that_a_layer_does_not_have_are_no_traceback(layer, shapes, tmp_path: Path):
    options = {"stride_placement": "original", "pool1": "caffe", "width": 0.25, "num_classes": 5}
    layers = caffe_layers(resnet50(**options), ())
    layers[layer] = [torch.rand(shape) for shape in shapes]
    path = tmp_path / "w.caffemodel"
    path.write_bytes(model(layers))
    with contextlib.suppress(WeightsError):  # some are other networks, some have a layer too many
        load_weights(resnet50(**options), path)


def test_a_layer_without_bias_stays_as_initialised(tmp_path: Path):
    path = tmp_path / "w.caffemodel"
    path.write_bytes(model(vgg_layers([torch.randn(6, 512 * 49)])))
    report = load_weights(vgg16(fc_width=6, num_classes=0), path)
    assert list(report.skipped) == ["classifier.0.bias"]


def test_blobs_by_hand(tmp_path: Path):
    path = tmp_path / "w.caffemodel"
    path.write_bytes(model({"a": [torch.arange(6.0).view(2, 3)], "": [], "b": [torch.ones(1)]}))
    found = load_caffe_model(path)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a.0": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "b.0": [1.0],
    }
    path.write_bytes(model({"a": [torch.arange(3.0)]}, legacy=True))
    assert load_caffe_model(path)["a.0"].shape == (1, 1, 1, 3)


def found_or_refused(path: Path, content: bytes) -> dict[str, Tensor] | str:
    path.write_bytes(content)
    try:
        return load_caffe_model(path)
    except DamagedFileError as error:
        return str(error)


def test_damage_is_named(tmp_path: Path):
    path, whole = (
        tmp_path / "w.caffemodel",
        model({"conv1": [torch.ones(4, 3)], "fc": [torch.ones(2)]}),
    )
    generator = torch.Generator().manual_seed(0)
    for cut in range(10, len(whole), 7):
        found = found_or_refused(path, whole[:cut])
        assert str(path) in found if isinstance(found, str) else found.keys() == {"conv1.0"}
    for _ in range(300):
        at = int(torch.randint(len(whole), (), generator=generator))
        found = found_or_refused(path, whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        assert str(path) in found if isinstance(found, str) else len(found) <= 2
    for content in (
        b"\x0a\x02ab",
        b"\xff" * 40,
        field(100, field(1, b"a") + field(7, field(5, b"abc"))),
    ):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"w\.caffemodel"):
            load_caffe_model(path)
    short = field(7, field(7, field(1, number(3))) + field(5, struct.pack("<f", 1.0)))
    path.write_bytes(field(100, field(1, b"fc6") + short))
    with pytest.raises(DamagedFileError, match=r"fc6\.0 holds 1 values for a shape of \[3\]"):
        load_caffe_model(path)


def test_a_damaged_file_is_refused_as_weights(tmp_path: Path):
    (tmp_path / "w.caffemodel").write_bytes(b"\x0a\x02ab")
    with pytest.raises(WeightsError, match="holds no layer with weights"):
        load_weights(vgg16(fc_width=6), tmp_path / "w.caffemodel")
    (tmp_path / "net.prototxt").write_text("name: 'x'")
    with pytest.raises(WeightsError, match=r"give the \.caffemodel beside it"):
        load_weights(vgg16(fc_width=6), tmp_path / "net.prototxt")
