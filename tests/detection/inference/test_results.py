from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detres.detection.inference.pictures import PictureError, write_jpeg
from detres.detection.inference.results import Found, Results
from detres.detection.structures import Detections
from detres.images.decode import ImageReadError, Picture, read_image
from detres.images.draw import draw_boxes
from tests.helpers import CLASSES

BOXES = [[10.0, 5.0, 30.0, 25.0], [0.5, 0.25, 8.0, 4.0], [20.0, 2.0, 39.0, 9.0]]
SCORES = [0.875, 0.5, 0.25]
LABELS = [2, 1, 2]


def results(picture: Picture, rows: int = 3) -> Results:
    """The first rows of BOXES in a picture of 40x30 px."""
    detections = Detections(
        torch.tensor(BOXES[:rows]).reshape(-1, 4),
        torch.tensor(SCORES[:rows]),
        torch.tensor(LABELS[:rows], dtype=torch.int64),
    )
    return Results(detections, CLASSES, picture, (30, 40))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.full((30, 40, 3), 90, np.uint8)


@pytest.fixture
def file(tmp_path: Path, pixels: np.ndarray) -> Path:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels)
    return path


def test_what_it_holds_by_hand(file):
    found = results(str(file))
    assert len(found) == 3
    assert found.boxes.tolist() == BOXES
    assert found.scores.tolist() == SCORES
    assert found.labels.tolist() == LABELS
    assert found.names == ["dog", "cat", "dog"]
    assert found.captions() == ["dog 0.88", "cat 0.50", "dog 0.25"]
    assert found.image == file
    assert list(found) == [
        Found("dog", 0.875, (10, 5, 30, 25)),
        Found("cat", 0.5, (0.5, 0.25, 8, 4)),
        Found("dog", 0.25, (20, 2, 39, 9)),
    ]
    assert [each.name for each in found if each.score > 0.4] == ["dog", "cat"]


def test_nothing_found(pixels):
    found = results(pixels, rows=0)
    assert len(found) == 0
    assert not found
    assert list(found) == found.names == found.captions() == found.to_coco("a") == []
    assert found.image is None
    assert len(found.above(0)) == 0
    np.testing.assert_array_equal(found.draw(), pixels)


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0, 3), (0.25, 3), (0.2500001, 2), (0.5, 2), (0.51, 1), (0.875, 1), (0.9, 0), (1, 0)],
)
def test_above_keeps_those_of_at_least_the_score(score, expected, pixels):
    kept = results(pixels).above(score)
    assert isinstance(kept, Results)
    assert kept.boxes.tolist() == BOXES[:expected]
    assert kept.names == ["dog", "cat", "dog"][:expected]
    assert kept.size == (30, 40)
    assert kept.above(0).scores.tolist() == SCORES[:expected]


@pytest.mark.parametrize(
    ("cat", "dog", "kept"),
    [(0.5, 0.25, [0, 1, 2]), (0.51, 0.25, [0, 2]), (0.5, 0.26, [0, 1]), (0.9, 0.9, [])],
)
def test_above_takes_a_score_of_each_class(cat, dog, kept, pixels):
    lowest = [{"cat": cat, "dog": dog}.get(name, 0.0) for name in CLASSES.names]
    found = results(pixels).above(tuple(lowest))
    assert found.scores.tolist() == [SCORES[row] for row in kept]
    assert len(results(pixels, rows=0).above(lowest)) == 0


def test_a_picture_is_drawn_on_a_copy(pixels, file):
    before = pixels.copy()
    expected = draw_boxes(pixels, np.array(BOXES), LABELS, ["dog 0.88", "cat 0.50", "dog 0.25"])
    assert (expected != pixels).any()
    for given in (pixels, file, str(file), Image.fromarray(pixels)):
        np.testing.assert_array_equal(results(given).draw(), expected)
    np.testing.assert_array_equal(pixels, before)
    file.unlink()
    with pytest.raises(ImageReadError, match=r"a\.png does not exist"):
        results(file).draw()


