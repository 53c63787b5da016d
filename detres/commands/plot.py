"""The paper's figures from runs of train_cls: `plot curves RUN... --out DIR`, or
`responses WEIGHTS... --out DIR`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import operator
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detres.classification.data.in_memory import ArrayEvalBatches
from detres.classification.data.read import read_held_out
from detres.classification.evaluation.responses import layer_responses
from detres.classification.weights_file import load_classifier
from detres.cli.flags import say
from detres.files import replacing, write_text
from detres.images.source import ImageArrays
from detres.runs.folder import RECORDS
from detres.runs.settings import with_data_root

RESPONSE_IMAGES = 1000


def draw(arguments: argparse.Namespace) -> None:
    """Draw what was asked for."""
    if arguments.kind == "curves":
        draw_curves(arguments)
    else:
        draw_responses(arguments)


def draw_curves(arguments: argparse.Namespace) -> None:
    """Draw training error thin, test error bold, as the paper does, and write both as a table."""
    figure = Figure(figsize=(7, 5))
    axes = figure.subplots()
    rows = []
    for number, folder in enumerate(arguments.paths):
        errors = read_errors(Path(folder))
        for kind, style in (
            ("train", {"linewidth": 0.7, "alpha": 0.7}),
            ("eval", {"linewidth": 2.0}),
        ):
            steps, values = zip(*errors[kind], strict=True)
            label = f"{Path(folder).name} {'test' if kind == 'eval' else 'training'}"
            marker = "o" if len(steps) == 1 else None  # a line of one point would not be seen
            axes.plot(
                steps,
                [100 * value for value in values],
                color=f"C{number}",
                label=label,
                marker=marker,
                **style,
            )
            rows += [
                (Path(folder).name, "test" if kind == "eval" else "training", step, value)
                for step, value in errors[kind]
            ]
    axes.set(xlabel="step", ylabel="error (%)", ylim=(0, arguments.max_error))
    axes.legend(fontsize="small")
    write(Path(arguments.out), "curves", figure, ("run", "set", "step", "top1_error"), rows)


def read_errors(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return "train" and "eval" -> (step, top-1 error as a fraction), in order.

    Raises ValueError naming the file when it is missing, damaged, or has none of the two.
    """
    path = folder / RECORDS
    if not path.is_file():
        raise ValueError(f"{path} is missing: {folder} is no run folder of train-cls")
    errors: dict[str, list[tuple[int, float]]] = {"train": [], "eval": []}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            if record["kind"] in errors and record.get("top1_error") is not None:
                step, error = operator.index(record["step"]), float(record["top1_error"])
                errors[record["kind"]].append((step, error))
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{path}, line {number} is no record of a run ({error})") from None
        except RecursionError:
            raise ValueError(f"{path}, line {number} is no record of a run") from None
    for kind, found in errors.items():
        if not found:
            raise ValueError(
                f"{path} has no {kind} record with a top-1 error: draw runs of train-cls that have "
                "been evaluated"
            )
    return errors


def draw_responses(arguments: argparse.Namespace) -> None:
    """Draw the standard deviation of every 3x3 layer's response, in network order above and sorted
    below, and write the table.

    Raises ValueError for weights of a run whose images are not held in memory, and what the readers
    raise.
    """
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
    write(Path(arguments.out), "responses", figure, ("network", "layer", "norm", "std"), rows)


def write(
    folder: Path, name: str, figure: Figure, header: tuple[str, ...], rows: list[tuple]
) -> None:
    """Write folder/name.png and folder/name.csv; raises ValueError when the folder is a file."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a folder")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([header, *rows])
    write_text(folder / f"{name}.csv", text.getvalue())
    figure.tight_layout()
    with replacing(folder / f"{name}.png") as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=120)
    say(f"{folder / f'{name}.png'}, {folder / f'{name}.csv'}")
