"""Numbers as pictures: training over the steps, precision over recall, confusion. Matplotlib's
figures are made and drawn here without its global state.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detres.console import one_line, printable
from detres.detection.evaluation.curves import Confusion, Curve, MeanCurve
from detres.files import replacing
from detres.runs.records import RunRecords, Series

NAMED_CURVES = 10
"""Of more classes the best and the worst are named, half of this number each."""

NAMED_CLASSES = 25
"""Rows of a confusion matrix in which a number can be read."""

NUMBERS = 3
"""Of a protocol's numbers, so many are drawn: the first, of which COCO's are AP, AP50 and AP75."""

_OF_NO_PROTOCOL = ("images", "compared_by")
"""What else the record of an evaluation says: of how many images it is, and how it compares."""

_LONGEST = 24
_DPI = 120


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, in one step; letters that the font lacks are drawn as boxes."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=_DPI)


def plain(name: str) -> str:
    """Return a name as a label that matplotlib draws as it is: in one line, cut where it is long,
    without formulas (between dollar signs) and not left out of the legend (a first "_").
    """
    text = printable(one_line(name))
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def training_figure(runs: Sequence[RunRecords]) -> Figure:
    """Return losses, learning rate and the protocol's numbers over the steps.

    One run: every loss, those on held-out images dashed, and the first NUMBERS numbers; the best of
    the first is marked. Several: the whole loss and the first number, a colour each.
    """
    figure = Figure(figsize=(8, 8), layout="constrained")
    losses, rate, numbers = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 2))
    for place, run in enumerate(runs):
        style = _Style(place, plain(run.name) if len(runs) > 1 else None)
        _draw_losses(losses, run, style)
        _draw_series(rate, run.of_kind("train").get("lr", []), style.of_run())
        _draw_numbers(numbers, run, style)
    if any((line.get_ydata() > 0).any() for line in losses.lines):
        losses.set_yscale("log", nonpositive="mask")
    losses.set(ylabel="loss")
    rate.set(ylabel="learning rate")
    numbers.set(xlabel="step", ylabel="held-out")
    numbers.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (rate, numbers):
        highest = max((np.max(line.get_ydata()) for line in axes.lines), default=0)
        axes.set_ylim(0, 1.08 * highest or 1)
    for axes in (losses, rate, numbers):
        axes.grid(alpha=0.3)
        if any(not line.get_label().startswith("_") for line in axes.lines):
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    if not numbers.lines:
        _say(numbers, "not evaluated yet")
    return figure


class _Style:
    """How the lines of one of several runs look; label: None where there is one run."""

    def __init__(self, place: int, label: str | None) -> None:
        self.label = label
        self.line = {"color": f"C{place % 10}", "linestyle": ("-", "--", ":")[place // 10 % 3]}

    def of_run(self) -> dict:
        """Of its one line in a picture."""
        return {"color": "black"} if self.label is None else self.line | {"label": self.label}


def _draw_losses(axes: Axes, run: RunRecords, style: _Style) -> None:
    train = {name: s for name, s in run.of_kind("train").items() if name.startswith("loss")}
    held_out = {name: s for name, s in run.of_kind("eval").items() if "loss" in name}
    if style.label is not None:
        _draw_series(axes, train.get("loss", []), style.of_run())
        return
    for place, (name, series) in enumerate(train.items()):
        look = {"color": "black", "linewidth": 2} if name == "loss" else {"color": f"C{place}"}
        _draw_series(axes, series, look | {"label": plain(name)})
    for place, (name, series) in enumerate(held_out.items()):
        look = {"color": f"C{place}", "linestyle": "--", "marker": "o", "markersize": 3}
        _draw_series(axes, series, look | {"label": plain(f"held-out {name.removeprefix('val_')}")})


def _draw_numbers(axes: Axes, run: RunRecords, style: _Style) -> None:
    first = [
        (name, series)
        for name, series in run.of_kind("eval").items()
        if series and "loss" not in name and name not in _OF_NO_PROTOCOL
    ][:NUMBERS]
    if not first:
        return
    if style.label is not None:
        name, series = first[0]
        look = style.of_run() | {"label": f"{style.label}: {plain(name)}"}
        _draw_series(axes, series, look | {"marker": "o", "markersize": 3})
        return
    for place, (name, series) in enumerate(first):
        look = {"color": f"C{place}", "marker": "o", "markersize": 3, "label": plain(name)}
        _draw_series(axes, series, look)
    step, best = max(first[0][1], key=lambda point: (point[1], -point[0]))
    axes.plot([step], [best], "*", color="C0", markersize=12, label=f"best: {best:.3f}")


def _draw_series(axes: Axes, series: Series, look: dict) -> None:
    if not series:
        return
    steps, values = zip(*series, strict=True)
    if len(steps) == 1:
        look = {"marker": "o"} | look  # a line of one point would not be seen
    axes.plot(np.array(steps), np.array(values), **look)


def pr_figure(curves: dict[str, Curve], mean: MeanCurve, at: str) -> Figure:
    """Return precision over recall of every class, as AP counts it: the highest precision from each
    recall on. A dot is where the class's score threshold stands.

    at: from which overlap an object is found, in words. Of more than NAMED_CURVES classes the best
    and the worst by AP are named, the rest are grey.
    """
    figure = Figure(figsize=(8.5, 6), layout="constrained")
    axes = figure.subplots()
    measured = sorted(
        (name for name, curve in curves.items() if curve.ap is not None),
        key=lambda name: -curves[name].ap,
    )
    if len(curves) <= NAMED_CURVES:
        named = list(curves)
    elif len(measured) <= NAMED_CURVES:
        named = measured
    else:
        named = [*measured[: NAMED_CURVES // 2], *measured[-(NAMED_CURVES // 2) :]]
    for name in measured:
        if name not in named:
            curve = curves[name]
            _draw_curve(axes, curve.recall, curve.precision, {"color": "0.8", "linewidth": 0.6})
    for place, name in enumerate(named):
        curve, color = curves[name], f"C{place}"
        ap = "n/a (no object)" if curve.ap is None else f"{curve.ap:.3f}"
        look = {"color": color, "label": f"{plain(name)}  {ap}"}
        _draw_curve(axes, curve.recall, curve.precision, look)
        if curve.best_f1:
            axes.plot([curve.recall_at_best], [curve.precision_at_best], "o", color=color, zorder=4)
    if mean.ap is None:
        _say(axes, "no object to find")
    elif len(measured) > 1:
        label = f"mean of {len(measured)}  {mean.ap:.3f}"
        look = {"color": "black", "linewidth": 2.5, "label": label}
        _draw_curve(axes, mean.recall, mean.precision, look)
    others = len(measured) - len([name for name in named if curves[name].ap is not None])
    heading = f"class, AP at {at}" + (f"\n({others} more in grey)" if others else "")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.set_title("dots: where F1 is best", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(title=heading, fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _draw_curve(axes: Axes, recall: np.ndarray, precision: np.ndarray, look: dict) -> None:
    """A step from each recall back to the one before, and down to 0 at the last."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate(([0.0], recall, recall[-1:]))
    envelope = np.concatenate((envelope[:1], envelope, [0.0] if len(envelope) else []))
    axes.plot(recall[: len(envelope)], envelope, drawstyle="steps-pre", **look)


