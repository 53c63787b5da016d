"""COCO JSON as found in the wild -> Annotations, or an error that names the record."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from detres.detection.annotations import NoTruthError
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.coco import read_coco
from detres.detection.structures import index_of

# Sparse ids in no order, an image without objects, a crowd, and no optional field that could be
# left out.
CONTENT = {
    "images": [
        {"id": 70, "file_name": "b.jpg", "height": 50, "width": 100},
        {"id": 9, "file_name": "sub/a.jpg"},
        {"id": 12, "file_name": "empty.jpg", "height": 20, "width": 30},
    ],
    "annotations": [
        {"id": 5, "image_id": 9, "category_id": 90, "bbox": [1, 2, 3, 4]},
        {
            "id": 2,
            "image_id": 70,
            "category_id": 3,
            "bbox": [10, 20, 30, 5],
            "area": 99.5,
            "iscrowd": 1,
            "segmentation": [],
        },
        {"id": 8, "image_id": 9, "category_id": 3, "bbox": [0.5, 0, 6, 7], "iscrowd": 0},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(table: str, index: int, **values: object) -> dict:
    content = copy.deepcopy(CONTENT)
    content[table][index].update(values)
    return content


def test_every_field_by_hand(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, CONTENT), None)
    assert data.class_map.names == ("car", "toothbrush")
    assert data.class_map.source_ids == (3, 90)
    assert data.image_ids.tolist() == [70, 9, 12]
    assert data.image_files.tolist() == ["b.jpg", "sub/a.jpg", "empty.jpg"]
    assert data.image_sizes.tolist() == [[50, 100], [0, 0], [20, 30]]
    assert data.offsets.tolist() == [0, 1, 3, 3]
    assert data.ids.tolist() == [2, 5, 8]
    assert data.labels.tolist() == [1, 2, 1]
    assert data.boxes.tolist() == [[10, 20, 40, 25], [1, 2, 4, 6], [0.5, 0, 6.5, 7]]
    assert data.areas.tolist() == [99.5, 12, 42]
    assert data.crowd.tolist() == [True, False, False]
    assert not data.difficult.any()
    assert data.dropped == {}
    assert {
        name: getattr(data, name).dtype for name in ("image_ids", "offsets", "labels", "ids")
    } == dict.fromkeys(("image_ids", "offsets", "labels", "ids"), np.dtype(np.int64))
    assert len(data.target(2)) == 0


def test_null_means_missing(tmp_path: Path) -> None:
    content = changed("annotations", 1, area=None, iscrowd=None, segmentation=None)
    content["images"][0].update(height=None, width=None)
    data = read_coco(write(tmp_path, content), None)
    assert data.areas[0] == 150
    assert not data.crowd[0]
    assert data.image_sizes[0].tolist() == [0, 0]


def test_whole_numbers_written_as_floats_are_ids(tmp_path: Path) -> None:
    data = read_coco(
        write(tmp_path, changed("annotations", 0, id=5.0, image_id=9.0, category_id=90.0)), None
    )
    assert data.ids.tolist() == [2, 5, 8]


def test_classes_choose_and_order_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path, changed("annotations", 0, bbox=[1, 2, 0, 4]))
    data = read_coco(
        path, None, classes=["car"], box_policy="error"
    )  # the bad box is of the class left out
    assert data.class_map.to_dict() == {"names": ["car"], "source_ids": [3]}
    assert data.ids.tolist() == [2, 8]
    assert data.dropped == {"other class": 1}
    both = read_coco(write(tmp_path, CONTENT), None, classes=["toothbrush", "car"])
    assert both.class_map.source_ids == (90, 3)
    assert both.labels.tolist() == [2, 1, 2]
    with pytest.raises(
        AnnotationError,
        match=r"instances\.json has no class 'toothbrsh'; did you mean 'toothbrush'\?",
    ):
        read_coco(path, None, classes=["toothbrsh"])


def test_box_policy_at_load(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    boxes = [
        [10, 10, 0, 5],
        [10, 10, -4, 5],
        [120, 10, 9, 9],
        [90, 40, 20, 20],
        [1, 1, float("nan"), 2],
        [5, 5, 5, 5],
    ]
    content["annotations"] = [
        {"id": 100 + i, "image_id": 70, "category_id": 3, "bbox": box}
        for i, box in enumerate(boxes)
    ]
    path = write(tmp_path, content)
    data = read_coco(path, None)
    assert data.ids.tolist() == [103, 105]
    assert data.boxes.tolist() == [[90, 40, 100, 50], [5, 5, 10, 10]]
    assert data.areas.tolist() == [100, 25]  # of the box as clipped
    assert data.dropped == {
        "box without area": 2,
        "box outside its image": 1,
        "box with a number that is not finite": 1,
        "clipped to the image": 1,
    }
    for policy in ("keep", "error"):
        with pytest.raises(
            AnnotationError,
            match=r"instances\.json: annotation 104 \(image 70\), bbox \[1.0, 1.0, nan, 2.0\]: "
            r".*not finite",
        ):
            read_coco(path, None, box_policy=policy)
    del content["annotations"][4]
    kept = read_coco(write(tmp_path, content), None, box_policy="keep")
    assert kept.num_objects == 5
    assert kept.boxes[1].tolist() == [10, 10, 6, 15]
    assert kept.boxes[3].tolist() == [90, 40, 110, 60]
    assert kept.dropped == {}


def test_numbers_stay_as_they_are_written(tmp_path: Path) -> None:
    boxes = [[0.1, 0.2, 17.300000000000004, 1 / 3], [33.3, 4, 0.7, 20.123456], [90, 4, 20.3, 5]]
    content = copy.deepcopy(CONTENT)
    content["annotations"] = [
        {"id": n, "image_id": 70, "category_id": 3, "bbox": box, "area": 1023.99999}
        for n, box in enumerate(boxes, start=1)
    ]
    del content["annotations"][1]["area"]
    path = write(tmp_path, content)
    kept = read_coco(path, None, box_policy="keep")
    assert kept.xywh().tolist() == boxes
    assert kept.areas.tolist() == [1023.99999, 0.7 * 20.123456, 1023.99999]
    assert (kept.boxes.dtype, kept.areas.dtype) == (np.float64, np.float64)
    clipped = read_coco(path, None, box_policy="drop")
    assert clipped.xywh().tolist() == [*boxes[:2], [90, 4, 10, 5]]
    assert kept.target(0).boxes.dtype == torch.float32


def test_repeated_and_missing_annotation_ids_are_numbered_anew(tmp_path: Path) -> None:
    content = changed("annotations", 1, id=5)
    del content["annotations"][2]["id"]
    data = read_coco(write(tmp_path, content), None)
    assert data.ids.tolist() == [6, 5, 7]  # the first of its kind keeps its id
    assert data.dropped == {"renumbered annotation id": 2}


def test_nothing_annotated_and_no_images_are_data_sets_too(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, CONTENT | {"annotations": []}), None)
    assert (len(data), data.boxes.shape, data.offsets.tolist()) == (3, (0, 4), [0, 0, 0, 0])
    data = read_coco(write(tmp_path, CONTENT | {"annotations": [], "images": []}), None)
    assert (len(data), data.image_sizes.shape, data.offsets.tolist()) == (0, (0, 2), [0])


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    path, folder = write(tmp_path, CONTENT), tmp_path / "images"
    with pytest.raises(
        FileNotFoundError, match=r"image folder .*images of .*instances\.json does not exist"
    ):
        read_coco(path, folder)
    (folder / "sub").mkdir(parents=True)
    (folder / "b.jpg").touch()
    with pytest.raises(
        FileNotFoundError,
        match=r"2 of 3 images of .*instances\.json are not in .*images: sub/a\.jpg, empty\.jpg",
    ):
        read_coco(path, folder)
    (folder / "sub" / "a.jpg").touch()
    (folder / "empty.jpg").touch()
    assert read_coco(path, folder).image_files.tolist() == [
        str(folder / name) for name in ("b.jpg", "sub/a.jpg", "empty.jpg")
    ]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*gone\.json"):
        read_coco(tmp_path / "gone.json", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "is not JSON: Expecting value"),
        ("", "is not JSON"),
        (
            "[]",
            "expected an object with images, annotations and categories, found a list: perhaps a "
            "results file",
        ),
        ("3", "found a int"),
        (
            '{"images": [], "shapes": []}',
            r"it has no 'annotations'; found the keys \['images', 'shapes'\]",
        ),
        (CONTENT | {"images": {}}, "'images' must be a list of objects"),
        (CONTENT | {"annotations": [3]}, "'annotations' must be a list of objects"),
        (CONTENT | {"categories": [], "annotations": []}, "has no categories"),
        (
            CONTENT | {"categories": [{"id": 3, "name": "car"}, {"id": 3, "name": "cat"}]},
            "category id 3 is listed twice",
        ),
        (
            CONTENT | {"categories": [{"id": 3, "name": "car"}, {"id": 4, "name": "car"}]},
            "category name 'car' is listed twice",
        ),
        (CONTENT | {"categories": [{"id": 3}]}, r"categories\[0\] has no 'name'"),
        (
            changed("images", 1, id=70),
            r"image with id 70 is listed twice, with file_name b\.jpg and sub/a\.jpg",
        ),
        (
            changed("images", 1, file_name="b.jpg"),
            r"image with file_name b\.jpg is listed twice, with id 70 and 9",
        ),
        (changed("images", 2, id="12a"), r"images\[2\] has id '12a', expected an integer"),
        (changed("images", 2, id="12.5"), r"images\[2\] has id '12\.5', expected an integer"),
        (changed("images", 2, id=1e300), r"images\[2\] has id 1e\+300, expected an integer"),
        (changed("images", 2, id=True), r"images\[2\] has id True, expected an integer"),
        (
            changed("images", 2, id=2**64),
            r"images\[2\] has id 18446744073709551616, expected an integer of 64 bits",
        ),
        (changed("images", 2, file_name=None), r"images\[2\] has no 'file_name'"),
        (changed("images", 2, file_name=7), r"images\[2\] has file_name 7, expected text"),
        (changed("images", 0, height="tall"), r"images\[0\] has height 'tall'"),
        (
            changed("images", 0, height=-50),
            r"images\[0\] has height -50, expected px up to 1000000",
        ),
        (changed("images", 0, width=10**12), r"images\[0\] has width 1000000000000, expected px"),
        (
            changed("annotations", 2, image_id=71),
            r"annotation 8 has image_id 71, which the file does not list \(1 such",
        ),
        (
            changed("annotations", 2, category_id=4),
            r"annotation 8 has category_id 4, which the file does not list",
        ),
        (changed("annotations", 2, category_id=None), r"annotations\[2\] has no 'category_id'"),
        (
            changed("annotations", 2, area="big"),
            r"annotations\[2\] has area 'big', expected a number",
        ),
        (
            changed("annotations", 2, bbox=[1, 2, 3]),
            r"annotation 8 has bbox \[1, 2, 3\], expected \[x, y, width, height\]",
        ),
        (
            changed("annotations", 2, bbox=["1", "2", "3", "four"]),
            r"annotation 8 has bbox \['1', '2', '3', 'four'\]",
        ),
        (changed("annotations", 2, bbox=None), "annotation 8 has bbox None"),
    ],
)
def test_what_is_not_coco_is_refused_with_file_and_record(
    tmp_path: Path, content: object, message: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(AnnotationError, match=message) as error:
        read_coco(path, None)
    assert re.search(r"instances\.json", str(error.value))


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_coco_agrees_with_pycocotools(
    shared_data, capsys: pytest.CaptureFixture, split: str
) -> None:
    root = shared_data("coco_mini")
    path = root / "annotations" / f"instances_{split}.json"
    data = read_coco(path, root / split, box_policy="keep")
    reference = COCO(str(path))
    capsys.readouterr()  # pycocotools prints
    assert sorted(data.image_ids.tolist()) == sorted(reference.getImgIds())
    assert data.class_map.source_ids == tuple(sorted(reference.getCatIds()))
    assert data.crowd.sum() > 0
    for index, image_id in enumerate(data.image_ids.tolist()):
        theirs = reference.loadAnns(reference.getAnnIds(imgIds=image_id, iscrowd=None))
        rows = slice(data.offsets[index], data.offsets[index + 1])
        assert data.ids[rows].tolist() == [record["id"] for record in theirs]
        indices = index_of(data.labels[rows]).tolist()
        assert [data.class_map.source_id_of(index) for index in indices] == [
            record["category_id"] for record in theirs
        ]
        assert data.crowd[rows].tolist() == [bool(record["iscrowd"]) for record in theirs]
        xywh = np.array([record["bbox"] for record in theirs]).reshape(-1, 4)
        np.testing.assert_allclose(
            data.boxes[rows], np.hstack((xywh[:, :2], xywh[:, :2] + xywh[:, 2:])), atol=1e-4
        )
        np.testing.assert_allclose(
            data.areas[rows], [record["area"] for record in theirs], rtol=1e-6
        )
        record = reference.imgs[image_id]
        assert data.image_files[index] == str(root / split / record["file_name"])
        assert data.image_sizes[index].tolist() == [record["height"], record["width"]]


# ---- as exporters write it ----


def as_text(record: dict) -> dict:
    """The numbers of a record as text."""
    return {
        key: [str(v) for v in value]
        if key == "bbox"
        else f" {value} "
        if type(value) in (int, float)
        else value
        for key, value in record.items()
    }


def test_text_that_is_a_number_reads_as_the_number(tmp_path: Path) -> None:
    plain = read_coco(write(tmp_path, CONTENT), None)
    text = {table: [as_text(record) for record in records] for table, records in CONTENT.items()}
    read = read_coco(write(tmp_path, text), None)
    for name in ("image_ids", "image_sizes", "boxes", "labels", "areas", "crowd", "ids"):
        np.testing.assert_array_equal(getattr(read, name), getattr(plain, name), err_msg=name)
    assert read.class_map == plain.class_map


@pytest.mark.parametrize(
    ("flag", "crowd"), [("0", False), ("1", True), (True, True), ("false", False), ("", False)]
)
def test_a_crowd_flag_however_it_is_written(tmp_path: Path, flag: object, crowd: bool) -> None:
    data = read_coco(write(tmp_path, changed("annotations", 2, iscrowd=flag)), None)
    assert data.crowd.tolist() == [True, False, crowd]


@pytest.mark.parametrize("flag", [2, "2", "perhaps", -1, [], 10**400])
def test_a_crowd_flag_that_is_none_is_refused_by_name(tmp_path: Path, flag: object) -> None:
    path = write(tmp_path, changed("annotations", 2, iscrowd=flag))
    with pytest.raises(
        AnnotationError, match=r"annotations\[2\] has iscrowd .*, expected 0, 1, true or false"
    ) as caught:
        read_coco(path, None)
    assert len(str(caught.value)) < 400


def test_numbers_of_many_digits_are_no_boxes_and_no_ids(tmp_path: Path) -> None:
    huge = 10**400
    path = write(tmp_path, changed("annotations", 2, bbox=[1, 2, huge, -huge]))
    assert read_coco(path, None).dropped == {"box with a number that is not finite": 1}
    for key in ("id", "image_id", "category_id"):
        path = write(tmp_path, changed("annotations", 2, **{key: huge}))
        with pytest.raises(AnnotationError, match=rf"annotations\[2\] has {key} 1000") as caught:
            read_coco(path, None)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("area", [-1, float("nan"), float("inf"), -(10**400)])
def test_an_area_that_is_none_is_the_boxes_and_counted(tmp_path: Path, area: object) -> None:
    data = read_coco(write(tmp_path, changed("annotations", 1, area=area)), None)
    assert data.areas.tolist() == [150, 12, 42]
    assert data.dropped == {"area that is none, replaced by the box's": 1}
    assert read_coco(write(tmp_path, changed("annotations", 1, area=0)), None).areas[0] == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_json_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, CONTENT)
    path.write_bytes(path.read_text().encode(encoding))
    assert len(read_coco(path, None)) == 3
    path.write_bytes(b'{"images": "caf\xe9"}')
    with pytest.raises(AnnotationError, match=r"byte 0xe9 at offset 15 .*is not UTF-8"):
        read_coco(path, None)


def test_json_that_is_nested_without_end(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="is nested too deeply"):
        read_coco(write(tmp_path, "[" * 100_000), None)


def roboflow(**categories_of: int) -> dict:
    """CONTENT with an exporter's parent of the other classes; name -> category id to be used."""
    content = copy.deepcopy(CONTENT)
    parent = {"id": 0, "name": "things", "supercategory": "none"}
    for category in content["categories"]:
        category["supercategory"] = "things"
    content["categories"] = [parent, *content["categories"]]
    content["annotations"][0].update(categories_of)
    return content


