"""Files of others' detectors: torchvision's, whose own model is the witness, and detectron2's, with
its names and shapes.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import fasterrcnn_resnet50_fpn
from torchvision.models.detection.retinanet import retinanet_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d

from detres.detection.data.coco_classes import COCO_CLASSES
from detres.detection.import_weights import (
    WITHOUT_EPSILON,
    Imported,
    holds_detector,
    import_detector,
)
from detres.detection.inference.detect import batch_of
from detres.detection.weights_file import save_detector
from detres.files import CheckpointError
from tests.detection.detectron2_files import detectron2_state, layer_of
from tests.detection.models.test_pyramid_parity import with_livelier_outputs


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    return with_livelier_outputs(model, torch.Generator().manual_seed(1))


def detections(imported: Imported, image: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    given = imported.config.model.input
    batch = batch_of([image], [0], (given.short_side, given.max_side), (), given.resize)
    with torch.no_grad():
        (found,) = imported.detector(batch)
    return found.boxes, found.scores, found.labels


@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_file_of_torchvision_detects_as_its_model(theirs, tmp_path: Path, eps: float) -> None:
    """The published file is known by its name, and its norms have an epsilon of 0."""
    name = "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth" if eps == 0 else "mine.pth"
    torch.save(theirs.state_dict(), tmp_path / name)
    imported = import_detector(tmp_path / name)
    assert len(imported.class_map) == 90
    assert imported.class_map.name_of(0) == "person"
    assert imported.class_map.names[11] == "N/A 12"
    assert imported.class_map.source_ids == tuple(range(1, 91))
    assert imported.config.model.layout == "fpn"
    assert "left out" not in " ".join(imported.notes)
    norms = [each for each in theirs.modules() if isinstance(each, FrozenBatchNorm2d)]
    rng = np.random.default_rng(3)
    image = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    theirs.transform.min_size, theirs.transform.max_size = (200,), 333
    config = imported.config
    small = config.model.input.model_copy(update={"short_side": 200, "max_side": 333})
    model = config.model.model_copy(update={"input": small})
    imported = Imported(
        imported.detector, config.model_copy(update={"model": model}), imported.class_map, ()
    )
    try:
        for norm in norms:
            norm.eps = eps
        with torch.no_grad():
            (wanted,) = theirs([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    finally:
        for norm in norms:
            norm.eps = 1e-5
    boxes, scores, labels = detections(imported, image)
    assert len(boxes) == len(wanted["boxes"]) > 20
    # in the pixels of the file
    ratios = torch.tensor([160 / 266, 120 / 200]).repeat(2)
    same = (
        ((boxes * ratios)[:, None] - wanted["boxes"][None]).abs().amax(dim=2).lt(1e-2)
        & (scores[:, None] - wanted["scores"][None]).abs().lt(1e-4)
        & (labels[:, None] == wanted["labels"][None])
    )
    # where two boxes' IoU is next to the threshold of NMS, rounding decides which of them stays
    assert same.any(dim=1).sum() >= len(boxes) - 2
    assert same.any(dim=0).sum() >= len(boxes) - 2


def scale_without_epsilon(state: dict[str, Tensor]) -> Tensor:
    """scale / sqrt(variance) is this / sqrt(variance + 1e-5)."""
    variance = state["backbone.body.bn1.running_var"]
    return state["backbone.body.bn1.weight"] * ((variance + 1e-5) / variance).sqrt()


@pytest.mark.parametrize(("digits", "model"), WITHOUT_EPSILON.items())
def test_every_published_file_without_an_epsilon_is_known_by_its_name(
    theirs, tmp_path: Path, digits: str, model: str
) -> None:
    state = theirs.state_dict()
    torch.save(state, tmp_path / f"{model}_coco-{digits}.pth")
    found = import_detector(tmp_path / f"{model}_coco-{digits}.pth").detector.state_dict()
    torch.testing.assert_close(found["backbone.bn1.weight"], scale_without_epsilon(state))


def test_a_published_file_without_an_epsilon_is_known_under_another_name(
    theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = theirs.state_dict()
    torch.save(state, tmp_path / "renamed.pth")
    digest = hashlib.sha256((tmp_path / "renamed.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(WITHOUT_EPSILON, digest[:8], "fasterrcnn_resnet50_fpn")
    found = import_detector(tmp_path / "renamed.pth").detector.state_dict()
    torch.testing.assert_close(found["backbone.bn1.weight"], scale_without_epsilon(state))


# --- detectron2


def stated_anchors(sizes: list[tuple[float, ...]], ratios: tuple[float, ...]) -> dict[str, Tensor]:
    """What detectron2's DefaultAnchorGenerator.generate_cell_anchors says, a map after the other:
    h / w is the ratio, w * h the square of the size.
    """
    found = {}
    for number, of_map in enumerate(sizes):
        sides = [(size / ratio**0.5, size * ratio**0.5) for size in of_map for ratio in ratios]
        cells = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])
        found[f"proposal_generator.anchor_generator.cell_anchors.{number}"] = cells
    return found


def write_pkl(state: dict[str, Tensor], path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content))


def write_pth(state: dict[str, Tensor], path: Path) -> None:
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    more = {"pixel_mean": mean, "pixel_std": torch.ones(3, 1, 1)}
    sizes = [(32.0,), (64.0,), (128.0,), (256.0,), (512.0,)]
    if "backbone.fpn_output2.weight" not in state:
        sizes = [tuple(size for of_map in sizes for size in of_map)]
    anchors = stated_anchors(sizes, (0.5, 1.0, 2.0))
    torch.save({"model": {**state, **more, **anchors}, "iteration": 9}, path)


@pytest.mark.parametrize(
    ("name", "pyramid", "num_classes", "write"),
    [
        ("resnet50", False, 80, write_pkl),
        ("resnet50", False, 20, write_pth),
        ("resnet50", True, 80, write_pth),
        pytest.param("resnet101", False, 80, write_pkl, marks=pytest.mark.slow),
    ],
)
def test_every_tensor_of_detectron2_has_its_place(
    name: str, pyramid: bool, num_classes: int, write: Callable, tmp_path: Path
) -> None:
    state = detectron2_state(name, pyramid=pyramid, num_classes=num_classes)
    write(state, tmp_path / "model_final")
    imported = import_detector(tmp_path / "model_final")
    own, model = imported.detector.state_dict(), imported.config.model
    assert model.backbone.name == name
    assert (model.layout, model.rpn.width) == (("fpn", 256) if pyramid else ("c4", 1024))
    assert model.input.channel_order == "bgr"
    assert model.input.multiple_of == (32 if pyramid else None)
    assert imported.class_map.names[:1] == (("person",) if num_classes == 80 else ("aeroplane",))
    if num_classes == 80:
        assert imported.class_map == COCO_CLASSES
    unused = [
        key
        for key, tensor in state.items()
        if not any(
            each.shape == tensor.shape and torch.equal(each, tensor) for each in own.values()
        )
    ]
    scores = "roi_heads.box_predictor.cls_score"
    assert unused == [f"{scores}.weight", f"{scores}.bias"]  # background stands first here
    moved = own["roi_head.predictor.cls_score.bias"]
    assert torch.equal(moved[1:], state[f"{scores}.bias"][:-1])
    assert moved[0] == state[f"{scores}.bias"][-1]
    if not pyramid:
        assert torch.equal(
            own["roi_head.box_head.conv5.0.downsample.0.weight"],
            state["roi_heads.res5.0.shortcut.weight"],
        )
    assert ("anchors, which are in the" in " ".join(imported.notes)) is (write is write_pth)
    assert model.anchors.sizes == (32, 64, 128, 256, 512)
    assert model.anchors.aspect_ratios == (0.5, 1, 2)


# --- Detectron


_SHORTER = (
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.", "res_conv1_bn_"),
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.", "conv1_"),
    (r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res(\d)\.(\d+)\.", r"res\1_\2_"),
    (r"shortcut\.", "branch1_"),
    (r"conv1\.(norm\.|weight)", r"branch2a_\1"),
    (r"conv2\.(norm\.|weight)", r"branch2b_\1"),
    (r"conv3\.(norm\.|weight)", r"branch2c_\1"),
    (r"_norm\.", "_bn_"),
    (r"proposal_generator\.rpn_head\.conv\.", "conv_rpn{0}_"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn_cls_logits{0}_"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_bbox_pred{0}_"),
    (r"roi_heads\.box_head\.fc1\.", "fc6_"),
    (r"roi_heads\.box_head\.fc2\.", "fc7_"),
    (r"roi_heads\.box_predictor\.(\w+)\.", r"\1_"),
    (r"backbone\.fpn_lateral5\.", "fpn_inner_res5_2_sum_"),
    (r"backbone\.fpn_lateral4\.", "fpn_inner_res4_5_sum_lateral_"),
    (r"backbone\.fpn_lateral3\.", "fpn_inner_res3_3_sum_lateral_"),
    (r"backbone\.fpn_lateral2\.", "fpn_inner_res2_2_sum_lateral_"),
    (r"backbone\.fpn_output(\d)\.", r"fpn_res\1_2_sum_"),
)
"""detectron2's names -> the blobs of a ResNet-50 of Detectron; {0}: "_fpn2" of a pyramid."""


