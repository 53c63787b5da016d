"""The four steps: their settings, what each of them changes, and how their run is read again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from detres.config import ConfigError, check
from detres.detection.alternating import (
    FOLDERS,
    TRAININGS,
    AlternatingRun,
    SavedAlternating,
    configs_of_phases,
    described,
    read_saved,
)
from detres.detection.config import DetectionConfig
from detres.detection.data.proposals import ProposalsError, read_proposals
from detres.detection.data.read import read_split
from detres.detection.models.rpn import ProposalCounts
from detres.detection.training import WING
from detres.detection.weights_file import load_detector, started_from
from detres.files import CheckpointError
from detres.runs.fingerprint import DataChangedError
from tests.detection.configs import TINY, box, coco_config
from tests.helpers import write_coco

CPU = torch.device("cpu")
SIZES = [(50, 60), (64, 40), (90, 120)]
SPLITS = ("train", "val")


def config_of(root: Path, **train: object) -> DetectionConfig:
    write_coco(root, SIZES, [box(n) for n in (1, 2, 3)])
    tree = json.loads(coco_config(root, data={"workers": 0}).model_dump_json())
    settings = {"scheme": "alternating", "steps": 6, "warmup_steps": 0, "lr": 1e-3, **train}
    return check(DetectionConfig, {**tree, "train": settings}, "test")


def started(root: Path, **train: object) -> AlternatingRun:
    config = config_of(root, **train)
    return AlternatingRun.start(
        config, root / "run", device=CPU, resume_line=lambda folder, _: f"go on with {folder}"
    )


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_detector(run / FOLDERS[step - 1] / "best.safetensors")[0].state_dict()


def changed(one: dict, other: dict) -> set[str]:
    """The parts of the detector with a tensor that differs."""
    parts = ("backbone", "rpn", "roi_head")
    names = [name for name in one if not torch.equal(one[name], other[name])]
    return {part for part in parts for name in names if name.startswith(f"{part}.")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("alternating")
    counts = {"proposals_pre_nms_top_n": 9, "proposals_post_nms_top_n": 4}
    with started(root, **counts) as run:
        run.train()
    return root / "run"


def test_what_each_step_changes(finished):
    one, two, three, four = (weights(finished, step) for step in (1, 2, 3, 4))
    untouched = TRAININGS["rpn"].start(config_of_step(finished, 1), CPU).detector.state_dict()
    assert changed(untouched, one) == {"backbone", "rpn"}
    # the second begins where the first did, not where it ended
    assert changed(untouched, two) == {"backbone", "roi_head"}
    assert changed(two, three) == {"rpn"}
    assert changed(three, four) == {"roi_head"}
    final = load_detector(finished / "best.safetensors")[0].state_dict()
    assert changed(four, final) == set()


def config_of_step(run: Path, step: int) -> DetectionConfig:
    saved = SavedAlternating.read(run, overrides=(), root=None)
    return configs_of_phases(saved.config, run)[step - 1]


def test_the_last_step_and_the_whole_detector_get_the_same_numbers(finished):
    """One on saved proposals, the other with its own RPN."""
    numbers = [
        json.loads((folder / "metrics.json").read_text())
        for folder in (finished / FOLDERS[-1], finished)
    ]
    assert numbers[0].pop("step") == 1
    assert numbers[1].pop("step") == 6
    assert numbers[0] == numbers[1]
    found = [
        (folder / "predictions.json").read_text() for folder in (finished / FOLDERS[-1], finished)
    ]
    assert found[0] == found[1]


def test_what_a_finished_run_holds(finished):
    files = {path.name for path in finished.iterdir()}
    assert files == {
        *FOLDERS,
        *("config.yaml", "env.json", "phase.json"),
        *("best.safetensors", "metrics.json", "predictions.json", "val.jpg"),
        *("pr.png", "pr.csv", "pr.json", "classes.csv"),
        *("confusion.png", "confusion.csv", "confusion.json"),
    }
    for step, scheme in enumerate(("rpn", "fast_rcnn", "rpn", "fast_rcnn")):
        found = {path.name for path in (finished / FOLDERS[step]).iterdir()}
        proposals = {"train_proposals.safetensors", "val_proposals.safetensors"}
        assert proposals & found == (proposals if scheme == "rpn" else set())
        assert "lock.json" not in found
        assert {"curves.png", "curves.csv"} <= found


def test_the_proposals_are_as_many_as_the_settings_say(finished):
    config, folder = config_of_step(finished, 1), finished / FOLDERS[0]
    truth = read_split(config.data, "train")
    found, made_by = read_proposals(folder / "train_proposals.safetensors", truth)
    assert found.counts.max() == 4
    assert made_by == (
        f"{folder / 'best.safetensors'}: the best 9 into NMS at IoU 0.6, the best 4 out"
    )
    val, _ = read_proposals(folder / "val_proposals.safetensors", read_split(config.data, "val"))
    assert 4 < val.counts.max() <= config.model.rpn.test_post_nms_top_n


def test_without_a_setting_all_boxes_enter_nms_as_in_the_reference():
    tree = {"name": "t", "data": {"format": "shapes"}, "model": TINY, "train": {"steps": 1}}
    train = check(DetectionConfig, tree, "test").train
    counts = ProposalCounts(train.proposals_pre_nms_top_n, train.proposals_post_nms_top_n)
    assert described(Path("w"), counts, 0.7) == (
        "w: all boxes into NMS at IoU 0.7, the best 2000 out"
    )


# ---- the settings of the steps ----


def phases(**train: object) -> list[tuple]:
    tree = {"name": "t", "data": {"format": "shapes"}, "model": TINY}
    train = {"scheme": "alternating", **train}
    config = check(DetectionConfig, {**tree, "train": train}, "test")
    return [
        (each.train.scheme, each.train.steps, each.train.milestones, each.train.shared_layers)
        for each in configs_of_phases(config, Path("/run"))
    ]


def test_the_references_schedule_is_shared_out_of_its_steps():
    assert phases(steps=240_000, milestones=[180_000]) == [
        ("rpn", 80_000, (60_000,), "learn"),
        ("fast_rcnn", 40_000, (30_000,), "learn"),
        ("rpn", 80_000, (60_000,), "fixed"),
        ("fast_rcnn", 40_000, (30_000,), "fixed"),
    ]


@pytest.mark.parametrize("steps", [6, 7, 10, 11, 1201])
def test_the_steps_are_those_asked_for(steps):
    lengths = [length for _, length, _, _ in phases(steps=steps)]
    assert sum(lengths) == steps
    assert min(lengths) >= 1


def test_steps_and_milestones_of_each():
    given = {"phase_steps": [1, 2, 3, 4], "phase_milestones": [[], [1], [1, 2], [3]]}
    assert [each[1:3] for each in phases(steps=10, **given)] == [
        (1, ()),
        (2, (1,)),
        (3, (1, 2)),
        (4, (3,)),
    ]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {"steps": 9, "phase_steps": [1, 2, 3, 4]},
            "phase_steps [1, 2, 3, 4] are 10 together, and train.steps 9: give train.steps=10",
        ),
        ({"epochs": 9, "phase_steps": [1, 2, 3, 4]}, "train.steps=10 and train.epochs=null"),
        ({"steps": 3, "phase_steps": [1, 2]}, "train.phase_steps: Tuple should have at least 4"),
        ({"steps": 5}, "scheme alternating divides 5 steps among four: give at least 6"),
        (
            {"steps": 6, "phase_milestones": [[], [], [9], []]},
            "step 3 of train.scheme=alternating: train: milestone 9 lies at or beyond the end",
        ),
        (
            {"steps": 6, "phase_milestones": [[1], [], [], []], "schedule": "cosine"},
            "schedule cosine has no milestones",
        ),
        ({"steps": 6, "shared_layers": "fixed"}, "leave shared_layers out"),
        (
            {"steps": 6, "scheme": "rpn", "phase_steps": [1, 2, 2, 1]},
            "phase_steps goes with train.scheme=alternating",
        ),
        (
            {"steps": 6, "scheme": "fast_rcnn"},
            "give their files, data.train_proposals and data.val_proposals",
        ),
        ({"steps": 6, "scheme": "4step"}, "'joint', 'rpn', 'fast_rcnn' or 'alternating'"),
    ],
)
def test_settings_that_do_not_fit(train, said):
    with pytest.raises(ConfigError) as caught:
        phases(**train)
    assert said in str(caught.value)


@pytest.mark.parametrize(("epochs", "batch_size"), [(0.1, 1), (1, 1), (1.8, 1), (3, 2), (9, 5)])
def test_epochs_of_too_few_images_are_refused_in_their_own_words(tmp_path, epochs, batch_size):
    settings = {"steps": None, "epochs": epochs, "batch_size": batch_size}
    config = config_of(tmp_path, **settings)
    with pytest.raises(ValueError) as caught:
        AlternatingRun.start(config, tmp_path / "run", device=CPU, resume_line=lambda *_: "x")
    assert not (tmp_path / "run").exists()
    said = f"train.epochs {epochs:g} of 3 images, {batch_size} a step, gives "
    assert str(caught.value).startswith(said)
    assert "train.steps" not in str(caught.value)
    enough = re.search(r"give train\.epochs=(\S+) or more$", str(caught.value))[1]
    assert float(enough) == pytest.approx(6 * batch_size / 3, rel=0.005)
    settings["epochs"] = float(enough)
    configs = configs_of_phases(config_of(tmp_path, **settings), tmp_path)
    assert [each.train.steps for each in configs] == [2, 1, 2, 1]


def test_a_milestone_in_epochs_at_the_very_end_is_none(tmp_path):
    """2.95 epochs of 3 images in twos, of 4, are 4.4 steps of 6; 3.95 are 6, the end."""
    settings = {"steps": None, "epochs": 4, "batch_size": 2, "milestones": [2.95, 3.95]}
    configs = configs_of_phases(config_of(tmp_path, **settings), tmp_path)
    assert [each.train.milestones for each in configs] == [(1,), (), (1,), ()]


@pytest.mark.parametrize("scheme", ["joint", "rpn", "alternating"])
def test_proposals_are_refused_where_the_rpn_proposes(scheme):
    tree = {"name": "t", "data": {"format": "shapes", "val_proposals": "p"}, "model": TINY}
    with pytest.raises(
        ConfigError, match=r"^test: data\.val_proposals goes with train\.scheme=fast_rcnn"
    ):
        check(DetectionConfig, {**tree, "train": {"steps": 6, "scheme": scheme}}, "test")


def test_random_layers_are_not_fixed(tmp_path):
    config = config_of(tmp_path, scheme="rpn", shared_layers="fixed")
    with pytest.raises(ValueError, match="they would stay random; start from a trained detector"):
        TRAININGS["rpn"].start(config, CPU)


@pytest.mark.parametrize(("scheme", "said"), [("joint", True), ("rpn", False)])
@pytest.mark.parametrize("improved", [True, False])
def test_of_an_rpn_alone_no_improvement_of_detections_is_said(tmp_path, scheme, said, improved):
    config = config_of(tmp_path, scheme=scheme)
    refine = config.eval.refine.model_copy(update={"iterations": 1})
    update = {"refine": refine, "improved_in_training": improved}
    config = config.model_copy(update={"eval": config.eval.model_copy(update=update)})
    words = TRAININGS[scheme].start(config, CPU).describe_data()
    assert ("box refinement" in words) == said


# ---- a run that goes on ----


def test_weights_say_what_the_run_started_from(finished, tmp_path, monkeypatch):
    """Also those of the steps that start from the run's own, and of a run that was resumed."""
    assert started_from(finished / "best.safetensors") is None
    monkeypatch.chdir(finished)
    config, out = config_of(tmp_path), tmp_path / "run"
    how = {"device": CPU, "resume_line": lambda *_: "x"}
    with AlternatingRun.start(config, out, init_from="best.safetensors", **how) as run:
        run._train_step()
        run.phase = 1
        run.save()
    monkeypatch.chdir(tmp_path)
    with AlternatingRun.resume(read_saved(out, DetectionConfig, wing=WING), **how) as run:
        run.train()
    files = [folder / "best.safetensors" for folder in (out, *(out / name for name in FOLDERS))]
    assert [started_from(file) for file in files] == [str(finished / "best.safetensors")] * 5


