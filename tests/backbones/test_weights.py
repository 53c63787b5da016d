from __future__ import annotations

import dataclasses
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

from backbones import (
    BACKBONES,
    PUBLISHED,
    InputSpec,
    ResNet,
    WeightsError,
    create_backbone,
    fold_batch_norm,
    load_weights,
    resnet18,
    resnet34,
    resnet50,
    save_weights,
    vgg16,
)
from backbones.weights import facts_of_file
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
    assert (report.source, report.naming, len(report.matched), report.skipped) == (
        str(path),
        "torchvision",
        122,
        {},
    )
    assert all(
        torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items()
    )


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
    assert len(load_weights(net, path).matched) == 122
    assert_same_trunk(net, trained)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_file_without_counters_as_old_releases_have_it(norm, trained, tmp_path):
    tensors = {
        name: tensor
        for name, tensor in trained.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path = tmp_path / "old.pth"
    torch.save(tensors, path)
    net = resnet18(norm=norm)
    assert len(load_weights(net, path).matched) == 102
    assert_same_trunk(net, trained)


def test_a_classifier_of_another_size_or_absent_is_skipped_and_reported(
    weights_file, trained, tmp_path
):
    for num_classes in (7, 0):
        net = resnet18(num_classes=num_classes)
        report = load_weights(net, weights_file)
        assert (len(report.matched), sorted(report.skipped)) == (120, ["fc.bias", "fc.weight"])
        assert_same_trunk(net, trained)

    headless = tmp_path / "headless.pth"
    torch.save(
        {
            name: tensor
            for name, tensor in trained.state_dict().items()
            if not name.startswith("fc.")
        },
        headless,
    )
    net = resnet18()
    as_initialised = net.fc.weight.clone()
    report = load_weights(net, headless)
    assert (len(report.matched), sorted(report.skipped)) == (120, ["fc.bias", "fc.weight"])
    assert torch.equal(net.fc.weight, as_initialised)


@pytest.mark.parametrize(
    ("name", "own", "options"),
    [("resnet18", 1000, {}), ("resnet20", 10, {}), ("vgg16", 1000, {"fc_width": 8})],
    ids=["resnet", "cifar", "vgg"],
)
def test_the_number_of_classes_is_the_files_unless_another_is_given(name, own, options, tmp_path):
    trained = create_backbone(name, num_classes=7, **options)
    file = tmp_path / "seven.safetensors"
    save_weights(trained, file)
    net = create_backbone(name, weights=file, **options)
    assert net.get_classifier().out_features == 7
    assert net.load_report.skipped == {}
    assert all(
        torch.equal(tensor, net.state_dict()[key]) for key, tensor in trained.state_dict().items()
    )
    usual = create_backbone(name, **options)
    assert usual.get_classifier().out_features == own
    assert usual.load_report is None
    other = create_backbone(name, num_classes=5, weights=file, **options)
    assert other.get_classifier().out_features == 5
    assert len(other.load_report.skipped) == 2
    assert "stays as initialised" in str(other.load_report)
    without = create_backbone(name, num_classes=0, weights=file, **options)
    assert without.get_classifier() is None


def test_a_file_without_a_usable_classifier_leaves_the_usual_number(trained, tmp_path):
    tensors = trained.state_dict()
    for change in (
        {"fc.weight": None, "fc.bias": None},
        {"fc.weight": torch.zeros(7, 3)},
        {"fc.weight": torch.zeros(0, 512)},
    ):
        file = tmp_path / "odd.pth"
        torch.save(
            {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None},
            file,
        )
        net = resnet18(weights=file)
        assert "fc.weight" in net.load_report.skipped
        assert net.fc.in_features == 512
        assert_same_trunk(net, trained)


def test_a_report_gives_each_reason_once(trained, tmp_path):
    file = tmp_path / "old.pth"
    torch.save(
        {
            name: tensor
            for name, tensor in trained.state_dict().items()
            if "num_batches" not in name
        },
        file,
    )
    lines = str(resnet18(num_classes=0, weights=file).load_report).splitlines()
    assert lines == [
        f"{file}: 100 tensors under torchvision's names, 22 skipped",
        "  bn1.num_batches_tracked, layer1.0.bn1.num_batches_tracked and 18 more: not in the "
        "file; the counter keeps its value",
        "  fc.weight, fc.bias: the network has no such layer",
    ]


# ---- files that do not fit ----


LOOKS_LIKE = {
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    "plain18": "resnet18 with shortcut A, or plain18",
    "plain34": "resnet34 with shortcut A, or plain34",
    **{name: name for name in ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn")},
    **{
        f"{kind}{depth}": f"resnet{depth} or plain{depth}"
        for kind in ("resnet", "plain")
        for depth in (20, 32, 44, 56, 110)
    },
    "resnet1202": "resnet1202 or plain1202",
}


def shapes_file(path: Path, name: str, **options: str) -> Path:
    """A file with all tensors of a network, as views of one number."""
    with torch.device("meta"):
        shapes = {
            key: tensor.shape
            for key, tensor in create_backbone(name, **options).state_dict().items()
        }
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "resnet1202" else ())
        for name in BACKBONES
    ],
)
def test_the_wrong_architecture_is_recognised_and_the_network_left_alone(name, tmp_path):
    """Every depth is told from its names and the kind of block."""
    path = shapes_file(tmp_path / "other.pth", name)
    net = resnet34(num_classes=3) if name != "resnet34" else resnet18(num_classes=3)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(
        WeightsError,
        match=r"does not fit this network, a resnet(18|34)\. The file looks like "
        rf"{LOOKS_LIKE[name]}\.",
    ):
        load_weights(net, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "looks_like"),
    [
        ("resnet34", {"shortcut": "C"}, "resnet34 with shortcut C"),
        ("resnet50", {"shortcut": "A"}, "resnet50 with shortcut A"),
        ("resnet56", {"shortcut": "B"}, "resnet56 with shortcut B"),
    ],
)
def test_another_shortcut_is_recognised(name, options, looks_like, tmp_path):
    path = shapes_file(tmp_path / "other.pth", name, **options)
    with torch.device("meta"):
        net = create_backbone(name)
    with pytest.raises(WeightsError, match=rf"looks like {looks_like}\."):
        load_weights(net, path)


