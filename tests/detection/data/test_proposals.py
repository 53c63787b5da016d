"""A file of proposals: written and read back, for the images it is of and no others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.files import read_safetensors, write_safetensors
from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.data.proposals import (
    ProposalsError,
    digest_of,
    read_proposals,
    save_proposals,
)
from detres.detection.structures import Proposals

ROWS = 3


def annotations(ids: tuple = (7, 9, 8)) -> Annotations:
    """Three images, one object in the last."""
    return Annotations(
        source="truth.json",
        class_map=ClassMap.of_names(("a", "b")),
        image_ids=np.array(ids),
        image_files=np.array(["/x/7.jpg", "/x/9.jpg", "/x/8.jpg"]),
        image_sizes=np.array([[20, 20], [20, 30], [30, 20]], np.int32),
        offsets=np.array([0, 0, 0, 1]),
        boxes=np.array([[1, 2, 3, 4]], np.float64),
        labels=np.array([2]),
        areas=np.array([4], np.float64),
        crowd=np.zeros(1, bool),
        difficult=np.zeros(1, bool),
        ids=np.arange(1),
        dropped={},
    )


def in_order(rows: list[int]) -> Annotations:
    """The same images, without objects, in another order."""
    own = annotations()
    none = {
        name: getattr(own, name)[:0]
        for name in ("boxes", "labels", "areas", "crowd", "difficult", "ids")
    }
    images = {
        name: getattr(own, name)[rows] for name in ("image_ids", "image_files", "image_sizes")
    }
    return replace(own, offsets=np.zeros(len(rows) + 1, np.int64), **images, **none)


def proposals(ids: tuple = (7, 9, 8)) -> Proposals:
    """Two boxes in the first image, none in the second, one in the third."""
    return Proposals(
        source="made here",
        image_ids=np.array(ids),
        offsets=np.array([0, 2, 2, 3]),
        boxes=np.array([[0, 0, 1 / 3, 10], [5, 5, 9, 9], [1, 2, 3, 4]], np.float64),
        scores=np.array([0.9, 0.25, 1], np.float32),
    )


@pytest.mark.parametrize("ids", [(7, 9, 8), ("a/7", "ü", "8")])
def test_what_is_written_is_read_back(tmp_path, ids):
    save_proposals(tmp_path / "p.safetensors", proposals(ids), annotations(ids), "an RPN")
    found, made_by = read_proposals(tmp_path / "p.safetensors", annotations(ids))
    assert made_by == "an RPN"
    assert found.image_ids.tolist() == list(ids)
    for name in ("offsets", "boxes", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(proposals(), name))
        assert getattr(found, name).dtype == getattr(proposals(), name).dtype
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_images_in_another_order_get_their_own_boxes(tmp_path):
    save_proposals(tmp_path / "p", proposals(), annotations(), "an RPN")
    found, _ = read_proposals(tmp_path / "p", in_order([2, 0, 1]))
    assert found.image_ids.tolist() == [8, 7, 9]
    assert found.offsets.tolist() == [0, 1, 3, 3]
    assert found.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 1 / 3, 10], [5, 5, 9, 9]]
    assert found.scores.tolist() == [1, np.float32(0.9), 0.25]


def test_a_stem_with_a_dot_is_that_of_its_file():
    """As image_files are where no image is looked for."""
    own = annotations()
    stems = ["7_jpg.rf.1a", "9.tar", "8"]
    files = replace(own, image_files=np.array([f"/x/{stem}.JPG" for stem in stems]))
    assert digest_of(replace(own, image_files=np.array(stems))) == digest_of(files)
    assert digest_of(files) != digest_of(own)


def test_the_digest_is_of_the_images_alone():
    own = digest_of(annotations())
    moved = np.array(["/y/z/7.png", "/y/z/9.png", "/y/z/8.png"])
    assert digest_of(replace(annotations(), image_files=moved, source="copy")) == own
    assert digest_of(in_order([1, 2, 0])) == own  # without their objects, and in another order
    others = [
        replace(annotations(), image_files=np.array(["/x/7.jpg", "/x/9.jpg", "/x/1.jpg"])),
        replace(annotations(), image_sizes=annotations().image_sizes + 1),
        annotations((7, 9, 6)),
        annotations((7, 8, 9)),  # ids that changed places
        in_order([0, 1]),
    ]
    assert len({own, *map(digest_of, others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (annotations((7, 9, 6)), "image 6 is not among theirs (1 such)"),
        (in_order([0, 2]), "their image 9 is not among these (1 such)"),
        (
            replace(annotations(), image_sizes=annotations().image_sizes + 1),
            "the same ids, but other file names or sizes",
        ),
    ],
)
def test_proposals_of_other_images_are_one_error_that_names_both(tmp_path, other, said):
    path = tmp_path / "p.safetensors"
    save_proposals(path, proposals(), annotations(), "an RPN")
    other = replace(other, source="other.json")
    with pytest.raises(ProposalsError) as caught:
        read_proposals(path, other)
    assert str(caught.value) == (
        f"{path} holds proposals for other images: those of truth.json (3 images, digest "
        f"{digest_of(annotations()):.12}), not of other.json ({len(other)} images, digest "
        f"{digest_of(other):.12}): {said}. Make proposals for these images"
    )


def edited(path: Path, change) -> Path:
    """Write a file anew, with a right digest, after `change` of its tensors and metadata."""
    save_proposals(path, proposals(), annotations(), "an RPN")
    tensors, metadata = read_safetensors(path)
    change(tensors, metadata)
    del metadata["sha256"]
    write_safetensors(path, tensors, metadata)
    return path


def put(name: str, values: object, dtype: torch.dtype):
    return lambda tensors, _: tensors.__setitem__(name, torch.tensor(values, dtype=dtype))


IDS = list(json.dumps([7, 7, 8]).encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _, metadata: metadata.pop("data"), "is no file of proposals: it lacks data"),
        (lambda tensors, _: tensors.pop("boxes"), "is no file of proposals: it lacks boxes"),
        (
            lambda _, metadata: metadata.update(format="detres-proposals-2"),
            "has the format 'detres-proposals-2', and this detres reads detres-proposals-1",
        ),
        (put("offsets", [0, 2, 1, 3], torch.int64), "do not belong together"),
        (put("offsets", [1, 2, 2, 3], torch.int64), "do not belong together"),
        (put("offsets", [0, 3], torch.int64), "do not belong together"),
        (put("offsets", [], torch.int64), "do not belong together"),
        (put("scores", [1.0, 0.5], torch.float32), "do not belong together"),
        (put("boxes", [[0.0] * 4] * 3, torch.float32), "boxes is torch.float32, expected"),
        (put("boxes", [[0, 0, 1, np.nan]] * 3, torch.float64), "image 7 has the box"),
        (put("boxes", [[0, 0, 1, 1]] * 2 + [[3, 0, 1, 1]], torch.float64), "image 8 has the box"),
        (put("scores", [0.2, 0.5, 0.5], torch.float32), "image 7 has the box"),
        (put("scores", [0.5, 0.2, 1.5], torch.float32), "image 8 has the box"),
        (put("image_ids", IDS, torch.uint8), "image 7 is there twice"),
        (put("image_ids", list(b"[true, 1, 2]"), torch.uint8), "image_ids are no list"),
        (put("image_ids", list(b"{"), torch.uint8), "is damaged or was edited"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, change, said):
    path = edited(tmp_path / "p.safetensors", change)
    with pytest.raises(ProposalsError) as caught:
        read_proposals(path, annotations())
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_a_missing_and_another_file(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(ProposalsError, match=f"^no proposals file at {path}$"):
        read_proposals(path, annotations())
    with pytest.raises(ProposalsError, match=r"but a folder; expected a file of proposals$"):
        read_proposals(tmp_path, annotations())
    save_proposals(path, proposals(), annotations(), "an RPN")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ProposalsError, match=r"p\.safetensors is damaged"):
        read_proposals(path, annotations())
    path.write_text("boxes")
    with pytest.raises(ProposalsError, match=r"p\.safetensors is damaged or no \.safetensors file"):
        read_proposals(path, annotations())
    write_safetensors(path, {"w": torch.zeros(1)}, {"classes": "{}"})
    with pytest.raises(ProposalsError, match="it holds the weights of a detector"):
        read_proposals(path, annotations())


def test_a_file_that_lost_its_digest_is_damaged(tmp_path):
    path = tmp_path / "p.safetensors"
    save_proposals(path, proposals(), annotations(), "an RPN")
    path.write_bytes(path.read_bytes().replace(b'"sha256"', b'"sha255"'))
    with pytest.raises(ProposalsError, match="carry a sha256, this one has none"):
        read_proposals(path, annotations())