def detectron_blobs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same detector as Detectron writes it: background first, and with a box; norms as a scale
    and a shift; a momentum beside every blob.
    """
    pyramid = "_fpn2" if "backbone.fpn_output2.weight" in state else ""
    blobs: dict[str, Tensor] = {"conv1_b": torch.zeros(64)}
    for name, tensor in state.items():
        if "running" in name:
            continue
        if "cls_score" in name:
            tensor = torch.cat((tensor[-1:], tensor[:-1]))
        if "bbox_pred" in name:
            tensor = torch.cat((torch.ones_like(tensor[:4]), tensor))
        is_norm = ".norm." in name
        for pattern, new in _SHORTER:
            name = re.sub(rf"{pattern}", new.replace("{0}", pyramid), name)
        scale = "s" if is_norm else "w"
        blobs[name.replace("weight", scale).replace("bias", "b")] = tensor
    return blobs | {f"{name}_momentum": torch.zeros(1) for name in blobs}


@pytest.mark.parametrize("pyramid", [False, True])
def test_every_blob_of_detectron_has_its_place(pyramid: bool, tmp_path: Path) -> None:
    """The same tensors as detectron2's file of that detector, whose norms have no statistics."""
    state = detectron2_state("resnet50", pyramid=pyramid, num_classes=80)
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(1 - 1e-5)
    write_pkl(state, tmp_path / "two.pkl")
    blobs = {name: tensor.numpy() for name, tensor in detectron_blobs(state).items()}
    (tmp_path / "one.pkl").write_bytes(pickle.dumps({"blobs": blobs, "cfg": "NUM_GPUS: 8"}))
    one, two = (import_detector(tmp_path / f"{name}.pkl") for name in ("one", "two"))
    own, other = one.detector.state_dict(), two.detector.state_dict()
    assert own.keys() == other.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, other[name]), name
    model = one.config.model
    assert model.input.mean == (102.9801, 115.9465, 122.7717)
    assert (model.input.short_side, model.input.max_side) == (800, 1333)
    assert (model.layout, model.anchors.style) == ("fpn" if pyramid else "c4", "py-faster-rcnn")
    assert (model.roi.pool_size, model.roi.sampling_ratio) == ((7, 2) if pyramid else (14, 0))
    assert one.class_map == COCO_CLASSES
    assert "boxes may lie up to a pixel beside" in one.notes[-1]
    assert len(one.notes) == 2
    assert model.anchors.aspect_ratios == (0.5, 1.0, 2.0)
    sizes = (64.0, 128.0, 256.0, 512.0)
    assert model.anchors.sizes[-4:] == sizes
    counts = (model.rpn.train_pre_nms_top_n, model.rpn.train_post_nms_top_n)
    assert counts == ((2000, 2000) if pyramid else (12000, 2000))
    counts = (model.rpn.test_pre_nms_top_n, model.rpn.test_post_nms_top_n)
    assert counts == ((1000, 1000) if pyramid else (6000, 1000))


