"""A detector small enough to train in a second, the drawn shapes as a COCO and a VOC folder, and
one finished run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from detres.cli import train_det
from detres.detection.data.shapes import SHAPES_CLASSES, ensure_shapes

TRAIN_IMAGES, VAL_IMAGES = 8, 4
SPARSE_IDS = (3, 7, 12, 40, 41, 90)
"""Category ids of the COCO folder: rising with gaps, as COCO's own."""

TINY = {
    "name": "tiny",
    "data": {
        "format": "shapes",
        "shapes_train": TRAIN_IMAGES,
        "shapes_val": VAL_IMAGES,
        "workers": 0,
    },
    "model": {
        "backbone": {
            "name": "resnet18",
            "stride_placement": "torchvision",
            "norm": "batch",
            "freeze_at": 0,
        },
        "input": {"short_side": 96, "max_side": 128},
        "anchors": {"sizes": [16, 32, 64], "aspect_ratios": [1.0]},
        "rpn": {
            "width": 32,
            "objectness": "sigmoid",
            "train_anchors": "all",
            "min_size": 2,
            "train_post_nms_top_n": 40,
            "test_post_nms_top_n": 40,
        },
        "roi": {"pool": "roi_align", "pool_size": 4, "sampling_ratio": 1, "batch_size": 16},
    },
    "train": {
        "steps": 2,
        "batch_size": 2,
        "lr": 0.01,
        "warmup_steps": 0,
        "precision": "fp32",
        "log_every": 1,
        "clip_grad_norm": 10.0,
    },
}

COCO_FLAGS = (
    "data.format=coco",
    "data.train=[annotations/train.json]",
    "data.train_images=[train]",
    "data.val=[annotations/val.json]",
    "data.val_images=[val]",
)
"""Settings that make TINY read a COCO folder laid out as `coco_folder`; the folder itself goes with
--data.
"""


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRES_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DETRES_DATA", raising=False)
        yield


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Images this small gain nothing from a second thread, and lose much where another process has
    the core.
    """
    before = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of TINY."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file


@pytest.fixture
def train(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function: settings key=value, and further flags, -> the folder that train_det made,
    relative to a fresh directory.
    """
    monkeypatch.chdir(tmp_path)

    def call(*settings: str, flags: tuple[str, ...] = ()) -> Path:
        before = set(Path("runs").glob("*"))
        overrides = ["--set", *settings] if settings else []
        assert train_det.main(["--cfg", str(tiny), *overrides, "--device", "cpu", *flags]) == 0
        (made,) = set(Path("runs").glob("*")) - before
        return made

    return call


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn shapes as train/, val/ and annotations/*.json, with SPARSE_IDS."""
    root = tmp_path_factory.mktemp("data") / "coco"
    shutil.copytree(ensure_shapes(num_train=TRAIN_IMAGES, num_val=VAL_IMAGES), root)
    for file in (root / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["id"] = SPARSE_IDS[category["id"] - 1]
        for annotation in content["annotations"]:
            annotation["category_id"] = SPARSE_IDS[annotation["category_id"] - 1]
        file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def voc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as Annotations/, ImageSets/Main/ and JPEGImages/; a crowd, which VOC has not, is
    difficult.
    """
    shapes, root = (
        ensure_shapes(num_train=TRAIN_IMAGES, num_val=VAL_IMAGES),
        tmp_path_factory.mktemp("data") / "voc",
    )
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((shapes / "annotations" / f"{split}.json").read_text())
        stems = []
        for image in content["images"]:
            stem = f"{split}{image['id']}"
            stems.append(stem)
            shutil.copy(shapes / split / image["file_name"], root / "JPEGImages" / f"{stem}.jpg")
            objects = [
                voc_object(item)
                for item in content["annotations"]
                if item["image_id"] == image["id"]
            ]
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
            (root / "Annotations" / f"{stem}.xml").write_text(
                f"<annotation>{size}{''.join(objects)}</annotation>"
            )
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
    return root


def voc_object(annotation: dict) -> str:
    x, y, w, h = annotation["bbox"]
    sides = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
    box = "".join(f"<{side}>{value:g}</{side}>" for side, value in sides.items())
    name = SHAPES_CLASSES[annotation["category_id"] - 1]
    difficult = f"<difficult>{annotation['iscrowd']}</difficult>"
    return f"<object><name>{name}</name>{difficult}<bndbox>{box}</bndbox></object>"


@dataclass(frozen=True)
class FinishedRun:
    """A run on the COCO folder: where it is, its weights, what it was trained and scored on."""

    folder: Path
    data: Path

    @property
    def weights(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def val_json(self) -> Path:
        return self.data / "annotations" / "val.json"

    def numbers(self) -> dict:
        return read_json(self.folder / "metrics.json")


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, coco_folder: Path
) -> Iterator[FinishedRun]:
    """A run of four steps, evaluated after every second; tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = ["--set", *COCO_FLAGS, "train.steps=4", "train.eval_every=2"]
    flags = [
        "--cfg",
        str(tiny),
        "--data",
        str(coco_folder),
        "--out",
        str(folder),
        "--device",
        "cpu",
    ]
    assert train_det.main([*flags, *settings]) == 0
    torch.set_num_threads(threads)
    yield FinishedRun(folder, coco_folder)
    shutil.rmtree(folder)


def read_json(path: Path) -> object:
    return json.loads(path.read_text())


def numbers_in(path: Path) -> dict:
    """What `eval --weights --json` wrote, without the weights and settings that it is of."""
    numbers = read_json(path)
    assert {"weights", "split", "iou", "data", "eval"} == numbers.pop("evaluated").keys()
    return numbers


def records(folder: Path, kind: str) -> list[dict]:
    """The training or evaluation records of a run, without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("step_s", "data_s", "images_per_s")
    return [
        {key: value for key, value in line.items() if key not in times}
        for line in lines
        if line["kind"] == kind
    ]


def tensors(folder: Path) -> dict[str, Tensor]:
    with safe_open(folder / "best.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file under `folder` with a digest of its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }
