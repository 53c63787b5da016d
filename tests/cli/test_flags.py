"""What the commands share: how they end, what they advise, and how the user called them."""

from __future__ import annotations

import argparse
import errno
import math
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from detres.classification.config import ClassificationConfig
from detres.cli import train_cls, train_det
from detres.cli.flags import (
    CLASSIFICATION_CONFIG,
    CONFIGS,
    DETECTION_CONFIG,
    CommandParser,
    add_training_flags,
    called_as,
    require_resumable,
    resume_line_of,
)
from detres.cli.paths import config_path
from detres.commands.configured import config_from, read_config, saved_run
from detres.commands.ending import carried_out, ending, usable_device
from detres.config import ConfigError
from detres.detection.config import DetectionConfig
from detres.engine.flight_recorder import NonFiniteLossError
from detres.engine.stop import Interrupted
from detres.files import CheckpointError
from detres.images.decode import ImageReadError
from detres.runs.fingerprint import DataChangedError
from detres.runs.folder import NoRunError, RunFolderError
from detres.runs.saved import STATE_KEYS
from detres.runs.settings import DataRootError, ShapesRootError
from detres.runs.state import save_state
from tests.cli.conftest import TINY

REPORT_LINE = (
    "This is a fault of detres, not of what it was given: please report it with the lines below."
)

LESS_MEMORY = (
    "a smaller train.batch_size (eval.batch_size where it evaluates), smaller images or fewer "
    "data.workers need less"
)

IN_A_WORKER = """Caught ImageReadError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "worker.py", line 1, in _worker_loop
    data = fetcher.fetch(index)
detres.images.decode.ImageReadError: image file a: b.jpg cannot be read
"""


class FullFolderError(RunFolderError):
    """A run folder of a kind of its own."""


# --- how a command was called


@pytest.mark.parametrize(
    ("command", "program", "expected"),
    [
        ("train-det", "tools/train_det.py", "python tools/train_det.py"),
        ("train-det", "train_det.py", "python train_det.py"),
        ("train-cls", "/opt/detres/tools/train_cls.py", "python /opt/detres/tools/train_cls.py"),
        ("train-cls", "my tools/train_cls.py", "python 'my tools/train_cls.py'"),
        ("train-det", "/a b/it's/train_det.py", "python '/a b/it'\"'\"'s/train_det.py'"),
        ("train-det", "detres train-det", "detres train-det"),
        ("train-cls", "tools/train_det.py", "detres train-cls"),
        ("train-det", "/usr/bin/pytest", "detres train-det"),
        ("train-det", "-c", "detres train-det"),
        ("train-det", "", "detres train-det"),
        ("train-det", "detres train", "detres train"),
        ("train-cls", "detres train", "detres train-cls"),
    ],
)
def test_a_command_is_named_as_it_was_called(
    command: str, program: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [program, "--device", "cpu"])
    assert called_as(command) == expected
    if expected.startswith("python "):
        assert shlex.split(expected) == ["python", program]


