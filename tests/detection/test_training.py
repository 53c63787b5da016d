"""What of a detector's data counts as a change between two parts of a run, and which weights are
kept as the best.
"""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detres.class_map import ClassMap
from detres.config import check
from detres.detection.annotations import Annotations
from detres.detection.config import DetectionConfig
from detres.detection.evaluation.protocol import DetectionEvaluation
from detres.detection.structures import Predictions, Proposals
from detres.detection.training import (
    DetectionTraining,
    fingerprint_of,
    fingerprint_of_proposals,
)
from detres.detection.weights_file import read_tensors
from detres.engine.progress import Progress
from detres.files import CheckpointError
from detres.runs.run import TrainingRun
from detres.runs.saved import SavedRun
from tests.detection.configs import box, coco_config
from tests.helpers import write_coco


def annotations() -> Annotations:
    """Three images, of which the second has no object."""
    return Annotations(
        source="truth",
        class_map=ClassMap.of_names(("a", "b")),
        image_ids=np.array([7, 9, 8]),
        image_files=np.array(["/x/7.jpg", "/x/9.jpg", "/x/8.jpg"]),
        image_sizes=np.array([[20, 20], [20, 30], [30, 20]], np.int32),
        offsets=np.array([0, 2, 2, 3]),
        boxes=np.array([[0, 0, 10, 10], [5, 5, 9, 9], [1, 2, 3, 4]], np.float64),
        labels=np.array([1, 2, 2]),
        areas=np.array([100, 16, 4], np.float64),
        crowd=np.array([False, True, False]),
        difficult=np.zeros(3, bool),
        ids=np.arange(3),
        dropped={},
    )


def changed(**other: object) -> str | None:
    before = fingerprint_of(annotations()).state()
    return fingerprint_of(replace(annotations(), **other)).what_changed(before)


def test_the_same_annotations_from_elsewhere_are_the_same():
    files = np.array(["/moved/to/7.jpg", "/moved/to/9.jpg", "/moved/to/8.jpg"])
    assert changed() is changed(source="copy") is changed(image_files=files) is None
    other = np.array(["/x/7.jpg", "/x/9.png", "/x/8.jpg"])
    assert changed(image_files=other) == (
        "the files of 1 of 3 records have another name or size, the first is image 9"
    )


@pytest.mark.parametrize(
    ("name", "row", "value", "image"),
    [
        ("boxes", 2, 1.25, 8),
        ("labels", 0, 2, 7),
        ("areas", 1, 17, 7),
        ("crowd", 1, False, 7),
        ("difficult", 2, True, 8),
        ("image_sizes", 1, 31, 9),
        ("image_ids", 1, 10, 10),
        ("offsets", 1, 1, 7),
    ],
)
def test_whatever_is_trained_on_or_judged_by_counts(name, row, value, image):
    values = getattr(annotations(), name).copy()
    values[row] = value
    number = 2 if name == "offsets" else 1  # an object that goes from one image to the next
    assert changed(**{name: values}) == f"{number} of 3 records differ, the first is image {image}"


def test_annotation_ids_do_not_count():
    assert changed(ids=np.arange(3) + 5) is None


def proposals() -> Proposals:
    """Two boxes in the first image, none in the second, one in the third."""
    return Proposals(
        source="proposals",
        image_ids=np.array([7, 9, 8]),
        offsets=np.array([0, 2, 2, 3]),
        boxes=np.arange(12.0).reshape(3, 4),
        scores=np.array([0.9, 0.1, 0.5], np.float32),
    )


@pytest.mark.parametrize(
    ("name", "row", "value", "said"),
    [
        ("boxes", 2, 1.25, "1 of 3 records differ, the first is image 8"),
        ("scores", 0, 0.8, "1 of 3 records differ, the first is image 7"),
        ("image_ids", 1, 10, "1 of 3 records differ, the first is image 10"),
        ("offsets", 2, 3, "2 of 3 records differ, the first is image 9"),
    ],
)
def test_other_proposals_are_other_data(name, row, value, said):
    values = getattr(proposals(), name).copy()
    values[row] = value
    before = fingerprint_of_proposals(proposals()).state()
    other = fingerprint_of_proposals(replace(proposals(), **{name: values}))
    assert other.what_changed(before) == said
    assert fingerprint_of_proposals(proposals()).what_changed(before) is None


