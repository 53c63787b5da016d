"""The life of a run: what its folder holds at every turn, an exact resume, the best kept, and how
to go on.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from detres.config import ConfigError, Section, check, load_config
from detres.console import plural
from detres.detection.structures import Target
from detres.engine.distributed import Group
from detres.engine.flight_recorder import NonFiniteLossError
from detres.engine.progress import Progress
from detres.engine.stop import Interrupted
from detres.files import CheckpointError
from detres.losses import Losses
from detres.runs.fingerprint import DataChangedError, Fingerprint, hashes_of
from detres.runs.folder import RunFolderError
from detres.runs.judgement import Judgement
from detres.runs.lock import FolderMovedError, InUseError
from detres.runs.run import ResumeLine, TrainingRun
from detres.runs.saved import STATE_KEYS, OtherWingError, SavedRun
from detres.runs.settings import TrainConfig, build_optimizer, build_schedule
from detres.runs.state import DamagedStateError, load_state, save_state
from tests.engine.regression import (
    Batch,
    Regression,
    batches,
    losses_of,
    poisoned,
    same_tensors,
    same_training,
)

CPU = torch.device("cpu")


def resume_line(folder: Path, settings: dict[str, float]) -> str:
    """What goes on with a run, as the run's user would word it."""
    return f"go on in {folder} with {settings}"


class DataConfig(Section):
    format: str = "coco"
    root: str | None = None


class Config(Section):
    name: str = "fitting"
    seed: int = 3
    data: DataConfig = DataConfig()
    train: TrainConfig


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, float | None]
    best_metric = "AP"

    def table(self) -> str:
        return f"AP {self.metrics['AP']}, by hand"


class Fitting:
    """Fits a Regression, and knows what a run asked of it.

    metric: step -> the deciding number of an evaluation there.
    """

    wing, group = "detection", Group()

    def __init__(
        self,
        metric: Callable[[int], float | None] = float,
        *,
        num_images: int = 80,
        config: Config | None = None,
        **settings: object,
    ) -> None:
        torch.manual_seed(5)
        given = {"steps": 10, "batch_size": 8, "lr": 0.05, "reference_batch": 8}
        given |= {"warmup_steps": 3, "milestones": [7], "log_every": 2, "save_every": 100}
        self.config = config or check(Config, {"train": given | settings}, "test")
        self.model = Regression()
        self.optimizer = build_optimizer(self.config.train, self.model)
        self.schedule = build_schedule(self.config.train, num_images)
        self.num_images, self.metric = num_images, metric
        self.loaded: str | None = None
        self.given: Iterable | None = None
        self.run: TrainingRun | None = None
        self.asked: list[tuple[str, int]] = []
        self.wholes: list[tuple[int, bool]] = []
        self.kept_weights: list[dict[str, torch.Tensor]] = []
        # of how many held-out images evaluations on the way are, and how many there are
        self.part: tuple[int, int] | None = None
        self.on_all: Callable[[int], float | None] = float

    def describe_data(self) -> str:
        return "train 80 points\nval   none"

    def fingerprints(self) -> dict[str, Fingerprint]:
        records = hashes_of((str(row),) for row in range(self.num_images))
        return {"train": Fingerprint(records, records, lambda row: f"point {row}")}

    def begin(self, folder: Path) -> None:
        (folder / "begun.txt").write_text("by the training")

    def file_of(self, image_id: str) -> str:
        return f"{image_id}.jpg"

    def state(self) -> dict:
        return {"classes": ["one"], "more": 7}

    def batches(self, run: TrainingRun) -> Iterable:
        self.run = run
        start, stop = run.progress.step, run.schedule.steps
        return batches(start, stop) if self.given is None else self.given

    def judge(self, *, whole: bool) -> Judgement:
        step = 0 if self.run is None else self.run.progress.step
        self.asked.append(("evaluate", step))
        self.wholes.append((step, whole))
        self.judged = {name: each.clone() for name, each in self.model.state_dict().items()}
        self.model.eval()
        metric = self.metric(step)
        if self.part is None:
            return Judgement.of_all(Evaluation({"AP": metric, "odd": None}))
        evaluation = Evaluation({"AP": self.on_all(step) if whole else metric})
        images = (self.part[1] if whole else self.part[0], self.part[1])
        losses = {"val_loss": 2.0, "val_loss_fit": 1.5}
        return Judgement(evaluation, metric, images, losses, loss_images=self.part[0])

    def keep(self, run: TrainingRun, judgement: Judgement, *, improved: bool, whole: bool) -> None:
        self.asked.append(("best" if improved else "keep", run.progress.step))
        self.kept, self.kept_whole = judgement.evaluation, whole
        weights = {name: each.clone() for name, each in self.model.state_dict().items()}
        self.kept_weights.append(weights)


def start(training: Fitting, out: Path, line: ResumeLine | None = resume_line) -> TrainingRun:
    training.run = TrainingRun.start(training, out, device=CPU, resume_line=line)
    return training.run


def trained(training: Fitting, out: Path) -> Evaluation:
    with start(training, out) as run:
        return run.train()


def resumed(
    folder: Path,
    *overrides: str,
    metric: Callable[[int], float | None] = float,
    part: tuple[int, int] | None = None,
) -> tuple[Fitting, TrainingRun]:
    """What a command does: the model filled from last.pt, the rest left to the run."""
    saved = SavedRun.read(folder, Config, wing="detection", overrides=overrides)
    training = Fitting(metric, config=saved.config)
    nn.init.zeros_(training.model.linear.weight)
    training.model.load_state_dict(saved.state["model"])
    training.part = part
    training.run = TrainingRun.resume(saved, training, device=CPU, resume_line=resume_line)
    return training, training.run


def interrupting(at: int, steps: int = 10) -> Iterator:
    """Batches during one of which a stop is asked for."""
    for step, batch in enumerate(batches(0, steps)):
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)
        yield batch


def interrupted(
    folder: Path, at: int, *, part: tuple[int, int] | None = None, **settings: object
) -> Fitting:
    """A run that was stopped after step `at` + 1."""
    training = Fitting(**settings)
    training.part = part
    training.given = interrupting(at)
    with pytest.raises(Interrupted):
        trained(training, folder)
    return training


