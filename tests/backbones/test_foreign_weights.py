"""Files of other projects, written here by their conventions, and our own."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor, nn

from backbones import (
    InputSpec,
    WeightsError,
    create_backbone,
    load_weights,
    plain18,
    plain_cifar,
    resnet18,
    resnet50,
    resnet_cifar,
    save_weights,
)
from backbones.catalogue import CAFFE, DETECTRON, IMAGENET
from backbones.weight_names import to_own_names
from tests.backbones.nets import randomise_norms

ORIGINAL = {"stride_placement": "original"}


@pytest.fixture(scope="module")
def msra() -> nn.Module:
    """A ResNet-50 as the authors trained it: stride in the 1x1."""
    return randomise_norms(resnet50(**ORIGINAL)).eval()


def detectron_blobs(net: nn.Module, conv1_bias: Tensor) -> dict[str, np.ndarray]:
    """Detectron's way: Caffe names, each norm folded into a scale and a shift, zero biases for
    convolutions without one.
    """
    state, blobs = net.state_dict(), {"conv1_b": conv1_bias.numpy()}
    for name, tensor in state.items():
        if name.startswith("fc."):
            blobs[f"fc1000_{name[3]}"] = tensor.numpy()
        elif tensor.dim() == 4:
            blobs[caffe_name(name) + "_w"] = tensor.numpy()
            blobs.setdefault(caffe_name(name) + "_b", np.zeros(len(tensor), np.float32))
        elif name.endswith("running_mean"):
            norm = name.removesuffix(".running_mean")
            scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-5)
            blobs[caffe_name(norm) + "_bn_s"] = scale.numpy()
            blobs[caffe_name(norm) + "_bn_b"] = (state[f"{norm}.bias"] - tensor * scale).numpy()
    return blobs


def caffe_name(name: str) -> str:
    if name.startswith("conv1"):
        return "conv1"
    if name == "bn1":
        return "res_conv1"
    stage, index, layer = re.match(r"layer(\d)\.(\d+)\.(conv\d|bn\d|downsample)", name).groups()
    branch = "branch1" if layer == "downsample" else f"branch2{'_abc'[int(layer[-1])]}"
    return f"res{int(stage) + 1}_{index}_{branch}"


def test_detectron_pickles_give_the_same_logits_bias_of_conv1_included(msra, tmp_path):
    bias = torch.randn(64)
    blobs = detectron_blobs(msra, bias)
    assert "res4_5_branch2b_bn_s" in blobs
    assert "res2_0_branch1_w" in blobs
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "weight_order": "none"}, protocol=2))
    net = resnet50(**ORIGINAL).eval()
    report = load_weights(net, path)
    assert report.naming == "Detectron"
    assert report.input_spec == net.input_spec == DETECTRON
    assert (DETECTRON.channel_order, DETECTRON.std) == ("bgr", (1.0, 1.0, 1.0))
    assert set(report.skipped) == {
        name for name in net.state_dict() if name.endswith("num_batches_tracked")
    }
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = with_conv1_bias(msra, bias, x)
        torch.testing.assert_close(
            net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )
        assert not torch.allclose(net(x), msra(x), rtol=1e-2)  # the bias is not lost


def with_conv1_bias(net: nn.Module, bias: Tensor, x: Tensor) -> Tensor:
    x = net.bn1(net.conv1(x) + bias.view(1, -1, 1, 1)).relu()
    x = net.maxpool(x)
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = layer(x)
    return net.forward_head(x)


def test_caffe_weights_are_refused_where_the_stride_is_elsewhere(msra, tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(detectron_blobs(msra, torch.zeros(64))))
    with pytest.raises(
        WeightsError,
        match=r"R-50\.pkl was trained with stride_placement='original'; this network was built "
        r"with 'torchvision'",
    ):
        load_weights(resnet50(), path)


def detectron2_tensors(net: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        name = (
            re.sub(r"bn(\d)", r"conv\1.norm", name)
            .replace("downsample.0", "shortcut")
            .replace("downsample.1", "shortcut.norm")
        )
        name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        name = f"stem.{name}" if name.startswith("conv1") else name.replace("fc.", "stem.fc.")
        found[name] = tensor
    return found


@pytest.mark.parametrize(
    ("author", "placement", "spec", "prefix"),
    [
        ("torchvision", "torchvision", IMAGENET, ""),
        (None, "original", CAFFE, ""),
        (None, "original", CAFFE, "backbone.bottom_up."),
    ],
)
def test_detectron2_names(author, placement, spec, prefix, tmp_path):
    trained = randomise_norms(resnet50(stride_placement=placement)).eval()
    tensors = {
        prefix + name: tensor.numpy() for name, tensor in detectron2_tensors(trained).items()
    }
    assert f"{prefix}res2.0.shortcut.norm.running_var" in tensors
    path = tmp_path / "R-50.pkl"
    path.write_bytes(
        pickle.dumps(
            {
                "model": tensors,
                "matching_heuristics": True,
                **({"__author__": author} if author else {}),
            }
        )
    )
    net = resnet50(stride_placement=placement).eval()
    report = load_weights(net, path)
    assert (report.naming, net.input_spec) == ("detectron2", spec)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = trained(x)
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_cifar_port(wrapped, tmp_path):
    trained = randomise_norms(resnet_cifar(20, shortcut_padding="both")).eval()
    tensors = {
        f"module.{name.replace('fc.', 'linear.')}": tensor
        for name, tensor in trained.state_dict().items()
    }
    path = tmp_path / "resnet20.th"
    torch.save({"state_dict": tensors, "best_prec1": 91.73} if wrapped else tensors, path)
    net = resnet_cifar(20, shortcut_padding="both").eval()
    assert load_weights(net, path).naming == "CIFAR port"
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), trained(x))
    with pytest.raises(
        WeightsError,
        match=r"trained with shortcut_padding='both'; this network was built with 'end'",
    ):
        load_weights(resnet_cifar(20), path)


def test_the_cifar_port_with_projections(tmp_path):
    trained = randomise_norms(resnet_cifar(8, shortcut="B")).eval()
    names = {
        name: name.replace("fc.", "linear.").replace("downsample", "shortcut")
        for name in trained.state_dict()
    }
    torch.save(
        {names[name]: tensor for name, tensor in trained.state_dict().items()}, tmp_path / "b.th"
    )
    net = resnet_cifar(8, shortcut="B", weights=tmp_path / "b.th").eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), trained(x))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_resnets_have_torchvisions_names(suffix, tmp_path):
    trained = randomise_norms(resnet18()).state_dict()
    path = tmp_path / f"resnet18_tv_in1k{suffix}"
    save_file(trained, path) if suffix == ".safetensors" else torch.save(trained, path)
    net = resnet18()
    assert not load_weights(net, path).skipped
    assert all(torch.equal(tensor, trained[name]) for name, tensor in net.state_dict().items())


def test_timm_vgg():
    """Its fully connected layers are convolutions over the whole grid."""
    fc6, fc7, fc8 = torch.randn(6, 2, 7, 7), torch.randn(6, 6, 1, 1), torch.randn(3, 6)
    named = to_own_names({"features.0.weight": torch.ones(2, 3, 3, 3),
    "pre_logits.fc1.weight": fc6, "pre_logits.fc1.bias": fc6[:, 0, 0, 0],
                          "pre_logits.fc2.weight": fc7, "head.fc.weight": fc8})  # fmt: skip
    assert named.naming == "timm"
    assert list(named.tensors) == [
        "features.0.weight",
        "classifier.0.weight",
        "classifier.0.bias",
        "classifier.3.weight",
        "classifier.6.weight",
    ]
    x = torch.randn(1, 2, 7, 7)
    torch.testing.assert_close(
        x.flatten(1) @ named.tensors["classifier.0.weight"].T,
        nn.functional.conv2d(x, fc6).flatten(1),
    )
    assert named.tensors["classifier.3.weight"].shape == (6, 6)


@pytest.mark.parametrize(
    "name", ["resnet50_msra-5891d200.pth", "resnet101_caffe.pth", "Caffe-resnet50.pth"]
)
def test_torch_named_caffe_conversions_are_known_by_their_file_name(name, msra, tmp_path):
    path = tmp_path / name
    torch.save({**msra.state_dict(), "conv1.bias": torch.zeros(64)}, path)
    net = resnet50(**ORIGINAL)
    assert load_weights(net, path).input_spec == CAFFE
    assert load_weights(net, path, input_spec=DETECTRON).input_spec == net.input_spec == DETECTRON
    with pytest.raises(WeightsError, match="stride_placement='original'"):
        load_weights(resnet50(), path)


def test_a_classifier_that_is_not_finite_as_in_the_vgg_features_file(tmp_path):
    trained = randomise_norms(resnet18(num_classes=3)).state_dict()
    path = tmp_path / "features.pth"
    torch.save(
        {
            name: tensor * float("nan") if name.startswith("fc") else tensor
            for name, tensor in trained.items()
        },
        path,
    )
    net = resnet18(num_classes=3)
    as_initialised = net.fc.weight.clone()
    report = load_weights(net, path)
    assert set(report.skipped) == {"fc.weight", "fc.bias"}
    assert "not finite" in report.skipped["fc.weight"]
    assert "fc.weight, fc.bias: not finite" in str(report)
    assert torch.equal(net.fc.weight, as_initialised)
    assert torch.equal(net.conv1.weight, trained["conv1.weight"])


def test_weights_that_are_not_finite(tmp_path):
    state = resnet18().state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = float("inf")
    torch.save(state, tmp_path / "sick.pth")
    with pytest.raises(
        WeightsError, match=r"layer2\.0\.conv1\.weight has values that are NaN or infinite"
    ):
        load_weights(resnet18(), tmp_path / "sick.pth")


@pytest.mark.parametrize("suffix", [".pkl", ".pickle"])
def test_a_malicious_pickle_and_a_truncated_one(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'touch sprung'\ntR.")
    with pytest.raises(
        WeightsError, match=r"holds objects other than tensors \(os\.system\); it was not loaded"
    ):
        load_weights(resnet18(), path)
    path.write_bytes(pickle.dumps({"conv1_w": np.zeros((64, 3, 7, 7), np.float32)})[:-1000])
    with pytest.raises(WeightsError, match="is damaged or not a weights file"):
        load_weights(resnet18(), path)


def test_names_nobody_knows_stay_as_they_are():
    named = to_own_names({"encoder.w": torch.zeros(1)})
    assert (named.naming, list(named.tensors)) == ("torchvision", ["encoder.w"])


# ---- our own files ----


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {}), ("resnet20", {"shortcut_padding": "both"})]
)
def test_save_weights_and_back(name, options, tmp_path):
    net = randomise_norms(create_backbone(name, num_classes=3, **options)).to(
        memory_format=torch.channels_last
    )
    net.input_spec = InputSpec("bgr", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 40, 32)
    path = tmp_path / "run" / "weights.safetensors"
    save_weights(net, path, {"note": "kept"})
    other = create_backbone(name, num_classes=3, weights=path, **options)
    assert other.input_spec == net.input_spec
    assert all(
        torch.equal(tensor, net.state_dict()[key]) for key, tensor in other.state_dict().items()
    )
    with safe_open(path, "pt") as file:
        assert file.metadata()["note"] == "kept"
    assert set(load_file(path)) == set(net.state_dict())
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_the_mean_image_travels_with_the_weights(tmp_path):
    net = resnet_cifar(8)
    mean_image = torch.rand(3, 32, 32) * 255
    net.input_spec = InputSpec(
        std=(1.0, 1.0, 1.0), crop_side=32, short_side=32, mean_image=mean_image
    )
    save_weights(net, tmp_path / "w.safetensors")
    spec = resnet_cifar(8, weights=tmp_path / "w.safetensors").input_spec
    assert torch.equal(spec.mean_image, mean_image)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(spec.normalize(images), images - mean_image)
    other_size = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    torch.testing.assert_close(
        spec.normalize(other_size)[0, :, 0, 0], 200 - torch.tensor(spec.mean)
    )


def test_a_weights_file_with_the_earlier_names_of_its_input_loads(tmp_path):
    net = randomise_norms(resnet_cifar(8))
    path = tmp_path / "w.safetensors"
    input_spec = {
        "channel_order": "bgr",
        "mean": [1.0, 2.0, 3.0],
        "std": [4.0, 5.0, 6.0],
        "resize": 40,
        "crop": 32,
    }
    facts = {"format": "backbones-1", "traits": json.dumps(net.traits)}
    save_file(net.state_dict(), path, {**facts, "input_spec": json.dumps(input_spec)})
    found = resnet_cifar(8, weights=path)
    assert found.input_spec == InputSpec("bgr", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 40, 32)
    assert all(torch.equal(net.state_dict()[k], tensor) for k, tensor in found.state_dict().items())
    save_weights(found, path)
    with safe_open(path, "pt") as file:
        written = json.loads(file.metadata()["input_spec"])
    assert (written["short_side"], written["crop_side"]) == (40, 32)
    assert not {"resize", "crop"} & set(written)


def test_our_own_files_say_what_must_agree(tmp_path):
    net = resnet_cifar(8, shortcut_padding="both")
    save_weights(net, tmp_path / "w.safetensors")
    with pytest.raises(
        WeightsError, match=r"w\.safetensors was trained with shortcut_padding='both'"
    ):
        resnet_cifar(8, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("make", "other", "trait"),
    [
        (lambda: plain_cifar(8), lambda: resnet_cifar(8), "shortcut='none'"),
        (lambda: resnet_cifar(8), lambda: plain_cifar(8), "shortcut='A'"),
        (
            lambda: resnet18(shortcut="A", num_classes=2),
            lambda: plain18(num_classes=2),
            "shortcut='A'",
        ),
        (
            lambda: resnet50(num_classes=2, **ORIGINAL),
            lambda: resnet50(num_classes=2),
            "stride_placement='original'",
        ),
    ],
)
def test_networks_of_the_same_tensors_are_told_apart(make, other, trait, tmp_path):
    save_weights(make(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=rf"was trained with {trait}"):
        load_weights(other(), tmp_path / "w.safetensors")
    load_weights(make(), tmp_path / "w.safetensors")


def test_metadata_that_are_damaged(tmp_path):
    path = tmp_path / "w.safetensors"
    good = json.loads(InputSpec().to_json())
    wrong = (
        {"mean": [1, 2]},
        {"std": [0, 1, 1]},
        {"short_side": "a"},
        {"crop_side": None},
        {"mean": "123"},
        {"channel_order": "bgra"},
        {"more": 1},
    )
    for spec in ("{}", "[]", "nonsense", *(json.dumps({**good, **part}) for part in wrong)):
        save_file(
            resnet_cifar(8).state_dict(),
            path,
            metadata={"format": "backbones-1", "traits": "{}", "input_spec": spec},
        )
        with pytest.raises(WeightsError, match=r"w\.safetensors: its metadata are damaged"):
            resnet_cifar(8, weights=path)
    save_file(
        resnet_cifar(8).state_dict(),
        path,
        metadata={"format": "backbones-1", "traits": "[]", "input_spec": InputSpec().to_json()},
    )
    with pytest.raises(WeightsError, match=r"w\.safetensors: its metadata are damaged"):
        resnet_cifar(8, weights=path)


STATE = resnet_cifar(8).state_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: torch.zeros(1)}, "does not fit this network"),
        ({"model": {"state_dict": {}}}, "is not a state dict"),
        ({**STATE, "conv1.bias": torch.zeros(7)}, "unexpected 1: conv1.bias"),
        (
            {**STATE, "conv1.weight": STATE["conv1.weight"].to_sparse()},
            r"conv1\.weight is a sparse tensor; expected a plain array",
        ),
        (
            {**STATE, "conv1.weight": STATE["conv1.weight"].to(torch.complex64)},
            r"conv1\.weight is torch.complex64, expected torch.float32",
        ),
        (
            {**STATE, "conv1.weight": STATE["conv1.weight"].to(torch.int8)},
            r"conv1\.weight is torch.int8, expected torch.float32",
        ),
        (
            {**STATE, "bn1.bias": torch.full((16,), 1e300, dtype=torch.float64)},
            r"bn1\.bias has values that are NaN or infinite",
        ),
        ({**STATE, "_orig_mod.bn1.bias": torch.zeros(16)}, r"bn1\.bias is there twice"),
    ],
)
def test_odd_files(content, message, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights(resnet_cifar(8), tmp_path / "odd.pth")


def test_nested_wrappings_half_precision_and_a_zip_called_pkl(tmp_path):
    torch.save(
        {
            "model": {
                "state_dict": {
                    name: t.half() if t.is_floating_point() else t for name, t in STATE.items()
                }
            }
        },
        tmp_path / "w.pkl",
    )
    net = resnet_cifar(8)
    load_weights(net, tmp_path / "w.pkl")
    torch.testing.assert_close(net.conv1.weight, STATE["conv1.weight"], rtol=1e-3, atol=1e-3)
    assert net.conv1.weight.dtype == torch.float32


def test_a_network_without_memory(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    with torch.device("meta"):
        net = resnet_cifar(8)
    with pytest.raises(WeightsError, match="built on the meta device"):
        load_weights(net, tmp_path / "w.pth")


def test_parts_of_networks_are_not_given_another_ones_name(tmp_path):
    popped = resnet18(num_classes=0)
    popped.pop_stage("conv5")
    torch.save(popped.state_dict(), tmp_path / "part.pth")
    torch.save(resnet18(norm="group").state_dict(), tmp_path / "group.pth")
    with pytest.raises(
        WeightsError, match=r"does not fit this network, a resnet18\. Tensors missing"
    ):
        resnet18(weights=tmp_path / "part.pth")
    with pytest.raises(
        WeightsError, match="no batch norm statistics: build the network with norm='group'"
    ):
        resnet18(weights=tmp_path / "group.pth")


def test_published_weights_of_another_network_are_refused_before_a_download():
    with pytest.raises(
        WeightsError,
        match=r"torchvision/resnet50\.v1 does not fit this network. The file is of resnet50; the "
        r"network looks like resnet18",
    ):
        resnet18(weights="torchvision/resnet50.v1")


def test_save_weights_refuses_another_ending_and_keeps_an_old_file_on_failure(tmp_path: Path):
    net = resnet_cifar(8)
    with pytest.raises(ValueError, match=r"w\.pth: give a name that ends in \.safetensors"):
        save_weights(net, tmp_path / "w.pth")
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        save_weights(net, path, {"note": 3})
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
