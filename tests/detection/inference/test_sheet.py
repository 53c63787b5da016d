"""The sheet: which pictures are on it, that mistakes look unlike what is right, and that captions
can be read at any size of picture.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.detection.annotations import Annotations
from detres.detection.evaluation.coco_ap import evaluate_coco
from detres.detection.evaluation.curves import outcome_of
from detres.detection.inference import sheet as sheets
from detres.detection.inference.sheet import DRAWN, PANEL, WORST, worst_images, write_sheet
from detres.detection.structures import Predictions
from detres.images.decode import ImageReadError, read_image
from tests.detection.evaluation.scenes import predictions_of, truth_of

LEFT = sheets._GAP
RIGHT = LEFT + PANEL + sheets._BETWEEN
BOX, OTHER = (10, 20, 60, 50), (5, 2, 40, 15)


def scene_of(
    tmp_path: Path, objects: list, rows: list, num: int = 14, size: tuple[int, int] = (60, 80)
) -> tuple[Annotations, Predictions]:
    """Grey images 0..num-1 of `size` (h, w)."""
    truth = truth_of(objects, list(range(num)), size=size)
    files = [str(tmp_path / f"{n}.png") for n in range(num)]
    for file in files:
        cv2.imwrite(file, np.full((*size, 3), 128, np.uint8))
    truth = dataclasses.replace(truth, image_files=np.array(files, dtype=str))
    return truth, predictions_of(rows)


def outcome(truth: Annotations, found: Predictions):
    return outcome_of(found, evaluate_coco(truth, found).matches, np.array([0.5, 0.5]))


def sheet_of(tmp_path: Path, truth: Annotations, found: Predictions, seed: int = 0) -> np.ndarray:
    write_sheet(tmp_path / "sheet.jpg", truth, found, outcome(truth, found), seed=seed)
    return read_image(tmp_path / "sheet.jpg")


def near(sheet: np.ndarray, color: tuple[int, int, int]) -> int:
    """How many pixels below the legend are of a colour, but for what JPEG does to it."""
    return int((np.abs(sheet[70:].astype(int) - color).max(axis=2) < 40).sum())


def test_the_images_with_the_most_mistakes_come_first():
    """Image 1: one missed. 2: two wrong, together 1.5. 3: two wrong, 1.7. 4: a wrong one below its
    score. 5: a difficult object that is not found. 6: right.
    """
    objects = [(1, 1, BOX), (5, 1, BOX, "difficult"), (6, 2, BOX)]
    rows = [
        *((2, 1, 0.9, BOX), (2, 1, 0.6, OTHER), (3, 1, 0.9, BOX), (3, 1, 0.8, OTHER)),
        *((4, 1, 0.4, BOX), (6, 2, 0.9, BOX)),
    ]
    truth, found = truth_of(objects, list(range(8))), predictions_of(rows)
    assert worst_images(truth, found, outcome(truth, found)).tolist() == [3, 2, 1]


def test_right_wrong_and_missed_have_colours_of_their_own(tmp_path):
    looks = {"right": sheets._RIGHT, "wrong": sheets._WRONG, "missed": sheets._MISSED}
    for objects, rows, seen in (
        ([(1, 1, BOX)], [(1, 1, 0.9, BOX)], {"right"}),
        ([], [(1, 1, 0.9, BOX)], {"wrong"}),
        ([(1, 1, BOX)], [], {"missed"}),
        ([(1, 1, BOX)], [(1, 2, 0.9, BOX)], {"wrong", "missed"}),
        ([(1, 1, BOX, "crowd")], [(1, 1, 0.9, BOX)], set()),
        ([(1, 1, BOX)], [(1, 1, 0.4, BOX)], {"missed"}),
    ):
        sheet = sheet_of(tmp_path, *scene_of(tmp_path, objects, rows, num=2))
        found = {name for name, (color, _) in looks.items() if near(sheet, color) > 50}
        assert found == seen, (objects, rows)
    assert len({color for color, _ in looks.values()}) == 3
    assert len({line for _, line in looks.values()}) == 3


def test_the_legend_says_each_kind_beside_a_sample_of_it(tmp_path):
    """Four frames of 46 by 30 px with nothing in them, and dark letters behind each."""
    legend = sheet_of(tmp_path, *scene_of(tmp_path, [(1, 1, BOX)], [], num=2))[:64].astype(int)
    dark = (legend.max(axis=2) < 90).any(axis=0)
    x = LEFT
    for _, text in sheets._LEGEND:
        assert (legend[26:38, x + 8 : x + 38] > 200).all()
        words = x + 46 + LEFT
        assert not dark[x + 46 + 8 : words - 3].any()
        assert dark[words : words + 40].any()
        x += 46 + 3 * LEFT + round(sheets.font_of(sheets._TITLE_LETTERS - 3).getlength(text))


def test_the_objects_stand_left_and_the_detections_right(tmp_path):
    sheet = sheet_of(tmp_path, *scene_of(tmp_path, [(0, 1, BOX)], [(0, 1, 0.9, OTHER)], num=1))
    for (color, _), (low, high) in (
        (sheets._MISSED, (LEFT, LEFT + PANEL)),
        (sheets._WRONG, (RIGHT, RIGHT + PANEL)),
    ):
        columns = np.nonzero((np.abs(sheet[70:].astype(int) - color).max(axis=2) < 40).any(0))[0]
        assert low <= columns.min()
        assert columns.max() < high
    scale = PANEL / 80
    columns = np.nonzero(
        (np.abs(sheet[70:].astype(int) - sheets._MISSED[0]).max(axis=2) < 40).any(axis=0)
    )[0]
    assert columns.min() == pytest.approx(LEFT + 10 * scale, abs=5)
    assert columns.max() == pytest.approx(LEFT + 60 * scale, abs=5)


def test_how_many_pictures_there_are_and_that_the_seed_draws_them(tmp_path, monkeypatch):
    shown: list[list[int]] = []
    draw = sheets._Scene.rows
    monkeypatch.setattr(
        sheets._Scene, "rows", lambda self, rows: shown.append(rows.tolist()) or draw(self, rows)
    )
    wrong = [(n, 1, 0.9, BOX) for n in range(8)]
    scene = scene_of(tmp_path, [], wrong, num=30)
    for seed in (0, 0, 1):
        sheet_of(tmp_path, *scene, seed=seed)
    worst, drawn = shown[0], shown[1]
    assert worst == list(range(WORST))
    assert len(drawn) == DRAWN
    assert not set(drawn) & set(worst)
    assert shown[2:4] == [worst, drawn]
    assert shown[5] != drawn
    shown.clear()
    sheet_of(tmp_path, *scene_of(tmp_path, [], [], num=3))
    assert shown == [[], [0, 1, 2]]
    shown.clear()
    sheet_of(tmp_path, *scene_of(tmp_path, [], wrong[:2], num=2))
    assert shown == [[0, 1]]


def test_no_image_and_no_object(tmp_path):
    assert sheet_of(tmp_path, *scene_of(tmp_path, [], [], num=0)).shape[0] < 200
    sheet = sheet_of(tmp_path, *scene_of(tmp_path, [], [], num=1))
    assert (np.abs(sheet.astype(int) - 128).max(axis=2) < 5).sum() > 2 * PANEL * 300


@pytest.mark.parametrize("size", [(8, 8), (60, 80), (3000, 2000), (20, 2000), (1500, 10)])
def test_captions_have_one_size_whatever_that_of_the_picture(tmp_path, size):
    h, w = size
    box = (0.1 * w, 0.2 * h, 0.9 * w, 0.8 * h)
    truth, found = scene_of(tmp_path, [], [(0, 1, 0.9, box)], num=1, size=size)
    sheet = sheet_of(tmp_path, truth, found)[:, RIGHT:]
    ground = np.abs(sheet[70:].astype(int) - sheets._WRONG[0]).max(axis=2) < 40
    runs = ground.sum(axis=1)
    assert (runs > 20).sum() >= sheets._LETTERS  # the caption's ground, as high as its letters
    assert sheet.shape[0] < 900


def test_in_a_crowd_the_mistakes_alone_have_captions(tmp_path):
    """Columns of right detections, and one wrong one; one box more, and the right have no names."""
    boxes = [(20 * n, 10, 20 * n + 10, 60) for n in range(sheets.CAPTIONED)]
    ground = {}
    for num in (sheets.CAPTIONED - 1, sheets.CAPTIONED):
        objects = [(0, 1, box) for box in boxes[:num]]
        rows = [*((0, 1, 0.9, box) for box in boxes[:num]), (0, 1, 0.8, (0, 100, 100, 150))]
        truth, found = scene_of(tmp_path, objects, rows, num=1, size=(200, 500))
        sheet = sheet_of(tmp_path, truth, found)[:, RIGHT:]
        ground[num] = [near(sheet, color) for color, _ in (sheets._RIGHT, sheets._WRONG)]
    few, many = ground.values()
    assert many[0] < 0.8 * few[0]
    assert many[1] == pytest.approx(few[1], rel=0.1)


def test_an_image_that_cannot_be_read_is_named_and_no_sheet_is_left(tmp_path):
    truth, found = scene_of(tmp_path, [], [(3, 1, 0.9, BOX)])
    Path(str(truth.image_files[3])).write_text("no image")
    with pytest.raises(ImageReadError, match=r"3\.png"):
        sheet_of(tmp_path, truth, found)
    assert not (tmp_path / "sheet.jpg").exists()
