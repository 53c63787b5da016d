from __future__ import annotations

import colorsys
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from detres.boxes import scale_boxes
from detres.detection.data.transforms import EvalTransform, TrainTransform
from detres.detection.structures import Target
from tests.helpers import random_boxes

BOXES = [(10.0, 20.0, 40.0, 80.0), (0.0, 0.0, 200.0, 100.0), (150.5, 3.25, 199.0, 97.75)]


def make_target(boxes: list[tuple[float, ...]]) -> Target:
    num = len(boxes)
    return Target(
        image_id="a",
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(1, num + 1),
        crowd=torch.arange(num) % 2 == 1,
        difficult=torch.arange(num) % 3 == 2,
    )


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def extent(image: np.ndarray) -> torch.Tensor:
    """Box of the bright pixels of an image that is otherwise black."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return torch.tensor(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32
    )


def test_eval_scales_boxes_by_the_ratio_of_each_axis() -> None:
    image, target = EvalTransform(short_side=33, max_side=1000)(noise(100, 205), make_target(BOXES))
    assert image.shape == (33, 68, 3)  # 205 * 0.33 = 67.65
    expected = torch.tensor(BOXES) * torch.tensor([68 / 205, 33 / 100, 68 / 205, 33 / 100])
    torch.testing.assert_close(target.boxes, expected, rtol=1e-6, atol=0)


def test_eval_keeps_everything_but_the_scale() -> None:
    given = make_target(
        [*BOXES, (5.0, 5.0, 5.0, 9.0)]
    )  # without area: ground truth for scoring is not touched
    pixels = noise(100, 200)
    image, target = EvalTransform(short_side=100, max_side=200)(pixels, given, 5)
    assert np.array_equal(image, pixels)
    for name in ("boxes", "labels", "crowd", "difficult"):
        assert torch.equal(getattr(target, name), getattr(given, name))


def test_longer_side_is_capped() -> None:
    image, target = EvalTransform(short_side=100, max_side=120)(noise(100, 200), make_target(BOXES))
    assert image.shape == (60, 120, 3)
    assert target.boxes[0].tolist() == pytest.approx([6, 12, 24, 48])


def test_flip_mirrors_continuous_coordinates() -> None:
    pixels = noise(100, 200)
    image, target = TrainTransform(short_sides=(100,), max_side=200, flip=1.0)(
        pixels, make_target(BOXES), 0
    )
    assert np.array_equal(image, pixels[:, ::-1])
    expected = torch.tensor(
        [(160.0, 20.0, 190.0, 80.0), (0.0, 0.0, 200.0, 100.0), (1.0, 3.25, 49.5, 97.75)]
    )
    torch.testing.assert_close(target.boxes, expected, rtol=0, atol=1e-4)


def test_flipping_twice_gives_the_boxes_back() -> None:
    transform = TrainTransform(short_sides=(100,), max_side=200, flip=1.0)
    pixels = noise(100, 200)
    image, target = transform(*transform(pixels, make_target(BOXES), 0), 1)
    assert np.array_equal(image, pixels)
    torch.testing.assert_close(target.boxes, torch.tensor(BOXES), rtol=0, atol=1e-4)


def test_boxes_stay_on_their_pixels() -> None:
    transform = TrainTransform(short_sides=(90, 120, 177), max_side=260, flip=0.5, color=0.3)
    rng = np.random.default_rng(1)
    widths, mirrored = set(), 0
    for seed in range(80):
        height, width = (int(side) for side in rng.integers(60, 300, size=2))
        x1, y1 = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
        x2, y2 = int(rng.integers(x1 + 15, width + 1)), int(rng.integers(y1 + 15, height + 1))
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y1:y2, x1:x2] = 255
        image, target = transform(pixels, make_target([(x1, y1, x2, y2)]), seed)
        assert (target.boxes[0] - extent(image)).abs().max() <= 1.0, seed
        widths.add(min(image.shape[:2]))
        mirrored += abs(float(target.boxes[0, 0]) / image.shape[1] - x1 / width) > 0.01
    assert len(widths) > 3  # several sides were chosen, and the cap was met
    assert 15 < mirrored < 65


def test_labels_and_flags_follow_their_boxes_when_some_are_dropped() -> None:
    boxes = [
        (10.0, 10.0, 30.0, 30.0),
        (5.0, 5.0, 5.0, 9.0),
        (40.0, 40.0, 60.0, 90.0),
        (250.0, 5.0, 260.0, 9.0),
        (70.0, 0.0, 90.0, 10.0),
    ]
    image, target = TrainTransform(short_sides=(100,), max_side=200, flip=0.0)(
        noise(100, 200), make_target(boxes), 0
    )
    assert image.dtype == np.uint8
    assert target.labels.tolist() == [1, 3, 5]
    assert target.labels.dtype == torch.int64
    assert target.crowd.tolist() == [False, False, False]
    assert target.difficult.tolist() == [False, True, False]
    torch.testing.assert_close(target.boxes, torch.tensor(boxes)[[0, 2, 4]], rtol=0, atol=1e-4)
    flags = TrainTransform(short_sides=(100,), max_side=200, flip=1.0)(
        noise(100, 200), make_target(BOXES), 0
    )[1]
    assert flags.crowd.tolist() == [False, True, False]
    assert flags.difficult.tolist() == [False, False, True]
    assert flags.image_id == "a"


def test_boxes_are_cut_to_the_image() -> None:
    target = TrainTransform(short_sides=(100,), max_side=200, flip=0.0)(
        noise(100, 200), make_target([(-5.0, -1.0, 210.0, 101.0)]), 0
    )[1]
    assert target.boxes.tolist() == [[0.0, 0.0, 200.0, 100.0]]


@pytest.mark.parametrize(
    "transform",
    [
        TrainTransform(short_sides=(50,), max_side=200, color=0.2),
        EvalTransform(short_side=50, max_side=200),
    ],
)
def test_images_without_objects_are_ordinary(transform: TrainTransform | EvalTransform) -> None:
    image, target = transform(noise(100, 200), make_target([]), 0)
    assert image.shape == (50, 100, 3)
    assert target.boxes.shape == (0, 4)
    assert target.boxes.dtype == torch.float32
    assert target.labels.dtype == torch.int64
    assert target.crowd.dtype == torch.bool


def test_the_seed_decides() -> None:
    transform = TrainTransform(short_sides=(80, 90, 100, 110), max_side=300, color=0.5)
    pixels, target = noise(100, 150), make_target(BOXES[:1])
    results = [transform(pixels, target, seed) for seed in (*range(12), *range(12))]
    for (image, changed), (image_again, changed_again) in zip(
        results[:12], results[12:], strict=True
    ):
        assert np.array_equal(image, image_again)
        assert torch.equal(changed.boxes, changed_again.boxes)
    assert len({image.tobytes() for image, _ in results}) == 12


def test_flip_and_color_are_independent() -> None:
    transform = TrainTransform(short_sides=(16,), max_side=16, flip=0.5, color=0.5)
    pixels = np.full((16, 16, 3), 100, np.uint8)
    flipped, brighter = [], []
    for seed in range(400):
        image, target = transform(pixels, make_target([(0.0, 0.0, 4.0, 4.0)]), seed)
        flipped.append(float(target.boxes[0, 0]) > 8)
        brighter.append(float(image.mean()))
    assert 0.4 < np.mean(flipped) < 0.6
    assert abs(np.corrcoef(flipped, brighter)[0, 1]) < 0.15  # three standard errors of 400 draws


def test_color_zero_leaves_colours_and_one_stays_in_range() -> None:
    pixels = noise(40, 40)
    assert np.array_equal(
        TrainTransform(short_sides=(40,), max_side=40, flip=0.0)(pixels, make_target([]), 3)[0],
        pixels,
    )
    jittered = [
        TrainTransform(short_sides=(40,), max_side=40, flip=0.0, color=1.0)(
            pixels, make_target([]), s
        )[0]
        for s in range(8)
    ]
    assert all(image.dtype == np.uint8 for image in jittered)
    assert len({image.tobytes() for image in jittered}) == 8


def test_bad_arguments() -> None:
    for arguments in (
        {"short_sides": (), "max_side": 10},
        {"short_sides": (20,), "max_side": 10},
        {"short_sides": (0,), "max_side": 10},
    ):
        with pytest.raises(ValueError, match="must hold sides"):
            TrainTransform(**arguments)
    for arguments in ({"flip": 1.5}, {"color": -0.1}):
        with pytest.raises(ValueError, match="within 0 and 1"):
            TrainTransform(short_sides=(10,), max_side=10, **arguments)
    with pytest.raises(ValueError, match="short_side must be"):
        EvalTransform(short_side=20, max_side=10)


def test_importing_opens_no_connection() -> None:
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise SystemExit('a connection was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import detres.detection.data.transforms\n"
    )
    environment = {
        key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("max_side", [20, 21])
def test_a_cap_equal_to_the_largest_side_is_no_mistake(max_side: int) -> None:
    """Sides from 1 px up to the cap, both included."""
    transform = TrainTransform(short_sides=(1, 20), max_side=max_side, flip=0.0)
    sides = {transform(noise(30, 30), make_target([]), seed)[0].shape[:2] for seed in range(20)}
    assert sides == {(1, 1), (20, 20)}
    image, _ = EvalTransform(short_side=20, max_side=max_side)(noise(30, 30), make_target([]))
    assert image.shape == (20, 20, 3)
    image, _ = EvalTransform(short_side=1, max_side=1)(noise(30, 30), make_target([]))
    assert image.shape == (1, 1, 3)


def test_a_cap_below_any_of_the_sides_is_refused() -> None:
    for short_sides in ((10, 22), (22, 10)):
        with pytest.raises(ValueError, match="must hold sides from 1 px to max_side"):
            TrainTransform(short_sides=short_sides, max_side=21)
    with pytest.raises(ValueError, match="must hold sides"):
        TrainTransform(short_sides=(10, 0), max_side=21)
    with pytest.raises(ValueError, match="short_side must be"):
        EvalTransform(short_side=0, max_side=21)
    with pytest.raises(ValueError, match="short_side must be"):
        EvalTransform(short_side=22, max_side=21)


@pytest.mark.parametrize("bounds", [{"flip": 0.0}, {"flip": 1.0}, {"color": 0.0}, {"color": 1.0}])
def test_probability_and_strength_may_be_at_their_bounds(bounds: dict[str, float]) -> None:
    TrainTransform(short_sides=(10,), max_side=10, **bounds)
    for name, value in bounds.items():
        with pytest.raises(ValueError, match="within 0 and 1"):
            TrainTransform(short_sides=(10,), max_side=10, **{name: value + (2 * value - 1) * 0.01})


def jittered(color: float, pixel: tuple[int, int, int], num: int = 300) -> np.ndarray:
    """(num, 3) colours that the jitter makes of one, as hue, saturation and value in 0..1."""
    transform = TrainTransform(short_sides=(4,), max_side=4, flip=0.0, color=color)
    image = np.full((4, 4, 3), pixel, np.uint8)
    made = [transform(image, make_target([]), seed)[0][0, 0] / 255 for seed in range(num)]
    return np.array([colorsys.rgb_to_hsv(*rgb) for rgb in made])


def test_the_hue_moves_by_up_to_a_tenth_of_the_strength_both_ways() -> None:
    """Brightness, contrast and saturation leave the hue alone: red of 60, 40, 40 cannot be clipped
    by them at strength 1. Of the results those have a say whose 8 bits give the hue to 0.0033;
    OpenCV moves it in steps of a 180th of the circle, rounded down.
    """
    hsv = jittered(1.0, (60, 40, 40), num=3000)
    exact = hsv[:, 1] * hsv[:, 2] * 255 >= 50
    moved = (hsv[exact, 0] + 0.5) % 1 - 0.5
    assert len(moved) > 100
    assert 0.0935 < moved.max() < 0.101
    assert 0.1015 < -moved.min() < 0.109
    assert abs(moved.mean()) < 0.01  # evenly on both sides: 3 standard errors of 300 draws
    assert (np.abs(moved) < 0.05).mean() == pytest.approx(0.5, abs=0.1)


def test_brightness_goes_from_one_less_the_strength_to_one_more() -> None:
    """Of a grey image saturation and hue change nothing; contrast blends with its own mean, which
    is the grey itself, so the factor seen is that of brightness.
    """
    factors = jittered(0.3, (100, 100, 100))[:, 2] * 255 / 100
    assert 0.69 <= factors.min() < 0.72
    assert 1.28 < factors.max() <= 1.31
    assert abs(factors.mean() - 1) < 0.04


def test_contrast_and_saturation_go_from_one_less_the_strength_to_one_more() -> None:
    """Of three pixels, two greys and a red: brightness and contrast scale the distance of the greys
    and the red's largest less smallest channel alike, saturation the latter alone, and the hue
    leaves both. Brightness scales the greys' distance and sum alike, contrast the distance alone.
    """
    pixels = np.array([[[60] * 3, [140] * 3, [140, 80, 80], [100] * 3]], np.uint8)
    transform = TrainTransform(short_sides=(1,), max_side=4, flip=0.0, color=0.3)
    made = [transform(pixels, make_target([]), seed)[0].astype(float)[0] for seed in range(300)]
    dark, light, red = np.array(made).transpose(1, 0, 2)[:3]
    distance = (light - dark)[:, 0]
    contrast = distance / (light + dark)[:, 0] * 200 / 80
    saturation = (red.max(axis=1) - red.min(axis=1)) / distance * 80 / 60
    for factors in (contrast, saturation):
        assert 0.65 < factors.min() < 0.75
        assert 1.25 < factors.max() < 1.36
        assert abs(factors.mean() - 1) < 0.04  # 4 standard errors of 300 draws


# ---- proposals ----


@pytest.mark.parametrize("seed", range(6))
def test_proposals_go_where_boxes_go(seed):
    """The same boxes as objects and as proposals end in the same places, flipped or not."""
    boxes = random_boxes(40, 90.0, seed=seed)
    transform = TrainTransform(short_sides=(70, 130), max_side=300, flip=0.5, color=0.1)
    given = make_target(boxes.tolist())
    image, target, proposals = transform.with_proposals(noise(95, 143), given, boxes.double(), seed)
    assert len(proposals) == 40
    assert proposals.dtype == torch.float32
    torch.testing.assert_close(proposals, target.boxes, rtol=0, atol=1e-4)
    alone, target_alone = transform(noise(95, 143), given, seed)
    assert np.array_equal(image, alone)  # proposals change nothing else
    assert torch.equal(target.boxes, target_alone.boxes)


def test_proposals_are_mirrored_with_their_image():
    transform = TrainTransform(short_sides=(100,), max_side=200, flip=1.0)
    given = torch.tensor([[10.0, 20, 30, 60], [0, 0, 200, 100]], dtype=torch.float64)
    _, target, proposals = transform.with_proposals(noise(100, 200), make_target([]), given, 0)
    expected = torch.tensor([[170.0, 20, 190, 60], [0, 0, 200, 100]])
    torch.testing.assert_close(proposals, expected, rtol=0, atol=1e-4)
    assert len(target) == 0


@pytest.mark.parametrize("transform", [
    TrainTransform(short_sides=(50,), max_side=200),
    EvalTransform(short_side=50, max_side=200),
])  # fmt: skip
def test_no_proposals_at_all_and_none_of_an_image(transform):
    target = make_target([(1, 2, 30, 40)])
    assert transform.with_proposals(noise(40, 60), target, None, 1)[2] is None
    none = torch.zeros((0, 4), dtype=torch.float64)
    _, target, proposals = transform.with_proposals(noise(40, 60), target, none, 1)
    assert proposals.shape == (0, 4)
    assert len(target) == 1


def test_evaluated_proposals_come_back_bit_for_bit():
    """From px of the resized image to the original's in float64, and back."""
    resized = random_boxes(500, 90.0, seed=3)
    image = noise(101, 143)
    size = EvalTransform(short_side=90, max_side=200)(image, make_target([]))[0].shape[:2]
    original = scale_boxes(resized.double(), from_size=size, to_size=(101, 143))
    transform = EvalTransform(short_side=90, max_side=200)
    _, _, again = transform.with_proposals(image, make_target([]), original)
    assert torch.equal(again, resized)
