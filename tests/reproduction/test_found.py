from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from detres.reproduction.found import Run, Runs, numbers_file
from detres.reproduction.settings import digest_of
from detres.reproduction.tables import Cell, Evaluation, Training
from tests.reproduction.folders import (
    CELL,
    CONFIGS,
    DETECTOR,
    LOCALISER,
    RESNET,
    VOC,
    write_evaluation,
    write_run,
)

DENSE = Evaluation("dense", ("eval.views=dense", "eval.scales=[32]"))
EVALUATED = replace(CELL, evaluation=DENSE)


def runs(root: Path) -> Runs:
    return Runs(root, CONFIGS)


def test_a_finished_run_is_a_record_with_all_that_is_known_of_it(tmp_path):
    settings = ("data.root=/far", "data.workers=0", "train.compile=true", "train.precision=bf16")
    write_run(tmp_path, RESNET, *settings, "seed=5", numbers={"top1_error": 0.0849, "loss": 1})
    (record,) = runs(tmp_path).records(CELL)
    assert record.model_dump() == {
        "run": "cifar10_resnet20",
        "config": "cifar10_resnet20",
        "settings": (),
        "digest": digest_of(RESNET, CONFIGS),
        "seed": 5,
        "steps": 64_000,
        "commit": "0123456789",
        "machine": "an abacus, 2 CPUs, torch 2.14, bf16",
        "results": {"metrics": {"top1_error": 0.0849}},
    }
    assert list(runs(tmp_path).not_counted(CELL)) == []


def test_a_run_counts_whatever_its_folder_and_its_name_are(tmp_path):
    write_run(tmp_path, RESNET, "name=mine", name="elsewhere", numbers={"top1_error": 0.1})
    (record,) = runs(tmp_path).records(CELL)
    assert record.run == "elsewhere"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ("train.steps=200", "train.milestones=[]"),
            "train.milestones is [], not [32000.0, 48000.0]; train.steps is 200, not 64000",
        ),
        (("train.lr=0.05",), "train.lr is 0.05, not 0.1"),
        (("train.precision=fp32", "data.flip=0.25"), "data.flip is 0.25, not 0.5"),
        (("model.network.shortcut=B",), "model.network.shortcut is B, not A"),
        (("data.hold_out=5000",), "data.hold_out is 5000, not 0"),
        (("eval.views=dense", "eval.scales=[32]"), "eval.scales is [32], not [224, 256, "),
    ],
)
def test_a_run_that_differs_does_not_count_and_is_named(tmp_path, settings, said):
    folder = write_run(tmp_path, RESNET, *settings, numbers={"top1_error": 0.1})
    assert list(runs(tmp_path).records(CELL)) == []
    (line,) = runs(tmp_path).not_counted(CELL)
    assert line.startswith(f"{folder}: {said}")


def test_other_settings_under_another_name_are_another_matter(tmp_path):
    write_run(tmp_path, RESNET, "train.lr=0.05", "name=mine", numbers={"top1_error": 0.1})
    write_run(tmp_path, DETECTOR, "name=cifar10_resnet20", name="detector")
    assert list(runs(tmp_path).not_counted(CELL)) == []


def test_an_unfinished_run_is_named_with_its_step(tmp_path):
    folder = write_run(tmp_path, RESNET, steps_left=62_000, numbers={"top1_error": 0.2})
    found = runs(tmp_path)
    assert list(found.records(CELL)) == []
    assert list(found.not_counted(CELL)) == [f"{folder}: it is at step 2000 of 64000"]
    assert found.finished(RESNET, CELL) is None
    assert [run.folder for run in found.of(RESNET, CELL)] == [folder]


def test_batch_norm_must_be_averaged_where_that_is_configured(tmp_path):
    imagenet = Training("train-cls", "imagenet_resnet50", "IMAGENET")
    cell = Cell(3, "x", {"top1_error": 1.0}, (imagenet,))
    folder = write_run(tmp_path, imagenet, numbers={"top1_error": 0.2})
    assert len(list(runs(tmp_path).records(cell))) == 1
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(
        "\n".join(line for line in lines if "averaged" not in line)
    )
    assert list(runs(tmp_path).records(cell)) == []


def test_four_steps_are_finished_when_the_whole_is_evaluated(tmp_path):
    settings = ("train.scheme=alternating", "train.milestones=[]")
    training = DETECTOR.changed("turns", *settings)
    cell = replace(VOC, runs=(training,))
    folder = write_run(tmp_path, training)
    (folder / "phase.json").write_text("{}")
    assert [run.finished for run in runs(tmp_path).all] == [False]
    (folder / "metrics.json").write_text('{"mAP": 0.7, "per_class": {"cat": 0.9, "dog": 0.1}}')
    (record,) = runs(tmp_path).records(cell)
    assert record.results == {"metrics": {"mAP": 0.7, "cat": 0.9}}
    assert record.settings == settings
    assert list(runs(tmp_path).records(VOC)) == []


def test_every_command_has_its_runs(tmp_path):
    for training in (RESNET, DETECTOR, LOCALISER):
        write_run(tmp_path, training)
    assert {run.folder.name: run.command for run in runs(tmp_path).all} == {
        "cifar10_resnet20": "train-cls",
        "shapes_loc_r18": "train-loc",
        "voc0712_r101": "train-det",
    }


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        (("--init-from", "runs/voc0712_r101/best.safetensors"), True),
        (("--init-from=/far/voc0712_r101-3/best.safetensors",), True),
        (("--init-f", "voc0712_r101/best.safetensors"), True),
        (("--init-from", "runs/coco_r101/best.safetensors"), False),
        ((), False),
    ],
)
def test_what_a_run_started_from_matters(tmp_path, arguments, counts):
    started = replace(DETECTOR, init_from=DETECTOR)
    cell = replace(VOC, runs=(started,))
    write_run(tmp_path, DETECTOR, numbers={"mAP": 0.7}, arguments=("--data", "x", *arguments))
    assert len(list(runs(tmp_path).records(cell))) == counts
    assert len(list(runs(tmp_path).records(VOC))) == (arguments == ())
    if not counts:
        (line,) = runs(tmp_path).not_counted(cell)
        assert "not of voc0712_r101" in line


