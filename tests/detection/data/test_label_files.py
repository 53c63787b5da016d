from __future__ import annotations

from pathlib import Path

import pytest

from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.label_files import image_ids, match_labels


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def matched(root: Path, labels: str = "l", images: str = "i", **more: object) -> dict[str, str]:
    found = match_labels(root, [labels], [images], suffix=".xml", **more)
    return {
        str(Path(image).relative_to(root)): None if label is None else str(label.relative_to(root))
        for image, label in zip(found.images, found.labels, strict=True)
    }


def test_a_label_is_of_the_image_at_its_path(tmp_path):
    tree(tmp_path, "l/a.xml", "l/x/a.xml", "l/x/b.XML", "i/a.jpg", "i/x/a.png", "i/x/b.jpg")
    assert matched(tmp_path) == {
        "i/a.jpg": "l/a.xml",
        "i/x/a.png": "l/x/a.xml",
        "i/x/b.jpg": "l/x/b.XML",
    }


def test_else_of_the_one_image_of_its_stem_or_of_another_spelling(tmp_path):
    tree(tmp_path, "l/a.xml", "l/y/b.xml", "l/IMG_1.xml", "i/x/a.jpg", "i/b.jpg", "i/img_1.jpg")
    assert matched(tmp_path) == {
        "i/b.jpg": "l/y/b.xml",
        "i/img_1.jpg": "l/IMG_1.xml",
        "i/x/a.jpg": "l/a.xml",
    }


def test_a_stem_in_two_places_tells_none(tmp_path):
    tree(tmp_path, "l/a.xml", "l/b.xml", "i/x/a.jpg", "i/y/a.jpg", "i/b.jpg")
    assert matched(tmp_path) == {"i/b.jpg": "l/b.xml"}
    notes = match_labels(tmp_path, ["l"], ["i"], suffix=".xml").notes
    assert notes == [
        f"{tmp_path}/l: 1 .xml files belong to no image and are left out, such as a.xml",
        f"{tmp_path}/l: 2 images have no .xml file and are left out, such as x/a.jpg",
    ]


def test_else_of_the_image_it_names(tmp_path):
    tree(tmp_path, "l/1.xml", "i/x/photo.jpg")
    named = {"1.xml": "C:\\mine\\photo.jpg"}
    assert matched(tmp_path, image_named_in=lambda path: named[path.name]) == {
        "i/x/photo.jpg": "l/1.xml"
    }


def test_of_two_suffixes_of_one_stem_the_usual_one_is_taken(tmp_path):
    tree(tmp_path, "l/a.xml", "i/a.gif", "i/a.jpg")
    assert matched(tmp_path) == {"i/a.jpg": "l/a.xml"}


def test_images_without_label_stay_where_they_are_to(tmp_path):
    tree(tmp_path, "l/a.xml", "i/a.jpg", "i/b.jpg")
    assert matched(tmp_path, keep_unlabelled=True) == {"i/a.jpg": "l/a.xml", "i/b.jpg": None}


def test_two_labels_of_one_image_are_refused(tmp_path):
    tree(tmp_path, "l/a.xml", "l/x/a.xml", "i/a.jpg", "i/b.jpg")
    with pytest.raises(AnnotationError, match=r"a.xml and x/a.xml are both of image .*i/a.jpg"):
        match_labels(tmp_path, ["l"], ["i"], suffix=".xml")


def test_labels_of_another_set_are_refused(tmp_path):
    tree(tmp_path, "l/a.xml", "l/b.xml", "l/c.xml", "i/a.jpg", "i/z.jpg")
    with pytest.raises(
        AnnotationError, match=r"2 of 3 .xml files in .*l belong to no image in .*i"
    ):
        match_labels(tmp_path, ["l"], ["i"], suffix=".xml")
    tree(tmp_path, "i/b.jpg")
    assert len(match_labels(tmp_path, ["l"], ["i"], suffix=".xml").images) == 2


def test_what_is_not_there_is_named(tmp_path):
    tree(tmp_path, "l/a.txt", "i/a.jpg")
    with pytest.raises(FileNotFoundError, match=r"no annotation folder .*x: it does not exist"):
        match_labels(tmp_path, ["x"], ["i"], suffix=".xml")
    with pytest.raises(FileNotFoundError, match=r"no image folder .*a.jpg: it is a file"):
        match_labels(tmp_path, ["l"], ["i/a.jpg"], suffix=".xml")
    with pytest.raises(AnnotationError, match=r"l has no .xml file"):
        match_labels(tmp_path, ["l"], ["i"], suffix=".xml")


def test_ids_are_as_short_as_they_can_be():
    assert image_ids(["/d/x/a.jpg", "/d/y/b.png"]).tolist() == ["a", "b"]
    assert image_ids(["/d/x/a.jpg", "/d/y/a.png"]).tolist() == ["x/a", "y/a"]
    assert image_ids(["/d/a.jpg", "/d/a.png"]).tolist() == ["a.jpg", "a.png"]
    assert image_ids([]).tolist() == []
