from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from detres.detection.models.box_coder import BoxCoder
from tests.helpers import random_boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def test_encode_by_hand():
    deltas = BoxCoder().encode(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 5, 25, 15]]))
    # centre (5, 10) -> (15, 10), width 10 -> 20, height 20 -> 10
    assert deltas.tolist() == [[1.0, 0.0, pytest.approx(math.log(2)), pytest.approx(-math.log(2))]]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), WEIGHTS])
def test_round_trip_and_torchvision(weights):
    reference, boxes = random_boxes(60, seed=1, min_side=4), random_boxes(60, seed=2, min_side=4)
    coder = BoxCoder(weights)
    deltas = coder.encode(reference, boxes)
    torch.testing.assert_close(coder.decode(reference, deltas), boxes, rtol=1e-5, atol=1e-3)
    theirs = TorchvisionCoder(weights)
    torch.testing.assert_close(deltas, theirs.encode_single(boxes, reference))
    noise = torch.randn((60, 4))
    torch.testing.assert_close(
        coder.decode(reference, noise), theirs.decode_single(noise, reference)
    )


def test_decode_for_every_class():
    reference, deltas = random_boxes(5), torch.randn((5, 3, 4))
    decoded = BoxCoder(WEIGHTS).decode(reference, deltas)
    assert decoded.shape == (5, 3, 4)
    torch.testing.assert_close(decoded[:, 1], BoxCoder(WEIGHTS).decode(reference, deltas[:, 1]))


def test_huge_deltas_are_clamped():
    decoded = BoxCoder().decode(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 50, 50]]))
    assert (decoded[0, 2] - decoded[0, 0]).item() == pytest.approx(1000, rel=1e-5)


def test_nothing():
    empty = torch.zeros((0, 4))
    assert BoxCoder().encode(empty, empty).shape == (0, 4)
    assert BoxCoder().decode(empty, torch.zeros((0, 7, 4))).shape == (0, 7, 4)
