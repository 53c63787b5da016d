from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detres.config import ConfigError, check
from detres.detection.config import DataConfig
from detres.detection.data.read import read_split, trained_on
from detres.detection.data.split import (
    SplitError,
    drawn_split,
    file_names,
    groups_of,
    read_split_file,
    source_of,
    write_split,
)
from tests.detection.configs import box, coco_config
from tests.helpers import write_coco

NOTHING = np.zeros((0, 0), bool)
"""Which classes images show, where it is not known."""


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a/b/cat.jpg", "cat"),
        ("cat_jpg.rf.0123456789abcdef0123456789abcdef.jpg", "cat"),
        ("cat_png.rf.AbC123.jpg", "cat"),
        ("clip_mp4-0012_jpg.rf.0a1b.jpg", "clip_mp4-0012"),
        ("cat_crop_3.jpg", "cat"),
        ("cat-aug12.png", "cat"),
        ("cat_flip_rot90.png", "cat"),
        ("cat (2).jpg", "cat"),
        ("cat - Copy (3).jpg", "cat"),
        ("cat_0_0_512_512.png", "cat"),
        ("P0001__1__0___512.png", "P0001"),
        ("cat_0_512.png", "cat_0_512"),
        ("crop_7.jpg", "crop_7"),  # nothing would be left
        ("backflip.jpg", "backflip"),
        ("cats_0001.jpg", "cats_0001"),
    ],
)
def test_the_source_of_a_picture_is_told_by_its_name(name, source):
    assert source_of(name) == source


def test_frames_are_told_by_a_number_at_the_end_behind_a_name():
    names = [
        "a_10.jpg",
        "a_2.jpg",
        "b1.jpg",
        "000001.jpg",
        "000002.jpg",
        "2008_000008.jpg",
        "A_3.png",
    ]
    groups = sorted(groups_of(names).values())
    assert groups == [[1, 6, 0], [2], [3], [4], [5]]
    assert groups_of([]) == {}


def videos(*lengths: int) -> list[str]:
    return [
        f"video{chr(97 + v)}_{n:04}.jpg" for v, length in enumerate(lengths) for n in range(length)
    ]


def held(names: list[str], share: float = 0.2, seed: int = 0) -> list[str]:
    return [names[row] for row in drawn_split(names, share, seed, "t", NOTHING).val]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lengths", [(10,) * 5, (10, 10), (10, 10, 10), (7, 9, 30, 4, 12)])
def test_no_video_is_on_both_sides(lengths, seed):
    names = videos(*lengths)
    split = drawn_split(names, 0.2, seed, "t", NOTHING)
    sides = [{names[row].partition("_")[0] for row in rows} for rows in (split.train, split.val)]
    assert not sides[0] & sides[1]
    assert sides[0]
    assert sides[1]
    assert len(split.val) <= len(names) / 2
    assert "are by their names frames or copies of others, and stay with them" in split.note


def test_one_video_alone_gives_a_stretch_of_it():
    names = videos(100)
    numbers = sorted(int(name[-8:-4]) for name in held(names))
    assert numbers == list(range(numbers[0], numbers[0] + 20))
    assert "100 images are by their names one sequence, 'videoa_*', of which 20 in a row" in (
        drawn_split(names, 0.2, 0, "t", NOTHING).note
    )
    assert len({tuple(held(names, seed=seed)) for seed in range(8)}) > 3


def test_a_long_video_among_few_pictures_is_divided():
    names = [*videos(200), "x.jpg", "y.jpg"]
    split = drawn_split(names, 0.2, 0, "t", NOTHING)
    assert len(split.val) == 40


