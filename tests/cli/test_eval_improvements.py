"""eval of detectors with refinement, voting, context, several scales and ensembles, on photographs
and on the drawn shapes; all that detects takes the same path.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import detres
from detres.cli import compare_torchvision, predict, train_det
from detres.cli import eval as evaluate
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.data.read import read_split
from detres.detection.weights_file import load_detector, save_detector
from tests.cli.conftest import COCO_FLAGS, TINY, FinishedRun, numbers_in, read_json
from tests.detection.models.test_faster_rcnn import with_opinions

PHOTOGRAPHS = {"train": ("2007_000175",), "val": ("2007_001340", "2007_002273", "2007_003190")}
REFINE = "eval.refine.iterations=1"
SCALES = "eval.multi_scale.short_sides=[64,96,128]"
Detect = Callable[..., list[dict]]


@pytest.fixture(autouse=True)
def _fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def voc(shared_data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in VOC layout with three held-out photographs of several sizes."""
    year = shared_data("voc_mini") / "VOCdevkit/VOC2012"
    root = tmp_path_factory.mktemp("voc")
    (root / "ImageSets/Main").mkdir(parents=True)
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).symlink_to(year / folder)
    for split, names in PHOTOGRAPHS.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
    return root


@pytest.fixture(scope="module")
def weights(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of small detectors that find something: `plain`, one with `context`, and `other`, of
    another network, input size and normalisation.
    """
    folder = tmp_path_factory.mktemp("weights")
    others = {
        "plain": {},
        "context": {"roi": {**TINY["model"]["roi"], "context": True}},
        "other": {
            "backbone": {**TINY["model"]["backbone"], "name": "resnet34"},
            "input": {"short_side": 80, "max_side": 100, "mean": [90.0, 90.0, 90.0]},
        },
    }
    files = {}
    for seed, (name, sections) in enumerate(others.items()):
        data = {"format": "voc", "root": str(voc), "train": ["train"], "val": ["val"], "workers": 0}
        tree = {**TINY, "data": data, "model": {**TINY["model"], **sections}}
        config = check(DetectionConfig, {**tree, "eval": {"protocol": "voc07"}}, "test")
        class_map = read_split(config.data, "val").class_map
        torch.manual_seed(seed)
        detector = with_opinions(build_detector(config.model, len(class_map)))
        files[name] = folder / f"{name}.safetensors"
        save_detector(files[name], detector, config, class_map, 1)
    return files


@pytest.fixture
def found() -> Callable[..., bytes]:
    """Return a function: weights and settings -> the file of detections that eval writes."""

    def call(*files: Path, settings: tuple[str, ...] = (), flags: tuple[str, ...] = ()) -> bytes:
        given = ["--weights", *map(str, files), "--device", "cpu", "--save-detections", "d.json"]
        overrides = ["--set", *settings] if settings else []
        assert evaluate.main([*given, "--json", "n.json", *flags, *overrides]) == 0
        return Path("d.json").read_bytes()

    return call


# ---- nothing switched on ----


@pytest.mark.parametrize("name", ["plain", pytest.param("context", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "settings",
    [
        ("eval.refine.iterations=0", "eval.refine.voting_iou=0.3", "eval.refine.nms_thresh=0.9"),
        ("eval.refine.voting=never",),
        ("eval.multi_scale.short_sides=[96]",),
        ("eval.multi_scale.short_sides=[96]", "eval.multi_scale.merge=pooled"),
        ("eval.multi_scale.short_sides=[96]", "eval.multi_scale.max_sides=[128]"),
    ],
)
def test_what_changes_nothing_writes_the_same_file(name, settings, weights, found):
    assert found(weights[name], settings=settings) == found(weights[name])


def test_the_file_is_that_of_the_models_own_forward(weights, found):
    """By the bytes: what the model finds without anything around it, rounded to a results file."""
    records = json.loads(found(weights["plain"]))
    model, config, _ = load_detector(weights["plain"])
    truth = read_split(config.data, "val")
    plain = detres.Detector(model, truth.class_map, short_side=96, max_side=128)
    by_hand = [score for each in plain.predict(list(truth.image_files)) for score in each.scores]
    assert len(by_hand) > 20
    assert sorted(r["score"] for r in records) == sorted(map(float, by_hand))


# ---- each, and together, on photographs ----


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        ("plain", (REFINE,), "by 1 x box refinement, NMS 0.3; box voting from IoU 0.5"),
        pytest.param(
            *("plain", ("eval.refine.voting=always",), "by box voting from IoU 0.5"),
            marks=pytest.mark.slow,
        ),
        ("plain", (SCALES,), "by short sides 64, 96, 128 px, maxout of features"),
        pytest.param("plain other", (), "by 2 detectors", marks=pytest.mark.slow),
        ("plain other context", (REFINE, SCALES), "by 3 detectors; short sides 64, 96, 128 px, "),
        ("context", (REFINE, SCALES, "eval.batch_size=3"), "by short sides 64, 96, 128 px"),
    ],
)
def test_each_changes_what_is_found_and_is_said(names, settings, said, weights, found, capsys):
    files = [weights[name] for name in names.split()]
    plain = json.loads(found(files[0]))
    assert "detected_by" not in read_json(Path("n.json"))
    capsys.readouterr()
    records = json.loads(found(*files, settings=settings))
    assert records != plain
    assert {record["image_id"] for record in records} == set(PHOTOGRAPHS["val"])
    assert f" detections {said}" in capsys.readouterr().out
    numbers = read_json(Path("n.json"))
    assert said.removeprefix("by ") in numbers["detected_by"]
    assert "mAP" in numbers


def test_eval_predict_and_the_python_api_find_the_same(voc, weights, found, tmp_path):
    """A file whose settings have all of it switched on."""
    detector, config, class_map = load_detector(weights["context"])
    tree = json.loads(config.model_dump_json())
    tree["eval"] |= {
        "refine": {"iterations": 1},
        "multi_scale": {"short_sides": [64, 96], "merge": "pooled"},
    }
    switched_on = tmp_path / "on.safetensors"
    save_detector(switched_on, detector, check(DetectionConfig, tree, "test"), class_map, 1)
    settings = (REFINE, "eval.multi_scale.short_sides=[64,96]", "eval.multi_scale.merge=pooled")
    by_eval = found(switched_on)
    assert by_eval == found(weights["context"], settings=settings)
    assert by_eval != found(weights["context"])

    photographs = [str(voc / f"JPEGImages/{name}.jpg") for name in PHOTOGRAPHS["val"]]
    flags = ["--weights", str(switched_on), "--out", "out", "--device", "cpu"]
    assert predict.main([*photographs, *flags]) == 0

    def without_images(records: list[dict]) -> list[tuple]:
        return [(r["category_id"], r["bbox"], r["score"]) for r in records]

    records = json.loads(by_eval)
    assert without_images(read_json(Path("out/predictions.json"))) == without_images(records)
    in_python = detres.load(switched_on).predict(photographs, batch_size=1)
    scores = [score for each in in_python for score in each.scores.tolist()]
    assert scores == [record["score"] for record in records]


# ---- runs ----


def test_a_run_with_context_is_trained_evaluated_and_goes_on(train, capsys):
    settings = ("train.eval_every=1", "model.roi.score_thresh=0.01", "eval.backend=pycocotools")
    folder = train("model.roi.context=true", *settings)
    numbers = read_json(folder / "metrics.json")
    flags = ["--weights", str(folder / "best.safetensors"), "--device", "cpu", "--json", "n.json"]
    assert evaluate.main(flags) == 0
    assert numbers_in(Path("n.json")) == {
        k: v for k, v in numbers.items() if k not in ("step", "images")
    }
    assert train_det.main(["--resume", str(folder), "--device", "cpu"]) == 0
    assert "evaluated once more" in capsys.readouterr().out


def test_in_training_evaluation_is_plain_unless_asked_for(train, capsys):
    """The settings travel in the weights; eval of the file alone uses them."""
    on = (REFINE, "eval.multi_scale.short_sides=[64,96]", "train.steps=1")
    off_again = ("eval.refine.iterations=0", "eval.multi_scale.short_sides=[]")
    seen = {}
    for improved in ("false", "true"):
        folder = train(*on, f"eval.improved_in_training={improved}")
        how = "short sides 64, 96 px, maxout of features; 1 x box refinement, NMS 0.3; box voting"
        said = {"false": f"by plain detections; {how}", "true": f"      by {how}"}[improved]
        assert said in capsys.readouterr().out
        own = read_json(folder / "predictions.json")
        flags = ["--weights", str(folder / "best.safetensors"), "--device", "cpu"]
        for name, settings in (("on", []), ("off", ["--set", *off_again])):
            assert evaluate.main([*flags, "--save-detections", "d.json", *settings]) == 0
            seen[improved, name] = read_json(Path("d.json")) == own
    assert seen == {
        ("false", "on"): False,
        ("false", "off"): True,
        ("true", "on"): True,
        ("true", "off"): False,
    }


def test_set_changes_the_weights_own_settings_without_a_configuration(finished, found):
    """Also the data: as with --cfg, which has the rest of them, so without."""
    on_train = ("data.val=[annotations/train.json]", "data.val_images=[train]")
    by_set = found(finished.weights, settings=on_train)
    assert by_set != found(finished.weights)
    Path("c.yaml").write_text(json.dumps({**TINY, "data": {"format": "coco"}}))
    flags = ("--cfg", "c.yaml", "--data", str(finished.data))
    by_cfg = found(finished.weights, settings=(*COCO_FLAGS[:3], *on_train), flags=flags)
    assert by_set == by_cfg
    voc12 = ["--weights", str(finished.weights), "--device", "cpu", "--json", "n.json"]
    assert evaluate.main([*voc12, "--set", "eval.protocol=voc12"]) == 0
    assert "2010-2012" in read_json(Path("n.json"))["protocol"]


# ---- bad input ----


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function: arguments of a command that must fail -> its message."""

    def call(*arguments: str | Path, main: Callable = evaluate.main) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") <= 3
        return error

    return call


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "eval.multi_scale.short_sides=[400,200]",
            "eval.multi_scale: short_sides [400, 200] must rise, each once: [200, 400]",
        ),
        (
            "eval.multi_scale.short_sides=[200,200,400]",
            "eval.multi_scale: short_sides [200, 200, 400] must rise, each once: [200, 400]",
        ),
        ("eval.multi_scale.short_sides=[0]", "eval.multi_scale.short_sides.0: "),
        ("eval.multi_scale.short_sides=[200000]", "eval.multi_scale.short_sides.0: "),
        ("eval.multi_scale.max_sides=[200]", "max_sides has 1 caps for 0 short_sides"),
        ("eval.multi_scale.region_side=0", "eval.multi_scale.region_side: "),
        ("eval.multi_scale.merge=max", "eval.multi_scale.merge: "),
        ("eval.refine.iterations=-1", "eval.refine.iterations: "),
        ("eval.refine.iterations=1.5", "eval.refine.iterations: "),
        ("eval.refine.voting_iou=2", "eval.refine.voting_iou: "),
        ("eval.refine.voting=true", "eval.refine.voting: "),
        ("eval.refine.iteration=1", "did you mean 'eval.refine.iterations'?"),
        ("eval.refine=1", "eval.refine: "),
        ("model.roi.context=true", "only data.*, eval.* say how weights are evaluated"),
        ("train.steps=1", "only data.*, eval.* say how weights are evaluated"),
        ("eval=plain", "only data.*, eval.* say how weights are evaluated"),
    ],
)
def test_settings_that_cannot_be_are_named(setting, message, finished: FinishedRun, refused):
    assert message in refused("--weights", finished.weights, "--set", setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["short_sides=[200,400]", "max_sides=[300]"], "max_sides has 1 caps for 2 short_sides"),
        (["short_sides=[200,400]", "max_sides=[900,500]"], "[900, 500] must not fall"),
        (["short_sides=[200,400]", "max_sides=[300,300]"], "short side 400 px is more than its"),
    ],
)
def test_caps_that_do_not_go_with_the_sides(settings, message, finished, refused):
    named = [f"eval.multi_scale.{setting}" for setting in settings]
    assert message in refused("--weights", finished.weights, "--set", *named)


