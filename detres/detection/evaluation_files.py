"""What an evaluation leaves to look at: precision over recall, confusion, the classes' scores, a
sheet of held-out pictures; and, of a run, its curves.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from detres.detection.evaluation.curves import (
    BACKGROUND,
    Confusion,
    Curve,
    MeanCurve,
    class_curves,
    confusion_of,
    mean_curve,
    outcome_of,
    score_thresholds,
)
from detres.detection.evaluation.protocol import DetectionEvaluation
from detres.detection.figures import confusion_figure, pr_figure, training_figure, write_png
from detres.detection.inference.sheet import write_sheet
from detres.files import write_text
from detres.runs import folder as names
from detres.runs.records import RunRecords, read_records, table_of

NUMBER_FILES = (
    *(names.PR_TABLE, names.PR_PICTURE, names.PR_JSON, names.CLASSES_TABLE),
    *(names.CONFUSION_TABLE, names.CONFUSION_PICTURE, names.CONFUSION_JSON),
)
"""What `write_evaluation` writes, without the sheet."""


def write_evaluation(
    folder: Path, evaluation: DetectionEvaluation, *, seed: int = 0, pictures: bool = True
) -> dict[str, float]:
    """Write into `folder` NUMBER_FILES and, with `pictures`, the sheet of held-out images drawn by
    `seed`; return class name -> the score from which it is best taken.

    The confusion matrix and the sheet are of the detections from those scores on. Files of these
    names are replaced, each in one step. Raises ImageReadError naming an image of the sheet that
    cannot be read.
    """
    truth, found, result = evaluation.truth, evaluation.predictions, evaluation.result
    curves = class_curves(truth, found, result)
    thresholds = score_thresholds(curves)
    by_class = np.array([thresholds[name] for name in truth.class_map.names])
    confusion = confusion_of(truth, found, result.matches, by_class)
    _write_curves(folder, curves, mean_curve(curves), evaluation)
    _write_confusion(folder, confusion, evaluation)
    if pictures:
        outcome = outcome_of(found, result.matches, by_class)
        write_sheet(folder / names.PICTURE, truth, found, outcome, seed=seed)
    return thresholds


def write_training_curves(folder: Path) -> None:
    """Write the curves of the run in `folder` beside its records; raises what `read_records`
    raises.
    """
    write_curves(folder, [read_records(folder)])


def write_curves(folder: Path, runs: list[RunRecords]) -> None:
    """Write losses, learning rate and numbers of runs over their steps as a table and a picture."""
    write_table(folder / names.CURVES_TABLE, table_of(runs))
    write_png(folder / names.CURVES_PICTURE, training_figure(runs))


def write_table(path: Path, rows: Iterable[tuple]) -> None:
    """Write rows as a CSV file, in one step."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _iou_of(evaluation: DetectionEvaluation) -> str:
    """From which overlap an object is found, in words."""
    threshs = np.unique(evaluation.result.matches.iou_threshs)
    if len(threshs) == 1:
        return f"IoU {threshs[0]:g}"
    return "IoU of each object" if len(threshs) else "no object"


def _write_curves(
    folder: Path, curves: dict[str, Curve], mean: MeanCurve, evaluation: DetectionEvaluation
) -> None:
    iou = _iou_of(evaluation)
    tree = {
        "protocol": evaluation.result.protocol,
        "at": iou,
        "overall": {**_points(mean), "ap": mean.ap},
        "classes": {name: {**_points(curve), **_facts(curve)} for name, curve in curves.items()},
    }
    write_text(folder / names.PR_JSON, f"{json.dumps(tree)}\n")
    rows = [("of", "class", "score", "recall", "precision")]
    rows += [
        ("mean", "", "", *point)
        for point in zip(mean.recall.tolist(), mean.precision.tolist(), strict=True)
    ]
    rows += [
        ("class", name, *point)
        for name, curve in curves.items()
        for point in zip(
            *(each.tolist() for each in (curve.scores, curve.recall, curve.precision)), strict=True
        )
    ]
    write_table(folder / names.PR_TABLE, rows)
    facts = {name: _facts(curve) for name, curve in curves.items()}
    head = ("class", "at", *next(iter(facts.values())))
    table = [
        (name, iou, *("" if value is None else value for value in of.values()))
        for name, of in facts.items()
    ]
    write_table(folder / names.CLASSES_TABLE, [head, *table])
    write_png(folder / names.PR_PICTURE, pr_figure(curves, mean, iou))


def _points(curve: Curve | MeanCurve) -> dict[str, list[float]]:
    points = {"recall": curve.recall.tolist(), "precision": curve.precision.tolist()}
    return points | ({"scores": curve.scores.tolist()} if isinstance(curve, Curve) else {})


def _facts(curve: Curve) -> dict[str, float | int | None]:
    """What is said of a class beside its points."""
    return {
        "ap": curve.ap,
        "num_objects": curve.num_objects,
        "num_detections": curve.num_detections,
        "score_threshold": curve.score_threshold,
        "best_f1": curve.best_f1,
        "precision_at_best": curve.precision_at_best,
        "recall_at_best": curve.recall_at_best,
    }


def _write_confusion(folder: Path, confusion: Confusion, evaluation: DetectionEvaluation) -> None:
    iou = _iou_of(evaluation)
    classes = confusion.names[:-1]
    tree = {
        "protocol": evaluation.result.protocol,
        "at": iou,
        "rows": "what an object is",
        "columns": "what it was taken for",
        "names": [*classes, BACKGROUND],
        "score_thresholds": dict(zip(classes, confusion.thresholds.tolist(), strict=True)),
        "counts": confusion.counts.tolist(),
    }
    write_text(folder / names.CONFUSION_JSON, f"{json.dumps(tree)}\n")
    rows = [("is / taken for", *confusion.names)]
    rows += [
        (name, *counts)
        for name, counts in zip(confusion.names, confusion.counts.tolist(), strict=True)
    ]
    write_table(folder / names.CONFUSION_TABLE, rows)
    title = f"What was taken for what: {iou},\neach class from its F1-best score on"
    write_png(folder / names.CONFUSION_PICTURE, confusion_figure(confusion, title))