def records(folder: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_a_new_run_has_its_configuration_and_its_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = Fitting()
    with start(training, None) as run:
        assert run.folder == Path("runs/fitting")
        assert load_config(run.folder / "config.yaml", Config) == training.config
        (facts,) = json.loads((run.folder / "env.json").read_text())
        assert facts["start_step"] == 0
        run.save()
    with start(Fitting(), None) as second:
        assert second.folder == Path("runs/fitting-2")


def test_a_folder_in_use_is_left_as_it_is(tmp_path):
    (tmp_path / "last.pt").write_text("mine")
    with pytest.raises(RunFolderError, match="already holds files"):
        start(Fitting(), tmp_path)
    assert files(tmp_path) == {"last.pt": b"mine"}


def test_it_says_what_is_trained_and_how_it_goes(tmp_path, capsys):
    training = Fitting(num_images=20, reference_batch=4)
    training.loaded = "weights of a stranger"
    folder = tmp_path / "run"
    evaluation = trained(training, folder)
    assert evaluation.metrics == {"AP": 10.0, "odd": None}
    lines = capsys.readouterr().out.splitlines()
    first = lines.index(f"every setting, defaults included: {folder / 'config.yaml'}")
    assert "batch_size: 8" in "".join(lines[:first])
    assert lines[first + 1 : first + 5] == [
        "train 80 points",
        "val   none",
        "from  weights of a stranger",
        # 20 images in batches of 8 are three steps an epoch
        f"{folder}: steps 0..10 (3.333 epochs), lr 0.1 at batch 8 (lr 0.05 for 4), device cpu, "
        f"{plural(torch.get_num_threads(), 'thread')}, fp32",
    ]
    assert lines[-1] == "AP 10.0, by hand"


def test_without_anything_loaded_nothing_is_said_of_it(tmp_path, capsys):
    trained(Fitting(), tmp_path)
    assert "from  " not in capsys.readouterr().out


def test_an_evaluation_is_logged_kept_and_saved(tmp_path):
    training = Fitting()
    with start(training, tmp_path) as run:
        run.progress.step = 4
        run.evaluate()
    assert training.asked == [("evaluate", 4), ("best", 4)]
    assert training.kept is run.evaluation
    assert run.progress.evaluations == {4: 4.0}
    (record,) = records(tmp_path, "eval")
    digests = {name: record.pop(name) for name in ("weights_digest", "order_digest")}
    assert all(len(digest) == 16 for digest in digests.values())
    assert record == {"step": 4, "kind": "eval", "AP": 4.0, "odd": None}
    state = load_state(tmp_path / "last.pt", (*STATE_KEYS, "more"))
    assert Progress.from_dict(state["progress"]) == Progress(4, {4: 4.0})
    assert state["seconds"] >= 0
    assert "average" not in state
    assert (state["classes"], state["more"], state["num_images"]) == (["one"], 7, 80)
    assert Config.model_validate_json(state["config"]) == training.config
    assert same_tensors(state["model"], training.model.state_dict())
    assert training.model.training


def test_the_model_is_in_train_mode_in_every_step(tmp_path):
    training, modes = Fitting(eval_every=3), []
    training.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    training.model.eval()
    trained(training, tmp_path)
    assert modes == [True] * 10
    assert ("evaluate", 9) in training.asked


def test_evaluations_on_the_way_keep_the_best_and_the_last(tmp_path):
    metrics = {2: math.nan, 4: 0.5, 6: 0.4, 8: None, 10: 0.6}
    training = Fitting(metrics.get, eval_every=2, save_every=3)
    assert trained(training, tmp_path).metrics["AP"] == 0.6
    assert [event for event in training.asked if event[0] != "evaluate"] == [
        ("keep", 2),
        ("best", 4),
        ("keep", 6),
        ("keep", 8),
        ("best", 10),
    ]
    assert [record["AP"] for record in records(tmp_path, "eval")] == [None, 0.5, 0.4, None, 0.6]
    state = load_state(tmp_path / "last.pt", ("progress",))
    assert Progress.from_dict(state["progress"]).best == 0.6


def test_a_best_value_of_zero_counts_and_must_be_exceeded(tmp_path):
    training = Fitting(lambda _: 0.0, eval_every=5)
    trained(training, tmp_path)
    assert [event for event in training.asked if event[0] == "best"] == [("best", 5)]


def test_a_resumed_run_remembers_its_best(tmp_path):
    interrupted(tmp_path, 6, metric={4: 8.5, 6: 8.0}.get, eval_every=2)
    training, run = resumed(tmp_path)
    with run:
        run.train()
    assert [event for event in training.asked if event[0] != "evaluate"] == [
        ("keep", 8),
        ("best", 10),
    ]


@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(tmp_path, stop_at):
    straight = Fitting(eval_every=4)
    trained(straight, tmp_path / "straight")
    interrupted(tmp_path / "resumed", stop_at - 1, eval_every=4)
    training, run = resumed(tmp_path / "resumed")
    assert run.progress.step == stop_at
    with run:
        run.train()
    assert same_training((straight.model, straight.optimizer), (training.model, training.optimizer))
    assert records(tmp_path / "resumed", "eval") == records(tmp_path / "straight", "eval")
    assert [record["step"] for record in records(run.folder, "train")] == [2, 4, 6, 8, 10]
    starts = [facts["start_step"] for facts in json.loads((run.folder / "env.json").read_text())]
    assert starts == [0, stop_at]


def test_a_finished_run_is_evaluated_again_and_nothing_is_written(tmp_path, capsys):
    trained(Fitting(), tmp_path)
    training, run = resumed(tmp_path)
    with run:
        before, weights = files(tmp_path), training.model.state_dict()
        weights = {name: tensor.clone() for name, tensor in weights.items()}
        assert run.train().metrics["AP"] == 10.0
    assert training.asked == [("evaluate", 10)]
    del before["lock.json"]  # given back
    assert files(tmp_path) == before
    assert same_tensors(training.model.state_dict(), weights)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "finished: all 10 steps are done; evaluated once more",
        "AP 10.0, by hand",
    ]


def test_an_evaluation_that_was_logged_but_not_saved_is_logged_once(tmp_path):
    class Crash(Exception):
        pass

    def crash(*_: object, **__: object) -> None:
        raise Crash

    training = Fitting(eval_every=4)
    training.keep = crash
    with pytest.raises(Crash):
        trained(training, tmp_path)
    assert [record["step"] for record in records(tmp_path, "eval")] == [4]
    _, run = resumed(tmp_path)
    with run:
        run.train()
    assert [record["step"] for record in records(tmp_path, "eval")] == [4, 8, 10]


