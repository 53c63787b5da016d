from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detres.class_map import ClassMap
from detres.config import check
from detres.detection.annotations import Annotations
from detres.detection.build import build_detector, build_val_set, eval_loader
from detres.detection.config import ModelConfig
from detres.detection.data.proposals import read_proposals, save_proposals
from detres.detection.data.read import read_split
from detres.detection.data.voc import read_voc
from detres.detection.detector import Detector
from detres.detection.evaluation.result_files import to_coco_results
from detres.detection.inference.dataset import detect_dataset, propose_dataset
from detres.detection.inference.fast import fast_copy
from detres.detection.models.faster_rcnn import FastRCNN
from detres.detection.models.rpn import ProposalCounts
from detres.detection.structures import Detections, ImageBatch
from tests.detection.configs import TINY, box, coco_config
from tests.helpers import CLASSES, write_coco

CPU = torch.device("cpu")


class FindsByWidth(nn.Module):
    """Finds as many objects in an image as its original is 10 px wide: each the whole image."""

    def forward(self, images: ImageBatch) -> list[Detections]:
        assert not self.training
        found = []
        for (height, width), (_, original) in zip(images.sizes, images.original_sizes, strict=True):
            num = original // 10
            boxes = torch.tensor([[0.0, 0.0, width, height]]).expand(num, 4)
            found.append(Detections(boxes, torch.linspace(1, 0, num), torch.arange(num) % 3 + 1))
        return found


def batch_of(*rows: tuple) -> tuple[ImageBatch, list]:
    """rows: (image id, (h, w) in the batch, (h, w) of the file)."""
    ids, sizes, originals = zip(*rows, strict=True)
    return ImageBatch(torch.zeros((len(rows), 3, 64, 64), dtype=torch.uint8), sizes, originals,
                      ids), []  # fmt: skip


@pytest.mark.parametrize("ids", [(7, 3, 5), ("c", "a", "b")])
def test_rows_by_hand(ids):
    model = FindsByWidth().train()
    batches = [
        batch_of((ids[0], (40, 64), (10, 20)), (ids[1], (64, 20), (100, 5))),
        batch_of((ids[2], (64, 64), (32, 32))),
    ]
    found = detect_dataset(model, batches, CLASSES, CPU)
    assert model.training
    assert found.class_map == CLASSES
    assert found.image_ids.tolist() == [ids[0]] * 2 + [ids[2]] * 3  # in the second nothing is
    np.testing.assert_allclose(found.boxes, [[0, 0, 20, 10]] * 2 + [[0, 0, 32, 32]] * 3, rtol=1e-6)
    assert found.scores.tolist() == [1, 0, 1, 0.5, 0]
    assert found.labels.tolist() == [1, 2, 1, 2, 3]
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
    assert found.labels.dtype == np.int64


def test_of_a_gap_nothing_is_found():
    """Labels 1, 2, 3, 1, 2, of which 2 is none."""
    classes = ClassMap(("cat", "N/A 2", "owl"), (1, 2, 3))
    batches = [batch_of((7, (40, 64), (10, 50)), (8, (40, 64), (10, 20)))]
    found = detect_dataset(FindsByWidth(), batches, classes, CPU)
    assert found.labels.tolist() == [1, 3, 1, 1]
    assert found.scores.tolist() == [1, 0.5, 0.25, 1]
    assert found.image_ids.tolist() == [7, 7, 7, 8]
    assert found.boxes.shape == (4, 4)


@pytest.mark.parametrize("batches", [[], [batch_of((1, (64, 64), (5, 5)))]])
def test_no_image_and_no_detection(batches):
    found = detect_dataset(FindsByWidth(), batches, CLASSES, CPU)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)


def test_a_data_set_is_detected_as_its_images_one_by_one(tmp_path):
    write_coco(tmp_path, [(50, 60), (64, 40), (90, 120)], [box(n) for n in (1, 2, 3)])
    config = coco_config(tmp_path)
    torch.manual_seed(5)
    model = build_detector(check(ModelConfig, TINY, "test"), len(CLASSES)).eval()
    nn.init.normal_(model.roi_head.predictor.cls_score.weight, std=0.5)
    truth = read_split(config.data, "val")
    loader = eval_loader(build_val_set(config.model, truth), batch_size=1)
    found = detect_dataset(model, loader, CLASSES, CPU)
    detector = Detector(model, CLASSES, short_side=64, max_side=96)
    alone = detector.predict(truth.image_files.tolist())
    assert all(len(each) for each in alone)
    assert found.image_ids.tolist() == [
        n for n, each in zip((1, 2, 3), alone, strict=True) for _ in range(len(each))
    ]
    np.testing.assert_array_equal(found.boxes, torch.cat([each.boxes for each in alone]).numpy())
    np.testing.assert_array_equal(found.scores, torch.cat([each.scores for each in alone]).numpy())
    np.testing.assert_array_equal(found.labels, torch.cat([each.labels for each in alone]).numpy())
    assert truth.rows_of(found).max() == 2


