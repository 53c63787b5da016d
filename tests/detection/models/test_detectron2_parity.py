"""detectron2's Faster R-CNN at inference, restated in plain tensors from the names in its own
checkpoints, and the detector that such a file becomes here: equal stage by stage to 1e-6.

The restatement looks at one image at a time, the detector at all of them in a padded batch, so that
this too is compared. Both count in float64, on what detectron2 itself rounds to float32: the
normalised pixels and the anchors of a cell. Shapes: R regions, K classes; boxes are xyxy px.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detres.detection.import_weights import Imported, import_detector
from detres.detection.models.faster_rcnn import FasterRCNN, shared_maps
from detres.detection.models.rpn import RPN, MapOutput, ProposalCounts, RPNSettings
from detres.detection.structures import Detections, FeatureMap, ImageBatch
from tests.detection.detectron2_files import detectron2_state

State = dict[str, Tensor]
Maps = dict[str, Tensor]

# --- detectron2: backbone


def normalised(pixels: Tensor, state: State) -> Tensor:
    """(1, 3, H, W) float32 BGR of (3, H, W) uint8 RGB."""
    mean, std = (state[f"pixel_{which}"].to(torch.float32) for which in ("mean", "std"))
    return ((pixels.flip(0) - mean) / std)[None]


def convolved(x: Tensor, state: State, name: str, stride: int = 1) -> Tensor:
    """A convolution padded by half its kernel, with its bias or its frozen norm."""
    weight = state[f"{name}.weight"]
    y = F.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)
    if f"{name}.norm.weight" not in state:
        return y
    norm = {
        key: state[f"{name}.norm.{key}"].view(-1, 1, 1)
        for key in ("weight", "bias", "running_mean", "running_var")
    }
    spread = (norm["running_var"] + 1e-5).sqrt()
    return (y - norm["running_mean"]) / spread * norm["weight"] + norm["bias"]


def bottleneck(x: Tensor, state: State, name: str, stride: int) -> Tensor:
    """The stride is that of the first 1x1."""
    y = convolved(x, state, f"{name}.conv1", stride).relu()
    y = convolved(y, state, f"{name}.conv2").relu()
    y = convolved(y, state, f"{name}.conv3")
    if f"{name}.shortcut.weight" in state:
        x = convolved(x, state, f"{name}.shortcut", stride)
    return (y + x).relu()


def residual_stage(x: Tensor, state: State, name: str, stride: int) -> Tensor:
    block = 0
    while f"{name}.{block}.conv1.weight" in state:
        x = bottleneck(x, state, f"{name}.{block}", 1 if block else stride)
        block += 1
    return x


def is_pyramid(state: State) -> bool:
    return "backbone.fpn_lateral2.weight" in state


def backbone_maps(image: Tensor, state: State) -> Maps:
    """res2..res4, of a pyramid's backbone res5 too, of a normalised image (1, 3, H, W)."""
    root = "backbone.bottom_up" if is_pyramid(state) else "backbone"
    x = convolved(image, state, f"{root}.stem.conv1", 2).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    maps = {}
    for number in range(2, 6 if is_pyramid(state) else 5):
        x = residual_stage(x, state, f"{root}.res{number}", 1 if number == 2 else 2)
        maps[f"res{number}"] = x
    return maps


def pyramid_maps(maps: Maps, state: State) -> Maps:
    """p2..p6 of res2..res5."""
    found, above = {}, None
    for number in (5, 4, 3, 2):
        own = convolved(maps[f"res{number}"], state, f"backbone.fpn_lateral{number}")
        if above is not None:
            own = own + above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        found[number] = convolved(own, state, f"backbone.fpn_output{number}")
        above = own
    found[6] = found[5][:, :, ::2, ::2]
    return {f"p{number}": found[number] for number in range(2, 7)}


# --- detectron2: proposals

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)


def anchors_of(cells: tuple[int, int], stride: int, sizes: tuple[int, ...]) -> Tensor:
    """(H * W * A, 4): cell after cell of a line, of each size after size and ratio after ratio,
    around the top left corner of the cell.
    """
    halves = [
        (size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2)
        for size in sizes
        for ratio in RATIOS
    ]
    shapes = torch.tensor([(-x, -y, x, y) for x, y in halves], dtype=torch.float32).double()
    corners = [
        (column * stride, line * stride) * 2
        for line in range(cells[0])
        for column in range(cells[1])
    ]
    return (torch.tensor(corners, dtype=torch.float64)[:, None] + shapes).reshape(-1, 4)