def test_the_line_that_goes_on_quotes_the_folder_and_names_the_settings(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/train_det.py"])
    line = resume_line_of("train-det")
    assert line(Path("runs/tiny"), {}) == "python tools/train_det.py --resume runs/tiny"
    assert line(Path("runs/it's my run"), {"train.lr": 0.0005}) == (
        """python tools/train_det.py --resume 'runs/it'"'"'s my run' --set train.lr=0.0005"""
    )


# --- how a command ends


def training_parser() -> CommandParser:
    parser = CommandParser()
    add_training_flags(parser, DETECTION_CONFIG)
    return parser


def end_with(error: BaseException | None, parser: argparse.ArgumentParser | None = None) -> int:
    with ending(parser or training_parser()) as end:
        if error is not None:
            raise error
    return end.status


def nonfinite() -> NonFiniteLossError:
    images = SimpleNamespace(ids=(7, 9))
    terms = {"loss": torch.tensor(math.nan)}
    return NonFiniteLossError(nn.Linear(1, 1), terms, [(images, [])], step=4, lr=0.5)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 0, ""),
        (Interrupted(3), 130, ""),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
        (ValueError("no such thing"), 2, "error: no such thing\n"),
        (FileNotFoundError("no weights file at w"), 2, "error: no weights file at w\n"),
        (ConfigError("a.yaml: seed: wrong"), 2, "error: a.yaml: seed: wrong\n"),
        (ImageReadError(IN_A_WORKER), 2, "error: image file a: b.jpg cannot be read\n"),
        (
            RunFolderError("runs/a already holds files and is left as it is"),
            2,
            "error: runs/a already holds files and is left as it is: give another folder with "
            "--out; --resume DIR continues a run\n",
        ),
        (
            FullFolderError("full"),
            2,
            "error: full: give another folder with --out; --resume DIR continues a run\n",
        ),
        (
            NoRunError("no run to resume"),
            2,
            "error: no run to resume: give the folder, --resume DIR\n",
        ),
        (
            DataRootError("it is not said where the data are"),
            2,
            "error: it is not said where the data are: give --data FOLDER, or data.root in the "
            "configuration, or "
            "the environment variable DETRES_DATA\n",
        ),
        (
            ShapesRootError("photos holds other files"),
            2,
            "error: photos holds other files: leave --data out, or name a configuration of your "
            "data with --cfg\n",
        ),
        (
            nonfinite(),
            1,
            "error: non-finite loss in step 5: loss = nan; images 7, 9; lr 0.5. Nothing was saved "
            "after it: a smaller train.lr or train.clip_grad_norm, both of which --resume --set "
            "takes, or a longer train.warmup_steps usually cures it\n",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) exited unexpectedly"),
            1,
            "error: DataLoader worker (pid 7) exited unexpectedly. Too little memory is the usual "
            "cause: try a smaller data.workers\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/last.pt"),
            2,
            "error: runs/a/last.pt: No space left on device: free some space, or give another "
            "folder\n",
        ),
        (
            OSError(errno.EIO, "Input/output error", "photos/a.jpg"),
            2,
            "error: photos/a.jpg: Input/output error: the disk, or the network behind it, does not "
            "answer\n",
        ),
        (
            DataChangedError("other data"),
            2,
            "error: other data: put them back as they were, or give --resume DIR "
            "--accept-data-change to go on with them as they are now\n",
        ),
        (
            MemoryError("Unable to allocate 9 GiB\nand more"),
            1,
            f"error: the memory is used up (Unable to allocate 9 GiB): {LESS_MEMORY}\n",
        ),
        (MemoryError(), 1, f"error: the memory is used up: {LESS_MEMORY}\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
            1,
            "error: the memory is used up (CUDA out of memory. Tried to allocate 2 GiB): "
            f"{LESS_MEMORY}\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_how_a_command_ends(
    error: BaseException | None, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_with(error) == status
    shown = capsys.readouterr()
    assert shown.err == line
    assert shown.out == ""


@pytest.mark.parametrize(
    ("error", "with_out", "bare"),
    [
        (RunFolderError("full"), "error: full: give another folder with --out\n", "error: full\n"),
        (NoRunError("none"), "error: none\n", "error: none\n"),
        (DataRootError("where"), "error: where\n", "error: where\n"),
        (ShapesRootError("other"), "error: other\n", "error: other\n"),
    ],
)
def test_a_hint_names_no_flag_that_the_command_does_not_have(error, with_out, bare, capsys):
    parser = argparse.ArgumentParser()
    end_with(error, parser)
    assert capsys.readouterr().err == bare
    parser.add_argument("--out")
    end_with(error, parser)
    assert capsys.readouterr().err == with_out


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("x"), SystemExit(3)])
def test_an_error_that_is_no_ones_input_is_not_hidden(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)) as caught:
        end_with(error)
    assert caught.value is error
    assert capsys.readouterr().err == (f"{REPORT_LINE}\n" if isinstance(error, Exception) else "")


def test_memory_that_a_tensor_does_not_get_is_no_fault_of_ours(capsys):
    with ending(training_parser()) as end:
        torch.empty(2**50)
    assert end.status == 1
    assert capsys.readouterr().err == (
        f"error: the memory is used up (4194304.0 GiB were asked for): {LESS_MEMORY}\n"
    )


