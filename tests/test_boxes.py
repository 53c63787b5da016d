from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from detres import boxes as B
from tests.helpers import random_boxes

EMPTY = torch.zeros((0, 4))


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0, 10, 10]])
    b = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 9]])
    assert B.box_iou(a, b).tolist() == [[1.0, pytest.approx(50 / 150), 0.0, 0.0]]


def test_iou_of_two_boxes_without_area_is_zero():
    point = torch.tensor([[4.0, 4, 4, 4]])
    assert B.box_iou(point, point).item() == 0


@pytest.mark.parametrize("seed", range(3))
def test_iou_and_area_agree_with_torchvision(seed):
    a, b = random_boxes(40, seed=seed), random_boxes(30, seed=seed + 10)
    torch.testing.assert_close(B.box_iou(a, b), ops.box_iou(a, b))
    torch.testing.assert_close(B.box_area(a), ops.box_area(a))


def test_iou_of_nothing():
    assert B.box_iou(EMPTY, random_boxes(3)).shape == (0, 3)
    assert B.box_iou(random_boxes(3), EMPTY).shape == (3, 0)


def test_clip_by_hand_and_against_torchvision():
    clipped = B.clip_boxes(torch.tensor([[-5.0, 2, 30, 40]]), (20, 25))
    assert clipped.tolist() == [[0, 2, 25, 20]]
    boxes = random_boxes(50) - 30
    torch.testing.assert_close(
        B.clip_boxes(boxes, (90, 70)), ops.clip_boxes_to_image(boxes, (90, 70))
    )
    assert B.clip_boxes(EMPTY, (5, 5)).shape == (0, 4)


def test_scale_there_and_back():
    boxes = random_boxes(20)
    there = B.scale_boxes(boxes, from_size=(200, 100), to_size=(300, 110))
    assert torch.allclose(there[:, 0], boxes[:, 0] * 1.1)
    assert torch.allclose(there[:, 1], boxes[:, 1] * 1.5)
    torch.testing.assert_close(
        B.scale_boxes(there, from_size=(300, 110), to_size=(200, 100)), boxes
    )


def test_large_enough_needs_both_sides():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 3, 9], [0, 0, 9, 3]])
    assert B.large_enough(boxes, 4).tolist() == [True, False, False]


def test_large_enough_leaves_out_boxes_without_extent():
    boxes = torch.tensor([[3.0, 0, 3, 4], [0, 5, 4, 5], [5, 0, 4, 9], [0, 0, 1e-6, 1e-6]])
    assert B.large_enough(boxes, 0).tolist() == [False, False, False, True]
    assert B.large_enough(torch.zeros((0, 4)), 0).tolist() == []


def test_nms_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]])
    assert B.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 400),
    st.integers(0, 10_000),
    st.sampled_from([0.3, 0.5, 0.7]),
    st.sampled_from([7, 32, 1000]),
)
def test_nms_in_blocks_is_torchvisions_nms(num, seed, thresh, block):
    boxes = random_boxes(num, seed=seed)
    scores = torch.rand(num, generator=torch.Generator().manual_seed(seed))
    whole = ops.nms(boxes, scores, thresh)
    assert B.nms(boxes, scores, thresh, block=block).tolist() == whole.tolist()
    assert B.nms(boxes, scores, thresh, 25, block=block).tolist() == whole[:25].tolist()