def test_half_a_file_of_detectron_and_foreign_blobs_are_refused(tmp_path: Path) -> None:
    blobs = detectron_blobs(detectron2_state("resnet50", pyramid=False, num_classes=3))
    masks = {"_[mask]_fcn1_w": torch.zeros(1), "mask_fcn_logits_w": torch.zeros(1)}
    torch.save({"blobs": {**blobs, **masks}}, tmp_path / "m.pth")
    imported = import_detector(tmp_path / "m.pth")
    assert imported.notes[1].endswith("m.pth: left out: the mask head")
    for change, message in (
        (without(blobs, "res4_3_branch2b_bn_s"), "layer3.3.bn2.weight"),
        (without(blobs, "cls_score_w"), "lacks roi_head.predictor.cls_score.weight: half a file"),
        ({**blobs, "other_w": torch.zeros(1)}, "1 tensors are of no part .*, such as other_w"),
    ):
        torch.save({"blobs": change}, tmp_path / "n.pth")
        with pytest.raises(CheckpointError, match=message):
            import_detector(tmp_path / "n.pth")


def test_a_dilated_conv5_is_refused_by_its_name(tmp_path: Path) -> None:
    state = detectron2_state("resnet50", pyramid=False, num_classes=3)
    dilated = {name.replace("roi_heads.res5", "backbone.res5"): t for name, t in state.items()}
    dilated |= layer_of("roi_heads.box_head.fc1", 4, 4)
    torch.save(dilated, tmp_path / "dc5.pth")
    with pytest.raises(CheckpointError, match="of the kind DC5, with a dilated conv5"):
        import_detector(tmp_path / "dc5.pth")