# ---- the best weights ----


class Marked(DetectionTraining):
    """A detector whose AP is said by a table: (images, mark of its weights) -> AP."""

    table: dict[tuple[int, float], float]

    @property
    def mark(self) -> torch.nn.Parameter:
        return self.detector.roi_head.predictor.cls_score.bias

    def set_mark(self, value: float) -> None:
        torch.nn.init.constant_(self.mark, value)

    def measure(
        self, truth: Annotations, found: Predictions, *, whole: bool
    ) -> DetectionEvaluation:
        evaluation = super().measure(truth, found, whole=whole)
        own = self.table[len(truth), self.mark[0].item()]
        result = replace(evaluation.result, metrics={**evaluation.result.metrics, "AP": own})
        return replace(evaluation, result=result)


@dataclass
class StandIn:
    """Of a run what a training asks for when it keeps weights."""

    folder: Path
    progress: Progress
    lines: list[str] = field(default_factory=list)

    @property
    def log(self) -> StandIn:
        return self

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def marked(tmp_path) -> Marked:
    write_coco(tmp_path, [(50, 60), (64, 40), (90, 70)], [box(1), box(2), box(3)])
    tree = json.loads(coco_config(tmp_path, data={"workers": 0}).model_dump_json())
    train = {"steps": 10, "eval_every": 2, "eval_images": 2}
    config = check(DetectionConfig, {**tree, "train": train}, "test")
    return Marked.start(config, torch.device("cpu"))


def evaluated(training: Marked, run: StandIn, step: int, mark: float, *, whole: bool) -> None:
    """As TrainingRun.evaluate does it."""
    training.set_mark(mark)
    run.progress.step = step
    judgement = training.judge(whole=whole)
    improved = run.progress.see_metric(judgement.comparable)
    record = {"step": step, "kind": "eval", **judgement.record()}
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(f"{json.dumps(record)}\n")
    training.keep(run, judgement, improved=improved, whole=whole)
    assert training.mark[0].item() == mark


def kept(folder: Path) -> tuple[float, int, dict]:
    """Mark and step of the weights in a folder, and the numbers beside them."""
    tensors, step = read_tensors(folder / "best.safetensors")
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["step"] == step
    return tensors["roi_head.predictor.cls_score.bias"][0].item(), step, numbers


@pytest.mark.parametrize(
    ("few", "all_images", "best"),
    [
        # AP of marks 1 and 2 on 2 images, on all 3, and the mark that is the best
        ((0.3, 0.5), (None, 0.1), 2),  # ahead on the same images: those of the other are not asked
        ((0.5, 0.3), (0.4, 0.6), 2),  # ahead on few, not on all
        ((0.5, 0.3), (0.6, 0.4), 1),
        ((0.5, 0.3), (0.5, 0.5), 2),  # no better than the last
        ((0.5, 0.5), (0.6, 0.4), 1),  # the earlier of two that are equal on few
    ],
)
def test_the_best_are_chosen_by_numbers_of_the_same_images(marked, tmp_path, few, all_images, best):
    marked.table = {(2, 1.0): few[0], (2, 2.0): few[1], (3, 1.0): all_images[0]}
    marked.table[3, 2.0] = all_images[1]
    run = StandIn(tmp_path, Progress())
    evaluated(marked, run, 4, 1.0, whole=False)
    mark, step, numbers = kept(tmp_path)
    assert (mark, step, numbers["AP"], numbers["images"]) == (1.0, 4, few[0], 2)
    found = json.loads((tmp_path / "predictions.json").read_text())
    looked_at = set(marked.held_out.part.image_ids.tolist())
    assert {record["image_id"] for record in found} <= looked_at
    evaluated(marked, run, 10, 2.0, whole=True)
    mark, step, numbers = kept(tmp_path)
    assert (mark, step) == ((1.0, 4), (2.0, 10))[best - 1]
    assert numbers["AP"] == all_images[best - 1]
    assert numbers["images"] == 3
    assert run.progress.evaluations == {4: few[0], 10: few[1]}
    said = "\n".join(run.lines)
    if few[1] > few[0]:
        assert said == ""
    else:
        assert "ahead on the way was step 4: evaluated on all held-out images, too" in said
        assert f"kept are the weights of step {step}" in said


