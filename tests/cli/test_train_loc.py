"""train-loc and eval on the embedded shapes: both kinds of localiser, resumed, and refused."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from detres.class_map import ClassMap
from detres.cli import eval as evaluate
from detres.cli import predict, train_cls, train_loc
from detres.config import check
from detres.detection.build import train_loader
from detres.detection.localisation.build import build_class_rpn
from detres.detection.localisation.config import LocalisationConfig
from detres.detection.localisation.weights_file import (
    is_localiser,
    load_localiser,
    save_localiser,
)
from detres.reproduction.evaluated import weights_digest
from detres.runs.state import load_state, save_state
from tests.cli.conftest import (
    TRAIN_IMAGES,
    VAL_IMAGES,
    FinishedRun,
    numbers_in,
    records,
    same_tensors,
    tensors,
)

SHAPES = {
    "format": "shapes",
    "shapes_train": TRAIN_IMAGES,
    "shapes_val": VAL_IMAGES,
    "workers": 0,
}
TINY_LOC = {
    "name": "loc",
    "data": SHAPES,
    "model": {
        "backbone": {"name": "resnet18", "norm": "batch", "freeze_at": 0},
        "input": {"crop_side": 64, "train_short_sides": [64, 96]},
        "anchors": {"sizes": [24, 48], "aspect_ratios": [1.0]},
        "rpn": {"stage": "conv4", "width": 16, "test_post_nms_top_n": 6},
    },
    "train": {"steps": 4, "batch_size": 2, "warmup_steps": 0, "precision": "fp32", "log_every": 1},
    "eval": {"short_side": 80, "scales": [80, 96], "batch_size": 2},
}
TINY_RCNN = {
    **TINY_LOC,
    "name": "rcnn",
    "model": {
        "kind": "rcnn",
        "backbone": TINY_LOC["model"]["backbone"],
        "input": TINY_LOC["model"]["input"],
        "rcnn": {"proposals": "runs/loc/best.safetensors"},
    },
}

Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Return a function: configuration, settings and flags -> the run's folder."""
    monkeypatch.chdir(tmp_path)

    def call(tree: dict, *settings: str, out: str | None = None) -> Path:
        Path("config.yaml").write_text(yaml.safe_dump(tree))
        flags = ["--cfg", "config.yaml", "--device", "cpu", *(["--out", out] if out else [])]
        overrides = ["--set", *settings] if settings else []
        assert train_loc.main([*flags, *overrides]) == 0
        return Path(out or f"runs/{tree['name']}")

    return call


def error_of(*flags: object) -> dict:
    assert evaluate.main([*map(str, flags), "--device", "cpu", "--json", "out.json"]) == 0
    return numbers_in(Path("out.json"))


