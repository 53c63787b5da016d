"""Hundreds of hostile inputs of every kind: no traceback, no hang, no flood of memory, no nonsense
accepted, and an error of at most three lines that names what is at fault.
"""

from __future__ import annotations

import faulthandler
import io
import math
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from backbones import resnet_cifar
from backbones.files import read_safetensors, write_safetensors
from detres.cli import eval as evaluate
from detres.cli import predict, train_cls, train_det
from tests.cli import hostile
from tests.cli.conftest import COCO_FLAGS, TINY, FinishedRun, read_json
from tests.cli.hostile import Case
from tests.cli.test_train_cls import write_cifar

pytestmark = pytest.mark.slow

LONGEST = 60
"""Seconds."""
MOST_MEMORY = 2 << 30
"""Bytes beyond what the process held before the first case."""
MOST_LINES = 3


@dataclass(frozen=True)
class Outcome:
    """How a command ended; died: the traceback where it raised something."""

    status: int | str | None
    out: str
    err: str
    seconds: float
    died: str

    @property
    def refusal(self) -> str:
        """The error and what follows it, without the usage line before."""
        return self.err[self.err.index("error: ") :] if "error: " in self.err else ""


class TooLong(BaseException):
    """The time is over."""


def run(main: Callable[[list[str]], int], arguments: list[str], capsys) -> Outcome:
    def stop(*_: object) -> None:
        raise TooLong

    capsys.readouterr()
    before, died, status = signal.signal(signal.SIGALRM, stop), "", None
    started = time.monotonic()
    signal.alarm(LONGEST)
    faulthandler.dump_traceback_later(2 * LONGEST, exit=True, file=sys.__stderr__)
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    except TooLong:
        died = f"longer than {LONGEST} s"
    except BaseException:
        died = "\n".join(traceback.format_exc().splitlines()[-3:])[-500:]
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    captured = capsys.readouterr()
    return Outcome(status, captured.out, captured.err, time.monotonic() - started, died)


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def faults(case: Case, outcome: Outcome) -> Iterator[str]:
    """What is wrong with how a command took a case."""
    if outcome.died:
        yield outcome.died
    elif outcome.status == 0:
        if case.refused:
            yield f"accepted: {outcome.out[-300:]}"
        if case.said not in outcome.out + outcome.err:
            yield f"not said: {case.said}"
    else:
        message = outcome.refusal
        if message.count("\n") > MOST_LINES or len(message) > 2000 or not message:
            yield f"a message of {message.count(chr(10))} lines, {len(message)} characters"
        if not any(name in outcome.err for name in case.named):
            yield f"none of {case.named} in: {message[:500]}"
    text = outcome.out + outcome.err
    if "Traceback" in text or any(ord(c) < 32 and c not in "\n\t\r" for c in text):
        yield f"a traceback or a control character in the output: {text[-600:]!r}"


def judge(
    cases: Iterable[Case],
    command: Callable[[Case], tuple[Callable[[list[str]], int], list[str]]],
    *,
    least: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: Callable[[Case, Outcome], Iterator[str]] = lambda _case, _outcome: iter(()),
) -> None:
    """Run every case in a folder of its own, and fail with all that is wrong."""
    floor, found, count = memory(), [], 0
    for count, case in enumerate(cases, start=1):
        folder = tmp_path / f"case{count}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        case.write(folder)
        outcome = run(*command(case), capsys)
        found += [
            f"{case.name}: {fault}" for fault in (*faults(case, outcome), *more(case, outcome))
        ]
        if memory() - floor > MOST_MEMORY:
            found.append(f"{case.name}: {(memory() - floor) >> 20} MiB")
            floor = memory()
        if any(folder.rglob("it_ran")):
            found.append(f"{case.name}: code of the file ran")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
    assert count >= least
    assert not found, f"{len(found)} faults in {count} cases\n" + "\n".join(found)


@pytest.fixture
def judged(tmp_path, monkeypatch, capsys):
    def call(cases, command, *, least, **more) -> None:
        judge(
            cases, command, least=least, tmp_path=tmp_path, monkeypatch=monkeypatch, capsys=capsys,
            **more,
        )  # fmt: skip

    return call


DETECTIONS = ["--detections", "found.json", "--annotations", "truth.json"]
VOC = ["--detections", "VOC2007/results", "--annotations", "VOC2007", "--split", "test"]


def test_coco_annotations(judged) -> None:
    judged(hostile.coco_cases(), lambda _: (evaluate.main, DETECTIONS), least=150)