@pytest.mark.parametrize("steps", [10, 4])  # on the way, and the last one
def test_a_stop_during_an_evaluation_ends_after_it(tmp_path, capsys, steps):
    def metric(step: int) -> float:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return float(step)

    training = Fitting(metric, steps=steps, milestones=[], eval_every=2)
    with pytest.raises(Interrupted):
        trained(training, tmp_path)
    assert training.asked[-2:] == [("evaluate", 4), ("best", 4)]
    assert last_line(capsys) == (
        f"stopped after step 4; continue with: {resume_line(tmp_path, {})}"
    )
    _, run = resumed(tmp_path)
    with run:
        assert run.train().metrics["AP"] == steps
    evaluated = [record["step"] for record in records(tmp_path, "eval")]
    assert evaluated == list(range(2, steps + 1, 2))


def test_a_stop_during_the_evaluation_that_was_left_over(tmp_path):
    def metric(step: int) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return float(step)

    interrupted(tmp_path, 3, eval_every=4)
    training, run = resumed(tmp_path, metric=metric)
    with run, pytest.raises(Interrupted):
        run.train()
    assert training.asked == [("evaluate", 4), ("best", 4)]
    assert run.progress == Progress(4, {4: 4.0})


def test_an_interrupted_run_names_the_command_that_goes_on(tmp_path, capsys):
    folder = tmp_path / "it's my run"
    interrupted(folder, 4)
    assert last_line(capsys) == (f"stopped after step 5; continue with: {resume_line(folder, {})}")
    assert load_state(folder / "last.pt", ("progress",))["progress"]["step"] == 5


def test_without_a_command_there_is_nothing_to_continue_with(tmp_path, capsys):
    training = Fitting()
    training.given = interrupting(4)
    with pytest.raises(Interrupted), start(training, tmp_path, line=None) as run:
        run.train()
    assert last_line(capsys) == "stopped after step 5"
    assert not (tmp_path / "last.pt").exists()


def broken(at: int, error: Exception) -> Iterator:
    yield from batches(0, at)
    raise error


@pytest.mark.parametrize("error", [OSError("disk is gone"), RuntimeError("worker died")])
def test_where_a_batch_cannot_be_made_what_was_learnt_is_kept(tmp_path, capsys, error):
    training = Fitting()
    training.given = broken(3, error)
    with pytest.raises(type(error), match=str(error)):
        trained(training, tmp_path)
    assert last_line(capsys) == f"stopped; continue with: {resume_line(tmp_path, {})}"
    straight = Fitting()
    trained(straight, tmp_path / "straight")
    again, run = resumed(tmp_path)
    assert run.progress.step == 3
    with run:
        run.train()
    assert same_training((straight.model, straight.optimizer), (again.model, again.optimizer))


def test_a_run_that_ends_before_its_first_step_goes_on_from_there(tmp_path, capsys):
    straight = Fitting()
    trained(straight, tmp_path / "straight")
    training = Fitting()
    training.given = broken(0, OSError("disk is gone"))
    with pytest.raises(OSError, match="disk is gone"):
        trained(training, tmp_path / "run")
    assert last_line(capsys) == f"stopped; continue with: {resume_line(tmp_path / 'run', {})}"
    again, run = resumed(tmp_path / "run")
    assert run.progress.step == 0
    with run:
        run.train()
    assert same_training((straight.model, straight.optimizer), (again.model, again.optimizer))


def test_an_end_without_an_error_says_nothing(tmp_path, capsys):
    with start(Fitting(), tmp_path):
        pass
    assert capsys.readouterr().out == ""


def test_a_non_finite_step_is_written_down_and_a_smaller_rate_advised(tmp_path, capsys):
    training = Fitting(save_every=5)
    training.given = poisoned(at=5)
    with pytest.raises(NonFiniteLossError, match="non-finite loss in step 6: loss_fit = nan"):
        trained(training, tmp_path)
    facts = json.loads((tmp_path / "bundle-step-6" / "bundle.json").read_text())
    assert (facts["kind"], facts["step"], len(facts["records"])) == ("non-finite", 5, 6)
    record = facts["records"][-1]
    assert (record["step"], record["ids"][7], record["files"][7]) == (5, "5-7", "5-7.jpg")
    assert record["lr"] == 0.05
    assert record["values"]["loss_fit"] is None
    assert record["values"]["loss_size"] > 0
    saved = load_state(tmp_path / "last.pt", ("model", "progress"))
    assert same_tensors(training.model.state_dict(), saved["model"])
    assert saved["progress"]["step"] == 5
    assert last_line(capsys) == (
        f"stopped; continue with: {resume_line(tmp_path, {'train.lr': 0.005})}"
    )


class Detector(Regression):
    """Takes detection targets; its loss is not a number."""

    def forward(self, batch: Batch, targets: list[Target]) -> Losses:
        return losses_of(
            self.linear(batch.values).mean() * targets[0].boxes.sum(), self.linear.weight.sum()
        )


def test_the_boxes_of_a_non_finite_step_are_written_down(tmp_path, capsys):
    training = Fitting()
    training.model = Detector()
    boxes = torch.tensor([[1.0, 2.0, float("inf"), 4.0]])
    target = Target(7, boxes, torch.tensor([2]), torch.tensor([False]), torch.tensor([True]))
    training.given = iter([(Batch(torch.ones(1, 3), ("a",)), [target])])
    with pytest.raises(NonFiniteLossError, match="images a"):
        trained(training, tmp_path)
    state = torch.load(tmp_path / "bundle-step-1" / "step.pt", weights_only=True)
    ((_, (written,)),) = state["parts"]
    assert (written["image_id"], written["boxes"].tolist()) == (7, boxes.tolist())
    assert same_tensors(state["model"], training.model.state_dict())
    assert last_line(capsys) == (
        f"stopped; continue with: {resume_line(tmp_path, {'train.lr': 0.005})}"
    )