def test_decided_twice_the_best_are_the_same(marked, tmp_path):
    """As where a run is killed between writing the best and saving its state."""
    for few, on_all in (((0.5, 0.3), (0.4, 0.6)), ((0.5, 0.3), (0.6, 0.4))):
        marked.table = {(2, 1.0): few[0], (2, 2.0): few[1], (3, 1.0): on_all[0]}
        marked.table[3, 2.0] = on_all[1]
        run = StandIn(tmp_path, Progress())
        evaluated(marked, run, 4, 1.0, whole=False)
        evaluated(marked, run, 10, 2.0, whole=True)
        first = kept(tmp_path)
        evaluated(marked, run, 10, 2.0, whole=True)
        assert kept(tmp_path) == first


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_where_the_best_on_the_way_cannot_be_read_the_last_are_kept(marked, tmp_path, content):
    marked.table = {(2, 1.0): 0.5, (2, 2.0): 0.3, (3, 2.0): 0.4}
    run = StandIn(tmp_path, Progress())
    evaluated(marked, run, 4, 1.0, whole=False)
    path = tmp_path / "best.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    evaluated(marked, run, 10, 2.0, whole=True)
    assert kept(tmp_path)[:2] == (2.0, 10)
    assert "best.safetensors" in run.lines[0]
    assert "the weights of the last step are kept" in run.lines[0]


def test_where_all_images_are_looked_at_every_time_the_metric_alone_decides(marked, tmp_path):
    marked.hold_out(3)
    marked.table = {(3, 1.0): 0.5, (3, 2.0): 0.3, (3, 3.0): 0.5}
    run = StandIn(tmp_path, Progress())
    evaluated(marked, run, 4, 1.0, whole=False)
    evaluated(marked, run, 8, 2.0, whole=False)
    evaluated(marked, run, 10, 3.0, whole=True)
    mark, step, numbers = kept(tmp_path)
    assert (mark, step, numbers["AP"]) == (1.0, 4, 0.5)
    assert numbers["images"] == 3
    assert run.lines == []


def test_what_is_looked_at_is_said_and_saved_and_restored(marked, tmp_path):
    assert "on the way on 2 of them, the same every time" in marked.describe_data()
    assert marked.state()["eval_images"] == 2
    how = {"device": torch.device("cpu"), "resume_line": lambda *_: "x"}
    with TrainingRun.start(marked, tmp_path / "run", **how) as run:
        run.save()
    saved = SavedRun.read(tmp_path / "run", DetectionConfig, wing="detection")

    def resumed(**changes: object) -> DetectionTraining:
        state = {**saved.state, **changes}
        state = {key: value for key, value in state.items() if value is not ...}
        return DetectionTraining.resume(replace(saved, state=state), torch.device("cpu"))

    for number, expected in ((2, 2), (1, 1), (3, 3), (..., 3)):  # earlier versions looked at all
        part = resumed(eval_images=number).held_out.part
        assert len(part) == expected
    for wrong in (0, "2", True, None):
        with pytest.raises(CheckpointError, match="its 'eval_images' is not what a run writes"):
            resumed(eval_images=wrong)


@pytest.mark.parametrize(
    ("backend", "on_the_way", "at_the_end"),
    [
        ("auto", "hotcoco", "pycocotools"),
        ("pycocotools", "pycocotools", "pycocotools"),
        ("hotcoco", "hotcoco", "hotcoco"),
    ],
)
def test_who_counts_on_the_way_and_at_the_end(marked, backend, on_the_way, at_the_end):
    pytest.importorskip("hotcoco", reason="the extra fast is missing")
    marked.config = marked.config.model_copy(
        update={"eval": marked.config.eval.model_copy(update={"backend": backend})}
    )
    marked.table = {(2, 1.0): 0.3, (3, 1.0): 0.4}
    marked.set_mark(1.0)
    for whole, who in ((False, on_the_way), (True, at_the_end)):
        protocol = marked.judge(whole=whole).evaluation.result.protocol
        assert protocol.split(", ")[-1] == f"{who} {importlib.metadata.version(who)}"
