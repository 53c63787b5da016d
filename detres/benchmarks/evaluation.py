"""Files to COCO's twelve numbers, time and memory, against pycocotools."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np

from detres.benchmarks.annotations import write_annotations
from detres.benchmarks.process_cost import cost_of, require_memory_told
from detres.benchmarks.timing import Timing

IMAGES, OBJECTS, DETECTIONS = 5000, 36_000, 100
"""Of COCO 2017 val; detections an image."""

_OURS = (
    "from pathlib import Path\n"
    "from detres.detection.data.coco import read_coco\n"
    "from detres.detection.evaluation.coco_ap import evaluate_coco\n"
    "from detres.detection.evaluation.result_files import read_coco_results\n"
    "def numbers(truth, found, backend):\n"
    "    annotations = read_coco(Path(truth), None, box_policy='keep')\n"
    "    predictions, _ = read_coco_results(found, annotations)\n"
    "    return evaluate_coco(annotations, predictions, backend=backend).metrics"
)
_THEIRS = (
    "from pycocotools.coco import COCO\n"
    "from pycocotools.cocoeval import COCOeval\n"
    "def numbers(truth, found):\n"
    "    coco = COCO(truth)\n"
    "    evaluation = COCOeval(coco, coco.loadRes(found), 'bbox')\n"
    "    evaluation.evaluate()\n"
    "    evaluation.accumulate()\n"
    "    evaluation.summarize()"
)


def benchmark_evaluation(timing: Timing) -> None:
    """Print the seconds of CPU from drawn files of the size of COCO's val to the twelve numbers,
    and the most memory of the process, of each backend and pycocotools by itself, in turns.

    Raises ValueError where the system does not tell the memory of a process.
    """
    require_memory_told("eval")
    with tempfile.TemporaryDirectory() as folder:
        truth, found = Path(folder) / "truth.json", Path(folder) / "found.json"
        write_annotations(truth, IMAGES, OBJECTS)
        write_detections(found, truth)
        jobs = {"pycocotools": (_THEIRS, f"numbers({str(truth)!r}, {str(found)!r})")}
        for backend in ("pycocotools", "hotcoco"):
            if importlib.util.find_spec(backend) is not None:
                call = f"numbers({str(truth)!r}, {str(found)!r}, {backend!r})"
                jobs[f"ours, {backend}"] = (_OURS, call)
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
        for _ in range(timing.repeats):
            for name, job in jobs.items():
                costs[name].append(cost_of(*job))
    medians = {name: np.median(each, axis=0).tolist() for name, each in costs.items()}
    theirs, their_most = medians.pop("pycocotools")
    what = f"{IMAGES} images x {DETECTIONS} detections to COCO's numbers"
    for name, (seconds, most) in medians.items():
        row = {"job": what, "way": name, "cpu_s": seconds, "bytes": most, "peer": "pycocotools"}
        row |= {"peer_cpu_s": theirs, "peer_bytes": their_most, "ratio": theirs / seconds}
        timing.add(
            row,
            f"{what:<58}  {name} {seconds:.2f} s, {most / 2**30:.2f} GiB  pycocotools "
            f"{theirs:.2f} s, {their_most / 2**30:.2f} GiB  "
            f"{theirs / seconds:.2f} times as fast",
        )


def write_detections(path: Path, truth: Path, seed: int = 0) -> None:
    """Write a results file for an annotation file, DETECTIONS an image: half of them near objects
    of their image, where it has some, the others anywhere; the same for the same seed.
    """
    rng = np.random.default_rng(seed)
    content = json.loads(truth.read_bytes())
    categories = [one["id"] for one in content["categories"]]
    of_image: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    records = []
    for image_id, objects in of_image.items():
        boxes = np.concatenate(
            (rng.random((DETECTIONS, 2)) * 300, 10 + rng.random((DETECTIONS, 2)) * 200), axis=1
        )
        labels = rng.choice(categories, DETECTIONS)
        if objects:
            near = rng.integers(0, len(objects), DETECTIONS // 2)
            around = np.array([objects[row]["bbox"] for row in near])
            boxes[: len(near)] = np.abs(around + rng.normal(0, 4, around.shape))
            labels[: len(near)] = [objects[row]["category_id"] for row in near]
        records += [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for label, box, score in zip(
                labels.tolist(),
                boxes.round(2).tolist(),
                rng.random(DETECTIONS).tolist(),
                strict=True,
            )
        ]
    path.write_text(json.dumps(records), encoding="ascii")