def test_images_that_could_not_be_read_are_listed_once(tmp_path, capsys):
    path = tmp_path / "skipped.txt"
    with start(Fitting(), tmp_path) as run:
        run.list_skipped([])
        assert not path.exists()
        run.list_skipped(["b.jpg", "a b.jpg"])
        run.list_skipped(["b.jpg"])
        run.list_skipped(["c.jpg", "b.jpg"])
    assert path.read_text() == "a b.jpg\nb.jpg\nc.jpg\n"
    assert capsys.readouterr().out.splitlines() == [
        f"damaged, skipped: b.jpg, a b.jpg (2 so far, listed in {path})",
        f"damaged, skipped: c.jpg (3 so far, listed in {path})",
    ]


def test_of_many_images_that_cannot_be_read_a_line_names_the_first(tmp_path, capsys):
    with start(Fitting(), tmp_path) as run:
        run.list_skipped(f"{number}.jpg" for number in range(1000))
    path = tmp_path / "skipped.txt"
    assert capsys.readouterr().out.splitlines() == [
        f"damaged, skipped: 0.jpg, 1.jpg, 2.jpg, 3.jpg and 996 more (1000 so far, listed in {path})"
    ]
    assert len(path.read_text().splitlines()) == 1000


def test_a_run_on_another_number_of_images_is_not_resumed(tmp_path):
    interrupted(tmp_path, 4)
    before = files(tmp_path)
    saved = SavedRun.read(tmp_path, Config, wing="detection", overrides=["train.lr=0.01"])
    training = Fitting(config=saved.config, num_images=81)
    with pytest.raises(
        DataChangedError,
        match=r"not those that \S*last\.pt was trained on: in train, 80 records then, 81 now, the "
        r"first that differs is point 80$",
    ):
        TrainingRun.resume(saved, training, device=CPU, resume_line=resume_line)
    assert files(tmp_path) == before


def test_a_changed_configuration_is_written_and_the_earlier_one_kept(tmp_path):
    first = interrupted(tmp_path, 4).config
    for _ in range(2):  # again at the same step, where the first one stays
        training, run = resumed(tmp_path, "train.lr=0.01")
        with run:
            pass
        assert training.config.train.lr == 0.01
        assert load_config(tmp_path / "config-until-step-5.yaml", Config) == first
        assert load_config(tmp_path / "config.yaml", Config) == training.config
    training, run = resumed(tmp_path, "train.lr=0.01")
    training.given = broken(2, OSError("gone"))
    with pytest.raises(OSError, match="gone"), run:
        run.train()
    assert run.progress.step == 7
    _, run = resumed(tmp_path)  # last.pt has the change now
    with run:
        assert run.config.train.lr == 0.01
    assert not (tmp_path / "config-until-step-7.yaml").exists()


def test_an_unchanged_configuration_stays_as_it_is(tmp_path):
    interrupted(tmp_path, 4)
    (tmp_path / "config.yaml").write_text("# a note of mine\n")
    _, run = resumed(tmp_path, "train.lr=0.05")
    with run:
        pass
    assert (tmp_path / "config.yaml").read_text() == "# a note of mine\n"
    assert not (tmp_path / "config-until-step-5.yaml").exists()


def test_data_that_have_moved_are_a_change_of_the_configuration(tmp_path):
    folder = tmp_path / "run"
    interrupted(folder, 4)
    (tmp_path / "elsewhere").mkdir()
    saved = SavedRun.read(folder, Config, wing="detection", root=str(tmp_path / "elsewhere"))
    assert saved.config.data.root == str(tmp_path / "elsewhere")
    assert saved.earlier.data.root is None
    with TrainingRun.resume(
        saved, Fitting(config=saved.config), device=CPU, resume_line=resume_line
    ):
        pass
    assert load_config(folder / "config.yaml", Config) == saved.config
    assert load_config(folder / "config-until-step-5.yaml", Config) == saved.earlier
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SavedRun.read(folder, Config, wing="detection", root=str(tmp_path / "nowhere"))


def test_a_saved_run_is_read_with_what_it_must_hold(tmp_path):
    with pytest.raises(CheckpointError, match=r"no training state at .*last\.pt"):
        SavedRun.read(tmp_path, Config, wing="detection")
    interrupted(tmp_path / "run", 4)
    saved = SavedRun.read(tmp_path / "run", Config, wing="detection", keys=("more",))
    assert (saved.state["more"], saved.folder) == (7, tmp_path / "run")
    assert saved.config == saved.earlier
    with pytest.raises(CheckpointError, match="it lacks weights"):
        SavedRun.read(tmp_path / "run", Config, wing="detection", keys=("weights",))
    with pytest.raises(ConfigError, match=r"last\.pt with --set: unknown key 'train\.rate'"):
        SavedRun.read(tmp_path / "run", Config, wing="detection", overrides=["train.rate=1"])


def test_a_run_of_an_earlier_version_goes_on_with_its_scores(tmp_path):
    interrupted(tmp_path, 4, eval_every=2)
    state = load_state(tmp_path / "last.pt", STATE_KEYS)
    state["progress"]["scores"] = state["progress"].pop("evaluations")
    save_state(tmp_path / "last.pt", state)
    training, run = resumed(tmp_path)
    assert run.progress == Progress(5, {2: 2.0, 4: 4.0})
    with run:
        run.train()
    assert [record["step"] for record in records(tmp_path, "eval")] == [2, 4, 6, 8, 10]
    assert training.run.progress.best == 10.0


def test_a_duration_is_said_in_words(tmp_path):
    with start(Fitting(), tmp_path) as run:
        run.started -= 125
        assert run.duration() in ("2 min 5 s", "2 min 6 s")


TIMES = ("step_s", "data_s", "images_per_s")


