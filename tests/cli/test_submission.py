"""eval --split and --submission: detectors and localisers of official folders, and what a test
server takes.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detres.class_map import ClassMap
from detres.classification.weights_file import save_classifier
from detres.cli import eval as evaluate
from detres.cli import train_det
from detres.commands import submission
from detres.config import check
from detres.detection.annotations import Annotations
from detres.detection.build import build_detector
from detres.detection.config import DataConfig, DetectionConfig
from detres.detection.data.ilsvrc import read_ilsvrc
from detres.detection.data.voc import VOC_CLASSES
from detres.detection.evaluation.localisation import Guesses, predicted_class_error
from detres.detection.evaluation.protocol import evaluate as numbers_of
from detres.detection.evaluation.submission import SubmissionError
from detres.detection.localisation.build import build_class_rpn
from detres.detection.localisation.weights_file import save_localiser
from detres.detection.structures import Predictions
from detres.detection.weights_file import Origin, load_detector, save_detector
from tests.classification.parts import config_of as classification
from tests.classification.parts import random_model
from tests.cli.conftest import FinishedRun, numbers_in, read_json, snapshot
from tests.detection.configs import TINY
from tests.detection.localisation.parts import config_of as localisation
from tests.detection.official import (
    COCO_CLASSES,
    DET_CLASSES,
    ILSVRC_LISTS,
    LOC_CLASSES,
    VOC_LISTS,
    write_coco,
    write_ilsvrc,
    write_voc,
    write_xml,
)

VOC = ClassMap.of_names(VOC_CLASSES)
COCO = ClassMap(tuple(COCO_CLASSES.values()), tuple(COCO_CLASSES))
VOC_DATA = {
    "format": "voc",
    "train": ["2007/trainval", "2007/test", "2012/trainval"],
    "hold_out": 2,
    "test": ["2012/test"],
    "workers": 0,
}
COCO_DATA = {
    "format": "coco",
    "train": ["annotations/instances_train2014.json"],
    "train_images": ["train2014"],
    "val": ["annotations/instances_val2014.json"],
    "val_images": ["val2014"],
    "test": ["annotations/image_info_test-dev2015.json"],
    "test_images": ["test2015"],
    "workers": 0,
}

DET = ClassMap(*zip(*((name, number) for number, name in DET_CLASSES.values()), strict=True))
DET_DATA = {
    "format": "ilsvrc",
    "train": ["DET/train_*"],
    "val": ["DET/val"],
    "test": ["DET/test"],
    "workers": 0,
}
LOC = ClassMap.of_names(sorted(LOC_CLASSES))  # as a folder of ImageNet classification has them
LOC_DATA = {
    "format": "ilsvrc",
    "train": ["CLS-LOC/train_loc"],
    "val": ["CLS-LOC/val"],
    "test": ["CLS-LOC/test"],
    "workers": 0,
}

Run = Callable[..., str]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("official")
    write_voc(root / "VOCdevkit")
    write_coco(root / "coco")
    write_ilsvrc(root / "ILSVRC")
    return root


@pytest.fixture(autouse=True)
def _fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights_of(root: Path, data: dict, class_map: ClassMap, **evaluation: str) -> Path:
    """Write a detector that has learned nothing and finds seven things in every image."""
    model = {**TINY, "roi": {**TINY["roi"], "score_thresh": 0.0}}
    tree = {
        "name": "tiny",
        "data": {**data, "root": str(root)},
        "model": model,
        "train": {"steps": 1},
        "eval": evaluation,
    }
    config = check(DetectionConfig, tree, "test")
    torch.manual_seed(0)
    detector = build_detector(config.model, len(class_map))
    path = Path("runs") / "tiny_net" / "best.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_detector(path, detector, config, class_map, step=0)
    return path


@pytest.fixture
def voc(official: Path) -> Path:
    return weights_of(official / "VOCdevkit", VOC_DATA, VOC, protocol="voc12")


@pytest.fixture
def coco(official: Path) -> Path:
    return weights_of(official / "coco", COCO_DATA, COCO)


@pytest.fixture
def det(official: Path) -> Path:
    return weights_of(official / "ILSVRC", DET_DATA, DET, protocol="imagenet_det")


def localiser_of(root: Path, data: dict, class_map: ClassMap = LOC, seed: int = 0) -> Path:
    """Write a localiser that has learned nothing."""
    config = localisation(root, eval={"short_side": 64, "scales": [64], "batch_size": 2})
    tree = {**config.model_dump(mode="json"), "data": {**data, "root": str(root)}}
    torch.manual_seed(seed)
    model = build_class_rpn(config.model, len(class_map), pretrained=False)
    path = Path("runs") / f"loc{seed}" / "best.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_localiser(path, model, check(type(config), tree, "test"), class_map, 1)
    return path


def classifier_of(names: tuple[str, ...] = LOC.names, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    path = Path("runs") / f"cls{seed}" / "weights.safetensors"
    save_classifier(path, random_model(len(names)), classification(), ClassMap.of_names(names), 1)
    return path


@pytest.fixture
def loc(official: Path) -> Path:
    return localiser_of(official / "ILSVRC", LOC_DATA)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function: flags -> what the command printed on standard output, or, where it ended
    otherwise than `status`, on standard error.
    """

    def call(*flags: str | Path, status: int = 0) -> str:
        assert evaluate.main([*map(str, flags), "--device", "cpu"]) == status
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return printed.err if status else printed.out

    return call


