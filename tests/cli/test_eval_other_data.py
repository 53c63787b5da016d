"""A detector whose val was drawn, judged on data that moved, grew, or are others."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import detres
from backbones.files import DIGEST
from detres.cli import eval as eval_command
from detres.cli import train_det
from detres.detection.data.read import NoSplitError
from detres.detection.pretrained import FOLDER
from detres.detection.weights_file import LEARNT
from tests.cli.conftest import read_json
from tests.cli.test_own_data import FEW

SIZE = 128
NAMES = ("disc", "square")


def write_xml(folder: Path, names: list[str], seed: int) -> None:
    """Pictures of an object each, an XML beside each, as labelImg writes them."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for row, name in enumerate(names):
        pixels = rng.integers(0, 80, (SIZE, SIZE, 3)).astype(np.uint8)
        x, y = rng.integers(10, 60, 2)
        cv2.rectangle(pixels, (int(x), int(y)), (int(x) + 50, int(y) + 50), (255, 255, 255), -1)
        cv2.imwrite(str(folder / f"{name}.jpg"), pixels)
        box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 50}</xmax><ymax>{y + 50}</ymax>"
        (folder / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename>"
            f"<size><width>{SIZE}</width><height>{SIZE}</height></size>"
            f"<object><name>{NAMES[row % 2]}</name><bndbox>{box}</bndbox></object></annotation>"
        )


