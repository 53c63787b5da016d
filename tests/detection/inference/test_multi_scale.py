from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detres.boxes import scale_boxes
from detres.detection.inference.multi_scale import (
    PyramidLevel,
    PyramidSettings,
    chosen_scales,
    pyramid_features,
)
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.box_head import BoxHead
from detres.detection.models.matcher import Matcher
from detres.detection.models.roi_head import BoxPredictor, RoIHead, RoIHeadSettings
from detres.detection.models.roi_pool import RoIPooler
from detres.detection.models.sampler import Sampler
from detres.detection.structures import FeatureMap
from tests.helpers import random_boxes

SIDES = (200, 400, 600, 800, 1000)
FRAME = (600, 900)
AREA = 224.0**2


def settings(merge: str = "features") -> PyramidSettings:
    return PyramidSettings(scales=(), region_side=224.0, merge=merge)


class Mean(BoxHead):
    """A box head that is easily computed by hand."""

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled.mean(dim=(2, 3))


class LargestOfNegated(nn.Module):
    """A box head that does not commute with the maximum."""

    def forward(self, pooled: Tensor) -> Tensor:
        return (-pooled).amax(dim=(2, 3))


def make_head(box_head: nn.Module) -> RoIHead:
    return RoIHead(
        pooler=RoIPooler(strides={"s": 16}, kind="roi_pool", output_size=3, sampling_ratio=0),
        box_head=box_head,
        predictor=BoxPredictor(in_channels=2, num_classes=2),
        box_coder=BoxCoder(),
        matcher=Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5),
        sampler=Sampler(batch_size=8, positive_fraction=0.5),
        settings=RoIHeadSettings(
            score_thresh=0.1, nms_thresh=0.5, detections_per_image=9, smooth_l1_beta=1.0
        ),
    )


