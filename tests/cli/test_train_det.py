"""train-det end to end: what a run leaves behind, that it repeats, resumes and starts from
weights, on every kind of data.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
import torch
from safetensors import safe_open

import detres
from backbones.files import write_safetensors
from detres.cli import eval as evaluate
from detres.cli import train_det
from detres.config import load_config
from detres.detection.alternating import FOLDERS
from detres.detection.config import DetectionConfig
from detres.detection.data.shapes import SHAPES_CLASSES
from detres.detection.weights_file import load_detector, score_thresholds_of
from detres.engine.progress import Progress
from detres.runs.lock import FolderLock
from detres.runs.saved import STATE_KEYS
from detres.runs.state import load_state
from tests.cli.conftest import (
    COCO_FLAGS,
    SPARSE_IDS,
    TRAIN_IMAGES,
    VAL_IMAGES,
    FinishedRun,
    numbers_in,
    read_json,
    records,
    same_tensors,
    snapshot,
    tensors,
)

REPOSITORY = Path(__file__).resolve().parents[2]
LOSSES = ("loss_rpn_cls", "loss_rpn_box", "loss_roi_cls", "loss_roi_box")
Train = Callable[..., Path]


def state_of(folder: Path) -> dict:
    return load_state(folder / "last.pt", STATE_KEYS)


def same_outcome(one: Path, other: Path) -> bool:
    """Whether two runs have the same losses, evaluations and weights, bit for bit."""
    same_records = all(records(one, kind) == records(other, kind) for kind in ("train", "eval"))
    return (
        same_records
        and same_tensors(state_of(one)["model"], state_of(other)["model"])
        and same_tensors(tensors(one), tensors(other))
    )


def test_a_run_leaves_every_file(finished: FinishedRun) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        *("config.yaml", "env.json", "metrics.jsonl", "tensorboard"),
        *(
            "last.pt",
            "previous.pt",
            "best.safetensors",
            "predictions.json",
            "metrics.json",
            "val.jpg",
        ),
        *("curves.png", "curves.csv", "pr.png", "pr.csv", "pr.json", "classes.csv"),
        *("confusion.png", "confusion.csv", "confusion.json"),
    }
    assert list((finished.folder / "tensorboard").glob("events.out.tfevents.*"))
    for picture in ("val.jpg", "curves.png", "pr.png", "confusion.png"):
        assert cv2.imread(str(finished.folder / picture)).std() > 1
    assert read_json(finished.folder / "env.json")[0]["torch"] == torch.__version__


def test_a_split_that_is_drawn_is_kept_and_used_again(
    train: Train, coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a training image of the first run is among those that the second is judged by."""
    whole = COCO_FLAGS[:3]
    drawn = train(*whole, "data.val_share=0.25", flags=("--data", str(coco_folder)))
    said = capsys.readouterr().out
    split = read_json(drawn / "split.json")
    assert {part: len(names) for part, names in split.items()} == {"train": 6, "val": 2}
    assert re.search(
        r"digest of what is learned from, the same in every format: [0-9a-f]{16}\n", said
    )
    assert "2 of 8 images are val, drawn with seed 0" in said
    settings = (*whole, f"data.split={drawn / 'split.json'}", "data.split_seed=9")
    again = train(*settings, flags=("--data", str(coco_folder)))
    assert read_json(again / "split.json") == split
    assert same_tensors(tensors(drawn), tensors(again))


def test_the_saved_config_loads_back_to_that_of_the_weights_and_of_the_state(
    finished: FinishedRun,
) -> None:
    config = load_config(finished.folder / "config.yaml", DetectionConfig)
    assert config.train.steps == 4
    assert config.data.root == str(finished.data)
    assert json.loads(state_of(finished.folder)["config"]) == json.loads(config.model_dump_json())
    _, of_weights, class_map = load_detector(finished.weights)
    assert (of_weights.model, of_weights.data, of_weights.eval) == (
        config.model,
        config.data,
        config.eval,
    )
    assert class_map.names == SHAPES_CLASSES
    assert class_map.source_ids == SPARSE_IDS