def test_a_tensor_missing_unexpected_or_misshapen_is_named(trained, tmp_path):
    tensors = dict(trained.state_dict())
    del tensors["layer2.0.conv1.weight"]
    tensors["neck.weight"] = torch.zeros(3)
    tensors["bn1.bias"] = torch.zeros(63)
    path = tmp_path / "bad.pth"
    torch.save(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load_weights(resnet18(), path)
    for part in (
        "missing 1: layer2.0.conv1.weight",
        "unexpected 1: neck.weight",
        "bn1.bias is (63,), expected (64,)",
    ):
        assert part in str(caught.value)


def test_folded_weights_are_told_from_those_of_group_norm(trained, tmp_path):
    file = tmp_path / "folded.pth"
    torch.save(fold_batch_norm(trained).state_dict(), file)
    with pytest.raises(
        WeightsError, match="batch norms of the file are folded into its convolutions"
    ):
        resnet18(weights=file)


def test_batch_norm_weights_for_a_group_norm_network(weights_file):
    with pytest.raises(WeightsError, match="build the network with norm='frozen' or 'batch'"):
        resnet18(norm="group", weights=weights_file)


def test_a_file_of_another_model_is_not_given_a_name(tmp_path):
    path = tmp_path / "densenet.pth"
    torch.save({"features.conv0.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(
        WeightsError, match=r"does not fit this network, a resnet18\. Tensors missing"
    ) as caught:
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
    with pytest.raises(
        WeightsError,
        match=r"evil\.pth holds objects other than tensors \(\w+\.mkdir\); it was not loaded",
    ):
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
    with pytest.raises(WeightsError, match=rf"cut\{suffix} is damaged"):
        load_weights(resnet18(), path)


@pytest.mark.parametrize("name", ["text.pth", "text.pt", "text.safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "damaged or not a weights file: it is empty"),
        (b"hello, world\n", "a text file that begins with 'hello, world'"),
    ],
)
def test_a_file_of_another_kind(name, content, what, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{re.escape(str(path))} is {what}"):
        load_weights(resnet18(), path)


@pytest.mark.parametrize("content", [torch.zeros(3), {"epoch": 3}, {}, [torch.zeros(2)]])
def test_a_file_without_a_state_dict(content, tmp_path):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(
        WeightsError, match=r"odd\.pth is not a state dict: expected a mapping of names to tensors"
    ):
        load_weights(resnet18(), path)


def test_a_path_that_is_not_there_and_a_misspelt_name(tmp_path):
    with pytest.raises(
        WeightsError,
        match=r"no weights file .*absent\.pth; .*Published names are: torchvision/resnet18\.v1",
    ):
        load_weights(resnet18(), tmp_path / "absent.pth")
    with pytest.raises(
        WeightsError,
        match=r"no weights file torchvision/resnet50v1; did you mean torchvision/resnet50\.v1\?",
    ):
        load_weights(resnet50(), "torchvision/resnet50v1")


# ---- published weights ----


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache and no network; return the folder of cached files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
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


def published_as(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the catalogue publish `path` as `name`; return the path under the name that carries its
    checksum.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = dataclasses.replace(
        PUBLISHED[name], file=f"{PUBLISHED[name].architecture}-{digest[:8]}.pth"
    )
    monkeypatch.setitem(PUBLISHED, name, entry)
    return path.rename(path.with_name(entry.file))


def test_a_file_put_there_by_hand_is_used(hub, trained, monkeypatch):
    torch.save(trained.state_dict(), hub / "fetched.pth")
    published_as(hub / "fetched.pth", "torchvision/resnet18.v1", monkeypatch)
    net = resnet18(weights="torchvision/resnet18.v1", num_classes=0)
    assert_same_trunk(net, trained)
    assert net.input_spec == InputSpec()


def test_a_published_file_elsewhere_on_the_disk_is_known_by_its_name(tmp_path, monkeypatch):
    torch.save(vgg16(num_classes=2, fc_width=8).state_dict(), tmp_path / "fetched.pth")
    path = published_as(tmp_path / "fetched.pth", "torchvision/vgg16.features", monkeypatch)
    net = vgg16(num_classes=2, fc_width=8)
    report = load_weights(net, path)
    assert report.input_spec == net.input_spec == PUBLISHED["torchvision/vgg16.features"].input_spec
    assert net.input_spec.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut short", b""])
def test_a_damaged_file_in_the_cache_is_named(hub, content):
    path = hub / "resnet18-f37072fd.pth"
    path.write_bytes(content)
    with pytest.raises(
        WeightsError,
        match=rf"{re.escape(str(path))} is not the file it is named after: its sha256 .* fetch it "
        r"again",
    ):
        load_weights(resnet18(), "torchvision/resnet18.v1")


def test_a_download_with_another_checksum_is_refused(hub, tmp_path, monkeypatch):
    source = tmp_path / "impostor.pth"
    torch.save(resnet18().state_dict(), source)
    assert not hashlib.sha256(source.read_bytes()).hexdigest().startswith("f37072fd")

    def serve(*_args, **_kwargs):
        return urllib.request.OpenerDirector.open(urllib.request.build_opener(), source.as_uri())

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    with pytest.raises(WeightsError, match=r"torchvision/resnet18\.v1: .*, not f37072fd; it was"):
        load_weights(resnet18(), "torchvision/resnet18.v1")
    assert not list(hub.iterdir())


def test_published_weights_need_their_stride_placement(hub):
    with pytest.raises(
        WeightsError,
        match=r"torchvision/resnet50\.v1 was trained with stride_placement='torchvision'",
    ):
        resnet50(stride_placement="original", weights="torchvision/resnet50.v1")
    with pytest.raises(
        WeightsError, match="could not download"
    ):  # a basic block has one place only
        resnet18(stride_placement="original", weights="torchvision/resnet18.v1")
    assert not list(hub.iterdir())


def test_the_catalogue_agrees_with_torchvisions():
    expected = {}
    for name in sorted({entry.architecture for entry in PUBLISHED.values()}):
        for version in torchvision.models.get_model_weights(name):
            key = f"torchvision/{name}.{version.name.removeprefix('IMAGENET1K_').lower()}"
            transform = version.transforms()
            errors = [100 - version.meta["_metrics"]["ImageNet-1K"][f"acc@{k}"] for k in (1, 5)]
            spec = (
                transform.resize_size[0],
                transform.crop_size[0],
                *transform.mean,
                *transform.std,
            )
            expected[key] = (
                name,
                version.url,
                *[pytest.approx(e, abs=1e-6) if e == e else None for e in errors],
                pytest.approx(spec, abs=3e-5),
            )
    found = {}
    for key, entry in PUBLISHED.items():
        if key.startswith("timm/"):  # other names for the same files
            continue
        spec = entry.input_spec
        values = (
            spec.short_side,
            spec.crop_side,
            *[v / 255 for v in spec.mean],
            *[v / 255 for v in spec.std],
        )
        found[key] = (entry.architecture, entry.url, entry.top1_error, entry.top5_error, values)
        assert spec.channel_order == "rgb"
        assert re.fullmatch(r"[0-9a-f]{8}", entry.sha256_prefix)
        assert "BSD" in entry.licence
    assert found == expected


def test_the_catalogue_names_networks_and_their_traits():
    for entry in PUBLISHED.values():
        with torch.device("meta"):
            net = BACKBONES[entry.architecture]()
        assert net.traits.items() <= dict(entry.traits).items()


def test_importing_backbones_brings_neither_detres_nor_torchvision():
    code = (
        "import sys, backbones; print([name for name in sys.modules if name.split('.')[0] in "
        "('detres', 'torchvision')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_weights_file_can_be_read_by_whom_other_files_can(tmp_path):
    (tmp_path / "other").touch()
    save_weights(resnet18(num_classes=2), tmp_path / "own.safetensors")
    assert (tmp_path / "own.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_a_file_is_of_is_told_by_all_that_it_says(tmp_path):
    ours = tmp_path / "ours.safetensors"
    net = resnet50(width=1 / 16, num_classes=3, stride_placement="original", pool1="caffe")
    net.input_spec = InputSpec(mean=(1.0, 2.0, 3.0))
    save_weights(net, ours)
    facts = facts_of_file(ours)
    assert facts.settings == {
        "name": "resnet50",
        "width": 1 / 16,
        "stride_placement": "original",
        "pool1": "caffe",
    }
    assert (facts.input_spec, facts.ours) == (net.input_spec, True)
    assert create_backbone(**facts.settings, num_classes=3, weights=ours).load_report is not None
    bare = tmp_path / "bare.pth"
    torch.save(net.state_dict(), bare)
    facts = facts_of_file(bare)
    assert facts.settings == {"name": "resnet50", "width": 1 / 16}
    assert (facts.input_spec, facts.ours) == (None, False)
    torch.save({"a.weight": torch.ones(3, 3)}, bare)
    assert facts_of_file(bare) is None
    with pytest.raises(WeightsError, match=r"gone\.pth"):
        facts_of_file(tmp_path / "gone.pth")
