from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.build import eval_loader, train_loader
from detres.detection.data.coco import read_coco
from detres.detection.data.loader import DetectionDataset, Item, PyramidDataset, collate
from detres.detection.data.shapes import ensure_shapes
from detres.detection.data.transforms import EvalTransform, TrainTransform
from detres.detection.structures import Proposals, Target
from detres.images.cache import ImageCache
from detres.images.decode import ImageReadError


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    folder = ensure_shapes(tmp_path_factory.mktemp("cache"), num_train=21, num_val=1)
    return read_coco(folder / "annotations" / "train.json", folder / "train")


def train_set(annotations: Annotations) -> DetectionDataset:
    return DetectionDataset(
        annotations, TrainTransform(short_sides=(96, 128), max_side=200, color=0.2)
    )


def test_item_is_the_image_its_target_and_its_size_on_disk(annotations: Annotations) -> None:
    dataset = DetectionDataset(annotations, EvalTransform(short_side=96, max_side=200))
    image, target, original_size, proposals, _ = dataset[4, 0]
    assert proposals is None
    height, width = annotations.image_sizes[4]
    assert original_size == (height, width)
    assert min(image.shape[:2]) == 96
    assert target.image_id == annotations.image_ids[4]
    ratios = torch.tensor(
        [image.shape[1] / width, image.shape[0] / height] * 2, dtype=torch.float32
    )
    torch.testing.assert_close(target.boxes, annotations.target(4).boxes * ratios)
    assert dataset.aspect_ratios()[4] == pytest.approx(width / height)


def test_a_box_that_the_transform_leaves_infinite_is_named(annotations: Annotations) -> None:
    def spoiling(image: np.ndarray, target: Target, _seed: int) -> tuple[np.ndarray, Target]:
        target.boxes[1, 2] = torch.inf
        return image, target

    (index, *_) = np.nonzero(np.diff(annotations.offsets) > 1)[0]
    message = re.escape(f"{annotations.image_files[index]}: box 1 of ")
    with pytest.raises(ValueError, match=rf"^{message}.* is \[.*, inf, .*which is not finite$"):
        DetectionDataset(annotations, spoiling)[index, 0]


def test_unknown_sizes_count_as_square(annotations: Annotations) -> None:
    sizes = annotations.image_sizes.copy()
    sizes[3:6] = (0, 0), (0, 50), (50, 0)
    unknown = Annotations(**{**vars(annotations), "image_sizes": sizes})
    ratios = DetectionDataset(unknown, EvalTransform(short_side=96, max_side=200)).aspect_ratios()
    assert ratios[3:6].tolist() == [1.0, 1.0, 1.0]


def test_collate_pads_and_keeps_sizes() -> None:
    def item(height: int, width: int, image_id: int) -> Item:
        flags = torch.zeros(1, dtype=torch.bool)
        target = Target(
            image_id, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([1]), flags, flags
        )
        pixels = np.full((height, width, 3), image_id, np.uint8)
        return Item(pixels, target, (2 * height, 2 * width))

    images, targets = collate([item(30, 40, 7), item(20, 70, 8)])
    assert images.pixels.shape == (2, 3, 32, 70)
    assert images.sizes == ((30, 40), (20, 70))
    assert images.original_sizes == ((60, 80), (40, 140))
    assert images.ids == (7, 8)
    assert [target.image_id for target in targets] == [7, 8]
    assert images.pixels[1].sum() == 20 * 70 * 3 * 8
    with pytest.raises(ValueError, match="at least one image"):
        collate([])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pyramid_is_the_same_images_at_every_scale(
    annotations: Annotations, num_workers: int
) -> None:
    scales = ((96, 120), (48, 60), (160, 160))
    together = eval_loader(
        PyramidDataset(annotations, scales), batch_size=4, num_workers=num_workers
    )
    apart = [
        eval_loader(
            DetectionDataset(annotations, EvalTransform(short_side=side, max_side=cap)),
            batch_size=4,
        )
        for side, cap in scales
    ]
    for (images, targets), *others in zip(together, *apart, strict=True):
        assert list(images.others) == list(scales[1:])
        for scale, (expected, at_scale) in zip(scales, others, strict=True):
            own = images if scale == scales[0] else images.others[scale]
            assert torch.equal(own.pixels, expected.pixels)
            assert (own.sizes, own.ids) == (expected.sizes, expected.ids)
            assert own.original_sizes == expected.original_sizes
            if scale == scales[0]:
                for mine, other in zip(targets, at_scale, strict=True):
                    assert torch.equal(mine.boxes, other.boxes)