def test_with_a_configuration_too_only_its_data_and_eval_are_set(finished, tiny, refused):
    flags = ("--cfg", tiny, "--set", "model.roi.score_thresh=0.5")
    assert "only data.*, eval.* say" in refused("--weights", finished.weights, *flags)


def test_members_that_are_not_detectors_of_the_same_classes(weights, finished, refused, tmp_path):
    error = refused("--weights", weights["plain"], finished.weights)
    assert error.startswith("error: the class lists differ")
    assert str(finished.weights) in error
    detector, config, class_map = load_detector(finished.weights)
    names = list(class_map.names)
    names[0], names[1] = names[1], names[0]
    swapped = tmp_path / "swapped.safetensors"
    reordered = type(class_map)(tuple(names), class_map.source_ids)
    save_detector(swapped, detector, config, reordered, 1)
    assert "the class lists differ" in refused("--weights", finished.weights, swapped)
    missing = refused("--weights", finished.weights, "absent.safetensors")
    assert "no weights file at absent.safetensors" in missing
    published = refused("--weights", finished.weights, "torchvision/resnet50.v1")
    assert "published weights of a backbone" in published
    probabilities = ("--save-probabilities", "p.npz")
    assert "goes with classifiers" in refused("--weights", finished.weights, *probabilities)


