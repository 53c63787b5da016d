from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import five_crop
from torchvision.transforms.functional import resize as torchvision_resize

from backbones import resnet_cifar
from detres.evaluation.classify import (
    ClassResult,
    ClassScores,
    center,
    classify,
    dense,
    ensemble,
    score_classes,
    ten_crop,
)
from detres.models.classifier import Classifier
from detres.structures import ClassTargets, CropBatch
from tests.backbones.nets import randomise_norms

CPU = torch.device("cpu")
SEVEN = tuple("abcdefg")


def scores_of(rows: list[list[float]], labels: list[int]) -> ClassScores:
    return ClassScores(np.array(rows, np.float32), np.array(labels, np.int64))


def random_scores(num: int, classes: int, seed: int = 0, levels: int = 6) -> ClassScores:
    """Rows of multiples of 1 / levels: with many ties."""
    rng = np.random.default_rng(seed)
    return ClassScores(
        (rng.integers(0, levels + 1, (num, classes)) / levels).astype(np.float32),
        rng.integers(0, classes, num),
    )


def random_pixels(num: int, height: int, width: int) -> Tensor:
    """Noise in blocks of 4x4 px, so that crops and scales differ by more than their averages."""
    coarse = torch.randint(0, 256, (num, 3, -(-height // 4), -(-width // 4)), dtype=torch.uint8)
    return (
        coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :height, :width].contiguous()
    )


@pytest.fixture
def model() -> Classifier:
    """A classifier whose probabilities differ plainly from image to image: logits of noise are
    centred at zero.
    """
    model = Classifier(net=randomise_norms(resnet_cifar(8))).eval()
    nn.init.normal_(model.net.fc.weight, std=5.0)
    nn.init.zeros_(model.net.fc.bias)
    with torch.no_grad():
        model.net.fc.bias.copy_(-model(CropBatch(random_pixels(8, 32, 32), ())).mean(dim=0))
    return model


def probabilities(model: Classifier, pixels: Tensor) -> Tensor:
    """Softmax written out, one image at a time."""
    with torch.inference_mode():
        exponents = (
            torch.cat([model(CropBatch(image[None], (0,))) for image in pixels]).double().exp()
        )
    return (exponents / exponents.sum(dim=1, keepdim=True)).float()


def run(score, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return score(pixels)


# ---- scoring ----


def test_scores_by_hand() -> None:
    rows = [
        [0.40, 0.20, 0.15, 0.10, 0.08, 0.05, 0.02],
        [0.40, 0.20, 0.15, 0.10, 0.08, 0.05, 0.02],
        [0.40, 0.20, 0.15, 0.10, 0.08, 0.05, 0.02],
        [0.02, 0.05, 0.08, 0.10, 0.15, 0.20, 0.40],
    ]
    result = score_classes(scores_of(rows, [0, 4, 5, 0]), SEVEN, "by hand")  # ranks 1, 5, 6, 7
    assert result.top1_error == 0.75
    assert result.top5_error == 0.5
    assert result.loss == pytest.approx(
        -(math.log(0.40) + math.log(0.08) + math.log(0.05) + math.log(0.02)) / 4, rel=1e-6
    )
    assert result.per_class == {
        "a": 0.5,
        "b": None,
        "c": None,
        "d": None,
        "e": 0.0,
        "f": 0.0,
        "g": None,
    }
    assert (result.num_images, result.protocol) == (4, "by hand")


def test_of_equal_scores_the_earlier_class_is_better() -> None:
    equal = [[1 / 7] * 7] * 7
    result = score_classes(scores_of(equal, list(range(7))), SEVEN, "ties")
    assert result.per_class == {
        "a": 1.0,
        "b": 0.0,
        "c": 0.0,
        "d": 0.0,
        "e": 0.0,
        "f": 0.0,
        "g": 0.0,
    }
    assert result.top1_error == pytest.approx(6 / 7)
    assert result.top5_error == pytest.approx(2 / 7)  # f and g
    assert result.loss == pytest.approx(math.log(7), rel=1e-6)
    pair = score_classes(scores_of([[0.1, 0.45, 0.45], [0.1, 0.45, 0.45]], [1, 2]), "abc", "ties")
    assert pair.per_class == {"a": None, "b": 1.0, "c": 0.0}


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_up_to_five_classes_are_all_among_the_best_five(classes: int) -> None:
    result = score_classes(random_scores(40, classes), SEVEN[:classes], "few")
    assert result.top5_error == 0.0
    assert (result.top1_error == 0.0) == (classes == 1)


def test_a_probability_of_zero_costs_the_smallest_normal_float32() -> None:
    result = score_classes(scores_of([[1.0, 0.0]], [1]), "ab", "zero")
    assert result.loss == pytest.approx(126 * math.log(2), rel=1e-6)  # 2^-126
    assert result.top1_error == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [3, 6, 12])
def test_scores_equal_a_count_of_better_classes(seed: int, classes: int) -> None:
    scores = random_scores(50, classes, seed)
    ranks = []
    for row, label in zip(scores.probabilities.tolist(), scores.labels.tolist(), strict=True):
        ranks.append(
            sum(
                value > row[label] or (value == row[label] and k < label)
                for k, value in enumerate(row)
            )
        )
    names = [f"class {k}" for k in range(classes)]
    result = score_classes(scores, names, "random")
    assert result.top1_error == pytest.approx(sum(rank >= 1 for rank in ranks) / 50)
    assert result.top5_error == pytest.approx(sum(rank >= 5 for rank in ranks) / 50)
    assert 0 <= result.top5_error <= result.top1_error <= 1
    counts = np.bincount(scores.labels, minlength=classes)
    assert [value is None for value in result.per_class.values()] == (counts == 0).tolist()
    right = sum(
        value * count
        for value, count in zip(result.per_class.values(), counts, strict=True)
        if value is not None
    )
    assert right == pytest.approx(50 * (1 - result.top1_error))


@pytest.mark.parametrize(
    ("classes", "images", "right", "guessing"),
    [
        (2, 100, 64, True),
        (2, 100, 66, False),
        (1000, 50000, 70, True),
        (1000, 50000, 72, False),
        (10, 10000, 0, True),
        (2, 99, 0, False),
    ],
)
def test_what_guessing_would_get_right(
    classes: int, images: int, right: int, guessing: bool
) -> None:
    # guessing gets 50 +- 5 of 100 with two classes, 50 +- 7.07 of 50,000 with a thousand
    result = ClassResult(
        "p", 1 - right / images, 0.0, 1.0, dict.fromkeys(map(str, range(classes)), 0.0), images
    )
    assert result.no_better_than_guessing == guessing


def test_the_order_of_the_images_does_not_matter() -> None:
    scores = random_scores(30, 8)
    order = np.random.default_rng(1).permutation(30)
    shuffled = ClassScores(scores.probabilities[order], scores.labels[order])
    names = list("abcdefgh")
    first, second = score_classes(scores, names, "p"), score_classes(shuffled, names, "p")
    assert (first.top1_error, first.top5_error, first.per_class) == (
        second.top1_error,
        second.top5_error,
        second.per_class,
    )
    assert first.loss == pytest.approx(second.loss, rel=1e-5)


def test_scoring_errors() -> None:
    with pytest.raises(
        ValueError, match=r"scores \(0, 3\) and 0 labels for 3 classes do not belong together"
    ):
        score_classes(ClassScores(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)), "abc", "p")
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and 2 labels for 4 classes"):
        score_classes(random_scores(2, 3), "abcd", "p")
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and 1 labels for 3 classes"):
        score_classes(ClassScores(np.zeros((2, 3), np.float32), np.zeros(1, np.int64)), "abc", "p")
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="image 2: scores are NaN or infinite"):
            score_classes(
                scores_of([[0.5, 0.5], [1, 0], [0, value], [value, 0]], [0, 0, 0, 0]), "ab", "p"
            )


