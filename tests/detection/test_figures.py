"""Figures: what is drawn of many and of no classes, of one run and of several, and names that
matplotlib would read as something else.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.detection.evaluation.curves import Confusion, Curve, mean_curve
from detres.detection.figures import (
    confusion_figure,
    plain,
    pr_figure,
    shown_part,
    training_figure,
    write_png,
)
from detres.runs.records import RunRecords

ODD_NAMES = ("_private", "5$ note", "$x^$ and $", "a" * 60, "two\nlines", "\u7334", "", "100%")


def curve_of(ap: float | None, recall=(0.5, 1.0), precision=(1.0, 0.5)) -> Curve:
    points = () if ap is None else recall
    return Curve(
        recall=np.array(points),
        precision=np.array(precision[: len(points)]),
        scores=np.linspace(0.9, 0.1, len(points)),
        num_objects=0 if ap is None else 2,
        num_detections=len(points),
        ap=ap,
        score_threshold=0.5,
        best_f1=None if ap is None else 0.5,
        precision_at_best=None if ap is None else precision[0],
        recall_at_best=None if ap is None else recall[0],
    )


def legend_of(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def drawn(tmp_path: Path, figure) -> np.ndarray:
    """The picture, of which matplotlib had nothing to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_png(tmp_path / "a.png", figure)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.std() > 1
    return picture


def test_every_class_is_named_with_its_ap_and_the_mean_of_those_with_objects(tmp_path):
    curves = {"cat": curve_of(0.75), "dog": curve_of(None), "cow": curve_of(0.25)}
    figure = pr_figure(curves, mean_curve(curves), "title")
    (axes,) = figure.axes
    names = ["cat  0.750", "dog  n/a (no object)", "cow  0.250", "mean of 2  0.500"]
    assert legend_of(axes) == names
    drawn(tmp_path, figure)
    one = {"cat": curve_of(0.75)}
    assert legend_of(pr_figure(one, mean_curve(one), "").axes[0]) == ["cat  0.750"]
    none = {"cat": curve_of(None)}
    texts = [text.get_text() for text in pr_figure(none, mean_curve(none), "").axes[0].texts]
    assert texts == ["no object to find"]


def test_a_curve_is_the_highest_precision_from_each_recall_on():
    curves = {"cat": curve_of(0.5, (0.2, 0.4, 0.6), (0.5, 1.0, 0.25))}
    (line, dot) = pr_figure(curves, mean_curve(curves), "IoU 0.5").axes[0].lines
    assert line.get_xdata().tolist() == [0, 0.2, 0.4, 0.6, 0.6]
    assert line.get_ydata().tolist() == [1, 1, 1, 0.25, 0]
    assert line.get_drawstyle() == "steps-pre"
    assert (dot.get_xdata(), dot.get_ydata()) == ([0.2], [0.5])


def test_of_many_classes_the_best_and_the_worst_are_named(tmp_path):
    curves = {f"class {n:03d}": curve_of(n / 200) for n in range(200)}
    figure = pr_figure(curves, mean_curve(curves), "IoU 0.5")
    (axes,) = figure.axes
    ends = [f"class {n:03d}  {n / 200:.3f}" for n in (199, 198, 197, 196, 195, 4, 3, 2, 1, 0)]
    assert legend_of(axes) == [*ends, "mean of 200  0.497"]
    assert axes.get_legend().get_title().get_text() == "class, AP at IoU 0.5\n(190 more in grey)"
    assert drawn(tmp_path, figure).shape[1] < 1500


def test_a_confusion_is_coloured_by_the_share_of_its_row() -> None:
    """Letters are white on dark ground, from 0.55 on; a class without objects has no colour."""
    counts = np.array([[6, 3, 1], [0, 0, 0], [11, 9, 0]])
    axes = confusion_figure(Confusion(("a", "b", "background"), counts, np.full(2, 0.5)), "").axes[
        0
    ]
    shown = axes.images[0].get_array()
    assert np.allclose(shown, [[0.6, 0.3, 0.1], [0, 0, 0], [0.55, 0.45, 0]])
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert colors == {"6": "white", "3": "black", "1": "black", "11": "black", "9": "black"}


def confusion_of_size(num_classes: int, seed: int = 0) -> Confusion:
    counts = np.random.default_rng(seed).integers(0, 5, (num_classes + 1,) * 2)
    counts[-1, -1] = 0
    names = (*(f"class {n}" for n in range(num_classes)), "background")
    return Confusion(names, counts, np.full(num_classes, 0.5))


def test_few_classes_are_all_shown():
    confusion = confusion_of_size(25)
    names, counts = shown_part(confusion)
    assert names == list(confusion.names)
    assert counts is confusion.counts
    texts = confusion_figure(confusion, "").axes[0].texts
    assert len(texts) == np.count_nonzero(counts)


