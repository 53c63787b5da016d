"""Who counts COCO's numbers: pycocotools, or hotcoco, the same numbers in less time."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from pycocotools.cocoeval import COCOeval

from detres.detection.annotations import Annotations
from detres.detection.choices import CocoBackend
from detres.detection.evaluation.coco_matching import CocoBoxes, CocoMatches, match_coco
from detres.detection.evaluation.matches import NONE
from detres.detection.structures import Predictions, index_of

try:
    import hotcoco
except ModuleNotFoundError:  # an extra
    hotcoco = None


class BackendError(ValueError):
    """A backend whose package is not installed; the message says how to get it."""


@dataclass(frozen=True)
class CocoCounts:
    """What COCO's numbers are means of, -1 where there is no ground truth.

    T IoU thresholds, 101 recalls, K classes, 4 areas, 3 numbers of detections. precision, scores:
    (T, 101, K, 4, 3) float64. recall: (T, K, 4, 3) float64. by: who counted, and which version.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    by: str

    def stats(self) -> list[float]:
        """Return COCO's twelve numbers, -1 where there is nothing to measure."""
        evaluation = COCOeval(iouType="bbox")
        evaluation.eval = {"precision": self.precision, "recall": self.recall}
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.summarize()
        return evaluation.stats.tolist()


class CocoProblem:
    """An evaluation by COCO's protocol: objects, detections and the protocol's parameters.

    truth, found: M objects and D detections, images in the order of their ids. ignored: (M,) bool,
    crowd or difficult. scores: (D,) float64. num_images, num_classes: N and K.
    """

    def __init__(self, truth: Annotations, predictions: Predictions, owners: np.ndarray) -> None:
        places = np.empty(len(truth), np.int64)
        places[np.argsort(truth.image_ids, kind="stable")] = np.arange(len(truth))
        self.num_images, self.num_classes = len(truth), len(truth.class_map)
        gt_places = np.repeat(places, np.diff(truth.offsets))
        self.truth = CocoBoxes(gt_places, truth.class_indices, truth.xywh(), truth.areas)
        xywh = predictions.xywh()
        classes = index_of(predictions.labels)
        self.found = CocoBoxes(places[owners], classes, xywh, xywh[:, 2] * xywh[:, 3])
        self.ignored = truth.crowd | truth.difficult
        self.scores = predictions.scores.astype(np.float64)
        self.params = COCOeval(iouType="bbox").params

    def matches(self, *, first_only: bool = False) -> CocoMatches:
        """Return the matches at all thresholds and areas, or at the first of both only: IoU .5,
        objects of all areas.
        """
        these = slice(1) if first_only else slice(None)
        return match_coco(
            self.truth,
            self.ignored,
            self.found,
            self.scores,
            num_images=self.num_images,
            iou_threshs=np.asarray(self.params.iouThrs)[these],
            area_ranges=np.array(self.params.areaRng, np.float64)[these],
            max_detections=self.params.maxDets[-1],
        )


def require_backend(backend: CocoBackend) -> None:
    """Raise BackendError where the package that `backend` needs is not installed."""
    if backend == "hotcoco" and hotcoco is None:
        raise BackendError(
            "the backend hotcoco of COCO's evaluation (eval.backend) is not installed: pip install "
            "'detres[fast]', or leave it at auto or pycocotools, which count the same"
        )


def backend_on_the_way(backend: CocoBackend) -> CocoBackend:
    """Return what evaluates inside a training: hotcoco for "auto" where it is installed."""
    return "hotcoco" if backend == "auto" and hotcoco is not None else backend


def count_coco(problem: CocoProblem, backend: CocoBackend = "auto") -> CocoCounts:
    """Return what `backend` counts, "auto" being pycocotools; the arrays are the same to the last
    bit. Raises what `require_backend` raises.
    """
    require_backend(backend)
    return _by_hotcoco(problem) if backend == "hotcoco" else _by_pycocotools(problem)


def _by_pycocotools(problem: CocoProblem) -> CocoCounts:
    """Precision and recall by pycocotools, of `match_coco`'s matches.

    Its per-image records would be a dict an image, class and area. Here an "image" is all of them
    at once, and so that it still counts the 1, 10 and 100 best of every image, each of these is an
    "area" of its own.
    """
    params, matches = problem.params, problem.matches()
    classes = np.arange(problem.num_classes)
    bounds = np.searchsorted(problem.found.classes[matches.rows], np.append(classes, len(classes)))
    by_class = np.argsort(problem.truth.classes, kind="stable")
    gt_bounds = np.searchsorted(problem.truth.classes[by_class], np.append(classes, len(classes)))
    scores = problem.scores[matches.rows]
    areas, counts = range(len(params.areaRng)), params.maxDets
    records: list[dict | None] = []
    for index in classes.tolist():
        own = slice(bounds[index], bounds[index + 1])
        objects = by_class[gt_bounds[index] : gt_bounds[index + 1]]
        for area in areas:
            found = matches.objects[area, :, own] != NONE  # (T, D'')
            ignored = matches.ignored[area, :, own]
            for count in counts:
                looked_at = matches.ranks[own] < count
                records.append(
                    {
                        "dtScores": scores[own][looked_at],
                        "dtMatches": found[:, looked_at],
                        "dtIgnore": ignored[:, looked_at],
                        "gtIgnore": matches.objects_ignored[area, objects],
                    }
                )
    evaluation = COCOeval(iouType="bbox")
    evaluation.evalImgs = records
    own_params = evaluation.params
    own_params.imgIds, own_params.catIds = [0], classes.tolist()
    own_params.areaRng = [(area, count) for area in areas for count in counts]
    own_params.maxDets = [max(len(scores), 1)]
    evaluation._paramsEval = own_params
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation.accumulate()
    arrays = {
        key: evaluation.eval[key].reshape(*evaluation.eval[key].shape[:-2], len(areas), len(counts))
        for key in ("precision", "recall", "scores")
    }
    return CocoCounts(**arrays, by=f"pycocotools {version('pycocotools')}")


def _by_hotcoco(problem: CocoProblem) -> CocoCounts:
    truth, found = problem.truth, problem.found
    objects = hotcoco.COCO.from_arrays(
        [{"id": number} for number in range(1, problem.num_images + 1)],
        [{"id": number, "name": str(number)} for number in range(1, problem.num_classes + 1)],
        truth.images + 1,
        truth.classes + 1,
        truth.xywh,
        area=truth.areas,
        iscrowd=problem.ignored,
    )
    table = (found.images + 1, found.xywh, problem.scores, found.classes + 1)
    evaluation = hotcoco.COCOeval(objects, objects.load_res(np.column_stack(table)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = evaluation.eval
    return CocoCounts(
        arrays["precision"], arrays["recall"], arrays["scores"], f"hotcoco {version('hotcoco')}"
    )