def test_a_result_as_numbers_and_text() -> None:
    result = ClassResult("centre", 0.25, 0.0625, 0.9, {"cat": 0.75, "wild boar": None}, 16)
    assert result.metrics == {"top1_error": 0.25, "top5_error": 0.0625, "loss": 0.9, "top1": 0.75}
    as_read = json.loads(json.dumps(result.to_dict()))
    assert ClassResult(**as_read) == result
    assert result.table().splitlines() == [
        "16 images, centre",
        " top-1 error  25.00 %",
    ]  # of two classes five are always right
    assert result.table(per_class=True).splitlines()[2:] == [
        " accuracy of each class",
        "  cat        75.00 %",
        "  wild boar n/a",
    ]
    six = replace(result, per_class=dict.fromkeys("abcdef", 0.75))
    assert six.table().splitlines() == [
        "16 images, centre",
        " top-1 error  25.00 %",
        " top-5 error   6.25 %",
    ]


# ---- views ----


def test_the_centre_view_is_the_softmax_of_the_logits(model: Classifier) -> None:
    pixels = random_pixels(5, 32, 32)
    expected = probabilities(model, pixels)
    assert (
        expected.std(dim=0).max() > 0.05
    )  # else the tests of the views could not tell images apart
    torch.testing.assert_close(run(center(model), pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(40, 52), (53, 37), (51, 39), (32, 41), (32, 32)])
