from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from detres.data.array_batches import ArrayEvalBatches, ArrayTrainBatches
from detres.data.loader import StepSampler
from detres.structures import ClassMap, ClassTargets, CropBatch, ImageArrays

Batch = tuple[CropBatch, ClassTargets]


def random_images(num: int, height: int = 6, width: int = 5, seed: int = 0) -> ImageArrays:
    """Random images without black pixels, so that padding can be told apart."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 256, (num, height, width, 3), dtype=np.uint8)
    return ImageArrays(
        "random", ClassMap(("a", "b", "c"), (1, 2, 3)), pixels, rng.integers(0, 3, num)
    )


def naive_crop(image: np.ndarray, pad: int, top: int, left: int, mirrored: bool) -> np.ndarray:
    """One crop (3, H, W) pixel by pixel: outside the image it is black."""
    height, width = image.shape[:2]
    crop = np.zeros((3, height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            row, column = y + top - pad, x + left - pad
            if 0 <= row < height and 0 <= column < width:
                crop[:, y, width - 1 - x if mirrored else x] = image[row, column]
    return crop


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        assert torch.equal(images.pixels, other_images.pixels)
        assert images.ids == other_images.ids
        assert torch.equal(targets.labels, other_targets.labels)


@pytest.mark.parametrize(("pad", "flip"), [(4, 0.5), (2, 0.3), (0, 0.5), (1, 0.0)])
def test_crops_equal_a_naive_loop_with_the_same_random_numbers(pad: int, flip: float) -> None:
    images = random_images(7)
    order = list(StepSampler(np.ones(7), batch_size=4, seed=5, steps=6, group_by_aspect=False))
    batches = list(ArrayTrainBatches(images, batch_size=4, seed=5, steps=6, pad=pad, flip=flip))
    assert len(batches) == 6
    for step, (batch, targets) in enumerate(batches):
        indices = [index for index, _ in order[step]]
        rng = np.random.default_rng((5, 2, step))
        corners = rng.integers(0, 2 * pad + 1, (2, 4))
        mirrored = rng.random(4) < flip
        expected = [
            naive_crop(images.pixels[i], pad, *corners[:, n], mirrored[n])
            for n, i in enumerate(indices)
        ]
        np.testing.assert_array_equal(batch.pixels.numpy(), np.stack(expected))
        assert batch.pixels.dtype == torch.uint8
        assert batch.ids == tuple(indices)
        assert targets.labels.tolist() == images.labels[indices].tolist()


def test_every_crop_and_mirror_comes_about_equally_often() -> None:
    images = random_images(1)
    pad, steps, batch_size = 1, 100, 36
    candidates = {
        naive_crop(images.pixels[0], pad, top, left, mirrored).tobytes(): (top, left, mirrored)
        for top in range(3)
        for left in range(3)
        for mirrored in (False, True)
    }
    assert len(candidates) == 18
    batches = ArrayTrainBatches(
        images, batch_size=batch_size, seed=0, steps=steps, pad=pad, flip=0.25
    )
    seen = Counter(
        candidates[crop.numpy().tobytes()]
        for batch, _ in batches
        for crop in batch.pixels.contiguous()
    )
    draws = steps * batch_size
    for (_, _, mirrored), number in seen.items():
        share = (0.25 if mirrored else 0.75) / 9
        assert abs(number - draws * share) < 4 * np.sqrt(draws * share * (1 - share))
    assert len(seen) == 18


def test_without_padding_and_flip_images_stay_as_they_are() -> None:
    images = random_images(5)
    for batch, _ in ArrayTrainBatches(images, batch_size=3, seed=1, steps=4, pad=0, flip=0.0):
        np.testing.assert_array_equal(
            batch.pixels.permute(0, 2, 3, 1).numpy(), images.pixels[list(batch.ids)]
        )
    for batch, _ in ArrayTrainBatches(images, batch_size=3, seed=1, steps=4, pad=0, flip=1.0):
        np.testing.assert_array_equal(
            batch.pixels.permute(0, 2, 3, 1).numpy(), images.pixels[list(batch.ids)][:, :, ::-1]
        )


@pytest.mark.parametrize(("num", "batch_size"), [(12, 4), (13, 4), (5, 1), (3, 8)])
def test_every_image_comes_each_epoch_in_full_batches(num: int, batch_size: int) -> None:
    per_epoch = -(-num // batch_size)
    images = random_images(num)
    batches = list(ArrayTrainBatches(images, batch_size=batch_size, seed=0, steps=2 * per_epoch))
    for epoch in range(2):
        ids = [
            index
            for batch, _ in batches[epoch * per_epoch : (epoch + 1) * per_epoch]
            for index in batch.ids
        ]
        assert len(ids) == per_epoch * batch_size
        assert set(ids) == set(range(num))
        assert num % batch_size or len(ids) == num
    assert all(batch.pixels.shape == (batch_size, 3, 6, 5) for batch, _ in batches)
    assert all(
        targets.labels.tolist() == images.labels[list(batch.ids)].tolist()
        for batch, targets in batches
    )


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9, 10])
def test_starting_at_a_step_gives_the_tail_of_the_whole(start: int) -> None:
    images = random_images(9)
    arguments = {"batch_size": 3, "seed": 7, "steps": 10}
    whole = list(ArrayTrainBatches(images, **arguments))
    tail = ArrayTrainBatches(images, start_step=start, **arguments)
    assert len(tail) == 10 - start
    assert_same(list(tail), whole[start:])
    assert_same(list(tail), whole[start:])  # a second pass as well


def test_batches_change_with_the_seed_and_the_step() -> None:
    images = random_images(1, height=12, width=12)
    batches = [
        batch
        for seed in (0, 1)
        for batch, _ in ArrayTrainBatches(images, batch_size=4, seed=seed, steps=3)
    ]
    assert len({batch.pixels.contiguous().numpy().tobytes() for batch in batches}) == 6


def test_the_images_and_the_global_random_state_are_left_alone() -> None:
    images = random_images(6)
    before, torch_state, numpy_state = (
        images.pixels.copy(),
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
    )
    for batch, _ in ArrayTrainBatches(images, batch_size=3, seed=0, steps=3, pad=0, flip=0.0):
        batch.pixels.zero_()
    np.testing.assert_array_equal(images.pixels, before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_train_and_eval_batches_are_channels_last_in_memory() -> None:
    images = random_images(6)
    for batches in (
        ArrayTrainBatches(images, batch_size=4, seed=0, steps=2),
        ArrayEvalBatches(images, batch_size=4),
    ):
        for batch, _ in batches:
            assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
            assert not batch.pixels.is_contiguous()


def test_no_images_and_no_batch_are_refused_in_training() -> None:
    with pytest.raises(ValueError, match="0 images in batches of 2"):
        ArrayTrainBatches(random_images(0), batch_size=2, seed=0, steps=1)
    with pytest.raises(ValueError, match="3 images in batches of 0"):
        ArrayTrainBatches(random_images(3), batch_size=0, seed=0, steps=1)


@pytest.mark.parametrize(
    ("num", "batch_size", "sizes"),
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (1, 1, [1]), (0, 4, [])],
)
def test_evaluation_sees_every_image_once_in_order_as_it_is(
    num: int, batch_size: int, sizes: list[int]
) -> None:
    images = random_images(num)
    loader = ArrayEvalBatches(images, batch_size=batch_size)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch, _ in batches] == sizes
        assert len(loader) == len(sizes)
        assert [index for batch, _ in batches for index in batch.ids] == list(range(num))
        assert [
            label for _, targets in batches for label in targets.labels.tolist()
        ] == images.labels.tolist()
        pixels = [
            image for batch, _ in batches for image in batch.pixels.permute(0, 2, 3, 1).numpy()
        ]
        assert all((image == own).all() for image, own in zip(pixels, images.pixels, strict=True))
