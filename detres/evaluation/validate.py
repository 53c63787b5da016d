"""What every protocol asks of predictions before it scores them."""

from __future__ import annotations

import numpy as np

from detres.structures import Annotations, Predictions


def image_rows(truth: Annotations, predictions: Predictions) -> np.ndarray:
    """Return (D,) int64, the row in `truth` of each prediction's image; (0,) without predictions.

    Raises ClassMismatchError when the class lists differ, ValueError when an image is not in
    `truth` or a box or score is not finite.
    """
    truth.class_map.require_same(predictions.class_map, truth.source, "predictions")
    finite = np.isfinite(predictions.boxes).all(axis=1) & np.isfinite(predictions.scores)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"prediction {row}, image {predictions.image_ids[row]}: box "
            f"{predictions.boxes[row].tolist()} and score "
            f"{predictions.scores[row]} must be finite ({int((~finite).sum())} such)"
        )
    row_of = {image_id: row for row, image_id in enumerate(truth.image_ids.tolist())}
    rows = np.array(
        [row_of.get(image_id, -1) for image_id in predictions.image_ids.tolist()], np.int64
    )
    if (rows < 0).any():
        raise ValueError(
            f"predictions for image {predictions.image_ids[rows < 0][0]}, which {truth.source} "
            "does not have"
        )
    return rows