def level_of(side: int, values: Tensor | list[float], num: int = 1) -> PyramidLevel:
    """Maps of `num` images of FRAME at a short side of `side`: of constant channels, or random."""
    size = (side, side * FRAME[1] // FRAME[0])
    cells = tuple(-(-edge // 16) for edge in size)
    planes = torch.as_tensor(values)
    if planes.dim() == 1:
        planes = planes[None, :, None, None].expand(num, -1, *cells)
    return PyramidLevel({"s": FeatureMap(planes, (cells,) * num)}, (size,) * num)


def areas_of(*sides: float) -> Tensor:
    """Areas of squares that are `sides` px in an image of short side 600, at all SIDES."""
    return torch.tensor([[(side * scale / 600) ** 2 for scale in SIDES] for side in sides])


# ---- which scales ----


def test_two_neighbours_by_hand():
    """In px of an image of 600: a square of 224 is nearest to 224 at 600 itself, and 149 px off in
    area at 400 and 224 * 4 / 3 = 299 at 800: |149^2 - 224^2| = 27,876 < |299^2 - 224^2|.
    """
    chosen = chosen_scales(areas_of(224, 700, 20, 120), 224.0)
    assert chosen.tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],  # 233 and 467 px: the smallest there are
        [False, False, False, True, True],  # 27 and 33 px: the largest there are
        [False, False, False, True, True],  # 160 and 200 px: 1000 is nearest, then 800
    ]


def test_the_area_they_are_near_to_is_a_setting():
    """Small networks: squares of 224 px, of which those of 75 and 149 px are nearest to 100."""
    assert chosen_scales(areas_of(224), 100.0).tolist() == [[True, True, False, False, False]]


def test_of_one_scale_and_of_equally_near_ones():
    assert chosen_scales(torch.full((3, 1), 5.0), 224.0).tolist() == [[True]] * 3
    assert chosen_scales(torch.zeros((0, 5)), 224.0).shape == (0, 5)
    same = torch.tensor([[1e4, 1e4, 1e4]])
    assert chosen_scales(same, 224.0).tolist() == [[True, True, False]]
    around = torch.tensor([[AREA - 9, AREA, AREA + 9]])
    assert chosen_scales(around, 224.0).tolist() == [[True, True, False]]


def test_they_are_always_two_neighbours_that_surround_or_touch_the_nearest():
    areas = areas_of(*torch.linspace(1, 2000, 500).tolist())
    chosen = chosen_scales(areas, 224.0)
    assert (chosen.sum(dim=1) == 2).all()
    first = chosen.int().argmax(dim=1)
    rows = torch.arange(len(areas))
    assert chosen[rows, first + 1].all()
    assert chosen[rows, (areas - AREA).abs().argmin(dim=1)].all()
    assert set(first.tolist()) == {0, 1, 2, 3}


# ---- maxout ----


@pytest.mark.parametrize("merge", ["features", "pooled"])
def test_maxout_by_hand(merge):
    """Channel 0 rises with the scale, channel 1 falls: a region has each from another scale."""
    levels = [level_of(side, [float(n), 10.0 - n]) for n, side in enumerate(SIDES)]
    rois = [torch.tensor([[0.0, 0, 224, 224], [0, 0, 600, 600], [100, 100, 120, 120]])]
    made = pyramid_features(make_head(Mean()), levels, rois, [FRAME], settings(merge))
    assert made.tolist() == [[2, 9], [1, 10], [4, 7]]  # scales 1 and 2, 0 and 1, 3 and 4


def test_where_the_maximum_is_taken():
    levels = [level_of(400, [1.0, 2.0]), level_of(600, [3.0, 1.0])]
    rois = [torch.tensor([[0.0, 0, 100, 100]])]
    head = make_head(LargestOfNegated())
    features = pyramid_features(head, levels, rois, [FRAME], settings("features"))
    pooled = pyramid_features(head, levels, rois, [FRAME], settings("pooled"))
    assert features.tolist() == [[-1, -1]]  # max(-1, -3), max(-2, -1)
    assert pooled.tolist() == [[-3, -2]]  # -max(1, 3), -max(2, 1)


@pytest.mark.parametrize("merge", ["features", "pooled"])
def test_regions_together_are_regions_one_by_one(merge):
    """Two images, random maps, regions of every size; the second image has none at first."""
    generator = torch.Generator().manual_seed(0)
    levels = []
    for side in (100, 200, 400):
        like = level_of(side, [0.0, 0.0], num=2)
        shape = like.features["s"].values.shape
        levels.append(level_of(side, torch.randn(shape, generator=generator), num=2))
    head, frame = make_head(Mean()), [FRAME, FRAME]
    boxes = [random_boxes(40, 600, seed=1, min_side=8), random_boxes(30, 600, seed=2, min_side=8)]
    made = pyramid_features(head, levels, boxes, frame, settings(merge)).split([40, 30])
    for n in (0, 1):
        for box, mine in zip(boxes[n], made[n], strict=True):
            areas, grids = [], []
            for level in levels:
                there = scale_boxes(box[None], from_size=FRAME, to_size=level.sizes[n])
                rois = [torch.zeros((0, 4)), torch.zeros((0, 4))]
                rois[n] = there
                areas.append((there[0, 2] - there[0, 0]) * (there[0, 3] - there[0, 1]))
                grids.append(head.pooler(level.features, rois)[0])
            near = sorted(range(3), key=lambda s, areas=areas: abs(areas[s] - AREA))[:2]
            a, b = (grids[s] for s in near)
            if merge == "pooled":
                expected = torch.maximum(a, b).mean(dim=(1, 2))
            else:
                expected = torch.maximum(a.mean(dim=(1, 2)), b.mean(dim=(1, 2)))
            torch.testing.assert_close(mine, expected)
    only_second = pyramid_features(head, levels, [boxes[0][:0], boxes[1]], frame, settings(merge))
    torch.testing.assert_close(only_second, made[1])


@pytest.mark.parametrize("merge", ["features", "pooled"])
def test_one_level_is_the_head_on_it_bit_for_bit(merge):
    level = level_of(600, torch.randn((1, 2, 38, 57)))
    rois, head = [random_boxes(50, 600)], make_head(Mean())
    made = pyramid_features(head, [level], rois, [FRAME], settings(merge))
    assert torch.equal(made, head.region_features(level.features, rois))
