"""Faults planted in runs of the real commands, and what `replay` says of the bundles they leave:
the culprit, and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from detres.classification.data.crops import CropDataset
from detres.cli import replay, train_cls, train_det
from detres.detection.data.loader import DetectionDataset, Item
from detres.detection.data.transforms import TrainTransform
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import Target
from tests.cli.conftest import COCO_FLAGS
from tests.cli.test_train_cls import PHOTOS, write_folder

Spoil = Callable[[Item], Item]
Said = Callable[..., list[str]]

CULPRIT = 8
"""The id of the image that is spoilt."""


@pytest.fixture
def data(coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the COCO folder, beside the runs."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(coco_folder, tmp_path / "data"))


@pytest.fixture
def said(
    data: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, list[str]]]:
    """Return a function: settings -> the error of a training that fails, and what replay says of
    its bundle, but for the first line, which repeats the error.
    """

    def call(*settings: str, status: int = 1) -> tuple[str, list[str]]:
        given = ["--cfg", str(tiny), "--data", str(data), "--device", "cpu"]
        overrides = [*COCO_FLAGS, "train.steps=30", *settings]
        assert train_det.main([*given, "--set", *overrides]) == status
        (bundle,) = Path("runs/tiny").glob("bundle-*")
        shown = capsys.readouterr()
        assert f"written: {bundle}; what is at fault says: python -m detres replay" in shown.out
        return shown.err, replayed(bundle, capsys)

    return call


def replayed(bundle: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert replay.main([str(bundle), "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    first, *lines = shown.out.splitlines()
    assert first.startswith(f"{bundle}: step ")
    return lines


def spoil(monkeypatch: pytest.MonkeyPatch, how: Spoil) -> None:
    """Let the data set give another item for the image CULPRIT."""
    read = DetectionDataset.__getitem__

    def spoilt(self: DetectionDataset, key: tuple[int, int]) -> Item:
        item = read(self, key)
        return how(item) if item.target.image_id == CULPRIT else item

    monkeypatch.setattr(DetectionDataset, "__getitem__", spoilt)


def file_of(data: Path, image_id: int = CULPRIT) -> Path:
    images = json.loads((data / "annotations" / "train.json").read_text())["images"]
    (name,) = [image["file_name"] for image in images if image["id"] == image_id]
    return data / "train" / name


def others(data: Path) -> list[str]:
    """The files of the images that are as they should be."""
    return [str(path) for path in (data / "train").iterdir() if path != file_of(data)]


def test_pixels_that_are_not_numbers(data: Path, said: Said, monkeypatch: pytest.MonkeyPatch):
    def with_nan(item: Item) -> Item:
        image = item.image.astype(np.float32)
        image[7, 9, 1] = np.nan
        return item._replace(image=image)

    spoil(monkeypatch, with_nan)
    error, lines = said()
    assert error.startswith("error: non-finite loss in step ")
    assert lines[0].startswith(f"at fault: image {CULPRIT} ({file_of(data)}): 1 of its ")
    assert lines[0].endswith("pixel values are not finite, the first nan at x 9, y 7")
    assert lines[1].startswith("alone it gives loss_rpn_cls = nan")
    assert lines[1].endswith("; the first output that is not finite: normalizer")
    assert len(lines) == 2
    assert not any(name in "".join(lines) for name in others(data))


def test_a_box_that_is_infinite(data: Path, said: Said, monkeypatch: pytest.MonkeyPatch):
    transform = TrainTransform.__call__

    def with_inf(self: TrainTransform, image: np.ndarray, target: Target, seed: int):
        changed, target = transform(self, image, target, seed)
        if target.image_id == CULPRIT:
            target.boxes[-1, 2] = torch.inf
        return changed, target

    monkeypatch.setattr(TrainTransform, "__call__", with_inf)
    error, lines = said(status=2)
    assert error.startswith(f"error: {file_of(data)}: box 0 of 1 (counted from 0) of image 8 is [")
    assert ", inf, " in error
    assert error.endswith("] once transformed, which is not finite\n")
    assert lines == [
        "at fault: what is named, no step: it came while waiting for the images of step 3"
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_cut_off(workers: int, data: Path, said: Said):
    file = file_of(data)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    error, lines = said(f"data.workers={workers}", status=2)
    assert error.startswith(f"error: {file}") or str(file) in error
    assert len(lines) == 1
    assert lines == [
        "at fault: what is named, no step: it came while waiting for the images of step 3"
    ]
    (bundle,) = Path("runs/tiny").glob("bundle-*")
    facts = json.loads((bundle / "bundle.json").read_text())
    assert str(file) in facts["message"]
    assert not any(name in facts["message"] for name in others(data))
    assert not (bundle / "step.pt").exists()


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_worker_that_is_killed(said: Said, monkeypatch: pytest.MonkeyPatch):
    def killing(item: Item) -> Item:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    spoil(monkeypatch, killing)
    error, lines = said("data.workers=1")
    assert error.startswith("error: DataLoader worker (pid")
    (line,) = lines
    assert line.startswith("at fault: a loader's worker that ended (")
    assert "no image is known to be" in line


def test_memory_that_is_used_up(said: Said, monkeypatch: pytest.MonkeyPatch):
    features = FasterRCNN.features

    def limited(self: FasterRCNN, images: object) -> object:
        if CULPRIT in images.ids:
            torch.empty(2**60, dtype=torch.uint8)  # what no allocator gives
        return features(self, images)

    monkeypatch.setattr(FasterRCNN, "features", limited)
    error, lines = said()
    assert error.startswith("error: the memory is used up (images at once: 2 of ")
    assert "batch norm takes its statistics from the images at once" in error
    assert lines[0].startswith("at fault: the size of the step, 2 images padded to ")
    assert lines[-1].startswith("what needs less: a smaller train.batch_size")
    assert "model.input.max_side" in lines[-1]


def test_a_rate_that_is_too_large(data: Path, said: Said):
    error, lines = said("train.lr=1e4", "train.clip_grad_norm=null")
    assert error.startswith("error: non-finite loss in step ") or "non-finite gradient" in error
    assert lines[0].startswith("no single image is at fault: the step diverged: gradient norm ")
    assert lines[0].endswith(" -> not finite over the last 5 steps, lr 10000")
    assert lines[1].startswith(
        "each image alone fails, and a grey one; the first gives loss_rpn_cls = "
    )
    assert len(lines) == 2
    assert not any(str(path) in "".join(lines) for path in (data / "train").iterdir())


def classifier_fails(data: Path, *settings: str) -> Path:
    """The bundle of a training of a small classifier on the photos of `data`."""
    given = ["--cfg", "configs/imagenet_resnet18b.yaml", "--data", str(data), "--device", "cpu"]
    assert train_cls.main([*given, "--set", *PHOTOS, *settings]) == 1
    (bundle,) = Path("runs/photos").glob("bundle-*")
    return bundle


def test_a_classifier_s_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "photos")
    culprit, read = str(data / "train" / "dark" / "3.jpg"), CropDataset.__getitem__

    def spoilt(self: CropDataset, key: tuple[int, int]):
        crop, label, name = read(self, key)
        if name == culprit:
            crop = crop.astype(np.float32)
            crop[2, 3] = np.inf
        return crop, label, name

    with monkeypatch.context() as patch:
        patch.setattr(CropDataset, "__getitem__", spoilt)
        bundle = classifier_fails(data, "train.steps=12")
    capsys.readouterr()
    lines = replayed(bundle, capsys)
    assert lines[0] == (
        f"at fault: image {culprit} ({culprit}): 3 of its 3072 pixel values are not finite, the "
        f"first inf at x {lines[0].rpartition(' at x ')[2]}"
    )
    assert lines[1].startswith("alone it gives loss_cls = nan")
    assert lines[1].endswith("; the first output that is not finite: normalizer")
    assert len(lines) == 2


def test_a_classifier_s_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    bundle = classifier_fails(
        write_folder(tmp_path / "photos"), "train.lr=1e25", "train.warmup_steps=0"
    )
    capsys.readouterr()
    lines = replayed(bundle, capsys)
    assert lines[0].startswith("no single image is at fault: the step diverged: gradient norm ")
    assert len(lines) == 2


def test_what_is_no_bundle_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/x/bundle-step-3")
    assert replay.main([str(folder)]) == 2
    assert capsys.readouterr().err == f"error: no bundle at {folder}\n"
    folder.mkdir(parents=True)
    assert replay.main([str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder} is no bundle, for it has no bundle.json: a training that fails writes "
        "one, runs/NAME/bundle-step-N\n"
    )
    (folder / "bundle.json").write_text('{"format": "detres-bundle-7"}')
    assert replay.main(["runs/x"]) == 2
    assert capsys.readouterr().err == (
        f"error: runs/x is no bundle, for it has no bundle.json: give {folder}\n"
    )
    assert replay.main([str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}/bundle.json has the format 'detres-bundle-7', and this detres reads "
        "detres-bundle-1: replay it with the version that wrote it\n"
    )
