from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from detres.class_map import ClassMap
from detres.detection.structures import (
    Detections,
    ImageBatch,
    Predictions,
    Proposals,
    Target,
    index_of,
    label_of,
    names_of,
    require_sides,
    xywh_of,
)
from tests.helpers import CLASSES, make_batch, make_target


def test_labels_count_background_and_indices_do_not():
    assert [label_of(index) for index in range(3)] == [1, 2, 3]
    assert [index_of(label) for label in (1, 2, 3)] == [0, 1, 2]
    assert isinstance(label_of(0), int)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (0,)])
def test_labels_of_arrays_and_tensors_keep_their_shape_and_type(shape):
    indices = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    labels = label_of(indices)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, indices + 1)
    np.testing.assert_array_equal(index_of(labels), indices)
    tensor = label_of(torch.from_numpy(indices))
    assert tensor.dtype == torch.int64
    assert torch.equal(tensor, torch.from_numpy(indices + 1))
    assert torch.equal(index_of(tensor), torch.from_numpy(indices))


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_names_of_labels(kind):
    assert names_of(CLASSES, kind([3, 1, 1])) == ["owl", "cat", "cat"]
    assert names_of(CLASSES, kind([1])) == ["cat"]
    assert names_of(CLASSES, np.zeros(0, np.int64)) == []
    assert names_of(CLASSES, torch.zeros(0, dtype=torch.int64)) == []


@pytest.mark.parametrize("label", [0, 4, -1])
def test_there_is_no_name_for_background_or_beyond(label):
    for labels in (np.array([1, label]), torch.tensor([label])):
        with pytest.raises(IndexError, match=rf"{label - 1} is outside 0\.\.2"):
            names_of(CLASSES, labels)


def test_crowd_and_difficult_are_not_trained_on():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]])
    target = Target(
        1,
        boxes,
        torch.tensor([1, 2, 3]),
        torch.tensor([False, True, False]),
        torch.tensor([False, False, True]),
    )
    kept, labels = target.trainable()
    assert kept.tolist() == [[0, 0, 1, 1]]
    assert labels.tolist() == [1]
    assert make_target([], []).trainable()[0].shape == (0, 4)
    assert target.to("cpu").boxes.equal(boxes)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("boxes", torch.zeros(2, 4), "boxes are .* expected float32 \\(1, 4\\)"),
    ("boxes", torch.zeros(1, 4, dtype=torch.float64), "boxes are torch.float64"),
    ("labels", torch.ones(1), "labels are torch.float32"),
    ("crowd", torch.zeros(1), "crowd is torch.float32"),
    ("difficult", torch.zeros(2, dtype=torch.bool), "difficult is"),
])  # fmt: skip
def test_a_malformed_target_names_its_image(field, value, message):
    parts = {
        "boxes": torch.zeros(1, 4),
        "labels": torch.ones(1, dtype=torch.int64),
        "crowd": torch.zeros(1, dtype=torch.bool),
        "difficult": torch.zeros(1, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=f"image 77: {message}"):
        Target(77, **{**parts, field: value})


def test_a_batch_moves_with_its_sizes():
    batch = make_batch([(30, 40), (32, 20)])
    moved = batch.to("cpu")
    assert isinstance(moved, ImageBatch)
    assert len(moved) == 2
    assert (moved.sizes, moved.ids) == (batch.sizes, batch.ids)


def test_predictions_must_belong_together():
    assert (
        len(
            Predictions(
                CLASSES, np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
            )
        )
        == 0
    )
    with pytest.raises(ValueError, match="do not belong together"):
        Predictions(
            CLASSES, np.zeros(2, np.int64), np.zeros((2, 4)), np.zeros(1), np.zeros(2, np.int64)
        )
    assert (
        len(
            Detections(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)).to(
                "cpu"
            )
        )
        == 3
    )


def test_boxes_as_coco_writes_them() -> None:
    boxes = np.array([[10, 20, 40, 60], [0.1, 0.2, 0.4, 1.2]])
    np.testing.assert_array_equal(xywh_of(boxes[:1], None), [[10, 20, 30, 40]])
    assert xywh_of(boxes, np.array([[30, 40], [0.3, 1]])).tolist() == [
        [10, 20, 30, 40],
        [0.1, 0.2, 0.3, 1],
    ]
    single = xywh_of(boxes.astype(np.float32), None)
    assert single.dtype == np.float64
    assert single[1, 2] == np.float64(np.float32(0.4)) - np.float64(np.float32(0.1))
    assert xywh_of(np.zeros((0, 4)), None).shape == (0, 4)


