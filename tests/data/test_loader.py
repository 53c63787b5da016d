from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from detres.data.coco import read_coco
from detres.data.loader import DetectionDataset, StepSampler, collate, eval_loader, train_loader
from detres.data.shapes import ensure_shapes
from detres.data.transforms import EvalTransform, TrainTransform
from detres.image_io import ImageReadError
from detres.structures import Annotations, ImageBatch, Target

Batch = tuple[ImageBatch, list[Target]]


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    folder = ensure_shapes(tmp_path_factory.mktemp("cache"), num_train=21, num_val=1)
    return read_coco(folder / "annotations" / "train.json", folder / "train")


def train_set(annotations: Annotations) -> DetectionDataset:
    return DetectionDataset(annotations, TrainTransform(shorter=(96, 128), longer=200, color=0.2))


def random_ratios(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2.0, num)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        assert torch.equal(images.pixels, other_images.pixels)
        assert (images.sizes, images.original_sizes, images.ids) == (
            other_images.sizes,
            other_images.original_sizes,
            other_images.ids,
        )
        for target, other in zip(targets, other_targets, strict=True):
            assert target.image_id == other.image_id
            for name in ("boxes", "labels", "crowd", "difficult"):
                assert torch.equal(getattr(target, name), getattr(other, name))


@pytest.mark.parametrize(
    ("num", "batch_size"), [(40, 8), (41, 8), (7, 2), (5, 1), (3, 4), (1, 8), (100, 3)]
)
@pytest.mark.parametrize("group", [True, False])
def test_every_batch_is_full_and_every_image_comes_each_epoch(
    num: int, batch_size: int, group: bool
) -> None:
    per_epoch = -(-num // batch_size)
    ratios = random_ratios(num)
    batches = list(
        StepSampler(
            ratios, batch_size=batch_size, seed=0, steps=3 * per_epoch, group_by_aspect=group
        )
    )
    assert all(len(batch) == batch_size for batch in batches)
    for epoch in range(3):
        seen = Counter(
            index
            for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch]
            for index, _ in batch
        )
        assert set(seen) == set(range(num))
        assert sum(seen.values()) - num == per_epoch * batch_size - num < batch_size
        if num >= batch_size:
            assert max(seen.values()) <= 2
        if num % batch_size == 0:
            assert set(seen.values()) == {1}


def test_wide_and_tall_images_meet_in_two_batches_of_an_epoch_at_most() -> None:
    for seed in range(20):
        ratios = random_ratios(101, seed)
        batches = list(StepSampler(ratios, batch_size=4, seed=seed, steps=26))
        mixed = sum(len({bool(ratios[index] < 1) for index, _ in batch}) == 2 for batch in batches)
        assert mixed <= 2
    ungrouped = list(StepSampler(ratios, batch_size=4, seed=0, steps=26, group_by_aspect=False))
    assert (
        sum(len({bool(ratios[index] < 1) for index, _ in batch}) == 2 for batch in ungrouped) > 10
    )


@pytest.mark.parametrize("start", [0, 1, 5, 6, 17, 30])
def test_starting_at_a_step_gives_the_tail_of_the_whole(start: int) -> None:
    arguments = {"batch_size": 4, "seed": 7, "steps": 30}
    whole = list(StepSampler(random_ratios(22), **arguments))
    tail = StepSampler(random_ratios(22), start_step=start, **arguments)
    assert list(tail) == whole[start:]
    assert list(tail) == whole[start:]  # a second pass as well
    assert len(tail) == 30 - start


def test_order_and_item_seeds_change_with_the_seed_the_epoch_and_the_item() -> None:
    sampler = list(StepSampler(random_ratios(40), batch_size=8, seed=0, steps=10))
    other = list(StepSampler(random_ratios(40), batch_size=8, seed=1, steps=10))
    indices = [[index for index, _ in batch] for batch in sampler]
    assert indices[:5] != indices[5:]
    assert indices != [[index for index, _ in batch] for batch in other]
    seeds = [seed for batch in sampler + other for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


def test_sampler_errors() -> None:
    with pytest.raises(ValueError, match="0 images"):
        StepSampler(np.zeros(0), batch_size=2, seed=0, steps=1)
    with pytest.raises(ValueError, match="batches of 0"):
        StepSampler(np.ones(3), batch_size=0, seed=0, steps=1)


def test_item_is_the_image_its_target_and_its_size_on_disk(annotations: Annotations) -> None:
    dataset = DetectionDataset(annotations, EvalTransform(shorter=96, longer=200))
    image, target, original_size = dataset[4, 0]
    height, width = annotations.image_sizes[4]
    assert original_size == (height, width)
    assert min(image.shape[:2]) == 96
    assert target.image_id == annotations.image_ids[4]
    ratios = torch.tensor(
        [image.shape[1] / width, image.shape[0] / height] * 2, dtype=torch.float32
    )
    torch.testing.assert_close(target.boxes, annotations.target(4).boxes * ratios)
    assert dataset.aspect_ratios()[4] == pytest.approx(width / height)


def test_unknown_sizes_count_as_square(annotations: Annotations) -> None:
    sizes = annotations.image_sizes.copy()
    sizes[3] = 0
    unknown = Annotations(**{**vars(annotations), "image_sizes": sizes})
    assert (
        DetectionDataset(unknown, EvalTransform(shorter=96, longer=200)).aspect_ratios()[3] == 1.0
    )


def test_collate_pads_and_keeps_sizes() -> None:
    def item(height: int, width: int, image_id: int) -> tuple[np.ndarray, Target, tuple[int, int]]:
        flags = torch.zeros(1, dtype=torch.bool)
        target = Target(
            image_id, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([1]), flags, flags
        )
        return np.full((height, width, 3), image_id, np.uint8), target, (2 * height, 2 * width)

    images, targets = collate([item(30, 40, 7), item(20, 70, 8)])
    assert images.pixels.shape == (2, 3, 32, 96)
    assert images.sizes == ((30, 40), (20, 70))
    assert images.original_sizes == ((60, 80), (40, 140))
    assert images.ids == (7, 8)
    assert [target.image_id for target in targets] == [7, 8]
    assert images.pixels[1].sum() == 20 * 70 * 3 * 8
    with pytest.raises(ValueError, match="at least one image"):
        collate([])


def test_batches_do_not_depend_on_workers_or_on_where_a_run_starts(
    annotations: Annotations,
) -> None:
    dataset = train_set(annotations)
    arguments = {"batch_size": 4, "steps": 9, "seed": 3}
    alone = list(train_loader(dataset, **arguments))
    assert len(alone) == 9
    assert_same(alone, list(train_loader(dataset, num_workers=2, **arguments)))
    assert_same(alone[4:], list(train_loader(dataset, start_step=4, num_workers=1, **arguments)))


def test_loading_leaves_the_global_random_state_alone(annotations: Annotations) -> None:
    before = torch.get_rng_state()
    numpy_before = pickle.dumps(np.random.get_state())
    list(train_loader(train_set(annotations), batch_size=4, steps=2, seed=0))
    assert torch.equal(torch.get_rng_state(), before)
    assert pickle.dumps(np.random.get_state()) == numpy_before


def test_a_data_set_survives_pickling_for_spawned_workers(annotations: Annotations) -> None:
    dataset = train_set(annotations)
    image, target, _ = pickle.loads(pickle.dumps(dataset))[2, 11]
    expected_image, expected_target, _ = dataset[2, 11]
    assert np.array_equal(image, expected_image)
    assert torch.equal(target.boxes, expected_target.boxes)


def test_evaluation_sees_every_image_once_in_order(annotations: Annotations) -> None:
    dataset = DetectionDataset(annotations, EvalTransform(shorter=96, longer=200))
    loader = eval_loader(dataset, batch_size=4, num_workers=1)
    for _ in range(2):  # it can be gone through again
        batches = list(loader)
        assert [len(images) for images, _ in batches] == [4, 4, 4, 4, 4, 1]
        assert [i for images, _ in batches for i in images.ids] == annotations.image_ids.tolist()
    assert_same(batches, list(eval_loader(dataset, batch_size=4)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_named(
    annotations: Annotations, tmp_path: Path, num_workers: int
) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(Path(annotations.image_files[0]).read_bytes()[:900])
    files = np.array([str(damaged), *annotations.image_files[1:]])
    broken = Annotations(**{**vars(annotations), "image_files": files})
    loader = eval_loader(
        DetectionDataset(broken, EvalTransform(shorter=96, longer=200)),
        batch_size=4,
        num_workers=num_workers,
    )
    with pytest.raises(ImageReadError, match=r"damaged\.jpg"):
        next(iter(loader))


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
    dataset = DetectionDataset(annotations, TrainTransform(shorter=(150,), longer=250))
    for images, targets in train_loader(dataset, batch_size=2, steps=6, seed=0):
        assert all(min(size) <= 150 and max(size) <= 250 for size in images.sizes)
        for (height, width), target in zip(images.sizes, targets, strict=True):
            assert (target.boxes >= 0).all()
            assert (target.boxes <= torch.tensor([width, height, width, height])).all()