def test_the_batch_and_the_workers_never_change_a_predictions_file(shared_data, tmp_path):
    """Photographs of many sizes and both orientations, a detector that finds something in each."""
    truth = mixed_photographs(shared_data("voc_mini") / "VOCdevkit/VOC2012", tmp_path, 13)
    tree = {
        **TINY,
        "input": {"short_side": 96, "max_side": 160},
        "rpn": {**TINY["rpn"], "test_pre_nms_top_n": 1000, "test_post_nms_top_n": 30},
        "roi": {"pool_size": 7, "score_thresh": 0.2},
    }
    config = check(ModelConfig, tree, "test")
    torch.manual_seed(5)
    model = build_detector(config, len(truth.class_map)).eval()
    nn.init.normal_(model.roi_head.predictor.cls_score.weight, std=0.5)
    nn.init.normal_(model.rpn.head.objectness.weight, std=0.5)
    dataset = build_val_set(config, truth)
    records = {}
    for batch_size, workers in ((1, 0), (1, 2), (3, 0), (8, 0), (8, 2)):
        loader = eval_loader(dataset, batch_size=batch_size, num_workers=workers)
        found = detect_dataset(model, loader, truth.class_map, CPU)
        records[batch_size, workers] = json.loads(json.dumps(to_coco_results(found)))
    expected = records[1, 0]
    assert len({record["image_id"] for record in expected}) == 13
    assert records[1, 2] == expected
    assert records[8, 2] == records[8, 0]
    for each in (records[3, 0], records[8, 0]):
        assert len(each) == len(expected)
        for mine, other in zip(each, expected, strict=True):
            assert mine["image_id"] == other["image_id"]
            assert mine["category_id"] == other["category_id"]
            assert mine["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
            assert mine["score"] == pytest.approx(other["score"], abs=1e-5)


def mixed_photographs(year: Path, root: Path, num: int) -> Annotations:
    """Return `num` images of a folder in VOC layout, of as many sizes as there are in turn."""
    truth = read_voc(year, ("val",))
    sizes = [tuple(size) for size in truth.image_sizes.tolist()]
    turn = [sizes[:n].count(size) for n, size in enumerate(sizes)]
    rows = sorted(range(len(sizes)), key=lambda n: (turn[n], n))[:num]
    chosen = [sizes[n] for n in rows]
    assert len(set(chosen)) >= 5
    assert {height > width for height, width in chosen} == {True, False}
    (root / "ImageSets/Main").mkdir(parents=True)
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).symlink_to(year / folder)
    names = "".join(f"{truth.image_ids[n]}\n" for n in rows)
    (root / "ImageSets/Main/mixed.txt").write_text(names)
    return read_voc(root, ("mixed",))


def test_an_error_of_the_model_is_raised():
    class Broken(nn.Module):
        def forward(self, images: ImageBatch) -> list[Detections]:
            raise RuntimeError(f"broken at {images.ids}")

    with pytest.raises(RuntimeError, match=r"broken at \(1,\)"):
        detect_dataset(Broken(), [batch_of((1, (64, 64), (5, 5)))], CLASSES, CPU)


def opinionated(tmp_path: Path) -> tuple:
    """A detector that finds something, its configuration, and images of several sizes."""
    write_coco(tmp_path, [(50, 60), (64, 40), (90, 121), (37, 53)], [box(n) for n in (1, 2, 3)])
    config = coco_config(tmp_path)
    torch.manual_seed(5)
    model = build_detector(check(ModelConfig, TINY, "test"), len(CLASSES))
    nn.init.normal_(model.roi_head.predictor.cls_score.weight, std=0.5)
    nn.init.normal_(model.rpn.head.objectness.weight, std=0.5)
    nn.init.normal_(model.rpn.head.deltas.weight, std=0.05)
    return model, config, read_split(config.data, "val")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_on_its_own_saved_proposals_a_detector_finds_what_it_finds_bit_for_bit(
    tmp_path, batch_size
):
    model, config, truth = opinionated(tmp_path)
    counts = ProposalCounts(6000, config.model.rpn.test_post_nms_top_n)
    loader = eval_loader(build_val_set(config.model, truth), batch_size=batch_size)
    found = propose_dataset(model, loader, truth, counts, CPU)
    save_proposals(tmp_path / "p.safetensors", found, truth, "the RPN")
    saved, _ = read_proposals(tmp_path / "p.safetensors", truth)
    proposed = eval_loader(
        build_val_set(config.model, truth, proposals=saved), batch_size=batch_size
    )
    own = detect_dataset(model, loader, truth.class_map, CPU)
    assert len(own) > 10
    again = detect_dataset(FastRCNN(model), proposed, truth.class_map, CPU)
    for name in ("image_ids", "boxes", "scores", "labels"):
        assert np.array_equal(getattr(again, name), getattr(own, name)), name


def test_proposals_of_a_data_set_are_those_of_its_images_in_their_own_pixels(tmp_path):
    model, config, truth = opinionated(tmp_path)
    model.train()
    batches = list(eval_loader(build_val_set(config.model, truth), batch_size=1))
    found = propose_dataset(model, batches, truth, ProposalCounts(None, 15), CPU)
    assert model.training
    assert found.image_ids.tolist() == [1, 2, 3, 4]
    assert found.counts.max() == 15
    rewritten = fast_copy(model)
    for row, (images, _) in enumerate(batches):
        with torch.inference_mode():
            ((boxes, logits),) = rewritten.propose(images, ProposalCounts(None, 15))
        (height, width), (own_height, own_width) = images.sizes[0], images.original_sizes[0]
        factor = np.array([own_width / width, own_height / height] * 2)
        rows = found.rows_of(row)
        np.testing.assert_allclose(found.boxes[rows], boxes.double().numpy() * factor, rtol=1e-12)
        assert np.array_equal(found.scores[rows], logits.sigmoid().numpy())
        assert (np.diff(found.scores[rows]) <= 0).all()


def test_no_image_no_proposals(tmp_path):
    model, _, truth = opinionated(tmp_path)
    none = {name: value[:0] for name, value in vars(truth).items() if isinstance(value, np.ndarray)}
    nothing = Annotations(**{**vars(truth), **none, "offsets": np.zeros(1, np.int64)})
    found = propose_dataset(model, [], nothing, ProposalCounts(None, 15), CPU)
    assert (len(found), found.boxes.shape, found.boxes.dtype) == (0, (0, 4), np.float64)
