"""Bad input of every kind: status 2, one message that names what is at fault, no code run, and not
a byte changed under runs/.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from backbones import create_backbone
from detres.cli import eval as evaluate
from detres.cli import predict, train_det
from detres.commands.ending import ending
from tests.cli.conftest import COCO_FLAGS, TINY, FinishedRun, records, snapshot

Main = Callable[[list[str]], int]


@pytest.fixture(autouse=True)
def _a_run_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with an older run, whose files need not be real to be worth keeping."""
    monkeypatch.chdir(tmp_path)
    for name in ("config.yaml", "last.pt", "best.safetensors", "tensorboard/events.out.tfevents.1"):
        path = Path("runs/tiny") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the older {name}")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function: run a command that must fail, check what every failure must be like,
    return its message.
    """

    def call(*flags: str | Path, main: Main = train_det.main) -> str:
        before = snapshot(tmp_path)
        capsys.readouterr()
        try:
            status = main([*map(str, flags), *(() if "--device" in flags else ("--device", "cpu"))])
        except SystemExit as ended:
            status = ended.code
        error = capsys.readouterr().err
        assert status == 2, error
        assert error.count("error: ") == 1, error
        assert "Traceback" not in error
        assert snapshot(tmp_path) == before
        return error[error.index("error: ") :]

    return call


@pytest.fixture
def coco(coco_folder: Path) -> Path:
    """A copy of the COCO folder to spoil, `photographs`."""
    return Path(shutil.copytree(coco_folder, "photographs"))


@pytest.fixture
def voc(voc_folder: Path) -> Path:
    """A copy of the VOC folder to spoil, `photographs`."""
    return Path(shutil.copytree(voc_folder, "photographs"))


ON_COCO = ("--cfg", "tiny.yaml", "--data", "photographs", "--set", *COCO_FLAGS)
ON_VOC = (
    "--cfg",
    "tiny.yaml",
    "--data",
    "photographs",
    "--set",
    "data.format=voc",
    "data.train=[train]",
    "data.val=[val]",
)


@pytest.fixture(autouse=True)
def _config() -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))


def change_train_json(coco: Path, change: Callable[[dict], object]) -> None:
    file = coco / "annotations" / "train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: tiny\ntrian: {steps: 1}\n", "bad.yaml: unknown key 'trian'; did you mean 'train'?"),
        ("name: tiny\nseed: 1\nname: other\n", "bad.yaml:3: key 'name' is given twice"),
        (
            "train: {lr: fast, steps: 1}\n",
            "bad.yaml: train.lr: Input should be a valid number, got 'fast'",
        ),
        ("train: {steps: 1.5}\n", "bad.yaml: train.steps: Input should be a valid integer"),
        ("train: {steps: 1, epochs: 1}\n", "bad.yaml: train: steps and epochs are both given"),
        ("- name\n", "bad.yaml: expected a mapping of sections"),
        ("name: [\n", "bad.yaml:2: "),
        (
            "name: !!python/object/apply:os.mkdir [it_ran]\n",
            "bad.yaml:1: could not determine a constructor for the tag",
        ),
    ],
)
def test_a_config_file(text: str, message: str, refused: Callable[..., str]) -> None:
    tree = yaml.safe_dump({key: value for key, value in TINY.items() if f"{key}:" not in text})
    Path("bad.yaml").write_text(text if text.startswith(("-", "name: [")) else text + tree)
    assert message in refused("--cfg", "bad.yaml")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cfg", "gone.yaml"], "no config file gone.yaml"),
        (["--cfg", "tiny.yml"], "no config file tiny.yml; did you mean tiny.yaml?"),
        (["--cfg", "runs"], "config file runs is a folder, expected a file"),
        (
            ["--cfg", "tiny.yaml", "--set", "train.lrr=1"],
            "unknown key 'train.lrr'; did you mean 'train.lr'?",
        ),
        (
            ["--cfg", "tiny.yaml", "--set", "train.batch_size=two"],
            "train.batch_size: Input should be a valid integer",
        ),
        (["--cfg", "tiny.yaml", "--set", "train.steps"], "--set train.steps: expected key=value"),
        (["--cfg", "tiny.yaml", "--set", "name=../tiny"], "tiny.yaml with --set: name"),
        (
            ["--cfg", "tiny.yaml", "--set", "model.backbone.name=resnet19"],
            "unknown backbone 'resnet19'",
        ),
        (["--cfg", "tiny.yaml", "--set", "model.backbone.norm=frozen"], "cannot be frozen"),
        (["--cfg", "tiny.yaml", "--seed", "-1"], "seed"),
        (["--cfg", "tiny.yaml", "--seed", "one"], "argument --seed"),
        (["--cfg", "tiny.yaml", "--device", "gpu"], "argument --device: gpu cannot be used"),
        (
            ["--cfg", "tiny.yaml", "--device", "cuda:99"],
            "argument --device: cuda:99 cannot be used",
        ),
    ],
)
def test_flags(flags: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(*flags)


# --- folders


def test_a_data_folder_that_is_not_there(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "data folder photographs does not exist" in refused(*ON_COCO)
    assert "it is not said where the data are: give --data FOLDER" in refused(
        "--cfg", "tiny.yaml", "--set", *COCO_FLAGS
    )
    monkeypatch.setenv("DETRES_DATA", "nowhere")
    assert "data folder nowhere does not exist" in refused(
        "--cfg", "tiny.yaml", "--set", *COCO_FLAGS
    )


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("tiny.yaml", "tiny.yaml is a file"),
        ("tiny.yaml/run", "tiny.yaml/run cannot be made: a part of its path is a file"),
        ("runs/tiny", "runs/tiny already holds files and is left as it is"),
    ],
)
def test_an_output_folder(out: str, message: str, refused: Callable[..., str]) -> None:
    error = refused("--cfg", "tiny.yaml", "--out", out)
    assert message in error
    assert "give another folder with --out; --resume DIR continues a run" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "no_state"], "no training state at no_state/last.pt"),
        (
            ["--resume", "runs/tiny"],
            "runs/tiny/last.pt is not a training state: it is a file of another kind",
        ),
        (["--resume"], "runs/tiny/last.pt is not a training state"),  # the newest there is
        (
            ["--resume", "no_state", "--set", "seed=1"],
            "--resume continues with the run's own settings",
        ),
    ],
)
def test_a_run_to_resume(flags: list[str], message: str, refused: Callable[..., str]) -> None:
    Path("no_state").mkdir()
    assert message in refused(*flags)


def test_a_run_whose_data_have_gone(
    finished: FinishedRun, coco: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(finished.folder, "runs/copy")
    assert "data folder elsewhere does not exist" in refused(
        "--resume", "runs/copy", "--data", "elsewhere"
    )
    change_train_json(coco, lambda content: content["categories"][0].update(name="disc"))
    assert "the class lists differ" in refused("--resume", "runs/copy", "--data", coco)


# --- annotations


def test_missing_images(coco: Path, refused: Callable[..., str]) -> None:
    for number in (2, 3):
        (coco / "train" / f"{number:06d}.jpg").unlink()
    message = refused(*ON_COCO)
    assert "2 of 8 images of" in message
    assert message.endswith("photographs/train: 000002.jpg, 000003.jpg\n")


def test_a_file_name_that_leads_out_of_its_folder(coco: Path, refused: Callable[..., str]) -> None:
    change_train_json(coco, lambda content: content["images"][1].update(file_name="../../x.jpg"))
    message = refused(*ON_COCO)
    assert "file_name '../../x.jpg' lies outside the image folder" in message
    assert message.endswith("(1 such): --set data.outside=allow reads such files all the same\n")


def test_an_image_listed_twice(coco: Path, refused: Callable[..., str]) -> None:
    change_train_json(coco, lambda content: content["images"][1].update(id=1))
    message = refused(*ON_COCO)
    assert (
        "annotations/train.json: the image with id 1 is listed twice, with file_name 000001.jpg "
        "and 000002.jpg" in message
    )


def test_the_same_file_twice_among_the_splits(coco: Path, refused: Callable[..., str]) -> None:
    twice = [
        "data.train=[annotations/train.json, annotations/train.json]",
        "data.train_images=[train, train]",
    ]
    assert "photographs/train/000001.jpg is in more than one of" in refused(*ON_COCO, *twice)
    assert coco.is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[1, 2]",
            "train.json is not COCO annotations: expected an object with images, annotations and "
            "categories, found a list",
        ),
        (
            '{"images": [], "categories": []}',
            "train.json is not COCO annotations: it has no 'annotations'",
        ),
        ("<annotation/>", "train.json is not JSON"),
        ("", "train.json is not JSON"),
    ],
)
def test_a_json_file_that_is_not_coco(
    text: str, message: str, coco: Path, refused: Callable[..., str]
) -> None:
    (coco / "annotations" / "train.json").write_text(text)
    assert message in refused(*ON_COCO)


def test_an_annotation_of_no_image(coco: Path, refused: Callable[..., str]) -> None:
    change_train_json(coco, lambda content: content["annotations"][3].update(image_id=77))
    assert "train.json: annotation 4 has image_id 77, which the file does not list" in refused(
        *ON_COCO
    )


def test_xml_with_an_external_entity(voc: Path, refused: Callable[..., str]) -> None:
    Path("secret.txt").write_text("circle")
    file = voc / "Annotations" / "train3.xml"
    entity = (
        f'<!DOCTYPE annotation [<!ENTITY name SYSTEM "{Path("secret.txt").absolute().as_uri()}">]>'
    )
    file.write_text(
        entity
        + file.read_text().replace(
            "<annotation>", "<annotation><object><name>&name;</name></object>"
        )
    )
    message = refused(*ON_VOC)
    assert (
        "photographs/Annotations/train3.xml: refused, it declares a document type or entities"
        in message
    )
    assert "circle" not in message


def spoil_two_boxes(content: dict) -> None:
    """Two annotations whose right edge is left of their left one."""
    for annotation in content["annotations"][:2]:
        annotation["bbox"][2] *= -1


def test_boxes_without_area_under_the_strict_policy(
    coco: Path, refused: Callable[..., str]
) -> None:
    change_train_json(coco, spoil_two_boxes)
    message = refused(*ON_COCO, "data.box_policy=error")
    assert "annotations/train.json: annotation 1 (image 1), bbox [" in message
    assert "box without area (2 such)" in message


def test_boxes_without_area_are_dropped_and_counted_otherwise(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_train_json(coco, spoil_two_boxes)
    assert train_det.main([*ON_COCO, "train.steps=1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert next(line for line in out.splitlines() if line.startswith("train ")).endswith(
        "2 box without area"
    )
    assert records(Path("runs/tiny-2"), "train")


def test_no_object_left_to_learn(coco: Path, refused: Callable[..., str]) -> None:
    change_train_json(
        coco,
        lambda content: [
            item.update(iscrowd=1) for item in content["annotations"] if item["category_id"] == 40
        ],
    )
    message = refused(*ON_COCO, "data.classes=[star]")
    assert "annotations/train.json: 8 images but no object to learn from" in message
    assert "other class" in message


@pytest.mark.parametrize("images", [True, False])
def test_no_object_to_score(images: bool, coco: Path, refused: Callable[..., str]) -> None:
    file = coco / "annotations" / "val.json"
    content = json.loads(file.read_text())
    file.write_text(
        json.dumps({**content, "annotations": [], "images": content["images"] if images else []})
    )
    assert (
        f"annotations/val.json: {4 if images else 0} images but no object to evaluate on"
        in refused(*ON_COCO)
    )


def test_a_class_that_the_data_do_not_have(coco: Path, refused: Callable[..., str]) -> None:
    assert "has no class 'circel'; did you mean 'circle'?" in refused(
        *ON_COCO, "data.classes=[circel]"
    )
    assert coco.is_dir()


def test_splits_of_different_classes(coco: Path, refused: Callable[..., str]) -> None:
    change_train_json(coco, lambda content: content["categories"][0].update(name="disc"))
    message = refused(*ON_COCO)
    assert "the class lists differ" in message
    assert "3=disc, 7=square" in message
    assert "3=circle, 7=square" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_whoever_reads_it(
    workers: int, coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (coco / "train").glob("*.jpg"):
        file.write_bytes(file.read_bytes()[:3000])
    assert train_det.main([*ON_COCO, f"data.workers={workers}", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: image file {coco.absolute()}/train/00000")
    assert error.count("\n") == 1


# --- weights


class Code:
    """Unpickling it makes the folder `it_ran`."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("it_ran",)


