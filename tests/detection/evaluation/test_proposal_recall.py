"""Recall of proposals: a scene counted by hand, pycocotools with useCats=0, and what is ignored."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.evaluation.proposal_recall import proposal_recall
from detres.detection.structures import Proposals


def truth_of(objects: list[list[tuple]], **flags: list[bool]) -> Annotations:
    """objects: of each image, (x1, y1, x2, y2, label)."""
    rows = np.array([row for image in objects for row in image], np.float64).reshape(-1, 5)
    boxes, num = rows[:, :4], len(rows)
    counts = [len(image) for image in objects]
    ids = np.arange(1, len(objects) + 1)
    return Annotations(
        source="truth",
        class_map=ClassMap.of_names(("a", "b", "c")),
        image_ids=ids,
        image_files=np.array([f"{n}.jpg" for n in ids]),
        image_sizes=np.full((len(ids), 2), 200, np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        boxes=boxes,
        labels=rows[:, 4].astype(np.int64),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        crowd=np.array(flags.get("crowd", [False] * num), bool),
        difficult=np.array(flags.get("difficult", [False] * num), bool),
        ids=np.arange(1, num + 1),
        dropped={},
    )


def proposals_of(boxes: list[list[tuple]]) -> Proposals:
    """boxes: of each image, (x1, y1, x2, y2), best first."""
    counts = [len(image) for image in boxes]
    scores = [np.linspace(0.9, 0.1, count) for count in counts]
    return Proposals(
        source="proposals",
        image_ids=np.arange(1, len(boxes) + 1),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        boxes=np.array([row for image in boxes for row in image], np.float64).reshape(-1, 4),
        scores=np.concatenate([np.zeros(0), *scores]).astype(np.float32),
    )


SCENE = truth_of(
    [
        # 20 x 20, 50 x 50 and 100 x 100 px: small, medium and large
        [(0, 0, 20, 20, 1), (100, 100, 150, 150, 2)],
        [],
        [(0, 0, 100, 100, 1)],
    ]
)


def test_a_scene_counted_by_hand():
    found = proposal_recall(
        SCENE,
        proposals_of(
            [
                # the first object exactly, as the second best; the other with 40 of 50 px: IoU .8
                [(60, 0, 80, 20), (0, 0, 20, 20), (100, 100, 150, 140)],
                [(0, 0, 9, 9)],
                [(0, 0, 100, 55), (0, 0, 100, 68)],  # IoU .55 and, as the second best, .68
            ]
        ),
        counts=(1, 2, 3),
    )
    # at the ten thresholds, of three objects: one best proposal has .55, which .5 and .55 take
    assert found.recall[1] == [1 / 3] * 2 + [0] * 8
    # two: the small one at all ten; the large one, by the second proposal, also at .6 and .65
    assert found.recall[2] == pytest.approx([2 / 3] * 4 + [1 / 3] * 6)
    assert found.recall[3] == pytest.approx([1] * 4 + [2 / 3] * 3 + [1 / 3] * 3)
    metrics = found.metrics
    assert metrics["AR1"] == pytest.approx(2 / 30)
    assert metrics["AR3"] == pytest.approx((4 + 7 + 10) / 30)
    assert (metrics["ARs3"], metrics["ARm3"], metrics["ARl3"]) == pytest.approx((1, 0.7, 0.4))
    assert metrics["ARs1"] == 0
    assert found.best_metric == "AR3"
    assert " AR@3              0.700  1.000  0.700  0.400" in found.table()
    assert found.to_dict()["recall"]["3"]["0.80"] == pytest.approx(2 / 3)


def test_a_proposal_takes_one_object_and_an_object_one_proposal():
    twins = truth_of([[(0, 0, 50, 50, 1), (0, 0, 50, 50, 2)]])  # in one place, of two classes
    once, twice = ([[(0, 0, 50, 50)] * num] for num in (1, 2))
    assert proposal_recall(twins, proposals_of(once), (1, 2)).metrics["AR2"] == 0.5
    assert proposal_recall(twins, proposals_of(twice), (1, 2)).metrics["AR2"] == 1


@pytest.mark.parametrize("flag", ["crowd", "difficult"])
def test_what_is_ignored_is_neither_missed_nor_found(flag):
    flagged = truth_of([[(0, 0, 50, 50, 1), (100, 100, 150, 150, 1)]], **{flag: [False, True]})
    assert proposal_recall(flagged, proposals_of([[(0, 0, 50, 50)]])).metrics["AR100"] == 1
    assert proposal_recall(flagged, proposals_of([[(100, 100, 150, 150)]])).metrics["AR100"] == 0


def test_sizes_are_told_by_the_annotated_area_and_both_ends_count():
    edge = truth_of([[(0, 0, 32, 32, 1)]])  # 1024 px^2: small and medium
    found = proposal_recall(edge, proposals_of([[(0, 0, 32, 32)]])).metrics
    assert (found["ARs100"], found["ARm100"], found["ARl100"]) == (1, 1, None)
    large = replace(edge, areas=np.array([1e5]))
    found = proposal_recall(large, proposals_of([[(0, 0, 32, 32)]])).metrics
    assert (found["ARs100"], found["ARl100"]) == (None, 1)


def test_nothing_proposed_and_nothing_to_find():
    none = proposals_of([[], [], []])
    found = proposal_recall(SCENE, none)
    assert found.metrics["AR1000"] == 0
    assert found.notes == (
        "no image has more than 0 proposals: AR@100, AR@300, AR@1000 are of those",
    )
    nothing = proposal_recall(truth_of([[], [], []]), none)
    assert set(nothing.metrics.values()) == {None}
    assert nothing.recall == {100: None, 300: None, 1000: None}
    assert "n/a" in nothing.table()


@pytest.mark.parametrize("counts", [(), (0, 1), (2, 1), (1, 1)])
def test_counts_that_do_not_rise(counts):
    with pytest.raises(ValueError, match="expected numbers from 1 on that rise"):
        proposal_recall(SCENE, proposals_of([[], [], []]), counts)


def test_proposals_of_other_images_are_refused():
    with pytest.raises(ValueError, match="proposals are not of the images of truth"):
        proposal_recall(SCENE, proposals_of([[], []]))


def random_scene(seed: int) -> tuple[Annotations, Proposals]:
    rng = np.random.default_rng(seed)

    def boxes(num: int) -> np.ndarray:
        corner, side = rng.uniform(0, 150, (num, 2)), rng.uniform(4, 130, (num, 2))
        return np.concatenate((corner, corner + side), axis=1)

    objects, proposed = [], []
    for _ in range(12):
        own = boxes(int(rng.integers(0, 9)))
        objects.append([(*box, int(rng.integers(1, 4))) for box in own])
        near = [own[rng.integers(len(own))] + rng.normal(0, 5, 4) for _ in range(120) if len(own)]
        both = np.concatenate((boxes(60), np.array(near).reshape(-1, 4)))
        both[:, 2:] = np.maximum(both[:, 2:], both[:, :2] + 1)
        proposed.append([tuple(box) for box in rng.permutation(both)])
    num = sum(map(len, objects))
    truth = truth_of(objects, crowd=rng.random(num) < 0.1, difficult=rng.random(num) < 0.1)
    # areas that are not those of the boxes, as a mask's
    return replace(truth, areas=truth.areas * rng.uniform(0.4, 1, num)), proposals_of(proposed)


def by_pycocotools(truth: Annotations, proposals: Proposals, counts: list[int]) -> COCOeval:
    def index(records: list[dict]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": int(n)} for n in truth.image_ids],
            "categories": [{"id": n, "name": str(n)} for n in (1, 2, 3)],
            "annotations": records,
        }
        coco.createIndex()
        return coco

    def xywh(box: np.ndarray) -> list[float]:
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    owners = np.repeat(truth.image_ids, np.diff(truth.offsets)).tolist()
    objects = [
        {
            "id": n + 1,
            "image_id": owner,
            "category_id": int(truth.labels[n]),
            "bbox": xywh(truth.boxes[n]),
            "area": float(truth.areas[n]),
            "iscrowd": int(truth.crowd[n] or truth.difficult[n]),
        }
        for n, owner in enumerate(owners)
    ]
    owners = np.repeat(proposals.image_ids, proposals.counts).tolist()
    found = [
        {
            "id": n + 1,
            "image_id": owner,
            "category_id": 1,
            "bbox": xywh(proposals.boxes[n]),
            "area": 1.0,
            "iscrowd": 0,
            "score": float(proposals.scores[n]),
        }
        for n, owner in enumerate(owners)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(index(objects), index(found), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = counts
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("seed", range(4))
def test_as_pycocotools_without_classes(seed):
    truth, proposals = random_scene(seed)
    counts = [10, 100, 1000]
    recall = by_pycocotools(truth, proposals, counts).eval["recall"]  # (T, 1, areas, counts)
    found = proposal_recall(truth, proposals, counts)
    for column, count in enumerate(counts):
        np.testing.assert_allclose(found.recall[count], recall[:, 0, 0, column], atol=1e-12)
        for area, size in enumerate(("", "s", "m", "l")):
            theirs = recall[:, 0, area, column]
            ours = found.metrics[f"AR{size}{count}"]
            assert ours == pytest.approx(theirs.mean(), abs=1e-12)
    assert 0.2 < found.metrics["AR10"] < found.metrics["AR1000"] < 1


def test_an_object_of_less_than_a_pixel_counts_and_is_small():
    found = proposal_recall(
        truth_of([[(3, 3, 3.5, 4, 1)]]), proposals_of([[(3, 3, 3.5, 4)]])
    ).metrics
    assert (found["AR100"], found["ARs100"], found["ARm100"]) == (1.0, 1.0, None)
