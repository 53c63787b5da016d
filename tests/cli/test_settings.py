"""`settings`: what a key takes, its default and its meaning; and docs/settings.md made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from detres.cli.settings import main
from detres.commands.settings import as_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_a_part_of_a_key_shows_all_that_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train.lr"]) == 0
    assert capsys.readouterr().out == (
        "train.lr default 0.001   (number > 0)\n"
        "    for `reference_batch` images\n"
        "train.lr_scaling default linear   (linear | none)\n"
        "    whether lr is multiplied by the images of a step / reference_batch\n"
    )
    assert main(["data.format", "eval.views", "--of", "train-cls"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "data.format required   (shapes | folder | shards | cifar10)"
    assert shown[2] == "eval.views default center   (center | ten_crop | dense)"
    assert main([]) == 0
    every = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert {"name", "model.roi.context", "eval.refine.voting_iou"} <= set(every)
    assert max(map(len, every)) < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lrr"], "error: no setting of train-det has 'lrr' in its name; did you mean train.lr?\n"),
        (["eval.views"], "has 'eval.views' in its name; train-cls has: --of train-cls\n"),
        (["device"], "has 'device' in its name; --device is a flag of train-det, see its --help"),
        (["init-from"], "; --init-from is a flag of train-det, see its --help"),
        (["train", "zzzzz"], "error: no setting of train-det has 'zzzzz' in its name\n"),
        (["train.lr", "--markdown"], "--markdown writes all settings: leave out KEY"),
    ],
)
def test_a_key_that_is_not_there(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def test_the_page_of_settings_is_made_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--markdown"]) == 0
    text = capsys.readouterr().out
    assert text == as_markdown()
    assert text == PAGE.read_text(encoding="utf-8")


def test_the_page_has_a_row_for_every_setting_and_no_cell_breaks_a_table() -> None:
    rows = [line for line in as_markdown().splitlines() if line.startswith("| `")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}
    keys = [line.split("`")[1] for line in rows]
    assert keys.count("train.lr") == 3  # localisation's default is another
    assert keys.count("model.rpn.nms_thresh") == 1  # as detection's
    scaling = "| `train.lr_scaling` | `linear` | linear \\| none | whether lr is multiplied"
    assert any(row.startswith(scaling) for row in rows)