def test_less_than_half_the_share_is_too_little():
    """Of 100 images 20 are wanted: 8 or 9 pictures do not do beside two long videos, 10 do."""
    for few, wanted in ((8, 20), (9, 20), (10, 10)):
        names = [
            *videos(50 - few // 2, 50 - few + few // 2),
            *(f"{c}.jpg" for c in "pqrstuvwxy"[:few]),
        ]
        assert len(names) == 100
        assert len(held(names)) == wanted


def test_a_stretch_may_be_anywhere_in_a_video():
    assert {tuple(held(videos(2), seed=seed)) for seed in range(20)} == {
        (name,) for name in videos(2)
    }


def test_copies_of_a_picture_stay_together():
    hashes = ["0a", "1b", "2c"]
    names = [f"photo{chr(97 + n)}x_jpg.rf.{code}.jpg" for n in range(20) for code in hashes]
    counts = Counter(source_of(name) for name in held(names))
    assert set(counts.values()) == {3}
    assert sum(counts.values()) == 12


@given(
    stems=st.sets(st.text("ab01_", min_size=1, max_size=6), min_size=2, max_size=40),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_every_image_is_on_one_side_whatever_the_order(stems, share, seed):
    names = [f"{stem}.jpg" for stem in sorted(stems)]
    split = drawn_split(names, share, seed, "t", NOTHING)
    assert sorted([*split.train, *split.val]) == list(range(len(names)))
    assert len(split.train)
    assert len(split.val)
    assert set(held(names[::-1], share, seed)) == set(held(names, share, seed))


def test_pictures_of_their_own_give_the_share_and_stay_when_some_are_added():
    names = [f"{number:04}.jpg" for number in range(200)]
    first = set(held(names))
    assert len(first) == 40
    assert len(first - set(held([*names, "9998.jpg", "9999.jpg"]))) <= 2
    assert set(held(names, seed=1)) != first


def test_too_few_images_are_told():
    assert len(held(["a.jpg", "b.jpg"])) == 1
    assert len(held(["a.jpg", "b.jpg"], share=0.99)) == 1
    with pytest.raises(SplitError, match="t: 1 image cannot be divided"):
        drawn_split(["a.jpg"], 0.2, 0, "t", NOTHING)


def test_names_in_a_file_are_as_short_as_they_can_be():
    assert file_names(["/d/x/a.jpg", "/d/y/b.jpg"]) == ["a.jpg", "b.jpg"]
    assert file_names(["/d/x/a.jpg", "/d/y/a.jpg"]) == ["x/a.jpg", "y/a.jpg"]
    assert file_names([]) == []


def test_a_split_file_is_read_back(tmp_path):
    path = tmp_path / "split.json"
    write_split(path, ["/d/a.jpg", "/d/c.jpg"], ["/d/b.jpg"])
    assert json.loads(path.read_text()) == {"train": ["a.jpg", "c.jpg"], "val": ["b.jpg"]}
    split = read_split_file(path, ["/e/c.jpg", "/e/b.jpg", "/e/a.jpg"], "t")
    assert split.train.tolist() == [0, 2]
    assert split.val.tolist() == [1]
    assert split.note == f"1 of 3 images are val by {path}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no split file: expected an object with the lists train and val"),
        ('{"train": ["a.jpg"]}', "val is None"),
        ('{"train": ["a.jpg"], "val": [1]}', r"val is \[1\]"),
        ('{"train": ["a.jpg", "b.jpg"], "val": ["b.jpg"]}', "b.jpg is listed twice"),
        ('{"train": ["a.jpg", "a.jpg"], "val": ["b.jpg"]}', "listed twice"),
        ('{"train": ["a.jpg"], "val": ["z.jpg"]}', "1 of its images are not in t, such as z.jpg"),
        ('{"train": [], "val": ["b.jpg"]}', "1 images of t are not in it, such as a.jpg"),
        ('{"train": [], "val": ["a.jpg", "b.jpg"]}', "has no image of train"),
        ('{"val": [], "train": ["a.jpg", "b.jpg"]}', "has no image of val"),
    ],
)
def test_a_wrong_split_file_is_named(tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(SplitError, match=message) as caught:
        read_split_file(path, ["/d/a.jpg", "/d/b.jpg"], "t")
    assert str(path) in str(caught.value)


def whole(root, **more) -> DataConfig:
    boxes = [{**box(number), "id": number} for number in range(1, 11)]
    write_coco(root, [(50, 60)] * 10, boxes)
    data = coco_config(root).data.model_dump(mode="json")
    return check(DataConfig, {**data, "val": [], "val_images": [], **more}, "test")


def test_a_share_of_train_is_val(tmp_path):
    data = whole(tmp_path, val_share=0.3)
    train, val = read_split(data, "train"), read_split(data, "val")
    assert (len(train), len(val)) == (7, 3)
    assert sorted([*train.image_ids, *val.image_ids]) == list(range(1, 11))
    assert any("3 of 10 images are val, drawn with seed 0" in note for note in val.notes)
    other = read_split(whole(tmp_path, val_share=0.3, split_seed=1), "val")
    assert other.image_ids.tolist() != val.image_ids.tolist()


def test_a_split_file_says_the_same_as_the_draw_that_it_is_of(tmp_path):
    data = whole(tmp_path / "d", val_share=0.3)
    train, val = read_split(data, "train"), read_split(data, "val")
    path = tmp_path / "split.json"
    write_split(path, train.image_files.tolist(), val.image_files.tolist())
    again = whole(tmp_path / "d", split=str(path))
    assert read_split(again, "train").image_ids.tolist() == train.image_ids.tolist()
    assert read_split(again, "val").image_ids.tolist() == val.image_ids.tolist()
    moved = whole(tmp_path / "moved", split=str(path))
    assert read_split(moved, "val").image_ids.tolist() == val.image_ids.tolist()


def test_what_was_held_out_was_not_trained_on(tmp_path):
    data = whole(tmp_path, val_share=0.3)
    assert trained_on(data, data, "val") == []
    assert trained_on(whole(tmp_path, val_share=0.2), data, "val") == ["annotations.json"]
    assert trained_on(whole(tmp_path, val_share=0.3, split_seed=1), data, "val") != []
    assert trained_on(whole(tmp_path, hold_out=3), data, "val") != []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"val_share": 0.2, "val": ["a"], "val_images": ["b"]}, "val_share makes some images of"),
        ({"val_share": 0.2, "hold_out": 3}, "hold_out and val_share both say what is val"),
        ({"val_share": 1.0}, "val_share"),
        ({"split": "x.json", "val": ["a"], "val_images": ["b"]}, "split makes some images"),
        ({"val_share": 0.2, "train": [], "train_images": []}, "train is missing"),
    ],
)
def test_val_is_said_in_one_way(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        whole(tmp_path, **more)


def drawn_by_class(counts: dict[str, int], share: float = 0.2, seed: int = 0):
    """The split of images NAME_1, NAME_2, ..., of which those not called neg show the class NAME;
    and how many of each name are val.
    """
    names = [f"{name}_{number}.jpg" for name, count in counts.items() for number in range(count)]
    classes = [name for name in counts if not name.startswith(("neg", "video"))]
    shown = np.array([[name.startswith(f"{of}_") for of in classes] for name in names])
    split = drawn_split(names, share, seed, "t", shown)
    held = Counter(names[row].partition("_")[0] for row in split.val)
    assert set(split.train) | set(split.val) == set(range(len(names)))
    assert not set(split.train) & set(split.val)
    return split, held


@pytest.mark.parametrize("seed", range(6))
def test_files_called_by_their_class_leave_every_class_in_train_and_in_val(seed):
    counts = {"apple": 30, "banana": 30, "orange": 30, "pear": 10}
    split, held = drawn_by_class(counts, seed=seed)
    assert held == {"apple": 6, "banana": 6, "orange": 6, "pear": 2}
    assert "of 4 sequences of names, such as 'apple_*', a part in a row is val" in split.note


@pytest.mark.parametrize("seed", range(6))
def test_val_is_never_background_alone(seed):
    _, held = drawn_by_class({"neg": 15, "obj": 85}, seed=seed)
    assert held["obj"] == 17
    assert held["neg"] in (0, 15)


def test_a_video_with_the_only_images_of_a_class_stays_in_train_where_others_can_be_held_out():
    names = [f"cam{video}_{frame}.jpg" for video in range(10) for frame in range(10)]
    shown = np.zeros((100, 2), bool)
    shown[:, 0] = True
    shown[37, 1] = True  # in cam3 alone
    for seed in range(8):
        split = drawn_split(names, 0.2, seed, "t", shown)
        held = Counter(names[row].partition("_")[0] for row in split.val)
        assert set(held.values()) == {10}
        assert len(held) == 2
        assert "cam3" not in held


def test_copies_of_one_picture_are_on_one_side_of_a_part_in_a_row():
    names = [f"{kind}_{n}_aug_{copy}.jpg" for kind in "ab" for n in range(20) for copy in range(3)]
    shown = np.array([[name.startswith("a"), name.startswith("b")] for name in names])
    for seed in range(10):
        split = drawn_split(names, 0.25, seed, "t", shown)
        sides = [{source_of(names[row]) for row in rows} for rows in (split.train, split.val)]
        assert not sides[0] & sides[1]
        assert 20 <= len(split.val) <= 30