def names(letter: str, number: int) -> list[str]:
    """Names that no rule takes for frames of one video."""
    return [f"{chr(ord(letter) + row)}{letter}x" for row in range(number)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 10 pictures in mine/, and a run on them in run/, which held 2 out."""
    root = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(FOLDER, raising=False)
        patch.setattr(torch.hub, "_hub_dir", str(root / "hub"))
        write_xml(root / "mine", names("a", 10), seed=0)
        flags = ["--data", str(root / "mine"), "--out", str(root / "run"), "--device", "cpu"]
        assert train_det.main([*flags, "--set", *FEW]) == 0
    return root


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of both, the data moved, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "mine", tmp_path / "moved")
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path


def looked_at(detector: detres.Detector, data: Path | None = None) -> list[str]:
    """The names of the images that an evaluation looks at."""
    return sorted(Path(file).name for file in detector.evaluate(data).truth.image_files)


def held_out(folder: Path) -> list[str]:
    return sorted(read_json(folder / "run" / "split.json")["val"])


def evaluated(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What `eval` says of the run's weights."""
    assert eval_command.main(["--weights", "run", "--device", "cpu", *flags]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("state", ["best.safetensors", "last.pt"])
def test_moved_data_are_judged_on_what_was_held_out(folder: Path, state: str) -> None:
    detector = detres.load(folder / "run" / state)
    assert looked_at(detector) == looked_at(detector, folder / "moved") == held_out(folder)
    numbers = read_json(folder / "run" / "metrics.json")
    found = detector.evaluate(folder / "moved").metrics
    assert found == {name: numbers[name] for name in found}


def test_renamed_data_are_judged_on_what_was_held_out(folder: Path) -> None:
    for number, picture in enumerate(sorted((folder / "moved").glob("*.jpg"))):
        kept = "held" if picture.name in held_out(folder) else "seen"
        picture.with_suffix(".xml").rename(picture.with_name(f"{kept}{number}z.xml"))
        picture.rename(picture.with_name(f"{kept}{number}z.jpg"))
    found = looked_at(detres.load(folder / "run"), folder / "moved")
    assert len(found) == len(held_out(folder))
    assert all(name.startswith("held") for name in found)


def test_what_was_added_is_judged_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_xml(folder / "moved", names("k", 6), seed=1)
    added = [f"{name}.jpg" for name in names("k", 6)]
    expected = sorted([*held_out(folder), *added])
    assert looked_at(detres.load(folder / "run"), folder / "moved") == expected
    said = evaluated(capsys, "--data", "moved")
    assert f"note: {len(expected)} of 16 images were not trained on, and are evaluated on" in said


def test_other_data_are_judged_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where their files have the names of those that were trained on."""
    write_xml(folder / "others", names("a", 10), seed=2)
    assert len(looked_at(detres.load(folder / "run"), folder / "others")) == 10
    said = evaluated(capsys, "--data", "others")
    assert "10 images (0 without objects)" in said
    assert "note: none of these 10 images was trained on: all are evaluated on" in said
    assert "drawn" not in said


def test_other_data_may_be_in_another_format(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YOLO, without a split; and one picture of it was learned from."""
    write_xml(folder / "yolo", names("c", 4), seed=3)
    seen = next(p for p in (folder / "moved").glob("*.jpg") if p.name not in held_out(folder))
    shutil.copy(seen, folder / "yolo" / "again.jpg")
    for picture in (folder / "yolo").glob("*.jpg"):
        picture.with_suffix(".xml").unlink(missing_ok=True)
        picture.with_suffix(".txt").write_text("0 0.5 0.5 0.4 0.4\n1 0.3 0.3 0.2 0.2\n")
    (folder / "yolo" / "data.yaml").write_text("train: .\nnames: [disc, square]\n")
    assert looked_at(detres.load(folder / "run"), folder / "yolo") == [
        f"{name}.jpg" for name in names("c", 4)
    ]
    said = evaluated(capsys, "--data", "yolo")
    assert "data " + str(folder / "yolo") + ": YOLO" in said
    assert "4 of 5 images were not trained on" in said


def test_nothing_but_what_was_learned_from_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in held_out(folder):
        (folder / "moved" / name).unlink()
        (folder / "moved" / name).with_suffix(".xml").unlink()
    number = 10 - len(held_out(folder))
    message = f"all {number} images were trained on, so none is left to evaluate on"
    with pytest.raises(NoSplitError, match=message):
        detres.load(folder / "run").evaluate(folder / "moved")
    assert eval_command.main(["--weights", "run", "--data", "moved"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_a_draw_that_the_user_asks_for_is_made_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = evaluated(capsys, "--data", "moved", "--set", "data.val_share=0.5")
    assert "5 of 10 images are val, drawn with seed 0" in said
    assert "run/best.safetensors was trained on " in said
    assert " of these 5 images: its numbers are better than on unseen images" in said


def test_the_entries_of_another_split_are_looked_at_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others with a val of their own, in which one picture was learned from."""
    for split, letter in (("train", "c"), ("val", "m")):
        write_xml(folder / split, names(letter, 3), seed=ord(letter))
    seen = next(p for p in (folder / "moved").glob("*.jpg") if p.name not in held_out(folder))
    for suffix in (".jpg", ".xml"):
        shutil.copy(seen.with_suffix(suffix), folder / "val")
    (folder / "theirs").mkdir()
    for split in ("train", "val"):
        (folder / split).rename(folder / "theirs" / split)
    said = evaluated(capsys, "--data", "theirs", "--set", "data.train=[train]", "data.val=[val]")
    assert "4 images (0 without objects)" in said
    assert "run/best.safetensors was trained on 1 of these 4 images" in said


def test_weights_of_an_earlier_version_draw_as_configured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = folder / "run" / "best.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    earlier = {key: text for key, text in metadata.items() if key not in (LEARNT, DIGEST)}
    earlier["format"] = "detres-detector-2"
    save_file(tensors, weights, earlier)
    write_xml(folder / "others", names("a", 10), seed=2)
    assert "2 of 10 images are val, drawn with seed 0" in evaluated(capsys, "--data", "others")


def test_a_resumed_run_remembers_too(folder: Path, trained: Path) -> None:
    flags = ["--resume", "run", "--device", "cpu", "--set", "train.steps=4"]
    assert train_det.main(flags) == 0
    detector = detres.load(folder / "run")
    assert detector.learnt == detres.load(trained / "run").learnt
    assert looked_at(detector, folder / "moved") == held_out(folder)
