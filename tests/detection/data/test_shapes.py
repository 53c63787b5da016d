from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.detection.data.coco import read_coco
from detres.detection.data.shapes import SHAPES_CLASSES, draw_shapes_image, ensure_shapes
from detres.images.decode import read_image

NUM_TRAIN, NUM_VAL = 120, 40


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_shapes(tmp_path_factory.mktemp("cache"), num_train=NUM_TRAIN, num_val=NUM_VAL)


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def test_the_coco_reader_takes_it_without_a_complaint(shapes: Path) -> None:
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        annotations = read_coco(
            shapes / "annotations" / f"{split}.json", shapes / split, box_policy="error"
        )
        assert len(annotations) == num
        assert annotations.class_map.names == SHAPES_CLASSES
        assert annotations.dropped == {}
        assert set(annotations.labels.tolist()) == set(range(1, 7))


def test_files_hold_what_draw_shapes_image_draws(shapes: Path) -> None:
    content = json.loads((shapes / "annotations" / "val.json").read_text())
    for record in content["images"][:20]:
        pixels, objects = draw_shapes_image(0, "val", record["id"] - 1)
        stored = read_image(
            shapes / "val" / record["file_name"], (record["height"], record["width"])
        )
        assert stored.shape == pixels.shape
        assert np.abs(stored.astype(float) - pixels).mean() < 12  # JPEG, on coloured grain
        mine = [a for a in content["annotations"] if a["image_id"] == record["id"]]
        assert [a["category_id"] for a in mine] == [item.label for item in objects]
        for annotation, item in zip(mine, objects, strict=True):
            rows, columns = np.nonzero(item.mask)
            tight = [
                columns.min(),
                rows.min(),
                columns.max() + 1 - columns.min(),
                rows.max() + 1 - rows.min(),
            ]
            assert annotation["bbox"] == tight
            assert annotation["area"] == item.mask.sum()
            assert annotation["iscrowd"] == item.crowd


def test_the_data_are_varied_and_honest() -> None:
    images = [draw_shapes_image(0, "train", index) for index in range(300)]
    sizes = np.array([pixels.shape for pixels, _ in images])
    assert sizes[:, :2].min() >= 160
    assert sizes[:, :2].max() <= 192
    assert 0.02 < np.mean([len(objects) == 0 for _, objects in images]) < 0.12
    crowds = [item for _, objects in images for item in objects if item.crowd]
    assert 3 <= len(crowds) <= 30
    single = [item for _, objects in images for item in objects if not item.crowd]
    assert np.bincount([item.label for item in single], minlength=7)[1:].min() > 100
    longest = np.array([max(cv2.boundingRect(item.mask.astype(np.uint8))[2:]) for item in single])
    assert 12 <= longest.min() <= 30  # half of the smallest object may be outside the image
    assert 92 <= longest.max() <= 102
    hidden, cut = 0, 0
    for _, objects in images:
        for n, item in enumerate(objects):
            above = np.zeros_like(item.mask)
            for later in objects[n + 1 :]:
                above |= later.mask
            visible = (item.mask & ~above).sum() / item.mask.sum()
            assert visible >= 0.6
            hidden += visible < 0.9
            edges = (item.mask[0], item.mask[-1], item.mask[:, 0], item.mask[:, -1])
            cut += any(edge.any() for edge in edges)
    assert hidden > 50
    assert cut > 20


def test_objects_stand_out_from_what_they_cover() -> None:
    for index in range(60):
        pixels, objects = draw_shapes_image(1, "train", index)
        for n, item in enumerate(objects):
            above = np.zeros_like(item.mask)
            for later in objects[n + 1 :]:
                above |= later.mask
            mask = (item.mask & ~above).astype(np.uint8)
            around = (
                cv2.dilate(mask, np.ones((7, 7))) > cv2.dilate(mask, np.ones((3, 3)))
            ) & ~above
            if item.crowd or not around.any():
                continue
            inside = (
                pixels[cv2.erode(mask, np.ones((3, 3))) > 0]
                if mask.sum() > 150
                else pixels[mask > 0]
            )
            difference = np.abs(np.median(inside, axis=0) - np.median(pixels[around], axis=0)).max()
            assert difference > 15, (index, n)


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    pixels, objects = draw_shapes_image(3, "val", 7)
    again, objects_again = draw_shapes_image(3, "val", 7)
    assert np.array_equal(pixels, again)
    assert [item.label for item in objects] == [item.label for item in objects_again]
    for other in ((4, "val", 7), (3, "train", 7), (3, "val", 8)):
        assert not np.array_equal(pixels, draw_shapes_image(*other)[0])


def test_a_second_call_draws_nothing_and_another_cache_gets_the_same_bytes(
    shapes: Path, tmp_path: Path
) -> None:
    before = (shapes / "annotations" / "train.json").stat().st_mtime_ns
    assert ensure_shapes(shapes.parent, num_train=NUM_TRAIN, num_val=NUM_VAL) == shapes
    assert (shapes / "annotations" / "train.json").stat().st_mtime_ns == before
    assert digest(ensure_shapes(tmp_path, num_train=NUM_TRAIN, num_val=NUM_VAL)) == digest(shapes)


def test_the_first_images_do_not_depend_on_how_many_follow(shapes: Path, tmp_path: Path) -> None:
    small = ensure_shapes(tmp_path, num_train=2, num_val=1)
    assert (small / "train" / "000002.jpg").read_bytes() == (
        shapes / "train" / "000002.jpg"
    ).read_bytes()


def test_arguments_name_the_folder(tmp_path: Path) -> None:
    folders = {
        ensure_shapes(tmp_path, num_train=a, num_val=b, seed=s)
        for a, b, s in ((1, 2, 0), (2, 1, 0), (1, 2, 1))
    }
    assert len(folders) == 3


def test_two_processes_at_once_both_get_the_whole_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both_ready = context.Barrier(2)
    with context.Pool(2, initializer=both_ready.wait) as pool:
        results = [
            pool.apply_async(ensure_shapes, (tmp_path,), {"num_train": 60, "num_val": 2})
            for _ in range(2)
        ]
        first, second = (result.get(timeout=120) for result in results)
    assert first == second
    assert len(list((first / "train").iterdir())) == 60
    assert [path.name for path in tmp_path.iterdir()] == [
        first.name
    ]  # no unfinished folder is left


def test_nothing_is_left_when_drawing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "rename", no_space)
    with pytest.raises(OSError, match="no space left"):
        ensure_shapes(tmp_path, num_train=1, num_val=1)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_taken_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETRES_CACHE", str(tmp_path / "elsewhere"))
    assert ensure_shapes(num_train=1, num_val=1).parent == tmp_path / "elsewhere"


def test_bad_arguments(tmp_path: Path) -> None:
    for arguments in ({"num_train": 0}, {"num_val": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            ensure_shapes(tmp_path, **arguments)
    with pytest.raises(ValueError, match="not 'test'"):
        draw_shapes_image(0, "test", 0)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NotADirectoryError, match="DETRES_CACHE"):
        ensure_shapes(file)