def test_ten_crops_equal_torchvisions_five_and_their_mirrors_one_by_one(
    model: Classifier, height: int, width: int
) -> None:
    pixels = random_pixels(3, height, width)
    views = torch.stack(
        [
            probabilities(model, view)
            for crop in five_crop(pixels, 32)
            for view in (crop, crop.flip(3))
        ]
    )
    assert len(views) == 10
    found = run(ten_crop(model, 32), pixels)
    torch.testing.assert_close(found, views.mean(dim=0), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)
    # no view could be left out or taken twice unseen
    if height > 32 and width > 32:
        assert all((views.sum(dim=0) - view - 9 * found).abs().max() > 1e-3 for view in views)


def test_ten_crops_do_not_see_a_mirrored_image(model: Classifier) -> None:
    pixels = random_pixels(2, 36, 44)
    torch.testing.assert_close(
        run(ten_crop(model, 32), pixels),
        run(ten_crop(model, 32), pixels.flip(3)),
        rtol=0,
        atol=1e-5,
    )
    assert (probabilities(model, pixels) - probabilities(model, pixels.flip(3))).abs().max() > 1e-3


def test_ten_crops_need_images_that_hold_them(model: Classifier) -> None:
    with pytest.raises(ValueError, match="images of 31x40 px do not hold crops of 32 px"):
        run(ten_crop(model, 32), random_pixels(1, 31, 40))
    with pytest.raises(ValueError, match="images of 40x31 px do not hold crops of 32 px"):
        run(ten_crop(model, 32), random_pixels(1, 40, 31))


def naive_dense(
    model: Classifier, pixels: Tensor, sizes: list[tuple[int, int]], cells: int
) -> Tensor:
    """Every image, scale, mirror and window in loops: the average of a window's cells goes into the
    linear layer.
    """
    net, rows = model.net, []
    for image in pixels:
        of_scales = []
        for size in sizes:
            scaled = torchvision_resize(image[None], list(size), antialias=False)
            for view in (scaled, scaled.flip(3)):
                feature = net.forward_features(model.normalizer(view))[0]
                height, width = feature.shape[1:]
                of_windows = []
                for top in range(max(height - cells, 0) + 1):
                    for left in range(max(width - cells, 0) + 1):
                        average = feature[:, top : top + cells, left : left + cells].mean(
                            dim=(1, 2)
                        )
                        of_windows.append((net.fc.weight @ average + net.fc.bias).softmax(dim=0))
                of_scales.append(torch.stack(of_windows).mean(dim=0))
        rows.append(torch.stack(of_scales).mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("shape", "shorter", "sizes", "cells"),
    [
        ((40, 52), (32, 48), [(32, 42), (48, 62)], 8),  # 52 * 0.8 = 41.6, 52 * 1.2 = 62.4
        ((53, 40), (36,), [(48, 36)], 8),  # 53 * 0.9 = 47.7
        ((32, 32), (32, 40), [(32, 32), (40, 40)], 3),
        (
            (32, 48),
            (16, 24),
            [(16, 24), (24, 36)],
            8,
        ),  # maps of 4x6 and 6x9: both smaller, and in one direction
    ],
)
def test_dense_equals_loops_over_windows(
    model: Classifier,
    shape: tuple[int, int],
    shorter: tuple[int, ...],
    sizes: list[tuple[int, int]],
    cells: int,
) -> None:
    pixels = random_pixels(2, *shape)
    with torch.inference_mode():
        expected = naive_dense(model, pixels, sizes, cells)
    assert expected.std(dim=0).max() > 1e-3
    found = run(dense(model, shorter, cells), pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cells", [8, 100])
def test_dense_with_one_window_is_the_network_on_image_and_mirror(
    model: Classifier, cells: int
) -> None:
    pixels = random_pixels(3, 32, 32)
    expected = (probabilities(model, pixels) + probabilities(model, pixels.flip(3))) / 2
    torch.testing.assert_close(run(dense(model, (32,), cells), pixels), expected, rtol=0, atol=1e-5)


def test_dense_windows_are_views_of_their_own(model: Classifier) -> None:
    pixels = random_pixels(2, 48, 48)
    one, many = (run(dense(model, (48,), cells), pixels) for cells in (12, 4))
    assert (one - many).abs().max() > 1e-3


# ---- running, ensembles ----


def batches_of(
    pixels: Tensor, labels: list[int], sizes: list[int]
) -> list[tuple[CropBatch, ClassTargets]]:
    ends = np.cumsum(sizes).tolist()
    return [
        (
            CropBatch(pixels[end - size : end], tuple(range(end - size, end))),
            ClassTargets(torch.tensor(labels[end - size : end])),
        )
        for size, end in zip(sizes, ends, strict=True)
    ]


@pytest.mark.parametrize("training", [True, False])
def test_classify_gives_all_scores_in_order_in_eval_mode_and_restores_the_mode(
    model: Classifier, training: bool
) -> None:
    pixels, labels = random_pixels(7, 32, 32), [3, 1, 4, 1, 5, 9, 2]
    expected = probabilities(model, pixels).numpy()
    model.train(training)
    state = {name: value.clone() for name, value in model.net.state_dict().items()}
    scores = classify(model, batches_of(pixels, labels, [3, 3, 1]), CPU, center(model), 10)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.net.state_dict().items())
    np.testing.assert_allclose(scores.probabilities, expected, rtol=0, atol=1e-5)
    assert scores.probabilities.dtype == np.float32
    assert scores.labels.tolist() == labels
    assert scores.labels.dtype == np.int64


