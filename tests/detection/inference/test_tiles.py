"""Tiles: where they lie, and what is found in them put together; cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detres.boxes import box_iou, nms
from detres.detection.inference.tiles import Tiling, View, merge_views
from detres.detection.structures import Detections

SIZE = (100, 180)
LEFT, RIGHT = (0, 0, 100, 100), (80, 0, 180, 100)
"""Two tiles of 100 px on a picture of 180x100, which share the columns 80 to 100."""


def view(window: tuple[int, int, int, int], *found: tuple) -> View:
    """A view of (box in px of the PICTURE, score, label), as a detector in the window has it: cut
    to the window, in its px.
    """
    x1, y1, x2, y2 = window
    boxes = [
        [max(b[0], x1) - x1, max(b[1], y1) - y1, min(b[2], x2) - x1, min(b[3], y2) - y1]
        for b, _, _ in found
    ]
    return View(
        window,
        Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor([score for _, score, _ in found], dtype=torch.float32),
            torch.tensor([label for _, _, label in found], dtype=torch.int64),
        ),
    )


def merged(*views: View, size: tuple[int, int] = SIZE, nms_thresh: float = 0.5) -> list[tuple]:
    found = merge_views(views, size, nms_thresh)
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [(tuple(box), round(score, 3), label) for box, score, label in rows]


# ---- where the tiles lie ----


def test_tiles_by_hand() -> None:
    assert Tiling(100, 0.2).windows(SIZE) == [LEFT, RIGHT]
    assert Tiling(100, 0.2).windows((180, 181)) == [
        (x, y, x + 100, y + 100) for y in (0, 80) for x in (0, 40, 81)
    ]
    assert Tiling(100, 0.2).windows((60, 260)) == [(x, 0, x + 100, 60) for x in (0, 80, 160)]
    assert Tiling(800, 0.2).windows((800, 1440)) == [(0, 0, 800, 800), (640, 0, 1440, 800)]


@pytest.mark.parametrize("size", [(100, 100), (1, 1), (100, 3), (0, 0)])
def test_a_picture_no_larger_than_a_tile_has_none(size: tuple[int, int]) -> None:
    assert Tiling(100, 0.2).windows(size) == []


def test_tiles_cover_the_picture_lie_in_it_and_overlap_as_asked() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        side = int(generator.integers(32, 120))
        overlap = float(generator.uniform(0.01, 0.9))
        height, width = size = tuple(generator.integers(1, 500, 2).tolist())
        windows = Tiling(side, overlap).windows(size)
        if max(size) <= side:
            assert windows == []
            continue
        seen = np.zeros(size, bool)
        for x1, y1, x2, y2 in windows:
            assert (x2 - x1, y2 - y1) == (min(side, width), min(side, height))
            assert min(x1, y1) >= 0
            assert x2 <= width
            assert y2 <= height
            seen[y1:y2, x1:x2] = True
        assert seen.all()
        assert len(set(windows)) == len(windows)
        for axis in (0, 1):
            starts = sorted({window[axis] for window in windows})
            gaps = np.diff(starts)
            assert (side - gaps >= min(overlap * side, side - 1) - 1e-6).all()
            assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
            # as few as do it: with one tile less they would overlap by less
            length = size[1 - axis]
            step = max(1, side - int(np.ceil(round(overlap * side, 6))))
            assert len(starts) == 1 or (len(starts) - 2) * step < length - side


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((31,), "a tile of 31 px, expected 32 or more"),
        ((-800,), "a tile of -800 px"),
        ((800, 0.0), "tiles overlap by 0 of their side, expected above 0"),
        ((800, -0.1), "overlap by -0.1"),
        ((800, 1.0), "overlap by 1 of"),
        ((800, 20), "overlap by 20 of"),
        ((800, float("nan")), "overlap by nan"),
    ],
)
def test_tiles_that_cannot_be_are_refused(given: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiling(*given)
    assert Tiling(32, 0.9).windows((32, 33))


# ---- what is found in them ----


def test_an_object_across_a_seam_comes_out_once_and_whole() -> None:
    across = (60, 20, 130, 50)
    assert merged(view(LEFT, (across, 0.7, 1)), view(RIGHT, (across, 0.9, 1))) == [(across, 0.9, 1)]


def test_an_object_across_three_tiles_comes_out_once_and_whole() -> None:
    windows = [(x, 0, x + 100, 100) for x in (0, 80, 160)]
    across = (10, 20, 250, 50)
    # the outer two see nothing in common: the one between joins them, though it is the least sure
    views = [view(w, (across, s, 1)) for w, s in zip(windows, (0.9, 0.6, 0.8), strict=True)]
    assert merged(*views, size=(100, 260)) == [(across, 0.9, 1)]


def test_an_object_on_the_corner_of_four_tiles_comes_out_once_and_whole() -> None:
    windows = Tiling(100, 0.2).windows((180, 180))
    assert len(windows) == 4
    across = (70, 60, 120, 140)
    assert merged(*(view(w, (across, 0.5, 1)) for w in windows), size=(180, 180)) == [
        (across, 0.5, 1)
    ]


@pytest.mark.parametrize("gap", [0, 1, 4])
def test_two_objects_close_together_on_both_sides_of_a_seam_stay_two(gap: int) -> None:
    """Each tile sees one whole and a part of the other, which ends at its border."""
    first, second = (50, 20, 90, 50), (90 + gap, 20, 130, 50)
    left = view(LEFT, (first, 0.9, 1), (second, 0.6, 1))
    right = view(RIGHT, (first, 0.5, 1), (second, 0.8, 1))
    assert merged(left, right) == [(first, 0.9, 1), (second, 0.8, 1)]


def test_two_objects_that_end_just_before_and_begin_just_behind_a_border_stay_two() -> None:
    first, second = (50, 20, 99.5, 50), (100.5, 20, 150, 50)
    left = view(LEFT, (first, 0.9, 1))
    right = view(RIGHT, (first, 0.5, 1), (second, 0.8, 1))
    assert merged(left, right) == [(first, 0.9, 1), (second, 0.8, 1)]


def test_two_objects_in_what_both_tiles_see_stay_two() -> None:
    first, second = (81, 20, 89, 50), (91, 20, 99, 50)
    both = ((first, 0.9, 1), (second, 0.8, 1))
    assert merged(view(LEFT, *both), view(RIGHT, *both)) == [(first, 0.9, 1), (second, 0.8, 1)]


def test_objects_one_over_the_other_across_a_seam_stay_two_and_whole() -> None:
    upper, lower = (60, 10, 130, 40), (55, 45, 140, 80)
    both = ((upper, 0.9, 1), (lower, 0.8, 1))
    assert merged(view(LEFT, *both), view(RIGHT, *both)) == [(upper, 0.9, 1), (lower, 0.8, 1)]


def test_a_small_object_in_front_of_one_across_the_seam_is_not_taken_for_its_part() -> None:
    """Both tiles have both; what agrees best is joined first, and never two of a tile."""
    large, small = (40, 20, 99.5, 50), (84, 22, 99.5, 49)
    left = view(LEFT, (large, 0.9, 1), (small, 0.7, 1))
    right = view(RIGHT, (large, 0.5, 1), (small, 0.8, 1))
    assert merged(left, right) == [(large, 0.9, 1), (small, 0.8, 1)]


def test_parts_of_different_classes_stay_two() -> None:
    across = (60, 20, 130, 50)
    assert merged(view(LEFT, (across, 0.7, 1)), view(RIGHT, (across, 0.9, 2))) == [
        ((80, 20, 130, 50), 0.9, 2),
        ((60, 20, 100, 50), 0.7, 1),
    ]


def test_a_part_that_the_other_tile_does_not_find_is_kept_as_it_is() -> None:
    across = (60, 20, 130, 50)
    assert merged(view(LEFT, (across, 0.7, 1)), view(RIGHT)) == [((60, 20, 100, 50), 0.7, 1)]


def test_what_is_larger_than_a_tile_is_what_the_whole_picture_shows() -> None:
    windows = [(x, 0, x + 100, 100) for x in (0, 80, 160)]
    whole, large = (0, 0, 260, 100), (5, 10, 255, 90)
    parts = [view(window, (large, 0.9, 1)) for window in windows]
    shown = view(whole, ((4, 11, 256, 88), 0.6, 1))
    found = merged(shown, *parts, size=(100, 260))
    # edges: the best of the views that do not cut them
    assert found == [((5, 10, 255, 90), 0.9, 1)]
    parts = [view(window, (large, 0.3, 1)) for window in windows[:2]]
    assert merged(shown, *parts, size=(100, 260)) == [((4, 11, 256, 88), 0.6, 1)]


def test_a_side_comes_from_the_best_view_that_does_not_cut_it() -> None:
    left = view(LEFT, ((60, 20, 130, 50), 0.9, 1))  # which sees it to 100
    right = view(RIGHT, ((70, 24, 132, 54), 0.8, 1))
    assert merged(left, right) == [((60, 20, 132, 50), 0.9, 1)]
    left = view(LEFT, ((60, 20, 130, 50), 0.7, 1))
    assert merged(left, right) == [((60, 24, 132, 54), 0.8, 1)]


def test_a_side_that_all_views_cut_is_the_outermost() -> None:
    """Both tiles end within an object, and no third one is there to see more of it."""
    first, second = (0, 0, 100, 100), (80, 0, 180, 100)
    found = merged(
        view(first, ((60, 20, 200, 50), 0.9, 1)),
        view(second, ((60, 20, 200, 50), 0.8, 1)),
        size=(100, 300),
    )
    assert found == [((60, 20, 180, 50), 0.9, 1)]


def test_the_pictures_own_border_cuts_nothing() -> None:
    touching = (0, 0, 90, 100)
    found = merged(view(LEFT, (touching, 0.9, 1)), view(RIGHT, ((0, 0, 96, 100), 0.8, 1)))
    assert found == [(touching, 0.9, 1)]


def test_nms_a_class_over_all_tiles() -> None:
    """Two boxes of which neither tile sees enough to call them one, and another class."""
    window = (0, 0, 180, 100)
    first, second = (20, 20, 60, 60), (30, 20, 70, 60)  # IoU 0.6
    found = ((first, 0.9, 1), (second, 0.8, 1), (second, 0.7, 2))
    assert merged(view(window, *found), nms_thresh=0.61) == [*found]
    assert merged(view(window, *found), nms_thresh=0.59) == [found[0], found[2]]


@pytest.mark.parametrize("views", [(), (view(LEFT),), (view(LEFT), view(RIGHT))])
def test_nothing_found_is_nothing(views: tuple[View, ...]) -> None:
    found = merge_views(views, SIZE, 0.5)
    assert found.boxes.shape == (0, 4)
    assert (found.boxes.dtype, found.scores.dtype) == (torch.float32, torch.float32)
    assert found.labels.dtype == torch.int64


def test_one_view_is_what_nms_leaves_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((60, 2), generator=generator) * 80
    boxes = torch.cat((corners, corners + torch.rand((60, 2), generator=generator) * 20), dim=1)
    scores = torch.rand(60, generator=generator)
    one = View((0, 0, 180, 100), Detections(boxes, scores, torch.ones(60, dtype=torch.int64)))
    found = merge_views([one], SIZE, 0.3)
    keep = nms(boxes, scores, 0.3)
    assert torch.equal(found.boxes, boxes[keep])
    assert torch.equal(found.scores, scores[keep])


def test_objects_apart_come_out_as_they_are_wherever_the_tiles_lie() -> None:
    """Random scenes of objects that do not touch, seen by perfect detectors: each once, whole, by
    the tiles alone and with the whole picture beside them.
    """
    generator = np.random.default_rng(1)
    for scene in range(40):
        height, width = size = tuple(generator.integers(150, 400, 2).tolist())
        tiling = Tiling(int(generator.integers(60, 140)), float(generator.uniform(0.1, 0.5)))
        objects = []
        for _ in range(40):
            corner = generator.uniform(0, (width - 4, height - 4))
            sides = generator.uniform(3, 120, 2)
            box = (*corner, *np.minimum(corner + sides, (width, height)))
            far = torch.tensor([(b[0] - 1, b[1] - 1, b[2] + 1, b[3] + 1) for b, _ in objects])
            if not objects or not (box_iou(torch.tensor([box]), far.reshape(-1, 4)) > 0).any():
                objects.append((box, int(generator.integers(1, 3))))
        windows = [*tiling.windows(size), *([(0, 0, width, height)] if scene % 2 else [])]
        views = []
        for x1, y1, x2, y2 in windows:
            inside = [
                (box, round(generator.uniform(0.1, 1), 3), label)
                for box, label in objects
                if min(box[2], x2) - max(box[0], x1) > 0 and min(box[3], y2) - max(box[1], y1) > 0
            ]
            views.append(view((x1, y1, x2, y2), *inside))
        found = merge_views(views, size, 0.3)
        assert len(found) == len(objects)
        for box, label in objects:
            error = (found.boxes - torch.tensor(box, dtype=torch.float32)).abs().max(dim=1).values
            row = int(error.argmin())
            # within what is taken for a tile's border
            assert error[row] <= 0.01 * tiling.side + 1e-3
            assert found.labels[row] == label
        assert (found.scores.diff() <= 0).all()