def write_pickle(path: str, *, bare: bool) -> None:
    """Write a file that runs code when it is unpickled, as torch.save writes files or as pickle
    does.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = {"model": {"conv1.weight": torch.zeros(1)}, "step": Code()}
    if bare:
        Path(path).write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)


@pytest.mark.parametrize("bare", [False, True], ids=["torch.save", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_code_in_a_weights_file_is_not_run(
    suffix: str, bare: bool, photograph: Path, refused: Callable[..., str]
) -> None:
    file = f"evil{suffix}"
    write_pickle(file, bare=bare)
    assert file in refused("--cfg", "tiny.yaml", "--set", f"model.backbone.weights={file}")
    assert file in refused("--cfg", "tiny.yaml", "--init-from", file)
    assert file in refused("--weights", file, main=evaluate.main)
    assert file in refused("--weights", file, photograph, main=predict.main)
    assert not Path("it_ran").exists()


@pytest.mark.parametrize("bare", [False, True], ids=["torch.save", "pickle"])
def test_code_in_a_training_state_is_not_run(bare: bool, refused: Callable[..., str]) -> None:
    write_pickle("evil/last.pt", bare=bare)
    assert "evil/last.pt" in refused("--resume", "evil")
    assert not Path("it_ran").exists()


@pytest.fixture
def photograph(coco: Path) -> Path:
    return coco / "train" / "000001.jpg"


def test_backbone_weights_of_another_architecture(refused: Callable[..., str]) -> None:
    torch.save(create_backbone("resnet34").state_dict(), "other.pth")
    message = refused("--cfg", "tiny.yaml", "--set", "model.backbone.weights=other.pth")
    assert (
        "other.pth does not fit this network, a resnet18. The file looks like resnet34." in message
    )
    assert "no weights file gone.pth" in refused(
        "--cfg", "tiny.yaml", "--set", "model.backbone.weights=gone.pth"
    )


def test_a_detector_of_another_architecture(
    finished: FinishedRun, coco: Path, refused: Callable[..., str]
) -> None:
    settings = ("model.backbone.name=resnet34", "model.input.channel_order=bgr")
    message = refused(*ON_COCO, *settings, "--init-from", finished.weights)
    assert f"{finished.weights} holds a detector of another architecture or input" in message
    named = "model.backbone.name=resnet18, model.input.channel_order=rgb"
    assert message.rstrip().endswith(f"its weights mean what they do with {named}")
    message = refused(*ON_COCO, "model.backbone.norm=group", "--init-from", finished.weights)
    assert f"{finished.weights} holds weights of another architecture" in message
    assert coco.is_dir()


def test_weights_that_are_no_detectors(
    finished: FinishedRun, photograph: Path, refused: Callable[..., str]
) -> None:
    save_file({"weight": torch.zeros(1)}, "plain.safetensors")
    Path("cut.safetensors").write_bytes(finished.weights.read_bytes()[:1000])
    state = bytearray((finished.folder / "last.pt").read_bytes())
    state[len(state) // 2] ^= 1
    Path("last.pt").write_bytes(state)
    for file, reason in (
        ("plain.safetensors", "holds weights but not what a detector needs beside them"),
        ("cut.safetensors", "is damaged or no .safetensors file"),
        ("gone.safetensors", "no weights file at gone.safetensors"),
        ("last.pt", "last.pt is damaged"),
    ):
        for message in (
            refused("--cfg", "tiny.yaml", "--init-from", file),
            refused("--weights", file, main=evaluate.main),
            refused("--weights", file, photograph, main=predict.main),
        ):
            assert file in message
            assert reason in message


# --- the other commands


@pytest.mark.parametrize("main", [train_det.main, evaluate.main, predict.main])
def test_a_device_that_is_not_there(main: Main, refused: Callable[..., str]) -> None:
    required = {
        train_det.main: [],
        evaluate.main: ["--weights", "tiny.yaml"],
        predict.main: ["tiny.yaml", "--weights", "tiny.yaml"],
    }
    assert "argument --device: gpu cannot be used" in refused(
        *required[main], "--device", "gpu", main=main
    )


def test_eval_settings_without_a_config(finished: FinishedRun, refused: Callable[..., str]) -> None:
    error = refused("--weights", finished.weights, "--set", "train.lr=1", main=evaluate.main)
    assert "--set train.lr=1: only data.*, eval.* say how weights are evaluated" in error


def test_ctrl_c_anywhere_ends_with_130_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a process started in the background ignores it
    try:
        with ending(argparse.ArgumentParser()) as end:
            os.kill(os.getpid(), signal.SIGINT)
        assert end.status == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "\nstopped\n"
