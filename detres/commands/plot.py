"""Pictures of runs: `plot curves RUN... --out DIR`, of classifiers the paper's figures 1, 4 and 6,
of detectors losses, rate and AP; and figure 7, `plot responses WEIGHTS... --out DIR`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detres.classification.data.in_memory import ArrayEvalBatches
from detres.classification.data.read import read_held_out
from detres.classification.evaluation.responses import layer_responses
from detres.classification.weights_file import load_classifier
from detres.cli.flags import say
from detres.detection.evaluation_files import write_curves, write_table
from detres.detection.figures import plain, write_png
from detres.images.source import ImageArrays
from detres.runs.folder import CURVES_PICTURE, CURVES_TABLE
from detres.runs.records import RunRecords, Series, read_records
from detres.runs.settings import with_data_root

RESPONSE_IMAGES = 1000
ERROR = "top1_error"
"""The number of a classifier's records that is drawn."""


def draw(arguments: argparse.Namespace) -> None:
    """Draw what was asked for."""
    if arguments.kind == "curves":
        draw_curves(arguments)
    else:
        draw_responses(arguments)


def draw_curves(arguments: argparse.Namespace) -> None:
    """Draw runs of classifiers by their errors, others by losses, rate and numbers, and write both
    as a table.

    Raises RecordsError for a folder without records, ValueError for runs of both kinds, for a
    classifier's that has not been evaluated, and for --max-error where no error is drawn.
    """
    runs = [read_records(Path(folder)) for folder in arguments.paths]
    of_classifiers = [run for run in runs if ERROR in run.of_kind("train")]
    others = [run for run in runs if run not in of_classifiers]
    if of_classifiers and others:
        raise ValueError(
            f"{of_classifiers[0].path} has the errors of a classifier, {others[0].path} has none: "
            "draw runs of the two kinds each with their own --out"
        )
    out = folder_of(arguments)
    if of_classifiers:
        draw_errors(of_classifiers, out, arguments.max_error)
        return
    for run in runs:
        if "loss" not in run.of_kind("train"):
            raise ValueError(f"{run.path} has no train record with a loss: nothing to draw yet")
    if arguments.max_error is not None:
        raise ValueError(f"--max-error goes with runs of train-cls; {runs[0].path} has no errors")
    write_curves(out, runs)
    say_written(out, CURVES_PICTURE, CURVES_TABLE)


def draw_errors(runs: list[RunRecords], out: Path, max_error: float | None) -> None:
    """Draw training error thin, test error bold, as the paper does, and write both as a table."""
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    rows: list[tuple] = [("run", "set", "step", ERROR)]
    for number, run in enumerate(runs):
        if ERROR not in run.of_kind("eval"):
            raise ValueError(
                f"{run.path} has no eval record with a top-1 error: draw runs that have been "
                "evaluated"
            )
        for kind, label, style in (
            ("train", "training", {"linewidth": 0.7, "alpha": 0.7}),
            ("eval", "test", {"linewidth": 2.0}),
        ):
            series = run.of_kind(kind)[ERROR]
            style |= {"color": f"C{number}", "label": f"{plain(run.name)} {label}"}
            draw_error(axes, series, style)
            rows += [(run.name, label, step, value) for step, value in series]
    axes.set(xlabel="step", ylabel="error (%)", ylim=(0, max_error))
    axes.legend(fontsize="small")
    write(out, CURVES_PICTURE, CURVES_TABLE, figure, rows)


def draw_error(axes: Axes, series: Series, style: dict) -> None:
    """Draw one error, a fraction, in percent."""
    steps, values = zip(*series, strict=True)
    marker = "o" if len(steps) == 1 else None  # a line of one point would not be seen
    axes.plot(steps, [100 * value for value in values], marker=marker, **style)


def draw_responses(arguments: argparse.Namespace) -> None:
    """Draw the standard deviation of every 3x3 layer's response, in network order above and sorted
    below, and write the table.

    Raises ValueError for weights of a run whose images are not held in memory, and what the readers
    raise.
    """
    out = folder_of(arguments)
    figure = Figure(figsize=(7, 6))
    ordered, falling = figure.subplots(2, 1, sharex=True)
    rows = []
    for weights in arguments.paths:
        model, config, class_map = load_classifier(Path(weights))
        model.to(arguments.device)
        images = read_held_out(with_data_root(config.data, arguments.data), class_map, say)
        if images.size is None:
            raise ValueError(
                f"{weights}: responses are measured on images held in memory (CIFAR-10, shapes, "
                "data.in_memory)"
            )
        pixels, labels = images.pixels[:RESPONSE_IMAGES], images.labels[:RESPONSE_IMAGES]
        few = ImageArrays(images.source, images.class_map, pixels, labels)
        crops = (batch.pixels for batch, _ in ArrayEvalBatches(few, batch_size=100))
        batches = (model.normalizer(pixels.to(arguments.device)) for pixels in crops)
        found = layer_responses(model.net, batches)
        name = Path(weights).parent.name
        ordered.plot(range(1, len(found) + 1), list(found.values()), label=name)
        falling.plot(range(1, len(found) + 1), sorted(found.values(), reverse=True), label=name)
        rows += [
            (name, number, layer, value)
            for number, (layer, value) in enumerate(found.items(), start=1)
        ]
    ordered.set(ylabel="std", title="layer index, original order")
    falling.set(ylabel="std", xlabel="layer", title="sorted by magnitude")
    falling.xaxis.set_major_locator(MaxNLocator(integer=True))
    ordered.legend(fontsize="small")
    head = ("network", "layer", "norm", "std")
    write(out, "responses.png", "responses.csv", figure, [head, *rows])


def folder_of(arguments: argparse.Namespace) -> Path:
    """Return that of --out; raises ValueError when it is a file."""
    folder = Path(arguments.out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a folder")
    return folder


def write(folder: Path, picture: str, table: str, figure: Figure, rows: list[tuple]) -> None:
    """Write a picture and the table, its head first, that it was drawn from."""
    write_table(folder / table, rows)
    figure.tight_layout()
    write_png(folder / picture, figure)
    say_written(folder, picture, table)


def say_written(folder: Path, *names: str) -> None:
    """Say which files were written."""
    say(", ".join(str(folder / name) for name in names))
