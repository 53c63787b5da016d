from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detres.class_map import ClassMap
from detres.classification.data.in_memory import (
    ArrayEvalBatches,
    ArrayTrainBatches,
    decode_in_memory,
    mean_of_arrays,
)
from detres.classification.structures import ClassTargets, CropBatch
from detres.engine.batches import StepSampler
from detres.images.decode import ImageReadError
from detres.images.source import ImageArrays, ImageFiles
from tests.images.pixels import write_image

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


# ---- batches ----


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


# ---- files into memory ----


def files_of(paths: list[Path]) -> ImageFiles:
    return ImageFiles(
        "a set",
        ClassMap(("a", "b"), (1, 2)),
        np.array([str(path) for path in paths]),
        np.arange(len(paths)) % 2,
    )


def test_decoding_gives_the_pixels_written(tmp_path: Path) -> None:
    written = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, pixels in zip(paths, written, strict=True):
        Image.fromarray(pixels).save(path)
    files = files_of(paths)
    images = decode_in_memory(files)
    np.testing.assert_array_equal(images.pixels, written)
    assert images.pixels.dtype == np.uint8
    assert images.labels.tolist() == [0, 1, 0, 1, 0]
    assert (images.source, images.class_map) == (files.source, files.class_map)


@pytest.mark.parametrize(
    ("size", "shown"), [((5, 9), "9x5"), ((4, 8), "8x4"), ((1, 8), "8x1")]
)  # numpy would spread the last
def test_one_side_that_differs_is_enough(tmp_path: Path, size: tuple[int, int], shown: str) -> None:
    paths = [write_image(tmp_path / f"{n}.png", size=one) for n, one in enumerate([(5, 8), size])]
    with pytest.raises(
        ValueError,
        match=rf"1\.png has {shown} px, the files before it 8x5: "
        "in memory they must be of one size",
    ):
        decode_in_memory(files_of(paths))


def test_decoding_errors(tmp_path: Path) -> None:
    paths = [
        write_image(tmp_path / f"{n}.png", size=size)
        for n, size in enumerate([(3, 4), (3, 4), (4, 3), (5, 5)])
    ]
    with pytest.raises(ValueError, match=r"2\.png has 3x4 px, the files before it 4x3"):
        decode_in_memory(files_of(paths))
    paths[1].write_bytes(b"\x89PNG no more")
    with pytest.raises(ImageReadError, match=r"1\.png"):
        decode_in_memory(files_of(paths))
    with pytest.raises(ImageReadError, match=r"gone\.png does not exist"):
        decode_in_memory(files_of([tmp_path / "gone.png"]))
    with pytest.raises(ValueError, match="a set has no images"):
        decode_in_memory(files_of([]))


def test_damaged_files_are_left_out_and_listed(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{n}.png", color=(n, 2 * n, 3 * n)) for n in range(7)]
    paths[0].write_bytes(b"no image")
    paths[3].write_bytes(paths[3].read_bytes()[:40])
    paths[4].write_bytes(b"")
    files = ImageFiles(
        "a set",
        ClassMap(tuple("abcdefg"), tuple(range(1, 8))),
        np.array([str(path) for path in paths]),
        np.arange(7),
    )
    images = decode_in_memory(files, damaged="skip")
    assert images.damaged == (str(paths[0]), str(paths[3]), str(paths[4]))
    assert images.labels.tolist() == [1, 2, 5, 6]
    assert images.pixels.shape == (4, 3, 4, 3)
    assert images.pixels[:, 0, 0].tolist() == [[n, 2 * n, 3 * n] for n in (1, 2, 5, 6)]
    assert len(images) == 4
    assert images.class_map == files.class_map
    with pytest.raises(ImageReadError, match=r"0\.png"):
        decode_in_memory(files, damaged="error")
    paths[4].unlink()
    with pytest.raises(ImageReadError, match=r"4\.png does not exist"):
        decode_in_memory(files, damaged="skip")


def test_without_damage_nothing_is_left_out(tmp_path: Path) -> None:
    files = files_of([write_image(tmp_path / f"{n}.png", color=(n, n, n)) for n in range(3)])
    images, same = decode_in_memory(files, damaged="skip"), decode_in_memory(files)
    np.testing.assert_array_equal(images.pixels, same.pixels)
    assert images.labels.tolist() == same.labels.tolist() == [0, 1, 0]
    assert images.damaged == same.damaged == ()


def test_damage_does_not_excuse_another_size(tmp_path: Path) -> None:
    paths = [
        write_image(tmp_path / f"{n}.png", size=size)
        for n, size in enumerate([(5, 5), (3, 4), (4, 3)])
    ]
    paths[0].write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.png has 3x4 px, the files before it 4x3"):
        decode_in_memory(files_of(paths), damaged="skip")


def test_all_files_damaged_is_an_error(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{n}.png") for n in range(3)]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(
        ImageReadError, match=r"a set: none of the 3 images can be read, the first is \S*0\.png"
    ):
        decode_in_memory(files_of(paths), damaged="skip")
    with pytest.raises(ValueError, match="a set has no images"):
        decode_in_memory(files_of([]), damaged="skip")


# ---- the mean ----


def test_the_mean_of_arrays_by_hand() -> None:
    pixels = np.zeros((3, 2, 4, 3), np.uint8)
    pixels[0, 1, 3] = (3, 60, 255)
    pixels[1, 1, 3] = (6, 0, 255)
    pixels[2, 1, 3] = (0, 1, 255)
    pixels[2, 0, 0, 2] = 1
    images = ImageArrays("three", ClassMap.of_names(("a",)), pixels, np.zeros(3, np.int64))
    mean = mean_of_arrays(images)
    assert (mean.shape, mean.dtype, mean.is_contiguous()) == ((3, 2, 4), torch.float32, True)
    assert mean[:, 1, 3].tolist() == pytest.approx([3.0, 61 / 3, 255.0])
    assert mean[2, 0, 0].item() == pytest.approx(1 / 3)
    assert mean.count_nonzero() == 4


def test_the_mean_of_one_array_is_that_array_and_many_do_not_overflow() -> None:
    one = random_images(1)
    assert np.array_equal(mean_of_arrays(one).permute(1, 2, 0).numpy(), one.pixels[0])
    bright = ImageArrays(
        "bright", one.class_map, np.full((3000, 1, 1, 3), 254, np.uint8), np.zeros(3000, np.int64)
    )
    assert mean_of_arrays(bright).flatten().tolist() == [254.0] * 3
