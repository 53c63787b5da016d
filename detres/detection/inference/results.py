"""What a detector found in one image, as a user has it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detres.class_map import ClassMap
from detres.console import one_line, printable
from detres.detection.evaluation.result_files import to_coco_results
from detres.detection.inference.pictures import captions_of, write_picture
from detres.detection.structures import Detections, ImageId, Predictions, index_of, names_of
from detres.images.decode import Picture, as_rgb
from detres.images.draw import draw_boxes


class Found(NamedTuple):
    """One object: its class, its score in [0, 1] and its box, x1, y1, x2, y2 px."""

    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Results:
    """What a detector found in one image, D detections, best score first; iterating gives each as
    a Found. D may be 0.

    detections: boxes in px of the image as it was given. class_map: of the detector. picture: the
    image as it was given; nothing of it is kept but that. size: its (h, w) px.
    """

    detections: Detections
    class_map: ClassMap
    picture: Picture = field(repr=False)
    size: tuple[int, int]

    @property
    def boxes(self) -> Tensor:
        """The boxes, (D, 4) float32 x1, y1, x2, y2 px on the CPU."""
        return self.detections.boxes

    @property
    def scores(self) -> Tensor:
        """The scores, (D,) float32 in [0, 1]."""
        return self.detections.scores

    @property
    def labels(self) -> Tensor:
        """The detector's labels, (D,) int64 1..K; `names` are what they mean."""
        return self.detections.labels

    @property
    def names(self) -> list[str]:
        """The class name of every detection."""
        return names_of(self.class_map, self.labels)

    @property
    def image(self) -> Path | None:
        """The file; None for an image that was given as pixels."""
        return Path(self.picture) if isinstance(self.picture, (str, Path)) else None

    def __len__(self) -> int:
        return len(self.detections)

    def __iter__(self) -> Iterator[Found]:
        rows = zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        for name, score, box in rows:
            yield Found(name, score, tuple(box))

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for name in self.names:
            counts[name] = counts.get(name, 0) + 1
        listed = ", ".join(f"{count} {name}" for name, count in list(counts.items())[:5])
        listed += ", ..." if len(counts) > 5 else ""
        where = f"{self.image}, " if self.image is not None else ""
        height, width = self.size
        return printable(one_line(f"Results({where}{width}x{height} px: {listed or 'nothing'})"))

    def above(self, score: float | Sequence[float]) -> Results:
        """Return those of at least this score, one for all or one for each class (K,), as
        `Detector.score_thresholds` has them; none: an empty Results.
        """
        lowest = np.broadcast_to(np.asarray(score, np.float32), len(self.class_map))
        keep = self.scores >= torch.from_numpy(lowest[index_of(self.labels.numpy())])
        kept = Detections(self.boxes[keep], self.scores[keep], self.labels[keep])
        return replace(self, detections=kept)

    def captions(self) -> list[str]:
        """Return "NAME SCORE" of every detection."""
        return captions_of(self.class_map, self.labels.numpy(), self.scores.numpy())

    def draw(self) -> np.ndarray:
        """Return the image, (H, W, 3) uint8 RGB, with all detections: a box and "NAME SCORE" each.

        A file is read once more. Raises ImageReadError when it has gone since.
        """
        image = as_rgb(self.picture, "the image")
        return draw_boxes(image, self.boxes.numpy(), self.labels.tolist(), self.captions())

    def save(self, path: str | Path) -> None:
        """Write what `draw` returns to a .jpg or .png file, in one step; another picture of that
        name is replaced, the image itself never.

        Raises PictureError for another suffix, a picture too large for JPEG, and the file that the
        image was read from.
        """
        write_picture(Path(path), self.draw(), source=self.image)

    def to_coco(self, image_id: ImageId | None = None) -> list[dict[str, Any]]:
        """Return COCO results, a record a detection: image_id, category_id (the id of the data
        trained on), category_name, bbox [x, y, w, h] px, score. None found: an empty list.

        image_id: by default the file as it was given. Raises ValueError without it for an image
        that was given as pixels.
        """
        if image_id is None:
            if self.image is None:
                raise ValueError("an image that was given as pixels has no id: give image_id")
            image_id = str(self.picture)
        predictions = Predictions(
            class_map=self.class_map,
            image_ids=np.array([image_id] * len(self), dtype=type(image_id)),
            boxes=self.boxes.numpy(),
            scores=self.scores.numpy(),
            labels=self.labels.numpy(),
        )
        return to_coco_results(predictions, with_names=True)

    def to_supervision(self) -> Any:
        """Return supervision.Detections (the package `supervision`): xyxy px, confidence, class_id
        0..K-1, and data["class_name"].

        Raises ImportError saying how to get the package where it is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            raise ImportError(
                "the package supervision is not installed: pip install supervision"
            ) from None
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=index_of(self.labels).numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )
