from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from detres.detection.models.matcher import BELOW, BETWEEN, Matcher
from detres.detection.models.sampler import Sampler
from tests.helpers import random_boxes


def test_by_hand():
    gt = torch.tensor([[0.0, 0, 10, 10]])
    candidates = torch.tensor(
        [[0.0, 0, 10, 8], [0, 0, 10, 5], [0, 0, 10, 1], [50, 50, 60, 60]]
    )  # IoU .8 .5 .1 0
    assert Matcher(fg_iou_thresh=0.7, bg_iou_thresh=0.3)(gt, candidates).tolist() == [
        0,
        BETWEEN,
        BELOW,
        BELOW,
    ]
    floor = Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5, bg_iou_floor=0.1)
    assert floor(gt, candidates).tolist() == [0, 0, BELOW, BETWEEN]


def test_low_quality_gives_every_object_its_best_ties_included():
    gt = torch.tensor([[0.0, 0, 10, 10]])
    candidates = torch.tensor([[0.0, 0, 10, 4], [0, 6, 10, 10], [0, 0, 10, 3]])
    matcher = Matcher(fg_iou_thresh=0.7, bg_iou_thresh=0.3, allow_low_quality=True)
    assert matcher(gt, candidates).tolist() == [0, 0, BETWEEN]


def test_an_object_no_candidate_touches_makes_nothing_foreground():
    matcher = Matcher(fg_iou_thresh=0.7, bg_iou_thresh=0.3, allow_low_quality=True)
    assert matcher(torch.tensor([[90.0, 90, 99, 99]]), random_boxes(5, 50)).tolist() == [BELOW] * 5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, 60),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([1, 70, 1 << 22]),
)
def test_agrees_with_torchvision_whatever_the_chunks(num_gt, num, seed, low_quality, chunk):
    gt, candidates = random_boxes(num_gt, seed=seed), random_boxes(num, seed=seed + 5000)
    ours = Matcher(
        fg_iou_thresh=0.6, bg_iou_thresh=0.3, allow_low_quality=low_quality, chunk_elements=chunk
    )(gt, candidates)
    if num_gt == 0:
        assert (ours == BELOW).all()
        return
    iou = box_iou(gt, candidates)
    if low_quality and (iou.max(dim=1).values == 0).any():
        return  # the one deliberate difference, tested above
    assert ours.tolist() == TorchvisionMatcher(0.6, 0.3, low_quality)(iou).tolist()


def test_no_candidates_and_impossible_thresholds():
    assert Matcher(fg_iou_thresh=0.7, bg_iou_thresh=0.3, allow_low_quality=True)(
        random_boxes(3), torch.zeros((0, 4))
    ).shape == (0,)
    for fg, bg, floor in ((0.3, 0.7, 0), (1.01, 0.3, 0), (0.7, 0.3, 0.31), (0.7, 0.3, -0.01)):
        with pytest.raises(ValueError, match="thresholds"):
            Matcher(fg_iou_thresh=fg, bg_iou_thresh=bg, bg_iou_floor=floor)


def test_an_iou_on_a_threshold_belongs_to_what_is_above_it():
    gt = torch.tensor([[0.0, 0, 8, 8]])
    candidates = torch.tensor([[0.0, 0, 8, height] for height in (8, 4, 3, 2, 1, 0.5)])
    matcher = Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.25, bg_iou_floor=0.125)
    assert matcher(gt, candidates).tolist() == [0, 0, BETWEEN, BETWEEN, BELOW, BETWEEN]
    matcher = Matcher(fg_iou_thresh=1, bg_iou_thresh=1)  # the bounds themselves are no mistake
    assert matcher(gt, candidates[:2]).tolist() == [0, BELOW]
    assert Matcher(fg_iou_thresh=0, bg_iou_thresh=0)(gt, candidates[-1:]).tolist() == [0]


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_of_objects_that_overlap_equally_the_first_is_taken(chunk):
    gt = torch.tensor([[0.0, 0, 8, 4], [0, 0, 8, 8], [0, 0, 8, 8]])
    matcher = Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5, chunk_elements=chunk)
    assert matcher(gt, torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4]])).tolist() == [1, 0]


def test_without_objects_all_is_background_whatever_the_floor():
    matcher = Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5, bg_iou_floor=0.1)
    assert matcher(torch.zeros((0, 4)), random_boxes(3)).tolist() == [BELOW] * 3


def test_thousands_of_objects_do_not_need_the_whole_matrix():
    gt, candidates = (
        random_boxes(5000, 1000),
        random_boxes(8000, 1000, seed=1),
    )  # 40 M IoUs, 160 MB at once
    small = Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5, chunk_elements=1 << 20)(gt, candidates)
    large = Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5, chunk_elements=1 << 24)(gt, candidates)
    assert torch.equal(small, large)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 50), st.integers(0, 50), st.integers(0, 20), st.integers(1, 40), st.floats(0, 1)
)
def test_sampler_counts(num_fg, num_bg, num_between, batch_size, fraction):
    matched = torch.cat(
        (torch.arange(num_fg), torch.full((num_bg,), BELOW), torch.full((num_between,), BETWEEN))
    )
    matched = matched[torch.randperm(len(matched))]
    positive, negative = Sampler(batch_size=batch_size, positive_fraction=fraction)(matched)
    assert len(positive) == min(num_fg, round(batch_size * fraction))
    assert len(negative) == min(num_bg, batch_size - len(positive))
    assert (matched[positive] >= 0).all()
    assert (matched[negative] == BELOW).all()
    assert len(set(positive.tolist())) == len(positive)


def test_sampler_draws_all_rows_equally_often():
    torch.manual_seed(0)
    matched = torch.full((10,), BELOW)
    counts = torch.zeros(10)
    for _ in range(2000):
        counts[Sampler(batch_size=3, positive_fraction=0.5)(matched)[1]] += 1
    assert (counts / 2000 - 0.3).abs().max() < 0.05


def test_sampler_error():
    for batch_size, fraction in ((0, 0.5), (1, -0.01), (1, 1.01)):
        with pytest.raises(ValueError, match="sampler needs batch_size >= 1"):
            Sampler(batch_size=batch_size, positive_fraction=fraction)
    for fraction in (0, 1):
        assert Sampler(batch_size=1, positive_fraction=fraction).batch_size == 1