def all_records(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.mark.parametrize("stop_at", range(1, 10))
def test_every_record_of_a_resumed_run_is_that_of_a_straight_one(tmp_path, stop_at):
    settings = {"log_every": 4, "eval_every": 3}
    trained(Fitting(**settings), tmp_path / "straight")
    interrupted(tmp_path / "resumed", stop_at - 1, **settings)
    _, run = resumed(tmp_path / "resumed")
    with run:
        run.train()
    straight = all_records(tmp_path / "straight")
    assert all_records(tmp_path / "resumed") == straight
    assert [(r["kind"], r["step"]) for r in straight] == [
        *[("eval", 3), ("train", 4), ("eval", 6), ("train", 8), ("eval", 9)],
        *[("train", 10), ("eval", 10)],
    ]


def test_records_behind_the_state_and_broken_ones_are_cut(tmp_path):
    trained(Fitting(log_every=2), tmp_path / "straight")
    interrupted(tmp_path / "run", 4, log_every=2)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(
            b'{"step": 6, "kind": "train", "loss": 1}\n{"step": 7}\n\xff\xfe\n{"step": 8, "k'
        )
    _, run = resumed(tmp_path / "run")
    with run:
        run.train()
    assert all_records(tmp_path / "run") == all_records(tmp_path / "straight")


def with_damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("gone", [False, True])
def test_from_a_damaged_state_it_goes_back_to_the_one_before(tmp_path, capsys, gone):
    straight = Fitting()
    trained(straight, tmp_path / "straight")
    folder = tmp_path / "run"
    interrupted(folder, 6, save_every=3)
    last, previous = folder / "last.pt", folder / "previous.pt"
    assert load_state(previous, ())["progress"]["step"] == 6
    last.unlink() if gone else with_damage(last)
    found = None if gone else last.read_bytes()
    training, run = resumed(folder)
    assert run.progress.step == 6
    assert load_state(last, ())["progress"]["step"] == 6
    assert (folder / "damaged.pt").exists() == (not gone)
    with run:
        run.train()
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "previous.pt" in line]
    if gone:
        assert note == f"note: there is no {last}: goes on from {previous}"
    else:
        assert note.startswith(f"note: {last} is damaged: the part '")
        assert note.count(str(last)) == 1
        assert note.endswith(f"; goes on from {previous}, and keeps it as damaged.pt")
        assert (folder / "damaged.pt").read_bytes() == found
    assert same_training((straight.model, straight.optimizer), (training.model, training.optimizer))


def test_where_both_states_are_damaged_the_file_is_named_and_nothing_is_written(tmp_path):
    interrupted(tmp_path, 6, save_every=3)
    for name in ("last.pt", "previous.pt"):
        with_damage(tmp_path / name)
    before = files(tmp_path)
    with pytest.raises(DamagedStateError, match=r"previous\.pt is damaged"):
        SavedRun.read(tmp_path, Config, wing="detection")
    (tmp_path / "previous.pt").unlink()
    with pytest.raises(DamagedStateError, match=r"last\.pt is damaged"):
        SavedRun.read(tmp_path, Config, wing="detection")
    assert files(tmp_path) == {k: v for k, v in before.items() if k != "previous.pt"}


def changed(folder: Path, **fields: object) -> None:
    save_state(folder / "last.pt", load_state(folder / "last.pt", ()) | fields)


def with_config(folder: Path, **train: object) -> None:
    """Write into config.yaml what another run, or an editor, would have there."""
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["train"] |= train
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def test_an_earlier_state_of_another_run_is_not_gone_back_to(tmp_path):
    interrupted(tmp_path, 6, save_every=3)
    with_damage(tmp_path / "last.pt")
    with_config(tmp_path, batch_size=99)
    before = files(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"previous\.pt is of another run than its folder: train\.batch_size is 99 in "
        r".*config\.yaml, 8 in .*previous\.pt\. Move it away, or config\.yaml where that was "
        "changed",
    ):
        SavedRun.read(tmp_path, Config, wing="detection")
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", [False, True])
def test_settings_that_the_state_does_not_have_are_said(tmp_path, damage):
    interrupted(tmp_path, 6, save_every=3)
    if damage:
        with_damage(tmp_path / "last.pt")
    with_config(tmp_path, lr=0.5)
    note = SavedRun.read(tmp_path, Config, wing="detection").notes[-1]
    assert re.fullmatch(
        r"train\.lr is 0\.5 in .*config\.yaml, [0-9.]+ in .*\.pt: goes on as before", note
    )
    given = SavedRun.read(tmp_path, Config, wing="detection", overrides=["train.lr=0.5"])
    assert len(given.notes) == damage
    (tmp_path / "config.yaml").write_text("{")
    assert len(SavedRun.read(tmp_path, Config, wing="detection").notes) == damage


def test_a_setting_given_to_a_resumed_run_is_in_its_state_from_its_first_step_on(tmp_path):
    interrupted(tmp_path, 4)
    _, run = resumed(tmp_path, "train.lr=0.5")
    run.training.given = iter(())
    with pytest.raises(ValueError, match="batches ended"), run:
        run.train()
    assert SavedRun.read(tmp_path, Config, wing="detection").config.train.lr == 0.5


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_nothing_is_written_where_a_folder_no_longer_is(tmp_path, how):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    training = Fitting(save_every=2)

    def moving() -> Iterator:
        for step, batch in enumerate(batches(0, 10)):
            if step == 4:
                folder.rename(elsewhere)
                if how == "removed":
                    shutil.rmtree(elsewhere)
            yield batch

    training.given = moving()
    with pytest.raises(FolderMovedError, match=f"{folder} was moved or removed"):
        trained(training, folder)
    assert not folder.exists()
    if how == "moved":
        assert load_state(elsewhere / "last.pt", ())["progress"]["step"] == 4
        _, run = resumed(elsewhere)
        with run:
            run.train()


WRONG_FIELDS = {
    "config": [None, 3, "{", "[]", "[" * 100_000, "{}"],
    "num_images": [None, -1, 0, True, 10**400, "80", torch.ones(2)],
    "progress": [
        *(None, [], {}, {"step": 1}, {"step": -1, "evaluations": {}}),
        *({"step": step, "evaluations": {}} for step in (11, 10**400, True, 5.0)),
        *({"step": 5, "evaluations": given} for given in ({9: 1.0}, {2: 10**400}, [])),
        {"step": 5, "evaluations": {}, "more": 1},
    ],
    "meter": [
        *(None, {}, {"sums": {}, "steps": 1, "images": 8, "step_s": 0.1, "data_s": 0.1}),
        {"sums": {"a": 1}, "steps": 1, "images": 8, "step_s": 0.1, "data_s": 0.1},
        {"sums": {}, "steps": 0, "images": 0, "step_s": -1.0, "data_s": 0.1},
    ],
    "data": [None, {}, {"train": {}}, {"train": {"records": 1, "files": 2}}],
    "environment": [None, "x", [1]],
    "writers": [None, "x", [1], {"WandbWriter": 1}],
    "model": [None, [], {"a": 1}, {1: torch.ones(1)}],
    "optimizer": [None, {}, {"state": {}, "param_groups": []}, {"state": 1, "param_groups": 2}],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in WRONG_FIELDS.items() for value in values],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_a_field_that_no_run_writes_is_named_before_anything_is_written(tmp_path, key, value):
    interrupted(tmp_path, 4)
    changed(tmp_path, **{key: value})
    before = files(tmp_path)
    with pytest.raises(
        (CheckpointError, ConfigError), match=rf"last\.pt.*{key}|last\.pt: train"
    ) as e:
        resumed(tmp_path)
    assert len(str(e.value)) < 400
    assert files(tmp_path) == before