def test_runs_of_one_configuration_count_with_any_seed_once(tmp_path):
    cell = replace(CELL, runs=RESNET.and_seeds(4))
    for seed, error in ((3, 0.1), (4, 0.2), (9, 0.3)):
        number = {"top1_error": error}
        write_run(tmp_path, RESNET, f"seed={seed}", name=f"run{seed}", numbers=number)
    assert [record.seed for record in runs(tmp_path).records(cell)] == [3, 4, 9]
    assert runs(tmp_path).finished(cell.runs[1], cell).folder.name == "run4"


# ---- evaluated after training ----


def test_an_evaluation_counts_with_the_weights_and_settings_of_its_cell(tmp_path):
    folder = write_run(tmp_path, RESNET, "eval.short_side=300", numbers={"top1_error": 0.2})
    (line,) = runs(tmp_path).not_counted(EVALUATED)
    assert line == f"{folder}: there is no dense.json in it"
    weights = [folder / "weights.safetensors"]
    write_evaluation(folder, EVALUATED, weights, {"top1_error": 0.1})
    (record,) = runs(tmp_path).records(EVALUATED)
    assert record.results == {"dense": {"top1_error": 0.1}}
    write_evaluation(folder, EVALUATED, weights, {"top1_error": 0.1}, "eval.views=center")
    assert list(runs(tmp_path).records(EVALUATED)) == []
    (line,) = runs(tmp_path).not_counted(EVALUATED)
    assert line.endswith("eval.views is center, not dense")


def test_an_evaluation_of_weights_trained_anew_does_not_count(tmp_path):
    folder = write_run(tmp_path / "a", RESNET)
    other = write_run(tmp_path / "b", RESNET, content=1.0) / "weights.safetensors"
    write_evaluation(folder, EVALUATED, [other], {"top1_error": 0.1})
    (line,) = runs(tmp_path / "a").not_counted(EVALUATED)
    assert line.endswith("dense.json is of other weights than are there now")


def test_the_members_of_an_ensemble_are_those_of_their_seeds(tmp_path):
    cell = replace(EVALUATED, runs=RESNET.and_seeds(4))
    first = write_run(tmp_path, RESNET)
    names = ["weights.safetensors"]
    write_evaluation(first, cell, [first / names[0]], {"top1_error": 0.1})
    (line,) = runs(tmp_path).not_counted(cell)
    assert line.endswith("what dense.json was evaluated with is not there")
    second = write_run(tmp_path, cell.runs[1], content=1.0)
    write_evaluation(first, cell, [first / names[0], second / names[0]], {"top1_error": 0.1})
    (record,) = runs(tmp_path).records(cell)
    assert (record.run, record.seed) == ("cifar10_resnet20", 3)
    assert list(runs(tmp_path).not_counted(cell)) == []


def test_what_a_server_answered_is_taken_as_it_stands(tmp_path):
    cell = replace(VOC, evaluation=Evaluation("server", server=True))
    folder = write_run(tmp_path, DETECTOR, numbers={"mAP": 0.1})
    numbers_file(folder, cell).write_text(json.dumps({"mAP": 0.738, "cat": 0.9}))
    (record,) = runs(tmp_path).records(cell)
    assert record.results == {"server": {"mAP": 0.738, "cat": 0.9}}
    numbers_file(folder, cell).write_text(json.dumps({"mAP": 73.8}))
    (line,) = runs(tmp_path).not_counted(cell)
    assert line.endswith("server.json: mAP is 73.8, expected a fraction")


# ---- what cannot be read ----


def test_a_folder_that_cannot_be_read_is_named_and_others_are_found(tmp_path):
    write_run(tmp_path, RESNET, numbers={"top1_error": 0.1})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("model: {network: {name: x}}\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "config.yaml").write_text("{")
    (tmp_path / "empty").mkdir()
    found = runs(tmp_path)
    assert [run.folder.name for run in found.all] == ["cifar10_resnet20"]
    (note,) = found.notes
    assert note.startswith(f"{tmp_path / 'broken'} is left out: {tmp_path / 'broken'}/config.yaml")
    assert runs(tmp_path / "nowhere").all == []


@pytest.mark.parametrize("content", ["{", "[]", "[{}]", '[{"git_commit": 3}]', "3", None])
def test_a_run_without_its_environment_says_so(tmp_path, content):
    folder = write_run(tmp_path, RESNET, numbers={"top1_error": 0.1})
    (folder / "env.json").unlink()
    if content is not None:
        (folder / "env.json").write_text(content)
    (record,) = runs(tmp_path).records(CELL)
    assert (record.commit, record.machine) == (None, "machine not recorded")


def test_a_run_that_moved_between_machines_names_both(tmp_path):
    folder = write_run(tmp_path, RESNET, numbers={"top1_error": 0.1})
    (facts,) = json.loads((folder / "env.json").read_text())
    other = {**facts, "device": "a GPU", "git_commit": None}
    changed = {**facts, "git_changed_files": [" M x"]}
    (folder / "env.json").write_text(json.dumps([facts, other, changed, facts]))
    commit, machine = Run.read(folder).made_by()
    assert commit == "0123456789 then 0123456789 with changes"
    assert machine == ("an abacus, 2 CPUs, torch 2.14 then a GPU, 2 CPUs, torch 2.14, auto")
