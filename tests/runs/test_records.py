from __future__ import annotations

import math
from pathlib import Path

import pytest

from detres.runs.records import RecordsError, read_records, table_of

LINES = [
    '{"step": 10, "kind": "train", "loss": 2.5, "lr": 0.1}',
    '{"step": 20, "kind": "train", "loss": 1.5, "lr": 0.01, "loss_rpn_cls": 0.5}',
    '{"step": 20, "kind": "eval", "AP": 0.25, "APs": null}',
]


def written(folder: Path, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_values_come_back_in_their_order(tmp_path: Path) -> None:
    run = read_records(written(tmp_path / "my_run", *LINES))
    assert run.name == "my_run"
    assert run.series == {
        "train": {
            "loss": [(10, 2.5), (20, 1.5)],
            "lr": [(10, 0.1), (20, 0.01)],
            "loss_rpn_cls": [(20, 0.5)],
        },
        "eval": {"AP": [(20, 0.25)]},
    }
    assert run.of_kind("averaged") == {}
    assert table_of([run]) == [
        ("run", "set", "step", "loss", "lr", "loss_rpn_cls", "AP"),
        ("my_run", "train", 10, 2.5, 0.1, "", ""),
        ("my_run", "train", 20, 1.5, 0.01, 0.5, ""),
        ("my_run", "eval", 20, "", "", "", 0.25),
    ]


def test_a_run_that_has_not_begun_and_several(tmp_path: Path) -> None:
    empty = read_records(written(tmp_path / "new"))
    assert empty.series == {}
    assert table_of([empty]) == [("run", "set", "step")]
    other = read_records(written(tmp_path / "other", '{"step": 1, "kind": "eval", "mAP": NaN}'))
    assert other.series == {"eval": {}}
    assert not any(math.isnan(v) for row in table_of([other, empty])[1:] for v in row[3:])
    one = read_records(written(tmp_path / "one", LINES[0]))
    assert [row[0] for row in table_of([one, empty, one])[1:]] == ["one", "one"]


@pytest.mark.parametrize(
    "line",
    [
        '{"ste',
        "[]",
        '"text"',
        "1",
        '{"step": 1}',
        '{"kind": "train"}',
        '{"step": 1.5, "kind": "train"}',
        '{"step": 1, "kind": ["train"]}',
        '{"step": 1, "kind": "train", "loss": "x"}',
        '{"step": 1, "kind": "train", "loss": [1]}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(RecordsError, match=r"metrics\.jsonl, line 2 is no record of a run"):
        read_records(written(tmp_path, LINES[0], line))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"is missing: .* is no run folder"):
        read_records(tmp_path)
