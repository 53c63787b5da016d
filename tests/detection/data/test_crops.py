"""Crops and warped regions with the objects in them: boxes follow the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detres.detection.data.crops import ProposalsByImage, RandomCrop, WarpedProposal
from detres.images.resize import warped_region
from tests.helpers import make_target


def marked(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A black image with one white rectangle."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return image


def box_of_white(image: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(image[:, :, 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("seed", range(12))
def test_the_box_is_where_the_pixels_are(seed: int) -> None:
    box = (30, 20, 90, 70)
    crop = RandomCrop(short_sides=(64, 160), crop_side=48, flip=0.5)
    image, target = crop(marked(100, 130, box), make_target([box], [2]), seed)
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    if len(target) == 0:
        assert (image < 128).all()
        return
    np.testing.assert_allclose(target.boxes[0].numpy(), box_of_white(image), atol=1)
    assert target.labels.tolist() == [2]


def test_it_is_a_pure_function_and_mirrors() -> None:
    box = (0, 0, 20, 64)
    image, target = marked(64, 64, box), make_target([box], [1])
    for flip, expected in ((0.0, [0, 0, 20, 64]), (1.0, [44, 0, 64, 64])):
        crop = RandomCrop(short_sides=(64, 64), crop_side=64, flip=flip)
        pixels, found = crop(image, target, 5)
        assert found.boxes.tolist() == [expected]
        assert box_of_white(pixels) == expected
        again, _ = crop(image, target, 5)
        assert (again == pixels).all()


def test_crops_are_drawn_from_all_of_the_image_at_all_scales() -> None:
    crop = RandomCrop(short_sides=(64, 128), crop_side=64, flip=0.0)
    columns = [[x, 0, x + 10, 100] for x in range(0, 200, 10)]
    target, black = make_target(columns, list(range(1, 21))), np.zeros((100, 200, 3), np.uint8)
    seen, widths = set(), set()
    for seed in range(200):
        found = crop(black, target, seed)[1]
        seen |= set(found.labels.tolist())
        whole = found.boxes[1]  # neither the first nor the last in the crop
        widths.add(round(float(whole[2] - whole[0]), 1))
    assert seen == set(range(1, 21))
    assert min(widths) == pytest.approx(6.4, abs=0.3)
    assert max(widths) == pytest.approx(12.8, abs=0.3)


def test_what_lies_outside_the_crop_is_dropped_with_its_label() -> None:
    crop = RandomCrop(short_sides=(64, 64), crop_side=64, flip=0.0)
    target = make_target([[0, 0, 10, 10], [20, 5, 80, 60], [150, 0, 200, 64]], [1, 2, 3])
    for seed in range(20):
        image, found = crop(np.zeros((64, 200, 3), np.uint8), target, seed)
        assert len(found) < 3
        assert found.labels.tolist() == sorted(set(found.labels.tolist()))
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes <= image.shape[0]).all()
    _, none = crop(np.zeros((64, 200, 3), np.uint8), make_target([], []), 0)
    assert len(none) == 0


def test_a_crop_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"short sides 32\.\.64 px do not hold a crop of 48 px"):
        RandomCrop(short_sides=(32, 64), crop_side=48, flip=0)


def warped(proposals: list, **more: float) -> WarpedProposal:
    settings = {"flip": 0.0, "positive_fraction": 0.5, "fg_iou_thresh": 0.5, **more}
    boxes = np.array(proposals, np.float32).reshape(-1, 4)
    return WarpedProposal(proposals=ProposalsByImage(np.array([1]), [boxes]), side=40, **settings)


def test_proposals_are_found_by_their_image() -> None:
    boxes = [np.full((n, 4), n, np.float32) for n in (2, 0, 3)]
    for ids in (["c", "a", "b"], [30, 10, 20]):
        found = ProposalsByImage(np.array(ids), boxes)
        for image_id, own in zip(ids, boxes, strict=True):
            assert np.array_equal(found[image_id], own)
    with pytest.raises(KeyError, match="no proposals of image 15"):
        found[15]
    with pytest.raises(KeyError, match="no proposals of image 31"):
        found[31]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_the_region_is_warped_and_the_box_with_it(flip: float) -> None:
    box = (20, 30, 40, 60)
    transform = warped([[10, 20, 50, 100]], flip=flip)
    image, target = transform(marked(120, 80, box), make_target([box], [3]), 0)
    expected = [10, 5, 30, 20]  # in the middle of the width, so of the mirror too
    assert target.boxes.tolist() == [expected]
    np.testing.assert_allclose(box_of_white(image), expected, atol=1)
    beside = (0, 30, 20, 60)
    image, target = transform(marked(120, 80, beside), make_target([beside], [3]), 0)
    assert target.boxes.tolist() == ([[-10, 5, 10, 20]] if flip == 0 else [[30, 5, 50, 20]])


def test_positive_and_other_regions_come_as_often_as_asked_for() -> None:
    box = (0, 0, 40, 40)
    proposals = [[0, 0, 40, 40], *[[60, 60, 100, 100]] * 9]
    image, target = marked(100, 100, box), make_target([box], [1])
    for fraction in (0.0, 0.25, 1.0):
        transform = warped(proposals, positive_fraction=fraction)
        shown = [transform(image, target, seed)[0].mean() > 200 for seed in range(400)]
        assert np.mean(shown) == pytest.approx(fraction, abs=0.07)
    only_negative = warped(proposals[1:], positive_fraction=1.0)
    assert only_negative(image, target, 0)[0].max() == 0


def test_without_proposals_the_whole_image_is_taken() -> None:
    box = (0, 0, 50, 100)
    image, target = warped([])(marked(100, 100, box), make_target([box], [1]), 0)
    assert target.boxes.tolist() == [[0, 0, 20, 40]]
    assert box_of_white(image) == [0, 0, 20, 40]


@pytest.mark.parametrize(
    ("box", "taken"),
    [
        ((10.2, 5.9, 20.1, 9.0), (10, 5, 21, 9)),
        ((-5.0, -3.0, 70.0, 90.0), (0, 0, 60, 50)),
        ((59.9, 10.0, 60.0, 10.0), (59, 10, 60, 11)),
        ((60.0, 50.0, 60.0, 50.0), (59, 49, 60, 50)),
        ((7.0, 7.0, 7.0, 7.0), (7, 7, 8, 8)),
    ],
)
def test_a_region_is_of_whole_pixels_inside_the_image(
    box: tuple[float, ...], taken: tuple[int, ...]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    region, found = warped_region(image, np.array(box), 8)
    assert found == taken
    assert region.shape == (8, 8, 3)
    if taken[2] - taken[0] == 1 == taken[3] - taken[1]:
        assert (region == image[taken[1], taken[0]]).all()


def test_a_region_of_its_own_size_is_not_touched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    region, _ = warped_region(image, np.array([4, 6, 12, 14.0]), 8)
    assert (region == image[6:14, 4:12]).all()


def test_boxes_are_float32_on_the_way() -> None:
    transform = warped([[0, 0, 40, 40]])
    _, target = transform(marked(50, 50, (0, 0, 9, 9)), make_target([[0, 0, 9, 9]], [1]), 0)
    assert target.boxes.dtype == torch.float32