def test_coco_images(judged, tiny, coco_folder: Path) -> None:
    all_images = "train.steps=4"  # of 2 each
    settings = ["--set", *COCO_FLAGS, all_images]
    flags = ["--cfg", str(tiny), "--data", "data", "--device", "cpu", *settings]
    judged(hostile.coco_image_cases(coco_folder), lambda _: (train_det.main, flags), least=30)


def test_coco_results(judged) -> None:
    judged(hostile.results_cases(), lambda _: (evaluate.main, DETECTIONS), least=60)


def test_voc_annotations_lists_and_detections(judged) -> None:
    judged(hostile.voc_cases(), lambda _: (evaluate.main, VOC), least=80)


def not_its_data(folder: Path) -> None:
    """A folder that is no cache of shapes: what is accepted stops here, before it trains."""
    (folder / "other").mkdir()
    (folder / "other/file.txt").write_text("mine")


def test_configuration_files(judged) -> None:
    cases = [
        Case(case.name, both(not_its_data, case.write), case.named, case.refused)
        for case in hostile.yaml_cases()
    ]
    judged(cases, lambda _: (train_det.main, ["--cfg", "bad.yaml", "--data", "other"]), least=40)


def both(first: Callable[[Path], None], second: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        first(folder)
        second(folder)

    return write


def test_settings(judged, tiny) -> None:
    settings = {f"--set {setting[:40]!r}": setting for setting in hostile.SETTINGS}
    assert len(settings) == len(hostile.SETTINGS)
    flags = ["--cfg", str(tiny), "--data", "other", "--set"]
    cases = [
        Case(name, not_its_data, tuple(filter(None, (setting.split("=")[0].strip(".")[:20],
                                                     "--set"))), True)
        for name, setting in settings.items()
    ]  # fmt: skip
    judged(cases, lambda case: (train_det.main, [*flags, settings[case.name]]), least=90)


def test_weights(judged, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cifar = write_cifar(tmp_path / "cifar", number=10)
    settings = ["train.steps=1", "train.milestones=[]", "train.batch_size=4", "data.hold_out=0"]
    flags = ["--cfg", "cifar10_resnet20.yaml", "--data", str(cifar), "--device", "cpu"]
    assert train_cls.main([*flags, "--out", "made", "--set", *settings]) == 0
    buffer = io.BytesIO()
    torch.save(resnet_cifar(20).state_dict(), buffer)
    content = (tmp_path / "made/weights.safetensors").read_bytes()

    def command(case: Case) -> tuple[Callable[[list[str]], int], list[str]]:
        (file,) = case.named
        data = ["--data", str(cifar), "--device", "cpu"]
        if file.endswith(".pth"):
            mean = ["--set", "model.network.shortcut_padding=end", "model.mean=network"]
            return evaluate.main, [
                "--weights",
                file,
                "--cfg",
                "cifar10_resnet20.yaml",
                *data,
                *mean,
            ]
        return evaluate.main, ["--weights", file, *data]

    judged(hostile.weights_cases(content, buffer.getvalue()), command, least=100)


DETECTOR_FIELDS = {
    "model.rpn.width": [0, -1, 10**12, 1.5, None],
    "model.roi.pool_size": [0, 10**9, "x"],
    "model.anchors.sizes": [[], [-1], [1e308] * 3, None],
    "model.backbone.name": ["klingon", "\x1b[31m", 5, "x" * 10**5],
    "model.input.short_side": [0, 10**12, True],
    "classes.names": [[], ["a"], ["a"] * 6, 5, [5] * 6, ["x"] * 10**5, [""] * 6],
    "classes.source_ids": [[], [1] * 6, ["a"] * 6, [2**70] * 6, None, [True] * 6],
    "eval.batch_size": [0, -1, 10**30],
    "data.val": [5, [5], {}],
}


def test_weights_metadata_of_a_detector(judged, finished: FinishedRun) -> None:
    """Metadata that are something else, under a digest that is right."""
    state, metadata = read_safetensors(finished.weights)
    changes = {
        f"weights of a detector: {name}": (changed, refused)
        for name, changed, refused in hostile.metadata_changes(metadata, DETECTOR_FIELDS)
    }
    cases = [
        Case(name, written(state, changed), ("bad.safetensors",), refused)
        for name, (changed, refused) in changes.items()
    ]
    flags = ["--weights", "bad.safetensors", "--data", str(finished.data), "--device", "cpu"]
    judged(cases, lambda _: (evaluate.main, flags), least=100)


def written(tensors: dict, metadata: dict[str, str]) -> Callable[[Path], None]:
    return lambda folder: write_safetensors(folder / "bad.safetensors", tensors, metadata)


def test_pictures(judged, finished: FinishedRun) -> None:
    flags = ["photos", "--weights", str(finished.weights), "--out", "out", "--device", "cpu"]

    def the_others_are_kept(case: Case, outcome: Outcome) -> Iterator[str]:
        if not Path("out/predictions.json").exists():
            yield f"no predictions: {outcome.err[-500:]}"
            return
        pictures = {path.name for path in Path("out").glob("*.jpg")}
        if not {"a.jpg", "z.jpg"} <= pictures:
            yield f"only {pictures}"
        read_json(Path("out/predictions.json"))
        if case.refused and not any(name in outcome.err + outcome.out for name in case.named):
            yield f"not named: {outcome.err[-500:]}"

    cases = [Case(case.name, case.write, case.named, False) for case in hostile.picture_cases()]
    refused = {case.name for case in hostile.picture_cases() if case.refused}

    def more(case: Case, outcome: Outcome) -> Iterator[str]:
        whole = Case(case.name, case.write, case.named, case.name in refused)
        return the_others_are_kept(whole, outcome)

    judged(cases, lambda _: (predict.main, flags), least=30, more=more)


SMALL = ["train.steps=2", "train.batch_size=2", "train.reference_batch=2", "train.warmup_steps=0",
         "train.milestones=[]", "train.recompute_batches=0", "data.workers=0", "data.crop_side=32",
         "data.short_sides=[36,40]", "eval.short_side=36", "eval.batch_size=2"]  # fmt: skip


def test_class_folders(judged) -> None:
    flags = ["--cfg", "imagenet_resnet18b.yaml", "--data", "classes", "--device", "cpu", "--set"]
    all_images = "train.steps=4"  # of 2 each
    command = (train_cls.main, [*flags, *SMALL, all_images, "data.format=folder"])
    judged(hostile.class_folder_cases(), lambda _: command, least=15)


def test_shards(judged) -> None:
    flags = ["--cfg", "imagenet_resnet18b.yaml", "--data", "shards", "--device", "cpu", "--set"]
    shards = ["data.format=shards", "data.train=train-0.tar", "data.val=val-0.tar",
              "data.classes=[cat, dog]"]  # fmt: skip
    command = (train_cls.main, [*flags, *SMALL, *shards])
    judged(hostile.shard_cases(), lambda _: command, least=15)


HARMLESS = ("without format", "environment.threads")
HARMLESS += ("without init_from", "init_from = None", "init_from = text")
"""What is read all the same: states of format 1 had none; the number of threads is only told where
it is another; what training started from, earlier states did not say, and it may be any path."""
NAMED = ("last.pt", "run is a run of classification")
RESUME = ["--resume", "run", "--device", "cpu"]


def test_states(judged, tmp_path, monkeypatch) -> None:
    """Every field of last.pt, and what is in it, of another type, shape or value."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_dump({**TINY, "train": {**TINY["train"], "save_every": 1}})
    Path("tiny.yaml").write_text(config)
    flags = ["--cfg", "tiny.yaml", "--out", "run", "--device", "cpu"]
    assert train_det.main([*flags, "--set", "train.steps=4"]) == 0
    origin = tmp_path / "run"

    def write(content: dict) -> Callable[[Path], None]:
        def copy(folder: Path) -> None:
            shutil.copytree(origin, folder / "run")
            for path in (folder / "run").glob("*.pt"):
                path.unlink()
            torch.save(content, folder / "run/last.pt")

        return copy

    whole = torch.load(origin / "last.pt", weights_only=True)
    cases = [
        Case(f"last.pt: {name}", write(changed), NAMED, not name.startswith(HARMLESS))
        for name, changed in changed_states(whole)
    ]
    judged(cases, lambda _: (train_det.main, RESUME), least=150)


def changed_states(whole: dict) -> Iterator[tuple[str, dict]]:
    for key in whole:
        for name, value in {
            "None": None,
            "text": "x",
            "list": [1],
            "tensor": torch.zeros(3),
        }.items():
            yield f"{key} = {name}", {**whole, key: value}
        yield f"without {key}", {k: v for k, v in whole.items() if k != key}
    for path, values in fields_of(whole):
        for value in values:
            yield (
                f"{'.'.join(map(str, path))} = {str(value)[:30]!r}",
                replaced(whole, path, value),
            )


def replaced(container: object, path: tuple, value: object) -> object:
    """A copy of `container` with `value` at `path`; ABSENT: without what is there."""
    key, *rest = path
    new = value if not rest else replaced(container[key], tuple(rest), value)
    if isinstance(container, dict):
        others = {k: v for k, v in container.items() if k != key}
        return others if new is ABSENT else {**container, key: new}
    items = list(container)
    items[key] = new
    return type(container)(items)


ABSENT = "(absent)"


def fields_of(whole: dict) -> Iterator[tuple[tuple, list[object]]]:
    """Where something is in a state, and what cannot be there."""
    (name, weight), *_ = whole["model"].items()
    last = list(whole["model"])[-1]
    state = whole["optimizer"]["state"]
    first = next(iter(state))
    momentum = state[first]["momentum_buffer"]
    yield ("model", name), [None, "x", weight.bool(), weight[:1], weight * math.nan,
                            weight.to_sparse(), weight.reshape(-1), 1.0, ABSENT]  # fmt: skip
    yield ("model", last), [torch.tensor([]), ABSENT, [1]]
    yield ("optimizer", "state"), [None, [], {}, "x", {first: {}}, {"a": state[first]}, ABSENT]
    yield ("optimizer", "state", first), [None, [], {}, {"foreign": momentum}]
    yield (
        ("optimizer", "state", first, "momentum_buffer"),
        [
            *(None, "x", 1.0, torch.zeros(2), momentum.reshape(-1), momentum.double(), ABSENT),
            *(
                momentum * math.nan,
                momentum.to_sparse(),
                momentum.bool(),
                momentum.to(torch.complex64),
            ),
        ],
    )
    yield ("optimizer", "param_groups"), [None, [], "x", {}, [5], [{}], ABSENT]
    yield ("optimizer", "param_groups", 0), [None, {}, 5]
    for key in ("momentum", "weight_decay"):
        yield ("optimizer", "param_groups", 0, key), ["x", None, math.nan, -1.0, [1]]
    yield ("optimizer", "param_groups", 0, "params"), [None, [], [0], [0] * 9, ["a"], [-1], 5]
    yield ("progress", "step"), [None, "4", -1, 1.5, 10**30, 5, 2**63, math.nan, True, ABSENT]
    yield ("progress", "evaluations"), [None, [], {4: "x"}, {"a": 1.0}, {-1: 0.5}, 5, ABSENT]
    yield ("progress", "warmed_up"), [None, "x", 2]
    yield ("progress", "training_error"), ["x", math.nan, [1], -0.5, 1.5, math.inf]
    yield ("meter", "sums"), [None, [], {"loss": 1.0}, {5: torch.tensor(1.0)}, ABSENT]
    yield ("meter", "steps"), [None, -1, 1.5, 2**60, "x", ABSENT]
    yield ("meter", "step_s"), [None, math.nan, -1.0, "x", math.inf, ABSENT]
    for split in ("train", "val"):
        for key in ("records", "files"):
            kept = whole["data"][split][key]
            yield ("data", split, key), [None, "x", [1], kept.float(), kept[:-1], kept + 1,
                                         kept.reshape(-1, 1), ABSENT]  # fmt: skip
        yield ("data", split), [None, [], "x", {}, ABSENT]
    yield ("environment", "threads"), [None, "x", math.nan]
    yield ("format",), [0, -1, 3, 99, 1.5, True, 10**30, "2\x1b[31m"]
    yield ("num_images",), [0, -1, 7, 9, 1.5, True, 10**30]
    yield ("wing",), ["classification", "\x1b[31m", "detection "]
    yield ("classes", "names"), [None, [], ["a"], "x", [5] * 6, ABSENT]
    yield ("classes", "source_ids"), [None, [], ["a"] * 6, [1] * 6, [2**70] * 6, ABSENT]
    config = whole["config"]
    yield (
        ("config",),
        [
            *("{}", "[", "null", "[]", config[:-1], config * 2, "[" * 100_000, ""),
            *(
                config.replace('"steps":4', f'"steps":{steps}')
                for steps in ("0", "-1", "1e400", '"4"')
            ),
            *(
                config.replace('"name":"tiny"', f'"name":{n}')
                for n in ('"../evil"', '"\\u001b"', "5")
            ),
            config.replace('"seed":3', '"seed":3,"klingon":1'),
        ],
    )