def rpn_outputs(feature: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Logits (L,) and deltas (L, 4) of a map (1, C, H, W), in the order of its anchors."""
    head = "proposal_generator.rpn_head"
    hidden = convolved(feature, state, f"{head}.conv").relu()
    logits = convolved(hidden, state, f"{head}.objectness_logits")[0]
    deltas = convolved(hidden, state, f"{head}.anchor_deltas")[0]
    by_anchor = deltas.unflatten(0, (len(logits), 4))  # (4A, H, W) -> (A, 4, H, W)
    return logits.movedim(0, 2).flatten(), by_anchor.permute(2, 3, 0, 1).reshape(-1, 4)


def moved(boxes: Tensor, deltas: Tensor, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """Boxes (..., 4) by deltas (..., 4), which grow a side at most 1000 / 16 times."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    dx, dy, dw, dh = (deltas / torch.tensor(weights, dtype=torch.float64)).unbind(-1)
    most = math.log(1000 / 16)
    width, height = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + dx * width, (y1 + y2) / 2 + dy * height
    width, height = width * dw.clamp(max=most).exp(), height * dh.clamp(max=most).exp()
    return torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), dim=-1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    limits = torch.tensor((width, height, width, height), dtype=boxes.dtype)
    return boxes.clamp(min=0).minimum(limits)


def with_extent(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def iou_with(box: Tensor, boxes: Tensor) -> Tensor:
    """(R,) of one box (4,) with boxes (R, 4); 0 where both are empty."""
    common = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).relu()
    shared = common.prod(dim=1)
    both = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return torch.where(shared > 0, shared / (both - shared), torch.zeros_like(shared))


def kept_by_nms(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """Rows of those that no better one that is kept overlaps by more than `most`, best first."""
    left, kept = scores.argsort(descending=True, stable=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        left = left[iou_with(boxes[best], boxes[left]) <= most]
    return torch.tensor(kept, dtype=torch.int64)


@dataclass(frozen=True)
class Level:
    """What the head says of the anchors of one map: (L, 4), (L,) and (L, 4)."""

    anchors: Tensor
    logits: Tensor
    deltas: Tensor

    def entering(self, size: tuple[int, int], most: int) -> tuple[Tensor, Tensor]:
        """Boxes and logits that go into NMS, best first."""
        best = self.logits.argsort(descending=True, stable=True)[:most]
        boxes = clipped(moved(self.anchors[best], self.deltas[best]), size)
        whole = with_extent(boxes)
        return boxes[whole], self.logits[best][whole]

    def surviving(self, size: tuple[int, int], most: int) -> tuple[Tensor, Tensor]:
        """Boxes and logits that come out of NMS, best first."""
        boxes, logits = self.entering(size, most)
        kept = kept_by_nms(boxes, logits, 0.7)
        return boxes[kept], logits[kept]


def proposals_of(
    levels: list[Level], size: tuple[int, int], counts: ProposalCounts
) -> tuple[Tensor, Tensor]:
    """Boxes (R, 4) and logits (R,), the best of all levels."""
    of_levels = [level.surviving(size, counts.pre_nms) for level in levels]
    boxes, logits = (torch.cat(parts) for parts in zip(*of_levels, strict=True))
    best = logits.argsort(descending=True, stable=True)[: counts.post_nms]
    return boxes[best], logits[best]


# --- detectron2: regions


def axis_weights(start: float, end: float, bins: int, cells: int) -> Tensor:
    """(bins, cells): with what weight each bin of a region reads each cell along one axis.

    A bin of b cells has ceil(b) samples, evenly spaced, each between the two cells whose centres it
    lies between; from one cell outside of the map on, a sample is 0.
    """
    weights = torch.zeros((bins, cells), dtype=torch.float64)
    samples = math.ceil((end - start) / bins)
    for bin_ in range(bins):
        for sample in range(samples):
            at = start + (end - start) / bins * (bin_ + (sample + 0.5) / samples)
            if at < -1 or at > cells:
                continue
            at = min(max(at, 0.0), cells - 1.0)
            first = math.floor(at)
            weights[bin_, first] += (1 - (at - first)) / samples
            weights[bin_, min(first + 1, cells - 1)] += (at - first) / samples
    return weights


def aligned_region(feature: Tensor, box: list[float], stride: int, bins: int) -> Tensor:
    """(C, bins, bins) of a map (1, C, H, W); the centre of the first cell is at half a cell."""
    x1, y1, x2, y2 = (side / stride - 0.5 for side in box)
    lines = axis_weights(y1, y2, bins, feature.shape[2])
    columns = axis_weights(x1, x2, bins, feature.shape[3])
    return torch.einsum("yh,chw,xw->cyx", lines, feature[0], columns)


def level_of(box: list[float]) -> int:
    """Of p2..p5, the one that a region is read from: p4 from 224 px, the next at each doubling."""
    x1, y1, x2, y2 = box
    side = math.sqrt((x2 - x1) * (y2 - y1))
    return min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), 5)


