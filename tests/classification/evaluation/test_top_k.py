from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from detres.classification.evaluation.top_k import (
    ClassProbabilities,
    ClassResult,
    ensemble,
    top_k_errors,
)

SEVEN = tuple("abcdefg")


def found_of(rows: list[list[float]], labels: list[int]) -> ClassProbabilities:
    return ClassProbabilities(np.array(rows, np.float32), np.array(labels, np.int64))


def random_found(num: int, classes: int, seed: int = 0, levels: int = 6) -> ClassProbabilities:
    """Rows of multiples of 1 / levels: with many ties."""
    rng = np.random.default_rng(seed)
    return ClassProbabilities(
        (rng.integers(0, levels + 1, (num, classes)) / levels).astype(np.float32),
        rng.integers(0, classes, num),
    )


# ---- errors ----


def test_errors_by_hand() -> None:
    rows = [
        [0.40, 0.20, 0.15, 0.10, 0.08, 0.05, 0.02],
        [0.40, 0.20, 0.15, 0.10, 0.08, 0.05, 0.02],
        [0.40, 0.20, 0.15, 0.10, 0.08, 0.05, 0.02],
        [0.02, 0.05, 0.08, 0.10, 0.15, 0.20, 0.40],
    ]
    result = top_k_errors(found_of(rows, [0, 4, 5, 0]), SEVEN, "by hand")  # ranks 1, 5, 6, 7
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


def test_of_equal_probabilities_the_earlier_class_is_better() -> None:
    equal = [[1 / 7] * 7] * 7
    result = top_k_errors(found_of(equal, list(range(7))), SEVEN, "ties")
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
    pair = top_k_errors(found_of([[0.1, 0.45, 0.45], [0.1, 0.45, 0.45]], [1, 2]), "abc", "ties")
    assert pair.per_class == {"a": None, "b": 1.0, "c": 0.0}


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_up_to_five_classes_are_all_among_the_best_five(classes: int) -> None:
    result = top_k_errors(random_found(40, classes), SEVEN[:classes], "few")
    assert result.top5_error == 0.0
    assert (result.top1_error == 0.0) == (classes == 1)


def test_a_probability_of_zero_costs_the_smallest_normal_float32() -> None:
    result = top_k_errors(found_of([[1.0, 0.0]], [1]), "ab", "zero")
    assert result.loss == pytest.approx(126 * math.log(2), rel=1e-6)  # 2^-126
    assert result.top1_error == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [3, 6, 12])
def test_errors_equal_a_count_of_better_classes(seed: int, classes: int) -> None:
    found = random_found(50, classes, seed)
    ranks = []
    for row, label in zip(found.probabilities.tolist(), found.labels.tolist(), strict=True):
        ranks.append(
            sum(
                value > row[label] or (value == row[label] and k < label)
                for k, value in enumerate(row)
            )
        )
    names = [f"class {k}" for k in range(classes)]
    result = top_k_errors(found, names, "random")
    assert result.top1_error == pytest.approx(sum(rank >= 1 for rank in ranks) / 50)
    assert result.top5_error == pytest.approx(sum(rank >= 5 for rank in ranks) / 50)
    assert 0 <= result.top5_error <= result.top1_error <= 1
    counts = np.bincount(found.labels, minlength=classes)
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
    found = random_found(30, 8)
    order = np.random.default_rng(1).permutation(30)
    shuffled = ClassProbabilities(found.probabilities[order], found.labels[order])
    names = list("abcdefgh")
    first, second = top_k_errors(found, names, "p"), top_k_errors(shuffled, names, "p")
    assert (first.top1_error, first.top5_error, first.per_class) == (
        second.top1_error,
        second.top5_error,
        second.per_class,
    )
    assert first.loss == pytest.approx(second.loss, rel=1e-5)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"probabilities \(0, 3\) and 0 labels for 3 classes do not belong together",
    ):
        top_k_errors(
            ClassProbabilities(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)), "abc", "p"
        )
    with pytest.raises(ValueError, match=r"probabilities \(2, 3\) and 2 labels for 4 classes"):
        top_k_errors(random_found(2, 3), "abcd", "p")
    with pytest.raises(ValueError, match=r"probabilities \(2, 3\) and 1 labels for 3 classes"):
        top_k_errors(
            ClassProbabilities(np.zeros((2, 3), np.float32), np.zeros(1, np.int64)), "abc", "p"
        )
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="image 2: its probabilities are NaN or infinite"):
            top_k_errors(
                found_of([[0.5, 0.5], [1, 0], [0, value], [value, 0]], [0, 0, 0, 0]), "ab", "p"
            )


def test_labels_out_of_range() -> None:
    probabilities = np.full((2, 3), 1 / 3, np.float32)
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(
            ValueError,
            match=rf"labels {min(labels)}\.\.{max(labels)} for 3 classes, expected 0\.\.2",
        ):
            top_k_errors(ClassProbabilities(probabilities, np.array(labels)), "abc", "p")


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


# ---- ensembles ----


def test_an_ensemble_averages() -> None:
    first, second = (
        found_of([[0.9, 0.1], [0.3, 0.7]], [0, 1]),
        found_of([[0.2, 0.8], [0.5, 0.5]], [0, 1]),
    )
    averaged = ensemble([first, second, second])
    np.testing.assert_allclose(
        averaged.probabilities, [[1.3 / 3, 1.7 / 3], [1.3 / 3, 1.7 / 3]], rtol=1e-6
    )
    assert averaged.probabilities.dtype == np.float32
    assert averaged.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(ensemble([first]).probabilities, first.probabilities)


def test_an_ensemble_of_different_images_is_refused() -> None:
    first = found_of([[0.9, 0.1], [0.3, 0.7]], [0, 1])
    with pytest.raises(ValueError, match="run on different images"):
        ensemble([first, first, found_of([[0.9, 0.1], [0.3, 0.7]], [0, 0])])
    with pytest.raises(ValueError, match="run on different images"):
        ensemble([first, found_of([[0.9, 0.1]], [0])])