def test_other_data_between_two_steps_are_refused_unless_accepted(tmp_path):
    with started(tmp_path) as run:
        run._train_step()
        run.phase = 1
        run.save()

    def resumed(**more: bool) -> AlternatingRun:
        saved = read_saved(tmp_path / "run", DetectionConfig, wing=WING)
        assert (saved.phase, isinstance(saved, SavedAlternating)) == (1, True)
        return AlternatingRun.resume(saved, device=CPU, resume_line=lambda *_: "x", **more)

    write_coco(tmp_path, [*SIZES[:2], (90, 121)], [box(n) for n in (1, 2, 3)])
    with (
        resumed() as run,
        pytest.raises(ProposalsError, match="holds proposals for other images"),
    ):
        run._train_step()
    # the same images, which the proposals are for, with another object
    write_coco(tmp_path, SIZES, [box(n) for n in (1, 2, 3)] + [box(2) | {"id": 9}])
    with (
        resumed() as run,
        pytest.raises(DataChangedError, match="was trained on: they differ in train"),
    ):
        run._train_step()
    files = [tmp_path / "run" / FOLDERS[0] / f"{split}_proposals.safetensors" for split in SPLITS]
    made = [file.read_bytes() for file in files]
    with resumed(accept_data_change=True) as run:
        run._train_step()
    assert [file.read_bytes() for file in files] == made


