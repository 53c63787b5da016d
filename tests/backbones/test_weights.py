from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from backbones import BACKBONES, PUBLISHED, ResNet, WeightsError, load_weights, resnet18, resnet34, resnet50
from tests.backbones.nets import randomise_norms, torchvision_net


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return torchvision_net("resnet18")


@pytest.fixture
def weights_file(trained, tmp_path) -> Path:
    path = tmp_path / "resnet18.pth"
    torch.save(trained.state_dict(), path)
    return path


def assert_same_trunk(net: ResNet, trained: nn.Module) -> None:
    expected = trained.state_dict()
    for name, tensor in net.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_round_trip_through_a_file(suffix, tmp_path):
    net = randomise_norms(resnet18(num_classes=4))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path)
    other = resnet18(num_classes=4)
    report = load_weights(other, path)
    assert (report.source, report.matched, report.skipped) == (str(path), 122, ())
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_the_constructor_loads_then_freezes(weights_file, trained):
    net = resnet18(norm="frozen", num_classes=0, freeze_at=2, weights=weights_file)
    assert_same_trunk(net, trained)
    assert not net.layer1[0].conv1.weight.requires_grad


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_wrappings_are_taken_off(prefix, wrapped, trained, tmp_path):
    tensors = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    path = tmp_path / "wrapped.pth"
    torch.save({"state_dict": tensors, "epoch": 90} if wrapped else tensors, path)
    net = resnet18()
    assert load_weights(net, path).matched == 122
    assert_same_trunk(net, trained)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_file_without_counters_as_old_releases_have_it(norm, trained, tmp_path):
    tensors = {name: tensor for name, tensor in trained.state_dict().items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "old.pth"
    torch.save(tensors, path)
    net = resnet18(norm=norm)
    assert load_weights(net, path).matched == 102
    assert_same_trunk(net, trained)


def test_a_classifier_of_another_size_or_absent_is_skipped_and_reported(weights_file, trained, tmp_path):
    for num_classes in (7, 0):
        net = resnet18(num_classes=num_classes)
        report = load_weights(net, weights_file)
        assert (report.matched, sorted(report.skipped)) == (120, ["fc.bias", "fc.weight"])
        assert_same_trunk(net, trained)

    headless = tmp_path / "headless.pth"
    torch.save({name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("fc.")}, headless)
    net = resnet18()
    as_initialised = net.fc.weight.clone()
    report = load_weights(net, headless)
    assert (report.matched, sorted(report.skipped)) == (120, ["fc.bias", "fc.weight"])
    assert torch.equal(net.fc.weight, as_initialised)


# ---- files that do not fit ----


@pytest.mark.parametrize("name", list(BACKBONES))
def test_the_wrong_architecture_is_recognised_and_the_network_left_alone(name, tmp_path):
    """Every depth is told from its names and the kind of block; the tensors here are views of one number."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in BACKBONES[name]().state_dict().items()}
    path = tmp_path / "other.pth"
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, path)
    net = resnet34() if name != "resnet34" else resnet18()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"other\.pth does not fit this network\. The file looks like {name}\."):
        load_weights(net, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_a_tensor_missing_unexpected_or_misshapen_is_named(trained, tmp_path):
    tensors = dict(trained.state_dict())
    del tensors["layer2.0.conv1.weight"]
    tensors["neck.weight"] = torch.zeros(3)
    tensors["bn1.bias"] = torch.zeros(63)
    path = tmp_path / "bad.pth"
    torch.save(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load_weights(resnet18(), path)
    for part in ("missing 1: layer2.0.conv1.weight", "unexpected 1: neck.weight", "bn1.bias is (63,), expected (64,)"):
        assert part in str(caught.value)


def test_batch_norm_weights_for_a_group_norm_network(weights_file):
    with pytest.raises(WeightsError, match="build the network with norm='frozen' or 'batch'"):
        resnet18(norm="group", weights=weights_file)


def test_a_file_of_another_model_is_not_given_a_name(tmp_path):
    path = tmp_path / "vgg.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"does not fit this network\. Tensors missing") as caught:
        load_weights(resnet18(), path)
    assert "looks like" not in str(caught.value)


# ---- files that are not weights ----


class _Trap:
    """Unpickled without care, this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_file_is_not_executed(tmp_path):
    path, sprung = tmp_path / "evil.pth", tmp_path / "sprung"
    torch.save({"conv1.weight": _Trap(sprung)}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth holds objects other than tensors \(\w+\.mkdir\); it was not loaded"):
        load_weights(resnet18(), path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert sprung.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(suffix, trained, tmp_path):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(trained.state_dict(), path)
    else:
        save_file(trained.state_dict(), path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(WeightsError, match=rf"cut\{suffix} is damaged or not a weights file"):
        load_weights(resnet18(), path)


@pytest.mark.parametrize("name", ["text.pth", "text.pt", "text.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello, world\n"])
def test_a_file_of_another_kind(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{re.escape(str(path))} is damaged or not a weights file"):
        load_weights(resnet18(), path)


@pytest.mark.parametrize("content", [torch.zeros(3), {"epoch": 3}, {}, [torch.zeros(2)]])
def test_a_file_without_a_state_dict(content, tmp_path):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"odd\.pth is not a state dict: expected a mapping of names to tensors"):
        load_weights(resnet18(), path)


def test_a_path_that_is_not_there_and_a_misspelt_name(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights file .*absent\.pth; .*Published names are: torchvision/resnet18\.v1"):
        load_weights(resnet18(), tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match=r"no weights file torchvision/resnet50v1; did you mean torchvision/resnet50\.v1\?"):
        load_weights(resnet50(), "torchvision/resnet50v1")


# ---- published weights ----


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache and no network; return the folder of cached files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_offline_says_what_to_fetch_and_where_to_put_it(hub):
    with pytest.raises(WeightsError) as caught:
        load_weights(resnet50(), "torchvision/resnet50.v1")
    for part in (
        "torchvision/resnet50.v1",
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        str(hub / "resnet50-0676ba61.pth"),
    ):
        assert part in str(caught.value)
    assert not list(hub.iterdir())


def test_a_file_put_there_by_hand_is_used(hub, trained):
    torch.save(trained.state_dict(), hub / "resnet18-f37072fd.pth")
    net = resnet18(weights="torchvision/resnet18.v1", num_classes=0)
    assert_same_trunk(net, trained)


def test_a_damaged_file_in_the_cache_is_named(hub):
    path = hub / "resnet18-f37072fd.pth"
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(WeightsError, match=rf"torchvision/resnet18\.v1: {re.escape(str(path))} is damaged .*delete it"):
        load_weights(resnet18(), "torchvision/resnet18.v1")


def test_a_download_with_another_checksum_is_refused(hub, tmp_path, monkeypatch):
    source = tmp_path / "impostor.pth"
    torch.save(resnet18().state_dict(), source)
    assert not hashlib.sha256(source.read_bytes()).hexdigest().startswith("f37072fd")

    def serve(*_args, **_kwargs):
        return urllib.request.OpenerDirector.open(urllib.request.build_opener(), source.as_uri())

    monkeypatch.setattr(torch.hub, "urlopen", serve)
    with pytest.raises(WeightsError, match=r"torchvision/resnet18\.v1: .*invalid hash value"):
        load_weights(resnet18(), "torchvision/resnet18.v1")
    assert not list(hub.iterdir())


def test_published_weights_need_their_stride_placement(hub):
    with pytest.raises(WeightsError, match=r"torchvision/resnet50\.v1 was trained with stride_placement='torchvision'"):
        resnet50(stride_placement="original", weights="torchvision/resnet50.v1")
    with pytest.raises(WeightsError, match="could not download"):  # a basic block has one place only
        resnet18(stride_placement="original", weights="torchvision/resnet18.v1")
    assert not list(hub.iterdir())


def test_the_catalogue_agrees_with_torchvisions():
    expected = {}
    for name in BACKBONES:
        for version in torchvision.models.get_model_weights(name):
            key = f"torchvision/{name}.{version.name.removeprefix('IMAGENET1K_').lower()}"
            transform = version.transforms()
            top1 = version.meta["_metrics"]["ImageNet-1K"]["acc@1"]
            expected[key] = (name, version.url.rsplit("/", 1)[1], round(100 - top1, 2), tuple(transform.mean), tuple(transform.std))
    found = {key: (p.architecture, p.file, p.top1_error, p.mean, p.std) for key, p in PUBLISHED.items()}
    assert found == expected


def test_importing_backbones_brings_neither_detres_nor_torchvision():
    code = "import sys, backbones; print([name for name in sys.modules if name.split('.')[0] in ('detres', 'torchvision')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