@pytest.mark.parametrize("missing", ["format", "wing", "data", "environment", "meter"])
def test_a_state_without_what_its_format_has_is_refused(tmp_path, missing):
    interrupted(tmp_path, 4)
    state = load_state(tmp_path / "last.pt", ())
    del state[missing]
    save_state(tmp_path / "last.pt", state)
    with pytest.raises(CheckpointError, match=rf"it lacks {missing}; it holds"):
        SavedRun.read(tmp_path, Config, wing="detection")


@pytest.mark.parametrize("place", ["a parameter", "all", "never_used"])
def test_a_state_whose_optimizer_lost_something_is_refused(tmp_path, place):
    interrupted(tmp_path, 4)
    optimizer = load_state(tmp_path / "last.pt", ())["optimizer"]
    if place == "never_used":
        del optimizer[place]
    else:
        optimizer["state"] = {1: optimizer["state"][1]} if place == "a parameter" else {}
    changed(tmp_path, optimizer=optimizer)
    with pytest.raises(CheckpointError, match=r"last\.pt .* its 'optimizer' is not"):
        resumed(tmp_path)


def test_a_state_of_format_1_goes_on_and_it_is_said_once(tmp_path, capsys):
    interrupted(tmp_path, 4)
    state = load_state(tmp_path / "last.pt", ())
    for key in ("format", "wing", "data", "environment", "meter"):
        del state[key]
    save_state(tmp_path / "last.pt", state)
    _, run = resumed(tmp_path)
    with run:
        run.train()
    assert (
        capsys.readouterr().out.count("is of an earlier version and does not say which data") == 1
    )
    _, run = resumed(tmp_path)
    with run:
        run.train()
    assert "earlier version" not in capsys.readouterr().out


def test_other_data_are_gone_on_with_where_that_is_accepted(tmp_path, capsys):
    interrupted(tmp_path, 4)
    saved = SavedRun.read(tmp_path, Config, wing="detection")
    training = Fitting(config=saved.config, num_images=81)
    training.model.load_state_dict(saved.state["model"])
    options = {"device": CPU, "resume_line": resume_line, "accept_data_change": True}
    training.run = TrainingRun.resume(saved, training, **options)
    with training.run as run:
        run.train()
    assert (
        "note: goes on with other data than it was trained on: in train, 80 records then, 81 now, "
        "the first that differs is point 80\n"
    ) in capsys.readouterr().out
    again = SavedRun.read(tmp_path, Config, wing="detection")  # has learned from these now
    with TrainingRun.resume(
        again, Fitting(config=again.config, num_images=81), device=CPU, resume_line=resume_line
    ):
        pass


def test_what_else_is_otherwise_is_said_in_a_line(tmp_path, capsys):
    interrupted(tmp_path, 4)
    facts = load_state(tmp_path / "last.pt", ())["environment"]
    changed(tmp_path, environment=facts | {"threads": 64, "torch": "1.0"})
    _, run = resumed(tmp_path)
    with run:
        run.train()
    assert (
        f"note: torch {torch.__version__} (before: 1.0), threads {torch.get_num_threads()} "
        "(before: 64): the last digits may differ from a run never stopped\n"
    ) in capsys.readouterr().out


def test_a_run_in_use_is_not_resumed(tmp_path):
    with start(Fitting(), tmp_path / "run") as run:
        run.save()
        with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on "):
            SavedRun.read(run.folder, Config, wing="detection")


def test_a_state_written_since_it_was_read_is_not_gone_on_from(tmp_path):
    interrupted(tmp_path, 4)
    saved = SavedRun.read(tmp_path, Config, wing="detection")
    changed(tmp_path, more=8)
    with pytest.raises(CheckpointError, match="was written by another process while it was read"):
        TrainingRun.resume(saved, Fitting(config=saved.config), device=CPU, resume_line=resume_line)
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("wing", [None, 3, ["detection"], "klingon", "", "d" * 9999])
def test_a_state_of_no_wing_is_refused_by_name(tmp_path, wing):
    interrupted(tmp_path, 4)
    state = load_state(tmp_path / "last.pt", ())
    save_state(tmp_path / "last.pt", state | {"wing": wing})
    with pytest.raises(CheckpointError, match=r"last\.pt.* 'wing' .*detection or class") as caught:
        SavedRun.read(tmp_path, Config, wing="detection")
    assert len(str(caught.value)) < 400


def test_a_run_of_the_other_wing_is_called_that(tmp_path):
    interrupted(tmp_path, 4)
    with pytest.raises(OtherWingError, match=r"is a run of detection, not of classification$"):
        SavedRun.read(tmp_path, Config, wing="classification", keys=("input",))
    with pytest.raises(
        CheckpointError, match=f"is a file; a run is resumed by its folder, {tmp_path}$"
    ):
        SavedRun.read(tmp_path / "last.pt", Config, wing="detection")


@pytest.mark.parametrize(
    ("precision", "native"), [("auto", "bf16"), ("auto", "fp32"), ("bf16", "fp32")]
)
def test_the_precision_is_settled_once_said_and_stored(
    tmp_path, monkeypatch, capsys, precision, native
):
    answer = (native, "because it is so")
    monkeypatch.setattr("detres.runs.settings.native_precision", lambda _device: answer)
    monkeypatch.setattr("detres.runs.run.native_precision", lambda _device: answer)
    interrupted(tmp_path, 4, precision=precision)
    settled = native if precision == "auto" else precision
    shown = capsys.readouterr().out
    assert (f"note: precision {settled}: because it is so\n" in shown) == (precision == "auto")
    assert f"{plural(torch.get_num_threads(), 'thread')}, {settled}\n" in shown
    assert load_config(tmp_path / "config.yaml", Config).train.precision == settled
    monkeypatch.setattr("detres.runs.run.native_precision", lambda _: ("fp32", "it has none"))
    _, run = resumed(tmp_path)
    assert run.config.train.precision == settled
    with run:
        run.train()
    slower = "note: goes on in bf16, as it began, though it has none: slower here\n"
    assert (slower in capsys.readouterr().out) == (settled == "bf16")


