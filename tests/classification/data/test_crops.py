"""Crops: torchvision's transforms are the witnesses."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop as TorchvisionCenterCrop
from torchvision.transforms import Resize
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.v2 import RandAugment

from detres.class_map import ClassMap
from detres.classification.data.crops import (
    PCA_VALUES,
    PCA_VECTORS,
    CenterCrop,
    CropDataset,
    TrainCrop,
    WholeImage,
    collate_crops,
    crop_eval_loader,
    crop_train_loader,
    mean_of_crops,
)
from detres.classification.structures import ClassTargets, CropBatch
from detres.engine.batches import StepSampler
from detres.images.decode import ImageReadError
from detres.images.resize import resized_window, scaled_size
from detres.images.source import ImageFiles
from tests.images.pixels import SHIFT, noise, off_by, smooth, steps_of

Batch = tuple[CropBatch, ClassTargets]


# ---- training ----


@pytest.mark.parametrize("pca", [0, 0.1])
def test_a_crop_is_a_pure_function_of_image_and_seed(pca: float) -> None:
    transform = TrainCrop(short_sides=(32, 64), crop_side=24, flip=0.5, pca=pca)
    image = noise(50, 70)
    given = image.copy()
    crops = [transform(image, seed) for seed in range(30)]
    assert np.array_equal(image, given)
    np.random.seed(5)
    torch.manual_seed(5)
    again = [pickle.loads(pickle.dumps(transform))(image, seed) for seed in reversed(range(30))]
    for crop, other in zip(crops, reversed(again), strict=True):
        assert (crop.shape, crop.dtype, crop.flags.c_contiguous) == ((24, 24, 3), np.uint8, True)
        assert np.array_equal(crop, other)
    assert len({crop.tobytes() for crop in crops}) == 30


def test_scales_corners_and_mirrors_cover_their_whole_ranges() -> None:
    # Every crop of a small image that there can be: 16x24, 17x25 and 18x27 px hold 1 * 9, 2 * 10
    # and 3 * 12 corners.
    image = noise(24, 36)
    crops = {}
    for short_side in (16, 17, 18):
        size = scaled_size(24, 36, short_side)
        for top in range(size[0] - 15):
            for left in range(size[1] - 15):
                window = resized_window(image, size, (top, left), 16)
                crops[window.tobytes()] = (short_side, False)
                crops[window[:, ::-1].tobytes()] = (short_side, True)
    assert len(crops) == 2 * (9 + 20 + 36)
    transform = TrainCrop(short_sides=(16, 18), crop_side=16, flip=0.3, pca=0)
    number = 3000
    found = Counter(transform(image, seed).tobytes() for seed in range(number))
    assert set(found) == set(crops)
    drawn = Counter()
    for crop, count in found.items():
        drawn[crops[crop]] += count
    for short_side in (16, 17, 18):  # a third each, within 4 standard deviations
        assert (
            abs(drawn[short_side, False] + drawn[short_side, True] - number / 3)
            < 4 * (number * 2 / 9) ** 0.5
        )
    mirrored = sum(count for (_, flipped), count in drawn.items() if flipped)
    assert abs(mirrored - 0.3 * number) < 4 * (number * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_never_and_always_mirrored(flip: float) -> None:
    image = noise(16, 16)
    transform = TrainCrop(short_sides=(16, 16), crop_side=16, flip=flip, pca=0)
    for seed in range(50):
        assert np.array_equal(transform(image, seed), image[:, ::-1] if flip else image)


def test_principal_components_are_an_orthonormal_basis_in_columns() -> None:
    assert np.allclose(PCA_VECTORS.T @ PCA_VECTORS, np.eye(3), atol=5e-4)  # of four decimals
    # In photographs brightness varies most: along the first component all channels move the same
    # way, by about as much.
    first = PCA_VECTORS[:, np.argmax(PCA_VALUES)]
    assert np.abs(first - np.sign(first[0]) / 3**0.5).max() < 0.01
    assert (np.diff(PCA_VALUES) < 0).all()


@pytest.mark.parametrize(("level", "pca"), [(128, 0.1), (128, 0.5), (3, 0.5), (250, 0.5)])
def test_a_grey_image_is_shifted_by_the_formula(level: int, pca: float) -> None:
    image = np.full((8, 8, 3), level, np.uint8)
    transform = TrainCrop(short_sides=(8, 8), crop_side=8, flip=0.5, pca=pca)
    clipped = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        (
            rng.integers(8, 9),
            rng.integers(0, 1),
            rng.integers(0, 1),
            rng.random(),
        )  # scale, top, left, mirror
        alphas = rng.normal(0, pca, 3)
        expected = [
            level
            + sum(
                PCA_VECTORS[channel, k] * alphas[k] * (0.2175, 0.0188, 0.0045)[k] * 255
                for k in range(3)
            )
            for channel in range(3)
        ]
        clipped += min(expected) < 0 or max(expected) > 255
        crop = transform(image, seed)
        assert (crop == crop[0, 0]).all()
        assert off_by(crop[0, 0], np.clip(expected, 0, 255)) <= 0.5 + 1e-4
    assert (clipped > 5) == (level != 128)


def test_shifts_vary_along_the_components_as_stated() -> None:
    image = np.full((2, 2, 3), 128, np.uint8)
    transform = TrainCrop(short_sides=(2, 2), crop_side=2, flip=0, pca=0.5)
    number = 2000
    shifts = np.array([transform(image, seed)[0, 0].astype(float) - 128 for seed in range(number)])
    along = shifts @ PCA_VECTORS
    expected = ((0.5 * PCA_VALUES) ** 2 + 1 / 12) ** 0.5  # rounding adds a twelfth
    # A standard deviation of n draws has one of its own, 1 / sqrt(2 n) of it: 1.6 %; four of them.
    assert np.abs(along.std(axis=0) / expected - 1).max() < 4 / (2 * number) ** 0.5
    assert (np.abs(along.mean(axis=0)) < 4 * expected / number**0.5).all()
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 4 / number**0.5
    large = shifts[np.abs(along[:, 0]) > 10]
    assert len(large) > number / 2
    assert (np.abs(np.sign(large).sum(axis=1)) == 3).all()


def test_the_shift_is_one_for_the_whole_crop_and_comes_after_the_same_crop() -> None:
    image = np.clip(smooth(40, 40), 60, 190)
    for seed in range(20):
        plain = TrainCrop(short_sides=(24, 40), crop_side=24, flip=0.5, pca=0)(image, seed).astype(
            int
        )
        shifted = TrainCrop(short_sides=(24, 40), crop_side=24, flip=0.5, pca=0.1)(
            image, seed
        ).astype(int)
        moved = shifted - plain
        assert (moved == moved[0, 0]).all()
        assert np.abs(moved).max() < 30


@pytest.mark.parametrize("short_sides", [(31, 64), (64, 33), (0, 31)])
def test_a_scale_that_cannot_hold_the_crop_is_refused(short_sides: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError,
        match=rf"short sides {short_sides[0]}\.\.{short_sides[1]} px do not hold a crop of 32 px",
    ):
        TrainCrop(short_sides=short_sides, crop_side=32, flip=0.5, pca=0.1)


@pytest.mark.parametrize("magnitude", [1, 9, 30])
def test_randaugment_is_a_pure_function_of_image_and_seed(magnitude: int) -> None:
    transform = TrainCrop(
        short_sides=(32, 64), crop_side=24, flip=0.5, pca=0.1, randaugment=magnitude
    )
    image = noise(50, 70)
    given = image.copy()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    crops = [transform(image, seed) for seed in range(60)]
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(image, given)
    torch.manual_seed(6)
    np.random.seed(6)
    again = [pickle.loads(pickle.dumps(transform))(image, seed) for seed in reversed(range(60))]
    for crop, other in zip(crops, reversed(again), strict=True):
        assert (crop.shape, crop.dtype, crop.flags.c_contiguous) == ((24, 24, 3), np.uint8, True)
        assert np.array_equal(crop, other)
    assert len({crop.tobytes() for crop in crops}) > 50


@pytest.mark.parametrize("magnitude", [1, 9, 30])
def test_randaugment_is_torchvisions_on_the_crop_there_would_be_without_it(magnitude: int) -> None:
    image = smooth(40, 40)
    changed = 0
    for seed in range(40):
        plain = TrainCrop(short_sides=(24, 40), crop_side=24, flip=0.5, pca=0)(image, seed)
        found = TrainCrop(
            short_sides=(24, 40), crop_side=24, flip=0.5, pca=0, randaugment=magnitude
        )(image, seed)
        rng = np.random.default_rng(seed)
        height, width = scaled_size(40, 40, int(rng.integers(24, 41)))
        rng.integers(0, height - 23), rng.integers(0, width - 23), rng.random()  # top, left, mirror
        torch.manual_seed(int(rng.integers(2**63 - 1)))
        expected = (
            RandAugment(num_ops=2, magnitude=magnitude)(torch.from_numpy(plain).permute(2, 0, 1))
            .permute(1, 2, 0)
            .numpy()
        )
        assert np.array_equal(found, expected)
        changed += not np.array_equal(found, plain)
    assert changed > 20


def test_randaugment_of_magnitude_0_is_left_out() -> None:
    arguments = {"short_sides": (32, 64), "crop_side": 24, "flip": 0.5, "pca": 0.1}
    image = noise(50, 70)
    for seed in range(20):
        assert np.array_equal(
            TrainCrop(**arguments, randaugment=0)(image, seed), TrainCrop(**arguments)(image, seed)
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_randaugment_leaves_the_generator_of_the_gpu_alone() -> None:
    before = torch.cuda.get_rng_state()
    TrainCrop(short_sides=(8, 8), crop_side=8, flip=0.5, pca=0, randaugment=9)(noise(8, 8), 3)
    assert torch.equal(torch.cuda.get_rng_state(), before)


# ---- scoring ----


@pytest.mark.parametrize(
    ("shape", "short_side", "crop"),
    [
        ((40, 60), 40, 24),
        ((60, 41), 32, 24),
        ((33, 80), 48, 48),
        ((50, 50), 31, 24),
        ((51, 37), 64, 33),
        ((37, 90), 29, 20),
    ],
)
def test_the_centre_crop_lies_where_torchvisions_does(
    shape: tuple[int, int], short_side: int, crop: int
) -> None:
    image = smooth(*shape)
    resize = Resize(short_side, interpolation=InterpolationMode.BILINEAR, antialias=False)
    expected = (
        TorchvisionCenterCrop(crop)(resize(torch.from_numpy(image).permute(2, 0, 1).float()))
        .permute(1, 2, 0)
        .numpy()
    )
    found = CenterCrop(short_side=short_side, crop_side=crop)(image, 0)
    tolerance = 0.5 + SHIFT * steps_of(image) + 0.01
    assert off_by(found, expected) <= tolerance
    assert (
        off_by(found[:, 1:], expected[:, :-1]) > 2 * tolerance
    )  # a pixel to the side would be seen
    assert off_by(found[1:], expected[:-1]) > 2 * tolerance


def test_the_centre_crop_by_hand() -> None:
    image = noise(20, 31)
    found = CenterCrop(short_side=20, crop_side=16)(image, 0)
    assert np.array_equal(found, image[2:18, 8:24])  # left (31 - 16) / 2 = 7.5, rounded to even
    assert np.array_equal(found, CenterCrop(short_side=20, crop_side=16)(image, 99))
    assert np.array_equal(CenterCrop(short_side=20, crop_side=20)(image[:, :20], 0), image[:, :20])
    with pytest.raises(ValueError, match="a short side of 19 px does not hold a crop of 20 px"):
        CenterCrop(short_side=19, crop_side=20)


def test_the_whole_image_keeps_its_shape() -> None:
    image = noise(30, 45)
    assert np.array_equal(WholeImage(short_side=None)(image, 0), image)
    assert np.array_equal(WholeImage(short_side=30)(image, 0), image)
    scaled = WholeImage(short_side=20)(image, 0)
    assert np.array_equal(scaled, cv2.resize(image, (30, 20), interpolation=cv2.INTER_LINEAR))


# ---- data set and loaders ----


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    """Ten PNG files; image n is noise of seed n."""
    folder = tmp_path_factory.mktemp("images")
    for n in range(10):
        Image.fromarray(noise(20 + n, 30, n)).save(folder / f"{n}.png")
    files = np.array([str(folder / f"{n}.png") for n in range(10)])
    return ImageFiles("ten", ClassMap(("a", "b", "c"), (1, 2, 3)), files, np.arange(10) % 3)


def crops_of(images: ImageFiles) -> CropDataset:
    return CropDataset(images, TrainCrop(short_sides=(18, 24), crop_side=16, flip=0.5, pca=0.1))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for (batch, targets), (other, other_targets) in zip(first, second, strict=True):
        assert torch.equal(batch.pixels, other.pixels)
        assert batch.ids == other.ids
        assert torch.equal(targets.labels, other_targets.labels)


def test_an_item_is_the_crop_its_label_and_its_file(images: ImageFiles) -> None:
    dataset = crops_of(images)
    assert len(dataset) == 10
    crop, label, file = dataset[4, 77]
    assert np.array_equal(crop, dataset.transform(noise(24, 30, 4), 77))
    assert (label, file) == (1, images.files[4])


def test_collate_by_hand() -> None:
    crops = [noise(5, 5, seed) for seed in (0, 1)]
    batch, targets = collate_crops([(crops[0], 2, "a.png"), (crops[1], 0, "b.png")])
    assert (batch.pixels.shape, batch.pixels.dtype) == ((2, 3, 5, 5), torch.uint8)
    assert batch.pixels[1, 2, 4, 3] == crops[1][4, 3, 2]
    assert np.array_equal(batch.pixels.permute(0, 2, 3, 1).numpy(), np.stack(crops))
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.ids == ("a.png", "b.png")
    assert targets.labels.tolist() == [2, 0]
    assert targets.labels.dtype == torch.int64


def test_training_batches_are_those_of_the_sampler(images: ImageFiles) -> None:
    dataset = crops_of(images)
    batches = list(crop_train_loader(dataset, batch_size=3, steps=8, seed=5))
    sampler = StepSampler(np.ones(10), batch_size=3, seed=5, steps=8, group_by_aspect=False)
    assert_same(batches, [collate_crops([dataset[key] for key in keys]) for keys in sampler])
    for epoch in (
        batches[:4],
        batches[4:],
    ):  # four batches of three: every image, and two of them twice
        assert {file for batch, _ in epoch for file in batch.ids} == set(images.files.tolist())
    label_of = dict(zip(images.files.tolist(), images.labels.tolist(), strict=True))
    assert all(
        targets.labels.tolist() == [label_of[file] for file in batch.ids]
        for batch, targets in batches
    )


def test_batches_do_not_depend_on_workers_or_on_where_a_run_starts(images: ImageFiles) -> None:
    arguments = {"batch_size": 4, "steps": 7, "seed": 3}
    before = torch.get_rng_state()
    alone = list(crop_train_loader(crops_of(images), **arguments))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(alone) == 7
    assert_same(alone, list(crop_train_loader(crops_of(images), **arguments)))
    assert_same(alone, list(crop_train_loader(crops_of(images), num_workers=2, **arguments)))
    assert_same(
        alone[4:],
        list(crop_train_loader(crops_of(images), start_step=4, num_workers=1, **arguments)),
    )
    assert_same(alone[6:], list(crop_train_loader(crops_of(images), start_step=6, **arguments)))
    other = list(crop_train_loader(crops_of(images), batch_size=4, steps=7, seed=4))
    assert [batch.ids for batch, _ in alone] != [batch.ids for batch, _ in other]


def test_scoring_sees_every_image_once_in_order(images: ImageFiles) -> None:
    dataset = CropDataset(images, CenterCrop(short_side=20, crop_side=16))
    loader = crop_eval_loader(dataset, batch_size=4, num_workers=1)
    for _ in range(2):  # it can be gone through again
        batches = list(loader)
        assert [len(batch) for batch, _ in batches] == [4, 4, 2]
        assert [file for batch, _ in batches for file in batch.ids] == images.files.tolist()
        assert (
            torch.cat([targets.labels for _, targets in batches]).tolist() == images.labels.tolist()
        )
    assert_same(batches, list(crop_eval_loader(dataset, batch_size=4)))
    expected = np.stack([dataset.transform(noise(20 + n, 30, n), 0) for n in range(10)])
    assert np.array_equal(
        torch.cat([batch.pixels for batch, _ in batches]).permute(0, 2, 3, 1).numpy(), expected
    )


def test_a_damaged_file_is_named(images: ImageFiles, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(Path(images.files[0]).read_bytes()[:900])
    broken = ImageFiles(
        "broken", images.class_map, np.array([str(damaged), *images.files[1:]]), images.labels
    )
    with pytest.raises(ImageReadError, match=r"damaged\.png"):
        list(crop_eval_loader(crops_of(broken), batch_size=4))


def with_damage(images: ImageFiles, folder: Path, rows: Sequence[int]) -> ImageFiles:
    """The set with the files of `rows` cut off in the middle, or without a sign of an image in odd
    rows.
    """
    files = images.files.tolist()
    for row in rows:
        files[row] = str(folder / f"damaged{row}.png")
        Path(files[row]).write_bytes(
            Path(images.files[row]).read_bytes()[:900] if row % 2 == 0 else b""
        )
    return ImageFiles("damaged", images.class_map, np.array(files), images.labels)


def test_good_images_take_the_places_of_damaged_ones_in_turn_by_hand() -> None:
    crops = [noise(5, 5, seed) for seed in (0, 1)]
    items = [
        (None, 2, "w.png"),
        (crops[0], 2, "a.png"),
        (None, 1, "x.png"),
        (None, 0, "y.png"),
        (crops[1], 0, "b.png"),
        (None, 1, "x.png"),
    ]
    batch, targets = collate_crops(items)
    assert batch.ids == ("a.png", "b.png", "a.png", "b.png", "a.png", "b.png")
    assert batch.damaged == ("w.png", "x.png", "y.png", "x.png")
    assert targets.labels.tolist() == [2, 0, 2, 0, 2, 0]
    for row, pixels in enumerate(batch.pixels):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), crops[row % 2])
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.to("cpu").damaged == batch.damaged
    assert collate_crops(items[1:2])[0].damaged == ()


def test_a_batch_of_damaged_images_alone_is_an_error() -> None:
    with pytest.raises(
        ImageReadError, match=r"none of the 2 images of a batch can be read, the first is w\.png"
    ):
        collate_crops([(None, 2, "w.png"), (None, 0, "x.png")])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_files_are_an_error_or_skipped(
    images: ImageFiles, tmp_path: Path, num_workers: int
) -> None:
    broken = with_damage(images, tmp_path, [1, 4, 6])
    transform = TrainCrop(short_sides=(18, 24), crop_side=16, flip=0.5, pca=0.1)
    arguments = {"batch_size": 4, "steps": 6, "seed": 3, "num_workers": num_workers}
    with pytest.raises(ImageReadError, match=r"damaged[146]\.png"):
        list(crop_train_loader(CropDataset(broken, transform), **arguments))
    batches = list(crop_train_loader(CropDataset(broken, transform, damaged="skip"), **arguments))
    whole = list(crop_train_loader(CropDataset(images, transform), **arguments))
    assert len(batches) == len(whole) == 6
    row_of = {file: row for row, file in enumerate(images.files.tolist())}
    for (batch, targets), (other, other_targets) in zip(batches, whole, strict=True):
        good = [place for place, file in enumerate(other.ids) if row_of[file] not in (1, 4, 6)]
        places = [good[place % len(good)] for place in range(4)]
        assert batch.ids == tuple(other.ids[place] for place in places)
        assert torch.equal(batch.pixels, other.pixels[places])
        assert torch.equal(targets.labels, other_targets.labels[places])
        assert batch.damaged == tuple(
            broken.files[row_of[file]] for file in other.ids if row_of[file] in (1, 4, 6)
        )
    assert {name for batch, _ in batches for name in batch.damaged} == {
        str(tmp_path / f"damaged{row}.png") for row in (1, 4, 6)
    }


@pytest.mark.parametrize("num_workers", [0, 1])
def test_all_files_damaged_is_an_error_that_names_one(
    images: ImageFiles, tmp_path: Path, num_workers: int
) -> None:
    dataset = CropDataset(
        with_damage(images, tmp_path, range(10)),
        TrainCrop(short_sides=(18, 24), crop_side=16, flip=0.5, pca=0),
        damaged="skip",
    )
    with pytest.raises(
        ImageReadError,
        match=r"none of the 4 images of a batch can be read, the first is \S*damaged\d\.png",
    ):
        list(crop_train_loader(dataset, batch_size=4, steps=2, seed=0, num_workers=num_workers))


def test_a_file_that_is_gone_is_never_skipped(images: ImageFiles) -> None:
    gone = ImageFiles(
        "gone",
        images.class_map,
        np.array(["/nowhere/x.png", *images.files[1:].tolist()]),
        images.labels,
    )
    with pytest.raises(ImageReadError, match=r"/nowhere/x\.png does not exist"):
        list(
            crop_eval_loader(
                CropDataset(gone, WholeImage(short_side=20), damaged="skip"), batch_size=1
            )
        )


def test_only_what_cannot_be_read_is_skipped(images: ImageFiles) -> None:
    def faulty(image: np.ndarray, seed: int) -> np.ndarray:
        raise ValueError(f"a fault of the program, {seed} {image.shape}")

    with pytest.raises(ValueError, match="a fault of the program"):
        list(crop_eval_loader(CropDataset(images, faulty, damaged="skip"), batch_size=4))


def test_no_images(images: ImageFiles) -> None:
    none = crops_of(ImageFiles("none", images.class_map, images.files[:0], images.labels[:0]))
    assert len(none) == 0
    assert list(crop_eval_loader(none, batch_size=4)) == []
    with pytest.raises(ValueError, match="0 images in batches of 4"):
        crop_train_loader(none, batch_size=4, steps=1, seed=0)


def test_crops_of_different_sizes_do_not_make_a_batch(images: ImageFiles) -> None:
    with pytest.raises(ValueError, match="same shape"):
        list(crop_eval_loader(CropDataset(images, WholeImage(short_side=None)), batch_size=2))
    sizes = [
        tuple(batch.pixels.shape)
        for batch, _ in crop_eval_loader(
            CropDataset(images, WholeImage(short_side=None)), batch_size=1
        )
    ]
    assert sizes == [(1, 3, 20 + n, 30) for n in range(10)]


# ---- the mean ----


def plain_images(folder: Path, levels: Sequence[int]) -> ImageFiles:
    """Images of 6x8 px of one grey level each."""
    files = [str(folder / f"level{n}.png") for n in range(len(levels))]
    for file, level in zip(files, levels, strict=True):
        Image.fromarray(np.full((6, 8, 3), level, np.uint8)).save(file)
    labels = np.zeros(len(levels), np.int64)
    return ImageFiles("levels", ClassMap.of_names(("a",)), np.array(files), labels)


def test_the_mean_of_all_crops_is_numpys(images: ImageFiles) -> None:
    dataset = CropDataset(images, CenterCrop(short_side=20, crop_side=16))
    expected = np.mean([dataset[n, 0][0] for n in range(10)], axis=0).transpose(2, 0, 1)
    for number in (10, 11, 5000):  # never more than there are, each once
        mean = mean_of_crops(dataset, number)
        assert (mean.shape, mean.dtype, mean.is_contiguous()) == ((3, 16, 16), torch.float32, True)
        np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-6)


def test_the_mean_of_a_few_crops_is_of_rows_at_even_distances(tmp_path: Path) -> None:
    levels = [10, 99, 99, 99, 50, 99, 99, 99, 200]  # of nine images, three are 0, 4 and 8
    crops = CropDataset(plain_images(tmp_path, levels), CenterCrop(short_side=6, crop_side=4))
    assert mean_of_crops(crops, 3).unique().tolist() == pytest.approx([260 / 3])
    assert mean_of_crops(crops, 2).unique().tolist() == [105.0]
    assert mean_of_crops(crops, 1).unique().tolist() == [10.0]


def test_damaged_crops_do_not_count_in_the_mean(tmp_path: Path) -> None:
    images = plain_images(tmp_path, [10, 20, 60, 90])
    Path(images.files[1]).write_bytes(b"no image")
    Path(images.files[2]).write_bytes(Path(images.files[2]).read_bytes()[:50])
    crop = CenterCrop(short_side=6, crop_side=4)
    assert mean_of_crops(CropDataset(images, crop, damaged="skip"), 4).unique().tolist() == [50.0]
    with pytest.raises(ImageReadError, match=r"level1\.png"):
        mean_of_crops(CropDataset(images, crop), 4)


def test_without_a_readable_crop_there_is_no_mean(tmp_path: Path) -> None:
    images = plain_images(tmp_path, [10, 20])
    for file in images.files:
        Path(file).write_bytes(b"")
    crops = CropDataset(images, CenterCrop(short_side=6, crop_side=4), damaged="skip")
    with pytest.raises(ImageReadError, match="levels: no image for the mean can be read"):
        mean_of_crops(crops, 2)
