"""Proposals on disk: one file a split, and the images it is of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from detres.detection.annotations import Annotations
from detres.detection.structures import Proposals
from detres.files import (
    DamagedFileError,
    first_line,
    read_safetensors,
    require_digest,
    write_safetensors,
)
from detres.images.decode import IMAGE_SUFFIXES

FORMAT = "detres-proposals-1"
"""What the files of `save_proposals` call themselves."""

_METADATA = ("format", "source", "data", "made_by")
_DTYPES = {
    "image_ids": torch.uint8,
    "offsets": torch.int64,
    "boxes": torch.float64,
    "scores": torch.float32,
}


class ProposalsError(ValueError):
    """A file of proposals that cannot be used; the message names it and says why."""


def digest_of(annotations: Annotations) -> str:
    """Return 64 hex digits that tell a data set by its images, in whatever order and folder: the
    id, the file name without folder and suffix, and the stated size of each.

    Objects do not count: proposals are of images, and a corrected annotation leaves them as good.
    """
    names = [_name(file) for file in annotations.image_files.tolist()]
    records = zip(
        map(str, annotations.image_ids.tolist()),
        names,
        annotations.image_sizes.tolist(),
        strict=True,
    )
    return hashlib.sha256(json.dumps(sorted(records)).encode()).hexdigest()


def _name(file: str) -> str:
    """Of an image, without folder and suffix; of one that is known by its stem alone, in which a
    dot is no suffix, that.
    """
    path = PurePath(file)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def save_proposals(
    path: str | Path, proposals: Proposals, annotations: Annotations, made_by: str
) -> None:
    """Write what was proposed for the images of `annotations`, in one step.

    made_by: what proposed, and how many, in words. The file is a .safetensors with a digest of its
    content: image_ids (a JSON list in UTF-8, uint8), offsets (N + 1,) int64, boxes (P, 4) float64
    xyxy px of the original images, scores (P,) float32; and in its metadata the format, made_by,
    where the images were read and the `digest_of` them.
    """
    ids = json.dumps(proposals.image_ids.tolist()).encode()
    arrays = {
        "image_ids": np.frombuffer(ids, np.uint8),
        "offsets": proposals.offsets,
        "boxes": proposals.boxes,
        "scores": proposals.scores,
    }
    metadata = {
        "format": FORMAT,
        "source": annotations.source,
        "data": digest_of(annotations),
        "made_by": made_by,
    }
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    write_safetensors(path, tensors, metadata)


def read_proposals(path: str | Path, annotations: Annotations) -> tuple[Proposals, str]:
    """Read a file of `save_proposals` for the images of `annotations`, in their order; return it
    and what made it, in words.

    Raises ProposalsError naming the file when it is missing, damaged or another file, of a newer
    version, or of other images: then it names both data sets and a difference.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    proposals = _checked(tensors, path)
    _require_same_images(proposals, metadata, annotations, path)
    row_of = {image_id: row for row, image_id in enumerate(proposals.image_ids.tolist())}
    rows = np.array([row_of[image_id] for image_id in annotations.image_ids.tolist()], np.int64)
    return proposals.of_images(rows), metadata["made_by"]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors, metadata = read_safetensors(path)
        if "format" in metadata and metadata["format"].startswith("detres-proposals-"):
            _require_known_format(metadata["format"], path)
            require_digest(metadata, path)
    except FileNotFoundError:
        raise ProposalsError(f"no proposals file at {path}") from None
    except (DamagedFileError, OSError) as error:
        raise ProposalsError(f"{error}; expected a file of proposals") from None
    missing = [key for key in _METADATA if key not in metadata]
    missing += [name for name in _DTYPES if name not in tensors]
    if missing:
        what = (
            "it holds the weights of a detector, which can make proposals"
            if "classes" in metadata
            else f"it lacks {', '.join(missing)}"
        )
        raise ProposalsError(f"{path} is no file of proposals: {what}")
    return tensors, metadata


def _require_known_format(written: str, path: Path) -> None:
    number, own = (re.fullmatch(r"detres-proposals-(\d{1,9})", text) for text in (written, FORMAT))
    if number is None or int(number[1]) > int(own[1]):
        raise ProposalsError(
            f"{path} has the format {written!r:.60}, and this detres reads {FORMAT}: it was "
            "written by a newer one, or edited"
        )


def _checked(tensors: Mapping[str, Tensor], path: Path) -> Proposals:
    """The arrays of a file as Proposals, everything checked that using them relies on."""
    for name, dtype in _DTYPES.items():
        if tensors[name].dtype != dtype:
            raise ProposalsError(
                f"{path} is damaged or was edited: {name} is {tensors[name].dtype}, expected "
                f"{dtype}"
            )
    arrays = {name: tensors[name].numpy() for name in _DTYPES}
    try:
        ids = json.loads(arrays["image_ids"].tobytes())
        if not isinstance(ids, list) or {type(one) for one in ids} - {int, str}:
            raise ValueError("image_ids are no list of numbers or texts")
        found = Proposals(
            source=f"the proposals in {path}",
            image_ids=np.array(ids, np.int64 if all(type(one) is int for one in ids) else str),
            **{name: arrays[name] for name in ("offsets", "boxes", "scores")},
        )
        _require_usable(found)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ProposalsError(f"{path} is damaged or was edited: {first_line(error):.200}") from None
    return found


def _require_usable(found: Proposals) -> None:
    """Raise ValueError for images that are there twice, and naming the first image with a box or
    score that none can have, or whose scores rise.
    """
    ids, counts = np.unique(found.image_ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"image {ids[counts > 1][0]} is there twice")
    boxes, scores = found.boxes, found.scores
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    wrong |= ~((scores >= 0) & (scores <= 1))
    rising = np.diff(scores, prepend=np.float32(np.inf)) > 0
    rising[found.offsets[:-1][found.counts > 0]] = False
    wrong |= rising
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        image = found.image_ids[np.searchsorted(found.offsets, row, side="right") - 1]
        raise ValueError(
            f"image {image} has the box {boxes[row].tolist()} with the score {scores[row]}; "
            "expected x1 <= x2, y1 <= y2, and scores in [0, 1] that fall"
        )


def _require_same_images(
    proposals: Proposals, metadata: Mapping[str, str], annotations: Annotations, path: Path
) -> None:
    own = digest_of(annotations)
    if metadata["data"] == own:
        return
    theirs, ours = set(proposals.image_ids.tolist()), set(annotations.image_ids.tolist())
    missing = [one for one in annotations.image_ids.tolist() if one not in theirs]
    if missing:
        what = f"image {missing[0]} is not among theirs ({len(missing)} such)"
    elif theirs != ours:
        foreign = [one for one in proposals.image_ids.tolist() if one not in ours]
        what = f"their image {foreign[0]} is not among these ({len(foreign)} such)"
    else:
        what = "the same ids, but other file names or sizes"
    raise ProposalsError(
        f"{path} holds proposals for other images: those of {metadata['source']} ({len(proposals)} "
        f"images, digest {metadata['data']:.12}), not of {annotations.source} ({len(annotations)} "
        f"images, digest {own:.12}): {what}. Make proposals for these images"
    )