def test_of_many_classes_those_with_the_most_mistakes_are_shown_and_nothing_is_lost(tmp_path):
    confusion = confusion_of_size(200)
    confusion.counts[7, 150] += 1000
    confusion.counts[90, -1] += 500  # missed
    confusion.counts[-1, 30] += 500  # on background
    confusion.counts[60, 60] += 10**7  # right
    names, counts = shown_part(confusion)
    assert {"class 7", "class 150", "class 90", "class 30"} <= set(names)
    assert names[-2:] == ["175 others", "background"]
    assert names[:25] == sorted(names[:25], key=lambda name: int(name.split()[1]))
    assert counts.shape == (27, 27)
    assert counts.sum() == confusion.counts.sum()
    here, there = names.index("class 7"), names.index("class 150")
    assert counts[here, there] == confusion.counts[7, 150]
    assert counts[here].sum() == confusion.counts[7].sum()
    assert counts[names.index("class 90"), -1] == confusion.counts[90, -1]
    assert counts[-1, names.index("class 30")] == confusion.counts[-1, 30]
    assert counts[:, there].sum() == confusion.counts[:, 150].sum()
    assert max(drawn(tmp_path, confusion_figure(confusion, "")).shape) < 2200


def test_one_class_and_an_empty_matrix(tmp_path):
    empty = Confusion(("thing", "background"), np.zeros((2, 2), np.int64), np.array([0.5]))
    figure = confusion_figure(empty, "")
    assert len(figure.axes[0].texts) == 0
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(empty.names)
    drawn(tmp_path, figure)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_can_be_drawn_and_is_in_the_legend(name, tmp_path):
    curves = {name: curve_of(0.75), "other": curve_of(0.5)}
    figure = pr_figure(curves, mean_curve(curves), "IoU 0.5")
    assert len(legend_of(figure.axes[0])) == 3
    drawn(tmp_path, figure)
    (tmp_path / "a.png").unlink()
    drawn(tmp_path, confusion_figure(Confusion((name, "b", "bg"), np.eye(3, dtype=int), None), ""))


def test_names_by_hand():
    assert [plain(name) for name in ODD_NAMES[:5]] == [
        " _private",
        r"5\$ note",
        r"\$x^\$ and \$",
        "a" * 23 + "\u2026",
        "two lines",
    ]


# ---- training ----


def run_of(name: str, **series) -> RunRecords:
    kinds: dict[str, dict] = {}
    for key, values in series.items():
        kind, _, of = key.partition("__")
        kinds.setdefault(kind, {})[of] = values
    return RunRecords(Path(name) / "metrics.jsonl", kinds)


WHOLE = {
    "train__loss": [(1, 2.0), (2, 1.0)],
    "train__loss_rpn_cls": [(1, 1.0), (2, 0.0)],
    "train__grad_norm": [(1, 9.0), (2, 9.0)],
    "train__lr": [(1, 0.1), (2, 0.01)],
    "eval__AP": [(1, 0.1), (2, 0.3), (3, 0.3)],
    "eval__AP50": [(1, 0.2), (2, 0.4)],
    "eval__AP75": [(1, 0.0), (2, 0.2)],
    "eval__AR1": [(1, 0.5), (2, 0.5)],
    "eval__loss_rpn_cls": [(2, 0.7)],
    "eval__images": [(1, 40.0), (2, 40.0)],
}


def test_one_run_has_every_loss_and_the_protocols_first_numbers(tmp_path):
    figure = training_figure([run_of("a", **WHOLE)])
    losses, rate, numbers = figure.axes
    assert legend_of(losses) == ["loss", "loss_rpn_cls", "held-out loss_rpn_cls"]
    assert losses.get_yscale() == "log"
    assert [line.get_ydata().tolist() for line in rate.lines] == [[0.1, 0.01]]
    assert legend_of(numbers) == ["AP", "AP50", "AP75", "best: 0.300"]
    assert numbers.lines[-1].get_xdata() == [2]  # the first of the best
    drawn(tmp_path, figure)


def test_several_runs_have_one_line_each(tmp_path):
    runs = [run_of(f"run{n}", **WHOLE) for n in range(12)]
    losses, rate, numbers = training_figure(runs).axes
    for axes in (losses, rate, numbers):
        assert len(axes.lines) == 12
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
        assert len(looks) == 12
    assert legend_of(losses)[:2] == ["run0", "run1"]
    assert legend_of(numbers)[0] == "run0: AP"
    drawn(tmp_path, training_figure(runs))


@pytest.mark.parametrize(
    "series",
    [
        {},
        {"train__loss": [(5, 1.0)], "train__lr": [(5, 0.1)]},
        {"train__loss": [(5, 0.0)]},
        {"eval__mAP": [(5, 0.0)]},
        {"eval__mAP": []},
        {"eval__mAP": [(5, 0.5)], "eval__images": [(5, 9.0)], "eval__compared_by": [(5, 0.5)]},
    ],
)
def test_a_run_of_which_little_is_known(series, tmp_path):
    drawn(tmp_path, training_figure([run_of("a", **series)]))