@pytest.mark.parametrize(("warmup", "said"), [(10, False), (11, True)])
def test_a_warm_up_longer_than_the_run_is_said(tmp_path, capsys, warmup, said):
    trained(Fitting(warmup_steps=warmup), tmp_path / "run")
    note = "note: the warm-up of 11 steps (train.warmup_steps) is longer than the run: its rate "
    assert (f"{note}stays below 0.05\n" in capsys.readouterr().out) == said


# ---- evaluations of some images on the way and of all at the end ----


def _without_digests(record: dict) -> dict:
    return {name: value for name, value in record.items() if not name.endswith("_digest")}


def test_on_the_way_some_images_are_looked_at_and_at_the_end_all(tmp_path, capsys):
    training = Fitting({4: 0.5, 8: 0.7, 10: 0.6}.get, eval_every=4)
    training.part, training.on_all = (5, 20), {10: 0.4}.get
    assert trained(training, tmp_path).metrics == {"AP": 0.4}
    assert training.wholes == [(4, False), (8, False), (10, True)]
    # the one at the end is compared by the same images as those before
    assert [event for event in training.asked if event[0] != "evaluate"] == [
        ("best", 4),
        ("best", 8),
        ("keep", 10),
    ]
    assert training.kept_whole
    losses = {"val_loss": 2.0, "val_loss_fit": 1.5}
    assert [_without_digests(record) for record in records(tmp_path, "eval")] == [
        {"step": 4, "kind": "eval", "AP": 0.5, **losses, "images": 5},
        {"step": 8, "kind": "eval", "AP": 0.7, **losses, "images": 5},
        {"step": 10, "kind": "eval", "AP": 0.4, **losses, "images": 20, "compared_by": 0.6},
    ]
    state = load_state(tmp_path / "last.pt", ("progress",))
    expected = Progress(10, {4: 0.5, 8: 0.7, 10: 0.6}, whole=10)
    assert Progress.from_dict(state["progress"]) == expected
    lines = capsys.readouterr().out.splitlines()
    first = lines.index(
        "on 5 of 20 held-out images, the same every time; on all of them at the end"
    )
    assert lines[first + 1 : first + 3] == [
        "AP 0.5, by hand",
        "held-out loss 2.000  fit 1.500",
    ]
    assert lines[-2:] == [
        "AP 0.4, by hand",
        "held-out loss 2.000  fit 1.500  (of the same 5 images)",
    ]


def test_a_run_that_stops_early_is_evaluated_on_all(tmp_path, capsys):
    metrics = {2: 0.5, 4: 0.4, 6: 0.5, 8: 0.9}
    training = Fitting(metrics.get, eval_every=2, early_stopping=2)
    training.part, training.on_all = (5, 20), {6: 0.3}.get
    assert trained(training, tmp_path).metrics == {"AP": 0.3}
    assert training.wholes == [(2, False), (4, False), (6, False), (6, True)]
    assert [(record["step"], record["images"]) for record in records(tmp_path, "eval")] == [
        (2, 5),
        (4, 5),
        (6, 20),
    ]
    assert "early stopping: none of the last 2 evaluations was better than 0.5" in (
        capsys.readouterr().out.splitlines()
    )
    again, run = resumed(tmp_path, metric=metrics.get, part=(5, 20))
    with run:
        before = files(tmp_path)
        run.train()
        assert files(tmp_path) == before
    assert again.wholes == [(6, True)]
    assert "finished: stopped early after step 6 of 10; evaluated once more" in (
        capsys.readouterr().out.splitlines()
    )
    more, run = resumed(tmp_path, "train.early_stopping=0", metric=metrics.get, part=(5, 20))
    with run:
        run.train()
    assert more.wholes == [(8, False), (10, True)]


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_with_everything_on_a_resumed_run_equals_a_straight_one_bit_for_bit(tmp_path, stop_at):
    settings = {"eval_every": 2, "early_stopping": 3, "ema_decay": 0.8, "log_every": 3}
    metrics = {2: 0.5, 4: 0.4, 6: 0.3, 8: 0.2, 10: 0.9}
    straight = Fitting(metrics.get, **settings)
    straight.part = (5, 20)
    trained(straight, tmp_path / "straight")
    interrupted(tmp_path / "resumed", stop_at - 1, part=(5, 20), metric=metrics.get, **settings)
    training, run = resumed(tmp_path / "resumed", metric=metrics.get, part=(5, 20))
    with run:
        run.train()
    assert run.progress == Progress(8, {2: 0.5, 4: 0.4, 6: 0.3, 8: 0.2}, whole=8)
    assert same_training((straight.model, straight.optimizer), (training.model, training.optimizer))
    assert same_tensors(run.average.tensors, straight.run.average.tensors)
    assert same_tensors(training.kept_weights[-1], straight.kept_weights[-1])
    assert all_records(tmp_path / "resumed") == all_records(tmp_path / "straight")
    last = [load_state(tmp_path / name / "last.pt", STATE_KEYS) for name in ("straight", "resumed")]
    assert same_tensors(last[0]["average"], last[1]["average"])
    assert same_tensors(last[0]["model"], last[1]["model"])
    assert last[0]["progress"] == last[1]["progress"]


def test_neither_average_nor_evaluations_change_what_is_learnt(tmp_path):
    plain = Fitting()
    trained(plain, tmp_path / "plain")
    other = Fitting(eval_every=1, ema_decay=0.9)
    other.part = (5, 20)
    trained(other, tmp_path / "other")
    assert same_training((plain.model, plain.optimizer), (other.model, other.optimizer))
    training_records = [
        [{k: v for k, v in each.items() if k not in TIMES} for each in records(folder, "train")]
        for folder in (tmp_path / "plain", tmp_path / "other")
    ]
    assert training_records[0] == training_records[1]