def test_the_best_evaluation_is_the_one_on_file(finished: FinishedRun) -> None:
    evaluations = {record["step"]: record["AP"] for record in records(finished.folder, "eval")}
    assert list(evaluations) == [2, 4]
    numbers = finished.numbers()
    assert numbers["AP"] == evaluations[numbers["step"]] == max(evaluations.values())
    assert Progress(**state_of(finished.folder)["progress"]).best == numbers["AP"]
    found = read_json(finished.folder / "predictions.json")
    assert {record["category_id"] for record in found} <= set(SPARSE_IDS)
    assert {record["image_id"] for record in found} <= set(range(1, VAL_IMAGES + 1))


def test_the_weights_carry_the_scores_that_were_best_on_the_held_out_images(
    finished: FinishedRun,
) -> None:
    _, _, class_map = load_detector(finished.weights)
    classes = read_json(finished.folder / "pr.json")["classes"]
    scores = [classes[name]["score_threshold"] for name in class_map.names]
    assert list(score_thresholds_of(finished.weights, class_map)) == scores
    assert any(score != 0.5 for score in scores)
    counts = read_json(finished.folder / "confusion.json")["counts"]
    objects = [classes[name]["num_objects"] for name in class_map.names]
    assert [sum(row) for row in counts][:-1] == objects
    assert sum(objects) > 0


def test_same_seed_same_run_and_the_first_is_left_as_it_is(train: Train) -> None:
    first = train()
    before = snapshot(first)
    second = train()
    other = train(flags=("--seed", "4"))
    assert [str(folder) for folder in (first, second, other)] == [
        "runs/tiny",
        "runs/tiny-2",
        "runs/tiny-3",
    ]
    assert snapshot(first) == before
    assert same_outcome(first, second)
    assert load_config(other / "config.yaml", DetectionConfig).seed == 4
    assert not same_tensors(tensors(first), tensors(other))
    assert records(first, "train")[0]["loss"] != records(other, "train")[0]["loss"]


