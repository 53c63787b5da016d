from __future__ import annotations

from statistics import mean

import pytest

from detres.detection.data.voc import VOC_CLASSES
from detres.reproduction.settings import config_of, digest_of
from detres.reproduction.tables import CELLS, TABLE_12, TITLES, Cell, Training
from tests.reproduction.folders import CONFIGS

ROOT = CONFIGS.parent
TRAININGS = list(dict.fromkeys(training for cell in CELLS for training in cell.in_order()))


def name_of(cell: Cell) -> str:
    return f"{cell.table}-{cell.row}"


def cell_of(table: int, row: str):
    (found,) = [cell for cell in CELLS if cell.table == table and cell.row.startswith(row)]
    return found


def test_every_table_of_the_paper_with_numbers_of_ours_is_covered_in_order():
    assert list(TITLES) == list(range(2, 15))
    assert [cell.table for cell in CELLS] == sorted(cell.table for cell in CELLS)
    assert {cell.table for cell in CELLS} == set(TITLES)


@pytest.mark.parametrize(
    ("table", "row", "paper"),
    [
        (2, "plain-34", {"top1_error": 28.54}),
        (3, "ResNet-34 C", {"top1_error": 24.19, "top5_error": 7.40}),
        (4, "ResNet-152", {"top1_error": 19.38, "top5_error": 4.49}),
        (5, "six ResNets", {"top5_error": 3.57}),
        (6, "ResNet-1202", {"top1_error": 7.93}),
        (7, "ResNet-101, 07++12", {"mAP": 73.8}),
        (8, "VGG-16, in 4 steps", {"AP50": 41.5, "AP": 21.2}),
        (9, "ensemble", {"AP50": 59.0, "AP": 37.4}),
        (9, "+ several scales, train ->", {"AP50": 53.8, "AP": 32.5}),
        (12, "ensemble of 3, test", {"mAP": 62.1}),
        (13, "with R-CNN, dense", {"top5_loc_error": 10.6}),
        (14, "ensemble, test", {"top5_loc_error": 9.0}),
    ],
)
def test_the_papers_numbers(table, row, paper):
    assert cell_of(table, row).paper == paper


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.table in (10, 11)], ids=name_of)
def test_the_mean_of_the_classes_is_the_papers_map(cell):
    of_classes = {name: value for name, value in cell.paper.items() if name != "mAP"}
    assert tuple(of_classes) == VOC_CLASSES
    assert mean(of_classes.values()) == pytest.approx(cell.paper["mAP"], abs=0.051)


@pytest.mark.parametrize(
    "cell",
    [
        cell
        for cell in CELLS
        if cell.runs and cell.table not in (4, 5, 10, 11) and "VGG-16" not in cell.row
    ],
    ids=name_of,
)
def test_the_head_of_its_configuration_says_the_same_numbers(cell):
    """Written by other hands: a number mistyped in one of the two places is found."""
    config = next(run.config for run in cell.runs)
    head = (CONFIGS / f"{config}.yaml").read_text().partition("\nname:")[0].replace("\n# ", " ")
    known = [value for value in cell.paper.values() if value is not None]
    if cell.row == "+ box refinement, train -> val":
        head = (CONFIGS / "coco_r101_context.yaml").read_text()
    if cell.table == 12 and cell.row.startswith("ensemble of 3"):
        known = []  # the head has the single network's
    for value in known:
        assert f"{value:.2f}" in head or f"{value:.1f}" in head


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.name)
def test_every_configuration_is_there_and_loads_under_its_name(training: Training):
    assert config_of(training, CONFIGS).name == training.name
    assert training.cost.seconds > 0


def test_no_two_trainings_share_a_folder_or_but_for_their_seed_a_configuration():
    assert len({training.name for training in TRAININGS}) == len(TRAININGS)
    seen = {}
    for training in TRAININGS:
        key = digest_of(training, CONFIGS), config_of(training, CONFIGS).seed
        assert seen.setdefault(key, training.name) == training.name


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.evaluation], ids=name_of)
def test_every_evaluation_is_one_the_configuration_takes(cell):
    config = config_of(cell.runs[0], CONFIGS, cell.evaluation.settings)
    if cell.evaluation.server:
        assert config.data.test
    assert all(each.partition("=")[0].startswith("eval.") for each in cell.evaluation.settings)


def test_no_two_evaluations_of_a_run_write_the_same_file():
    files = {}
    for cell in CELLS:
        if cell.evaluation is not None:
            how = (cell.runs, cell.evaluation)
            assert files.setdefault((cell.runs[0].name, cell.evaluation.label), how) == how


def test_every_difference_is_a_row_of_the_deviations():
    text = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")}
    assert {row for cell in CELLS for row in cell.deviations} <= rows
    assert all(cell.deviations for cell in CELLS if cell.runs)


def test_every_row_has_its_command_and_those_of_a_test_set_go_to_a_server():
    assert all(cell.runs for cell in CELLS)
    tests = [cell for cell in CELLS if cell.row.endswith((", test", "test-dev", "VOC 12 test"))]
    assert {cell.table for cell in tests} == {7, 9, 12, 14}
    assert all(cell.evaluation.server for cell in tests)


def test_what_only_our_evaluation_does_is_no_difference_of_a_servers_numbers():
    known = {cell.row: "ImageNet DET: blacklist" in cell.deviations for cell in TABLE_12}
    assert list(known.values()) == [True, False, True, False]


def test_seeds_and_changes_of_a_training():
    first, second = Training("train-cls", "c", None, settings=("a=1", "name=n")).and_seeds(4)
    assert (first.name, second.name) == ("n", "n_seed4")
    assert second.settings == ("a=1", "seed=4", "name=n_seed4")
    assert first.changes == second.changes == ("a=1",)


def test_what_is_needed_comes_first():
    base, other = Training("train-det", "base", None), Training("train-det", "other", None)
    last = Training("train-det", "last", None, needs=base, init_from=other)
    assert [each.name for each in last.in_order()] == ["base", "other", "last"]