def pooled_regions(maps: Maps, boxes: Tensor) -> Tensor:
    """(R, C, 7, 7) of a pyramid, (R, C, 14, 14) of res4."""
    found = []
    for box in boxes.tolist():
        if "p2" in maps:
            level = level_of(box)
            found.append(aligned_region(maps[f"p{level}"], box, 2**level, 7))
        else:
            found.append(aligned_region(maps["res4"], box, 16, 14))
    return torch.stack(found)


def region_features(pooled: Tensor, state: State) -> Tensor:
    """(R, D) by two fully connected layers, or by res5 and the mean over its cells."""
    if not is_pyramid(state):
        return residual_stage(pooled, state, "roi_heads.res5", 2).mean(dim=(2, 3))
    x = pooled.flatten(1)
    for layer in ("fc1", "fc2"):
        name = f"roi_heads.box_head.{layer}"
        x = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    return x


def predictions(features: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Logits (R, K + 1), background last, and deltas (R, K, 4)."""
    logits, deltas = (
        F.linear(features, state[f"{name}.weight"], state[f"{name}.bias"])
        for name in ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
    )
    return logits, deltas.unflatten(1, (-1, 4))


def class_boxes(logits: Tensor, deltas: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (R, K) without background and boxes (R, K, 4), not clipped."""
    powers = (logits - logits.max(dim=1, keepdim=True).values).exp()
    scores = powers / powers.sum(dim=1, keepdim=True)
    return scores[:, :-1], moved(regions[:, None], deltas, (10, 10, 5, 5))


def detections_of(
    scores: Tensor, boxes: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (D, 4), scores (D,) and classes (D,) from 0, the best 100, of scores (R, K) and boxes
    (R, K, 4).
    """
    found = []
    for number in range(scores.shape[1]):
        likely = scores[:, number] > 0.05
        own, certain = clipped(boxes[likely, number], size), scores[likely, number]
        kept = kept_by_nms(own, certain, 0.5)
        found.append((own[kept], certain[kept], torch.full((len(kept),), number)))
    all_boxes, all_scores, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
    best = all_scores.argsort(descending=True, stable=True)[:100]
    return all_boxes[best], all_scores[best], classes[best]


# --- both, stage by stage

IMAGES = ((97, 141), (128, 96), (75, 203))
"""(h, w) px, each of another size than the batch."""

C4_COUNTS, FPN_COUNTS = ProposalCounts(200, 5), ProposalCounts(200, 64)
"""Fewer than the thousands of the published settings, so that images of this size have more; res5
runs over each of a C4's.
"""

STAGES = (
    "input",
    "backbone",
    "shared maps",
    "anchors",
    "rpn logits",
    "rpn deltas",
    "decoded anchors",
    "boxes entering nms",
    "logits entering nms",
    "boxes surviving nms",
    "logits surviving nms",
    "proposals",
    "objectness",
    "pooled regions",
    "region features",
    "class logits",
    "class deltas",
    "class scores",
    "class boxes",
    "boxes",
    "scores",
    "classes",
)

Values = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Case:
    """A checkpoint's tensors in float64 and what is imported of it, in float64 too; of every stage
    the tensors of the restatement and of the detector, image after image.
    """

    state: State
    imported: Imported
    wanted: Values
    found: Values

    @property
    def detector(self) -> FasterRCNN:
        return self.imported.detector

    @property
    def num_classes(self) -> int:
        return len(self.imported.class_map)


def images() -> list[Tensor]:
    """(3, h, w) uint8 RGB: coarse patches under noise."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for height, width in IMAGES:
        patches = torch.randint(0, 206, (3, -(-height // 16), -(-width // 16)), generator=generator)
        coarse = patches.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
        noise = torch.randint(0, 50, (3, height, width), generator=generator)
        found.append((coarse[:, :height, :width] + noise).to(torch.uint8))
    return found


def batch_of(pictures: list[Tensor]) -> ImageBatch:
    sizes = tuple(tuple(each.shape[1:]) for each in pictures)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels = torch.zeros((len(pictures), 3, height, width), dtype=torch.uint8)
    for into, each in zip(pixels, pictures, strict=True):
        into[:, : each.shape[1], : each.shape[2]] = each
    return ImageBatch(pixels, sizes, sizes, ids=tuple(range(len(pictures))))


def maps_of(image: Tensor, state: State) -> tuple[Maps, Maps]:
    """Those of the backbone and those that the heads read, of a normalised image (1, 3, H, W)."""
    if not is_pyramid(state):
        maps = backbone_maps(image, state)
        return {"res4": maps["res4"]}, {"res4": maps["res4"]}
    height, width = image.shape[2:]
    maps = backbone_maps(F.pad(image, (0, -width % 32, 0, -height % 32)), state)
    return maps, pyramid_maps(maps, state)


def levels_of(maps: Maps, state: State) -> list[Level]:
    settings = [(16, SIZES)]
    if is_pyramid(state):
        settings = [(2**number, (size,)) for number, size in enumerate(SIZES, start=2)]
    return [
        Level(anchors_of(tuple(each.shape[2:]), stride, sizes), *rpn_outputs(each, state))
        for each, (stride, sizes) in zip(maps.values(), settings, strict=True)
    ]


def counts_of(state: State) -> ProposalCounts:
    return FPN_COUNTS if is_pyramid(state) else C4_COUNTS


def stages_of_detectron2(state: State) -> Values:
    counts = counts_of(state)
    found: Values = {stage: [] for stage in STAGES}
    for pixels in images():
        size = tuple(pixels.shape[1:])
        image = normalised(pixels, state)
        backbone, maps = maps_of(image.double(), state)
        levels = levels_of(maps, state)
        entering = [level.entering(size, counts.pre_nms) for level in levels]
        surviving = [level.surviving(size, counts.pre_nms) for level in levels]
        proposals, objectness = proposals_of(levels, size, counts)
        pooled = pooled_regions(maps, proposals)
        features = region_features(pooled, state)
        logits, deltas = predictions(features, state)
        scores, boxes = class_boxes(logits, deltas, proposals)
        detected = detections_of(scores, boxes, size)
        of_image = {
            "input": [image[0]],
            "backbone": [each[0] for each in backbone.values()],
            "shared maps": [each[0] for each in maps.values()],
            "anchors": [level.anchors for level in levels],
            "rpn logits": [level.logits for level in levels],
            "rpn deltas": [level.deltas for level in levels],
            "decoded anchors": [moved(level.anchors, level.deltas) for level in levels],
            "boxes entering nms": [boxes for boxes, _ in entering],
            "logits entering nms": [logits for _, logits in entering],
            "boxes surviving nms": [boxes for boxes, _ in surviving],
            "logits surviving nms": [logits for _, logits in surviving],
            "proposals": [proposals],
            "objectness": [objectness],
            "pooled regions": [pooled],
            "region features": [features],
            "class logits": [logits],
            "class deltas": [deltas],
            "class scores": [scores],
            "class boxes": [boxes],
            **dict(zip(("boxes", "scores", "classes"), ([each] for each in detected), strict=True)),
        }
        for stage, tensors in of_image.items():
            found[stage] += tensors
    return found


@contextmanager
def in_float64() -> Iterator[None]:
    """What the library widens to float32, for training in half precision, becomes float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    with in_float64(), torch.no_grad():
        yield


@contextmanager
def having(rpn: RPN, settings: RPNSettings) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rpn, "settings", settings)
        yield


def parts_of(detections: Detections) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and classes, these from 0 as detectron2 counts them."""
    return detections.boxes, detections.scores, detections.labels - 1


def stages_of_detector(detector: FasterRCNN, counts: ProposalCounts) -> Values:
    found: Values = {stage: [] for stage in STAGES}
    batch, rpn, head = batch_of(images()), detector.rpn, detector.roi_head
    as_given = detector.normalizer(batch.pixels, batch.sizes)
    widening = detector.normalizer.register_forward_hook(lambda _m, _i, out: out.double())
    backbone = shared_maps(
        batch,
        detector.normalizer,
        detector.backbone,
        detector.stages,
        multiple_of=detector.multiple_of,
    )
    maps = backbone if detector.fpn is None else detector.fpn(backbone)
    outputs = rpn.on_maps(maps)
    of_images = [boxes for boxes, _ in rpn.propose(outputs, batch, counts)]
    pooled = head.pooler(maps, of_images)
    features = head.box_head(pooled)
    logits, deltas = head.predictor(features)
    boxes, scores = head.decode(logits, deltas, of_images)
    for stage, values in (
        ("pooled regions", pooled),
        ("region features", features),
        ("class logits", logits.roll(-1, dims=1)),  # background stands first here
        ("class deltas", deltas),
        ("class scores", scores),
        ("class boxes", boxes),
    ):
        found[stage] += values.split([len(each) for each in of_images])
    all_entering = replace(counts, post_nms=10**6)
    for n, size in enumerate(batch.sizes):
        found["input"].append(as_given[n, :, : size[0], : size[1]])
        for stage, those in (("backbone", backbone), ("shared maps", maps)):
            for each in those.values():
                height, width = each.sizes[n]
                found[stage].append(each.values[n, :, :height, :width])
        for output in outputs:
            anchors, logits, deltas = output.of_image(n)
            found["anchors"].append(anchors)
            found["rpn logits"].append(logits)
            found["rpn deltas"].append(deltas)
            found["decoded anchors"].append(rpn.box_coder.decode(anchors, deltas))
            for stage, settings in (
                ("entering", replace(rpn.settings, nms_thresh=1.0)),
                ("surviving", rpn.settings),
            ):
                with having(rpn, settings):
                    boxes, logits = rpn.proposals_of_image([output], batch, n, all_entering)
                found[f"boxes {stage} nms"].append(boxes)
                found[f"logits {stage} nms"].append(logits)
        proposals, objectness = rpn.proposals_of_image(outputs, batch, n, counts)
        found["proposals"].append(proposals)
        found["objectness"].append(objectness)
    with having(rpn, replace(rpn.settings, test_counts=counts)):
        for each in detector(batch):
            for stage, values in zip(("boxes", "scores", "classes"), parts_of(each), strict=True):
                found[stage].append(values)
    widening.remove()
    return found


def with_spread_outputs(state: State) -> State:
    """Weights, float32, whose residual branches add little, and whose outputs have the size of a
    trained detector's.
    """
    for name in state:
        if name.endswith("conv3.norm.weight"):
            state[name] = state[name] / 4
        if name.endswith("stem.conv1.weight"):
            state[name] = state[name] / 40
        if name.endswith(("fpn_output4.weight", "fpn_output5.weight")):
            state[name] = state[name] * 3  # large anchors too are among the best
    state["pixel_mean"] = torch.tensor((103.53, 116.28, 123.675)).view(3, 1, 1)
    state["pixel_std"] = torch.ones(3, 1, 1)

    def spread(name: str, outputs: Tensor, deviation: float) -> None:
        factor = deviation / outputs.std()
        state[f"{name}.weight"] = state[f"{name}.weight"] * factor
        state[f"{name}.bias"] = state[f"{name}.bias"] * factor

    pixels = images()[0]
    _, maps = maps_of(normalised(pixels, state), state)
    logits, deltas = (
        torch.cat(parts)
        for parts in zip(*(rpn_outputs(each, state) for each in maps.values()), strict=True)
    )
    spread("proposal_generator.rpn_head.objectness_logits", logits, 2.0)
    spread("proposal_generator.rpn_head.anchor_deltas", deltas, 0.8)
    height, width = pixels.shape[1:]
    regions = torch.tensor([(0, 0, width, height), (9, 20, 60, 50), (70, 30, 99, 90)])
    maps = {name: each.double() for name, each in maps.items()}
    features = region_features(pooled_regions(maps, regions).to(torch.float32), state)
    logits, deltas = predictions(features, state)
    spread("roi_heads.box_predictor.cls_score", logits, 3.0)
    spread("roi_heads.box_predictor.bbox_pred", deltas, 1.0)
    return state


MODELS = {
    "R50-C4": ("resnet50", False),
    "R101-C4": ("resnet101", False),
    "R50-FPN": ("resnet50", True),
}


@pytest.fixture(
    scope="module",
    params=["R50-C4", pytest.param("R101-C4", marks=pytest.mark.slow), "R50-FPN"],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, pyramid = MODELS[request.param]
    file: Path = tmp_path_factory.mktemp("detectron2") / "model_final.pth"
    with torch.no_grad():
        state = with_spread_outputs(detectron2_state(name, pyramid=pyramid, num_classes=80))
        torch.save({"model": state, "iteration": 269999}, file)
        imported = import_detector(file)
        file.unlink()
        state = {key: each.double() for key, each in state.items()}
        wanted = stages_of_detectron2(state)
        with in_float64():
            found = stages_of_detector(imported.detector.double(), counts_of(state))
    return Case(state, imported, wanted, found)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_what_detectron2s_gives(case: Case, stage: str) -> None:
    for found, wanted in zip(case.found[stage], case.wanted[stage], strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=0, atol=0 if stage == "input" else 1e-6)


def assert_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_images_meet_every_rule(case: Case) -> None:
    wanted, counts = case.wanted, counts_of(case.state)
    sizes = [size for size in IMAGES for _ in range(len(wanted["anchors"]) // len(IMAGES))]
    outside, left_out = 0, {"by limit": 0, "empty": 0, "by nms": 0}
    for size, anchors, decoded, entering, surviving in zip(
        sizes,
        wanted["anchors"],
        wanted["decoded anchors"],
        wanted["boxes entering nms"],
        wanted["boxes surviving nms"],
        strict=True,
    ):
        assert not torch.equal(clipped(decoded, size), decoded)
        left_out["by limit"] += len(anchors) > counts.pre_nms
        outside += int((~with_extent(clipped(anchors, size))).sum())
        left_out["empty"] += min(len(anchors), counts.pre_nms) - len(entering)
        left_out["by nms"] += len(entering) - len(surviving)
    assert all(left_out.values()), left_out
    assert (outside > 0) == is_pyramid(case.state)  # of lines that fill up a multiple of 32
    assert all(len(each) == counts.post_nms for each in wanted["proposals"])
    likely = sum(int((scores > 0.05).sum()) for scores in wanted["class scores"])
    assert 30 < sum(map(len, wanted["boxes"])) < likely
    for size, boxes in zip(IMAGES, wanted["boxes"], strict=True):
        assert with_extent(boxes).all()
        assert (boxes == torch.tensor([size[1], size[0]]).repeat(2)).any()
    if is_pyramid(case.state):
        levels = {level_of(box) for boxes in wanted["proposals"] for box in boxes.tolist()}
        assert len(levels) > 1


def test_the_settings_are_the_published_ones(case: Case) -> None:
    model, pyramid = case.imported.config.model, is_pyramid(case.state)
    given, rpn, roi = model.input, model.rpn, model.roi
    assert (given.short_side, given.max_side, given.multiple_of) == (
        800,
        1333,
        32 if pyramid else None,
    )
    assert (rpn.test_pre_nms_top_n, rpn.test_post_nms_top_n) == (1000 if pyramid else 6000, 1000)
    assert (rpn.nms_thresh, rpn.min_size) == (0.7, 0)
    assert (roi.score_thresh, roi.nms_thresh, roi.detections_per_image) == (0.05, 0.5, 100)
    assert (roi.pool_size, roi.sampling_ratio) == (7 if pyramid else 14, 0)
    assert case.num_classes == 80


# --- single rules, where they turn

CANVAS = (480, 640)
"""(h, w) px of an image that is only talked about."""


def proposed(case: Case, levels: list[Level]) -> tuple[Tensor, Tensor]:
    """Of the detector, with all its settings, for an image of CANVAS."""
    outputs = [
        MapOutput([level.anchors], level.logits[None], level.deltas[None], [None])
        for level in levels
    ]
    batch = batch_of([torch.zeros((3, *CANVAS), dtype=torch.uint8)])
    rpn = case.detector.rpn
    return rpn.proposals_of_image(outputs, batch, 0, rpn.settings.test_counts)


def counts_published(case: Case) -> ProposalCounts:
    return ProposalCounts(1000 if is_pyramid(case.state) else 6000, 1000)


def boxes_of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).view(-1, 4)


def falling(num: int) -> Tensor:
    return torch.linspace(9, -9, num, dtype=torch.float64)


def test_anchors_outside_of_the_image_propose_what_lies_in_it(case: Case) -> None:
    anchors = boxes_of(
        (-70, 10, -10, 40),  # outside
        (-70, 10, 0, 40),  # ends at the border
        (640, 100, 700, 150),  # begins at the border
        (-70, 200, -10, 240),  # outside, but moved inside
        (20, 470, 60, 500),  # across the border
        (100, 100, 100, 200),  # of no width
        (100, 200, 160, 200),  # of no height
        (100, 300, 100.001, 340),  # of next to no width
        (700, 500, 800, 600),
    )
    deltas = torch.zeros_like(anchors)
    deltas[3, 0] = 2.5
    level = Level(anchors, falling(len(anchors)), deltas)
    wanted = proposals_of([level], CANVAS, counts_published(case))
    assert len(wanted[0]) == 3
    assert_same(proposed(case, [level]), wanted)


def test_an_image_whose_anchors_all_lie_outside_has_no_proposal(case: Case) -> None:
    anchors = boxes_of((-70, 10, -10, 40), (640, 100, 700, 150))
    level = Level(anchors, falling(2), torch.zeros_like(anchors))
    wanted = proposals_of([level], CANVAS, counts_published(case))
    assert wanted[0].shape == (0, 4)
    assert_same(proposed(case, [level]), wanted)


def test_a_proposal_goes_from_just_above_the_overlap_of_seven_tenths(case: Case) -> None:
    anchors = boxes_of((0, 0, 10, 10), (0, 0, 10, 7), (30, 0, 40, 10), (30, 0, 40, 7.0001))
    level = Level(anchors, falling(4), torch.zeros_like(anchors))
    wanted = proposals_of([level], CANVAS, counts_published(case))
    assert torch.equal(wanted[0], anchors[:3])
    assert_same(proposed(case, [level]), wanted)


@pytest.mark.parametrize(("places", "limit"), [((5, 4), "entering"), ((39, 29), "proposed")])
def test_of_thousands_of_anchors_the_best_enter_and_the_best_thousand_are_proposed(
    case: Case, places: tuple[int, int], limit: str
) -> None:
    generator = torch.Generator().manual_seed(2)
    shares = torch.rand((7000, 2), generator=generator, dtype=torch.float64)
    corners = (shares * torch.tensor(places)).floor() * 16  # several a place
    anchors = torch.cat((corners, corners + 12), dim=1)
    deltas = torch.randn((7000, 4), generator=generator, dtype=torch.float64) / 12
    logits = torch.randn(7000, generator=generator, dtype=torch.float64)
    several = 5 if is_pyramid(case.state) else 1
    parts = (each.chunk(several) for each in (anchors, logits, deltas))
    levels = [Level(*part) for part in zip(*parts, strict=True)]
    counts = counts_published(case)
    wanted = proposals_of(levels, CANVAS, counts)
    if limit == "entering":
        unlimited = proposals_of(levels, CANVAS, replace(counts, pre_nms=7000))
        assert len(wanted[0]) < len(unlimited[0]) < 1000
    else:
        unlimited = proposals_of(levels, CANVAS, replace(counts, post_nms=7000))
        assert len(wanted[0]) == 1000 < len(unlimited[0])
    assert_same(proposed(case, levels), wanted)


def test_a_side_grows_at_most_so_far(case: Case) -> None:
    most = math.log(1000 / 16)
    boxes = boxes_of((10, 20, 50, 90)).expand(5, 4)
    steps = torch.tensor((-3, most - 1e-3, most, most + 1e-3, 40), dtype=torch.float64)
    for coder, weights in (
        (case.detector.rpn.box_coder, (1, 1, 1, 1)),
        (case.detector.roi_head.box_coder, (10, 10, 5, 5)),
    ):
        deltas = steps[:, None] * torch.tensor(weights)
        wanted = moved(boxes, deltas, weights)
        assert torch.equal(wanted[2, 2:] - wanted[2, :2], wanted[4, 2:] - wanted[4, :2])
        torch.testing.assert_close(coder.decode(boxes, deltas), wanted, rtol=0, atol=1e-6)


REGIONS = (
    *((16, 32, 16 + side, 32 + side) for side in (112, 224, 448)),
    *((16, 32, 16 + side * 2, 32 + side / 2) for side in (112, 224)),
    *((16, 32, 16 + side, 32 + side * (1 - 1e-5)) for side in (112, 224, 448)),
    *((16, 32, 16 + side, 32 + side * (1 + 1e-5)) for side in (112, 224, 448)),
    (16, 32, 16 + 224 * math.sqrt(2), 32 + 224 / math.sqrt(2)),
    (0, 0, 640, 480),
    (100, 100, 101, 101),
    (100, 100, 100, 160),  # of no width
    (100, 100, 160, 100),  # of no height
    (100, 100, 100, 100),
    (600, 400, 640, 480),
    (0, 0, 7, 7),
    (32.5, 48.25, 95.75, 220.125),
)
"""Regions of CANVAS; on a level's boundary and next to it, at the image's, and empty."""


def random_maps(case: Case, num: int, channels: int) -> tuple[Maps, dict[str, FeatureMap]]:
    """The maps (N, C, H, W) that regions are read from, of N images of CANVAS, under detectron2's
    names and as the detector has them.
    """
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32} if is_pyramid(case.state) else {"res4": 16}
    generator = torch.Generator().manual_seed(3)
    maps = {
        name: torch.randn(
            (num, channels, CANVAS[0] // stride, CANVAS[1] // stride),
            generator=generator,
            dtype=torch.float64,
        )
        for name, stride in strides.items()
    }
    features = {
        name: FeatureMap(each, (tuple(each.shape[2:]),) * num)
        for name, each in zip(case.detector.roi_head.pooler.strides, maps.values(), strict=True)
    }
    return maps, features


def test_regions_are_read_from_the_level_of_their_size(case: Case) -> None:
    maps, features = random_maps(case, 1, channels=2)
    regions = boxes_of(*REGIONS)
    wanted = pooled_regions(maps, regions)
    assert wanted.flatten(1).any(dim=1).tolist() == with_extent(regions).tolist()
    found = case.detector.roi_head.pooler(features, [regions])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("nums", [(0, 2, 0), (0, 0, 0)])
def test_an_image_without_proposals_has_no_detections_and_leaves_the_others_theirs(
    case: Case, nums: tuple[int, ...]
) -> None:
    maps, features = random_maps(case, 3, 256 if is_pyramid(case.state) else 1024)
    regions = [boxes_of(*REGIONS[:num]) for num in nums]
    head = case.detector.roi_head
    logits, deltas = head(features, regions)
    assert logits.shape == (sum(nums), case.num_classes + 1)
    all_found = head.postprocess(logits, deltas, regions, [CANVAS] * 3)
    for n, (own, found) in enumerate(zip(regions, all_found, strict=True)):
        if not len(own):
            assert [len(part) for part in parts_of(found)] == [0, 0, 0]
            continue
        pooled = pooled_regions({name: each[n : n + 1] for name, each in maps.items()}, own)
        outputs = predictions(region_features(pooled, case.state), case.state)
        scores, boxes = class_boxes(*outputs, own)
        wanted = detections_of(scores, boxes, CANVAS)
        assert len(wanted[0]) > 0
        assert_same(parts_of(found), wanted)


def test_a_class_is_detected_from_just_above_the_score(case: Case) -> None:
    scores = torch.zeros((4, case.num_classes), dtype=torch.float64)
    scores[0, 3] = 0.05
    scores[1, 3] = math.nextafter(0.05, 1)
    scores[2, 79] = math.nextafter(0.05, 0)
    scores[3, 0] = 0.9
    boxes = boxes_of((0, 0, 9, 9), (20, 0, 29, 9), (40, 0, 49, 9), (60, 0, 69, 9))
    boxes = boxes[:, None].expand(-1, case.num_classes, -1)
    wanted = detections_of(scores, boxes, CANVAS)
    assert wanted[2].tolist() == [0, 3]
    assert_same(parts_of(case.detector.roi_head.detections_of_image(boxes, scores)), wanted)


def test_a_detection_goes_from_just_above_half_an_overlap_within_its_class(case: Case) -> None:
    boxes = boxes_of((0, 0, 10, 10), (0, 0, 10, 5), (0, 0, 10, 5.0001), (0, 0, 10, 9))
    boxes = boxes[:, None].expand(-1, case.num_classes, -1)
    scores = torch.zeros((4, case.num_classes), dtype=torch.float64)
    scores[:, 7] = torch.tensor((0.9, 0.8, 0.7, 0.0))
    scores[:, 8] = torch.tensor((0.0, 0.0, 0.0, 0.6))
    wanted = detections_of(scores, boxes, CANVAS)
    assert wanted[2].tolist() == [7, 7, 8]
    assert_same(parts_of(case.detector.roi_head.detections_of_image(boxes, scores)), wanted)


def random_predictions(case: Case, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Regions (R, 4) of CANVAS, logits (R, K + 1), background last, and deltas (R, K, 4)."""
    generator = torch.Generator().manual_seed(6)
    corners = torch.rand((num, 2), generator=generator, dtype=torch.float64) * 400
    sides = torch.rand((num, 2), generator=generator, dtype=torch.float64) * 200 + 20
    regions = clipped(torch.cat((corners, corners + sides), dim=1), CANVAS)
    shape = (num, case.num_classes + 1)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    deltas = torch.randn((num, case.num_classes, 4), generator=generator, dtype=torch.float64)
    return regions, logits, deltas


def detected(case: Case, regions: Tensor, logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
    head = case.detector.roi_head
    (found,) = head.postprocess(logits.roll(1, dims=1), deltas, [regions], [CANVAS])
    return parts_of(found)


def test_of_many_detections_the_best_hundred_stay(case: Case) -> None:
    regions, logits, deltas = random_predictions(case, 150)
    scores, boxes = class_boxes(logits, deltas, regions)
    wanted = detections_of(scores, boxes, CANVAS)
    assert int((scores > 0.05).sum()) > 300
    assert len(wanted[0]) == 100
    assert_same(detected(case, regions, logits, deltas), wanted)


def test_detections_that_clipping_leaves_without_extent_are_the_one_difference(case: Case) -> None:
    """detectron2 gives them, flat, where they are among the best; here they are none."""
    regions, logits, deltas = random_predictions(case, 4)
    deltas[1, :, 0] = 500.0
    scores, boxes = class_boxes(logits, deltas, regions)
    theirs = detections_of(scores, boxes, CANVAS)
    whole = with_extent(theirs[0])
    assert 0 < whole.sum() < len(whole) < 100
    wanted = tuple(each[whole] for each in theirs)
    assert_same(detected(case, regions, logits, deltas), wanted)