DETECTRON2 = {
    "input": {
        "short_side": 800,
        "max_side": 1333,
        "train_short_sides": (640, 672, 704, 736, 768, 800),
        "resize": "pillow",
        "channel_order": "bgr",
        "mean": (103.53, 116.28, 123.675),
        "std": (1.0, 1.0, 1.0),
    },
    "anchors": {
        "sizes": (32.0, 64.0, 128.0, 256.0, 512.0),
        "aspect_ratios": (0.5, 1.0, 2.0),
        "style": "detectron2",
    },
    "rpn": {
        "objectness": "sigmoid",
        "train_anchors": "all",
        "fg_iou_thresh": 0.7,
        "bg_iou_thresh": 0.3,
        "batch_size": 256,
        "positive_fraction": 0.5,
        "smooth_l1_beta": 0.0,
        "loss_normalizer": "batch_size",
        "min_size": 0.0,
        "nms_thresh": 0.7,
        "test_post_nms_top_n": 1000,
    },
    "roi": {
        "pool": "roi_align_aligned",
        "sampling_ratio": 0,
        "fg_iou_thresh": 0.5,
        "bg_iou_thresh": 0.5,
        "bg_iou_floor": 0.0,
        "batch_size": 512,
        "positive_fraction": 0.25,
        "box_weights": (10.0, 10.0, 5.0, 5.0),
        "smooth_l1_beta": 0.0,
        "class_agnostic": False,
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_image": 100,
    },
}
"""config/defaults.py with Base-RCNN-C4.yaml and Base-RCNN-FPN.yaml."""

OF_ONE_MAP = {
    "rpn": {
        "train_pre_nms_top_n": 12000,
        "train_post_nms_top_n": 2000,
        "test_pre_nms_top_n": 6000,
    },
    "roi": {"pool_size": 14},
}
OF_A_PYRAMID = {
    "rpn": {"train_pre_nms_top_n": 2000, "train_post_nms_top_n": 1000, "test_pre_nms_top_n": 1000},
    "roi": {"pool_size": 7},
}


@pytest.mark.parametrize(("pyramid", "more"), [(False, OF_ONE_MAP), (True, OF_A_PYRAMID)])
def test_the_settings_are_those_of_detectron2s_baselines(
    pyramid: bool, more: dict, tmp_path: Path
) -> None:
    write_pkl(detectron2_state("resnet50", pyramid=pyramid, num_classes=3), tmp_path / "m.pkl")
    found = import_detector(tmp_path / "m.pkl").config.model.model_dump()
    for section, settings in DETECTRON2.items():
        expected = {**settings, **more.get(section, {})}
        assert {key: found[section][key] for key in expected} == expected
    backbone = found["backbone"]
    assert (backbone["stride_placement"], backbone["norm"]) == ("original", "frozen")
    assert backbone["freeze_at"] == 2
    assert found["fpn"]["width"] == 256
    assert found["fpn"]["canonical_side"] == 224


