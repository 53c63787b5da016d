from __future__ import annotations

import numpy as np
import pytest
import torch

from detres.structures import (
    Annotations,
    ClassMap,
    ClassMismatchError,
    Detections,
    ImageBatch,
    Losses,
    Predictions,
    Target,
)
from tests.helpers import CLASSES, make_batch, make_target


def annotations(
    ids=(10, 20),
    per_image=(2, 0),
    *,
    first_object=1,
    class_map=CLASSES,
    source="here",
    dropped=None,
) -> Annotations:
    num = sum(per_image)
    return Annotations(
        source=source,
        class_map=class_map,
        image_ids=np.array(ids, np.int64),
        image_files=np.array([f"{i}.jpg" for i in ids]),
        image_sizes=np.full((len(ids), 2), 100, np.int32),
        offsets=np.concatenate([[0], np.cumsum(per_image)]).astype(np.int64),
        boxes=np.arange(num * 4, dtype=np.float32).reshape(num, 4),
        labels=np.arange(num, dtype=np.int64) % 3 + 1,
        areas=np.ones(num, np.float32),
        crowd=np.arange(num) == 1,
        difficult=np.zeros(num, bool),
        ids=np.arange(first_object, first_object + num),
        dropped=dropped or {},
    )


def test_class_map_goes_all_ways():
    assert [CLASSES.name_of(k) for k in (1, 2, 3)] == ["cat", "dog", "owl"]
    assert [CLASSES.source_id_of(k) for k in (1, 2, 3)] == [3, 7, 90]
    assert (CLASSES.label_of_name("owl"), CLASSES.label_of_source_id(7)) == (3, 2)
    assert ClassMap.from_dict(CLASSES.to_dict()) == CLASSES
    assert len(CLASSES) == 3


@pytest.mark.parametrize("label", [0, 4, -1])
def test_there_is_no_name_for_background_or_beyond(label):
    with pytest.raises(IndexError, match=rf"{label} is outside 1\.\.3"):
        CLASSES.name_of(label)


def test_unknown_names_and_ids_list_the_known():
    with pytest.raises(KeyError, match="cat, dog, owl"):
        CLASSES.label_of_name("Cat")
    with pytest.raises(KeyError, match=r"\[3, 7, 90\]"):
        CLASSES.label_of_source_id(1)


@pytest.mark.parametrize(("names", "ids", "message"), [
    (("a", "a"), (1, 2), "name a is given"),
    (("a", "b"), (1, 1), "source id 1 is given"),
    (("a", "b"), (1,), "2 names but 1"),
])  # fmt: skip
def test_a_class_map_is_unambiguous(names, ids, message):
    with pytest.raises(ValueError, match=message):
        ClassMap(names, ids)


def test_a_mismatch_prints_both_lists():
    other = ClassMap(("cat", "dog"), (3, 7))
    CLASSES.require_same(ClassMap.from_dict(CLASSES.to_dict()), "a", "b")
    with pytest.raises(ClassMismatchError) as caught:
        CLASSES.require_same(other, "weights.safetensors", "val.json")
    assert "weights.safetensors (3): 3=cat, 7=dog, 90=owl" in str(caught.value)
    assert "val.json (2): 3=cat, 7=dog" in str(caught.value)


def test_targets_of_flat_annotations():
    data = annotations(per_image=(2, 0))
    target = data.target(0)
    assert target.image_id == 10
    assert target.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert target.labels.tolist() == [1, 2]
    assert target.crowd.tolist() == [False, True]
    assert data.target(1).boxes.shape == (0, 4)
    target.boxes.zero_()
    assert data.boxes[1, 3] == 7


def test_a_description_counts_everything():
    text = annotations(per_image=(2, 0), dropped={"boxes without area": 4}).describe()
    assert (
        "2 images (1 without objects), 2 objects of 3 classes: cat 1, dog 1, owl 0; 1 crowd; 4 "
        "boxes without area" in text
    )


def test_rows_must_belong_together():
    with pytest.raises(ValueError, match="offsets has 2 rows, expected 3"):
        annotations(per_image=(2,), ids=(1, 2))


def test_data_sets_are_put_together():
    first = annotations(ids=(1, 2), per_image=(2, 0), dropped={"x": 1})
    second = annotations(ids=(3,), per_image=(1,), source="there", dropped={"x": 2, "y": 1})
    both = Annotations.concatenate([first, second])
    assert both.image_ids.tolist() == [1, 2, 3]
    assert both.offsets.tolist() == [0, 2, 2, 3]
    assert [len(both.target(n)) for n in range(3)] == [2, 0, 1]
    assert both.ids.tolist() == [1, 2, 3]  # numbered anew: both began at 1
    assert both.dropped == {"x": 3, "y": 1}
    assert both.source == "here + there"
    assert Annotations.concatenate([first]) is first


def test_an_image_in_two_data_sets_or_other_classes_are_refused():
    with pytest.raises(ValueError, match="image 10 is in more than one of here, here"):
        Annotations.concatenate([annotations(), annotations(first_object=100)])
    with pytest.raises(ClassMismatchError):
        Annotations.concatenate(
            [annotations(), annotations(ids=(7, 8), class_map=ClassMap(("a", "b", "c"), (1, 2, 3)))]
        )


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


def test_losses_add_up_by_name():
    losses = Losses(*(torch.tensor(value) for value in (1.0, 2.0, 4.0, 8.0)))
    assert losses.total().item() == 15
    assert {name: value.item() for name, value in losses.terms().items()} == {
        "loss_rpn_cls": 1.0,
        "loss_rpn_box": 2.0,
        "loss_roi_cls": 4.0,
        "loss_roi_box": 8.0,
    }


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


def test_a_long_class_list_is_told_by_what_differs() -> None:
    names = tuple(f"c{n:02d}" for n in range(30))
    full = ClassMap(names, tuple(range(1, 31)))
    lacking = ClassMap(names[:4] + names[5:], tuple(range(1, 30)))
    with pytest.raises(ClassMismatchError) as caught:
        full.require_same(lacking, "train", "val")
    assert "train (30): only here: 5=c04\n  val (29): only here: none\n" in str(caught.value)
    swapped = ClassMap((names[1], names[0], *names[2:]), tuple(range(1, 31)))
    with pytest.raises(ClassMismatchError) as caught:
        full.require_same(swapped, "train", "val")
    assert "train (30): the same names, with other ids: 1=c00, 2=c01\n" in str(caught.value)
    shifted = ClassMap(names, tuple(range(2, 32)))
    with pytest.raises(ClassMismatchError, match=r"20=c19 and 10 more"):
        full.require_same(shifted, "train", "val")
