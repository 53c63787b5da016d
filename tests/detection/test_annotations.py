from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detres.class_map import ClassMap, ClassMismatchError
from detres.detection.annotations import Annotations, NoTruthError
from tests.detection.evaluation.scenes import predictions_of, truth_of
from tests.helpers import CLASSES

BOX = (0, 0, 10, 10)


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
        boxes=np.arange(num * 4, dtype=np.float64).reshape(num, 4),
        labels=np.arange(num, dtype=np.int64) % 3 + 1,
        areas=np.ones(num),
        crowd=np.arange(num) == 1,
        difficult=np.zeros(num, bool),
        ids=np.arange(first_object, first_object + num),
        dropped=dropped or {},
    )


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


def test_boxes_and_areas_are_float64():
    data = annotations()
    for name in ("boxes", "areas"):
        with pytest.raises(ValueError, match=f"Annotations.{name} is float32, expected float64"):
            dataclasses.replace(data, **{name: getattr(data, name).astype(np.float32)})
    with pytest.raises(ValueError, match=r"Annotations.boxes is \(2, 5\), expected \(M, 4\)"):
        dataclasses.replace(data, boxes=np.zeros((2, 5)))


def test_sides_are_those_of_the_boxes():
    boxes = np.array([[0.1, 0.2, 0.4, 10.2], [1000.3, 0, 1000.3 + 0.1, 1]])
    data = dataclasses.replace(annotations(), boxes=boxes)
    np.testing.assert_array_equal(data.xywh()[:, 2:], boxes[:, 2:] - boxes[:, :2])
    sides = np.array([[0.3, 10], [0.1, 1]])
    exact = dataclasses.replace(data, sides=sides)
    assert exact.xywh().tolist() == [[0.1, 0.2, 0.3, 10], [1000.3, 0, 0.1, 1]]
    assert (data.xywh() != exact.xywh()).any()
    for wrong in (sides + 1e-6, sides[:1], sides.T[[0]]):
        with pytest.raises(ValueError, match="sides are not the widths and heights of boxes"):
            dataclasses.replace(data, sides=wrong)
    with pytest.raises(ValueError, match="sides are not"):
        dataclasses.replace(exact, boxes=boxes * 2)
    other = dataclasses.replace(annotations(ids=(1, 2)), boxes=np.tile((0, 0, 5.0, 5), (2, 1)))
    both = Annotations.concatenate([exact, other])
    assert both.xywh().tolist() == [*exact.xywh().tolist(), [0, 0, 5, 5], [0, 0, 5, 5]]


def test_classes_under_other_ids_are_the_same_for_predictions():
    truth = truth_of([("a", 2, BOX)], ["a"])
    names = truth.class_map.names
    found = predictions_of([("a", 2, 0.5, BOX)], ClassMap(names, (1, 2)))
    assert truth.rows_of(found).tolist() == [0]
    with pytest.raises(ClassMismatchError):
        truth.rows_of(predictions_of([("a", 2, 0.5, BOX)], ClassMap(names[::-1], (5, 17))))


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
    with pytest.raises(
        ValueError, match=r"image file 10\.jpg is in more than one of here, here \(2 such\)"
    ):
        Annotations.concatenate([annotations(), annotations(first_object=100)])
    with pytest.raises(ClassMismatchError):
        Annotations.concatenate(
            [annotations(), annotations(ids=(7, 8), class_map=ClassMap(("a", "b", "c"), (1, 2, 3)))]
        )


def test_the_classes_of_objects_are_the_indices_of_their_labels():
    data = annotations(per_image=(2, 1))
    assert data.labels.tolist() == [1, 2, 3]
    assert data.class_indices.tolist() == [0, 1, 2]
    assert [data.class_map.name_of(index) for index in data.class_indices] == ["cat", "dog", "owl"]
    assert annotations(per_image=(0, 0)).class_indices.shape == (0,)


def test_a_description_by_hand():
    objects = [("a", 2, BOX, "crowd"), ("a", 2, BOX, "difficult"), ("c", 1, BOX)]
    data = truth_of(objects, ["a", "b", "c"])
    data.dropped["box without area"] = 2
    assert data.describe() == (
        "truth: 3 images (1 without objects), 3 objects of 2 classes: cat 1, dog 2; 1 crowd; 1 "
        "difficult; 2 box without area"
    )
    assert (
        truth_of([], []).describe()
        == "truth: 0 images (0 without objects), 0 objects of 2 classes: cat 0, dog 0"
    )


