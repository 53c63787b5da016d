"""The ILSVRC tasks end to end, on the drawn shapes in their layout: DET by train-det and eval,
CLS-LOC by train-loc.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from detres.cli import eval as evaluate
from detres.cli import train_loc
from detres.detection.data.shapes import SHAPES_CLASSES
from tests.cli.conftest import SPARSE_IDS, read_json
from tests.cli.test_train_loc import TINY_LOC

WNIDS = tuple(f"n0{k}672831" for k in range(6))


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory: pytest.TempPathFactory, coco_folder: Path) -> Path:
    """The shapes as an ILSVRC folder, both tasks."""
    root = tmp_path_factory.mktemp("data") / "ILSVRC"
    for task in ("DET", "CLS-LOC"):
        (root / "ImageSets" / task).mkdir(parents=True)
        for split, name in (("train", "train_loc"), ("val", "val")):
            content = json.loads((coco_folder / "annotations" / f"{split}.json").read_text())
            lines = []
            for image in content["images"]:
                stem = f"extra/{split}_{image['id']}" if split == "train" else f"val_{image['id']}"
                lines.append(f"{stem} {image['id']}")
                for below in ("Data", "Annotations"):
                    (root / below / task / split / stem).parent.mkdir(parents=True, exist_ok=True)
                data = root / "Data" / task / split / f"{stem}.JPEG"
                shutil.copy(coco_folder / split / image["file_name"], data)
                objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
                if objects:
                    (root / "Annotations" / task / split / f"{stem}.xml").write_text(
                        annotation(image, objects)
                    )
            (root / "ImageSets" / task / f"{name}.txt").write_text("\n".join(lines))
    rows = [f"{w} {k} {n}" for k, (w, n) in enumerate(zip(WNIDS, SHAPES_CLASSES, strict=True), 1)]
    (root / "devkit" / "data").mkdir(parents=True)
    for name in ("map_det", "map_clsloc"):
        (root / "devkit" / "data" / f"{name}.txt").write_text("\n".join(rows))
    return root


def annotation(image: dict, objects: list[dict]) -> str:
    """The XML of an image; inclusive pixels, counted from 0."""
    parts = [f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"]
    for item in objects:
        x, y, w, h = item["bbox"]
        sides = {"xmin": x, "xmax": x + w - 1, "ymin": y, "ymax": y + h - 1}
        box = "".join(f"<{side}>{value:g}</{side}>" for side, value in sides.items())
        name = WNIDS[SPARSE_IDS.index(item["category_id"])]
        parts.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"


def test_det_is_trained_and_evaluated_by_its_protocol(
    train: Callable[..., Path], ilsvrc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(
        *("data.format=ilsvrc", "data.train=[DET/train_*]", "data.val=[DET/val]"),
        "eval.protocol=imagenet_det",
        flags=("--data", str(ilsvrc)),
    )
    numbers = read_json(folder / "metrics.json")
    assert numbers["protocol"].startswith("ImageNet DET AP")
    assert list(numbers["per_class"]) == list(SHAPES_CLASSES)
    assert "have no annotation file" in capsys.readouterr().out  # shapes has images without objects
    weights = str(folder / "best.safetensors")
    flags = ["--device", "cpu", "--json", "out.json"]
    assert evaluate.main(["--weights", weights, "--save-detections", "d.json", *flags]) == 0
    by_weights = read_json(Path("out.json"))
    assert by_weights["mAP"] == numbers["mAP"]
    found = ["--detections", "d.json", "--annotations", str(ilsvrc)]
    assert evaluate.main([*found, "--split", "val", *flags]) == 0
    assert read_json(Path("out.json"))["mAP"] == pytest.approx(by_weights["mAP"], abs=1e-6)


def test_the_truth_as_detections_is_perfect(
    ilsvrc: Path, tmp_path: Path, coco_folder: Path
) -> None:
    content = json.loads((coco_folder / "annotations" / "val.json").read_text())
    results = [
        {
            "image_id": f"val_{item['image_id']}",
            "category_id": SPARSE_IDS.index(item["category_id"]) + 1,
            "bbox": item["bbox"],
            "score": 0.5,
        }
        for item in content["annotations"]
    ]
    (tmp_path / "d.json").write_text(json.dumps(results))
    out = tmp_path / "out.json"
    flags = ["--detections", str(tmp_path / "d.json"), "--annotations", str(ilsvrc)]
    assert evaluate.main([*flags, "--json", str(out)]) == 0
    assert read_json(out)["mAP"] == 1
    assert read_json(out)["protocol"].startswith("ImageNet DET")


def test_a_localiser_learns_from_the_localisation_task(
    ilsvrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {
        "format": "ilsvrc",
        "train": ["CLS-LOC/train_loc"],
        "val": ["CLS-LOC/val"],
        "workers": 0,
    }
    Path("loc.yaml").write_text(yaml.safe_dump({**TINY_LOC, "data": data}))
    flags = ["--cfg", "loc.yaml", "--data", str(ilsvrc), "--device", "cpu"]
    assert train_loc.main([*flags, "--set", "train.steps=1"]) == 0
    numbers = read_json(Path("runs/loc/metrics.json"))
    assert set(numbers["per_class"]) == set(WNIDS)