def confusion_figure(confusion: Confusion, title: str) -> Figure:
    """Return a confusion matrix, coloured by the share of its row; numbers are counts.

    Of more than NAMED_CLASSES classes those with the most mistakes are shown, and the rest as one.
    """
    names, counts = shown_part(confusion)
    size = len(names)
    side = 3 + 0.38 * max(size, 4)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if share[row, column] > 0.55 else "black"
        text = _short(int(counts[row, column]))
        look = {"ha": "center", "va": "center", "color": color, "fontsize": 9 if size < 12 else 7}
        axes.text(column, row, text, **look)
    labels = [plain(name) for name in names]
    axes.set_xticks(range(size), labels, rotation=90)
    axes.set_yticks(range(size), labels)
    axes.set(xlabel="taken for (background: missed)", ylabel="is (background: no object there)")
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the row")
    return figure


def shown_part(confusion: Confusion) -> tuple[list[str], np.ndarray]:
    """Return the names and counts (S, S) int64 of the classes that are shown, of the rest as one,
    and of background; the sum is that of the whole.
    """
    counts, num_classes = confusion.counts, len(confusion.names) - 1
    if num_classes <= NAMED_CLASSES:
        return list(confusion.names), counts
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    most = np.argsort(-mistakes[:-1], kind="stable")[:NAMED_CLASSES]
    place = np.full(num_classes + 1, NAMED_CLASSES)
    place[np.sort(most)] = np.arange(NAMED_CLASSES)
    place[-1] = NAMED_CLASSES + 1
    size = NAMED_CLASSES + 2
    cells = place[:, None] * size + place[None, :]
    summed = np.bincount(cells.ravel(), weights=counts.ravel(), minlength=size * size)
    names = [confusion.names[index] for index in np.sort(most)]
    others = f"{num_classes - NAMED_CLASSES} others"
    return [*names, others, confusion.names[-1]], summed.reshape(size, size).astype(np.int64)


def _short(count: int) -> str:
    """A count in at most four characters."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.0f}M"


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axes.transAxes)