def test_a_picture_is_saved_by_the_suffix_of_its_name(pixels, tmp_path):
    found = results(pixels)
    found.save(tmp_path / "deep" / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep" / "a.png"), found.draw())
    write_jpeg(tmp_path / "expected", found.draw())
    for name in ("a.jpg", "b.JPEG"):
        found.save(str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == (tmp_path / "expected").read_bytes()
    results(pixels, rows=0).save(tmp_path / "a.jpg")  # over the picture of before
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - 90).max() <= 1
    for name in ("a.gif", "a", "a.txt"):
        with pytest.raises(PictureError, match=f"{name}: pictures are written as .jpg or .png"):
            found.save(tmp_path / name)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["a.jpg", "b.JPEG", "deep", "expected"]


def test_the_image_itself_is_never_written_over(file, tmp_path, monkeypatch):
    before = file.read_bytes()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.png").symlink_to(file)
    for given in (file, "a.png", "./a.png", "link.png"):
        with pytest.raises(PictureError, match="is the image itself, which is left as it is"):
            results("a.png").save(given)
    assert file.read_bytes() == before
    results("a.png").save("b.png")
    assert Path("b.png").exists()


def test_coco_results_by_hand(file, pixels):
    first = {
        "image_id": str(file),
        "category_id": 7,
        "category_name": "dog",
        "bbox": [10.0, 5.0, 20.0, 20.0],
        "score": 0.875,
    }
    for given in (file, str(file)):
        records = results(given).to_coco()
        assert records[0] == first
        assert [record["category_id"] for record in records] == [7, 3, 7]
    assert results(file, rows=1).to_coco(12) == [{**first, "image_id": 12}]
    assert type(results(pixels, rows=1).to_coco(12)[0]["image_id"]) is int
    assert results(pixels, rows=1).to_coco("x") == [{**first, "image_id": "x"}]
    with pytest.raises(ValueError, match="given as pixels has no id: give image_id"):
        results(pixels).to_coco()


def test_without_supervision_the_way_to_it_is_said(pixels, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"not installed: pip install supervision$"):
        results(pixels).to_supervision()


@pytest.mark.parametrize("rows", [3, 0])
def test_supervision_gets_arrays_as_it_wants_them(rows, pixels, monkeypatch):
    """By a stand-in for the package, which is optional, that checks what its own class does."""

    class SupervisionDetections:
        def __init__(self, *, xyxy, confidence, class_id, data):
            num = len(xyxy)
            assert isinstance(xyxy, np.ndarray)
            assert xyxy.shape == (num, 4)
            assert isinstance(confidence, np.ndarray)
            assert confidence.shape == (num,)
            assert isinstance(class_id, np.ndarray)
            assert class_id.shape == (num,)
            assert all(len(values) == num for values in data.values())
            self.xyxy, self.confidence, self.class_id, self.data = xyxy, confidence, class_id, data

    package = ModuleType("supervision")
    package.Detections = SupervisionDetections
    monkeypatch.setitem(sys.modules, "supervision", package)
    found = results(pixels, rows=rows).to_supervision()
    assert found.xyxy.tolist() == BOXES[:rows]
    assert found.confidence.tolist() == SCORES[:rows]
    assert found.class_id.tolist() == [1, 0, 1][:rows]
    assert found.data["class_name"].tolist() == ["dog", "cat", "dog"][:rows]


def test_its_repr_counts_the_classes_in_a_line(pixels):
    assert repr(results(pixels)) == "Results(40x30 px: 2 dog, 1 cat)"
    assert repr(results("x\n\x1b[2J.png")) == "Results(x \\x1b[2J.png, 40x30 px: 2 dog, 1 cat)"
    assert repr(results(pixels, rows=0)) == "Results(40x30 px: nothing)"
