"""Which backbone at hand is taken, and what is said of the others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from backbones import PUBLISHED, WeightsError, create_backbone, save_weights
from backbones.catalogue import InputSpec, PublishedWeights
from detres.detection.pretrained import FOLDER, find_pretrained, given_weights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of DETRES_WEIGHTS; the download cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    made = tmp_path / "weights"
    made.mkdir()
    monkeypatch.setenv(FOLDER, str(made))
    return made


def own_file(path: Path, name: str = "resnet18", **more: object) -> Path:
    save_weights(create_backbone(name, width=1 / 16, num_classes=0, **more), path)
    return path


def published_bytes(name: str, **more: object) -> dict:
    return create_backbone(name, width=1 / 16, num_classes=0, **more).state_dict()


def test_without_a_folder_and_downloads_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.is_dir()
    assert find_pretrained("cpu", {}).best is None
    monkeypatch.delenv(FOLDER)
    search = find_pretrained("cpu", {})
    assert (search.best, search.notes) == (None, ())


def test_a_file_of_ones_own_pretraining_is_taken_with_what_it_says(folder: Path) -> None:
    path = own_file(folder / "mine.safetensors", "resnet50", stride_placement="original")
    best = find_pretrained("cpu", {}).best
    assert best.weights == str(path)
    assert best.facts.ours
    wanted = {"name": "resnet50", "width": 1 / 16, "stride_placement": "original"}
    assert wanted.items() <= best.facts.settings.items()
    assert best.facts.input_spec == InputSpec()
    net = create_backbone(**best.facts.settings, num_classes=0, weights=best.weights)
    assert net.load_report is not None


def test_the_half_width_resnet50_is_known_by_its_first_convolution(
    folder: Path, shared_data: object
) -> None:
    """Under a name that says nothing, too."""
    file = shared_data("resnet50_half") / "resnet50_half.safetensors"
    (folder / "w.safetensors").symlink_to(file)
    best = find_pretrained("cpu", {}).best
    assert best.facts.settings == {
        "name": "resnet50",
        "width": 0.5,
        "stride_placement": "original",
        "pool1": "caffe",
    }
    spec = best.facts.input_spec
    assert (spec.channel_order, spec.mean, spec.std) == ("bgr", (104, 117, 123), (1, 1, 1))
    assert not best.facts.ours
    with pytest.raises(WeightsError, match="trained with stride_placement='original'"):
        create_backbone("resnet50", width=0.5, weights=file, stride_placement="torchvision")
    with pytest.raises(WeightsError, match="trained with pool1='caffe'"):
        create_backbone("resnet50", width=0.5, weights=file, stride_placement="original")


def test_published_networks_come_before_ones_own(folder: Path) -> None:
    own_file(folder / "a.safetensors")
    torch.save(published_bytes("resnet50", stride_placement="original"), folder / "b_caffe.pth")
    best = find_pretrained("cpu", {}).best
    assert Path(best.weights).name == "b_caffe.pth"
    assert best.facts.settings["stride_placement"] == "original"
    assert best.facts.input_spec.channel_order == "bgr"


@pytest.mark.parametrize(("device", "name"), [("cpu", "resnet18"), ("cuda", "resnet50")])
def test_of_several_the_one_that_suits_the_device_is_taken(
    folder: Path, device: str, name: str
) -> None:
    for each in ("resnet18", "resnet50"):
        tensors = create_backbone(each, num_classes=0).state_dict()
        torch.save(tensors, folder / f"{each}_8xb32_in1k.pth")
    assert find_pretrained(device, {}).best.facts.settings["name"] == name
    assert find_pretrained(device, {"name": "resnet50"}).best.facts.settings["name"] == "resnet50"
    assert find_pretrained(device, {"name": "resnet34"}).best is None
    assert find_pretrained(device, {"width": 0.5}).best is None


def test_a_file_that_does_not_say_its_input_is_not_taken_and_said(folder: Path) -> None:
    torch.save(published_bytes("resnet18"), folder / "anything.pth")
    search = find_pretrained("cpu", {})
    assert search.best is None
    (note,) = search.notes
    assert "anything.pth: resnet18" in note
    assert "nothing in it says what input it expects" in note


def test_damaged_files_are_said_and_others_passed_over(folder: Path) -> None:
    (folder / "cut.safetensors").write_bytes(own_file(folder / "a.safetensors").read_bytes()[:99])
    (folder / "._a.safetensors").write_bytes(b"\0" * 40)
    (folder / "readme.txt").write_text("weights")
    (folder / "sub.pth").mkdir()
    torch.save({"net.weight": torch.ones(2, 2)}, folder / "other.pth")
    search = find_pretrained("cpu", {})
    assert Path(search.best.weights).name == "a.safetensors"
    (note,) = search.notes
    assert note.startswith("not used: ")
    assert "cut.safetensors" in note


def test_a_folder_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, "/nowhere/at/all")
    with pytest.raises(FileNotFoundError, match="DETRES_WEIGHTS: /nowhere/at/all is not a folder"):
        find_pretrained("cpu", {})


def test_a_published_file_that_was_downloaded_is_taken_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    written = tmp_path / "some.pth"
    torch.save(published_bytes("resnet18"), written)
    digest = hashlib.sha256(written.read_bytes()).hexdigest()[:8]
    traits = (("pool1", "torch"),)
    entry = PublishedWeights("resnet18", f"tiny-{digest}.pth", None, None, traits=traits)
    monkeypatch.setitem(PUBLISHED, "torchvision/tiny.v1", entry)
    assert find_pretrained("cpu", {}).best is None
    written.rename(cache / entry.file)
    best = find_pretrained("cpu", {}).best
    assert (best.weights, best.where) == ("torchvision/tiny.v1", "downloaded before")
    assert best.facts.settings == {"name": "resnet18", "width": 1 / 16, "pool1": "torch"}
    own_file(folder / "mine.safetensors")
    assert find_pretrained("cpu", {}).best.where == "in the folder DETRES_WEIGHTS"


def test_a_download_with_another_content_is_not_used(folder: Path) -> None:
    cache = folder.parent / "hub" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(published_bytes("resnet18"), cache / PUBLISHED["torchvision/resnet18.v1"].file)
    search = find_pretrained("cpu", {})
    assert search.best is None
    assert "is not the file it is named after" in search.notes[0]


def test_weights_that_are_named_are_described_and_not_looked_for(folder: Path) -> None:
    found = given_weights("torchvision/resnet50.v1")
    assert found.facts.settings == {
        "name": "resnet50",
        "stride_placement": "torchvision",
        "pool1": "torch",
    }
    assert not (folder.parent / "hub").exists()
    assert (
        given_weights(str(own_file(folder / "m.safetensors"))).facts.settings["name"] == "resnet18"
    )
    with pytest.raises(WeightsError, match=r"no weights file .*gone\.pth"):
        given_weights(str(folder / "gone.pth"))