def test_settings_of_every_set_count():
    given = training_parser().parse_args(["--set", "a=1", "b=2", "--seed", "3", "--set", "c=4"])
    assert given.set == ["a=1", "b=2", "c=4"]
    assert training_parser().parse_args([]).set == []


def test_the_change_of_data_is_accepted_by_a_resumed_run_only(capsys):
    parser = training_parser()
    require_resumable(parser, parser.parse_args(["--resume", "x", "--accept-data-change"]))
    with pytest.raises(SystemExit):
        require_resumable(parser, parser.parse_args(["--accept-data-change"]))
    assert "--accept-data-change goes with --resume" in capsys.readouterr().err


def test_a_message_of_any_length_is_cut_line_by_line(capsys):
    assert end_with(ValueError(f"a.tar: {'x' * 9999}\nnote: {'y' * 9999}")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line[:14] for line in lines] == ["error: a.tar: ", "note: yyyyyyyy"]
    assert lines[0].endswith("x... (10006 characters)")
    assert max(map(len, lines)) < 1100


@pytest.mark.parametrize(
    "arguments",
    [
        ["--\x1b[31mred"],
        ["--klingon=" + "\n" * 9999],
        ["--seed", "\x1b[31m" * 999],
        ["--device", "\x1b[31mcpu"],
        ["--device", "x\udcff"],
        ["--resume", "run", "--set", "model.\x1b[31m=" + "x" * 9999],
    ],
    ids=lambda given: given[-1][:12].encode("unicode_escape").decode(),
)
def test_usage_errors_do_not_repeat_all_that_was_given(arguments, capsys):
    parser = training_parser()

    def command() -> int:
        given = parser.parse_args(arguments)
        require_resumable(parser, given)
        return carried_out(pytest.fail, parser, given)

    with pytest.raises(SystemExit) as ended:
        command()
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert len(message) < 3000
    assert message.replace("\n", "").isprintable()
    assert message[message.index("error: ") :].count("\n") == 1


@pytest.mark.parametrize(
    ("wing", "other", "command"),
    [("detection", "classification", "train-cls"), ("classification", "detection", "train-det")],
)
def test_a_run_of_the_other_wing_is_named_with_the_command_that_goes_on(
    tmp_path, wing, other, command
):
    keys = dict.fromkeys(STATE_KEYS, 1) | {"wing": other}
    save_state(tmp_path / "run" / "last.pt", keys)
    arguments = training_arguments("--resume", str(tmp_path / "run"))
    said = (
        f"is a run of {other}, not of {wing}; it goes on with: detres {command} --resume {tmp_path}"
    )
    with pytest.raises(ValueError, match=said):
        saved_run(arguments, DetectionConfig, wing)