def test_a_class_rpn_is_trained_evaluated_and_kept(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(TINY_LOC)
    losses = records(folder, "train")
    assert [record["step"] for record in losses] == [1, 2, 3, 4]
    assert {"loss_rpn_cls", "loss_rpn_box"} <= losses[0].keys()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["loc_error"] <= 1
    assert cv2.imread(str(folder / "val.jpg")).shape[0] > 100
    assert records(folder, "eval")[0]["localised"] == pytest.approx(1 - metrics["loc_error"])
    out = capsys.readouterr().out
    assert "localisation error given the class, IoU >= 0.5, per-class RPN, centre crop, 64" in out
    assert "of each image the objects of its largest one's class" in out
    weights = folder / "best.safetensors"
    again = error_of("--weights", weights)
    assert again["loc_error"] == metrics["loc_error"]
    dense = error_of("--weights", weights, "--set", "eval.views=dense")
    assert "whole images of short side 80, 96 px" in dense["protocol"]
    with_cfg = error_of("--weights", weights, "--cfg", "config.yaml", "--set", "eval.views=dense")
    assert with_cfg == dense


@pytest.mark.parametrize("kind", ["class_rpn", "rcnn"])
def test_a_resumed_run_ends_as_one_never_stopped(
    train: Train, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "rcnn":
        train(TINY_LOC)
    tree = TINY_LOC if kind == "class_rpn" else TINY_RCNN
    straight = train(tree, out="straight")

    def stops_after_two(*arguments: object, **settings: object) -> Iterator:
        yield from itertools.islice(train_loader(*arguments, **settings), 2)
        raise ValueError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("detres.detection.localisation.training.train_loader", stops_after_two)
        assert train_loc.main(["--cfg", "config.yaml", "--out", "stopped", "--device", "cpu"]) == 2
    assert not Path("stopped/best.safetensors").exists()
    if kind == "rcnn":  # whose run has its per-class RPN
        shutil.rmtree("runs/loc")
    assert train_loc.main(["--resume", "stopped", "--device", "cpu"]) == 0
    assert [record["step"] for record in records(Path("stopped"), "train")] == [1, 2, 3, 4]
    assert same_tensors(tensors(straight), tensors(Path("stopped")))


def test_the_state_of_an_earlier_version_needs_the_file_of_its_rpn(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    rpn = train(TINY_LOC) / "best.safetensors"
    folder = train(TINY_RCNN)
    state = load_state(folder / "last.pt", ("proposer",))
    del state["proposer"]
    resume = ["--resume", str(folder), "--device", "cpu"]
    save_state(folder / "last.pt", state)
    assert train_loc.main(resume) == 0
    rpn.unlink()
    capsys.readouterr()
    assert train_loc.main(resume) == 2
    assert str(rpn) in capsys.readouterr().err
    for wrong in ("null", "{}", "[", 5):
        save_state(folder / "last.pt", {**state, "proposer": wrong})
        assert train_loc.main(resume) == 2
        error = capsys.readouterr().err
        assert "last.pt is not a training state of detres: its 'proposer'" in error
        assert error.count("\n") == 1


def test_rcnn_learns_on_the_proposals_of_an_rpn(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    rpn = train(TINY_LOC)
    folder = train(TINY_RCNN)
    assert {"loss_rcnn_cls", "loss_rcnn_box"} <= records(folder, "train")[0].keys()
    assert "R-CNN on a per-class RPN" in capsys.readouterr().out
    for trained in (rpn, folder):  # the state of a run is a localiser, too
        again, _, _ = load_localiser(trained / "last.pt")
        assert same_tensors(again.state_dict(), tensors(trained))
        assert is_localiser(trained / "last.pt")
    own, of_rpn = tensors(folder), tensors(rpn)
    for name, tensor in of_rpn.items():
        assert np.array_equal(own[f"proposer.{name}"], tensor), name
    (rpn / "best.safetensors").unlink()  # the weights of R-CNN are enough
    metrics = json.loads((folder / "metrics.json").read_text())
    assert error_of("--weights", folder / "best.safetensors")["loc_error"] == metrics["loc_error"]


def test_classes_are_predicted_by_a_classifier(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = train(TINY_LOC) / "best.safetensors"
    classifier = {
        "name": "cls",
        "data": {**SHAPES, "crop_side": 32, "pad": 2},
        "model": {"network": {"name": "resnet18"}},
        "train": {"steps": 1, "batch_size": 4, "warmup_steps": 0},
        "eval": {"batch_size": 4, "short_side": 64},
    }
    Path("cls.yaml").write_text(yaml.safe_dump(classifier))
    assert train_cls.main(["--cfg", "cls.yaml", "--device", "cpu"]) == 0
    found = error_of("--weights", weights, "--classifier", "runs/cls/weights.safetensors")
    assert found["top5_loc_error"] <= found["top1_loc_error"]
    assert found["top5_error"] <= found["top5_loc_error"]
    assert found["top1_error"] <= found["top1_loc_error"]
    assert "localisation error of predicted classes" in found["protocol"]
    assert "classes by runs/cls/weights.safetensors: " in found["protocol"]
    assert train_cls.main(["--cfg", "cls.yaml", "--seed", "4", "--device", "cpu"]) == 0
    files = [f"runs/{run}/weights.safetensors" for run in ("cls", "cls-2")]
    together = error_of("--weights", weights, weights, "--classifier", *files)
    assert "ensemble of 2: per-class RPN" in together["protocol"]
    assert f"classes by {', '.join(files)}: " in together["protocol"]
    of = json.loads(Path("out.json").read_text())["evaluated"]["weights"]
    assert of == [weights_digest(file) for file in (weights, weights, *files)]
    twice = error_of("--weights", weights, "--classifier", files[0], files[0])
    assert twice["top5_loc_error"] == found["top5_loc_error"]

    rcnn = train(TINY_RCNN) / "best.safetensors"
    capsys.readouterr()
    monkeypatch.delattr(
        "detres.commands.eval_localiser.class_probabilities"
    )  # which may take hours
    for flags, message in (
        (["--weights", weights, rcnn, "--classifier", files[0]], "an ensemble of localisers is of"),
        (["--weights", weights, "--classifier", files[0], "none"], "no weights file at none"),
        (["--weights", weights, "--classifier", files[0], weights], "the weights of a localiser"),
    ):
        assert evaluate.main([*map(str, flags), "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err


def test_localisers_of_other_classes_or_of_another_kind_are_no_ensemble(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [str(train(TINY_LOC) / "best.safetensors")]
    weights.append(str(train(TINY_RCNN) / "best.safetensors"))
    capsys.readouterr()
    assert evaluate.main(["--weights", *weights, "--device", "cpu"]) == 2
    assert "an ensemble of localisers is of per-class RPNs or of R-CNNs" in capsys.readouterr().err
    few = "few.safetensors"
    config = check(LocalisationConfig, TINY_LOC, "few")
    model = build_class_rpn(config.model, 2, pretrained=False)
    save_localiser(Path(few), model, config, ClassMap.of_names(("circle", "square")), 1)
    assert evaluate.main(["--weights", weights[0], few, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert weights[0] in error
    assert few in error
    wide, classes = "wide.safetensors", load_localiser(Path(weights[0]))[2]
    crops = {**TINY_LOC["model"], "input": {"crop_side": 96, "train_short_sides": [96, 96]}}
    evaluation = {**TINY_LOC["eval"], "short_side": 96}
    tree = {**TINY_LOC, "model": crops, "eval": evaluation}
    config = check(LocalisationConfig, tree, "wide")
    model = build_class_rpn(config.model, len(classes), pretrained=False)
    save_localiser(Path(wide), model, config, classes, 1)
    assert evaluate.main(["--weights", weights[0], wide, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert f"{wide}: eval.short_side 80 px does not hold a crop" in error
    settings = ["--set", "eval.short_side=96"]
    assert evaluate.main(["--weights", weights[0], wide, *settings, "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "coco"], "--protocol does not go with a localiser"),
        (["--iou", "0.5"], "--iou does not go with a localiser"),
        (["--save-detections", "x"], "--save-detections does not go with a localiser"),
        (["--split", "val", "--submission", "s"], "--submission needs --classifier with a localis"),
        (
            ["--split", "train"],
            "--split train: a localiser is evaluated on val or test of its data",
        ),
        (["--split", "test"], "there is no split test; there is train, val"),
        (["--set", "train.lr=1"], "--set train.lr=1: only data.*, eval.* say how"),
        (["--classifier", "none"], "no weights file at none"),
        (["--set", "eval.views=dens"], "eval.views"),
    ],
)
def test_what_does_not_go_with_a_localiser(
    train: Train, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    weights = str(train(TINY_LOC, "train.steps=1") / "best.safetensors")
    capsys.readouterr()
    assert evaluate.main(["--weights", weights, *flags, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 3


def test_proposals_of_other_classes_and_of_another_kind_are_refused(
    train: Train, capsys: pytest.CaptureFixture[str], coco_folder: Path
) -> None:
    train(TINY_LOC, "train.steps=1")
    Path("rcnn.yaml").write_text(yaml.safe_dump(TINY_RCNN))
    flags = ["--cfg", "rcnn.yaml", "--device", "cpu", "--set"]
    assert train_loc.main([*flags, "model.rcnn.proposals=none.safetensors"]) == 2
    assert "no weights file at none.safetensors" in capsys.readouterr().err
    assert train_loc.main([*flags, "model.rcnn.proposals=runs/loc"]) == 2
    assert "is a folder; give runs/loc/best.safetensors" in capsys.readouterr().err
    few = coco_folder / "annotations" / "few.json"
    content = json.loads((coco_folder / "annotations" / "train.json").read_text())
    kept = content["categories"][:5]
    ids = {category["id"] for category in kept}
    content["categories"] = kept
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
    few.write_text(json.dumps(content))
    settings = [
        "data.format=coco", f"data.root={coco_folder}", "data.train=[annotations/few.json]",
        "data.train_images=[train]", "data.val=[annotations/few.json]", "data.val_images=[train]",
    ]  # fmt: skip
    assert train_loc.main([*flags, *settings]) == 2
    few.unlink()
    error = capsys.readouterr().err
    assert "runs/loc/best.safetensors" in error
    assert "ring" in error
    assert not Path("runs/rcnn").exists()


def test_a_localiser_takes_no_detectors_place_nor_a_detector_its(
    train: Train, capsys: pytest.CaptureFixture[str], finished: FinishedRun
) -> None:
    weights = str(train(TINY_LOC, "train.steps=1") / "best.safetensors")
    capsys.readouterr()
    flags = ["--weights", weights, "--device", "cpu"]
    image = str(next((finished.data / "val").glob("*.jpg")))
    assert predict.main([*flags, image]) == 2
    assert "holds the weights of a localiser, not of a detector" in capsys.readouterr().err
    other = ["--weights", str(finished.weights), "--classifier", weights, "--device", "cpu"]
    assert evaluate.main(other) == 2
    assert "--classifier goes with a localiser" in capsys.readouterr().err
    Path("rcnn.yaml").write_text(yaml.safe_dump(TINY_RCNN))
    proposals = f"model.rcnn.proposals={finished.weights}"
    assert train_loc.main(["--cfg", "rcnn.yaml", "--set", proposals, "--device", "cpu"]) == 2
    assert "holds the weights of a detector, not of a localiser" in capsys.readouterr().err


def test_a_run_of_another_wing_is_told(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(TINY_LOC, "train.steps=1")
    capsys.readouterr()
    assert train_cls.main(["--resume", str(folder), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "is a run of localisation, not of classification" in error
    assert "train-loc --resume" in error
