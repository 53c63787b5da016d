"""How many boxes anchors cover, against anchors laid out one by one; and that no fewer would do."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detres.boxes import box_iou
from detres.detection.annotations import Annotations
from detres.detection.config import AnchorConfig, InputConfig, ModelConfig
from detres.detection.data import anchor_fit
from detres.detection.data.anchor_fit import (
    ENOUGH,
    AnchorChoice,
    AnchorFit,
    ScaledBoxes,
    best_ious,
    boxes_in_training,
    describe_fit,
    fewest_anchors,
    fit_of,
    reachable,
)
from detres.detection.data.coco import read_coco
from detres.detection.data.shapes import ensure_shapes
from detres.detection.data.transforms import EvalTransform
from detres.detection.data.voc import read_voc
from detres.detection.models.anchors import AnchorGenerator, cell_anchors
from tests.detection.boxed import annotated, many
from tests.helpers import random_boxes

STYLES = ("py-faster-rcnn", "torchvision", "detectron2")
AT_300 = InputConfig(short_side=300, max_side=500)


def scaled(boxes: list | np.ndarray, size: tuple[int, int] = (320, 480)) -> ScaledBoxes:
    """Boxes of one image of (h, w) px."""
    rows = np.asarray(boxes, np.float64).reshape(-1, 4)
    cells = np.tile([-(-size[0] // 16), -(-size[1] // 16)], (len(rows), 1))
    return ScaledBoxes(rows, cells, np.tile(size, (len(rows), 1)))


def centred_box(x: float, y: float, w: float, h: float) -> list[float]:
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def of(sizes: tuple[float, ...], ratios: tuple[float, ...] = (1.0,), **more: object) -> np.ndarray:
    style = more.get("style", "detectron2")
    return cell_anchors(sizes, ratios, stride=16, style=style).numpy()


# ---- IoU of a box with the best place of an anchor ----


def test_an_anchor_is_as_far_from_a_box_as_the_cells_are() -> None:
    on_a_cell = centred_box(160, 96, 32, 32)
    between = centred_box(168, 96, 32, 32)  # 8 px from two cells: 24 * 32 of 2 * 1024 - 768
    between_all = centred_box(168, 104, 32, 32)  # 24 * 24 of 2 * 1024 - 576
    found = best_ious(scaled([on_a_cell, between, between_all]), of((32.0,)))
    assert found[0].tolist() == pytest.approx([1.0, 768 / 1280, 576 / 1472])
    centred = best_ious(scaled([on_a_cell, between, between_all]), of((32.0,)), centred=True)
    assert centred[0].tolist() == [1.0, 1.0, 1.0]


def test_py_faster_rcnns_anchors_lie_in_the_middle_of_their_cells() -> None:
    box = centred_box(168, 104, 32, 32)
    assert best_ious(scaled([box]), of((32.0,), style="py-faster-rcnn"))[0, 0] == 1.0


def test_a_box_at_the_border_has_the_cells_of_the_map_alone() -> None:
    """The map of 64 px has cells at 0, 16, 32, 48: the anchor of a box around 64 is 16 px off."""
    box = centred_box(64, 32, 40, 40)
    found = best_ious(scaled([box], (64, 64)), of((40.0,)))
    assert found[0, 0] == pytest.approx(24 * 40 / (2 * 1600 - 24 * 40))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("inside", [False, True])
def test_the_best_place_is_the_best_of_all_anchors_of_the_map(style: str, inside: bool) -> None:
    size, sizes, ratios = (200, 312), (16.0, 40.0, 90.0), (0.5, 1.0, 2.0)
    boxes = random_boxes(200, 190.0, seed=3)
    rows = scaled(boxes.numpy(), size)
    generator = AnchorGenerator(sizes=sizes, aspect_ratios=ratios, stride=16, style=style)
    anchors = generator(*rows.cells[0].tolist())
    if inside:
        low, high = anchors[:, :2] >= 0, anchors[:, 2:] <= torch.tensor([size[1], size[0]])
        anchors = anchors[low.all(dim=1) & high.all(dim=1)]
    expected = box_iou(boxes, anchors).max(dim=1).values
    found = best_ious(rows, of(sizes, ratios, style=style), inside=inside).max(axis=0)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
    alone = best_ious(rows, of(sizes, ratios, style=style), centred=True).max(axis=0)
    assert (alone >= found - 1e-6).all()


def test_an_anchor_that_fits_nowhere_inside_covers_nothing() -> None:
    box = [0.0, 0.0, 100.0, 100.0]
    assert best_ious(scaled([box], (100, 100)), of((110.0,)))[0, 0] > 0.5
    assert best_ious(scaled([box], (100, 100)), of((110.0,)), inside=True)[0, 0] == 0


# ---- the boxes as training sees them ----


def test_boxes_are_those_that_the_transform_of_an_image_gives() -> None:
    sizes = [(480, 640), (900, 200), (333, 500)]
    boxes = [(0, 10, 20, 200, 300), (1, 5, 700, 150, 880), (2, 0, 0, 500, 333), (2, 1, 2, 30, 40)]
    annotations = annotated(sizes, boxes)
    found = boxes_in_training(annotations, AT_300)
    transform = EvalTransform(short_side=300, max_side=500)
    row = 0
    for index, size in enumerate(sizes):
        image, target = transform(np.zeros((*size, 3), np.uint8), annotations.target(index))
        for box in target.boxes:
            assert found.boxes[row] == pytest.approx(box.numpy(), abs=1e-3)
            assert tuple(found.sizes[row]) == image.shape[:2]
            assert found.cells[row].tolist() == [-(-side // 16) for side in image.shape[:2]]
            row += 1
    assert len(found) == row == 4


def test_only_what_is_learnt_from_counts_cut_to_its_image() -> None:
    boxes = [(0, 0, 0, 100, 100), (0, 0, 0, 90, 90), (0, 5, 5, 5, 50), (0, -20, 10, 60, 400)]
    boxes += [(0, 400, 10, 500, 60)]  # beside the image
    annotations = annotated([(300, 400)], boxes)
    flags = np.array([True, False, False, False, False])
    there = [[0, 0, 90, 90], [0, 10, 60, 300]]
    crowd = boxes_in_training(replace(annotations, crowd=flags), AT_300)
    assert crowd.boxes.tolist() == there
    difficult = boxes_in_training(replace(annotations, difficult=flags), AT_300)
    assert difficult.boxes.tolist() == there


def test_every_scale_of_training_counts() -> None:
    given = InputConfig(short_side=300, max_side=800, train_short_sides=(150, 600))
    found = boxes_in_training(annotated([(300, 400)], [(0, 0, 0, 30, 60)]), given)
    assert found.boxes.tolist() == [[0, 0, 15, 30], [0, 0, 60, 120]]
    assert found.sizes.tolist() == [[150, 200], [600, 800]]


def test_a_map_may_have_other_cells() -> None:
    found = boxes_in_training(
        annotated([(300, 400)], [(0, 0, 0, 30, 60)]), AT_300, lambda _: (3, 5)
    )
    assert found.cells.tolist() == [[3, 5]]


def test_a_size_that_is_not_stated_is_read_from_the_file(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((600, 800, 3), np.uint8))
    annotations = annotated([(0, 0), (0, 0)], [(0, 0, 0, 80, 40), (1, 0, 0, 10, 10)])
    files = np.array([str(tmp_path / "a.png"), str(tmp_path / "gone.png")])
    found = boxes_in_training(replace(annotations, image_files=files), AT_300)
    assert found.boxes.tolist() == [[0, 0, 40, 20]]  # the other image cannot be read


def test_without_boxes_nothing_is_missing() -> None:
    none = boxes_in_training(annotated([(300, 400)], []), AT_300)
    assert len(none) == 0
    assert fit_of(none, AnchorConfig()) == anchor_fit.AnchorFit(0, 1.0, 1.0)
    found = fewest_anchors(none, style="detectron2")
    assert (found.sizes, found.aspect_ratios) == ((91.0,), (1.0,))
    assert describe_fit(annotated([(300, 400)], []), model()) == []


# ---- the fewest ----


def test_two_sizes_of_square_take_two_anchors() -> None:
    boxes = [centred_box(16 * x, 160, side, side) for side in (32, 128) for x in range(8, 20)]
    found = fewest_anchors(scaled(boxes), style="detectron2")
    assert len(found.sizes) == 2
    assert found.aspect_ratios == (1.0,)
    assert fit_of(scaled(boxes), found).on_grid == 1.0


def test_wide_boxes_take_an_aspect_ratio_of_their_own() -> None:
    boxes = [centred_box(16 * x, 160, 128, 32) for x in range(8, 20)]
    found = fewest_anchors(scaled(boxes), style="detectron2")
    assert (len(found.sizes), found.aspect_ratios) in ((1, (0.25,)), (1, (0.33,)))


@pytest.mark.parametrize("inside", [False, True])
def test_no_fewer_would_do(inside: bool) -> None:
    """All products of as many or fewer sizes and ratios, one by one."""
    rng = np.random.default_rng(5)
    sides = rng.uniform(60, 140, (60, 2))
    boxes = [centred_box(*rng.uniform(80, 240, 2), *pair) for pair in sides]
    rows = scaled(boxes)
    found = fewest_anchors(rows, style="detectron2", inside=inside)
    number = len(found.sizes) * len(found.aspect_ratios)
    assert fit_of(rows, found, inside=inside).on_grid >= ENOUGH
    assert number <= 4
    num = len(anchor_fit.SIZES), len(anchor_fit.ASPECT_RATIOS)
    ious = np.zeros((*num, len(rows)))
    for row, size in enumerate(anchor_fit.SIZES):
        anchors = of((float(size),), anchor_fit.ASPECT_RATIOS)
        ious[row] = best_ious(rows, anchors, inside=inside)
    fewer, means = [], []
    for num_sizes, num_ratios in itertools.product(range(1, 5), repeat=2):
        if num_sizes * num_ratios > number:
            continue
        for chosen in itertools.combinations(range(len(anchor_fit.SIZES)), num_sizes):
            of_sizes = ious[list(chosen)].max(axis=0)
            for ratios in itertools.combinations(range(num[1]), num_ratios):
                best = of_sizes[list(ratios)].max(axis=0)
                if num_sizes * num_ratios < number:
                    fewer.append((best >= 0.5).mean())
                elif (best >= 0.5).mean() >= ENOUGH:
                    means.append(best.mean())
    assert max(fewer, default=0) < ENOUGH
    own = best_ious(rows, of(found.sizes, found.aspect_ratios), inside=inside).max(axis=0)
    assert own.mean() == pytest.approx(max(means))


@pytest.mark.parametrize(
    ("sizes", "ratios"), [((60.0, 120.0), None), ((90.0,), None), (None, (0.6, 1.6)), (None, (1,))]
)
def test_no_fewer_would_do_where_half_is_given(sizes: tuple | None, ratios: tuple | None) -> None:
    """All sets of as many or fewer of the other half, one by one."""
    rng = np.random.default_rng(6)
    boxes = [centred_box(*rng.uniform(80, 240, 2), *rng.uniform(60, 140, 2)) for _ in range(60)]
    rows = scaled(boxes)
    among = AnchorChoice.of(sizes, ratios)
    found = fewest_anchors(rows, style="detectron2", among=among)
    assert sizes is None or found.sizes == sizes
    assert ratios is None or found.aspect_ratios == ratios
    candidates = anchor_fit.SIZES if sizes is None else anchor_fit.ASPECT_RATIOS
    taken = len(found.sizes if sizes is None else found.aspect_ratios)

    def shares(some: tuple[float, ...]) -> tuple[float, float]:
        anchors = of(some, ratios) if sizes is None else of(sizes, some)
        best = [best_ious(rows, anchors, centred=centred).max(axis=0) for centred in (False, True)]
        return min((each >= 0.5).mean() for each in best), best[0].mean()

    most = shares(candidates)[0]
    asked = ENOUGH if most >= ENOUGH else ENOUGH * most
    tried = {
        number: [shares(some) for some in itertools.combinations(candidates, number)]
        for number in range(1, taken + 1)
    }
    for number in range(1, taken):
        assert all(share < asked for share, _ in tried[number])
    own = of(found.sizes, found.aspect_ratios)
    fitting = [mean for share, mean in tried[taken] if share >= asked - 1e-9]
    assert best_ious(rows, own).max(axis=0).mean() == pytest.approx(max(fitting))


def test_the_order_of_the_boxes_does_not_matter() -> None:
    rows = boxes_in_training(many(400, 60), AT_300)
    order = np.random.default_rng(1).permutation(len(rows))
    other = ScaledBoxes(rows.boxes[order], rows.cells[order], rows.sizes[order])
    assert fewest_anchors(rows, style="detectron2") == fewest_anchors(other, style="detectron2")


def test_small_boxes_between_the_cells_are_said_to_be_out_of_reach() -> None:
    rows = boxes_in_training(many(600, 16, (300, 400)), AT_300)
    most = reachable(rows, style="detectron2")
    found = fit_of(rows, fewest_anchors(rows, style="detectron2"))
    assert most.on_grid < 0.5 < ENOUGH <= found.by_shape
    assert ENOUGH * most.on_grid <= found.on_grid <= most.on_grid


def test_what_just_can_be_covered_is() -> None:
    """Where all anchors together cover little more than is enough, enough of them is not less."""
    shares = []
    for small in range(40, 140, 20):  # of 2000 boxes, between cells
        parts = [many(small, 16.0, (300, 400)), many(2000 - small, 90.0, (300, 400))]
        scaled = [boxes_in_training(part, AT_300) for part in parts]
        names = ("boxes", "cells", "sizes")
        rows = ScaledBoxes(*(np.concatenate([getattr(p, n) for p in scaled]) for n in names))
        if ENOUGH <= reachable(rows, style="detectron2").on_grid < 0.995:
            shares.append(fit_of(rows, fewest_anchors(rows, style="detectron2")).on_grid)
    assert shares
    assert min(shares) >= ENOUGH


def test_more_boxes_than_are_sampled_are_covered_too() -> None:
    """Three in a hundred are of another size."""
    parts = [boxes_in_training(many(*each), AT_300) for each in ((12_000, 64.0), (370, 250.0))]
    rows = ScaledBoxes(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("boxes", "cells", "sizes")
        )
    )
    found = fewest_anchors(rows, style="detectron2")
    assert fit_of(rows, found).on_grid >= ENOUGH
    assert len(found.sizes) > len(fewest_anchors(parts[0], style="detectron2").sizes)
    sampled = rows.sample(4096)
    assert len(sampled) == 4096
    assert np.array_equal(sampled.boxes, rows.sample(4096).boxes)
    assert len(rows.sample(10**6)) == len(rows)


def real(name: str, shared_data: object) -> Annotations:
    """The training images of a folder of photographs, or of the embedded shapes."""
    if name == "shapes":
        root = ensure_shapes(num_train=300, num_val=60)
        return read_coco(root / "annotations/train.json", root / "train")
    if name == "coco_mini":
        root = shared_data(name)
        file = root / "annotations/instances_train2017.json"
        return read_coco(file, root / "train2017", box_policy="drop")
    root = shared_data({"bccd": "bccd/BCCD", "voc_mini": "voc_mini/VOCdevkit/VOC2012"}[name])
    return read_voc(root, ["train"], box_policy="drop")


@pytest.mark.parametrize("name", ["bccd", "voc_mini", "coco_mini", "shapes"])
def test_real_boxes_are_covered(name: str, shared_data: object) -> None:
    annotations = real(name, shared_data)
    for side, stride_lets in ((400, name != "coco_mini"), (300, name == "shapes")):
        given = InputConfig(short_side=side, max_side=round(side * 5 / 3))
        rows = boxes_in_training(annotations, given)
        most = reachable(rows, style="detectron2")
        anchors = fewest_anchors(rows, style="detectron2")
        fit = fit_of(rows, anchors)
        assert (most.on_grid >= ENOUGH) == stride_lets
        assert fit.on_grid >= (ENOUGH if stride_lets else ENOUGH * most.on_grid)
        assert fit.by_shape >= min(ENOUGH, ENOUGH * most.by_shape)
        assert fewest_anchors(rows, style="detectron2") == anchors


# ---- in words ----


def model(sizes: tuple = (128.0,), ratios: tuple = (1.0,), **given: object) -> ModelConfig:
    return ModelConfig(
        backbone={"weights": "w"},
        input={"short_side": 300, "max_side": 500, **given},
        anchors={"sizes": sizes, "aspect_ratios": ratios, "style": "detectron2"},
        rpn={"train_anchors": "all"},
    )


def test_anchors_that_fit_are_said_in_a_line() -> None:
    lines = describe_fit(many(400, 200), model())
    assert lines == [
        "anchors: 1 a cell; 100.0% of 400 boxes have one with an IoU of 0.5 or more (100.0% but "
        "for the 16 px between cells)"
    ]


def test_anchors_that_do_not_fit_are_named_with_what_would() -> None:
    _, note = describe_fit(many(400, 100), model(sizes=(256.0,)))
    assert note == (
        "note: boxes without such an anchor are hard to learn: model.anchors.sizes=[64] "
        "model.anchors.aspect_ratios=[1] cover 100.0%"
    )


def test_where_the_cells_are_too_far_apart_larger_images_are_named() -> None:
    _, note = describe_fit(many(400, 32), model(sizes=(23.0,)))
    assert "note: boxes without such an anchor" in note
    assert "larger images more, up to" in note
    side = int(note.split("model.input.short_side=")[1].split()[0])
    assert side > 300
    at_side = boxes_in_training(many(400, 32), InputConfig(short_side=side, max_side=side * 5 // 3))
    assert reachable(at_side, style="detectron2").on_grid >= ENOUGH


def test_anchors_that_cross_the_border_do_not_count_where_they_are_not_trained() -> None:
    boxes = [(row, 0, 0, 90, 90) for row in range(10)]  # 9/10 of the image, in a corner
    annotations = annotated([(100, 100)] * 10, boxes)
    given = model(sizes=(310.0,), max_side=500)
    (line,) = describe_fit(annotations, given)
    assert "a cell; 100.0% of 10 boxes have" in line
    inside = given.model_copy(
        update={"rpn": given.rpn.model_copy(update={"train_anchors": "inside"})}
    )
    line, *_ = describe_fit(annotations, inside)
    assert "a cell; 0.0% of 10 boxes have" in line


def test_a_pyramid_covers_each_box_from_the_level_of_its_size() -> None:
    """Squares on the cells of their own level; one between the cells of p2, one of no level."""
    sides = (32, 64, 128, 256, 512)
    boxes = [
        [64 * 8 - side / 2, 64 * 8 - side / 2, 64 * 8 + side / 2, 64 * 8 + side / 2]
        for side in sides
    ]
    boxes += [[2.0, 2.0, 34.0, 34.0], [100.0, 100.0, 108.0, 108.0]]
    sizes = np.full((len(boxes), 2), 1024)
    scaled = ScaledBoxes(np.array(boxes), -(-sizes // 16), sizes)
    config = AnchorConfig(sizes=sides, aspect_ratios=(1.0,), style="detectron2")
    fit = fit_of(scaled, config, pyramid=True)
    assert fit == AnchorFit(7, 6 / 7, 6 / 7)
    swapped = AnchorConfig(sizes=sides[::-1], aspect_ratios=(1.0,), style="detectron2")
    assert fit_of(scaled, swapped, pyramid=True) == AnchorFit(7, 5 / 7, 6 / 7)  # 32 px on p6
    moved = ScaledBoxes(np.array([[32.0, 0, 32 + 64, 64.0]]), -(-sizes[:1] // 16), sizes[:1])
    coarse = AnchorConfig(sizes=(8, 9, 10, 11, 64), aspect_ratios=(1.0,), style="detectron2")
    # of p6 the cells are 64 px apart, and the box lies between two: IoU 32 / 96
    assert fit_of(moved, coarse, pyramid=True) == AnchorFit(1, 0.0, 1.0)
    assert fit_of(scaled.sample(0), config, pyramid=True) == AnchorFit(0, 1.0, 1.0)
