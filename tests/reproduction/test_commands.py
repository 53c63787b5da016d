from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from detres.reproduction.commands import Place, all_of, free_folder, next_of, shown
from detres.reproduction.found import Runs
from detres.reproduction.tables import CELLS, Cell, Evaluation, Training
from tests.reproduction.folders import (
    CELL,
    CONFIGS,
    DETECTOR,
    RESNET,
    VOC,
    write_evaluation,
    write_run,
)

DENSE = replace(CELL, evaluation=Evaluation("dense", ("eval.views=dense", "eval.scales=[32]")))


def lines(cell: Cell, place: Place | None = None) -> list[str]:
    return [shown(command) for command in all_of(cell, place or Place())]


def test_the_commands_of_a_cell_by_hand():
    loc = Training("train-loc", "loc", "ILSVRC")
    rcnn = replace(loc, needs=loc).changed("rcnn", "model.kind=rcnn", "p={needs}")
    how = Evaluation("predicted", ("eval.views=dense",), classifiers=(RESNET,))
    cell = Cell(13, "x", {"top5_loc_error": 1.0}, (rcnn,), how)
    assert lines(cell) == [
        "python tools/train_loc.py --cfg configs/loc.yaml --data ILSVRC",
        "python tools/train_loc.py --cfg configs/loc.yaml --data ILSVRC --set model.kind=rcnn "
        "p=runs/loc/best.safetensors name=rcnn",
        "python tools/train_cls.py --cfg configs/cifar10_resnet20.yaml --data CIFAR",
        "python tools/eval.py --weights runs/rcnn/best.safetensors --classifier "
        "runs/cifar10_resnet20/weights.safetensors --set eval.views=dense --json "
        "runs/rcnn/predicted.json",
    ]


def test_the_commands_of_a_detector_that_starts_from_another_and_is_sent_to_a_server():
    started = replace(DETECTOR, config="other", init_from=DETECTOR)
    cell = Cell(11, "x", {"mAP": 1.0}, (started,), Evaluation("server", server=True))
    assert lines(cell) == [
        "python tools/train_det.py --cfg configs/voc0712_r101.yaml --data VOCdevkit",
        "python tools/train_det.py --cfg configs/other.yaml --data VOCdevkit --init-from "
        "runs/voc0712_r101/best.safetensors",
        "python tools/eval.py --weights runs/other/best.safetensors --split test --submission "
        "runs/other/server",
    ]


def test_data_and_runs_in_other_places(tmp_path):
    place = Place(tmp_path, tmp_path / "my runs", "cpu")
    train, evaluation = lines(DENSE, place)
    assert f"--data {tmp_path} --device cpu --out '{tmp_path}/my runs/cifar10_resnet20'" in train
    assert f"--data {tmp_path} --device cpu" in evaluation
    (tmp_path / "CIFAR").mkdir()
    assert f"--data {tmp_path}/CIFAR " in lines(DENSE, place)[0]


def test_the_embedded_shapes_need_no_folder():
    cell = replace(CELL, runs=(replace(RESNET, data=None),))
    assert lines(cell) == ["python tools/train_cls.py --cfg configs/cifar10_resnet20.yaml"]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.table}-{cell.row}")
def test_every_cell_that_can_be_measured_ends_with_what_gives_its_numbers(cell):
    given = all_of(cell, Place())
    assert bool(given) == bool(cell.runs)
    assert len(set(given)) == len(given)
    if cell.evaluation is not None:
        assert given[-1][0] == "eval"
        assert {"--json", "--submission"} & set(given[-1])


def test_what_is_left_is_found_step_by_step(tmp_path):
    def left() -> str | None:
        command = next_of(DENSE, Place(runs=tmp_path), Runs(tmp_path, CONFIGS))
        return None if command is None else shown(command)

    new = "python tools/train_cls.py --cfg configs/cifar10_resnet20.yaml --data CIFAR --out "
    assert left() == f"{new}{tmp_path}/cifar10_resnet20"
    other = write_run(tmp_path, RESNET, "train.lr=1")
    assert left() == f"{new}{tmp_path}/cifar10_resnet20-2"
    halfway = write_run(tmp_path, RESNET, name="cifar10_resnet20-2", steps_left=9)
    assert left() == f"python tools/train_cls.py --resume {halfway}"
    (halfway / "last.pt").unlink()
    assert left() == f"{new}{tmp_path}/cifar10_resnet20-2"
    done = write_run(tmp_path, RESNET, name="cifar10_resnet20-3")
    assert left() == (
        f"python tools/eval.py --weights {done}/weights.safetensors --set eval.views=dense "
        f"'eval.scales=[32]' --json {done}/dense.json"
    )
    write_evaluation(done, DENSE, [done / "weights.safetensors"], {"top1_error": 0.1})
    assert left() is None
    assert other.is_dir()


def test_a_run_of_another_name_is_not_resumed(tmp_path):
    write_run(tmp_path, RESNET, "name=mine", steps_left=9)
    command = next_of(CELL, Place(runs=tmp_path), Runs(tmp_path, CONFIGS))
    assert "--resume" not in command


def test_a_submission_that_is_written_is_not_written_again(tmp_path):
    cell = replace(VOC, evaluation=Evaluation("server", server=True))
    folder = write_run(tmp_path, DETECTOR)
    assert "--submission" in next_of(cell, Place(runs=tmp_path), Runs(tmp_path, CONFIGS))
    (folder / "server").mkdir()
    assert next_of(cell, Place(runs=tmp_path), Runs(tmp_path, CONFIGS)) is None


def test_each_seed_is_a_run_of_its_own(tmp_path):
    cell = replace(CELL, runs=RESNET.and_seeds(4))
    write_run(tmp_path, RESNET, numbers={"top1_error": 0.1})
    command = next_of(cell, Place(runs=tmp_path), Runs(tmp_path, CONFIGS))
    assert command[-1] == str(tmp_path / "cifar10_resnet20_seed4")
    assert "seed=4" in command


def test_a_free_folder_holds_nothing_that_was_saved(tmp_path):
    assert free_folder(tmp_path / "a") == tmp_path / "a"
    for name, file in (("a", "phase.json"), ("a-2", "metrics.json"), ("a-3", "config.yaml")):
        (tmp_path / name).mkdir()
        Path(tmp_path, name, file).touch()
    assert free_folder(tmp_path / "a") == tmp_path / "a-3"
