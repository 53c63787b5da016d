"""Results files: what is written is read again, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.evaluation.result_files import (
    DetectionFileError,
    _by_types,
    _one_by_one,
    read_coco_results,
    read_voc_results,
    to_coco_results,
    to_voc_results,
)
from detres.detection.structures import Predictions
from tests.detection.evaluation.scenes import predictions_of, random_scene, truth_of

TRUTH = truth_of([(7, 1, (0, 0, 10, 10))], [7, 9])
RECORD = {"image_id": 7, "category_id": 17, "bbox": [1.5, 2, 3, 4], "score": 0.25}
HIT = (7, 2, 0.25, (1.5, 2, 4.5, 6))
"""RECORD as a prediction."""

NAMED = truth_of([("000007", 1, (0, 0, 10, 10))], ["000007", "a b"])


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def same(a: Predictions, b: Predictions) -> None:
    assert a.class_map == b.class_map
    for name in ("image_ids", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_coco_record_by_hand(tmp_path: Path) -> None:
    found = read_coco_results(write(tmp_path / "d.json", [RECORD]), TRUTH)[0]
    same(found, predictions_of([(7, 2, 0.25, (1.5, 2, 4.5, 6))]))
    assert to_coco_results(found) == [RECORD]


@pytest.mark.parametrize("seed", range(3))
def test_coco_results_come_back_exactly_and_pycocotools_reads_them(
    seed: int, tmp_path: Path
) -> None:
    truth, predictions = random_scene(seed)
    rng = np.random.default_rng(seed)
    noise = rng.random((len(predictions), 4), np.float32)
    predictions = Predictions(
        predictions.class_map,
        predictions.image_ids,
        predictions.boxes + np.sort(noise, axis=1),
        rng.random(len(predictions), np.float32),
        predictions.labels,
    )
    path = write(tmp_path / "d.json", to_coco_results(predictions))
    same(read_coco_results(path, truth)[0], predictions)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": int(i)} for i in truth.image_ids],
        "categories": [{"id": 5}, {"id": 17}],
        "annotations": [],
    }
    coco.createIndex()
    assert len(coco.loadRes(str(path)).anns) == len(predictions)


def test_no_detections(tmp_path: Path) -> None:
    found = read_coco_results(
        write(tmp_path / "d.json", to_coco_results(predictions_of([]))), TRUTH
    )[0]
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        (
            {"annotations": []},
            "expected a list of detections, found dict .it looks like annotations",
        ),
        ([RECORD, 3], "record 1 needs the keys image_id, category_id, bbox, score, found int"),
        ([RECORD, {"image_id": 7}], "record 1 needs the keys .* found .'image_id'."),
        ([RECORD | {"bbox": [1, 2, 3]}], "record 0 has bbox .1, 2, 3."),
        ([RECORD | {"bbox": [1, 2, 3, "4 px"]}], "record 0 has bbox"),
        ([RECORD, RECORD | {"score": None}], "record 1 has bbox .* and score None"),
        ([RECORD, RECORD | {"score": float("nan")}], "record 1 has .* score nan"),
        ([RECORD | {"bbox": [1, 2, float("inf"), 4]}], "record 0 has bbox .*inf"),
        ([RECORD | {"bbox": [1, 2, -3, 4]}], "record 0 has bbox .1, 2, -3, 4..* w, h >= 0"),
        ([RECORD | {"image_id": [7]}], "record 0 has image_id .7."),
        ([RECORD | {"category_id": "dog"}], "record 0 has image_id 7 and category_id 'dog'"),
        (
            [RECORD, RECORD | {"image_id": 8}],
            r"record 1: image 8 is not in truth \(1 of 2 detections\); its images are like \[7, "
            r"9\]",
        ),
        ([RECORD | {"image_id": "8"}], "record 0: image '8' is not in truth"),
        ([RECORD | {"image_id": "7.5"}], "record 0: image '7.5' is not in truth"),
        ([RECORD | {"image_id": 2**63 - 1}], "record 0: image 9223372036854775807 is not in"),
        ([RECORD | {"image_id": 2**63}], "record 0 has image_id 9223372036854775808"),
        ([RECORD | {"image_id": 10**400}], r"record 0 has image_id 10000.*\.\.\."),
        ([RECORD | {"category_id": 10**400}], r"record 0 has .* category_id 10000.*\.\.\."),
        ([RECORD | {"category_id": 1e300}], r"record 0 has .* category_id 1e\+300"),
        (
            [RECORD | {"image_id": "x" * 9999}],
            r"record 0: image 'xxx.*\.\.\.xxx.*' is not in truth",
        ),
        ([RECORD | {"image_id": ""}], "record 0: image '' is not in truth"),
        ([RECORD | {"image_id": 7.5}], "record 0 has image_id 7.5"),
        ([RECORD | {"image_id": float("inf")}], "record 0 has image_id inf"),
        ([RECORD | {"image_id": True}], "record 0 has image_id True"),
        ([RECORD | {"category_id": 17.5}], "record 0 has .* category_id 17.5"),
        ([RECORD | {"category_id": True}], "record 0 has .* category_id True"),
        ([RECORD | {"bbox": [1, 2, 3, True]}], "record 0 has bbox .1, 2, 3, True."),
        ([RECORD | {"bbox": [1, 2, 3, 4, 5]}], "record 0 has bbox .1, 2, 3, 4, 5."),
        ([RECORD | {"bbox": {"x": 1}}], "record 0 has bbox ..x.: 1"),
        ([RECORD | {"bbox": [10**400, 2, 3, 4]}], "record 0 has bbox .10000"),
        ([RECORD | {"bbox": [1, 2, 1e10, 4]}], "record 0 has bbox .*none beyond 1e.09"),
        ([RECORD | {"bbox": [-1e10, 2, 3, 4]}], "record 0 has bbox"),
        ([RECORD | {"score": 10**400}], "record 0 has .* score 10000"),
        ([RECORD | {"score": True}], "record 0 has .* score True"),
        ([RECORD | {"score": "0,5"}], "record 0 has .* score '0,5'"),
        ([RECORD | {"score": "nan"}], "record 0 has .* score 'nan'"),
        ([RECORD | {"score": "9" * 400}], "record 0 has .* score '9999"),
        ("[" * 100_000, "is not JSON that can be read: it is nested too deeply"),
        ("[" + "1" * 5000 + "]", "is not JSON: .*4300 digits.*5000 digits$"),
        ('["\x1b[31m"]', "is not JSON"),
        ([[RECORD]], "record 0 needs the keys .* found list"),
        ({f"k{n}": n for n in range(1000)}, "expected a list of detections, found dict$"),
        ([{f"\x1b{n}": n for n in range(1000)}], r"record 0 needs .*'\\x1b0', .*\.\.\."),
        ("null", "expected a list of detections, found NoneType"),
    ],
)
def test_bad_coco_results_are_named(content: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(DetectionFileError, match=message) as caught:
        read_coco_results(path, TRUTH)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_paths_of_the_image_files_do_for_ids(tmp_path: Path) -> None:
    path = write(
        tmp_path / "found.json",
        [RECORD | {"image_id": f"/elsewhere/{Path(TRUTH.image_files[1]).name}"}, RECORD],
    )
    found, notes = read_coco_results(path, TRUTH)
    assert found.image_ids.tolist() == [9, 7]
    assert notes == ["the images of 1 detections are told by the ends of their paths"]
    assert read_coco_results(write(path, [RECORD]), TRUTH)[1] == []


CAMERAS = dataclasses.replace(
    truth_of([], [1, 2, 3, 4]),
    image_files=np.array(["cam1/f0.jpg", "cam2/f0.jpg", "f0.jpg", "d/cam1/é.PNG"]),
)
STEMS = dataclasses.replace(
    truth_of([], ["2019.01.02_cam", "x.y", "z"]),
    image_files=np.array(["2019.01.02_cam", "x.y", "z"]),
)


@pytest.mark.parametrize(
    ("truth", "path", "image_id"),
    [
        (CAMERAS, "cam1/f0.jpg", 1),
        (CAMERAS, "/data/images/cam2/f0.jpg", 2),
        (CAMERAS, "./cam2//f0.jpg", 2),
        (CAMERAS, "C:\\images\\cam2\\f0.jpg", 2),
        (CAMERAS, "elsewhere/f0.jpg", 3),  # of the whole paths that end it, the longest
        (CAMERAS, "f0.jpg", 3),
        (CAMERAS, "cam1/e\u0301.PNG", 4),  # the same name in another Unicode form
        (CAMERAS, "elsewhere/é.PNG", 4),
        (STEMS, "JPEGImages/2019.01.02_cam.JPG", "2019.01.02_cam"),
        (STEMS, "JPEGImages/x.y.jpeg", "x.y"),
        (STEMS, "z.png", "z"),
    ],
)
def test_an_image_is_told_by_as_much_of_its_path_as_it_takes(
    truth: Annotations, path: str, image_id: int | str, tmp_path: Path
) -> None:
    record = RECORD | {"image_id": path}
    found, notes = read_coco_results(write(tmp_path / "found.json", [record, record]), truth)
    assert found.image_ids.tolist() == [image_id] * 2
    assert notes == ["the images of 2 detections are told by the ends of their paths"]


REPEATED = dataclasses.replace(
    truth_of([], [1, 2, 3]),
    image_files=np.array(["a/cam1/f0.jpg", "b/cam1/f0.jpg", "a/cam2/f0.jpg"]),
)


@pytest.mark.parametrize(
    ("truth", "paths", "message"),
    [
        (
            REPEATED,
            ["cam1/f0.jpg"],
            "record 0: 'cam1/f0.jpg' may be any of the images 1, 2 of truth",
        ),
        (REPEATED, ["c/f0.jpg"], "record 0: 'c/f0.jpg' may be any of the images 1, 2, 3 of truth"),
        (REPEATED, ["cam2/f0.jpg", "f0.jpg"], "record 1: 'f0.jpg' may be any"),
        (REPEATED, ["cam2/f1.jpg"], "record 0: image 'cam2/f1.jpg' is not in truth"),
        (REPEATED, ["cam2/f0.png"], "record 0: image 'cam2/f0.png' is not in truth"),
        (REPEATED, ["cam2/f0"], "record 0: image 'cam2/f0' is not in truth"),
        (
            REPEATED,
            ["cam2/f0.jpg", "cam2/f0.jpg", "x/cam2/f0.jpg"],
            "record 2: 'x/cam2/f0.jpg' and 'cam2/f0.jpg' would both be image 3 of truth",
        ),
        (STEMS, ["a/z.jpg", "b/z.jpg"], "record 1: 'b/z.jpg' and 'a/z.jpg' would both be image z"),
        (STEMS, ["z.jpg", "z.png"], "record 1: 'z.png' and 'z.jpg' would both be image z"),
        (STEMS, ["x.jpg"], "record 0: image 'x.jpg' is not in truth"),
    ],
)
def test_paths_that_do_not_tell_an_image_are_refused(
    truth: Annotations, paths: list[str], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "found.json", [RECORD | {"image_id": path} for path in paths])
    with pytest.raises(DetectionFileError, match=re.escape(message)):
        read_coco_results(path, truth)


def test_other_images_of_the_data_are_left_out(tmp_path: Path) -> None:
    records = [RECORD | {"image_id": i} for i in ("z", "w", "a/v.jpg", "z", "v")]
    path = write(tmp_path / "found.json", records)
    found, notes = read_coco_results(path, STEMS, others={"v", "w"})
    assert found.image_ids.tolist() == ["z", "z"]
    assert notes == ["3 of 5 detections are left out: their 3 images are not among those of truth"]
    with pytest.raises(DetectionFileError, match=r"record 2: image 'a/v.jpg' is not in truth"):
        read_coco_results(path, STEMS, others={"w"})
    write(tmp_path / "comp4_det_val_cat.txt", "z 0.5 1 1 10 20\nv 0.4 1 1 10 20\n")
    found, notes, _ = read_voc_results(tmp_path, STEMS, others={"v"})
    assert (found.image_ids.tolist(), found.scores.tolist()) == (["z"], [0.5])
    assert notes[0] == (
        "comp4_det_val_cat.txt: 1 of 2 detections are left out: their 1 images are not among those "
        "of truth"
    )


def test_ids_written_as_decimals_are_whole_numbers(tmp_path: Path) -> None:
    record = RECORD | {"image_id": 9.0, "category_id": 17.0}
    found, notes = read_coco_results(write(tmp_path / "d.json", [RECORD, record]), TRUTH)
    assert (found.image_ids.tolist(), found.labels.tolist()) == ([7, 9], [2, 2])
    assert found.image_ids.dtype == np.int64
    assert notes == ["ids written as decimals, such as 9.0, are taken as whole numbers"]


def test_categories_that_the_truth_lacks_are_left_out_as_by_pycocotools(tmp_path: Path) -> None:
    records = [RECORD | {"category_id": i} for i in (2, 17, 3, 2, 4, 5, 6, 7, 8)]
    found, notes = read_coco_results(write(tmp_path / "d.json", records), TRUTH)
    assert found.labels.tolist() == [2, 1]
    assert notes == [
        "7 of 9 detections are of a category_id that truth lacks (2, 3, 4, 6, 7, ...): left out, "
        "as pycocotools does; it has 5=cat, 17=dog"
    ]
    with pytest.raises(DetectionFileError, match="record 0: image 8 is not in truth"):
        read_coco_results(write(tmp_path / "d.json", [records[0] | {"image_id": 8}]), TRUTH)


def test_numbers_and_ids_written_as_text_are_read(tmp_path: Path) -> None:
    record = {"image_id": "9", "category_id": "17", "bbox": ["1.5", " 2", 3, "4e0"], "score": "1"}
    found, notes = read_coco_results(write(tmp_path / "d.json", [RECORD, record]), TRUTH)
    assert (found.image_ids.tolist(), found.image_ids.dtype) == ([7, 9], np.int64)
    assert found.boxes[1].tolist() == [1.5, 2, 4.5, 6]
    assert (found.scores.tolist(), found.labels.tolist()) == ([0.25, 1], [2, 2])
    assert notes == ["ids written as text, such as '9', are taken as whole numbers"]
    named = [RECORD | {"image_id": "000007"}]
    found, notes = read_coco_results(write(tmp_path / "d.json", named), NAMED)
    assert (found.image_ids.tolist(), notes) == (["000007"], [])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_results_with_a_byte_order_mark_are_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps([RECORD]), encoding=encoding)
    assert read_coco_results(path, TRUTH)[0].image_ids.tolist() == [7]
    lines = tmp_path / "comp4_det_val_cat.txt"
    lines.write_text("7 0.25 1 1 10 20\n", encoding=encoding)
    assert read_voc_results(tmp_path, TRUTH)[0].boxes.tolist() == [[0, 0, 10, 20]]
    lines.write_bytes(b"7 0.25 1 1 10 20\nf\xfc 0.5 1 1 2 2\n")
    with pytest.raises(DetectionFileError, match=r"cat\.txt: byte 0xfc .*line 2"):
        read_voc_results(tmp_path, TRUTH)


@pytest.mark.parametrize(
    ("scores", "note"),
    [
        ([0, 1], []),
        ([-0.5, 0.5], ["scores are from -0.5 to 0.5, not within 0..1: only their order counts"]),
        ([0.5, 1.01], ["scores are from 0.5 to 1.01, not within 0..1: only their order counts"]),
        ([0.5, 97], ["scores are from 0.5 to 97, not within 0..1: only their order counts"]),
    ],
)
def test_scores_that_are_no_probabilities_are_said(
    scores: list[float], note: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "d.json", [RECORD | {"score": score} for score in scores])
    found, notes = read_coco_results(path, TRUTH)
    assert (found.scores.tolist(), notes) == (scores, note)
    lines = [f"7 {score} 1 1 10 20\n" for score in scores]
    for name in ("cat", "dog"):
        write(tmp_path / f"comp4_det_val_{name}.txt", "".join(lines))
    assert read_voc_results(tmp_path, TRUTH)[1] == note


def test_widths_stay_as_they_are_written(tmp_path: Path) -> None:
    sides = (0.1, 1 / 3, 17.300000000000004, 1e-9, 0)
    records = [RECORD | {"bbox": [333.3, 2, side, 4]} for side in sides]
    found, _ = read_coco_results(write(tmp_path / "d.json", records), TRUTH)
    assert to_coco_results(found) == records
    assert (found.boxes[:, 2] - found.boxes[:, 0] != found.xywh()[:, 2]).sum() >= 3


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "comp4_det_val_cat.txt")  # opening it would wait for ever
    with pytest.raises(FileNotFoundError, match=r"detections file .*cat.txt is a FIFO, expected a"):
        read_voc_results(tmp_path, TRUTH)
    with pytest.raises(FileNotFoundError, match=r"detections file .*cat.txt is a FIFO, expected a"):
        read_coco_results(tmp_path / "comp4_det_val_cat.txt", TRUTH)
    (tmp_path / "link.json").symlink_to("gone.json")
    with pytest.raises(FileNotFoundError, match=r"link.json is a link to gone.json, which is not"):
        read_coco_results(tmp_path / "link.json", TRUTH)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_results_are_read_in_every_encoding_that_tells_itself(
    encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "d.json").write_bytes(json.dumps([RECORD]).encode(encoding))
    same(read_coco_results(tmp_path / "d.json", TRUTH)[0], predictions_of([HIT]))
    (tmp_path / "comp4_det_val_dog.txt").write_bytes("7 0.25 2.5 3 4.5 6\r\n".encode(encoding))
    same(read_voc_results(tmp_path, TRUTH)[0], predictions_of([HIT]))


def test_results_in_another_encoding_are_named_with_the_byte(tmp_path: Path) -> None:
    byte = r"byte 0xe9 at offset \d+ \(line 1\) is not UTF-8; save the file as UTF-8"
    text = "café 0.25 2.5 3 4.5 6\n".encode("latin-1")
    (tmp_path / "comp4_det_val_dog.txt").write_bytes(text)
    with pytest.raises(ValueError, match=rf"detections file .*dog.txt: {byte}"):
        read_voc_results(tmp_path, TRUTH)
    (tmp_path / "d.json").write_bytes(b'[{"image_id": "caf\xe9"}]')
    with pytest.raises(DetectionFileError, match=rf"detections file .*d.json: {byte}"):
        read_coco_results(tmp_path / "d.json", TRUTH)


def test_hidden_files_beside_results_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_val_dog.txt").write_text("7 0.25 2.5 3 4.5 6\n")
    (tmp_path / "._comp4_det_val_dog.txt").write_bytes(b"\0\5\x16\7Mac OS X")
    same(read_voc_results(tmp_path, TRUTH)[0], predictions_of([HIT]))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no detections file .*gone.json"):
        read_coco_results(tmp_path / "gone.json", TRUTH)
    with pytest.raises(FileNotFoundError, match=r"no VOC results comp4_det_SPLIT_CLASS.txt in"):
        read_voc_results(tmp_path, TRUTH)


def test_voc_lines_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "comp4_det_val_cat.txt", "000007 0.5 1 1 10 20\n\na b 0.25 3.5 4 5 6.25\n")
    found, notes, split = read_voc_results(tmp_path, NAMED)
    same(
        found,
        predictions_of([("000007", 1, 0.5, (0, 0, 10, 20)), ("a b", 1, 0.25, (2.5, 3, 5, 6.25))]),
    )
    assert notes == ["no results file for dog: taken as no detections"]
    assert split == "val"


def test_voc_results_by_hand() -> None:
    files = to_voc_results(
        predictions_of([("x", 1, 0.25, (0, 0, 10, 20)), ("y", 1, 0.5, (2.5, 3, 5, 6.25))]),
        split="test",
        competition="comp3",
    )
    assert files == {
        "comp3_det_test_cat.txt": "y 0.500000 3.500 4.000 5.000 6.250\nx 0.250000 1.000 1.000 "
        "10.000 20.000\n",
        "comp3_det_test_dog.txt": "",
    }


def test_equal_scores_keep_their_order_in_voc_files() -> None:
    rows = [(f"i{n}", 1, 0.5 - (n % 2) / 4, (0, 0, n, n)) for n in range(60)]
    lines = to_voc_results(predictions_of(rows), split="val")["comp4_det_val_cat.txt"].splitlines()
    assert [line.split()[0] for line in lines] == [
        f"i{n}" for n in [*range(0, 60, 2), *range(1, 60, 2)]
    ]


def test_voc_results_come_back(tmp_path: Path) -> None:
    truth, predictions = random_scene(
        0
    )  # integers and scores of one decimal survive the rounding; integer image ids too
    for name, text in to_voc_results(predictions, split="val").items():
        write(tmp_path / name, text)
    found, notes, split = read_voc_results(tmp_path, truth)
    assert (notes, split) == ([], "val")

    def rows(p: Predictions) -> list[tuple]:
        return sorted(
            zip(
                p.image_ids.tolist(),
                p.labels.tolist(),
                p.scores.round(6).tolist(),
                p.boxes.tolist(),
                strict=True,
            )
        )

    assert [row[:2] for row in rows(found)] == [row[:2] for row in rows(predictions)]
    for (*_, score, box), (*_, expected_score, expected_box) in zip(
        rows(found), rows(predictions), strict=True
    ):
        assert score == pytest.approx(expected_score, abs=1e-6)
        assert box == expected_box


def test_longest_class_name_wins(tmp_path: Path) -> None:
    truth = truth_of([("a", 1, (0, 0, 9, 9))], ["a"], ClassMap(("table", "dining_table"), (1, 2)))
    write(tmp_path / "comp4_det_test_dining_table.txt", "a 0.5 1 1 9 9\n")
    write(tmp_path / "comp4_det_test_table.txt", "")
    found, notes, split = read_voc_results(tmp_path, truth)
    assert found.labels.tolist() == [2]
    assert (notes, split) == ([], "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000007 0.5 1 1 10", "cat.txt:2: expected 'image-id score xmin ymin xmax ymax'"),
        ("000007 0.5 1 1 ten 20", "cat.txt:2: expected"),
        ("000007 nan 1 1 10 20", "cat.txt:2: expected"),
        ("000007 0.5 100 1 10 20", "cat.txt:2: .* xmax >= xmin .* got '000007 0.5 100 1 10 20'"),
        (
            "000008 0.5 1 1 10 20",
            r"cat.txt:2: image '000008' is not in truth \(1 of 2 detections\)",
        ),
        ("7 0.5 1 1 10 20", "cat.txt:2: image '7' is not in truth .* like .'000007'"),
        ("000007 0.5 1 1 10 -1", "cat.txt:2: expected"),
        ("000007 0.5 1 1 2e9 20", "cat.txt:2: expected"),
        ("000007 0.5 -2e9 1 10 20", "cat.txt:2: expected"),
        ("000007 1e999 1 1 10 20", "cat.txt:2: expected"),
        ("000007 0.5 1_0 1 10 20", "cat.txt:2: expected"),
        ("000007 0.5 1 1 \u0661\u0660 20", "cat.txt:2: expected"),
        (
            "\x1b[31m" + "9" * 9999 + " 0.5 1 1 10",
            r"cat.txt:2: expected .*got '\\x1b\[31m999.*\.\.\.",
        ),
    ],
)
def test_bad_voc_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "comp4_det_val_cat.txt", f"000007 0.5 1 1 10 20\n{line}\n")
    with pytest.raises(DetectionFileError, match=message) as caught:
        read_voc_results(tmp_path, NAMED)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_image_numbers_of_a_coco_file_do_in_voc_lines(tmp_path: Path) -> None:
    write(tmp_path / "comp4_det_val_cat.txt", "000007 0.5 1 1 10 20\n9.jpg 0.5 1 1 10 20\n")
    found, notes, _ = read_voc_results(tmp_path, TRUTH)
    assert found.image_ids.tolist() == [7, 9]
    assert notes[0] == (
        "comp4_det_val_cat.txt: the images of 1 detections are told by the ends of their paths"
    )
    write(tmp_path / "comp4_det_val_cat.txt", f"{'9' * 5000} 0.5 1 1 10 20\n")
    with pytest.raises(DetectionFileError, match=r"cat.txt:1: image '999.*' is not in truth"):
        read_voc_results(tmp_path, TRUTH)


def test_a_box_a_rounding_narrower_than_a_pixel_is_read(tmp_path: Path) -> None:
    write(tmp_path / "comp4_det_val_cat.txt", "7 0.5 10 1 9 20\n")  # 10 to 10 in continuous px
    found, _, _ = read_voc_results(tmp_path, TRUTH)
    assert found.boxes.tolist() == [[9, 0, 9, 20]]
    write(tmp_path / "comp4_det_val_cat.txt", "7 0.5 10 1 8.5 20\n")
    with pytest.raises(DetectionFileError, match=r"cat.txt:1: expected"):
        read_voc_results(tmp_path, TRUTH)


def test_ambiguous_voc_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "comp3_det_val_cat.txt", "")
    write(tmp_path / "comp4_det_val_dog.txt", "")
    with pytest.raises(DetectionFileError, match="comp3_det_val, comp4_det_val: choose one"):
        read_voc_results(tmp_path, NAMED)


def test_files_of_classes_that_the_truth_lacks_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "comp4_det_val_owl.txt", "no line that would be read")
    with pytest.raises(DetectionFileError, match=r"owl.txt: its class is none of truth: cat, dog"):
        read_voc_results(tmp_path, NAMED)
    write(tmp_path / "comp4_det_val_cat.txt", "000007 0.5 1 1 10 20\n")
    write(tmp_path / "comp4_det_val_dog.txt", "")
    found, notes, split = read_voc_results(tmp_path, NAMED)
    assert (len(found), split) == (1, "val")
    assert notes == ["left out, of classes that truth lacks: comp4_det_val_owl.txt"]


def test_many_records_of_both_formats(tmp_path: Path) -> None:
    num = 20_000
    truth = truth_of([], list(range(1000)))
    boxes = np.tile(np.array([[1.1, 2.2, 30.3, 40.4]], np.float32), (num, 1))
    many = Predictions(
        truth.class_map,
        np.arange(num) % 1000,
        boxes,
        np.full(num, 0.1, np.float32),
        np.full(num, 1),
    )
    path = write(tmp_path / "d.json", to_coco_results(many))
    for name, text in to_voc_results(many, split="val").items():
        write(tmp_path / name, text)
    assert len(read_coco_results(path, truth)[0]) == num
    assert len(read_voc_results(tmp_path, truth)[0]) == num


@pytest.mark.parametrize("seed", range(3))
def test_scores_near_one_stay_apart_in_voc_files(seed: int) -> None:
    steps = np.random.default_rng(seed).permutation(100)
    scores = (np.float32(1) - steps.astype(np.float32) * np.float32(2**-24)).tolist()
    scores += [1e-7, 0.1, float(np.float32(0.1))]
    rows = [(f"i{n}", 1, score, (0, 0, 9, 9)) for n, score in enumerate(scores)]
    for kind in (np.float32, np.float64):
        given = dataclasses.replace(predictions_of(rows), scores=np.array(scores, kind))
        text = to_voc_results(given, split="val")["comp4_det_val_cat.txt"]
        found = {line.split()[0]: line.split()[1] for line in text.splitlines()}
        assert [kind(found[f"i{n}"]) for n in range(len(rows))] == given.scores.tolist()
        assert all(re.fullmatch(r"[01]\.\d{6,}", score) for score in found.values())


ODD = {
    "image_id": (7, 9, "7", "a/7.jpg", 7.0, True, 2**70, None),
    "category_id": (5, 17, "5", 5.0, False, -(2**63), 2**63),
    "bbox": (
        [1, 2.5, 3, 4],
        [0, 0, 0, 0],
        [1, 2, 3],
        [1, 2, -3, 4],
        [1, 2, 3e9, 4],
        ["1", 2, 3, 4],
    ),
    "score": (0.1, 1, 2, "0.5", float("nan"), float("inf"), 10**400, None),
    "extra": ({"deep": [1]}, "\u00e9", 1e999),
}


def test_read_by_types_is_as_read_one_by_one_or_not_at_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path, read = tmp_path / "d.json", 0
    for _ in range(300):
        records = [
            {
                key: values[int(rng.integers(len(values))) if rng.random() < 0.1 else 0]
                for key, values in ODD.items()
            }
            for _ in range(int(rng.integers(0, 5)))
        ]
        write(path, records)
        by_types = _by_types(path)
        if by_types is None:
            continue
        read += 1
        one_by_one = _one_by_one(path)
        assert by_types.image_ids == one_by_one.image_ids
        assert by_types.category_ids == one_by_one.category_ids
        assert by_types.odd == one_by_one.odd
        np.testing.assert_array_equal(by_types.xywh, one_by_one.xywh)
        np.testing.assert_array_equal(by_types.scores, one_by_one.scores)
    assert 100 < read < 280


def test_more_records_than_are_read_together_stay_in_order(tmp_path: Path) -> None:
    records = [RECORD | {"score": row / 20_000, "bbox": [row, 0, 1, 1]} for row in range(12_001)]
    path = write(tmp_path / "d.json", records)
    assert _by_types(path) is not None
    found, notes = read_coco_results(path, TRUTH)
    assert notes == []
    assert to_coco_results(found) == records


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_other_encodings_are_read_too(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(json.dumps([RECORD]).encode(encoding))
    same(read_coco_results(path, TRUTH)[0], predictions_of([HIT]))
