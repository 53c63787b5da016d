"""train-det by its other schemes: four steps in one folder, stopped in each; RPN and Fast R-CNN
alone, by hand what the four steps do by themselves; and the recall of proposals.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.files import read_safetensors
from detres.cli import eval as evaluate
from detres.cli import train_cls, train_det
from detres.detection.alternating import FOLDERS
from detres.detection.data.shapes import ensure_shapes
from detres.detection.weights_file import started_from
from detres.engine import loop
from tests.cli.conftest import (
    VAL_IMAGES,
    numbers_in,
    read_json,
    records,
    same_tensors,
    tensors,
)

SETTINGS = ("train.steps=8", "train.phase_steps=[2,2,2,2]", "train.save_every=1")
ALTERNATING = ("train.scheme=alternating", *SETTINGS, "train.proposals_post_nms_top_n=30")


def require_same_alternating(straight: Path, other: Path) -> None:
    for name in FOLDERS:
        one, two = straight / name, other / name
        for kind in ("train", "eval"):
            assert records(two, kind) == records(one, kind)
        assert same_tensors(tensors(one), tensors(two))
        assert read_json(one / "metrics.json") == read_json(two / "metrics.json")
        assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
        for file in one.glob("*_proposals.safetensors"):
            found = [read_safetensors(folder / file.name)[0] for folder in (one, two)]
            assert same_tensors(*found)
    assert same_tensors(tensors(straight), tensors(other))
    for name in ("metrics.json", "predictions.json"):
        assert read_json(straight / name) == read_json(other / name)
    assert {path.name for path in straight.iterdir()} == {path.name for path in other.iterdir()}


@pytest.fixture(scope="module")
def straight(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alternating") / "run"
    flags = ["--cfg", str(tiny), "--set", *ALTERNATING, "--out", str(out), "--device", "cpu"]
    assert train_det.main(flags) == 0
    return out


SET_RATE = loop.set_rate


def stopping_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come in the `number`-th training step from now on."""
    calls = 0

    def call(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            signal.raise_signal(signal.SIGINT)
        SET_RATE(*arguments)

    monkeypatch.setattr(loop, "set_rate", call)


@pytest.mark.slow
def test_stopped_in_each_of_the_four_steps_a_run_ends_as_one_never_stopped(
    tiny: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    flags = ["--cfg", str(tiny), "--set", *ALTERNATING, "--out", str(out), "--device", "cpu"]
    for phase, number in enumerate((1, 2, 2, 2)):  # the first step of each phase
        stopping_at(number, monkeypatch)
        assert train_det.main(flags) == 130
        assert read_json(out / "phase.json")["phase"] == phase
        last = capsys.readouterr().out.splitlines()[-1]
        command = f"detres train-det --resume {shlex.quote(str(out))}"
        assert last == f"stopped after step 1; continue with: {command}"
        flags = ["--resume", str(out), "--device", "cpu"]
    monkeypatch.undo()
    assert train_det.main(flags) == 0
    require_same_alternating(straight, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert train_det.main(flags) == 0  # a finished run is evaluated once more
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith(f"weights {out}/best.safetensors, picture {out}/val.jpg")
    )


def test_a_resumed_run_still_says_what_it_started_from(
    tiny: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, weights = tmp_path / "run", straight / "best.safetensors"
    flags = ["--cfg", str(tiny), "--set", "train.steps=2", "--out", str(out), "--device", "cpu"]
    stopping_at(1, monkeypatch)
    assert train_det.main([*flags, "--init-from", str(weights)]) == 130
    monkeypatch.undo()
    assert not (out / "best.safetensors").exists()
    assert train_det.main(["--resume", str(out), "--device", "cpu"]) == 0
    assert started_from(out / "best.safetensors") == str(weights)


def test_the_steps_by_hand_give_what_the_four_steps_give(
    tiny: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RPN alone, its proposals saved, and Fast R-CNN alone on them: steps 1 and 2."""
    common = ["--cfg", str(tiny), "--device", "cpu", "--set", "train.steps=2"]
    rpn, fast_rcnn = tmp_path / "rpn", tmp_path / "fast_rcnn"
    assert train_det.main([*common, "train.scheme=rpn", "--out", str(rpn)]) == 0
    weights = str(rpn / "best.safetensors")
    for split, more in (
        ("train", ["--pre-nms", "0", "--counts", "30"]),
        ("val", ["--counts", "40"]),
    ):
        flags = ["--weights", weights, "--proposals", "--split", split, *more]
        flags += ["--save-proposals", str(tmp_path / f"{split}.safetensors")]
        assert evaluate.main([*flags, "--device", "cpu"]) == 0
        made, own = (
            read_safetensors(file)[0]
            for file in (
                tmp_path / f"{split}.safetensors",
                straight / FOLDERS[0] / f"{split}_proposals.safetensors",
            )
        )
        assert same_tensors(made, own)
    files = [f"data.{split}_proposals={tmp_path}/{split}.safetensors" for split in ("train", "val")]
    flags = [*common, "train.scheme=fast_rcnn", *files, "--out", str(fast_rcnn)]
    assert train_det.main(flags) == 0
    assert same_tensors(tensors(fast_rcnn), tensors(straight / FOLDERS[1]))
    numbers = tmp_path / "numbers.json"
    flags = ["--weights", str(fast_rcnn / "best.safetensors"), "--json", str(numbers)]
    assert evaluate.main([*flags, "--device", "cpu"]) == 0  # on the proposals it was evaluated on
    in_run = read_json(fast_rcnn / "metrics.json")
    assert (in_run.pop("step"), in_run.pop("images")) == (2, VAL_IMAGES)
    assert numbers_in(numbers) == in_run
    said = f"note: it looks at the proposals in {tmp_path}/val.safetensors, not at its RPN's"
    assert said in capsys.readouterr().out


# ---- the recall of proposals ----

Score = Callable[..., dict]


@pytest.fixture
def score(tmp_path: Path) -> Score:
    """Return a function: flags -> what eval wrote with --json."""

    def call(*flags: str | Path) -> dict:
        out = tmp_path / "numbers.json"
        assert evaluate.main([*map(str, flags), "--device", "cpu", "--json", str(out)]) == 0
        return read_json(out)

    return call


def test_the_recall_of_an_rpn_is_its_runs_number_and_that_of_its_file(
    straight: Path, tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, file = straight / FOLDERS[2] / "best.safetensors", tmp_path / "p.safetensors"
    in_run = read_json(straight / FOLDERS[2] / "metrics.json")
    assert (in_run.pop("step"), in_run.pop("images")) == (2, VAL_IMAGES)
    own = score("--weights", weights, "--proposals", "--save-proposals", file)
    assert own == in_run
    assert 0 < own["AR100"] <= own["AR1000"]
    out = capsys.readouterr().out
    assert f"made by {weights}: the best 6000 into NMS at IoU 0.7, the best 1000 out" in out
    assert f" {'AR@1000':<16}{own['AR1000']:7.3f}" in out
    annotations = ensure_shapes(num_train=8, num_val=4) / "annotations" / "val.json"
    assert score("--proposals", file, "--weights", weights) == own
    assert score("--proposals", file, "--annotations", annotations) == own
    fewer = score("--proposals", file, "--annotations", annotations, "--counts", 1, 5)
    assert {"AR1", "AR5", "ARs1", "ARl5"} <= fewer.keys()
    assert fewer["AR5"] < own["AR1000"]


def test_proposals_of_another_split_are_refused_in_one_line(
    straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = straight / FOLDERS[0] / "train_proposals.safetensors"
    weights = straight / "best.safetensors"
    flags = ["--proposals", str(file), "--weights", str(weights), "--device", "cpu"]
    assert evaluate.main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file} holds proposals for other images: those of ")
    assert "train.json (8 images, digest " in line
    assert "val.json (4 images, digest " in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--proposals"], "--proposals needs --weights"),
        (["--proposals", "f"], "or a FILE and --annotations"),
        (["--proposals", "--annotations", "a"], "--proposals without a FILE are made by --weights"),
        (["--counts", "3", "--weights", "w"], "--counts goes with --proposals"),
        (["--save-proposals", "o", "--detections", "d"], "--save-proposals goes with --proposals"),
        (["--weights", "w", "--proposals", "--counts", "3", "2"], "--counts 3 2: expected numbers"),
        (["--weights", "w", "--proposals", "--counts", "0"], "--counts 0: expected numbers"),
        (["--weights", "w", "--proposals", "--pre-nms", "-1"], "--pre-nms -1: expected 1 or more"),
        (["--weights", "w", "--proposals", "--iou", ".5"], "--iou does not go with --proposals"),
        (
            ["--weights", "w", "--proposals", "--split", "val", "--submission", "s"],
            "--submission does not go with --proposals",
        ),
        (
            ["--weights", "w", "--proposals", "--classifier", "c"],
            "--classifier does not go with --proposals",
        ),
        (
            ["--weights", "w", "--proposals", "f", "--save-proposals", "o"],
            "--save-proposals does not go with --proposals FILE",
        ),
        (["--weights", "w", "--proposals", "--split", "x"], "judged on the splits train and val"),
        (["--weights", "w", "--proposals", "--save-proposals", "/tmp"], "/tmp is a folder"),
        (["--detections", "d", "--proposals", "f"], "two things to judge: give one"),
        (["--weights", "w", "x", "--proposals"], "--proposals takes one file of --weights"),
        ([], "one of the arguments --weights --detections --proposals is required"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate.main(flags)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_proposals_that_are_missing_or_of_other_images_stop_training_at_once(
    tiny: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {
        split: straight / FOLDERS[0] / f"{split}_proposals.safetensors"
        for split in ("train", "val")
    }
    flags = ["--cfg", str(tiny), "--device", "cpu", "--out", str(tmp_path / "run"), "--set"]
    for train, val, said in (
        (own["train"], own["train"], "val.json (4 images"),
        (tmp_path / "none", own["val"], f"no proposals file at {tmp_path}/none"),
    ):
        files = [f"data.train_proposals={train}", f"data.val_proposals={val}"]
        assert train_det.main([*flags, "train.scheme=fast_rcnn", *files]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "run").exists()


def test_what_four_steps_cannot_start_from_leaves_no_folder(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cfg", str(tiny), "--out", str(tmp_path / "run"), "--device", "cpu"]
    flags += ["--init-from", str(tmp_path / "none"), "--set", *ALTERNATING]
    assert train_det.main(flags) == 2
    assert capsys.readouterr() == ("", f"error: no weights file at {tmp_path}/none\n")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_one_half_say_so(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, said in ((FOLDERS[2], "trained the RPN alone"), (FOLDERS[3], "not its RPN")):
        weights = straight / folder / "best.safetensors"
        assert evaluate.main(["--weights", str(weights), "--device", "cpu"]) == 0
        assert said in capsys.readouterr().err
    assert evaluate.main(["--weights", str(straight / "best.safetensors"), "--device", "cpu"]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_of_four_steps_is_not_resumed_as_a_classifiers(
    straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_cls.main(["--resume", str(straight), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        f"error: {straight} is a run of detection, not of classification; it goes on with: detres "
        f"train-det --resume {straight}\n"
    )


def test_the_newest_run_may_be_one_of_four_steps(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stopping_at(1, monkeypatch)
    assert train_det.main(["--cfg", str(tiny), "--set", *ALTERNATING, "--device", "cpu"]) == 130
    stopping_at(1, monkeypatch)
    changed = ["--set", "train.lr=0.005"]
    assert train_det.main(["--cfg", str(tiny), "--resume", *changed, "--device", "cpu"]) == 130
    out = capsys.readouterr().out
    assert "runs/tiny/1-rpn: steps 1..2" in out
    assert "lr 0.005 at batch 2" in out
    assert "continue with: detres train-det --resume runs/tiny" in out.splitlines()[-1]
    state = read_json(Path("runs/tiny/phase.json"))
    assert state["config"]["train"]["lr"] == 0.005
    (record,) = [each for each in records(Path("runs/tiny/1-rpn"), "train") if each["step"] == 2]
    assert np.isclose(record["lr"], 0.005)


def cut_down_voc(source: Path, root: Path) -> None:
    """The photographs of one year of VOC with short lists of them."""
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).symlink_to(source / folder)
    for split, number in (("train", 24), ("val", 12)):
        listed = (source / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(listed[:number]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_four_steps_on_photographs(
    kind: str, tiny: Path, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """To the end, and the last step's numbers on saved proposals are the detector's own."""
    if kind == "coco":
        root = shared_data("coco_mini")
        files = {
            split: (root / "annotations").glob(f"instances_{split}*.json")
            for split in ("train", "val")
        }
        data = ["data.format=coco"]
        for split, (file,) in files.items():
            data.append(f"data.{split}=[annotations/{file.name}]")
            data.append(f"data.{split}_images=[{file.stem.removeprefix('instances_')}]")
    else:
        root = tmp_path / "VOC2012"
        cut_down_voc(shared_data("voc_mini") / "VOCdevkit" / "VOC2012", root)
        data = ["data.format=voc", "data.train=[train]", "data.val=[val]", "eval.protocol=voc07"]
    out = tmp_path / "run"
    flags = ["--cfg", str(tiny), "--data", str(root), "--out", str(out), "--device", "cpu"]
    # so little learnt is found at low scores alone
    settings = ("eval.batch_size=3", "model.roi.score_thresh=0.001")
    assert train_det.main([*flags, "--set", *ALTERNATING, *data, *settings]) == 0
    last = read_json(out / FOLDERS[-1] / "metrics.json")
    whole = read_json(out / "metrics.json")
    assert (last.pop("step"), whole.pop("step")) == (2, 8)
    assert last == whole
    assert read_json(out / FOLDERS[-1] / "predictions.json") == read_json(out / "predictions.json")
    assert len(read_json(out / "predictions.json")) > 100
