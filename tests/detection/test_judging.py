"""What a detector is judged by while it learns: the images of a part, and the losses on them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.data.read import read_split
from detres.detection.judging import HeldOut, WithLosses
from detres.detection.structures import Predictions, Proposals
from detres.engine.distributed import Group
from tests.detection.configs import box, coco_config
from tests.helpers import write_coco

CPU = torch.device("cpu")
SIZES = [(50, 60), (64, 40), (90, 120), (70, 70), (60, 90)]


def config_of(root: Path, **settings: object) -> DetectionConfig:
    """Five images, of which the fourth has no object."""
    write_coco(root, SIZES, [box(n) for n in (1, 2, 3, 5)])
    tree = json.loads(coco_config(root, data={"workers": 0}).model_dump_json())
    return check(DetectionConfig, {**tree, **settings}, "test")


@pytest.fixture
def config(tmp_path) -> DetectionConfig:
    return config_of(tmp_path)


def proposals_for(ids: np.ndarray) -> Proposals:
    """Of image n (from 0) n boxes."""
    counts = np.arange(len(ids))
    return Proposals(
        source="made",
        image_ids=ids,
        offsets=np.concatenate(([0], np.cumsum(counts))),
        boxes=np.tile(np.array([1.0, 1.0, 20.0, 20.0]), (counts.sum(), 1)),
        scores=np.linspace(1, 0.5, counts.sum(), dtype=np.float32),
    )


def test_the_images_are_drawn_by_the_seed_and_more_of_them_hold_the_fewer(tmp_path):
    val = read_split(config_of(tmp_path).data, "val")
    drawn = {}
    for seed in (3, 4, 5, 6):
        config = config_of(tmp_path, seed=seed)
        parts = [HeldOut(config, val, number) for number in (1, 2, 3, 4)]
        drawn[seed] = [part.part.image_ids.tolist() for part in parts]
        for number, (fewer, more) in enumerate(pairwise(parts), start=1):
            assert len(fewer.part) == number
            assert set(fewer.part.image_ids) < set(more.part.image_ids)
            assert (np.diff(fewer.rows) > 0).all()
            assert fewer.is_divided
        again = HeldOut(config, val, 2)
        assert again.part.image_ids.tolist() == drawn[seed][1]
    assert len({str(each) for each in drawn.values()}) > 1
    # as they were drawn when earlier runs began, whose numbers stay comparable when these go on
    assert drawn[3] == [[5], [1, 5], [1, 2, 5], [1, 2, 3, 5]]


@pytest.mark.parametrize("number", [5, 6, 100])
def test_as_many_as_there_are_is_all(config, number):
    val = read_split(config.data, "val")
    held_out = HeldOut(config, val, number)
    assert not held_out.is_divided
    assert held_out.part is val
    assert held_out.part_batches is held_out.all_batches
    assert held_out.rows.tolist() == [0, 1, 2, 3, 4]


def test_the_batches_are_of_the_part_with_its_objects_and_proposals(config):
    val = read_split(config.data, "val")
    held_out = HeldOut(config, val, 3, proposals=proposals_for(val.image_ids))
    seen = [(images, targets) for images, targets in held_out.part_batches]
    ids = [image_id for images, _ in seen for image_id in images.ids]
    assert ids == held_out.part.image_ids.tolist()
    for row, (images, targets) in zip(held_out.rows.tolist(), seen, strict=True):
        assert len(images.proposals[0]) == row
        assert len(targets[0]) == (0 if val.image_ids[row] == 4 else 1)
    assert len(held_out.all_batches) == 5


def test_predictions_of_the_part_are_those_of_its_images(config):
    val = read_split(config.data, "val")
    held_out = HeldOut(config, val, 2)
    ids = np.array([1, 5, 2, 2, 3, 4, 1])
    found = Predictions(
        class_map=val.class_map,
        image_ids=ids,
        boxes=np.arange(28, dtype=np.float32).reshape(7, 4),
        scores=np.linspace(1, 0, 7, dtype=np.float32),
        labels=np.ones(7, np.int64),
        seen=val.image_ids,
    )
    part = held_out.predictions_of_part(found)
    kept = [n for n, image_id in enumerate(ids) if image_id in held_out.part.image_ids]
    assert part.image_ids.tolist() == ids[kept].tolist()
    np.testing.assert_array_equal(part.boxes, found.boxes[kept])
    np.testing.assert_array_equal(part.scores, found.scores[kept])
    assert part.seen.tolist() == held_out.part.image_ids.tolist()


def losses(config: DetectionConfig, model, number: int, *, whole: bool, seed: int = 3):
    val = read_split(config.data, "val")
    held_out = HeldOut(config, val, number)
    batches = held_out.all_batches if whole else held_out.part_batches
    passing = WithLosses(batches, model, held_out.part.image_ids, seed=seed, device=CPU)
    passed = [images.ids for images, _ in passing]
    assert len(passing) == len(batches) == len(passed)
    means, seen = passing.means(Group())
    assert seen == len(held_out.part)
    assert passing.means(Group()) == (means, seen)
    return means, held_out


def test_losses_are_those_of_the_model_alone_in_eval_mode(config):
    torch.manual_seed(0)
    model = build_detector(config.model, 1).train()
    found, held_out = losses(config, model, 3, whole=False)
    assert model.training
    expected: dict[str, float] = {}
    model.eval()
    for place, (images, targets) in enumerate(held_out.part_batches):
        with torch.no_grad():
            terms = model(replace(images, seeds=(3 * 1_000_003 + place,)), targets).terms()
        for name, value in terms.items():
            expected[name] = expected.get(name, 0.0) + value.item() / 3
    assert found.keys() == {"val_loss", *(f"val_{name}" for name in expected)}
    assert len(expected) == 4
    for name, value in expected.items():
        assert found[f"val_{name}"] == pytest.approx(value, rel=1e-5)
    assert found["val_loss"] == pytest.approx(sum(expected.values()), rel=1e-5)


def test_losses_are_repeated_and_those_of_the_part_also_where_all_pass(tmp_path):
    config = config_of(tmp_path, eval={"batch_size": 2})
    torch.manual_seed(0)
    model = build_detector(config.model, 1)
    first, _ = losses(config, model, 3, whole=False)
    assert losses(config, model, 3, whole=False)[0] == first
    of_all = losses(config, model, 3, whole=True)[0]  # in other batches, so padded otherwise
    assert of_all == pytest.approx(first, rel=1e-4)
    assert losses(config, model, 3, whole=False, seed=4)[0] != first


def test_losses_use_up_no_random_number_of_the_training(config):
    model = build_detector(config.model, 1)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    losses(config, model, 3, whole=True)
    assert torch.equal(torch.rand(3), expected)


def test_without_an_image_there_are_no_losses():
    passing = WithLosses([], torch.nn.Identity(), np.zeros(0, np.int64), seed=0, device=CPU)
    assert list(passing) == []
    assert passing.means(Group()) == ({}, 0)