def test_the_settings_are_those_of_torchvision(theirs, tmp_path: Path) -> None:
    """By what its own model has."""
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    model = import_detector(tmp_path / "m.pth").config.model
    rpn, heads = theirs.rpn, theirs.roi_heads
    assert model.rpn.model_dump(include={"nms_thresh", "min_size"}) == {
        "nms_thresh": rpn.nms_thresh,
        "min_size": 0,
    }
    counts = {
        "training": (model.rpn.train_pre_nms_top_n, model.rpn.train_post_nms_top_n),
        "testing": (model.rpn.test_pre_nms_top_n, model.rpn.test_post_nms_top_n),
    }
    for mode, found in counts.items():
        assert found == (rpn._pre_nms_top_n[mode], rpn._post_nms_top_n[mode])
    for own, sampler in ((model.rpn, rpn.fg_bg_sampler), (model.roi, heads.fg_bg_sampler)):
        assert own.batch_size == sampler.batch_size_per_image
        assert own.positive_fraction == sampler.positive_fraction
    assert model.roi.score_thresh == heads.score_thresh
    assert model.roi.nms_thresh == heads.nms_thresh
    assert model.roi.detections_per_image == heads.detections_per_img
    assert model.roi.box_weights == heads.box_coder.weights
    assert model.roi.sampling_ratio == heads.box_roi_pool.sampling_ratio
    assert model.input.mean == pytest.approx([255 * each for each in theirs.transform.image_mean])
    assert model.input.std == pytest.approx([255 * each for each in theirs.transform.image_std])
    assert model.roi.smooth_l1_beta == model.rpn.smooth_l1_beta == pytest.approx(1 / 9)


@pytest.fixture(scope="module")
def small_state() -> dict[str, Tensor]:
    return detectron2_state("resnet50", pyramid=True, num_classes=5)


@pytest.mark.parametrize(
    ("mean", "std", "order", "stride"),
    [
        ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0], "bgr", "original"),
        ([102.98, 115.947, 122.772], [1.0, 1.0, 1.0], "bgr", "original"),
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], "rgb", "torchvision"),
    ],
)
def test_pixels_are_those_that_the_file_states(
    small_state, tmp_path: Path, mean: list, std: list, order: str, stride: str
) -> None:
    stated = {"pixel_mean": torch.tensor(mean)[:, None, None], "pixel_std": torch.tensor(std)}
    torch.save({**small_state, **stated}, tmp_path / "m.pth")
    imported = import_detector(tmp_path / "m.pth")
    given = imported.config.model.input
    assert (given.channel_order, list(given.mean), list(given.std)) == (order, mean, std)
    assert imported.config.model.backbone.stride_placement == stride
    assert ("in the 3x3" in " ".join(imported.notes)) is (stride == "torchvision")
    for bad in ([0.0] * 3, [1.0, torch.inf, 1.0], [torch.nan] * 3, [1.0]):
        torch.save({**small_state, **stated, "pixel_std": torch.tensor(bad)}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=r"m\.pth: pixel_mean .* are no means and devi"):
            import_detector(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("sizes", "ratios", "dtype"),
    [
        ([(8.0,), (16.0,), (32.0,), (64.0,), (91.25,)], (1.0, 2.0, 3.0), torch.float32),
        ([(32.0,), (64.0,), (128.0,), (256.0,), (512.0,)], (1 / 3, 1.0, 3.0), torch.float32),
        ([(8.0,), (16.0,), (32.0,), (64.0,), (128.0,)], (0.5, 1.0, 2.0), torch.float16),
    ],
)
def test_anchors_are_those_that_the_file_states(
    small_state, tmp_path: Path, sizes: list, ratios: tuple, dtype: torch.dtype
) -> None:
    stated = stated_anchors(sizes, ratios)
    kept = {name: each.to(dtype) for name, each in {**small_state, **stated}.items()}
    torch.save({"model": kept}, tmp_path / "m.pth")
    imported = import_detector(tmp_path / "m.pth")
    assert imported.config.model.anchors.sizes == tuple(size for (size,) in sizes)
    assert imported.config.model.anchors.aspect_ratios == pytest.approx(ratios, rel=1e-6)
    own = [anchors.cell for anchors in imported.detector.rpn.anchors.values()]
    for mine, wanted in zip(own, stated.values(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=2e-6, atol=0)


def test_anchors_of_one_map_have_sizes_of_their_own(tmp_path: Path) -> None:
    state = detectron2_state("resnet50", pyramid=False, num_classes=2)
    stated = stated_anchors([(8.0, 20.0, 50.0, 128.0, 300.0)], (1.0, 2.0, 4.0))
    torch.save({**state, **stated}, tmp_path / "m.pth")
    found = import_detector(tmp_path / "m.pth").config.model.anchors
    assert (found.sizes, found.aspect_ratios) == ((8, 20, 50, 128, 300), (1, 2, 4))


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells + 8,  # not centred
        lambda cells: torch.cat((cells, cells * 1.5)),  # two sizes a level
        lambda cells: torch.cat((cells, cells[:, :1]), dim=1),  # rotated
        lambda cells: cells[[0, 0, 2]],
        torch.zeros_like,
        lambda cells: cells.int(),
        lambda cells: cells[0],
        lambda cells: cells[:0],
    ],
)
def test_anchors_of_another_kind_are_refused(small_state, tmp_path: Path, change: Callable) -> None:
    stated = stated_anchors([(8.0,), (16.0,), (32.0,), (64.0,), (128.0,)], (0.5, 1.0, 2.0))
    first = next(iter(stated))
    changed = {**stated, first: change(stated[first])}
    torch.save({**small_state, **changed}, tmp_path / "m.pth")
    with pytest.raises(
        CheckpointError, match=r"m\.pth states other anchors than are known"
    ) as said:
        import_detector(tmp_path / "m.pth")
    assert "\n" not in str(said.value)


