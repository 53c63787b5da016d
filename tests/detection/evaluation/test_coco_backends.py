"""The arrays behind COCO's numbers: pycocotools, given a dict a box, is the witness of both
backends.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations, offsets_of
from detres.detection.evaluation import coco_backends
from detres.detection.evaluation.coco_ap import evaluate_coco
from detres.detection.evaluation.coco_backends import (
    CocoCounts,
    CocoProblem,
    backend_on_the_way,
    count_coco,
)
from detres.detection.evaluation.matches import NONE
from detres.detection.structures import Predictions, label_of
from tests.detection.evaluation.by_pycocotools import by_dicts
from tests.detection.evaluation.scenes import random_scene

HAS_HOTCOCO = coco_backends.hotcoco is not None
BACKENDS = [
    "pycocotools",
    pytest.param(
        "hotcoco", marks=pytest.mark.skipif(not HAS_HOTCOCO, reason="the extra fast is missing")
    ),
]
SETS = 50


def drawn_set(seed: int) -> tuple[Annotations, Predictions]:
    """Return a set of its own kind by the seed: ties in score and overlap, crowds and difficult
    objects, images and classes without one or the other, piles of more than 100 detections, no
    detections, no objects, and more than a thousand classes.
    """
    rng = np.random.default_rng(seed)
    kind = seed % 10
    num_classes = 1200 if seed == 7 else int(rng.integers(1, 6))
    num_images = int(rng.integers(1, 12))
    grid = (12, 6, 1, 1, 1, 0, 0, 0, 0, 0)[kind]  # px; on a coarse one many overlaps are equal
    num_objects = 0 if kind == 8 else int(rng.integers(1, 120))
    num_found = 0 if kind == 9 else int(rng.integers(1, 900))
    class_map = ClassMap(
        tuple(f"c{k}" for k in range(num_classes)), tuple(range(7, 7 + num_classes))
    )
    image_ids = rng.permutation(np.arange(50, 50 + num_images))
    owners = np.sort(rng.integers(0, max(num_images - 1, 1), num_objects))  # the last is empty
    classes = rng.integers(0, num_classes, num_objects)
    boxes = _drawn_boxes(rng, num_objects, grid)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    limits = rng.choice((32.0**2, 96.0**2), num_objects)
    truth = Annotations(
        source="drawn",
        class_map=class_map,
        image_ids=image_ids,
        image_files=np.array([f"{one}.jpg" for one in image_ids]),
        image_sizes=np.zeros((num_images, 2), np.int32),
        offsets=offsets_of(owners, num_images),
        boxes=boxes,
        labels=label_of(classes),
        areas=np.where(rng.random(num_objects) < 0.2, limits, areas),
        crowd=rng.random(num_objects) < 0.15,
        difficult=rng.random(num_objects) < 0.1,
        ids=np.arange(num_objects),
        dropped={},
    )
    images = rng.integers(0, num_images, num_found)
    labels = label_of(rng.integers(0, num_classes, num_found))
    found = _drawn_boxes(rng, num_found, grid)
    if num_objects and num_found:
        near = rng.random(num_found) < 0.7
        row = rng.integers(0, num_objects, num_found)
        images, labels = (
            np.where(near, owners[row], images),
            np.where(near, truth.labels[row], labels),
        )
        shifts = np.clip(rng.integers(-6, 7, (num_found, 4)) * (grid or 0.37), -12, 12)
        found = np.where(near[:, None], boxes[row] + shifts, found)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])  # some have no area
    scores = rng.random(num_found)
    if kind % 2 == 0:
        scores = scores.round(1)
    predictions = Predictions(
        class_map=class_map,
        image_ids=image_ids[images],
        boxes=found.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=labels,
    )
    return truth, predictions


def _drawn_boxes(rng: np.random.Generator, number: int, grid: int) -> np.ndarray:
    corners = rng.uniform(0, 90, (number, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(4, 120, (number, 2))), axis=1)
    return (boxes / grid).round() * grid if grid else boxes


def counts_of(truth: Annotations, predictions: Predictions, backend: str) -> CocoCounts:
    return count_coco(CocoProblem(truth, predictions, truth.rows_of(predictions)), backend)


@pytest.fixture(scope="module")
def witnesses() -> dict[int, COCOeval]:
    return {seed: by_dicts(*drawn_set(seed)) for seed in range(SETS)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_array_equals_pycocotools_to_the_last_bit(backend: str, witnesses) -> None:
    for seed, theirs in witnesses.items():
        counts = counts_of(*drawn_set(seed), backend)
        for name in ("precision", "recall", "scores"):
            np.testing.assert_array_equal(
                getattr(counts, name), theirs.eval[name], f"{name} of set {seed}"
            )
        assert counts.stats() == theirs.stats.tolist(), seed
        assert counts.by == f"{backend} {importlib.metadata.version(backend)}"


def test_the_sets_have_what_they_are_for(witnesses) -> None:
    sets = [drawn_set(seed) for seed in range(SETS)]
    assert any(len(found) == 0 for _, found in sets)
    assert any(truth.num_objects == 0 for truth, _ in sets)
    assert any(len(truth.class_map) == 1200 for truth, _ in sets)
    assert any(
        len(each["dtIds"]) == 100 for one in witnesses.values() for each in one.evalImgs if each
    )
    measured = [one.stats[0] for one in witnesses.values()]
    assert sum(0 < ap < 1 for ap in measured) > 30
    assert min(measured) == -1
    assert 0.0 in measured


def test_the_matches_are_those_of_pycocotools_at_half(witnesses) -> None:
    for seed, theirs in witnesses.items():
        matches = evaluate_coco(*drawn_set(seed)).matches
        objects, counted = np.full(len(matches.objects), NONE), np.zeros(len(matches.objects), bool)
        for one in theirs.evalImgs:
            if one is None or list(one["aRng"]) != [0, 1e10]:
                continue
            rows = np.array(one["dtIds"], np.int64) - 1
            counted[rows] = ~one["dtIgnore"][0].astype(bool)
            objects[rows] = np.where(counted[rows], one["dtMatches"][0].astype(np.int64) - 1, NONE)
        np.testing.assert_array_equal(matches.objects, objects)
        np.testing.assert_array_equal(matches.counted, counted)


@pytest.mark.skipif(not HAS_HOTCOCO, reason="the extra fast is missing")
def test_results_differ_in_who_counted_alone() -> None:
    one, other = (
        evaluate_coco(*random_scene(3), backend=each) for each in ("pycocotools", "hotcoco")
    )
    assert one.metrics == other.metrics
    assert one.per_class == other.per_class
    assert one.per_class_ap50 == other.per_class_ap50
    for field in dataclasses.fields(one.matches):
        np.testing.assert_array_equal(
            getattr(one.matches, field.name), getattr(other.matches, field.name)
        )
    assert one.protocol.replace(_named("pycocotools"), _named("hotcoco")) == other.protocol


def _named(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def test_auto_is_the_referee_and_on_the_way_the_faster_one() -> None:
    truth, found = random_scene(0)
    assert evaluate_coco(truth, found).protocol.endswith(_named("pycocotools"))
    assert backend_on_the_way("auto") == ("hotcoco" if HAS_HOTCOCO else "auto")
    assert backend_on_the_way("pycocotools") == "pycocotools"


def test_without_the_package_one_line_names_the_extra(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 5, 5],
                "iscrowd": 0,
                "area": 25,
            }
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(found))
    program = (
        "import sys; sys.modules['hotcoco'] = None\n"  # as if it were not installed
        "from detres.cli.eval import main\n"
        "files = ['--detections', 'found.json', '--annotations', 'truth.json']\n"
        "print(main([*files, '--backend', 'hotcoco']), main([*files, '--backend', 'auto']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "2 0"
    (line,) = done.stderr.splitlines()
    assert "hotcoco" in line
    assert "pip install 'detres[fast]'" in line
