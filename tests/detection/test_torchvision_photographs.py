"""torchvision's own Faster R-CNN and ours, made of its file, on twenty photographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import detection
from torchvision.transforms.functional import pil_to_tensor

from detres.detection.import_weights import Imported, import_detector
from detres.detection.inference.detect import batch_of, detect_batch
from detres.detection.structures import ImageBatch
from detres.images.decode import read_image
from tests.detection.models.test_pyramid_parity import with_livelier_outputs

PHOTOGRAPHS = 20
CASES = {
    "v1": (detection.fasterrcnn_resnet50_fpn, torch.float32),
    "v1-float64": (detection.fasterrcnn_resnet50_fpn, torch.float64),
    "v2-float64": (detection.fasterrcnn_resnet50_fpn_v2, torch.float64),
}
"""Of v2 with random weights the maps hardly differ from cell to cell. Outputs made as lively as a
trained detector's magnify float32's rounding by as much, so that it decides what NMS keeps.
"""


class Compared(NamedTuple):
    """Of the detections of an image: how many torchvision has, how many of these ours has too, and
    by how many px and in score they differ at most.
    """

    wanted: int
    common: int
    extra: int
    px: float
    score: float


def compared(found: tuple[Tensor, Tensor, Tensor], wanted: dict, px: float) -> Compared:
    """Each of theirs beside the nearest of ours of its class, which is taken once."""
    boxes, scores, labels = found
    left = torch.ones(len(boxes), dtype=torch.bool)
    worst = [0.0, 0.0]
    common = 0
    theirs = zip(wanted["boxes"], wanted["scores"], wanted["labels"], strict=True)
    for box, score, label in theirs:
        off = (boxes - box).abs().amax(dim=1)
        off[~left | (labels != label)] = torch.inf
        if len(off) and off.min() <= px:
            row = int(off.argmin())
            left[row] = False
            common += 1
            worst = [max(worst[0], float(off[row])), max(worst[1], float(abs(scores[row] - score)))]
    return Compared(len(wanted["boxes"]), common, len(boxes) - common, *worst)


@pytest.fixture(scope="module", params=list(CASES))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[torch.nn.Module, Imported]]:
    make, dtype = CASES[request.param]
    torch.manual_seed(0)
    theirs = make(weights=None, weights_backbone=None).eval()
    theirs = with_livelier_outputs(theirs, torch.Generator().manual_seed(1))
    file = tmp_path_factory.mktemp("theirs") / f"{request.param}.pth"
    torch.save(theirs.state_dict(), file)
    imported = import_detector(file)
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            imported.detector.double().normalizer.register_forward_hook(
                lambda _module, _args, pixels: pixels.double()
            )
        yield theirs.to(dtype), imported


@pytest.fixture(scope="module")
def photographs(shared_data) -> list[Path]:
    return sorted(shared_data("coco_mini").rglob("*.jpg"))[:PHOTOGRAPHS]


def require_all(found: list[Compared], dtype: torch.dtype) -> None:
    """In float64 every one; in float32 all but one in 200, for where two boxes' overlap is next to
    a threshold of NMS, rounding decides which of them stays.
    """
    total, common = sum(each.wanted for each in found), sum(each.common for each in found)
    print(f"{common} of {total} in common")
    assert total > 20 * len(found)
    few = 0 if dtype == torch.float64 else 0.005 * total
    assert total - common <= few
    assert sum(each.extra for each in found) <= few


@pytest.mark.slow
def test_the_same_tensor_gives_the_same_detections(pair, photographs) -> None:
    """Boxes to 1e-3 px, scores to 1e-5, at the photographs' own size; in float64 to rounding."""
    theirs, imported = pair
    dtype = next(theirs.parameters()).dtype
    found = []
    for file in photographs:
        pixels = torch.from_numpy(read_image(file)).permute(2, 0, 1)
        size = tuple(pixels.shape[1:])
        theirs.transform.min_size, theirs.transform.max_size = (min(size),), max(size)
        with torch.no_grad():
            if dtype == torch.float64:  # float32's rounding of the pixels counts too
                theirs.transform.normalize = lambda image: image
                (wanted,) = theirs(list(imported.detector.normalizer(pixels[None])))
            else:
                (wanted,) = theirs([pixels.float() / 255])
            (ours,) = imported.detector(ImageBatch(pixels[None], (size,), (size,), ids=(0,)))
        px, score = (1e-8, 1e-10) if dtype == torch.float64 else (1e-3, 1e-5)
        seen = compared((ours.boxes, ours.scores, ours.labels), wanted, px)
        print(file.name, seen)
        assert seen.score <= score
        found.append(seen)
    require_all(found, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["v1"], indirect=True)
def test_the_same_file_gives_the_same_detections(pair, photographs) -> None:
    """Each reads and resizes it in its own way: boxes to 1e-2 px, scores to 1e-4."""
    theirs, imported = pair
    theirs.transform.min_size, theirs.transform.max_size = (800,), 1333
    given = imported.config.model.input
    found = []
    for file in photographs:
        with Image.open(file) as picture:
            tensor = pil_to_tensor(picture.convert("RGB")).float() / 255
        batch = batch_of(
            [read_image(file)], [0], (given.short_side, given.max_side), (), given.resize
        )
        with torch.no_grad():
            (wanted,) = theirs([tensor])
        (ours,) = detect_batch(imported.detector, batch, torch.device("cpu"))
        seen = compared((ours.boxes, ours.scores, ours.labels), wanted, px=1e-2)
        print(file.name, seen)
        assert seen.score <= 1e-4
        found.append(seen)
    require_all(found, next(theirs.parameters()).dtype)
