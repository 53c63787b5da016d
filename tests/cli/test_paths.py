"""A path that is not there is said at once, with what was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from detres.cli import (
    check_data,
    compare_torchvision,
    convert,
    convert_data,
    eval,
    plot,
    predict,
    train_cls,
    train_det,
    train_loc,
)
from detres.cli.flags import CONFIGS


@pytest.fixture
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What a command says that ends at once, in a folder with data and a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my cells").mkdir()
    (tmp_path / "runs" / "my-cells-2").mkdir(parents=True)
    (tmp_path / "a.jpg").touch()

    def run(main: Callable, *given: str) -> str:
        assert main([*given]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
        return shown.err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.mark.parametrize(
    ("main", "given", "what", "meant"),
    [
        (train_det.main, ["--data", "my_cells"], "data at my_cells", "my cells"),
        (train_det.main, ["my_cells"], "data at my_cells", "my cells"),
        (train_det.main, ["zzz"], "data at zzz", None),
        (
            train_det.main,
            ["--cfg", "coco_r5"],
            "config file coco_r5",
            f"{CONFIGS / 'coco_r50.yaml'}",
        ),
        (train_cls.main, ["--cfg", "gone/a.yaml"], "config file gone/a.yaml", None),
        (train_loc.main, ["--resume", "runs/other"], "run folder runs/other", None),
        (
            train_det.main,
            ["--resume", "runs/my cells-2"],
            "run folder runs/my cells-2",
            "runs/my-cells-2",
        ),
        (train_det.main, ["--init-from", "b.safetensors"], "weights file at b.safetensors", None),
        (eval.main, ["--weights", "my celld"], "weights file at my celld", "my cells"),
        (eval.main, ["--weights", "my-cells-3"], "weights file at my-cells-3", "runs/my-cells-2"),
        (
            eval.main,
            ["--detections", "d", "--annotations", "a.jpg"],
            "detections file or folder d",
            None,
        ),
        (
            eval.main,
            ["--detections", "a.jpg", "--annotations", "b"],
            "annotation file or folder b",
            None,
        ),
        (eval.main, ["--weights", "a.jpg", "--classifier", "c"], "weights file at c", None),
        (eval.main, ["--proposals", "p", "--annotations", "a.jpg"], "proposals file p", None),
        (
            predict.main,
            ["a.jpg", "b.jpg", "--weights", "my-cells"],
            "image or folder b.jpg",
            "a.jpg",
        ),
        (predict.main, ["a.jpg", "--weights", "gone.pt"], "weights file at gone.pt", None),
        (check_data.main, ["my_cells"], "data at my_cells", "my cells"),
        (convert_data.main, ["zzz", "--out", "x"], "data at zzz", None),
        (
            plot.main,
            ["curves", "runs/zzz", "--out", "x"],
            "run folder or weights file at runs/zzz",
            None,
        ),
        (compare_torchvision.main, ["--cfg", "zzz"], "config file zzz", None),
    ],
)
def test_what_is_not_there_is_named(main, given, what, meant, said) -> None:
    hint = f"; did you mean {meant}?" if meant else ""
    assert said(main, *given) == f"no {what}{hint}"


@pytest.mark.parametrize(
    ("main", "given"),
    [
        (eval.main, ["--weights", "{}"]),
        (predict.main, ["a.jpg", "--weights", "{}"]),
        (train_det.main, ["--data", "my cells", "--init-from", "{}"]),
        (convert.main, ["{}", "--out", "x.safetensors"]),
    ],
)
def test_a_published_name_that_is_none_says_the_nearest(main, given, said, monkeypatch) -> None:
    def run(name: str) -> str:
        return said(main, *(each.format(name) for each in given))

    line = run("detectron2/faster_rcnn_R_101_C4_1x")
    assert line.startswith("no published detector is called detectron2/faster_rcnn_R_101_C4_1x; ")
    assert "did you mean detectron2/faster_rcnn_R_101_C4_3x or " in line
    short = "faster_rcnn_R_101_C4_3x"
    assert run(short) == f"no weights file at {short}; did you mean detectron2/{short}?"
    Path("detectron2").mkdir()  # a checkout of it is no hindrance
    called = []
    monkeypatch.setattr(f"{main.__module__}.carry_out", lambda *each: called.append(each) or 0)
    assert main([each.format(f"detectron2/{short}") for each in given]) == 0
    assert len(called) == 1


def test_a_link_to_nothing_says_where_it_goes(said, tmp_path: Path) -> None:
    (tmp_path / "cells").symlink_to("gone")
    wanted = "cells is a link to gone, which is not there"
    assert said(train_det.main, "--data", "cells").startswith(wanted)


@pytest.mark.parametrize(
    ("main", "given"),
    [
        (eval.main, ["--weights", "my-cells"]),  # the name of a run
        (eval.main, ["--weights", "torchvision/resnet99.v1"]),
        (train_det.main, ["--init-from", "my-cells-2", "--data", "my cells"]),
        (train_det.main, ["--data", "new", "--cfg", "shapes_r18"]),  # shapes are drawn into it
        (train_det.main, ["new", "--set", "data.format=shapes"]),
        (check_data.main, ["new", "--set", "data.format = shapes"]),
        (eval.main, ["--weights", "my-cells", "--proposals"]),
        (predict.main, ["my cells", "--weights", "my-cells"]),
        (train_det.main, ["--cfg", "coco_r50", "--data", "new"]),
    ],
)
@pytest.mark.usefixtures("said")
def test_what_may_be_there_is_left_to_the_work(main, given, monkeypatch) -> None:
    module = f"detres.cli.{main.__module__.rpartition('.')[2]}"
    called = []
    monkeypatch.setattr(f"{module}.carry_out", lambda *given: called.append(given) or 0)
    assert main(given) == 0
    assert len(called) == 1
