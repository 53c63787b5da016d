from __future__ import annotations

from functools import partial

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from detres.detection.models.anchors import AnchorGenerator, cell_anchors

RATIOS = (0.5, 1.0, 2.0)


def test_py_faster_rcnn_anchors_are_the_published_ones():
    # facts: inclusive corners printed by py-faster-rcnn; +1 on the right and bottom makes them
    # continuous
    inclusive = torch.tensor([
        (-84, -40, 99, 55), (-176, -88, 191, 103), (-360, -184, 375, 199),
        (-56, -56, 71, 71), (-120, -120, 135, 135), (-248, -248, 263, 263),
        (-36, -80, 51, 95), (-80, -168, 95, 183), (-168, -344, 183, 359),
    ])  # fmt: skip
    expected = (inclusive + torch.tensor((0, 0, 1, 1))).float()
    assert torch.equal(
        cell_anchors((128, 256, 512), RATIOS, stride=16, style="py-faster-rcnn"), expected
    )


def test_py_faster_rcnn_anchors_are_centred_on_their_cell_whatever_its_stride():
    for stride in (1, 2, 5):
        (anchor,) = cell_anchors((20.0,), (1.0,), stride=stride, style="py-faster-rcnn").tolist()
        assert anchor == [stride / 2 - 10] * 2 + [stride / 2 + 10] * 2


def test_torchvision_anchors():
    ours = AnchorGenerator(
        sizes=(32, 64, 128), aspect_ratios=RATIOS, stride=16, style="torchvision"
    )(4, 6)
    theirs = TorchvisionAnchors(((32, 64, 128),), (RATIOS,))
    images = ImageList(torch.zeros((1, 3, 64, 96)), [(64, 96)])
    assert torch.equal(ours, theirs(images, [torch.zeros((1, 8, 4, 6))])[0])


@pytest.mark.parametrize("padded", [(800, 1088), (32, 96), (416, 1344)])
def test_torchvisions_anchors_lie_whole_px_apart_where_the_cells_are_not(padded) -> None:
    """Of the coarsest level of a pyramid, which has every second cell of the one before."""
    height, width = (-(-side // 64) for side in padded)
    make = partial(AnchorGenerator, sizes=(512,), aspect_ratios=RATIOS, stride=64)
    ours = make(style="torchvision")(height, width, padded)
    theirs = TorchvisionAnchors(((512,),), (RATIOS,))
    images = ImageList(torch.zeros((1, 3, *padded)), [padded])
    assert torch.equal(ours, theirs(images, [torch.zeros((1, 8, height, width))])[0])
    if padded == (800, 1088):  # 13 and 17 cells
        shift = ours.view(13, 17, 3, 4)[1, 1] - ours.view(13, 17, 3, 4)[0, 0]
        assert shift.tolist() == [[64, 61, 64, 61]] * 3
    for style in ("detectron2", "py-faster-rcnn"):
        assert torch.equal(
            make(style=style)(height, width, padded), make(style=style)(height, width)
        )


def test_detectron2_anchors_are_size_major_and_exact():
    anchors = cell_anchors((32, 64), RATIOS, stride=16, style="detectron2")
    areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    torch.testing.assert_close(areas, torch.tensor([32.0**2] * 3 + [64.0**2] * 3))
    ratios = (anchors[:, 3] - anchors[:, 1]) / (anchors[:, 2] - anchors[:, 0])
    torch.testing.assert_close(ratios, torch.tensor(RATIOS * 2))
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


def test_order_over_the_map_is_rows_then_columns_then_cell():
    generator = AnchorGenerator(sizes=(16, 32), aspect_ratios=(1.0,), stride=16, style="detectron2")
    anchors = generator(2, 3).view(2, 3, 2, 4)
    assert generator.num_anchors == 2
    assert not generator.state_dict()  # they follow from the configuration
    assert (anchors[1, 2, 0] - anchors[0, 0, 0]).tolist() == [32, 16, 32, 16]


def test_empty_map_and_unknown_style():
    generator = AnchorGenerator(sizes=(16,), aspect_ratios=(1.0,), stride=16, style="detectron2")
    assert generator(0, 5).shape == (0, 4)
    no_cells = AnchorGenerator(sizes=(16,), aspect_ratios=(1.0,), stride=16, style="torchvision")
    assert no_cells(0, 5, (0, 80)).shape == (0, 4)
    with pytest.raises(ValueError, match="anchor style 'caffe'"):
        cell_anchors((16,), (1.0,), stride=16, style="caffe")
