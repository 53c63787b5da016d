from __future__ import annotations

from dataclasses import replace

import pytest

from detres.reproduction.commands import Place
from detres.reproduction.ledger import (
    BEGIN,
    END,
    Entry,
    NoSectionError,
    console,
    section,
    with_section,
    write_section,
)
from detres.reproduction.measured import Record, read_measured
from detres.reproduction.settings import digest_of
from detres.reproduction.tables import CELLS, Cell
from tests.reproduction.folders import CELL, CONFIGS, RESNET, VOC

DOCS = CONFIGS.parent / "docs"
DIGEST = digest_of(RESNET, CONFIGS)
FULL = replace(
    CELL,
    deviations=("batch norm", "momentum"),
    reruns={"a rerun": {"top1_error": 8.27}, "another": {"top1_error": 8.5}},
    note="a note",
)


def record(error: float = 0.0849, **changes) -> Record:
    fields = {
        "run": "r",
        "config": "cifar10_resnet20",
        "digest": DIGEST,
        "seed": 3,
        "steps": 64_000,
        "commit": "c0ffee",
        "machine": "an abacus",
        "results": {"metrics": {"top1_error": error}},
    }
    return Record(**{**fields, **changes})


def entry(*records: Record, cell: Cell = FULL) -> Entry:
    return Entry.of(cell, records, CONFIGS)


def test_a_cell_that_was_measured_by_hand():
    text = console(entry(record()), Place(), CONFIGS, ["runs/x: train.lr is 1, not 0.1"])
    assert (
        text
        == f"""\
Table 6: a net
  paper        top-1 8.75
  ours         top-1 8.49, in the band
               seed 3, 64,000 steps, an abacus, commit c0ffee, settings {DIGEST}
  band         top-1 8.27 to 8.75 (a rerun 8.27; another 8.50)
  differs      batch norm; momentum (docs/deviations.md)
  note         a note
  needs        CIFAR
  training     1.0 h of an abacus (an abacus: counted beads)
  run          python tools/train_cls.py --cfg configs/cifar10_resnet20.yaml --data CIFAR
  not counted  runs/x: train.lr is 1, not 0.1"""
    )


def test_a_table_as_markdown_by_hand():
    nothing = Cell(6, "a dream", {"top1_error": None}, note="no command: a dream")
    again = replace(FULL, row="again", note="", reruns={})
    text = section([entry(), entry(cell=nothing), entry(record(), cell=again)], CONFIGS)
    origin = f"seed 3, 64,000 steps, an abacus, commit c0ffee, settings {DIGEST}"
    assert text.splitlines() == [
        "### Table 6: CIFAR-10 test set",
        "",
        "| row | paper, % | ours, % | band, % | training takes |",
        "| --- | --- | --- | --- | --- |",
        "| a net (a note) | top-1 8.75 | not measured | top-1 8.27 to 8.75 (a rerun 8.27; another "
        "8.50) | 1.0 h of an abacus |",
        "| a dream (no command: a dream) | none | not measured |  |  |",
        f"| again | top-1 8.75 | **top-1 8.49** ({origin}) | no re-run is known | "
        "1.0 h of an abacus |",
        "",
        "```sh",
        "# a net",
        "python tools/train_cls.py --cfg configs/cifar10_resnet20.yaml --data CIFAR",
        "```",
        "",
        "Hours: an abacus: counted beads.",
        "",
        "Known differences ([deviations.md](deviations.md)): batch norm; momentum.",
    ]


@pytest.mark.parametrize(
    ("error", "said"), [(0.0827, "in"), (0.0875, "in"), (0.0826, "below"), (0.0876, "above")]
)
def test_the_band_spans_the_paper_and_the_reruns(error, said):
    assert entry(record(error)).ours() == f"top-1 {100 * error:.2f}, {said} the band"


def test_several_seeds_are_a_best_and_a_mean():
    found = entry(record(0.09), record(0.08, seed=4), record(0.07, seed=5))
    assert found.ours().startswith("top-1 7.00 (best of 3; mean 8.00 +- 1.00)")
    ap = replace(VOC, reruns={"r": {"mAP": 79.8}})
    records = [
        record(config="voc0712_r101", digest=None, seed=seed, results={"metrics": {"mAP": value}})
        for seed, value in ((3, 0.77), (4, 0.79))
    ]
    best = "mAP 79.0 (best of 2; mean 78.00 +- 1.41), in the band"
    assert entry(*records, cell=ap).ours() == best


def test_numbers_of_a_class_are_beside_the_mean():
    results = {"metrics": {"mAP": 0.7, "cat": 0.9}}
    found = entry(record(config="voc0712_r101", digest=None, results=results), cell=VOC)
    assert (found.paper(), found.ours()) == ("mAP 76.4, cat 90.0", "mAP 70.0, cat 90.0")


def test_a_record_without_a_digest_counts_by_its_words_and_says_what_is_not_known():
    found = entry(record(digest=None, commit=None))
    assert len(found.records) == 1
    assert found.origin().endswith("an abacus, commit not recorded, settings not recorded")
    assert entry(record(digest=None, settings=("train.lr=1",))).records == ()
    assert entry(record(digest=None, config="other")).records == ()


def test_a_record_of_settings_that_have_changed_since_does_not_count_and_is_named():
    found = entry(record(digest="0123456789ab"))
    assert (found.records, found.missing) == ((), 1)
    assert found.not_counted() == ["r, seed 3: its settings were 0123456789ab, other than today's"]
    assert "not measured; not counted: r, seed 3" in section([found], CONFIGS)


def test_numbers_of_another_evaluation_do_not_count():
    assert entry(record(results={"dense": {"top1_error": 0.07}})).records == ()


def test_what_is_missing():
    several = replace(FULL, runs=RESNET.and_seeds(4, 5))
    assert [entry(cell=cell).missing for cell in (FULL, several)] == [1, 3]
    assert entry(record(), record(seed=9), cell=several).missing == 1


# ---- the file ----


def test_the_committed_tables_are_those_of_the_committed_records():
    records = read_measured(DOCS / "measured.json")
    text = section([Entry.of(cell, records, CONFIGS) for cell in CELLS], CONFIGS)
    path = DOCS / "reproduction.md"
    assert with_section(path, text) == path.read_text(encoding="utf-8"), (
        "run python tools/reproduce.py"
    )


def test_every_committed_record_measures_a_cell():
    records = read_measured(DOCS / "measured.json")
    used = [each for cell in CELLS for each in Entry.of(cell, records, CONFIGS).records]
    assert {record.identity for record in used} == {record.identity for record in records}


def test_a_section_is_replaced_and_what_is_around_it_stays(tmp_path):
    path = tmp_path / "r.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert write_section(path, "new")
    assert path.read_text() == f"before\n{BEGIN}\n\nnew\n{END}\nafter\n"
    assert not write_section(path, "new")


@pytest.mark.parametrize(
    "text",
    ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n", f"x{END}\n"],
)
def test_a_file_without_a_place_for_the_tables_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "r.md"
    path.write_text(text)
    with pytest.raises(NoSectionError, match=r"r\.md has no place for the tables"):
        write_section(path, "new")
    assert path.read_text() == text
