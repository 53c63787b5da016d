"""Image files that were planted wrong are found by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detres.detection.data.image_findings import (
    copies_of_later,
    misfitting,
    seen_twice,
    unreadable,
    without_objects,
)
from tests.detection.data.planted import HEIGHT, WIDTH, parts, picture, told, write_split
from tests.images.test_decode import save
from tests.images.test_look_alikes import encoded

BOX = (10.0, 10.0, 60.0, 60.0)


def test_what_cannot_be_read_is_said_with_its_reason(tmp_path: Path) -> None:
    whole = save(picture(1), tmp_path / "whole.jpg").read_bytes()
    files = {
        "a.png": picture(0),
        "cut.jpg": whole[: len(whole) // 2],
        "empty.png": b"",
        "page.jpg": b"<html>not found</html>",
    }
    (finding,) = unreadable(parts(train=write_split(tmp_path, "train", files)))
    assert finding.count == 3
    said = [str(example) for example in finding.examples]
    assert said[0].startswith("train cut.jpg: cannot be read: ")
    assert "truncated" in said[0]
    assert said[1:] == [
        "train empty.png: cannot be read: the file is empty",
        "train page.jpg: cannot be read: it is a page of HTML, not an image",
    ]


def test_sizes_that_are_not_those_of_the_file(tmp_path: Path) -> None:
    files = {f"{name}.png": picture(seed) for seed, name in enumerate(("a", "b", "c", "d"))}
    sizes = {"b.png": (HEIGHT, WIDTH + 1), "c.png": (WIDTH, HEIGHT), "d.png": (0, 0)}
    found = misfitting(parts(train=write_split(tmp_path, "train", files, sizes=sizes)))
    assert told(found) == {
        "wrong_size": [
            "train b.png: the annotations say 161x96 px, the file is 160x96",
            "train c.png: the annotations say 96x160 px, the file is 160x96: width and height are "
            "exchanged",
        ]
    }


LYING = (100.0, 10.0, 150.0, 40.0)
"""A box that fits the 160x96 px stored, not the picture turned upright (96x160)."""
STANDING = (10.0, 100.0, 40.0, 150.0)


@pytest.mark.parametrize(
    ("orientation", "size", "box", "kind"),
    [
        (6, (WIDTH, HEIGHT), BOX, "exif_upright"),
        (6, (HEIGHT, WIDTH), BOX, "exif_stored"),
        (6, (0, 0), BOX, "exif_undecided"),
        (6, (0, 0), LYING, "exif_boxes"),
        (6, (0, 0), STANDING, "exif_upright"),
        (8, (WIDTH, HEIGHT), LYING, "exif_upright"),  # the sizes say so, whatever the boxes do
        (3, (HEIGHT, WIDTH), BOX, "exif_undecided"),  # the sizes cannot tell
        (2, (0, 0), LYING, "exif_undecided"),
        (6, (10, 10), BOX, "wrong_size"),
        (1, (HEIGHT, WIDTH), BOX, None),
    ],
)
def test_which_way_the_labels_are(
    tmp_path: Path, orientation: int, size: tuple[int, int], box: tuple, kind: str | None
) -> None:
    train = write_split(
        tmp_path,
        "train",
        {"a.jpg": picture(0)},
        [("a.jpg", "cat", box)],
        sizes={"a.jpg": size},
        orientations={"a.jpg": orientation},
    )
    found = misfitting(parts(train=train))
    assert [finding.kind for finding in found] == ([kind] if kind else [])
    if kind and kind != "wrong_size":
        assert str(found[0].examples[0]) == f"train a.jpg: EXIF orientation {orientation}"


def test_images_without_objects(tmp_path: Path) -> None:
    files = {"a.png": picture(0), "b.png": picture(1)}
    train = write_split(tmp_path, "train", files, [("b.png", "cat", BOX)])
    assert told(without_objects(parts(train=train))) == {"without_objects": ["train a.png"]}


def leaking(tmp_path: Path, copy: Callable[[np.ndarray], np.ndarray]) -> list:
    train = {f"{seed}.png": picture(seed) for seed in range(4)}
    val = {f"{seed}.png": picture(seed) for seed in range(10, 13)} | {"same.png": copy(picture(2))}
    return parts(train=write_split(tmp_path, "train", train), val=write_split(tmp_path, "val", val))


def test_a_leak_pixel_for_pixel(tmp_path: Path) -> None:
    planted = leaking(tmp_path, lambda image: image)
    (finding,) = seen_twice(planted)
    assert (finding.kind, finding.level, finding.count) == ("leak", "error", 1)
    example = finding.examples[0]
    assert str(example) == "val val/same.png: beside train train/2.png"
    assert [shown.file for shown in example.pictures] == [
        str(tmp_path / "val" / "same.png"),
        str(tmp_path / "train" / "2.png"),
    ]
    in_train, in_val = copies_of_later(planted)
    assert in_train.tolist() == [False, False, True, False]
    assert not in_val.any()


def test_a_leak_by_a_copy(tmp_path: Path) -> None:
    planted = leaking(tmp_path, lambda image: encoded(image, 60))
    (finding,) = seen_twice(planted)
    assert (finding.kind, finding.level) == ("near_leak", "error")
    assert str(finding.examples[0]) == "val val/same.png: beside train train/2.png"
    assert copies_of_later(planted)[0].tolist() == [False, False, True, False]


def test_the_same_picture_twice_in_a_split(tmp_path: Path) -> None:
    """Each of three copies but the first is one too many; one in val is a leak, said once."""
    train = {"a.png": picture(0), "b.png": picture(1), "c.png": picture(0), "d.png": picture(0)}
    val = {"e.png": picture(0), "f.png": encoded(picture(1), 60), "g.png": picture(7)}
    found = seen_twice(
        parts(train=write_split(tmp_path, "train", train), val=write_split(tmp_path, "val", val))
    )
    assert told(found) == {
        "leak": ["val val/e.png: beside train train/a.png"],
        "same_picture": [
            "train train/c.png: beside train train/a.png",
            "train train/d.png: beside train train/a.png",
        ],
        "near_leak": ["val val/f.png: beside train train/b.png"],
    }
    assert {finding.kind: finding.level for finding in found}["same_picture"] == "warning"


def test_frames_of_one_scene_are_no_leak(tmp_path: Path) -> None:
    """They are told where they look much alike, and stay in a clean copy."""
    frame = picture(0)
    frame[40:46, 60:70] = 255 - frame[40:46, 60:70]
    planted = parts(
        train=write_split(tmp_path, "train", {"a.png": picture(0)}),
        val=write_split(tmp_path, "val", {"b.png": frame}),
    )
    (finding,) = seen_twice(planted)
    assert (finding.kind, finding.level) == ("alike_across", "warning")
    assert not copies_of_later(planted)[0].any()


def test_files_that_cannot_be_read_are_no_copies_of_each_other(tmp_path: Path) -> None:
    train = write_split(tmp_path, "train", {"a.png": b"", "b.png": b""})
    assert seen_twice(parts(train=train)) == []