def test_proposals_are_made_anew_for_other_images_that_are_accepted(tmp_path):
    with started(tmp_path) as run:
        run._train_step()
        run.phase = 1
        run.save()
    write_coco(tmp_path, [*SIZES, (70, 80)], [box(n) for n in (1, 2, 3, 4)])
    saved = SavedAlternating.read(tmp_path / "run", overrides=(), root=None)
    options = {"device": CPU, "resume_line": lambda *_: "x", "accept_data_change": True}
    with AlternatingRun.resume(saved, **options) as run:
        run.train()
    for folder in (FOLDERS[0], FOLDERS[2]):
        for split in SPLITS:
            truth = read_split(saved.config.data, split)
            file = tmp_path / "run" / folder / f"{split}_proposals.safetensors"
            assert len(read_proposals(file, truth)[0]) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phase": 4}, "phase 4, expected 0..3"),
        ({"phase": True}, "phase True"),
        ({"format": "x"}, "format 'x', expected detres-alternating-1"),
        ({"config": None}, "is not what a run of four steps writes"),
        ({"data": []}, "is not what a run of four steps writes"),
        ({"init_from": 3}, "is not what a run of four steps writes"),
        ({"seconds": -1.0}, "seconds -1.0 are no time"),
        ({"seconds": "1"}, "seconds '1' are no time"),
        ({"deterministic": 1}, "deterministic 1 is neither true nor false"),
    ],
)
def test_a_state_that_no_run_writes(tmp_path, change, said):
    with started(tmp_path):
        pass
    path = tmp_path / "run" / "phase.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError) as caught:
        read_saved(tmp_path / "run", DetectionConfig, wing=WING)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"phase\.json"):
        read_saved(tmp_path / "run", DetectionConfig, wing=WING)


