"""A detector as engines want one that bring batches of rows to many workers (Ray Data, Spark): it
travels as its settings, loads where it is called, and takes and returns columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from detres.detection.choices import TILE_OVERLAP
from detres.detection.detector import Detector
from detres.detection.inference.fast import Precision, require_precision
from detres.detection.inference.results import Results
from detres.detection.inference.tiles import Tiling
from detres.detection.named_weights import weights_called
from detres.detection.published import PUBLISHED_DETECTORS
from detres.detection.structures import index_of
from detres.files import CheckpointError
from detres.images.decode import ImageReadError, decode_image

Row = dict[str, Any]
"""What is said of one image: of a line of a shard, and of a row of `Predictor`."""


class Predictor:
    """A detector that is called on batches of encoded images; a pickle of it holds what it was made
    with, and the weights are read at the first call.

    weights: a weights file, a run's folder or its name, found at once, and by its full path, which
    must be there on every machine; or the name of a published detector, fetched where it is called.
    score: the lowest that is returned. device: by default the GPU, where it is called, if there is
    one. precision: of the networks, by default that of the `eval` settings. batch_size: so many
    images go through the model at once. tile, overlap, whole: see Detector.predict. Raises
    CheckpointError naming weights that are not there, ValueError for another precision, and as
    Tiling and Detector.predict do.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        score: float = 0.0,
        device: str | None = None,
        precision: Precision | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = TILE_OVERLAP,
        whole: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
        if precision is not None:
            require_precision(precision)
        if tile is not None:
            Tiling(tile, overlap, whole)
        self.weights = str(weights)
        if self.weights not in PUBLISHED_DETECTORS or Path(self.weights).exists():
            path = weights_called(self.weights)
            if not path.is_file():
                raise CheckpointError(f"no weights file at {path}")
            self.weights = str(path.resolve())
        self.score, self.device, self.batch_size = score, device, batch_size
        self.precision = precision
        self.tile, self.overlap, self.whole = tile, overlap, whole
        self._detector: Detector | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_detector": None}

    def __repr__(self) -> str:
        return f"Predictor({self.weights!r}, score={self.score:g})"

    @property
    def detector(self) -> Detector:
        """The detector, loaded when it is first asked for; raises what Detector.load raises."""
        if self._detector is None:
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            detector = Detector.load(self.weights, precision=self.precision)
            self._detector = detector.to(device)
        return self._detector

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """Return what is in N images, best score first: of columns `bytes`, encoded images, and
        `path`, what they are called, the columns path, height and width px, boxes (D lists x1, y1,
        x2, y2 px), scores, names, category_ids (of the data trained on) and error, each a list of
        N.

        An image that cannot be read has what is wrong with it in `error`, no detections, and 0 px;
        the others have an empty text there. No images: columns of nothing. Raises KeyError for a
        batch without these columns.
        """
        rows = [*self.rows(zip(map(str, batch["path"]), batch["bytes"], strict=True))]
        return {name: [row[name] for row in rows] for name in row_of("")}

    def rows(self, images: Iterable[tuple[str, bytes]]) -> Iterator[Row]:
        """Yield for each image, what it is called and its encoded bytes, a dict with the columns of
        `__call__`.
        """
        images = iter(images)
        while together := list(itertools.islice(images, self.batch_size)):
            yield from self._rows_of(together)

    def _rows_of(self, images: list[tuple[str, bytes]]) -> list[Row]:
        """The rows of images that are in memory at the same time."""
        rows, given, pixels = [], [], []
        for path, data in images:
            try:
                pixels.append(decode_image(bytes(data), path))
            except ImageReadError as error:
                rows.append(row_of(path, error=str(error)))
            else:
                given.append(len(rows))
                rows.append(row_of(path))
        found = self.detector.predict(
            pixels,
            batch_size=self.batch_size,
            tile=self.tile,
            overlap=self.overlap,
            whole=self.whole,
        )
        for index, results in zip(given, found, strict=True):
            rows[index] |= _columns_of(results.above(self.score))
        return rows


def row_of(path: str, *, error: str = "") -> Row:
    """Return the row of an image without detections; error: why it cannot be read."""
    return {
        "path": path,
        "height": 0,
        "width": 0,
        "boxes": [],
        "scores": [],
        "names": [],
        "category_ids": [],
        "error": error,
    }


def _columns_of(results: Results) -> Row:
    height, width = results.size
    class_map = results.class_map
    return {
        "height": height,
        "width": width,
        "boxes": results.boxes.tolist(),
        "scores": results.scores.tolist(),
        "names": results.names,
        "category_ids": [class_map.source_id_of(i) for i in index_of(results.labels).tolist()],
    }
