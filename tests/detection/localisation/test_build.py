from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.config import check
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.crops import ProposalsByImage
from detres.detection.data.read import NoSplitError
from detres.detection.localisation.build import (
    build_class_rpn,
    build_train_set,
    of_main_class,
    read_localisation,
    read_to_localise,
)
from detres.detection.localisation.config import LocalisationConfig
from tests.detection.configs import box
from tests.detection.evaluation.scenes import truth_of
from tests.detection.localisation.parts import config_of
from tests.detection.official import LOC_CLASSES, write_ilsvrc
from tests.helpers import write_coco

BIG, SMALL, OTHER = (0, 0, 90, 90), (5, 5, 30, 30), (50, 50, 100, 100)


def test_an_images_class_is_that_of_its_largest_object() -> None:
    objects = [
        ("a", 1, SMALL), ("a", 2, BIG), ("a", 2, SMALL),  # two of the largest one's class
        ("c", 1, BIG, "crowd"), ("c", 2, BIG, "difficult"), ("c", 1, SMALL),
        ("d", 2, (3, 3, 3, 90)), ("e", 1, OTHER),
    ]  # fmt: skip
    truth = truth_of(objects, ["a", "b", "c", "d", "e"])
    found = of_main_class(truth)
    assert found.image_ids.tolist() == ["a", "c", "e"]
    assert found.image_files.tolist() == ["a.jpg", "c.jpg", "e.jpg"]
    assert found.offsets.tolist() == [0, 2, 3, 4]
    assert found.labels.tolist() == [2, 2, 1, 1]
    assert found.boxes.tolist() == [list(BIG), list(SMALL), list(SMALL), list(OTHER)]
    assert found.ids.tolist() == truth.ids[[1, 2, 5, 7]].tolist()
    assert "left out are 2 images without objects and 1 objects of other" in found.notes[-1]


def test_of_equal_objects_the_first_decides_and_images_of_one_class_stay_as_they_are() -> None:
    equal = truth_of([("a", 2, BIG), ("a", 1, BIG)], ["a"])
    assert of_main_class(equal).labels.tolist() == [2]
    truth = truth_of([("a", 2, BIG), ("a", 2, SMALL), ("b", 1, SMALL)], ["a", "b"])
    same = of_main_class(truth)
    assert same.notes == truth.notes
    for name in ("image_ids", "offsets", "boxes", "labels", "ids", "areas"):
        np.testing.assert_array_equal(getattr(same, name), getattr(truth, name))
    assert len(of_main_class(truth_of([], ["a"]))) == 0


def test_a_data_set_is_read_as_images_of_one_class(tmp_path: Path) -> None:
    objects = [box(1), {**box(1, category_id=90, xywh=(0, 0, 8, 8)), "id": 2}]
    write_coco(tmp_path, [(60, 70), (60, 70)], objects)
    config = config_of(tmp_path)
    for split in ("train", "val"):
        found = read_localisation(config.data, split)
        assert found.image_ids.tolist() == [1]
        assert found.labels.tolist() == [1]
        assert found.sides is not None
    write_coco(tmp_path, [(60, 70)], [{**box(1), "iscrowd": 1}])
    with pytest.raises(AnnotationError, match="no object to localise"):
        read_localisation(config.data, "train")


def test_a_test_set_is_read_whole_where_its_objects_are_not_known(tmp_path: Path) -> None:
    lists = {"train": ["CLS-LOC/train_loc"], "val": ["CLS-LOC/val"], "test": ["CLS-LOC/test"]}
    data = {"format": "ilsvrc", "root": str(write_ilsvrc(tmp_path)), "workers": 0, **lists}
    given = config_of(tmp_path).model_dump(mode="json")
    config = check(LocalisationConfig, {**given, "data": data}, "test")
    classes = ClassMap.of_names(tuple(LOC_CLASSES))
    found = read_to_localise(config.data, "test", classes)
    assert (len(found), found.num_objects) == (2, 0)
    assert found.without_truth is not None
    assert found.class_map.names == tuple(LOC_CLASSES)
    val = read_to_localise(config.data, "val", classes)
    assert val.without_truth is None
    assert val.describe() == read_localisation(config.data, "val").describe()
    known = config.data.model_copy(update={"test": ("CLS-LOC/val",)})
    assert read_to_localise(known, "test", classes).labels.tolist() == val.labels.tolist()
    with pytest.raises(NoSplitError, match="no split test; there is train, val"):
        read_to_localise(config.data.model_copy(update={"test": ()}), "test", classes)
    (tmp_path / "ImageSets" / "CLS-LOC" / "val.txt").write_text("ILSVRC2012_val_00000001\n")
    xml = tmp_path / "Annotations" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000001.xml"
    xml.write_text("<annotation></annotation>")
    with pytest.raises(AnnotationError, match="no object to localise"):
        read_to_localise(config.data, "val", classes)


@pytest.mark.parametrize(("stage", "stride"), [("conv4", 16), ("conv5", 32)])
def test_the_network_ends_where_the_rpn_reads(stage: str, stride: int) -> None:
    config = config_of(Path("."), model={"rpn": {"stage": stage, "width": 16}})
    model = build_class_rpn(config.model, 3)
    assert list(model.backbone.channels)[-1] == stage
    assert model.rpn.anchors[stage].stride == stride
    assert model.rpn.head.scores.out_channels == 2 * 3
    assert model.rpn.head.deltas.out_channels == 2 * 3 * 4


def test_what_is_learned_from(tmp_path: Path) -> None:
    write_coco(tmp_path, [(90, 120)], [box(1)])
    config = config_of(tmp_path)
    train = read_localisation(config.data, "train")
    kept = config.model_copy(update={"data": config.data.model_copy(update={"cache_gib": 0.001})})
    with_cache = build_train_set(kept, train)
    for _ in range(2):
        again = with_cache[0, 3].image
        np.testing.assert_array_equal(again, build_train_set(config, train)[0, 3].image)
    assert len(with_cache.cache) == 1
    image, target, original, _, seed = build_train_set(config, train)[0, 3]
    assert image.shape == (64, 64, 3)
    assert original == (90, 120)
    assert seed == 3
    assert target.labels.tolist() in ([], [1])
    proposals = ProposalsByImage(np.array([1]), [np.array([[10, 20, 50, 60.0]], np.float32)])
    image, target, *_ = build_train_set(config, train, proposals)[0, 3]
    assert image.shape == (64, 64, 3)
    assert target.labels.tolist() == [1]


def test_of_a_vgg_the_convolutions_alone_are_kept() -> None:
    """Fully connected layers would be most of its weights file, and never read."""
    model = config_of(
        Path("."),
        model={"backbone": {"name": "vgg16", "freeze_at": 0}, "rpn": {"stage": "conv5"}},
    ).model
    names = [name for name, _ in build_class_rpn(model, 3).named_parameters()]
    assert not [name for name in names if "classifier" in name]
    assert len([name for name in names if name.startswith("backbone.features")]) == 26