@pytest.fixture
def nothing_detects(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be refused before detecting, which takes hours, is."""

    def detect(*_: object) -> None:
        raise AssertionError("it detects")

    monkeypatch.setattr("detres.commands.eval_detector.detect_dataset", detect)
    monkeypatch.setattr("detres.commands.eval_localiser.class_probabilities", detect)
    monkeypatch.setattr("detres.commands.eval_localiser.localise", detect)


def test_2012_test_as_vocs_server_takes_it(voc: Path, run: Run) -> None:
    printed = run("--weights", voc, "--split", "test", "--submission", "sub")
    assert "14 detections in 2 images for the test server: sub/results.tar.gz" in printed
    assert "2 images; their objects are not known: 1 of 2 have no XML file" in printed
    assert printed.endswith("14 detections, not evaluated here\n")
    with tarfile.open("sub/results.tar.gz") as tar:
        names = tar.getnames()
        lines = [line for name in names for line in tar.extractfile(name).read().splitlines()]
    assert sorted(names) == sorted(
        f"results/VOC2012/Main/comp4_det_test_{name}.txt" for name in VOC_CLASSES
    )
    assert {line.split()[0].decode() for line in lines} == set(VOC_LISTS["VOC2012"]["test"])
    assert len(lines) == 14
    assert sorted(path.name for path in Path("sub").iterdir()) == ["results", "results.tar.gz"]


def test_test_dev_as_cocos_server_takes_it(coco: Path, run: Run) -> None:
    printed = run(
        "--weights", coco, "--split", "test", "--submission", "sub", "--save-detections", "d.json"
    )
    name = "detections_test-dev2015_tiny_net_results"
    assert f"21 detections in 3 images for the test server: sub/{name}.zip" in printed
    records = json.loads(Path("sub", f"{name}.json").read_text())
    assert {record["image_id"] for record in records} == {1, 14, 27}
    assert {record["category_id"] for record in records} <= set(COCO_CLASSES)
    assert records == read_json(Path("d.json"))
    with zipfile.ZipFile(f"sub/{name}.zip") as archive:
        assert json.loads(archive.read(f"{name}.json")) == records


def test_a_known_set_is_written_and_evaluated(coco: Path, run: Run) -> None:
    flags = ("--weights", coco, "--split", "val")
    alone = run(*flags, "--json", "alone.json")
    printed = run(*flags, "--json", "both.json", "--submission", "sub")
    assert read_json(Path("both.json")) == read_json(Path("alone.json"))
    assert printed.endswith(alone)
    file = Path("sub") / "detections_val2014_tiny_net_results.json"
    found = run(
        "--detections",
        file,
        *("--annotations", Path(read_root(coco)) / "annotations" / "instances_val2014.json"),
        *("--json", "again.json"),
    )
    assert "2 images" in found
    assert read_json(Path("again.json")) == numbers_in(Path("alone.json"))


def read_root(weights: Path) -> str:
    from_file = load_detector(weights)[1]
    return from_file.data.root


def test_train_is_evaluated_as_it_stands_and_val_without_the_flag(coco: Path, run: Run) -> None:
    assert "instances_train2014.json: 3 images" in run("--weights", coco, "--split", "train")
    assert run("--weights", coco) == run("--weights", coco, "--split", "val")


@pytest.mark.parametrize("more", [(), ("--json", "n.json"), ("--iou", "0.4")])
@pytest.mark.usefixtures("nothing_detects")
def test_numbers_of_a_set_without_truth_are_refused(more: tuple, voc: Path, run: Run) -> None:
    error = run("--weights", voc, "--split", "test", *more, status=2)
    assert error.count("\n") == 1
    assert "2012/test cannot be evaluated, the objects in its images are not known: 1 of 2" in error
    assert error.endswith(
        "such as 2008_000002: with --weights, --split test --submission DIR writes what its test "
        "server takes\n"
    )


@pytest.mark.usefixtures("nothing_detects")
def test_numbers_are_not_promised_beside_a_submission(voc: Path, run: Run) -> None:
    for more in (("--json", "n.json"), ("--protocol", "voc12"), ("--iou", "0.5")):
        flags = ("--weights", voc, "--split", "test", "--submission", "sub", *more)
        error = run(*flags, status=2)
        assert f"{more[0]} goes with numbers, and" in error
        assert error.endswith("such as 2008_000002. Leave it out\n")
    assert not Path("sub").exists()


def test_results_of_a_test_set_are_not_evaluated(coco: Path, run: Run) -> None:
    info = Path(read_root(coco)) / "annotations" / "image_info_test-dev2015.json"
    Path("found.json").write_text("[]")
    error = run("--detections", "found.json", "--annotations", info, status=2)
    assert "it has no 'annotations', as the file of a test set" in error
    assert "--split test --submission DIR" in error


@pytest.mark.usefixtures("nothing_detects")
def test_a_folder_with_files_is_refused_before_anything(voc: Path, run: Run) -> None:
    Path("sub").mkdir()
    Path("sub", "mine").write_text("mine")
    before = snapshot(Path("sub"))
    error = run("--weights", voc, "--split", "test", "--submission", "sub", status=2)
    assert error == (
        "error: sub already holds files and is left as it is: give another folder with "
        "--submission\n"
    )
    assert snapshot(Path("sub")) == before
    Path("file").write_text("mine")
    for taken in ("file", "file/below"):
        error = run("--weights", voc, "--split", "test", "--submission", taken, status=2)
        assert "is a file: give another folder with --submission" in error
    assert Path("file").read_text() == "mine"


def test_an_empty_folder_serves(voc: Path, run: Run) -> None:
    Path("a", "sub").mkdir(parents=True)
    run("--weights", voc, "--split", "test", "--submission", "a/sub")
    assert Path("a/sub/results.tar.gz").is_file()
    assert [path.name for path in Path("a").iterdir()] == ["sub"]


@pytest.mark.usefixtures("nothing_detects")
def test_other_classes_than_the_sets_are_refused(official: Path, run: Run) -> None:
    twelve = ClassMap.of_names(VOC_CLASSES[:12])
    weights = weights_of(official / "VOCdevkit", VOC_DATA, twelve)
    error = run("--weights", weights, "--split", "test", "--submission", "sub", status=2)
    assert "the class lists differ" in error
    assert "best.safetensors (12)" in error
    few = ClassMap(COCO.names[:3], COCO.source_ids[:3])
    weights = weights_of(official / "coco", COCO_DATA, few)
    error = run("--weights", weights, "--split", "test", "--submission", "sub", status=2)
    assert "image_info_test-dev2015.json (4): 1=person" in error
    assert not Path("sub").exists()


def test_classes_that_are_chosen_are_the_sets(official: Path, run: Run) -> None:
    chosen = ClassMap.of_names(("person", "dog"))
    data = {**VOC_DATA, "classes": list(chosen.names)}
    weights = weights_of(official / "VOCdevkit", data, chosen)
    run("--weights", weights, "--split", "test", "--submission", "sub")
    assert {path.name for path in Path("sub/results/VOC2012/Main").iterdir()} == {
        "comp4_det_test_person.txt",
        "comp4_det_test_dog.txt",
    }


def test_a_folder_of_ones_own_without_any_annotation(official: Path, run: Run) -> None:
    names = ClassMap.of_names(("cup", "mug"))
    own = Path("photos")
    for stem in ("a", "b"):
        (own / "JPEGImages").mkdir(parents=True, exist_ok=True)
        source = official / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
        (own / "JPEGImages" / f"{stem}.jpg").write_bytes(source.read_bytes())
    (own / "ImageSets" / "Main").mkdir(parents=True)
    (own / "ImageSets" / "Main" / "later.txt").write_text("a\nb\n")
    data = {"format": "voc", "train": ["train"], "val": ["val"], "test": ["later"], "workers": 0}
    weights = weights_of(own.absolute(), data, names)
    run("--weights", weights, "--split", "test", "--submission", "sub")
    main = Path("sub/results/photos/Main")
    assert sorted(path.name for path in main.iterdir()) == [
        "comp4_det_later_cup.txt",
        "comp4_det_later_mug.txt",
    ]
    write_xml_of(own, "a", "mug")  # which tells of one of the two classes
    run("--weights", weights, "--split", "test", "--submission", "sub2")
    write_xml_of(own, "a", "glass")
    error = run("--weights", weights, "--split", "test", "--submission", "sub3", status=2)
    assert "the class lists differ" in error


def write_xml_of(folder: Path, stem: str, name: str) -> None:
    (folder / "Annotations").mkdir(exist_ok=True)
    write_xml(folder, stem, name, (41, 61, (1, 1, 20, 20)))


def test_sets_that_were_trained_on_are_said(official: Path, run: Run) -> None:
    data = {**VOC_DATA, "hold_out": 0, "val": ["VOC2007/test"], "test": ["2012/train"]}
    weights = weights_of(official / "VOCdevkit", data, VOC)
    assert f"note: {weights} was trained on VOC2007/test: its numbers" in run("--weights", weights)
    lists = official / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    (lists / "train.txt").write_text("2008_000001")
    assert "was trained on 2012/train:" in run("--weights", weights, "--split", "test")
    held = weights_of(official / "VOCdevkit", VOC_DATA, VOC)
    for same in ("data.hold_out=2", "data.hold_out=1"):  # of more, fewer are a part
        assert "was trained on" not in run("--weights", held, "--set", same)
    spelt = "data.train=[VOC2007/trainval,VOC2007/test,VOC2012/trainval]"
    assert "was trained on" not in run("--weights", held, "--set", spelt)
    for other, entry in (
        ("data.hold_out=3", "2007/trainval"),
        ("data.train=[2012/trainval,2007/trainval,2007/test]", "2012/trainval"),
        ("data.train=[2007/trainval,2007/test]", "2007/test"),
    ):
        assert f"{held} was trained on {entry}:" in run("--weights", held, "--set", other)
    coco = weights_of(official / "coco", COCO_DATA, COCO)
    for split in ("val", "train"):
        assert "was trained on" not in run("--weights", coco, "--split", split)
    both = {**COCO_DATA, "train": COCO_DATA["val"] + COCO_DATA["train"]}
    both["train_images"] = ["val2014", "train2014"]
    coco = weights_of(official / "coco", both, COCO)
    assert "was trained on annotations/instances_val2014.json:" in run("--weights", coco)
    gone = weights_of(Path("gone").absolute(), data, VOC)
    assert "was trained on" not in run("--weights", gone, "--data", official / "VOCdevkit")


def test_an_ensemble_is_one_submission_and_each_of_it_answers_for_its_data(
    official: Path, run: Run
) -> None:
    """Two detectors with their own files; the second has learned from what is tested."""
    devkit, files = official / "VOCdevkit", []
    seen = {**VOC_DATA, "train": ["2007/trainval", "2012/test"]}
    for name, data in (("first", VOC_DATA), ("second", seen)):
        files.append(Path("runs") / name / "best.safetensors")
        files[-1].parent.mkdir(parents=True)
        shutil.move(weights_of(devkit, data, VOC), files[-1])
    flags = ("--split", "test", "--submission", "sub")
    printed = run("--weights", *files, *flags)
    assert "14 detections in 2 images for the test server: sub/results.tar.gz" in printed
    assert f"note: {files[1]} was trained on 2012/test:" in printed
    assert str(files[0]) not in printed
    held, whole = (
        files[0],
        weights_of(devkit, {**VOC_DATA, "hold_out": 0, "val": ["2012/val"]}, VOC),
    )
    printed = run("--weights", held, whole)
    assert f"note: {whole} was trained on 2007/trainval:" in printed  # the first's held-out images
    assert f"{held} was trained" not in printed
    comp3 = ("--set", "eval.competition=comp3")
    run("--weights", *files, "--split", "test", "--submission", "third", *comp3)
    assert Path("third/results/VOC2012/Main/comp3_det_test_cow.txt").is_file()
    files.append(weights_of(official / "coco", {**COCO_DATA, "classes": ["cow"]}, VOC))
    error = run("--weights", *files, "--split", "test", "--submission", "no", *comp3, status=2)
    assert "comp3 is for VOC's data alone" in error
    assert not Path("no").exists()


@pytest.mark.usefixtures("nothing_detects")
def test_sets_that_no_server_has_are_refused(official: Path, run: Run) -> None:
    for change, split, message in (
        ({}, "val", "val is part of data.train (data.hold_out=2), and no server has it"),
        ({"test": ["2007/test", "2012/test"]}, "test", "--set data.test=[2007/test]"),
        ({"hold_out": 0, "val": ["2007/test"]}, "train", "data.train has 3: give one of them"),
        ({"test": []}, "test", "there is no split test; there is train, val: a config"),
    ):
        weights = weights_of(official / "VOCdevkit", {**VOC_DATA, **change}, VOC)
        flags = ("--weights", weights, "--split", split, "--submission", "sub")
        assert message in run(*flags, status=2)
    assert not Path("sub").exists()


def test_the_shapes_have_no_server() -> None:
    data = check(DataConfig, {"format": "shapes"}, "test")
    for of in (
        lambda: submission.server_of(data, "val", weights=["w"], competition="comp4"),
        lambda: submission.localisation_server_of(data, "val", weights=["w"]),
    ):
        with pytest.raises(SubmissionError, match=r"data.format is shapes, and .* ImageNet"):
            of()


@pytest.mark.usefixtures("nothing_detects")
def test_the_embedded_shapes_have_no_test_set(finished: FinishedRun, tiny: Path, run: Run) -> None:
    flags = ("--weights", finished.weights, "--split", "test")
    assert "there is train, val" in run(*flags, status=2)
    error = run(*flags, "--cfg", tiny, status=2)
    assert "no split test; there is train, val" in error


def test_comp3_is_for_what_saw_vocs_data_alone(official: Path, run: Run) -> None:
    devkit = official / "VOCdevkit"
    weights = weights_of(devkit, VOC_DATA, VOC, competition="comp3")
    run("--weights", weights, "--split", "test", "--submission", "sub")
    assert Path("sub/results/VOC2012/Main/comp3_det_test_cow.txt").is_file()


@pytest.mark.parametrize(
    ("data", "weights", "init_from", "used"),
    [
        (
            *("voc", "torchvision/resnet50.v1", None),
            "the backbone started from torchvision/resnet50.v1",
        ),
        ("shapes", None, None, "shapes data"),
        (
            *("voc", None, "/far/coco/best.safetensors"),
            "training started from the detector /far/coco/best.safetensors",
        ),
    ],
)
def test_comp3_is_refused_where_other_data_were_used(
    data: str, weights: str | None, init_from: str | None, used: str
) -> None:
    tree = {
        "name": "t",
        "data": {"format": data} | ({"train": ["a"], "val": ["b"]} if data == "voc" else {}),
        "model": {"backbone": {"name": "resnet50", "norm": "batch", "freeze_at": 0}},
        "train": {"steps": 1},
        "eval": {"competition": "comp3"},
    }
    tree["model"]["backbone"]["weights"] = weights
    config = check(DetectionConfig, tree, "test")
    files = ["alone.safetensors", "used.safetensors"]
    alone = config.model_copy(update={"data": DataConfig(format="voc", train=("a",), val=("b",))})
    backbone = config.model.backbone.model_copy(update={"weights": None})
    alone = alone.model_copy(
        update={"model": config.model.model_copy(update={"backbone": backbone})}
    )
    detector = build_detector(alone.model, len(VOC), pretrained=False)
    save_detector(Path(files[0]), detector, alone, VOC, 1)
    save_detector(Path(files[1]), detector, config, VOC, 1, Origin(init_from))
    message = f"comp3 is for VOC's data alone, and what {files[1]} used is otherwise: {used}. Give"
    with pytest.raises(ValueError, match=message):
        submission.require_competition(config.eval, files, [alone, config])
    submission.require_competition(config.eval, files[:1], [alone])
    comp4 = config.eval.model_copy(update={"competition": "comp4"})
    submission.require_competition(comp4, files, [alone, config])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--weights", "w", "--submission", "s"), "--submission needs --split: test, val or train"),
        (("--weights", "w", "--split", "trainval"), "--split trainval: with --weights, one of"),
        (
            ("--detections", "d", "--annotations", "a", "--submission", "s", "--split", "test"),
            "--submission does not go with --detections",
        ),
    ],
)
def test_flags_that_do_not_go_together(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(list(flags))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        (["runs/coco_r101/best.safetensors"], "coco_r101"),
        (["elsewhere/mine.safetensors"], "mine"),
        (["runs/a/best.safetensors", "b.safetensors"], "a+b"),
    ],
)
def test_what_a_detector_is_called(weights: list[str], name: str) -> None:
    assert submission.algorithm_name(weights) == name


def test_a_run_says_that_val_is_trained_on_and_holds_images_out(
    official: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cfg", str(tiny), "--data", str(official / "VOCdevkit"), "--device", "cpu", "--set"]
    settings = ["data.format=voc", "train.steps=1", "eval.protocol=voc12"]
    both = ["data.train=[2007/trainval, 2012/trainval]", "data.val=[VOC2012/trainval]"]
    assert train_det.main([*flags, *settings, *both]) == 0
    assert "note: 2 of 2 images of val are trained on too" in capsys.readouterr().out
    held = ["data.train=[2007/trainval, 2012/trainval]", "data.hold_out=1"]
    assert train_det.main([*flags, *settings, *held]) == 0
    out = capsys.readouterr().out
    assert "trained on too" not in out
    assert "2007/trainval + 2012/trainval without 1: 3 images" in out
    assert "2007/trainval + 2012/trainval held out 1: 1 image (" in out


# ---- ImageNet ----


def lines_of(archive: Path) -> list[list[str]]:
    """The fields of every line of the one file in an archive, which lies beside it too."""
    with zipfile.ZipFile(archive) as file:
        (name,) = file.namelist()
        text = file.read(name).decode("ascii")
    assert (archive.parent / name).read_text() == text
    assert sorted(path.name for path in archive.parent.iterdir()) == sorted((name, archive.name))
    return [line.split(" ") for line in text.splitlines()]


def detections_of(archive: Path, truth: Annotations, task_list: str) -> Predictions:
    """What a DET file says, read by the form that its readme gives."""
    images = ILSVRC_LISTS["DET"][task_list]
    rows = [[float(field) for field in fields] for fields in lines_of(archive)]
    return Predictions(
        truth.class_map,
        np.array([images[int(row[0]) - 1] for row in rows]),
        np.array([(row[3], row[4], row[5] + 1, row[6] + 1) for row in rows]),
        np.array([row[2] for row in rows]),
        np.array([truth.class_map.source_ids.index(int(row[1])) + 1 for row in rows]),
    )


def test_det_test_as_imagenets_server_takes_it(det: Path, run: Run) -> None:
    flags = ("--weights", det, "--split", "test", "--submission", "sub")
    printed = run(*flags, "--save-detections", "d.json")
    archive = Path("sub/DET_test_tiny_net.zip")
    assert f"21 detections in 3 images for the test server: {archive}" in printed
    assert "objects are not known: no image of a test list has an annotation file" in printed
    assert printed.endswith("21 detections, not evaluated here\n")
    rows, records = lines_of(archive), read_json(Path("d.json"))
    assert {int(row[1]) for row in rows} <= {1, 58, 200}
    for row, record in zip(rows, records, strict=True):
        x, y, width, height = record["bbox"]
        number, label, score, *box = map(float, row)
        assert ILSVRC_LISTS["DET"]["test"][int(number) - 1] == record["image_id"]
        assert (label, np.float32(score)) == (record["category_id"], np.float32(record["score"]))
        assert box == pytest.approx([x, y, x + width - 1, y + height - 1], abs=1e-3)


def test_det_val_is_written_and_evaluated(official: Path, det: Path, run: Run) -> None:
    run("--weights", det, "--split", "val", "--submission", "sub", "--json", "n.json")
    truth = read_ilsvrc(official / "ILSVRC", ["DET/val"], box_policy="keep")
    found = detections_of(Path("sub/DET_val_tiny_net.zip"), truth, "val")
    again = numbers_of("imagenet_det", truth, found).metrics["mAP"]
    assert read_json(Path("n.json"))["mAP"] == pytest.approx(again, abs=1e-6)


def test_classes_that_are_chosen_keep_the_servers_numbers(official: Path, run: Run) -> None:
    chosen = ClassMap(("zebra", "dog"), (200, 58))
    data = {**DET_DATA, "classes": list(chosen.names)}
    weights = weights_of(official / "ILSVRC", data, chosen)
    run("--weights", weights, "--split", "test", "--submission", "sub")
    rows = lines_of(Path("sub/DET_test_tiny_net.zip"))
    assert {row[1] for row in rows} <= {"200", "58"}
    assert {row[0] for row in rows} == {"1", "2", "3"}


def test_a_detector_knows_classes_by_name_and_the_folder_by_number(
    official: Path, run: Run
) -> None:
    """Weights of a folder without a map have numbers of their own."""
    turned = ClassMap.of_names(DET.names[::-1])
    weights = weights_of(official / "ILSVRC", DET_DATA, turned)
    flags = ("--weights", weights, "--split", "test")
    run(*flags, "--submission", "sub", "--save-detections", "d.json")
    written = [int(row[1]) for row in lines_of(Path("sub/DET_test_tiny_net.zip"))]
    assert written == [record["category_id"] for record in read_json(Path("d.json"))]
    assert set(written) <= set(DET.source_ids)


def test_detectors_together_are_one_imagenet_submission(det: Path, run: Run) -> None:
    other = Path("other.safetensors")
    shutil.copy(det, other)
    run("--weights", det, other, "--split", "test", "--submission", "sub")
    assert len(lines_of(Path("sub/DET_test_tiny_net+other.zip"))) >= 3


def test_loc_test_as_imagenets_server_takes_it(official: Path, loc: Path, run: Run) -> None:
    classifier = classifier_of()
    flags = ("--split", "test", "--submission")
    printed = run("--weights", loc, "--classifier", classifier, *flags, "sub")
    assert "10 guesses in 2 images for the test server: sub/CLS-LOC_test_loc0.zip" in printed
    assert printed.endswith("10 guesses, not evaluated here\n")
    lines = lines_of(Path("sub/CLS-LOC_test_loc0.zip"))
    assert [len(line) for line in lines] == [25, 25]
    for line in lines:
        labels = [int(field) for field in line[::5]]
        assert len(set(labels)) == 5
        assert set(labels) <= {number for number, _ in LOC_CLASSES.values()}
        boxes = np.array(line, float).reshape(5, 5)[:, 1:]
        assert (boxes[:, 2:] - boxes[:, :2] > -1).all()
    again = run("--weights", loc, "--classifier", classifier, *flags, "sub2")
    assert again == printed.replace("sub/", "sub2/")
    more = localiser_of(official / "ILSVRC", LOC_DATA, seed=1)
    several = (classifier, classifier_of(seed=1))
    run("--weights", loc, more, "--classifier", *several, *flags, "sub3")
    together = lines_of(Path("sub3/CLS-LOC_test_loc0+loc1.zip"))
    assert [len(line) for line in together] == [25, 25]
    assert together != lines


def test_loc_val_is_written_in_the_order_of_names_and_evaluated(
    official: Path, loc: Path, run: Run
) -> None:
    flags = ("--weights", loc, "--classifier", classifier_of(), "--split", "val")
    printed = run(*flags, "--submission", "sub", "--json", "n.json")
    assert printed.endswith(run(*flags))
    lines = lines_of(Path("sub/CLS-LOC_val_loc0.zip"))
    truth = read_ilsvrc(official / "ILSVRC", ["CLS-LOC/val"], box_policy="keep")
    names = sorted(truth.image_ids.tolist())
    in_order = [lines[names.index(image_id)] for image_id in truth.image_ids.tolist()]
    assert in_order == lines[::-1]
    fields = np.array(in_order, float).reshape(2, 5, 5)
    labels = [[truth.class_map.source_ids.index(n) + 1 for n in row] for row in fields[:, :, 0]]
    guesses = Guesses(np.array(labels), fields[:, :, 1:] + np.array((0, 0, 1, 1)))
    numbers = read_json(Path("n.json"))
    again = predicted_class_error(truth, guesses, "").errors
    assert {name: numbers[name] for name in again} == again
    assert numbers["evaluated"]["split"] == "val"


def test_a_known_test_set_of_a_localiser_is_evaluated(official: Path, run: Run) -> None:
    data = {**LOC_DATA, "test": ["CLS-LOC/val"]}
    weights = localiser_of(official / "ILSVRC", data)
    as_val = run("--weights", weights)
    assert run("--weights", weights, "--split", "test", "--json", "n.json") == as_val
    assert read_json(Path("n.json"))["evaluated"]["split"] == "test"


@pytest.mark.usefixtures("nothing_detects")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--submission", "sub"),
            "--submission needs --classifier with a localiser: the test server takes classes too, "
            "and those of a test set are not given",
        ),
        ((), "cannot be evaluated, the objects in its images are not known: no image of a test"),
        (("--json", "n.json"), "the objects in its images are not known"),
        (
            ("--submission", "sub", "--classifier", "CLS", "--json", "n.json"),
            "--json goes with numbers, and",
        ),
        (
            ("--submission", "sub", "--classifier", "CLS", "--set", "data.test=[CLS-LOC/t*]"),
            "a submission is of one list, and CLS-LOC/t* may be several: name one",
        ),
        (
            ("--submission", "sub", "--classifier", "CLS", "--set", "data.test=[DET/test]"),
            "DET/test: what localisers find is for the server of CLS-LOC; DET takes what detectors",
        ),
        (
            (
                *("--submission", "sub", "--classifier", "CLS", "--set"),
                "data.test=[CLS-LOC/test,CLS-LOC/val]",
            ),
            "a submission is of one set, and data.test has 2: give one of them, --set "
            "data.test=[CLS-LOC/test]",
        ),
    ],
)
def test_what_a_localiser_cannot_submit(
    loc: Path, run: Run, more: tuple[str, ...], message: str
) -> None:
    more = tuple(str(classifier_of()) if flag == "CLS" else flag for flag in more)
    error = run("--weights", loc, "--split", "test", *more, status=2)
    assert message in error
    assert error.count("\n") <= 3
    assert not Path("sub").exists()


@pytest.mark.usefixtures("nothing_detects")
def test_localisers_of_other_data_have_no_server(official: Path, run: Run) -> None:
    weights = localiser_of(official / "coco", COCO_DATA, COCO)
    flags = ("--weights", weights, "--classifier", classifier_of(COCO.names))
    error = run(*flags, "--split", "test", "--submission", "sub", status=2)
    assert error == (
        "error: data.format is coco, and what localisers find is for the test server of ImageNet's "
        "CLS-LOC: data.format=ilsvrc\n"
    )


@pytest.mark.usefixtures("nothing_detects")
def test_detectors_are_for_det(official: Path, run: Run) -> None:
    names = ClassMap.of_names(tuple(LOC_CLASSES))
    weights = weights_of(official / "ILSVRC", LOC_DATA, names)
    error = run("--weights", weights, "--split", "test", "--submission", "sub", status=2)
    assert error == (
        "error: CLS-LOC/test: what detectors find is for the server of DET; CLS-LOC takes what "
        "localisers find\n"
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder that may be changed."""
    return write_ilsvrc(tmp_path / "ILSVRC")


@pytest.mark.usefixtures("nothing_detects")
def test_classes_without_the_servers_numbers_are_refused(own: Path, run: Run) -> None:
    data = own / "devkit" / "data"
    (data / "map_det.txt").unlink()
    weights = weights_of(own, DET_DATA, ClassMap.of_names(("n02084071", "n02391049", "n02672831")))
    (own / "Annotations" / "DET" / "val" / "ILSVRC2012_val_00000003.xml").write_text(
        "<annotation><object><name>n02672831</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
        "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    flags = ("--split", "test", "--submission", "sub")
    error = run("--weights", weights, *flags, status=2)
    assert error == (
        f"error: {own}: its server knows classes by the numbers of map_det.txt, which is not "
        f"there: put that of the devkit into {data}\n"
    )
    (data / "map_clsloc.txt").rename(own / "map_clsloc.old")
    kaggles = "".join(f"{wnid} a name, another\n" for wnid in sorted(LOC_CLASSES))
    (own / "LOC_synset_mapping.txt").write_text(kaggles)
    weights = localiser_of(own, LOC_DATA)
    more = ("--classifier", classifier_of())
    error = run("--weights", weights, *more, *flags, status=2)
    assert "by the numbers of map_clsloc.txt, which is not there" in error
    assert not Path("sub").exists()


def test_the_devkits_numbers_are_written_of_classes_in_another_order(own: Path, run: Run) -> None:
    """A classifier and a localiser have them sorted, as Kaggle's list, which may be there too."""
    (own / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} a name\n" for wnid in LOC.names))
    flags = ("--classifier", classifier_of(), "--split", "test", "--submission")
    weights, guessed = localiser_of(own, LOC_DATA), []
    for numbers in (
        {wnid: number for wnid, (number, _) in LOC_CLASSES.items()},
        {wnid: 10 * place for place, wnid in enumerate(LOC.names, start=1)},
    ):
        rows = [f"{wnid} {number} a_name\n" for wnid, number in numbers.items()]
        (own / "devkit" / "data" / "map_clsloc.txt").write_text("".join(rows))
        folder = Path(f"sub{len(guessed)}")
        run("--weights", weights, *flags, folder)
        wnid_of = {str(number): wnid for wnid, number in numbers.items()}
        lines = lines_of(folder / "CLS-LOC_test_loc0.zip")
        guessed.append([[wnid_of[label] for label in line[::5]] for line in lines])
    assert guessed[0] == guessed[1]


@pytest.mark.usefixtures("nothing_detects")
def test_a_set_of_which_images_are_left_out_is_refused(own: Path, run: Run) -> None:
    """The server has a line of each, also of those on the devkit's blacklist."""
    blacklist = own / "devkit" / "data" / "ILSVRC2015_clsloc_validation_blacklist.txt"
    blacklist.write_text("2\n")
    flags = ("--classifier", classifier_of(), "--submission", "sub", "--split")
    error = run("--weights", localiser_of(own, LOC_DATA), *flags, "val", status=2)
    assert error == (
        f"error: {own}: CLS-LOC/val: 1 of the 2 images of its list are left out, such as "
        "ILSVRC2012_val_00000002, and a submission is of all\n"
    )
    (own / "ImageSets" / "DET" / "test.txt").write_text(
        "ILSVRC2013_test_00000005 1\nILSVRC2013_test_00000001 3\n"
    )
    weights = weights_of(own, DET_DATA, DET)
    error = run("--weights", weights, "--split", "test", "--submission", "sub", status=2)
    assert f"{own / 'ImageSets' / 'DET' / 'test.txt'}:2: 'ILSVRC2013_test_00000001' has" in error
    assert "the number 3, expected 2" in error
    assert not Path("sub").exists()