def test_an_unused_parent_of_all_used_classes_is_no_class(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, roboflow()), None)
    assert data.class_map.names == ("car", "toothbrush")
    (note,) = data.notes
    assert "things is no class: no box has it" in note
    used = read_coco(write(tmp_path, roboflow(category_id=0)), None)
    assert used.class_map.names == ("things", "car", "toothbrush")
    assert used.notes == ()
    named = read_coco(write(tmp_path, roboflow()), None, classes=["things", "car"])
    assert named.class_map.names == ("things", "car")
    content = roboflow()
    content["categories"][1]["supercategory"] = "tools"  # of a class with boxes
    assert len(read_coco(write(tmp_path, content), None).class_map) == 3
    empty = roboflow() | {"annotations": []}
    assert len(read_coco(write(tmp_path, empty), None).class_map) == 3


def test_doubts_are_noted_with_the_file(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.3, 0.4]
    (note,) = read_coco(write(tmp_path, content), None).notes
    assert re.search(r"instances\.json: all 3 boxes lie within 0\.\.1 px of images", note)


def test_line_breaks_in_a_class_name_are_spaces(tmp_path: Path) -> None:
    path = write(tmp_path, changed("categories", 0, name=" tooth\nbrush\t"))
    assert read_coco(path, None).class_map.names == ("car", "tooth brush")


