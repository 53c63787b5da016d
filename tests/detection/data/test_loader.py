from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detres.detection.annotations import Annotations
from detres.detection.build import eval_loader, train_loader
from detres.detection.data.coco import read_coco
from detres.detection.data.loader import DetectionDataset, Item, PyramidDataset, collate
from detres.detection.data.shapes import ensure_shapes
from detres.detection.data.transforms import EvalTransform, TrainTransform
from detres.detection.structures import Proposals, Target
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
