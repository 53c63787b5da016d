"""`convert-data`: whatever is read, written as COCO."""

from __future__ import annotations

from pathlib import Path

import pytest

from detres.cli.convert_data import main
from detres.detection.data.digest import training_digest
from detres.detection.data.read import read_split
from detres.detection.data.recognise import recognise
from tests.detection.data.exports import write_coco, write_labelme, write_plain_xml
from tests.detection.data.test_exports import few

__all__ = ["few"]


def test_a_folder_becomes_coco(
    few: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_labelme(few, tmp_path / "mine")
    assert main([str(tmp_path / "mine"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"data {tmp_path / 'mine'}: LabelMe JSON; told by train/")
    assert "\nthe same by hand: --set data.format=labelme data.root=" in said
    assert "\ntrain " in said
    assert "\nval   " in said
    assert said.endswith(f"copying 12 images\nwritten as COCO JSON: {tmp_path / 'out'}\n")
    digests = {
        training_digest(read_split(recognise(tmp_path / name).data, "train"))
        for name in ("mine", "out")
    }
    assert len(digests) == 1


def test_settings_say_how_else_to_read(few: dict, tmp_path: Path) -> None:
    whole = {"all": [*few["train"], *few["val"]]}
    write_plain_xml(whole, tmp_path / "mine")
    write_coco(whole, tmp_path / "mine")
    arguments = [str(tmp_path / "mine"), "--out", str(tmp_path / "out"), "--link"]
    assert main([*arguments, "--set", "data.format=xml", "data.val_share=0.5"]) == 0
    assert len(read_split(recognise(tmp_path / "out").data, "val")) == 6


def test_a_link_does_not_lead_into_the_data(few: dict, tmp_path: Path, capsys) -> None:
    write_plain_xml({"all": [*few["train"], *few["val"]]}, tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert main([str(tmp_path / "link"), "--out", str(tmp_path / "mine" / "coco")]) == 2
    assert "lies inside of the data" in capsys.readouterr().err
    assert not (tmp_path / "mine" / "coco").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{mine}", "--out", "{out}"], "error: {mine} has annotations in 2 formats: images with"),
        (["{nowhere}", "--out", "{out}"], "error: no data at {nowhere}"),
        (
            ["{mine}", "--out", "{mine}/out", "--set", "data.format=xml"],
            "lies inside of the data; give a folder beside them",
        ),
        (
            ["{mine}", "--out", "{taken}", "--set", "data.format=xml"],
            "already holds files and is left as it is: give another folder with --out",
        ),
        (["{mine}", "--out", "{out}", "--set", "train.lr=1"], "error: --set train.lr=1: only data"),
        (
            ["{mine}", "--out", "{out}", "--set", "data.format=xml", "data.valshare=1"],
            "unknown key 'valshare'; did you mean 'val_share'?",
        ),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_written(
    few: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {name: str(tmp_path / name) for name in ("mine", "out", "nowhere", "taken")}
    whole = {"all": [*few["train"], *few["val"]]}
    write_plain_xml(whole, tmp_path / "mine")
    write_coco(whole, tmp_path / "mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert main([argument.format(**places) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert message.format(**places) in shown
    assert len(shown.splitlines()) <= 3
    assert not (tmp_path / "out").exists()