@pytest.fixture
def _not_deterministic_after() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("_not_deterministic_after")
def test_equal_seeds_give_equal_weights_with_loader_workers_too(train: Train) -> None:
    settings = ("data.workers=2", "train.steps=4", "train.eval_every=2")
    first, second = (train(*settings, flags=("--deterministic",)) for _ in range(2))
    assert same_outcome(first, second)
    plain = train("data.workers=0", *settings[1:])
    digests = [
        [(each["weights_digest"], each["order_digest"]) for each in records(folder, "eval")]
        for folder in (first, plain)
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2


@pytest.mark.usefixtures("_not_deterministic_after")
def test_a_resumed_run_is_deterministic_where_it_was(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(flags=("--deterministic",))
    said = f"note: {folder} goes on with --deterministic; --no-deterministic ends that\n"

    def resumed(steps: int, *flags: str) -> tuple[bool, str, str]:
        """Whether it was deterministic, in a process that is not, and what it said."""
        torch.use_deterministic_algorithms(False)
        capsys.readouterr()
        longer = ["--set", f"train.steps={steps}"]
        assert train_det.main(["--resume", str(folder), "--device", "cpu", *longer, *flags]) == 0
        kept = load_state(folder / "last.pt", ())["environment"]["deterministic"]
        assert kept == torch.are_deterministic_algorithms_enabled()
        return kept, *capsys.readouterr()

    for steps in (3, 4):
        was, out, err = resumed(steps)
        assert was
        assert err == said
        assert "(before:" not in out
    was, out, err = resumed(5, "--no-deterministic")
    assert not was
    assert err == ""
    assert "note: deterministic False (before: True): the last digits may differ" in out
    was, out, err = resumed(6)
    assert not was
    assert "deterministic" not in out + err
    assert resumed(7, "--deterministic")[0]


@pytest.mark.usefixtures("_not_deterministic_after")
def test_so_are_the_steps_of_alternating_training_that_have_not_begun(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("train.scheme=alternating", "train.steps=8", "train.phase_steps=[2,2,2,2]")
    folder = train(*settings, flags=("--deterministic",))
    shutil.rmtree(folder / FOLDERS[-1])  # as where it was stopped before the last
    torch.use_deterministic_algorithms(False)
    assert train_det.main(["--resume", str(folder), "--device", "cpu"]) == 0
    assert f"note: {folder} goes on with --deterministic" in capsys.readouterr().err
    last = load_state(folder / FOLDERS[-1] / "last.pt", ())
    assert last["environment"]["deterministic"] is True


@pytest.mark.usefixtures("_not_deterministic_after")
def test_in_python_too(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(flags=("--deterministic",))
    for given, expected in ((None, True), (False, False), (None, False), (True, True)):
        torch.use_deterministic_algorithms(False)
        capsys.readouterr()
        steps = load_state(folder / "last.pt", ())["progress"]["step"] + 1
        detres.resume(folder, settings={"train.steps": steps}, device="cpu", deterministic=given)
        assert torch.are_deterministic_algorithms_enabled() == expected
        said = f"note: {folder} goes on deterministically" in capsys.readouterr().out
        assert said == expected


def test_a_batch_that_fits_is_found_and_written_as_numbers(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("train.batch_size=auto", "train.reference_batch=4")
    folder = train(*settings, flags=("--probe-memory",))
    said = capsys.readouterr().out
    assert "train.batch_size=auto: 4, train.accumulate=1 for the 4 images of a step" in said
    assert re.search(r"worst batch, 4 of 128x96 px with [\d, ]+ boxes: \d+\.\d GiB", said)
    written = load_config(folder / "config.yaml", DetectionConfig).train
    assert (written.batch_size, written.accumulate) == (4, 1)
    same = train("train.batch_size=4", "train.reference_batch=4")
    assert same_outcome(folder, same)  # the probe leaves nothing behind


def test_checkpointed_activations_change_no_bit_of_the_run(train: Train) -> None:
    assert same_outcome(train(), train("train.checkpoint_activations=true"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.precision=fp16"], "fp16 needs a GPU: bf16 is for processors"),
        (
            ["--set", "train.scheme=alternating", "train.steps=8", "--probe-memory"],
            "--probe-memory goes with one model",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_said_in_a_line(
    tiny: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    assert train_det.main(["--cfg", str(tiny), *arguments, *out]) == 2
    assert message in capsys.readouterr().err


def test_before_learning_the_losses_are_those_of_guessing(finished: FinishedRun) -> None:
    first = records(finished.folder, "train")[0]
    assert first["loss_roi_cls"] == pytest.approx(
        math.log(len(SHAPES_CLASSES) + 1), abs=0.4
    )  # the logits start near 0, not at 0
    assert first["loss_rpn_cls"] == pytest.approx(math.log(2), abs=0.02)
    assert first["loss"] == pytest.approx(sum(first[name] for name in LOSSES), rel=1e-5)


def test_the_same_objects_train_alike_from_every_format(
    train: Train, coco_folder: Path, voc_folder: Path
) -> None:
    shapes = train()
    coco = train(*COCO_FLAGS, flags=("--data", str(coco_folder)))
    # in the order of the others, not of the alphabet
    classes = f"data.classes=[{', '.join(SHAPES_CLASSES)}]"
    voc = train(
        "data.format=voc",
        "data.train=[train]",
        "data.val=[val]",
        classes,
        flags=("--data", str(voc_folder)),
    )
    assert same_outcome(shapes, coco)
    assert records(voc, "train") == records(shapes, "train")
    assert same_tensors(tensors(voc), tensors(shapes))


def test_epochs_are_counted_in_images(train: Train) -> None:
    folder = train(
        "train.steps=null", "train.epochs=1.5", "train.milestones=[1]", "train.lr_scaling=none"
    )
    rates = [record["lr"] for record in records(folder, "train")]
    assert rates == pytest.approx([0.01] * 4 + [0.001] * 2)  # 8 images in batches of 2


def test_images_without_objects_train(train: Train, coco_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "sparse"
    shutil.copytree(coco_folder, root)
    file = root / "annotations" / "train.json"
    content = read_json(file)
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] == 5]
    file.write_text(json.dumps(content))
    folder = train(
        *COCO_FLAGS,
        "train.batch_size=1",
        f"train.steps={TRAIN_IMAGES}",
        flags=("--data", str(root)),
    )
    losses = records(folder, "train")
    without = [record for record in losses if record["loss_roi_box"] == record["loss_rpn_box"] == 0]
    assert len(without) == TRAIN_IMAGES - 1
    assert all(math.isfinite(record["loss"]) and record["loss_roi_cls"] > 0 for record in losses)


@pytest.mark.usefixtures("train")
def test_a_loss_that_is_not_finite_ends_the_run_with_its_culprit(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["train.steps=4", "train.lr=1e20", "train.clip_grad_norm=null"]
    assert train_det.main(["--cfg", str(tiny), "--set", *settings, "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: non-finite loss in step 2: loss_rpn_cls = nan")
    assert error.count("\n") == 1
    assert read_json(Path("runs/tiny/bundle-step-2/bundle.json"))["step"] == 1
    assert state_of(Path("runs/tiny"))["progress"]["step"] == 0


def test_training_starts_from_a_detectors_weights(train: Train, finished: FinishedRun) -> None:
    folder = train(
        *COCO_FLAGS,
        "train.steps=1",
        "train.lr=1e-30",
        flags=("--init-from", str(finished.weights), "--data", str(finished.data)),
    )
    learned = {
        name: tensor
        for name, tensor in tensors(finished.folder).items()
        if "running_" not in name and "num_batches" not in name
    }
    started = tensors(folder)
    assert same_tensors(learned, {name: started[name] for name in learned})


class CtrlC:
    """Sends this process SIGINT once `folder` has the record of step `after`."""

    def __init__(self, folder: Path, after: int) -> None:
        self.folder, self.after = folder, after
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.thread.join(timeout=10)

    def _watch(self) -> None:
        for _ in range(6000):
            file = self.folder / "metrics.jsonl"
            if file.exists() and file.read_text().count("\n") >= self.after:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.01)


EVERY_OPTION = (
    *(
        "train.steps=8",
        "train.optimizer=adamw",
        "train.lr=1e-4",
        "train.precision=bf16",
        "train.schedule=cosine",
        "train.warmup_steps=3",
    ),
    *(
        "model.input.train_short_sides=[64, 96]",
        "data.color=0.5",
        "data.workers=1",
        "train.eval_every=2",
        "train.eval_images=2",
        "train.early_stopping=3",
        "train.ema_decay=0.9",
        "train.save_every=3",
    ),
)


def test_what_is_evaluated_on_the_way_and_averaged_changes_no_training(train: Train) -> None:
    plain = train("train.steps=4", "train.eval_every=0")
    other = train(
        "train.steps=4", "train.eval_every=1", "train.eval_images=2", "train.ema_decay=0.9"
    )
    assert records(plain, "train") == records(other, "train")
    assert same_tensors(state_of(plain)["model"], state_of(other)["model"])
    assert [record["images"] for record in records(other, "eval")] == [2, 2, 2, VAL_IMAGES]
    (last,) = records(plain, "eval")
    assert last["images"] == VAL_IMAGES
    assert {f"val_{name}" for name in ("loss", *LOSSES)} <= last.keys()
    # beside the average, the weights themselves
    state = state_of(other)
    assert not same_tensors(state["average"], state["model"])


def test_a_run_is_lengthened_and_says_what_the_rate_does(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    cosine = ("train.schedule=cosine", "train.eval_every=0")
    folder = train(*cosine, "train.steps=2")
    capsys.readouterr()
    resume = ["--resume", str(folder), "--device", "cpu", "--set"]
    assert train_det.main([*resume, "train.steps=1"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: train.steps=1: the run is at step 2 already, which it cannot end before\n"
    )
    assert train_det.main([*resume, "train.steps=4"]) == 0
    assert (
        "note: goes on to step 4, where 2 was the end: the cosine schedule is that of 4 steps from "
        "here on, lr 0.005 in place of 0\n"
    ) in capsys.readouterr().out
    assert [record["step"] for record in records(folder, "train")] == [1, 2, 3, 4]
    assert [record["step"] for record in records(folder, "eval")] == [2, 4]
    assert read_json(folder / "metrics.json")["step"] in (2, 4)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_and_resume_end_where_a_straight_run_does(
    train: Train, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train(*EVERY_OPTION)
    stopped = Path("runs/tiny-2")
    with CtrlC(stopped, after=2):
        assert (
            train_det.main(["--cfg", str(tiny), "--set", *EVERY_OPTION, "--device", "cpu"]) == 130
        )
    out, error = capsys.readouterr()
    step = state_of(stopped)["progress"]["step"]
    assert 2 <= step < 8
    assert error.startswith("\nstopping when this step")
    assert f"stopped after step {step}; continue with: detres train-det --resume {stopped}" in out
    assert (
        train_det.main(["--cfg", str(tiny), "--resume", "--device", "cpu"]) == 0
    )  # the newest runs/tiny*
    assert same_outcome(straight, stopped)


SMALL_SHAPES = (
    *(
        "data.shapes_train=8",
        "data.shapes_val=4",
        "data.workers=0",
        "model.input.short_side=96",
        "model.input.max_side=128",
    ),
    *(
        "train.steps=6",
        "train.batch_size=2",
        "train.log_every=1",
        "train.precision=fp32",
        "train.save_every=1000",
        "train.eval_every=0",
    ),
)


PROGRAMS = {
    "python": [sys.executable],
    "detres": [sys.executable, "-c", "import sys, detres.cli; sys.exit(detres.cli.main())"],
}
"""First word of a command line -> how it is run here, whatever is on PATH."""


def run_as_typed(command: str, *flags: str) -> subprocess.Popen:
    """Start a command line in a process group of its own."""
    program, *arguments = shlex.split(command)
    return subprocess.Popen(
        [*PROGRAMS[program], *arguments, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="signals to a process group")
@pytest.mark.slow
@pytest.mark.parametrize("command", ["python tools/train_det.py", "detres train-det"])
def test_without_a_config_it_stops_at_ctrl_c_and_the_command_it_names_resumes_exactly(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tools").symlink_to(REPOSITORY / "tools")
    flags = ["--set", *SMALL_SHAPES, "--device", "cpu"]
    assert train_det.main([*flags, "--out", "straight"]) == 0
    process = run_as_typed(command, *flags)
    try:
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("step 2/6") for line in lines)
        os.killpg(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, error
    folder = Path("runs/shapes_r18")
    (last,) = (line for line in out.splitlines() if line.startswith("stopped after step "))
    to_go_on = last.partition("; continue with: ")[2]
    assert to_go_on == f"{command} --resume {folder}"
    assert error.startswith("\nstopping when this step")
    assert error.count("\n") == 2
    assert not (folder / "best.safetensors").exists()
    process = run_as_typed(to_go_on, "--device", "cpu")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert same_outcome(Path("straight"), folder)


def test_resuming_a_finished_run_only_evaluates(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    kept = {
        name: digest
        for name, digest in snapshot(folder).items()
        if "tensorboard" not in name and name != "env.json"
    }
    assert train_det.main(["--resume", str(folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "steps 4..4" in out
    assert "step 4/4" not in out
    assert f"= {records(folder, 'eval')[-1]['AP']:.3f}" in out
    assert kept.items() <= snapshot(folder).items()


def test_resume_alone_takes_the_newest_run_of_the_configs_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("tiny_wide", "tiny-10", "tiny", "tiny-2")):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "last.pt").write_text("no state")
        os.utime(Path("runs", name, "last.pt"), (10**9 - age, 10**9 - age))
    shutil.copy(tiny, "settings.yaml")
    assert train_det.main(["--cfg", "settings.yaml", "--resume"]) == 2
    assert "runs/tiny-10/last.pt is not a training state" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--set", "train.batch_size=9"],
        ["--set", "train.ema_decay=0.9"],
        ["--seed", "1"],
        ["--out", "x"],
        ["--init-from", "w.safetensors"],
    ],
)
def test_resume_takes_no_settings(
    flags: list[str], finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished.folder)
    with pytest.raises(SystemExit) as ended:
        train_det.main(["--resume", str(finished.folder), *flags])
    assert ended.value.code == 2
    assert "--resume continues with the run's own settings" in capsys.readouterr().err
    assert snapshot(finished.folder) == before


EARLIER_NAMES = {"short_side": "shorter", "max_side": "longer"}


def test_an_earlier_name_of_a_setting_trains_alike_and_is_said(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    now = train("model.input.short_side=64")
    assert capsys.readouterr().err == ""
    earlier = train("model.input.shorter=64")
    assert capsys.readouterr().err == (
        "note: --set model.input.shorter=64: this is now called model.input.short_side\n"
    )
    assert same_outcome(now, earlier)
    assert (earlier / "config.yaml").read_text() == (now / "config.yaml").read_text()


def with_earlier_names(config: dict) -> dict:
    """A configuration, or its model, as it was stored under the earlier names."""
    model = config.get("model", config)
    model["input"] = {EARLIER_NAMES.get(key, key): model["input"][key] for key in model["input"]}
    return config


def test_files_of_a_run_with_earlier_names_are_read_without_a_word(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    state = torch.load(folder / "last.pt", weights_only=True)
    state["config"] = json.dumps(with_earlier_names(json.loads(state["config"])))
    assert '"shorter": 96' in state["config"]
    torch.save(state, folder / "last.pt")
    with safe_open(finished.weights, framework="pt") as file:
        metadata = file.metadata()
    metadata["model"] = json.dumps(with_earlier_names(json.loads(metadata["model"])))
    write_safetensors(folder / "best.safetensors", tensors(folder), metadata)
    _, config, _ = load_detector(folder / "best.safetensors")
    assert config == load_detector(finished.weights)[1].model_copy(update={"name": config.name})
    assert train_det.main(["--resume", str(folder), "--device", "cpu"]) == 0
    assert capsys.readouterr().err == ""
    out = tmp_path / "numbers.json"
    weights = str(folder / "best.safetensors")
    assert evaluate.main(["--weights", weights, "--json", str(out), "--device", "cpu"]) == 0
    assert capsys.readouterr().err == ""
    assert numbers_in(out) == {
        k: v for k, v in finished.numbers().items() if k not in ("step", "images")
    }


def test_a_run_on_data_that_have_changed_is_resumed_only_where_that_is_accepted(
    train: Train, coco_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(coco_folder, root)
    folder = train(*COCO_FLAGS, flags=("--data", str(root)))
    resume = ["--resume", str(folder), "--device", "cpu"]
    moved = root.rename(tmp_path / "moved")
    assert train_det.main([*resume, "--data", str(moved)]) == 0
    file = moved / "annotations" / "train.json"
    content = read_json(file)
    content["annotations"][0]["bbox"][2] += 0.001
    first = content["annotations"][0]["image_id"]
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert train_det.main([*resume, "--data", str(moved)]) == 2
    assert capsys.readouterr().err == (
        f"error: the data are not those that {folder}/last.pt was trained on: in train, 1 of "
        f"{TRAIN_IMAGES} records differ, the first is image {first}: put them back as they were, "
        "or give --resume DIR --accept-data-change to go on with them as they are now\n"
    )
    assert train_det.main([*resume, "--data", str(moved), "--accept-data-change"]) == 0
    assert "note: goes on with other data than it was trained on: in train" in (
        capsys.readouterr().out
    )


def test_a_running_run_is_evaluated_and_neither_resumed_nor_trained_into(
    train: Train, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train()
    with FolderLock(folder / "lock.json"):
        capsys.readouterr()
        weights = str(folder / "best.safetensors")
        assert evaluate.main(["--weights", weights, "--device", "cpu"]) == 0
        for flags in (["--resume", str(folder)], ["--cfg", str(tiny), "--out", str(folder)]):
            capsys.readouterr()
            assert train_det.main([*flags, "--device", "cpu"]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {folder} is in use by process {os.getpid()} on ")
            assert error.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("hotcoco") is None, reason="counts on the way")
def test_numbers_that_are_kept_on_the_way_are_counted_by_the_referee(train: Callable[..., Path]):
    """At this rate nothing is learned, so that the first evaluation is the one that is kept."""
    folder = train(
        "train.steps=2", "train.eval_every=1", "train.lr=1e-30", "model.backbone.norm=group"
    )
    kept = json.loads((folder / "metrics.json").read_text())
    assert kept["step"] == 1
    assert "pycocotools" in kept["protocol"]