@pytest.mark.parametrize("setting", ["train.steps=12", "train.milestones=[3]"])
def test_the_lengths_of_the_four_steps_stay(tmp_path, setting):
    with started(tmp_path):
        pass
    with pytest.raises(ConfigError, match="keeps the lengths that its four steps were divided by"):
        SavedAlternating.read(tmp_path / "run", overrides=[setting], root=None)
    saved = SavedAlternating.read(tmp_path / "run", overrides=["train.lr=0.1"], root=None)
    assert saved.config.train.lr == 0.1


def test_the_time_before_a_resume_counts_that_in_a_step_too(tmp_path):
    with started(tmp_path) as run:
        run.started -= 600
        run._train_step()
        run.save()
        with run._step_run(run.configs[0]) as step:  # as where it was stopped
            step.started -= 1200
            step.save()
    path = tmp_path / "run" / "phase.json"
    saved = SavedAlternating.read(tmp_path / "run", overrides=(), root=None)
    assert saved.seconds >= 600
    with AlternatingRun.resume(saved, device=CPU, resume_line=lambda *_: "x") as run:
        run._train_step()
        assert run.duration().startswith("30 min")
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"})
    )
    assert SavedAlternating.read(tmp_path / "run", overrides=(), root=None).seconds == 0.0


def test_an_rpn_is_judged_on_a_part_on_the_way_and_on_all_at_the_end(tmp_path):
    write_coco(tmp_path, SIZES, [box(n) for n in (1, 2, 3)])
    config = config_of(tmp_path, scheme="rpn", eval_every=2, eval_images=2)
    training = TRAININGS["rpn"].start(config, CPU)
    on_the_way, at_the_end = training.judge(whole=False), training.judge(whole=True)
    assert on_the_way.images == (2, 3)
    assert at_the_end.images == (3, 3)
    assert (on_the_way.loss_images, at_the_end.loss_images) == (2, 2)
    assert on_the_way.comparable == at_the_end.comparable
    assert on_the_way.losses == pytest.approx(at_the_end.losses)
    assert set(on_the_way.losses) == {"val_loss", "val_loss_rpn_cls", "val_loss_rpn_box"}