def test_loading_leaves_the_global_random_state_alone(annotations: Annotations) -> None:
    before = torch.get_rng_state()
    numpy_before = pickle.dumps(np.random.get_state())
    list(train_loader(train_set(annotations), batch_size=4, steps=2, seed=0))
    assert torch.equal(torch.get_rng_state(), before)
    assert pickle.dumps(np.random.get_state()) == numpy_before


def test_a_data_set_survives_pickling_for_spawned_workers(annotations: Annotations) -> None:
    dataset = train_set(annotations)
    image, target, *_ = pickle.loads(pickle.dumps(dataset))[2, 11]
    expected_image, expected_target, *_ = dataset[2, 11]
    assert np.array_equal(image, expected_image)
    assert torch.equal(target.boxes, expected_target.boxes)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_named(
    annotations: Annotations, tmp_path: Path, num_workers: int
) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(Path(annotations.image_files[0]).read_bytes()[:900])
    files = np.array([str(damaged), *annotations.image_files[1:]])
    broken = Annotations(**{**vars(annotations), "image_files": files})
    loader = eval_loader(
        DetectionDataset(broken, EvalTransform(short_side=96, max_side=200)),
        batch_size=4,
        num_workers=num_workers,
    )
    with pytest.raises(ImageReadError, match=r"damaged\.jpg"):
        next(iter(loader))


@pytest.mark.parametrize("more", [(1, 0), (0, 1)])
def test_a_file_of_another_size_than_annotated_is_named(
    annotations: Annotations, more: tuple[int, int]
) -> None:
    sizes = annotations.image_sizes.copy()
    sizes[2] += more
    wrong = Annotations(**{**vars(annotations), "image_sizes": sizes})
    dataset = DetectionDataset(wrong, EvalTransform(short_side=96, max_side=200))
    name = Path(annotations.image_files[2]).name
    with pytest.raises(ValueError, match=f"{name}: the annotations say"):
        dataset[2, 0]
    dataset[3, 0]


def test_an_empty_data_set_is_refused(annotations: Annotations) -> None:
    empty = {
        name: value[:0]
        for name, value in vars(annotations).items()
        if isinstance(value, np.ndarray)
    }
    none = Annotations(**{**vars(annotations), **empty, "offsets": np.zeros(1, np.int64)})
    with pytest.raises(ValueError, match="has no images"):
        train_set(none)


def test_real_photographs_load(shared_data) -> None:
    folder = shared_data("coco_mini")
    file = next((folder / "annotations").glob("instances_val*.json"))
    annotations = read_coco(file, folder / file.stem.removeprefix("instances_"))
    dataset = DetectionDataset(annotations, TrainTransform(short_sides=(150,), max_side=250))
    for images, targets in train_loader(dataset, batch_size=2, steps=6, seed=0):
        assert all(min(size) <= 150 and max(size) <= 250 for size in images.sizes)
        for (height, width), target in zip(images.sizes, targets, strict=True):
            assert (target.boxes >= 0).all()
            assert (target.boxes <= torch.tensor([width, height, width, height])).all()