def test_classify_takes_images_of_different_sizes_one_by_one(model: Classifier) -> None:
    images = [random_pixels(1, 34, 40), random_pixels(1, 50, 32)]
    batches = [
        (CropBatch(image, (n,)), ClassTargets(torch.tensor([n]))) for n, image in enumerate(images)
    ]
    scores = classify(model, batches, CPU, ten_crop(model, 32), 10)
    expected = torch.cat([run(ten_crop(model, 32), image) for image in images]).numpy()
    np.testing.assert_allclose(scores.probabilities, expected, rtol=0, atol=1e-6)


def test_classify_says_at_once_that_the_classes_are_others(model: Classifier) -> None:
    seen = []

    def batches() -> Iterator:
        for batch in batches_of(random_pixels(4, 32, 32), [0, 1, 2, 3], [2, 2]):
            seen.append(len(batch[0]))
            yield batch

    with pytest.raises(
        ValueError, match="the classifier tells 10 classes apart, the images are of 3"
    ):
        classify(model, batches(), CPU, center(model), 3)
    assert seen == [2]


def test_classify_needs_batches(model: Classifier) -> None:
    with pytest.raises(ValueError, match="no images to classify"):
        classify(model.train(), [], CPU, center(model), 10)
    assert model.training


def test_an_ensemble_averages() -> None:
    first, second = (
        scores_of([[0.9, 0.1], [0.3, 0.7]], [0, 1]),
        scores_of([[0.2, 0.8], [0.5, 0.5]], [0, 1]),
    )
    found = ensemble([first, second, second])
    np.testing.assert_allclose(
        found.probabilities, [[1.3 / 3, 1.7 / 3], [1.3 / 3, 1.7 / 3]], rtol=1e-6
    )
    assert found.probabilities.dtype == np.float32
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(ensemble([first]).probabilities, first.probabilities)


def test_an_ensemble_of_different_images_is_refused() -> None:
    first = scores_of([[0.9, 0.1], [0.3, 0.7]], [0, 1])
    with pytest.raises(ValueError, match="run on different images"):
        ensemble([first, first, scores_of([[0.9, 0.1], [0.3, 0.7]], [0, 0])])
    with pytest.raises(ValueError, match="run on different images"):
        ensemble([first, scores_of([[0.9, 0.1]], [0])])


def test_labels_out_of_range() -> None:
    probabilities = np.full((2, 3), 1 / 3, np.float32)
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(
            ValueError,
            match=rf"labels {min(labels)}\.\.{max(labels)} for 3 classes, expected 0\.\.2",
        ):
            score_classes(ClassScores(probabilities, np.array(labels)), "abc", "p")