# ---- the moving average ----


def test_the_average_is_what_is_evaluated_and_kept_and_the_weights_are_what_learns(tmp_path):
    training = Fitting(ema_decay=0.5, eval_every=5)
    trained(training, tmp_path)
    average = training.run.average
    assert same_tensors(training.judged, average.tensors)
    assert same_tensors(training.kept_weights[-1], average.tensors)
    own = training.model.state_dict()
    assert not same_tensors(own, average.tensors)
    state = load_state(tmp_path / "last.pt", ("average", "model"))
    assert same_tensors(state["average"], average.tensors)
    assert same_tensors(state["model"], own)
    again, run = resumed(tmp_path)  # a finished run is evaluated by it, too
    with run:
        run.train()
    assert same_tensors(again.judged, average.tensors)
    assert same_tensors(again.model.state_dict(), own)


def test_a_state_without_the_average_that_is_wanted_is_refused(tmp_path):
    interrupted(tmp_path, 4, ema_decay=0.5)
    state = load_state(tmp_path / "last.pt", STATE_KEYS)
    for value in (None, {"linear.weight": torch.ones(1, 3)}, 3):
        state["average"] = value
        save_state(tmp_path / "last.pt", state)
        with pytest.raises(CheckpointError, match="its 'average' is not what a run writes"):
            resumed(tmp_path)
    del state["average"]
    save_state(tmp_path / "last.pt", state)
    with pytest.raises(CheckpointError, match=r"'average' is not what a run writes .*without"):
        resumed(tmp_path)


# ---- another length ----


def test_a_longer_run_is_the_one_that_was_to_be_so_long_from_the_start(tmp_path, capsys):
    straight = Fitting(eval_every=4, steps=10)
    trained(straight, tmp_path / "straight")
    trained(Fitting(eval_every=4, steps=8), tmp_path / "run")
    training, run = resumed(tmp_path / "run", "train.steps=10")
    with run:
        run.train()
    assert same_training((straight.model, straight.optimizer), (training.model, training.optimizer))
    assert all_records(tmp_path / "run") == all_records(tmp_path / "straight")
    assert load_config(tmp_path / "run" / "config.yaml", Config).train.steps == 10
    assert load_config(tmp_path / "run" / "config-until-step-8.yaml", Config).train.steps == 8
    assert (
        "note: goes on to step 10, where 8 was the end: the multistep schedule is that of 10 steps "
        "from here on, lr 0.005"
    ) in capsys.readouterr().out.splitlines()


def test_the_cosine_is_that_of_the_new_length_from_there_on(tmp_path, capsys):
    cosine = {"schedule": "cosine", "milestones": [], "warmup_steps": 0, "log_every": 1}
    trained(Fitting(steps=4, **cosine), tmp_path)
    _, run = resumed(tmp_path, "train.steps=8")
    with run:
        run.train()
    rates = [record["lr"] for record in records(tmp_path, "train")]
    half = [0.05 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(4, 8)]
    assert rates[4:] == pytest.approx(half)
    assert "lr 0.025 in place of 0" in capsys.readouterr().out


def test_a_shorter_run_ends_where_it_is_told_to(tmp_path):
    interrupted(tmp_path, 4, milestones=[])
    training, run = resumed(tmp_path, "train.steps=5", part=(5, 20))
    with run:
        run.train()
    assert training.wholes == [(5, True)]
    assert run.progress == Progress(5, {5: 5.0}, whole=5)


def test_at_a_step_of_which_some_images_were_looked_at_the_end_looks_at_all(tmp_path):
    def metric(step: int) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return float(step)

    training = Fitting(metric, milestones=[], eval_every=5)
    training.part = (5, 20)
    with pytest.raises(Interrupted):
        trained(training, tmp_path)
    assert training.wholes == [(5, False)]
    training, run = resumed(tmp_path, "train.steps=5", part=(5, 20))
    with run:
        run.train()
    assert training.wholes == [(5, True)]
    assert run.progress.whole == 5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.steps=4"], "train.steps=4: the run is at step 5 already, which it cannot end"),
        (
            ["train.steps=null", "train.epochs=0.4"],
            "train.epochs=0.4, 4 steps: the run is at step 5 already",
        ),
    ],
)
def test_a_run_cannot_end_before_where_it_is(tmp_path, overrides, said):
    interrupted(tmp_path, 4, milestones=[])
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)):
        resumed(tmp_path, *overrides)
    assert files(tmp_path) == before


def test_a_length_in_epochs_may_change_too(tmp_path):
    interrupted(tmp_path, 4, milestones=[])
    _, run = resumed(tmp_path, "train.steps=null", "train.epochs=0.7")
    with run:
        run.train()
    assert run.progress.step == 7


# ---- time ----


def test_the_time_before_a_resume_counts(tmp_path):
    with start(Fitting(), tmp_path) as run:
        run.started -= 600
        run.save()
    with resumed(tmp_path)[1] as run:
        assert run.earlier_s >= 600
        run.started -= 1200
        assert run.duration().startswith("30 min")
        run.save()
    with resumed(tmp_path)[1] as run:
        assert run.earlier_s >= 1800
    state = load_state(tmp_path / "last.pt", STATE_KEYS)
    del state["seconds"]  # as earlier versions wrote it
    save_state(tmp_path / "last.pt", state)
    with resumed(tmp_path)[1] as run:
        assert run.earlier_s == 0.0


@pytest.mark.parametrize("seconds", [-1.0, "5", 5, None])
def test_what_is_no_time_is_refused(tmp_path, seconds):
    interrupted(tmp_path, 4)
    state = load_state(tmp_path / "last.pt", STATE_KEYS)
    state["seconds"] = seconds
    save_state(tmp_path / "last.pt", state)
    with pytest.raises(CheckpointError, match="its 'seconds' is not what a run writes"):
        resumed(tmp_path)


def test_early_stopping_that_cannot_act_is_said(tmp_path, capsys):
    trained(Fitting(eval_every=4, early_stopping=2), tmp_path)
    assert (
        "note: train.early_stopping=2 cannot act: there are 2 evaluations on the way, the first of "
        "them among these"
    ) in capsys.readouterr().out.splitlines()
    trained(Fitting(eval_every=3, early_stopping=2), tmp_path / "other")
    assert "cannot act" not in capsys.readouterr().out
