"""COCO's records by their types and one by one: the same tables wherever both read a file."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from detres.benchmarks.annotations import write_annotations
from detres.detection.data import coco_tables
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.coco_tables import CocoTables, read_tables

CONTENT = {
    "info": {"year": 2017},
    "images": [
        {"id": 70, "file_name": "b.jpg", "height": 50, "width": 100, "license": 3},
        {"id": 9, "file_name": "sub/a.jpg"},
    ],
    "annotations": [
        {
            "segmentation": [[1.5, 2, 3e0, -4]],
            "area": 99.5,
            "iscrowd": 1,
            "image_id": 70,
            "bbox": [10.25, 20, 30, 5],
            "category_id": 3,
            "id": 2,
        },
        {"image_id": 9, "category_id": 3, "bbox": [0.5, 0, 6, 7], "note": 'caf\u00e9 \\ " \n'},
    ],
    "categories": [{"id": 3, "name": "car", "supercategory": "vehicle"}],
}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "instances.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def require_same(found: CocoTables, expected: CocoTables) -> None:
    for field in fields(CocoTables):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            assert ours.shape == theirs.shape, field.name
            assert ours.tobytes() == theirs.tobytes(), field.name  # -0.0 and NaN too
        else:
            assert ours == theirs, field.name


def by_types(path: Path) -> CocoTables | None:
    return coco_tables._by_types(path.read_bytes())


def one_by_one(path: Path, may_lack_truth: bool = False) -> CocoTables:
    return coco_tables._one_by_one(path, may_lack_truth)


def what_comes_of(read: Callable[..., CocoTables], path: Path) -> CocoTables | str:
    """The tables, or what is said of the fault."""
    try:
        return read(path, may_lack_truth=False)
    except AnnotationError as error:
        return str(error)


# ---- random files ----


def a_number(rng: random.Random) -> float:
    return rng.choice(
        [
            rng.randint(-5, 700),
            rng.uniform(-1, 700),
            round(rng.uniform(0, 700), 2),
            rng.uniform(0, 1) * 10.0 ** rng.randint(-320, 300),
            rng.randint(-(2**70), 2**70),
            -0.0,
            0,
        ]
    )


def a_text(rng: random.Random) -> str:
    return "x" + "".join(rng.choice('ab/\\"\u00e9\u4e2d\U0001f600\n\t \x7f') for _ in range(6))


def an_unread(rng: random.Random, depth: int = 0) -> object:
    if depth == 3 or rng.random() < 0.4:
        return rng.choice([None, True, a_number(rng), a_text(rng), "", [], {}])
    if rng.random() < 0.5:
        return [an_unread(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {a_text(rng): an_unread(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def record_of(rng: random.Random, needed: dict, optional: dict) -> dict:
    """A record with the needed values, each optional one, null or nothing, and unread ones, in any
    order.
    """
    record = dict(needed)
    for key, value in optional.items():
        if rng.random() < 0.7:
            record[key] = value if rng.random() < 0.8 else None
    for _ in range(rng.randint(0, 2)):
        record[a_text(rng)] = an_unread(rng)
    pairs = list(record.items())
    rng.shuffle(pairs)
    return dict(pairs)


def a_file(rng: random.Random) -> dict:
    def integer() -> int:
        return rng.choice([rng.randint(0, 9), rng.randint(-(2**63), 2**63 - 1)])

    content = {
        "images": [
            record_of(
                rng,
                {"id": integer(), "file_name": a_text(rng)},
                {"height": rng.randint(0, 900), "width": integer()},
            )
            for _ in range(rng.randint(0, 4))
        ],
        "annotations": [
            record_of(
                rng,
                {
                    "image_id": integer(),
                    "category_id": integer(),
                    "bbox": [a_number(rng) for _ in range(4)],
                },
                {
                    "id": integer(),
                    "area": a_number(rng),
                    "iscrowd": rng.choice([0, 1, True, False]),
                    "segmentation": an_unread(rng),
                },
            )
            for _ in range(rng.randint(0, 9))
        ],
        "categories": [
            record_of(rng, {"id": integer(), "name": a_text(rng)}, {"supercategory": a_text(rng)})
            for _ in range(rng.randint(0, 3))
        ],
        "info": an_unread(rng),
    }
    pairs = list(content.items())
    rng.shuffle(pairs)
    return dict(pairs)


@pytest.mark.parametrize("together", [1, 4, 5000])
def test_random_files_are_the_same_tables_by_types_and_one_by_one(
    together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_tables, "_TOGETHER", together)
    rng, seen = random.Random(together), 0
    for _ in range(150):
        content = a_file(rng)
        spaced = rng.choice([None, 1])
        text = json.dumps(content, ensure_ascii=rng.random() < 0.5, indent=spaced)
        path = written(tmp_path, text)
        found = by_types(path)
        assert found is not None, text
        require_same(found, one_by_one(path))
        seen += len(found.ids)
    assert seen > 300


def test_a_damaged_file_is_never_read_by_types_alone(tmp_path: Path) -> None:
    """Bytes changed, lost or doubled anywhere: what is read by types is what is read one by one."""
    rng, sound, refused = random.Random(0), json.dumps(CONTENT).encode(), 0
    path = tmp_path / "instances.json"
    for _ in range(3000):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(data))
            cut = data[at : at + rng.randint(0, 3)]
            new = rng.choice(
                [b"", cut * 2, bytes([rng.randrange(256)]), b"0", b'"', b"]", b"e9", b"NaN", b"-"]
            )
            data[at : at + len(cut)] = new
        path.write_bytes(data)
        found = by_types(path)
        if found is None:
            refused += 1
        else:
            require_same(found, one_by_one(path))
    assert 1000 < refused < 2900


# ---- values that COCO's own files do not have ----


@pytest.mark.parametrize(
    ("table", "key", "text"),
    [
        ("annotations", "image_id", "70.0"),
        ("annotations", "image_id", '"70"'),
        ("annotations", "id", str(2**64)),
        ("annotations", "id", "true"),
        ("annotations", "category_id", "null"),
        ("annotations", "area", "NaN"),
        ("annotations", "area", "1e999"),
        ("annotations", "area", "1" + "0" * 400),
        ("annotations", "bbox", "[1, 2, 3]"),
        ("annotations", "bbox", "[1, 2, 3, 4, 5]"),
        ("annotations", "bbox", '["1", 2, 3, 4]'),
        ("annotations", "bbox", "[1, 2, true, 4]"),
        ("annotations", "bbox", "[1, 2, Infinity, 4]"),
        ("annotations", "iscrowd", "2"),
        ("annotations", "iscrowd", '"1"'),
        ("annotations", "segmentation", "NaN"),
        ("images", "height", "50.0"),
        ("images", "file_name", '" "'),
        ("images", "file_name", '"a\\u0000.jpg"'),
        ("images", "file_name", '"\\ud800.jpg"'),
        ("images", "file_name", "7"),
        ("categories", "name", '""'),
        ("categories", "supercategory", "[1]"),
        ("categories", "id", "null"),
    ],
)
def test_a_value_of_another_kind_is_left_to_reading_one_by_one(
    table: str, key: str, text: str, tmp_path: Path
) -> None:
    content = json.loads(json.dumps(CONTENT))
    content[table][0][key] = "HERE"
    path = written(tmp_path, json.dumps(content).replace('"HERE"', text))
    assert by_types(path) is None
    expected, found = what_comes_of(one_by_one, path), what_comes_of(read_tables, path)
    if isinstance(expected, CocoTables):
        require_same(found, expected)
    else:
        assert found == expected


def test_of_a_key_given_twice_the_last_counts_in_both_ways(tmp_path: Path) -> None:
    text = json.dumps(CONTENT).replace('"id": 70,', '"id": 1, "id": 70,')
    path = written(tmp_path, text[:-1] + ', "categories": [{"id": 8, "name": "dog"}]}')
    found = by_types(path)
    require_same(found, one_by_one(path))
    assert found.image_ids[0] == 70
    assert found.category_names == ["dog"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings_are_read_one_by_one(encoding: str, tmp_path: Path) -> None:
    path = written(tmp_path, CONTENT)
    plain = by_types(path)
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    assert by_types(path) is None
    require_same(read_tables(path, may_lack_truth=False), plain)


@pytest.mark.parametrize("before", [0, (1 << 20) - 5])
def test_a_byte_that_is_no_utf8_in_a_field_nobody_reads_is_named(
    before: int, tmp_path: Path
) -> None:
    path = written(tmp_path, CONTENT)
    data = path.read_bytes().replace(b'"info"', b'"pad": "' + b"x" * before + b'", "info"')
    fine, wrong = (
        data.replace(b'"year"', b'"caf' + each + b'"') for each in (b"\xc3\xa9", b"\xe9")
    )
    path.write_bytes(fine)
    assert by_types(path) is not None
    path.write_bytes(wrong)
    assert by_types(path) is None
    with pytest.raises(AnnotationError, match=r"byte 0xe9 at offset \d+ .*is not UTF-8"):
        read_tables(path, may_lack_truth=False)


def test_numbers_by_hand(tmp_path: Path) -> None:
    found = by_types(written(tmp_path, CONTENT))
    assert found.image_ids.tolist() == [70, 9]
    assert (found.heights.tolist(), found.widths.tolist()) == ([50, 0], [100, 0])
    assert (found.ids.tolist(), found.num_renumbered) == ([2, 3], 1)
    assert found.owners.tolist() == [70, 9]
    assert found.xywh.tolist() == [[10.25, 20, 30, 5], [0.5, 0, 6, 7]]
    assert found.areas[0] == 99.5
    assert found.area_given.tolist() == [True, False]
    assert found.crowd.tolist() == [True, False]
    assert found.supercategories == ["vehicle"]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_s_own_files_are_read_by_types(split: str, shared_data) -> None:
    path = shared_data("coco_mini") / "annotations" / f"instances_{split}.json"
    found = by_types(path)
    assert found is not None
    require_same(found, one_by_one(path))


def test_a_large_file_takes_little_more_memory_than_its_bytes(tmp_path: Path) -> None:
    path, num_boxes = tmp_path / "instances.json", 60_000
    write_annotations(path, num_images=500, num_boxes=num_boxes)
    tracemalloc.start()
    found = read_tables(path, may_lack_truth=False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.ids) == num_boxes
    # 72 bytes of columns and 64 of a view of its text; an object for each takes 390 more
    assert (most - path.stat().st_size) / num_boxes < 300