def test_a_description_lists_twenty_classes_and_says_that_there_are_more():
    many = ClassMap.of_names([f"c{n}" for n in range(1, 22)])
    text = truth_of([("a", 21, BOX)], ["a"], many).describe()
    assert text.endswith(
        "1 object of 21 classes: " + ", ".join(f"c{n} 0" for n in range(1, 21)) + ", ..."
    )
    twenty = ClassMap.of_names([f"c{n}" for n in range(1, 21)])
    assert truth_of([("a", 20, BOX)], ["a"], twenty).describe().endswith("c19 0, c20 1")


def test_the_rows_of_the_images_of_predictions():
    truth = truth_of([("b", 1, BOX)], ["b", "a", "c"])
    found = predictions_of([("c", 1, 0.5, BOX), ("b", 2, 0.9, BOX), ("c", 2, 0.1, BOX)])
    rows = truth.rows_of(found)
    assert rows.tolist() == [2, 0, 2]
    assert rows.dtype == np.int64
    numbered = truth_of([], [70, 9])
    assert numbered.rows_of(predictions_of([(9, 1, 0.5, BOX)])).tolist() == [1]


def test_no_predictions_have_no_rows():
    rows = truth_of([("a", 1, BOX)], ["a"]).rows_of(predictions_of([]))
    assert rows.shape == (0,)
    assert rows.dtype == np.int64


def test_predictions_of_other_images_or_classes_or_not_finite_have_no_rows():
    truth = truth_of([("a", 1, BOX)], ["a"])
    with pytest.raises(ValueError, match=r"predictions for image b, which truth does not have"):
        truth.rows_of(predictions_of([("a", 1, 0.5, BOX), ("b", 1, 0.5, BOX)]))
    for score, box in ((0.5, (0, 0, np.inf, 1)), (np.nan, BOX)):
        with pytest.raises(ValueError, match=r"prediction 1, image a: .*must be finite \(1 such\)"):
            truth.rows_of(predictions_of([("a", 1, 0.5, BOX), ("a", 1, score, box)]))
    with pytest.raises(ClassMismatchError, match="1=owl"):
        truth.rows_of(predictions_of([], ClassMap(("owl",), (1,))))


def test_classes_are_matched_by_name_and_keep_their_own_ids():
    other = ClassMap(("owl", "cat", "none", "dog"), (1, 2, 3, 4))
    data = annotations(per_image=(2, 0), class_map=other)  # an owl, a cat
    matched = data.matched_to(CLASSES, "train.json")
    assert matched.class_map == ClassMap(("cat", "dog", "owl"), (2, 4, 1))
    assert matched.labels.tolist() == [3, 1]
    assert matched.boxes is data.boxes
    (note,) = matched.notes
    assert note == (
        "here has the classes of train.json under other ids (cat is 3 there and 2 here): told by "
        "name"
    )
    assert matched.describe().endswith(f"\nnote: {note}")
    assert data.matched_to(other, "x") is data


def test_the_same_ids_in_another_order_are_nothing_to_say():
    other = ClassMap(("owl", "cat", "dog"), (90, 3, 7))
    matched = annotations(class_map=other).matched_to(CLASSES, "train.json")
    assert (matched.class_map, matched.labels.tolist(), matched.notes) == (CLASSES, [3, 1], ())


def test_the_gaps_of_a_detector_need_not_be_in_the_data():
    """The data's own ids go on being theirs, also where a gap had one of them."""
    theirs = ClassMap(("cat", "N/A 2", "dog", "N/A 4", "owl"), (1, 2, 3, 4, 5))
    data = annotations(class_map=ClassMap(("cat", "dog", "owl"), (1, 2, 5)))
    matched = data.matched_to(theirs, "torchvision's")
    assert matched.class_map == ClassMap(theirs.names, (1, 6, 2, 7, 5))
    assert matched.labels.tolist() == [1, 3]
    (note,) = matched.notes
    assert "(dog is 3 there and 2 here)" in note
    same = annotations(class_map=ClassMap(("cat", "dog", "owl"), (1, 3, 5)))
    assert same.matched_to(theirs, "torchvision's").notes == ()
    with pytest.raises(ClassMismatchError, match=r"torchvision's \(5\): 1=cat"):
        annotations(class_map=ClassMap(("cat", "dog", "elk"), (1, 3, 5))).matched_to(
            theirs, "torchvision's"
        )


def test_a_class_that_is_lacking_or_has_objects_of_its_own_is_a_mismatch():
    lacking = annotations(class_map=ClassMap(("cat", "dog"), (3, 7)))
    more = annotations(class_map=ClassMap(("elk", "cat", "dog", "owl"), (1, 3, 7, 90)))
    for data in (lacking, more):
        with pytest.raises(ClassMismatchError, match=r"train\.json \(3\): 3=cat"):
            data.matched_to(CLASSES, "train.json")