def proposals_for(annotations: Annotations) -> Proposals:
    """Of image n, n % 3 boxes: its corner, n + 1 px wide."""
    counts = np.arange(len(annotations)) % 3
    owners = np.repeat(np.arange(len(annotations)), counts)
    boxes = np.zeros((len(owners), 4))
    boxes[:, 2], boxes[:, 3] = owners + 1, 10
    return Proposals(
        source="proposals",
        image_ids=annotations.image_ids,
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        boxes=boxes,
        scores=np.ones(len(owners), np.float32),
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_proposals_come_with_the_images_of_their_batch(
    annotations: Annotations, num_workers: int
) -> None:
    dataset = DetectionDataset(
        annotations, EvalTransform(short_side=96, max_side=200), proposals_for(annotations)
    )
    row = 0
    for images, _ in eval_loader(dataset, batch_size=4, num_workers=num_workers):
        assert len(images.proposals) == len(images)
        for boxes, (height, width), (own_height, own_width) in zip(
            images.proposals, images.sizes, images.original_sizes, strict=True
        ):
            corner = [0, 0, (row + 1) * width / own_width, 10 * height / own_height]
            expected = torch.tensor([corner], dtype=torch.float32).expand(row % 3, 4)
            torch.testing.assert_close(boxes, expected)
            row += 1
    assert row == len(annotations)


def test_proposals_move_with_their_batch(annotations: Annotations) -> None:
    dataset = DetectionDataset(
        annotations, EvalTransform(short_side=96, max_side=200), proposals_for(annotations)
    )
    images, _ = collate([dataset[1, 0], dataset[2, 0]])
    moved = images.to("meta")
    assert moved.pixels.is_meta
    assert [boxes.is_meta for boxes in moved.proposals] == [True, True]
    assert collate([train_set(annotations)[0, 0]])[0].to("cpu").proposals is None


def test_proposals_of_other_images_are_refused(annotations: Annotations) -> None:
    other = proposals_for(annotations)
    other = replace(other, image_ids=other.image_ids[::-1])
    with pytest.raises(ValueError, match="proposals are not of the images of"):
        DetectionDataset(annotations, EvalTransform(short_side=96, max_side=200), other)


def same_item(one: Item, other: Item) -> None:
    np.testing.assert_array_equal(one.image, other.image)
    assert one.original_size == other.original_size
    for name in ("boxes", "labels", "crowd", "difficult"):
        assert torch.equal(getattr(one.target, name), getattr(other.target, name))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("share", [1.0, 0.4])  # of the bytes of all images
def test_batches_are_the_same_with_a_cache(
    annotations: Annotations, workers: int, share: float
) -> None:
    plain = train_set(annotations)
    budget = round(share * 3 * int(annotations.image_sizes.prod(axis=1).sum()))
    cache = ImageCache(len(annotations), budget)
    cached = DetectionDataset(annotations, plain.transform, cache=cache)
    loaders = [
        train_loader(one, batch_size=3, steps=21, seed=5, num_workers=workers)
        for one in (plain, cached)
    ]
    for (images, targets), (others, other_targets) in zip(*loaders, strict=True):
        assert torch.equal(images.pixels, others.pixels)
        assert (images.sizes, images.ids) == (others.sizes, others.ids)
        assert images.original_sizes == others.original_sizes
        for target, other in zip(targets, other_targets, strict=True):
            assert torch.equal(target.boxes, other.boxes)
    # three passes: what any worker has read is here, too
    kept = len(cache)
    assert kept == len(annotations) if share == 1 else 0 < kept < len(annotations)


def test_a_kept_image_is_not_read_again_and_not_changed_by_its_user(
    annotations: Annotations, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(Path(annotations.image_files[0]).read_bytes())
    height, width = annotations.image_sizes[0].tolist()
    one = replace(annotations.subset(np.array([0]), "one"), image_files=np.array([str(file)]))

    def spoiling(image: np.ndarray, target: Target, _seed: int) -> tuple[np.ndarray, Target]:
        changed = image.copy()
        image[:] = 0
        return changed, target

    dataset = DetectionDataset(one, spoiling, cache=ImageCache(1, height * width * 3))
    first = dataset[0, 0]
    file.unlink()
    same_item(first, dataset[0, 1])
    assert first.image.any()
    with pytest.raises(ImageReadError):
        DetectionDataset(one, spoiling)[0, 0]


BRIGHT = (240, 250, 230)
WHERE = np.array([[400.0, 160, 720, 480]])


@pytest.fixture(scope="module", params=[1, 3, 6])
def large(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Annotations, np.ndarray]:
    """A JPEG of 1201x903 px upright with a bright rectangle at WHERE, stored as its EXIF
    orientation says; sides that no scale divides.
    """
    pixels = np.full((903, 1201, 3), 20, np.uint8)
    pixels[160:480, 400:720] = BRIGHT
    stored = {1: pixels, 3: np.rot90(pixels, 2), 6: np.rot90(pixels)}[request.param]
    exif = Image.Exif()
    exif[0x0112] = request.param
    file = tmp_path_factory.mktemp("large") / "a.jpg"
    Image.fromarray(np.ascontiguousarray(stored)).save(file, quality=95, exif=exif)
    objects = Annotations(
        source="large",
        class_map=ClassMap(("box",), (1,)),
        image_ids=np.array([1]),
        image_files=np.array([str(file)]),
        image_sizes=np.array([[903, 1201]], np.int32),
        offsets=np.array([0, 1]),
        boxes=WHERE,
        labels=np.array([1]),
        areas=np.array([320.0**2]),
        crowd=np.zeros(1, bool),
        difficult=np.zeros(1, bool),
        ids=np.array([1]),
        dropped={},
    )
    return objects, pixels


def edges_of(image: np.ndarray) -> list[float]:
    """x1, y1, x2, y2 of the bright rectangle, to a part of a pixel: where half of the way is."""
    level = (image[..., 0].astype(float) - 20) / (BRIGHT[0] - 20)
    middle = [int(np.median(np.nonzero(level > 0.5)[axis])) for axis in (0, 1)]
    found = []
    for line in (level[middle[0]], level[:, middle[1]]):
        inside = np.nonzero(line > 0.5)[0]
        first, last = inside[0], inside[-1]
        found.append(
            (
                first - 0.5 + 1 - line[first - 1 : first + 1].sum() + 0.5,
                last + line[last : last + 2].sum(),
            )
        )
    (x1, x2), (y1, y2) = found
    return [x1, y1, x2, y2]


@pytest.mark.parametrize(("side", "scale"), [(600, 1), (400, 2), (225, 4), (100, 8)])
@pytest.mark.parametrize("cached", [False, True])
def test_boxes_fit_what_is_decoded_at_a_reduced_scale(
    large: tuple[Annotations, np.ndarray], side: int, scale: int, cached: bool
) -> None:
    objects, _ = large
    transform = TrainTransform(short_sides=(side // 2, side), max_side=2000, flip=0.0)
    cache = ImageCache(1, 10**7) if cached else None
    dataset = DetectionDataset(objects, transform, needed=transform.largest, cache=cache)
    whole = DetectionDataset(objects, transform)
    for seed in range(4):
        item, expected = dataset[0, seed], whole[0, seed]
        assert dataset._read(0).scale == scale
        assert item.original_size == expected.original_size == (903, 1201)
        difference = np.subtract(item.image.shape, expected.image.shape)
        assert np.abs(difference).max() <= 1
        np.testing.assert_allclose(item.target.boxes[0], edges_of(item.image), atol=0.5)
        if scale == 1:
            same_item(item, expected)


def test_proposals_go_with_the_reduced_scale(large: tuple[Annotations, np.ndarray]) -> None:
    objects, _ = large
    given = Proposals("p", np.array([1]), np.array([0, 1]), WHERE, np.ones(1, np.float32))
    transform = TrainTransform(short_sides=(200,), max_side=2000, flip=1.0)
    item = DetectionDataset(objects, transform, given, needed=transform.largest)[0, 0]
    torch.testing.assert_close(item.proposals, item.target.boxes, atol=1e-3, rtol=0)
