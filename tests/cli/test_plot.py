from __future__ import annotations

import csv
from pathlib import Path

import cv2
import pytest

from detres.cli import plot, train_cls
from tests.cli.conftest import FinishedRun, records
from tests.cli.test_train_cls import SMALL, write_cifar


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of six steps, `residual` and `plain`."""
    root = tmp_path_factory.mktemp("plot")
    write_cifar(root / "data")
    for name, config in (("residual", "resnet20"), ("plain", "plain20")):
        flags = [
            "--cfg",
            f"configs/cifar10_{config}.yaml",
            "--data",
            str(root / "data"),
            "--out",
            str(root / name),
            "--device",
            "cpu",
        ]
        assert train_cls.main([*flags, "--set", *SMALL, "train.eval_every=3"]) == 0
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_curves_are_the_records_of_the_runs(runs: Path, tmp_path: Path) -> None:
    assert (
        plot.main(
            [
                "curves",
                str(runs / "residual"),
                str(runs / "plain"),
                "--out",
                str(tmp_path / "new" / "figures"),
            ]
        )
        == 0
    )
    rows = rows_of(tmp_path / "new" / "figures" / "curves.csv")
    for name in ("residual", "plain"):
        for kind, label in (("train", "training"), ("eval", "test")):
            found = [
                (int(row["step"]), float(row["top1_error"]))
                for row in rows
                if (row["run"], row["set"]) == (name, label)
            ]
            assert found == [
                (record["step"], record["top1_error"]) for record in records(runs / name, kind)
            ]
    assert cv2.imread(str(tmp_path / "new" / "figures" / "curves.png")).std() > 1


def test_a_picture_cut_above_has_the_same_table(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, flags in (("whole", []), ("cut", ["--max-error", "20"])):
        assert plot.main(["curves", str(runs / "plain"), "--out", str(tmp_path / out), *flags]) == 0
    whole, cut = ((tmp_path / out / "curves.csv").read_text() for out in ("whole", "cut"))
    assert whole == cut
    assert (tmp_path / "whole" / "curves.png").read_bytes() != (
        tmp_path / "cut" / "curves.png"
    ).read_bytes()
    for given, message in (
        (["curves", "run", "--max-error", "0"], "--max-error is a percentage above 0, got 0"),
        (["curves", "run", "--max-error", "nan"], "got nan"),
        (["responses", "weights", "--max-error", "20"], "--max-error goes with curves"),
    ):
        with pytest.raises(SystemExit) as stopped:
            plot.main([*given, "--out", str(tmp_path)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_responses_have_a_row_for_every_3x3_layer(runs: Path, tmp_path: Path) -> None:
    weights = [str(runs / name / "weights.safetensors") for name in ("residual", "plain")]
    assert plot.main(["responses", *weights, "--out", str(tmp_path), "--device", "cpu"]) == 0
    rows = rows_of(tmp_path / "responses.csv")
    for name in ("residual", "plain"):
        own = [row for row in rows if row["network"] == name]
        assert [int(row["layer"]) for row in own] == list(range(1, 20))  # conv1 and 18 in blocks
        assert [own[0]["norm"], own[1]["norm"], own[-1]["norm"]] == [
            "bn1",
            "layer1.0.bn1",
            "layer3.2.bn2",
        ]
        assert all(float(row["std"]) > 0 for row in own)
    assert cv2.imread(str(tmp_path / "responses.png")).std() > 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.jsonl is missing: "),
        ("", "has no train record with a loss"),
        (
            '{"step": 1, "kind": "train", "top1_error": 0.5}\n',
            "has no eval record with a top-1 error",
        ),
        ('{"step": 1, "kind": "train", "top1_error": 0.5}\n{"ste', "line 2 is no record of a run"),
        ('{"step": 1, "kind": "train", "top1_error": "x"}\n', "line 1 is no record of a run"),
        ('{"step": [1], "kind": "train", "top1_error": 0.5}\n', "line 1 is no record of a run"),
        ('{"step": 1, "kind": ["train"]}\n', "line 1 is no record of a run"),
        ("[" * 100_000, "line 1 is no record of a run"),
    ],
)
def test_a_folder_that_is_no_run(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert plot.main(["curves", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_of_detectors_have_losses_rate_and_numbers(
    finished: FinishedRun, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    assert plot.main(["curves", str(finished.folder), "--out", str(out)]) == 0
    assert f"{out}/curves.png, {out}/curves.csv" in capsys.readouterr().out
    rows = rows_of(out / "curves.csv")
    for kind in ("train", "eval"):
        wanted = records(finished.folder, kind)
        found = [row for row in rows if row["set"] == kind]
        assert [int(row["step"]) for row in found] == [record["step"] for record in wanted]
        for name in ("loss", "loss_rpn_cls", "lr") if kind == "train" else ("AP", "AP50"):
            values = [float(row[name]) for row in found]
            assert values == pytest.approx([record[name] for record in wanted])
    assert cv2.imread(str(out / "curves.png")).std() > 1
    assert (out / "curves.csv").read_text() == (finished.folder / "curves.csv").read_text()
    for flags, message in (
        ([str(runs / "plain")], "draw runs of the two kinds each with their own --out"),
        (["--max-error", "20"], "--max-error goes with runs of train-cls"),
    ):
        both = ["curves", str(finished.folder), *flags, "--out", str(tmp_path / "none")]
        assert plot.main(both) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_an_out_that_is_a_file_and_weights_that_are_none(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert plot.main(["curves", str(runs / "plain"), "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
    assert plot.main(["responses", "nowhere.safetensors", "--out", str(tmp_path / "out")]) == 2
    assert "no run folder or weights file at nowhere.safetensors" in capsys.readouterr().err