def test_ids_of_other_kinds_are_told_apart_too():
    first, second = annotations(ids=(1, 2)), annotations(ids=(3, 4), source="there")
    second = dataclasses.replace(second, image_ids=np.array(["3", "4"]))
    both = Annotations.concatenate([first, second])
    assert both.image_ids.tolist() == ["here: 1", "here: 2", "there: 3", "there: 4"]


def test_a_subset_keeps_each_image_its_own_objects():
    whole = annotations(ids=(10, 20, 30, 40), per_image=(2, 0, 3, 1))
    part = whole.subset(np.array([3, 1, 0]), "some")
    assert (part.source, part.image_ids.tolist()) == ("some", [40, 20, 10])
    assert part.image_files.tolist() == ["40.jpg", "20.jpg", "10.jpg"]
    assert part.offsets.tolist() == [0, 1, 1, 3]
    assert part.ids.tolist() == [6, 1, 2]
    for row, at in enumerate((3, 1, 0)):
        own, there = part.target(row), whole.target(at)
        assert own.image_id == there.image_id
        assert own.boxes.tolist() == there.boxes.tolist()
        assert own.crowd.tolist() == there.crowd.tolist()


def test_a_subset_has_the_sides_of_its_boxes_and_may_be_empty():
    whole = annotations(ids=(10, 20), per_image=(1, 2))
    whole = dataclasses.replace(whole, sides=whole.xywh()[:, 2:])
    part = whole.subset(np.array([1]), "some")
    np.testing.assert_array_equal(part.xywh(), whole.xywh()[1:])
    none = whole.subset(np.zeros(0, np.int64), "none")
    assert (len(none), none.num_objects, none.boxes.shape) == (0, 0, (0, 4))


def without_truth(ids=(1, 2), source="test set", why="the server keeps them"):
    empty = annotations(ids, per_image=(0,) * len(ids), source=source)
    return dataclasses.replace(empty, without_truth=why)


def test_a_set_without_truth_says_so_and_is_not_evaluated():
    unknown = without_truth()
    text = "test set: 2 images; their objects are not known: the server keeps them"
    assert unknown.describe() == text
    with pytest.raises(
        NoTruthError, match=r"test set cannot be evaluated, .* the server keeps them"
    ):
        unknown.require_truth()
    annotations(per_image=(0, 0)).require_truth()  # no objects, and this is known
    with pytest.raises(ValueError, match="2 objects, though they are not known"):
        dataclasses.replace(annotations(), without_truth="why")


def test_together_with_a_known_set_it_stays_unknown():
    for parts in (
        [annotations(ids=(10, 20)), without_truth()],
        [without_truth(), annotations(ids=(10, 20), dropped={"box without area": 3})],
    ):
        both = Annotations.concatenate(parts)
        assert (len(both), both.num_objects) == (4, 0)
        assert both.without_truth == "the server keeps them"
        assert both.offsets.tolist() == [0] * 5
        assert both.dropped == {}
    assert Annotations.concatenate([without_truth()]).without_truth is not None


def test_its_classes_are_matched_by_name():
    one = ClassMap(names=("owl", "cat", "dog"), source_ids=(1, 2, 3))
    matched = without_truth().matched_to(one, "weights")
    assert matched.class_map == ClassMap(("owl", "cat", "dog"), (90, 3, 7))
    assert matched.without_truth == "the server keeps them"


def test_images_that_two_sets_share_are_told_by_their_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")

    def in_folder(folder, ids):
        files = np.array([str(tmp_path / folder / f"{i}.jpg") for i in ids])
        return dataclasses.replace(annotations(ids, (0,) * len(ids)), image_files=files)

    first = in_folder("a", (1, 2, 3))
    assert first.num_shared_files(in_folder("a", (2, 3, 4))) == 2
    assert first.num_shared_files(in_folder("link", (3, 4))) == 1
    assert first.num_shared_files(in_folder("b", (1, 2, 3))) == 0


def test_its_repr_is_a_line():
    shown = repr(annotations(per_image=(2, 0)))
    assert shown.endswith(": 2 images, 2 objects, ClassMap(3: ('cat', 'dog', 'owl')))")
    assert shown.startswith("Annotations(")
    assert len(repr(annotations(per_image=(50, 900)))) < 200


def test_some_objects_of_the_same_images():
    data = annotations(ids=(10, 20, 30), per_image=(2, 0, 3))
    kept = data.with_objects(np.array([False, True, True, False, True]))
    assert kept.offsets.tolist() == [0, 1, 1, 3]
    assert kept.ids.tolist() == [2, 3, 5]
    assert kept.boxes.tolist() == data.boxes[[1, 2, 4]].tolist()
    assert kept.crowd.tolist() == [True, False, False]
    assert kept.image_ids.tolist() == [10, 20, 30]
    assert data.with_objects(np.zeros(5, bool)).boxes.shape == (0, 4)