def test_flags_of_a_mistaken_command_are_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/a.jpg").write_bytes(b"a photograph")
    assert train_det.main(["--data", "photos", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/photos has 1 images but no annotations of them; ")
    shapes = ["--cfg", "shapes_r18.yaml", "--data", "photos", "--device", "cpu"]
    assert train_det.main(shapes) == 2
    assert capsys.readouterr().err == (
        "error: photos holds other files, and the data here are the embedded shapes, which are "
        "drawn into a cache folder of their own: leave --data out, or name a configuration of your "
        "data with --cfg\n"
    )
    assert train_cls.main(["--resume", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        "error: no run of classification to resume: no last.pt in the folders of runs: give the "
        "folder, --resume DIR\n"
    )
    assert not Path("runs").exists()


# --- configurations

VOC = {"format": "voc", "train": ["train"], "val": ["val"]}


def training_arguments(*flags: str, default: Path = DETECTION_CONFIG) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_training_flags(parser, default)
    return parser.parse_args([*flags, "--device", "cpu"])


def test_shipped_configurations_are_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = CONFIGS / "coco_r50.yaml"
    assert shipped.is_file()
    assert config_path("coco_r50.yaml") == config_path("configs/coco_r50.yaml") == shipped
    assert config_path("coco_r50") == config_path("configs/coco_r50") == shipped
    assert config_path(None) == DETECTION_CONFIG
    assert config_path(None, CLASSIFICATION_CONFIG) == CLASSIFICATION_CONFIG
    for elsewhere in ("other/coco_r50.yaml", "configs/gone.yaml"):
        assert config_path(elsewhere) == Path(elsewhere)
    assert config_path("gone") == Path("gone")
    Path("configs").mkdir()
    Path("configs/coco_r50.yaml").write_text("name: own\n")
    assert config_path("configs/coco_r50.yaml") == Path("configs/coco_r50.yaml")
    assert config_path("configs/coco_r50") == Path("configs/coco_r50.yaml")
    Path("mine.v2.yaml").touch()
    assert config_path("mine.v2") == Path("mine.v2.yaml")


def test_the_flags_settle_seed_and_data(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**TINY, "data": VOC}))
    flags = ["--cfg", str(file), "--data", str(tmp_path)]
    flags += ["--seed", "9", "--set", "train.precision=auto", "train.lr=0.5"]
    config = config_from(training_arguments(*flags), DetectionConfig, DETECTION_CONFIG)
    assert (config.seed, config.train.lr, config.data.root) == (9, 0.5, str(tmp_path))
    assert config.train.precision == "auto"  # the run settles it, which knows the device
    with pytest.raises(DataRootError):
        config_from(training_arguments("--cfg", str(file)), DetectionConfig, DETECTION_CONFIG)
    with pytest.raises(ConfigError, match=r"seed: .*got -1"):
        config_from(training_arguments(*flags[:4], "--seed", "-1"), DetectionConfig, file)


def test_earlier_names_are_said_on_stderr_once_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.yaml"
    model = {**TINY["model"], "input": {"shorter": 96, "longer": 128}}
    file.write_text(yaml.safe_dump({**TINY, "data": {**VOC, "boxes": "error"}, "model": model}))
    overrides = ["model.input.train_shorter=[64]", "train.lr=0.5"]
    config = read_config(file, DetectionConfig, overrides)
    size = config.model.input
    assert (size.short_side, size.max_side, size.train_short_sides) == (96, 128, (64,))
    assert config.data.box_policy == "error"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sorted(shown.err.splitlines()) == [
        "note: --set model.input.train_shorter=[64]: this is now called "
        "model.input.train_short_sides",
        f"note: {file}: 'data.boxes' is now called 'data.box_policy'",
        f"note: {file}: 'model.input.longer' is now called 'model.input.max_side'",
        f"note: {file}: 'model.input.shorter' is now called 'model.input.short_side'",
    ]
    read_config(CLASSIFICATION_CONFIG, ClassificationConfig, ["data.crop_side=32"])
    assert capsys.readouterr().err == ""


def test_a_run_to_resume_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoRunError):
        saved_run(training_arguments("--resume"), DetectionConfig, "detection")
    with pytest.raises(CheckpointError, match=r"nowhere/last\.pt"):
        saved_run(
            training_arguments("--resume", "nowhere"),
            DetectionConfig,
            "detection",
        )


def test_a_device_is_tried_before_it_is_taken() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    assert usable_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "", "meta"):
        with pytest.raises(ValueError, match=f"{name} cannot be used: "):
            usable_device(name)


def test_a_device_that_there_is_not_is_a_usage_error(capsys):
    parser = training_parser()
    with pytest.raises(SystemExit) as ended:
        carried_out(pytest.fail, parser, parser.parse_args(["--device", "gpu"]))
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert (
        ": error: argument --device: gpu cannot be used: no device of that name; here are cpu"
        in message
    )


@pytest.mark.parametrize(("status", "ended"), [(None, 0), (0, 0), (1, 1)])
def test_a_command_ends_with_the_status_of_its_work(status, ended):
    parser, found = training_parser(), []

    def work(arguments: argparse.Namespace) -> int | None:
        found.append(arguments.device)
        return status

    assert carried_out(work, parser, parser.parse_args(["--device", "cpu"])) == ended
    assert found == [torch.device("cpu")]


def test_a_command_without_a_device_is_asked_for_none():
    parser = CommandParser()
    assert carried_out(lambda arguments: len(vars(arguments)), parser, parser.parse_args([])) == 0
