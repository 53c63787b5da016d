"""check-data end to end: what it says, writes, leaves alone and ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from detres.cli import check_data
from detres.commands.check_data import NUMBERS, PAGE
from tests.detection.data.planted import picture, write_split

BOX = (10.0, 10.0, 60.0, 60.0)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Of a data set with a box without area."""
    root = tmp_path / "data"
    files = {"a.png": picture(0), "b.png": picture(1)}
    write_split(root, "train", files, [("a.png", "cat", BOX), ("b.png", "dog", (30, 10, 30, 60))])
    write_split(root, "val", {"c.png": picture(2)}, [("c.png", "cat", BOX)])
    config = tmp_path / "own.yaml"
    config.write_text(
        "name: own\n"
        "data: {format: coco, train: [train.json], train_images: [train], val: [val.json],"
        " val_images: [val], workers: 0}\n"
        "model:\n"
        "  backbone: {name: resnet18, norm: batch, freeze_at: 0}\n"
        "  anchors: {sizes: [80, 160, 320]}\n"
        "train: {steps: 1}\n"
    )
    return ["--cfg", str(config), "--data", str(root)]


def test_errors_are_said_drawn_and_counted(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "check"
    assert check_data.main([*flags, "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "found: 1 error, 0 warnings, 2 notes\nerror (1): boxes without area\n" in said
    assert "such as train train/b.png, annotation 101 (dog): box [30, 10, 30, 60]" in said
    assert said.rstrip().endswith(f"written: {out / PAGE}, {out / NUMBERS}")
    plain = json.loads((out / NUMBERS).read_text())
    assert plain["findings"][0]["kind"] == "without_area"
    assert "boxes without area" in (out / PAGE).read_text()

    again = check_data.main([*flags, "--out", str(out), "--set", "data.classes=[cat]"])
    assert again == 0  # what an earlier look wrote is written anew
    assert "boxes without area" not in (out / PAGE).read_text()


def test_a_clean_copy_has_no_errors(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    clean = tmp_path / "clean"
    assert check_data.main([*flags, "--fix", str(clean)]) == 0
    said = capsys.readouterr().out
    assert (
        f"in the copy of train, boxes without area left out: 1\nclean copy, as COCO: {clean}"
        in said
    )
    settings = [
        "data.train=[annotations/instances_train.json]",
        "data.train_images=[images/train]",
        "data.val=[annotations/instances_val.json]",
        "data.val_images=[images/val]",
    ]
    assert check_data.main([*flags[:3], str(clean), "--set", *settings]) == 0


def test_a_copy_does_not_go_into_the_folder_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "boxes.csv").write_text("file,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,1,9,9\n")
    clean = tmp_path / "clean"
    assert check_data.main([str(tmp_path / "boxes.csv"), "--fix", str(clean)]) == 2
    assert "lies in the data; give a folder beside them" in capsys.readouterr().err
    assert not clean.exists()


def test_folders_with_files_of_others_are_left(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    (taken / PAGE).write_text("mine too")
    for flag in ("--out", "--fix"):
        assert check_data.main([*flags, flag, str(taken)]) == 2
        error = capsys.readouterr().err
        assert f"{taken} already holds files and is left as it is" in error
        assert "give another folder with --out or --fix" in error
    assert (taken / PAGE).read_text() == "mine too"


def test_the_same_folder_for_both_is_refused(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for out, fix in (("a", "a"), ("a/b", "a"), ("a", "a/b")):
        folders = ["--out", str(tmp_path / out), "--fix", str(tmp_path / fix)]
        assert check_data.main([*flags, *folders]) == 2
        assert "--out and --fix" in capsys.readouterr().err
        assert not (tmp_path / "a").exists()


def test_a_copy_within_the_data_is_refused(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    clean = tmp_path / "data" / "clean"
    assert check_data.main([*flags, "--fix", str(clean)]) == 2
    assert f"--fix {clean} lies in the data" in capsys.readouterr().err
    assert not clean.exists()


def test_data_alone_are_recognised(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data.main(flags[2:]) == 1
    said = capsys.readouterr().out
    assert "COCO JSON" in said
    assert "error (1): boxes without area\n" in said


def test_annotations_that_cannot_be_read_are_errors_with_a_page(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "val.json").write_text("{")
    out, clean = tmp_path / "check", tmp_path / "clean"
    assert check_data.main([*flags, "--out", str(out), "--fix", str(clean)]) == 1
    said = capsys.readouterr().out
    assert "found: 1 error, 0 warnings, 0 notes\nerror (1): annotations that cannot be used" in said
    assert "val.json is not JSON" in said
    assert "val.json is not JSON" in (out / PAGE).read_text()
    (finding,) = json.loads((out / NUMBERS).read_text())["findings"]
    assert (finding["kind"], finding["count"]) == ("unusable", 1)
    assert not any(clean.iterdir())


def test_all_faulty_label_files_are_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "yolo", tmp_path / "check"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("cat\n")
    for row in range(14):
        Image.fromarray(picture(row)).save(root / "images" / f"{row:02d}x.png")
        text = "0 0.5 0.5 0.2 0.2\n" if row > 12 else f"0 1.{row + 1} 0.5 0.2 0.2\n7 0.5\n"
        (root / "labels" / f"{row:02d}x.txt").write_text(text)
    assert check_data.main([str(root), "--out", str(out)]) == 1
    said, shown = capsys.readouterr().out, (out / PAGE).read_text()
    assert "error (13): annotations that cannot be used" in said
    assert said.count("such as ") == 10
    (finding,) = json.loads((out / NUMBERS).read_text())["findings"]
    for row in range(13):
        assert f"{row:02d}x.txt:1" in shown
        assert any(f"{row:02d}x.txt:1" in each["where"] for each in finding["examples"])


def test_data_without_a_fault_are_shown(tmp_path: Path, flags: list[str]) -> None:
    """Some pictures of each split, each class among them, with their boxes and names."""
    out = tmp_path / "check"
    settings = ["--set", "data.classes=[cat]"]
    assert check_data.main([*flags, "--out", str(out), *settings]) == 0
    shown = (out / PAGE).read_text()
    assert "Some of the pictures" in shown
    assert "train train/a.png: 1 cat" in shown
    assert "val val/c.png: 1 cat" in shown
    assert shown.count("<img ") >= 3


def test_a_copy_of_boxes_that_mean_something_else_has_errors(tmp_path: Path) -> None:
    """Fractions of the image, which nothing but their author can put right."""
    root, clean = tmp_path / "data", tmp_path / "clean"
    for split, start in (("train", 0), ("val", 4)):
        files = {f"{split}{row}.png": picture(start + row) for row in range(4)}
        boxes = [(name, "cat", (0.1, 0.1, 0.5, 0.6)) for name in files]
        write_split(root, split, files, boxes)
    assert check_data.main([str(root), "--fix", str(clean)]) == 1
    assert (clean / "annotations").is_dir()


def test_a_test_set_that_is_not_there_is_left_out(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    test = ["data.test=[test.json]", "data.test_images=[test]"]
    assert check_data.main([*flags, "--set", *test]) == 1
    assert "test is not looked at: no annotation file" in capsys.readouterr().err
