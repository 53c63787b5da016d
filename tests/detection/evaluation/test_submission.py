"""What test servers take: written from known detections, and read back by a parser that shares
nothing with what wrote it.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.data.voc import VOC_CLASSES
from detres.detection.evaluation.localisation import Guesses, predicted_class_error
from detres.detection.evaluation.protocol import evaluate
from detres.detection.evaluation.submission import (
    CocoServer,
    ImageNetServer,
    Server,
    SubmissionError,
    VocServer,
    coco_test_set,
    write_submission,
)
from detres.detection.structures import Predictions
from detres.files import TakenFolderError
from tests.detection.evaluation.scenes import predictions_of, truth_of

VOC = ClassMap.of_names(VOC_CLASSES)
COCO = ClassMap(("person", "car", "toothbrush"), (1, 3, 90))
VOC_SERVER = VocServer(year="VOC2012", image_list="test")
COCO_SERVER = CocoServer(test_set="test-dev2017", algorithm="coco_r101")
DET = ClassMap(("dog", "accordion", "zebra", "bird"), (58, 1, 200, 26))
LOC = ClassMap(tuple(f"n0{k}" for k in range(7)), (500, 2, 1000, 7, 31, 1, 64))
STEMS = ["000001", "2008_000001", "2008_000002", "2011_003276"]
NUMBERS = dict(zip(STEMS, (3, 1, 4, 17), strict=True))
DET_SERVER = ImageNetServer("DET", "val2", "det_r101", NUMBERS)
LOC_SERVER = ImageNetServer("CLS-LOC", "test", "loc_r101", NUMBERS)


def scene(
    ids: list, class_map: ClassMap, *, labels: tuple[int, ...], seed: int
) -> tuple[Annotations, Predictions]:
    """Truth in all but the last image, and detections around it with float32 noise and scores that
    crowd below 1; the last image has neither, but was looked at.
    """
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image_id in ids[:-1]:
        for label in rng.choice(labels, 3):
            x, y = rng.integers(0, 100, 2)
            box = (x, y, x + rng.integers(20, 90), y + rng.integers(20, 90))
            objects.append((image_id, int(label), tuple(map(float, box))))
            for _ in range(4):
                moved = np.maximum(np.asarray(box) + rng.normal(0, 6, 4), 0)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 5)
                found.append((image_id, int(label), 1 - 1e-6 * rng.random(), tuple(moved)))
    predictions = predictions_of(found, class_map)
    seen = np.array(rng.permutation(ids))
    return truth_of(objects, ids, class_map), dataclasses.replace(predictions, seen=seen)


def rows_of(predictions: Predictions) -> list[tuple]:
    """(class name, image id, score, x1, y1, x2, y2), in their order."""
    names = predictions.class_map.names
    return [
        (names[label - 1], image_id, score, *box)
        for label, image_id, score, box in zip(
            predictions.labels.tolist(),
            predictions.image_ids.tolist(),
            predictions.scores.tolist(),
            predictions.boxes.tolist(),
            strict=True,
        )
    ]


def parse_voc(archive: Path) -> tuple[list[tuple], dict[str, str]]:
    """The rows of a server's tar and its files: six fields a line, 1-based pixels."""
    rows, files = [], {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            files[member.name] = tar.extractfile(member).read().decode("ascii")
    for name, text in files.items():
        label = re.fullmatch(r"results/VOC\d{4}/Main/comp[34]_det_\w+?_([a-z]+)\.txt", name)[1]
        for line in text.splitlines():
            image_id, score, xmin, ymin, xmax, ymax = line.split(" ")
            box = (float(xmin) - 1, float(ymin) - 1, float(xmax), float(ymax))
            rows.append((label, image_id, float(score), *box))
    return rows, files


def parse_coco(archive: Path, class_map: ClassMap) -> list[tuple]:
    """The rows of a server's zip: [x, y, width, height] from 0."""
    with zipfile.ZipFile(archive) as file:
        (name,) = file.namelist()
        records = json.loads(file.read(name))
    assert archive.name == f"{name.removesuffix('.json')}.zip"
    of_id = dict(zip(class_map.source_ids, class_map.names, strict=True))
    return [
        (of_id[item["category_id"]], item["image_id"], item["score"], x, y, x + width, y + height)
        for item in records
        for x, y, width, height in [item["bbox"]]
    ]


def text_of(archive: Path) -> str:
    """The one file of an ImageNet server's zip, which lies beside it too."""
    with zipfile.ZipFile(archive) as file:
        (name,) = file.namelist()
        text = file.read(name).decode("ascii")
    assert archive.with_suffix(".txt").read_bytes() == text.encode()
    assert name == f"{archive.stem}.txt"
    return text


def parse_det(archive: Path, class_map: ClassMap) -> list[tuple]:
    """The rows of ILSVRC's detections, as its readme has them: inclusive pixels from 0."""
    of_id = dict(zip(class_map.source_ids, class_map.names, strict=True))
    of_number = {number: image_id for image_id, number in NUMBERS.items()}
    rows = []
    for line in text_of(archive).splitlines():
        number, label, score, *box = line.split(" ")
        xmin, ymin, xmax, ymax = map(float, box)
        image_id = of_number[int(number)]
        rows.append((of_id[int(label)], image_id, float(score), xmin, ymin, xmax + 1, ymax + 1))
    return rows


def parse_loc(archive: Path) -> list[list[tuple[int, tuple[float, ...]]]]:
    """Of each line, which is an image, the guesses: a class's number, and x1, y1, x2, y2."""
    images = []
    for line in text_of(archive).splitlines():
        fields = line.split(" ")
        groups = [fields[start : start + 5] for start in range(0, len(fields), 5)]
        images.append(
            [
                (int(label), (float(xmin), float(ymin), float(xmax) + 1, float(ymax) + 1))
                for label, xmin, ymin, xmax, ymax in groups
            ]
        )
    return images


def as_predictions(rows: list[tuple], class_map: ClassMap) -> Predictions:
    found = [(row[1], class_map.index_of_name(row[0]) + 1, row[2], row[3:]) for row in rows]
    return Predictions(
        class_map,
        np.array([row[0] for row in found]),
        np.array([row[3] for row in found], np.float64).reshape(-1, 4),
        np.array([row[2] for row in found], np.float64),
        np.array([row[1] for row in found], np.int64),
    )


def require_same_rows(found: list[tuple], given: list[tuple]) -> None:
    found, given = sorted(found), sorted(given)
    assert len(found) == len(given) > 0
    assert [row[:2] for row in found] == [row[:2] for row in given]
    scores = np.array([[row[2] for row in rows] for rows in (found, given)])
    assert (scores[0].astype(np.float32) == scores[1].astype(np.float32)).all()
    boxes = np.array([[row[3:] for row in rows] for rows in (found, given)])
    assert np.abs(boxes[0] - boxes[1]).max() < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_a_voc_submission_comes_back_with_the_same_boxes_and_ap(seed: int, tmp_path: Path) -> None:
    truth, predictions = scene(STEMS, VOC, labels=(1, 7, 15), seed=seed)
    archive = write_submission(tmp_path / "sub", truth, predictions, VOC_SERVER)
    assert archive == tmp_path / "sub" / "results.tar.gz"
    rows, files = parse_voc(archive)
    require_same_rows(rows, rows_of(predictions))
    assert sorted(files) == sorted(
        f"results/VOC2012/Main/comp4_det_test_{name}.txt" for name in VOC_CLASSES
    )
    assert sum(text == "" for text in files.values()) == 17
    for metric in ("voc07", "voc12"):
        ours, theirs = (
            evaluate(metric, truth, each).metrics["mAP"]
            for each in (predictions, as_predictions(rows, VOC))
        )
        assert 0.1 < ours < 1
        assert theirs == ours


@pytest.mark.parametrize("seed", range(3))
def test_a_coco_submission_comes_back_with_the_same_boxes_and_ap(seed: int, tmp_path: Path) -> None:
    truth, predictions = scene([9, 25, 139, 581929], COCO, labels=(1, 2, 3), seed=seed)
    archive = write_submission(tmp_path / "sub", truth, predictions, COCO_SERVER)
    assert archive.name == "detections_test-dev2017_coco_r101_results.zip"
    rows = parse_coco(archive, COCO)
    require_same_rows(rows, rows_of(predictions))
    ours, theirs = (
        evaluate("coco", truth, each).metrics for each in (predictions, as_predictions(rows, COCO))
    )
    assert 0.1 < ours["AP"] < 1
    assert theirs == ours


@pytest.mark.parametrize("seed", range(3))
def test_a_det_submission_comes_back_with_the_same_boxes_and_ap(seed: int, tmp_path: Path) -> None:
    truth, predictions = scene(STEMS, DET, labels=(1, 2, 4), seed=seed)
    archive = write_submission(tmp_path / "sub", truth, predictions, DET_SERVER)
    assert archive == tmp_path / "sub" / "DET_val2_det_r101.zip"
    rows = parse_det(archive, DET)
    require_same_rows(rows, rows_of(predictions))
    assert [row[:2] for row in rows] == [row[:2] for row in rows_of(predictions)]  # in order
    assert "2011_003276" not in {row[1] for row in rows}  # it was looked at and has none
    ours, theirs = (
        evaluate("imagenet_det", truth, each).metrics["mAP"]
        for each in (predictions, as_predictions(rows, DET))
    )
    assert 0.1 < ours < 1
    assert theirs == ours


def guesses_of(num: int, each: int, seed: int) -> Guesses:
    """Some of seven classes, none twice in an image, best first, and a box for each."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 90, (num, each, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(1, 90, (num, each, 2))), axis=2)
    return Guesses(np.array([rng.permutation(7)[:each] + 1 for _ in range(num)]), boxes)


@pytest.mark.parametrize(("seed", "each"), [(0, 5), (1, 5), (2, 7), (3, 1)])
def test_a_localisation_submission_comes_back_with_the_same_guesses_and_error(
    seed: int, each: int, tmp_path: Path
) -> None:
    ids = ["2008_000002", "000001", "2011_003276", "2008_000001"]  # as read, in no order
    guesses = guesses_of(4, each, seed)
    objects = [
        (image_id, int(guesses.labels[row, row % each]), tuple(guesses.boxes[row, row % each]))
        for row, image_id in enumerate(ids[:3])  # each found by another guess, and one by none
    ]
    truth = truth_of([*objects, (ids[3], 1, (150, 150, 160, 160))], ids, LOC)
    archive = write_submission(tmp_path / "sub", truth, guesses.all(truth), LOC_SERVER)
    assert archive.name == "CLS-LOC_test_loc_r101.zip"
    lines = parse_loc(archive)
    labels, boxes = np.zeros((4, min(each, 5)), np.int64), np.zeros((4, min(each, 5), 4))
    for line, image_id in zip(lines, sorted(ids), strict=True):
        row = ids.index(image_id)
        labels[row] = [LOC.source_ids.index(label) + 1 for label, _ in line]
        boxes[row] = [box for _, box in line]
    assert (labels == guesses.labels[:, :5]).all()
    assert np.abs(boxes - guesses.boxes[:, :5]).max() < 1e-3
    ours, theirs = (
        predicted_class_error(truth, found, "").errors
        for found in (guesses, Guesses(labels, boxes))
    )
    assert ours == theirs
    assert 0 < ours["top5_loc_error"] < 1


def test_the_lines_of_a_det_submission_by_hand(tmp_path: Path) -> None:
    images = truth_of([], ["b", "a", "none"], DET)
    found = predictions_of(
        [
            ("a", 1, 0.25, (0, 0, 10, 20)),
            ("b", 3, 0.5, (46.125, 1, 500, 375)),
            ("a", 2, 0.75, (-1e-5, 2.5, 3.25, 3)),
        ],
        DET,
    )
    found = dataclasses.replace(found, seen=images.image_ids)
    server = ImageNetServer("DET", "test", "../my net", {"b": 7, "a": 2, "none": 1})
    archive = write_submission(tmp_path / "sub", images, found, server)
    assert archive.name == "DET_test_.._my_net.zip"
    assert text_of(archive) == (
        "2 58 0.250000 0.000 0.000 9.000 19.000\n"
        "7 200 0.500000 46.125 1.000 499.000 374.000\n"
        "2 1 0.750000 0.000 2.500 2.250 2.000\n"
    )


def test_the_lines_of_a_localisation_submission_by_hand(tmp_path: Path) -> None:
    """By the names of the files: a-1.JPEG is before a.JPEG, as - is before a full stop."""
    images = truth_of([], ["b", "a", "a-1"], LOC)
    boxes = np.array(
        [
            [(0, 0, 10, 20), (1, 2, 3, 4)],
            [(0.5, 0, 500, 375), (7, 7, 8, 8)],
            [(0, 0, 1, 1), (2.0004, 0, 3, 4)],
        ]
    )
    guesses = Guesses(np.array([[1, 3], [6, 2], [4, 5]]), boxes)
    server = dataclasses.replace(LOC_SERVER, numbers={"b": 1, "a": 2, "a-1": 3})
    archive = write_submission(tmp_path / "sub", images, guesses.all(images), server)
    assert text_of(archive) == (
        "7 0.000 0.000 0.000 0.000 31 2.000 0.000 2.000 3.000\n"
        "1 0.500 0.000 499.000 374.000 2 7.000 7.000 7.000 7.000\n"
        "500 0.000 0.000 9.000 19.000 1000 1.000 2.000 2.000 3.000\n"
    )


def test_the_lines_of_a_voc_submission_by_hand(tmp_path: Path) -> None:
    images = truth_of([], ["2008_000002", "2008_000005"], VOC)
    found = predictions_of(
        [
            ("2008_000002", 12, 0.25, (0, 0, 10, 20)),
            ("2008_000005", 12, 0.75, (46.125, 1, 500, 375)),
        ],
        VOC,
    )
    found = dataclasses.replace(found, seen=images.image_ids)
    server = dataclasses.replace(VOC_SERVER, competition="comp3")
    write_submission(tmp_path / "sub", images, found, server)
    main = tmp_path / "sub" / "results" / "VOC2012" / "Main"
    assert (main / "comp3_det_test_dog.txt").read_text() == (
        "2008_000005 0.750000 47.125 2.000 500.000 375.000\n"
        "2008_000002 0.250000 1.000 1.000 10.000 20.000\n"
    )
    assert len(list(main.iterdir())) == 20
    assert (main / "comp3_det_test_cat.txt").read_text() == ""


def test_the_records_of_a_coco_submission_by_hand(tmp_path: Path) -> None:
    images = truth_of([], [42, 73], COCO)
    found = predictions_of([(73, 3, 0.5, (1.5, 2, 11.5, 6))], COCO)
    found = dataclasses.replace(found, seen=np.array([42, 73]))
    write_submission(tmp_path / "sub", images, found, COCO_SERVER)
    file = tmp_path / "sub" / "detections_test-dev2017_coco_r101_results.json"
    assert json.loads(file.read_text()) == [
        {"image_id": 73, "category_id": 90, "bbox": [1.5, 2.0, 10.0, 4.0], "score": 0.5}
    ]
    with zipfile.ZipFile(file.with_suffix(".zip")) as archive:
        assert archive.read(file.name) == file.read_bytes()
        assert archive.testzip() is None


def test_no_detection_at_all_is_a_submission_too(tmp_path: Path) -> None:
    for server, class_map, ids in (
        (VOC_SERVER, VOC, ["a", "b"]),
        (COCO_SERVER, COCO, [1, 2]),
        (DET_SERVER, DET, STEMS),
    ):
        images = truth_of([], ids, class_map)
        found = dataclasses.replace(predictions_of([], class_map), seen=np.array(ids))
        archive = write_submission(tmp_path / class_map.names[0], images, found, server)
        if server is VOC_SERVER:
            rows, files = parse_voc(archive)
            assert (rows, len(files)) == ([], 20)
        elif server is DET_SERVER:
            assert text_of(archive) == ""
        else:
            assert parse_coco(archive, class_map) == []


@pytest.mark.parametrize("server", [VOC_SERVER, COCO_SERVER, DET_SERVER])
def test_the_same_detections_give_the_same_bytes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, predictions = scene(STEMS, VOC, labels=(1, 7), seed=0)
    first = write_submission(tmp_path / "a", truth, predictions, server).read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert write_submission(tmp_path / "b", truth, predictions, server).read_bytes() == first
    if server is VOC_SERVER:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(first))) as tar:
            assert all(member.isfile() for member in tar.getmembers())


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([1, 2, 4], "1 images were not looked at, such as 3; a submission is of all its 4 images"),
        ([4], "3 images were not looked at, such as 1"),
        ([1, 2, 3, 4, 5], "1 images are not of this set, such as 5"),
        ([1, 2, 3, 4, "x"], "are not of this set"),
        ([1, 2, 2, 3, 4, 4], "2 images were looked at more than once, such as 2"),
        (None, "it is not known in which images was looked for objects"),
    ],
)
def test_a_submission_of_a_part_of_the_set_is_refused(
    seen: list | None, message: str, tmp_path: Path
) -> None:
    images = truth_of([], [1, 2, 3, 4], COCO)
    found = predictions_of([(4, 1, 0.5, (0, 0, 5, 5))], COCO)
    if seen is not None:
        found = dataclasses.replace(found, seen=np.array(seen, object))
    with pytest.raises(SubmissionError, match=message) as caught:
        write_submission(tmp_path / "sub", images, found, COCO_SERVER)
    assert str(caught.value).startswith("truth: ")
    assert list(tmp_path.iterdir()) == []


def test_detections_of_other_images_classes_and_of_no_number_are_refused(tmp_path: Path) -> None:
    images = truth_of([], [1, 2], COCO)
    for found, message in (
        (predictions_of([(3, 1, 0.5, (0, 0, 5, 5))], COCO), "image 3, which truth does not have"),
        (predictions_of([(1, 1, 0.5, (0, 0, 5, 5))]), "the class lists differ"),
        (predictions_of([(1, 1, np.nan, (0, 0, 5, 5))], COCO), "must be finite"),
        (predictions_of([(1, 1, 0.5, (0, 0, np.inf, 5))], COCO), "must be finite"),
    ):
        found = dataclasses.replace(found, seen=np.array([1, 2]))
        with pytest.raises(ValueError, match=message):
            write_submission(tmp_path / "sub", images, found, COCO_SERVER)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_as_it_is(tmp_path: Path) -> None:
    truth, predictions = scene(STEMS, VOC, labels=(1,), seed=0)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine").write_text("mine")
    with pytest.raises(TakenFolderError, match="already holds files and is left as it is"):
        write_submission(tmp_path / "sub", truth, predictions, VOC_SERVER)
    assert [path.name for path in tmp_path.rglob("*")] == ["sub", "mine"]


@pytest.mark.parametrize("name", ["cup/mug", "..\\up", "a\0b"])
def test_a_class_that_makes_no_file_name_is_refused(name: str) -> None:
    images = truth_of([], ["a"], ClassMap.of_names(("dog", name)))
    with pytest.raises(SubmissionError, match="cannot be part of a file's name"):
        VOC_SERVER.require_written(images)
    COCO_SERVER.require_written(images)


@pytest.mark.parametrize("image_id", ["a b", " a", "a\tb", ""])
def test_an_image_id_with_a_space_makes_no_line(image_id: str) -> None:
    images = truth_of([], ["a", image_id], VOC)
    with pytest.raises(SubmissionError, match=r"holds a space.*\(1 such\)"):
        VOC_SERVER.require_written(images)


@pytest.mark.parametrize(
    ("file", "test_set"),
    [
        ("annotations/image_info_test-dev2017.json", "test-dev2017"),
        ("image_info_test2015.json", "test2015"),
        ("/data/annotations/instances_val2014.json", "val2014"),
        ("mine.v2.json", "mine.v2"),
        ("instances_.json", "instances_"),
    ],
)
def test_what_the_server_calls_a_set(file: str, test_set: str) -> None:
    assert coco_test_set(file) == test_set


def test_names_are_kept_to_what_any_file_system_has() -> None:
    server = CocoServer(test_set="my set", algorithm="../r 50/ü")
    assert server.archive == "detections_my_set_.._r_50__results.zip"


@pytest.mark.parametrize("server", [DET_SERVER, LOC_SERVER])
def test_a_list_of_which_images_were_left_out_is_no_imagenet_submission(
    server: ImageNetServer,
) -> None:
    """Such as those on the blacklist of CLS-LOC's val, of which its server has a line each."""
    server.require_written(truth_of([], STEMS, DET))
    with pytest.raises(SubmissionError) as caught:
        server.require_written(truth_of([], STEMS[1:3], DET))
    assert str(caught.value) == (
        "truth: 2 of the 4 images of its list are left out, such as 000001, and a submission is of "
        "all"
    )


def test_guesses_for_a_part_of_the_images_are_refused(tmp_path: Path) -> None:
    images, part = truth_of([], STEMS, LOC), truth_of([], STEMS[:3], LOC)
    found = guesses_of(3, 5, 0).all(part)
    assert found.seen.tolist() == STEMS[:3]
    with pytest.raises(SubmissionError, match="1 images were not looked at, such as 2011_003276"):
        write_submission(tmp_path / "sub", images, found, LOC_SERVER)
    found = dataclasses.replace(found, seen=images.image_ids)
    with pytest.raises(ValueError, match=r"image 2011_003276 has no guess \(1 such\)"):
        write_submission(tmp_path / "sub", images, found, LOC_SERVER)
    with pytest.raises(ValueError, match="do not belong together"):
        guesses_of(3, 5, 0).all(images)
    found = guesses_of(4, 5, 0)
    found.boxes[2, 1, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        write_submission(tmp_path / "sub", images, found.all(images), LOC_SERVER)
    assert list(tmp_path.iterdir()) == []
