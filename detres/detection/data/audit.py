"""What is wrong, or may be, with annotated data: looked for before anything is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from detres.console import one_line, plural
from detres.detection.annotations import Annotations
from detres.detection.config import ModelConfig
from detres.detection.data.anchor_fit import boxes_in_training, describe_fit, fit_of
from detres.detection.data.box_checks import training_scales
from detres.detection.data.box_findings import doubled, doubtful_boxes, faulty_boxes, tiny_boxes
from detres.detection.data.class_findings import NEVER_LEARNT, class_findings
from detres.detection.data.findings import LEVELS, Example, Finding, Kind, Level, Part, parts_of
from detres.detection.data.image_findings import misfitting, seen_twice, unreadable, without_objects
from detres.detection.data.read_each import LISTED
from detres.detection.structures import Scale
from detres.images.survey import Survey, survey

SAMPLES = 6
"""Pictures of every split that are shown as they are."""

UNCOVERED = Kind(
    "uncovered",
    "warning",
    "boxes to learn from that no anchor has an IoU of 0.5 with",
    "Nothing: few enough.",
)
UNUSABLE = Kind(
    "unusable",
    "error",
    "annotations that cannot be used",
    "Mend them, or take their images out, and look again: nothing else was looked at.",
)
NOTED = Kind("noted", "note", "things that reading the annotations tells", "See each.")


@dataclass(frozen=True)
class SplitSummary:
    """What one split of N images and M boxes holds.

    class_counts: name -> objects to learn from, crowd and difficult ones left out. sides: (M',)
    float64, the square root of the area of each box that has one in an image of known size, px at
    the training scale. image_sizes: (N, 2) int64 (h, w) px, 0 where it is not known.
    """

    source: str
    images: int
    without_objects: int
    objects: int
    class_counts: Mapping[str, int]
    sides: np.ndarray
    image_sizes: np.ndarray

    @classmethod
    def of(cls, part: Part, scale: Scale) -> SplitSummary:
        """Return that of a part, whose boxes are measured at the training `scale`."""
        annotations = part.annotations
        scales = training_scales(part.sizes, *scale)[part.images]
        rows = np.flatnonzero(part.faults.usable & np.isfinite(scales))
        boxes = annotations.boxes[rows]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return cls(
            source=annotations.source,
            images=len(annotations),
            without_objects=int((np.diff(annotations.offsets) == 0).sum()),
            objects=annotations.num_objects,
            class_counts=part.class_counts(),
            sides=np.sqrt(areas) * scales[rows],
            image_sizes=part.sizes,
        )


@dataclass(frozen=True)
class Audit:
    """All that was found in a data set, worst first.

    base: the folder that files are named from. scale: (short_side, max_side) px for training.
    splits: none where the annotations cannot be read, as the one finding says. samples: some
    pictures as they are, with all their boxes.
    """

    base: str
    scale: Scale
    splits: Mapping[str, SplitSummary]
    findings: tuple[Finding, ...]
    samples: tuple[Example, ...] = ()

    @classmethod
    def of_unusable(cls, data: str, faults: Sequence[str]) -> Audit:
        """Return that of data, named `data`, whose annotations cannot be read for these faults."""
        found = UNUSABLE.of(len(faults), [Example(one_line(fault), "") for fault in faults])
        return cls(data, (0, 0), {}, tuple(found))

    def count(self, level: Level) -> int:
        """Return how many findings are of a level."""
        return sum(finding.level == level for finding in self.findings)

    def describe(self) -> str:
        """Return it in words: what was checked, then each finding with an example and what to do
        about it.
        """
        lines = [
            f"{name}: {plural(split.images, 'image')} ({split.without_objects} without objects), "
            f"{plural(split.objects, 'box', 'boxes')} of "
            f"{plural(len(split.class_counts), 'class', 'classes')}: {split.source}"
            for name, split in self.splits.items()
        ]
        lines += [f"files are named from {self.base}", f"found: {self.verdict()}"]
        for finding in self.findings:
            lines.append(str(finding))
            listed = LISTED if finding.kind == UNUSABLE.name else 1
            lines += [f"  such as {example}" for example in finding.examples[:listed]]
            lines.append(f"  {finding.advice}")
        return "\n".join(lines)

    def verdict(self) -> str:
        """Return how many findings of each level there are, in words."""
        counts = [(self.count(level), level) for level in LEVELS]
        return ", ".join(plural(count, level) for count, level in counts)

    def to_dict(self) -> dict:
        """Return plain values for JSON, all but what is there for pictures alone; numbers of boxes
        that are not finite are text.
        """
        splits = {name: _plain_split(split) for name, split in self.splits.items()}
        findings = [_plain_finding(finding) for finding in self.findings]
        short_side, max_side = self.scale
        scale = {"short_side": short_side, "max_side": max_side}
        return {"base": self.base, **scale, "splits": splits, "findings": findings}


def look_at(splits: dict[str, Annotations], workers: int) -> list[Part]:
    """Return the splits of a data set, train first, as `read_as_written` gives them, with what
    their files are.

    workers: processes that decode all images; 0: this one. Raises MemoryError as `survey` does.
    """
    return parts_of(splits, _surveys(splits, workers))


def audit(parts: Sequence[Part], model: ModelConfig) -> Audit:
    """Return what is wrong, or may be, with the parts of a data set as `look_at` gives them.

    model: what is to be trained on them: its sizes of images, and its anchors.
    """
    scale = model.input.short_side, model.input.max_side
    found = [
        *unreadable(parts),
        *seen_twice(parts),
        *misfitting(parts),
        *doubtful_boxes(parts),
        *class_findings(parts),
        *faulty_boxes(parts),
        *doubled(parts),
        *tiny_boxes(parts, scale),
        *_uncovered(parts[0], model),
        *without_objects(parts),
        *_noted(parts),
    ]
    return Audit(
        base=parts[0].base,
        scale=scale,
        splits={part.name: SplitSummary.of(part, scale) for part in parts},
        findings=tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))),
        samples=tuple(sample for part in parts for sample in _samples(part)),
    )


def _samples(part: Part) -> list[Example]:
    """Some pictures of a part, the same every time, with all their boxes; first those that show
    classes which the ones before do not, the rarest class first.
    """
    survey, classes = part.survey, part.annotations.class_indices
    readable = np.ones(len(part.annotations), bool) if survey is None else survey.readable
    order = np.random.default_rng(0).permutation(len(part.annotations))
    order = order[readable[order]]
    counts = np.bincount(classes, minlength=len(part.annotations.class_map))
    chosen: list[int] = []
    shown: set[int] = set()
    of_image = part.annotations.classes_shown()
    for rare in np.argsort(counts, kind="stable").tolist():
        having = order[of_image[order, rare]]
        if counts[rare] and rare not in shown and len(having):
            chosen.append(int(having[0]))
            shown |= set(np.flatnonzero(of_image[having[0]]).tolist())
    chosen += [image for image in order.tolist() if image not in chosen]
    offsets, samples = part.annotations.offsets, []
    for image in chosen[:SAMPLES]:
        rows = range(int(offsets[image]), int(offsets[image + 1]))
        named = Counter(map(part.class_of, rows))
        what = ", ".join(f"{count} {name}" for name, count in named.most_common()) or "no object"
        samples.append(Example(part.file(image), what, (part.shown(image, rows),)))
    return samples


def audit_briefly(train: Annotations, val: Annotations, scale: Scale) -> list[str]:
    """Return what can be told of the data of a run without opening an image, a line each, and that
    reading them has not said: doubled and tiny boxes, and classes that are evaluated but never
    learnt.

    train, val: with the same classes. scale: as `audit` takes it.
    """
    parts = parts_of({"train": train, "val": val})
    classes = [found for found in class_findings(parts) if found.kind == NEVER_LEARNT.name]
    found = [*classes, *doubled(parts), *tiny_boxes(parts, scale)]
    return [f"{finding}, such as {finding.examples[0]}" for finding in found]


def _surveys(splits: Mapping[str, Annotations], workers: int) -> dict[str, Survey]:
    """What the files of every split are, looked at under one progress bar."""
    files = [file for each in splits.values() for file in each.image_files.tolist()]
    whole, found, start = survey(files, workers), {}, 0
    for name, split in splits.items():
        found[name] = whole[start : start + len(split)]
        start += len(split)
    return found


def _uncovered(part: Part, model: ModelConfig) -> list[Finding]:
    """The boxes of a part that no anchor fits, and what would mend it."""
    inside = model.rpn.train_anchors == "inside"
    usable = part.annotations.with_objects(part.faults.usable)
    scaled = boxes_in_training(usable, model.input)
    fit = fit_of(scaled, model.anchors, inside=inside, pyramid=model.layout == "fpn")
    number = round((1 - fit.on_grid) * fit.num_boxes)
    words, *mend = describe_fit(usable, model) or [""]
    found = UNCOVERED.of(number, [Example(part.name, words)])
    if not mend:
        return [replace(finding, level="note") for finding in found]
    advice = mend[0].removeprefix("note: ")
    return [replace(finding, advice=f"{advice[0].upper()}{advice[1:]}.") for finding in found]


def _noted(parts: Sequence[Part]) -> list[Finding]:
    """What the readers said of the annotations, but for doubts, and what they did to them."""
    examples = []
    for part in parts:
        notes = part.annotations.notes
        told = [note for note in notes if not any(note.endswith(each) for each in part.doubts)]
        did = [f"{count} {reason}" for reason, count in part.annotations.dropped.items()]
        examples += [Example(part.name, text) for text in (*told, *did)]
    return NOTED.of(len(examples), examples)


def _plain_split(split: SplitSummary) -> dict:
    kept = ("source", "images", "without_objects", "objects")
    plain = {key: getattr(split, key) for key in kept}
    return {**plain, "class_counts": dict(split.class_counts)}


def _plain_finding(finding: Finding) -> dict:
    plain = asdict(finding)
    for example in plain["examples"]:
        for picture in example["pictures"]:
            boxes = picture["boxes"].tolist()
            picture["boxes"] = [
                [value if np.isfinite(value) else str(value) for value in box] for box in boxes
            ]
    return plain