def test_anchors_of_too_few_maps_are_refused_in_one_line(small_state, tmp_path: Path) -> None:
    torch.save({**small_state, **stated_anchors([(8.0,)], (1.0,))}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth: model: .* give 5 anchors") as said:
        import_detector(tmp_path / "m.pth")
    assert "\n" not in str(said.value)


# --- several detectors in one file


def test_of_several_the_average_of_weights_is_taken(small_state, tmp_path: Path) -> None:
    """As of backbones; the model's own tensors are 1 more, so that what was taken can be told."""
    own = {name: tensor + 1 for name, tensor in small_state.items()}
    shadow = {f"module.{name}": tensor for name, tensor in small_state.items()}
    content = {"model": own, "model_ema": {"n_averaged": torch.tensor(3), **shadow}}
    torch.save(content, tmp_path / "m.pth")
    imported = import_detector(tmp_path / "m.pth")
    name = "roi_heads.box_predictor.bbox_pred.bias"
    moved = imported.detector.state_dict()["roi_head.predictor.bbox_pred.bias"]
    assert torch.equal(moved, small_state[name])
    said = "m.pth: taken from model_ema.module, which is evaluated, and not from model"
    assert any(note.endswith(said) for note in imported.notes)
    flat = {**own, **{f"ema.{name}": tensor for name, tensor in small_state.items()}}
    torch.save(flat, tmp_path / "m.pth")
    moved = import_detector(tmp_path / "m.pth").detector.state_dict()
    assert torch.equal(moved["roi_head.predictor.bbox_pred.bias"], small_state[name])


def test_of_several_of_one_rank_equal_ones_are_taken_and_others_refused(
    small_state, tmp_path: Path
) -> None:
    torch.save({"one": small_state, "two": dict(small_state)}, tmp_path / "m.pth")
    assert not any("taken from" in note for note in import_detector(tmp_path / "m.pth").notes)
    other = {name: tensor + 1 for name, tensor in small_state.items()}
    torch.save({"one": small_state, "two": other}, tmp_path / "m.pth")
    with pytest.raises(
        CheckpointError, match=r"m\.pth holds 2 detectors .*to take: one, two\. Save"
    ):
        import_detector(tmp_path / "m.pth")


def test_masks_are_left_out_and_said(small_state, tmp_path: Path) -> None:
    masks = layer_of("roi_heads.mask_head.mask_fcn1", 4, 4, 3, 3)
    torch.save({**small_state, **masks}, tmp_path / "m.pth")
    imported = import_detector(tmp_path / "m.pth", classes=list("abcde"))
    assert imported.class_map.names == tuple("abcde")
    assert imported.notes[1].endswith("m.pth: left out: the mask head")
    assert len(imported.notes) == 2
    unnamed = import_detector(tmp_path / "m.pth")
    assert unnamed.class_map.names[-1] == "class 5"
    assert "its classes are not named in it: they are called class 1" in unnamed.notes[-1]


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    assert name in state
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "backbone.fpn_output3.weight"), "fpn.output.conv3.conv.weight"),
        (lambda s: without(s, "backbone.bottom_up.res4.3.conv2.norm.bias"), "layer3.3.bn2.bias"),
        (
            lambda s: {k: v for k, v in s.items() if "res4.5" not in k},
            "4 and 5 blocks in conv3 and conv4 is not known; expected resnet50, resnet101",
        ),
        (
            lambda s: {**s, "roi_heads.other.weight": torch.zeros(1)},
            "1 tensors are of no part that is known, such as roi_heads.other.weight",
        ),
        (
            lambda s: {**s, "backbone.fpn_output3.weight": torch.zeros(1, 1, 1, 1)},
            "shape of fpn.output.conv3.conv.weight",
        ),
        (
            lambda s: {**s, "backbone.fpn_output3.bias": torch.full((256,), torch.nan)},
            "fpn.output.conv3.conv.bias",
        ),
        (
            lambda s: without(s, "roi_heads.box_predictor.cls_score.weight"),
            "lacks roi_head.predictor.cls_score.weight: half a file",
        ),
        (
            lambda s: {f"model.{k}": v for k, v in s.items() if "cls_score.weight" not in k},
            "lacks roi_head.predictor.cls_score.weight: half a file",
        ),
        (
            lambda s: {**s, "roi_heads.box_predictor.cls_score.weight": torch.tensor(1.0)},
            "predictor.cls_score.weight is a single number",
        ),
        (
            lambda s: {**s, "roi_heads.box_predictor.cls_score.bias": torch.tensor(1.0)},
            "shape of roi_head.predictor.cls_score.bias",
        ),
        (
            lambda s: {**s, "roi_heads.box_predictor.bbox_pred.weight": torch.tensor(1.0)},
            "predictor.bbox_pred.weight is a single number",
        ),
        (
            lambda s: {k: v[:, :8] if "res2.0.conv2.w" in k else v for k, v in s.items()},
            r"its convolutions are grouped \(ResNeXt\), 64 x 8 in conv2_x, expected 64 x 64",
        ),
        (
            lambda s: {
                k: v.repeat(2, 2, 1, 1) if "res2.0.conv2.w" in k else v for k, v in s.items()
            },
            r"are of another width \(a wide ResNet\), 128 x 128 in conv2_x",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(small_state, tmp_path, change, message) -> None:
    torch.save(change(small_state), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message) as raised:
        import_detector(tmp_path / "m.pth")
    assert "m.pth" in str(raised.value)


def test_other_class_names_than_there_are_classes_are_refused(small_state, tmp_path) -> None:
    torch.save(small_state, tmp_path / "m.pth")
    for names, message in (
        (["a", "b"], r"m\.pth has 5 classes beside background, and 2 names given: 'a', 'b'$"),
        (["a,b,c,d,e"], r"beside background, and 1 name given: 'a,b,c,d,e'$"),
        (["a", "b", "c", "a", "e"], r"m\.pth: of the names for its classes, a is there twice"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_detector(tmp_path / "m.pth", classes=names)


def test_other_kinds_of_files_are_called_by_their_names(tmp_path: Path) -> None:
    retina = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(retina.state_dict(), tmp_path / "retina.pth")
    for file, content, message in (
        ("retina.pth", None, "holds torchvision's RetinaNet, which is not read; read are"),
        ("net.pth", {"conv1.weight": torch.zeros(1)}, "holds no detector that is known, by its"),
        ("none.pth", {"a": 1}, "holds no tensors, so no detector; read are"),
        (
            "whole.pth",
            torch.nn.Linear(2, 2),
            r"holds a whole pickled module \(.*Linear\), whose co",
        ),
    ):
        if content is not None:
            torch.save(content, tmp_path / file)
        with pytest.raises(CheckpointError, match=message):
            import_detector(tmp_path / file)
        assert not holds_detector(tmp_path / file)


def test_a_detector_of_ones_own_is_not_read_again(small_state, tmp_path: Path) -> None:
    torch.save(small_state, tmp_path / "m.pth")
    assert holds_detector(tmp_path / "m.pth")
    one = import_detector(tmp_path / "m.pth")
    save_detector(tmp_path / "m.safetensors", one.detector, one.config, one.class_map, step=0)
    assert not holds_detector(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"m\.safetensors holds a detector of detres already"):
        import_detector(tmp_path / "m.safetensors")


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for file in ("evil.pkl", "evil.pth"):
        content = {"model": {"roi_heads.box_predictor.cls_score.weight": _Runs(touched)}}
        if file.endswith("pkl"):
            (tmp_path / file).write_bytes(pickle.dumps(content))
        else:
            torch.save(content, tmp_path / file)
        with pytest.raises(CheckpointError, match=file):
            import_detector(tmp_path / file)
    with pytest.raises(CheckpointError, match="no weights file"):
        import_detector(tmp_path / "gone.pth")
    assert not touched.exists()