def test_many_classes_are_read_in_linear_time(tmp_path: Path) -> None:
    num = 100_000  # so many that looking through all classes for each would never end
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": num - n, "bbox": [0, 0, 2, 2]}
            for n in range(num)
        ],
        "categories": [{"id": n + 1, "name": f"c{n}"} for n in range(num)],
    }
    data = read_coco(write(tmp_path, content), None)
    assert data.labels.tolist() == list(range(num, 0, -1))


def test_the_largest_side_is_a_size_and_one_px_more_is_none(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, changed("images", 0, width=1_000_000)), None)
    assert data.image_sizes[0].tolist() == [50, 1_000_000]
    with pytest.raises(AnnotationError, match=r"images\[0\] has width 1000001, expected px up to"):
        read_coco(write(tmp_path, changed("images", 0, width=1_000_001)), None)


@pytest.mark.parametrize("annotations", ["missing", None, []])
def test_a_test_set_has_images_and_classes_without_truth(
    annotations: object, tmp_path: Path
) -> None:
    content = {**CONTENT, "annotations": annotations}
    if annotations == "missing":
        del content["annotations"]
    path = write(tmp_path, content)
    data = read_coco(path, None, may_lack_truth=True)
    assert data.without_truth == "instances.json has no annotations"
    assert data.image_ids.tolist() == [70, 9, 12]
    assert data.image_sizes.tolist() == [[50, 100], [0, 0], [20, 30]]
    assert data.class_map.source_ids == (3, 90)
    assert (data.num_objects, len(data.target(0))) == (0, 0)
    chosen = read_coco(path, None, may_lack_truth=True, classes=["toothbrush"])
    assert chosen.class_map.source_ids == (90,)
    if annotations == []:  # which is a set known to have no object where it is not one for testing
        assert read_coco(path, None).without_truth is None
    else:
        with pytest.raises(NoTruthError, match=r"instances\.json is not COCO .*neither trained"):
            read_coco(path, None)


def test_a_test_set_with_annotations_is_read_as_any_other(tmp_path: Path) -> None:
    path = write(tmp_path, CONTENT)
    data, other = read_coco(path, None, may_lack_truth=True), read_coco(path, None)
    assert data.without_truth is None
    assert data.boxes.tolist() == other.boxes.tolist()


@pytest.mark.parametrize("missing", ["images", "categories"])
def test_a_test_set_needs_images_and_classes(missing: str, tmp_path: Path) -> None:
    content = {key: value for key, value in CONTENT.items() if key not in (missing, "annotations")}
    with pytest.raises(AnnotationError, match=rf"it has no '{missing}'|has no 'annotations'"):
        read_coco(write(tmp_path, content), None, may_lack_truth=True)