def test_sides_must_be_those_of_the_boxes() -> None:
    boxes = np.array([[1000.1, 0, 1000.1 + 1 / 3, 2]])
    require_sides(boxes, None, "boxes")
    require_sides(boxes, np.array([[1 / 3, 2]]), "boxes")
    require_sides(boxes[:0], np.zeros((0, 2)), "boxes")
    require_sides(boxes * 1e6, np.array([[1e6 / 3, 2e6]]), "boxes")
    for wrong in ([[1 / 3 + 1e-8, 2]], [[1 / 3, 2 - 1e-8]], [[2, 1 / 3]], [[1 / 3]], [[0, 0]] * 2):
        with pytest.raises(ValueError, match=r"^boxes: sides are not the widths and heights"):
            require_sides(boxes, np.array(wrong), "boxes")
    one, classes = np.ones(1, np.int64), ClassMap.of_names(["a"])
    with pytest.raises(ValueError, match=r"^Predictions: sides are not"):
        Predictions(classes, one, boxes, one, one, sides=np.zeros((1, 2)))
    kept = Predictions(classes, one, boxes, one, one, sides=np.array([[1 / 3, 2]]))
    assert kept.xywh().tolist() == [[1000.1, 0, 1 / 3, 2]]


def test_some_images_of_a_batch_are_a_batch():
    batch = make_batch([(40, 50), (32, 64), (20, 20)])
    some = batch.select([2, 0])
    assert (some.sizes, some.original_sizes) == (((20, 20), (40, 50)),) * 2
    assert some.ids == (batch.ids[2], batch.ids[0])
    assert torch.equal(some.pixels, batch.pixels[[2, 0]])
    assert len(batch.select([])) == 0
    with pytest.raises(IndexError):
        batch.select([3])


# ---- proposals ----


def proposals() -> Proposals:
    """Two boxes, none and one."""
    return Proposals(
        source="here",
        image_ids=np.array(["a", "b", "c"]),
        offsets=np.array([0, 2, 2, 3]),
        boxes=np.arange(12.0).reshape(3, 4),
        scores=np.array([0.9, 0.1, 0.5], np.float32),
    )


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [1], [2, 2], []])
def test_the_proposals_of_some_images(rows):
    given = proposals()
    found = given.of_images(np.array(rows, np.int64))
    assert found.image_ids.tolist() == [given.image_ids[row] for row in rows]
    for index, row in enumerate(rows):
        assert np.array_equal(found.boxes[found.rows_of(index)], given.boxes[given.rows_of(row)])
        assert np.array_equal(found.scores[found.rows_of(index)], given.scores[given.rows_of(row)])
    assert found.counts.tolist() == [[2, 0, 1][row] for row in rows]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offsets", np.array([0, 2, 3])),
        ("offsets", np.array([0, 2, 1, 3])),
        ("offsets", np.array([0, 2, 2, 2])),
        ("offsets", np.array([1, 2, 2, 3])),
        ("boxes", np.zeros((2, 4))),
        ("scores", np.zeros(4, np.float32)),
        ("image_ids", np.array(["a", "b"])),
    ],
)
def test_arrays_of_proposals_that_do_not_belong_together(name, value):
    with pytest.raises(ValueError, match="do not belong together"):
        replace(proposals(), **{name: value})


def test_reprs_are_a_line_each_and_count():
    found = Detections(torch.rand(900, 4), torch.linspace(0.875, 0.1, 900), torch.ones(900).long())
    assert repr(found) == "Detections(900, best score 0.88)"
    assert repr(Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())) == (
        "Detections(0)"
    )
    columns = {"boxes": np.zeros((3, 4)), "scores": np.zeros(3), "labels": np.ones(3, np.int64)}
    of_results = Predictions(CLASSES, np.array([7, 9, 7]), **columns)
    assert repr(of_results) == f"Predictions(3 detections in 2 images, {CLASSES!r})"
    looked = replace(of_results, seen=np.arange(50))
    assert repr(looked) == f"Predictions(3 detections in 50 images, {CLASSES!r})"
    assert repr(make_batch([(20, 30), (10, 10)])) == "ImageBatch(2 of 32x32 px, cpu)"
    assert repr(make_target([[0, 0, 1, 1]], [1], image_id=12)) == "Target(1 objects in image 12)"
    proposals = Proposals(
        "the proposals of x", np.arange(2), np.array([0, 3, 3]), np.zeros((3, 4)), np.zeros(3)
    )
    assert repr(proposals) == "Proposals(3 in 2 images, the proposals of x)"


@pytest.mark.parametrize("num", [0, 3])
def test_a_target_goes_to_another_process_with_its_message_and_whole(num: int) -> None:
    """Not as four files of shared memory, which take a millisecond an image."""
    flags = torch.arange(num) % 2 == 1
    boxes = torch.rand(num, 4)
    target = Target("a.jpg", boxes, torch.arange(num) + 1, flags, ~flags)
    message = bytes(ForkingPickler.dumps(target))
    assert b"storage" not in message
    for twin in (pickle.loads(message), pickle.loads(pickle.dumps(target)), copy.deepcopy(target)):
        assert twin.image_id == "a.jpg"
        for name in ("boxes", "labels", "crowd", "difficult"):
            mine, its = getattr(target, name), getattr(twin, name)
            assert torch.equal(mine, its)
            assert mine.dtype == its.dtype
            assert not num or its.data_ptr() != mine.data_ptr()
        twin.boxes.add_(1)  # it may be written to