@pytest.mark.parametrize("context", ["true", "false"])
def test_weights_without_context_do_not_start_a_model_with_it(context, weights, voc, refused):
    name = {"true": "plain", "false": "context"}[context]
    Path("c.yaml").write_text(json.dumps(TINY))
    settings = [
        "data={format: voc, train: [train], val: [val], workers: 0}",
        f"model.roi.context={context}",
    ]
    flags = ("--cfg", "c.yaml", "--data", voc, "--init-from", weights[name], "--set", *settings)
    error = refused(*flags, main=train_det.main)
    as_trained = {"true": "false", "false": "true"}[context]
    assert f"{weights[name]} holds a detector of another architecture or input" in error
    assert error.rstrip().endswith(f"with model.roi.context={as_trained}")
    assert not Path("runs").exists()


def test_weights_edited_to_have_context_are_refused(weights, refused, tmp_path):
    detector, config, class_map = load_detector(weights["plain"])
    tree = json.loads(config.model_dump_json())
    tree["model"]["roi"]["context"] = True
    edited = tmp_path / "edited.safetensors"
    save_detector(edited, detector, check(DetectionConfig, tree, "test"), class_map, 1)
    assert f"{edited} holds a detector without global context" in refused("--weights", edited)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("eval.improved_in_training=true", "eval.improved_in_training does not go with"),
        ("model.roi.context=true", "model.roi.context=false"),
    ],
)
def test_torchvisions_parts_have_none_of_it(setting, message, tiny, refused):
    settings = ["model.anchors.style=torchvision", "model.roi.smooth_l1_beta=0.111111111111"]
    flags = ("--cfg", tiny, "--set", *settings, setting)
    assert message in refused(*flags, main=compare_torchvision.main)
