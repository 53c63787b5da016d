"""Views of images: boxes come back in the pixels of the files, the best of all views is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detres.detection.annotations import Annotations
from detres.detection.localisation.build import build_class_rpn, read_localisation
from detres.detection.localisation.localise import (
    LoaderSettings,
    Member,
    Views,
    best_region,
    how,
    localise,
    own_labels,
    propose,
)
from detres.detection.models.class_rpn import ClassRPN
from detres.detection.structures import Detections, ImageBatch
from detres.images.decode import read_image
from detres.images.resize import warped_region
from tests.detection.configs import box
from tests.detection.localisation.parts import config_of, noise
from tests.detection.models.test_class_rpn import make_model
from tests.detection.models.test_rcnn import make_rcnn
from tests.helpers import write_coco

CPU = torch.device("cpu")
SIZES = [(128, 192), (128, 128), (96, 200)]


@pytest.fixture
def truth(tmp_path: Path) -> Annotations:
    objects = [{**box(n, category_id=(3, 7, 90)[n - 1]), "id": n} for n in (1, 2, 3)]
    write_coco(tmp_path, SIZES, objects)
    for n, (height, width) in enumerate(SIZES, start=1):
        noise(tmp_path / "images" / f"{n}.jpg", height, width, seed=n)
    return read_localisation(config_of(tmp_path).data, "val")


class Fixed(ClassRPN):
    """Finds the lower right quarter of what it is shown, for class k with score k / 10 less a
    hundredth of its height.
    """

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.seen: list[tuple[int, int]] = []

    def forward(self, images: ImageBatch, targets: None = None, labels=None):  # noqa: ARG002
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen += images.sizes
        return [
            [
                Detections(
                    torch.tensor([[w / 2, h / 2, w, h], [0.0, 0.0, 1.0, 1.0]]),
                    torch.tensor([label / 10 - h / 1000, 0.0]),
                    label.expand(2),
                )
                for label in row
            ]
            for row, (h, w) in zip(labels, images.sizes, strict=True)
        ]


def test_boxes_of_whole_images_are_in_the_pixels_of_the_files(truth: Annotations) -> None:
    model, config = Fixed().train(), config_of(Path("."), eval={"batch_size": 2}).eval
    found = localise(
        [Member(model, Views((64,), None, 90))], truth, own_labels(truth), config, device=CPU
    )
    expected = [[w / 2, h / 2, w, h] for h, w in SIZES]
    np.testing.assert_allclose(found.boxes[:, 0], expected, rtol=1e-5)
    assert found.labels.tolist() == [[1], [2], [3]]
    assert model.training  # as it was
    assert model.seen == [(60, 90), (64, 64), (43, 90)]  # the long side has a cap


def test_boxes_of_a_centre_crop_are_in_the_pixels_of_the_files(truth: Annotations) -> None:
    model, config = Fixed(), config_of(Path("."), eval={"batch_size": 3}).eval
    found = localise(
        [Member(model, Views((64,), 32, 90))], truth, own_labels(truth), config, device=CPU
    )
    assert model.seen == [(32, 32)] * 3
    # the first is seen as 64 x 96: of it columns 32..64 and rows 16..48, and of that the corner
    np.testing.assert_allclose(found.boxes[0, 0], [48 * 2, 32 * 2, 64 * 2, 48 * 2])
    np.testing.assert_allclose(found.boxes[1, 0], [32 * 2, 32 * 2, 48 * 2, 48 * 2])


def test_a_crop_larger_than_the_image_is_the_image(truth: Annotations) -> None:
    model, config = Fixed(), config_of(Path(".")).eval
    localise([Member(model, Views((40,), 64, 90))], truth, own_labels(truth), config, device=CPU)
    assert model.seen == [(40, 60), (40, 40), (40, 64)]


def test_the_best_of_all_views_is_taken_for_each_class(truth: Annotations) -> None:
    labels = np.array([[1, 3], [2, 2], [3, 1]])
    loader = LoaderSettings(Views((96, 64), None, 300), 1, 0)
    found = propose(Fixed(), truth, labels, loader, device=CPU)
    for n, (of_image, row) in enumerate(zip(found, labels.tolist(), strict=True)):
        for (boxes, scores), label in zip(of_image, row, strict=True):
            assert len(scores) == 2  # as many as one view gives, the best of both
            assert scores[0] == pytest.approx(label / 10 - 0.064)  # of 64 px, which scores higher
            np.testing.assert_allclose(
                boxes[0], [SIZES[n][1] / 2, SIZES[n][0] / 2, *SIZES[n][::-1]]
            )
    assert [len(scores) for _, scores in propose(
        Fixed(), truth, labels, loader, device=CPU, limit=1
    )[0]] == [1, 1]  # fmt: skip


class Nothing(Fixed):
    """Finds nothing."""

    def forward(self, images: ImageBatch, targets: None = None, labels=None):  # noqa: ARG002
        none = Detections(torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        return [[none] * labels.shape[1] for _ in range(len(images))]


def test_where_nothing_is_proposed_it_is_the_whole_image(truth: Annotations) -> None:
    config = config_of(Path(".")).eval
    found = localise(
        [Member(Nothing(), Views((64,), None, 90))], truth, own_labels(truth), config, device=CPU
    )
    np.testing.assert_allclose(found.boxes[:, 0], [[0, 0, w, h] for h, w in SIZES])


def test_a_model_gives_the_best_box_of_its_own(truth: Annotations) -> None:
    model, config = make_model(), config_of(Path("."), eval={"batch_size": 3}).eval
    views = Views((64,), None, 300)
    found = localise([Member(model, views)], truth, own_labels(truth), config, device=CPU)
    one_by_one = config_of(Path("."), eval={"batch_size": 1}).eval
    again = localise([Member(model, views)], truth, own_labels(truth), one_by_one, device=CPU)
    np.testing.assert_allclose(found.boxes, again.boxes, atol=1e-2)
    for n, (height, width) in enumerate(SIZES):
        assert (found.boxes[n] >= 0).all()
        assert found.boxes[n, 0, 2] <= width + 1e-3
        assert found.boxes[n, 0, 3] <= height + 1e-3


def test_rcnn_takes_the_region_it_scores_highest_and_moves_it(truth: Annotations) -> None:
    model = make_rcnn()
    image = read_image(truth.image_files[0])
    proposals = np.array([[0, 0, 60, 60], [20, 30, 90, 110.5], [100, 10, 190, 120]], np.float32)
    with torch.no_grad():
        torch.nn.init.normal_(model.bbox_pred.weight, std=0.3)
    found = best_region([model], image, proposals, 2, 2, CPU)
    logits, boxes = [], []
    for each in proposals:
        crop, region = warped_region(image, each, 64)
        batch = ImageBatch(
            torch.from_numpy(crop).permute(2, 0, 1)[None], ((64, 64),), ((64, 64),), (0,)
        )
        with torch.no_grad():
            logit, deltas = model(batch, labels=torch.tensor([2]))
        logits.append(logit.item())
        boxes.append(model.box_coder.decode(torch.tensor([region], dtype=torch.float32), deltas)[0])
    expected = boxes[int(np.argmax(logits))].numpy()
    expected[0::2], expected[1::2] = expected[0::2].clip(0, 192), expected[1::2].clip(0, 128)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found.tolist() not in proposals.tolist()


def test_rcnn_localises_on_the_proposals_of_its_rpn(truth: Annotations) -> None:
    model, config = make_rcnn(), config_of(Path(".")).eval
    views, labels = Views((64,), None, 300), own_labels(truth)
    found = localise([Member(model, views)], truth, labels, config, device=CPU)
    loader = LoaderSettings(views, 1, 0)
    proposals = propose(model.proposer, truth, labels, loader, device=CPU)
    for n, of_image in enumerate(proposals):
        assert len(of_image[0][0]) == 5
        image = read_image(truth.image_files[n])
        expected = best_region([model], image, of_image[0][0], n + 1, 64, CPU)
        np.testing.assert_allclose(found.boxes[n, 0], expected)


def test_the_protocol_says_how() -> None:
    config = config_of(Path("."))
    rpn = build_class_rpn(config.model, 3)
    center, dense = Views.of(config.eval, 64), Views.of(
        config_of(Path("."), eval={"views": "dense"}).eval, 64
    )  # fmt: skip
    assert how([Member(rpn, center)]) == "per-class RPN, centre crop, 64 px of short side 64 px"
    assert how([Member(rpn, dense)]) == "per-class RPN, whole images of short side 64, 96 px"
    assert how([Member(make_rcnn(), dense)]).startswith("R-CNN on a per-class RPN, whole")


def test_of_several_rpns_the_highest_score_counts(truth: Annotations) -> None:
    config, labels = config_of(Path(".")).eval, own_labels(truth)
    corner, small = (
        Member(Fixed(), Views((32,), 32, 90)),
        Member(Fixed(), Views((64,), None, 90)),
    )  # of 32 px, which scores higher, and of 60, 64 and 43 px
    alone, other = (
        localise([member], truth, labels, config, device=CPU) for member in (corner, small)
    )
    assert not np.allclose(alone.boxes, other.boxes)
    for members in ([corner, small], [small, corner]):
        both = localise(members, truth, labels, config, device=CPU)
        assert np.array_equal(both.boxes, alone.boxes)
    assert how([corner, small]).startswith("ensemble of 2: per-class RPN, centre crop, 32 px")
    assert how([small, small]) == f"ensemble of 2: {small}"


def test_rcnns_share_their_proposals_and_their_logits_and_boxes_are_averaged(
    truth: Annotations,
) -> None:
    image = read_image(truth.image_files[0])
    proposals = np.array([[0, 0, 60, 60], [20, 30, 90, 110.5], [100, 10, 190, 120]], np.float32)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(make_rcnn())
        torch.nn.init.normal_(models[-1].bbox_pred.weight, std=0.3)
    alone = []
    for model in models:
        boxes = [best_region([model], image, each[None], 2, 4, CPU) for each in proposals]
        batch = [warped_region(image, each, 64)[0] for each in proposals]
        pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        with torch.no_grad():
            sizes = ((64, 64),) * 3
            logits, _ = model(
                ImageBatch(pixels, sizes, sizes, (0, 1, 2)), labels=torch.full((3,), 2)
            )
        alone.append((logits.numpy(), np.stack(boxes)))
    best = int((alone[0][0] + alone[1][0]).argmax())
    found = best_region(models, image, proposals, 2, 2, CPU)
    np.testing.assert_allclose(found, (alone[0][1] + alone[1][1])[best] / 2, atol=1e-3)

    config, views, labels = config_of(Path(".")).eval, Views((64,), None, 300), own_labels(truth)
    members = [Member(model, views) for model in models]
    both = localise(members, truth, labels, config, device=CPU)
    loader = LoaderSettings(views, 1, 0)
    for n in range(len(truth)):
        of_each = [
            propose(model.proposer, truth, labels, loader, device=CPU)[n][0] for model in models
        ]
        union = np.concatenate([boxes for boxes, _ in of_each])
        image = read_image(truth.image_files[n])
        expected = best_region(models, image, union, n + 1, 64, CPU)
        np.testing.assert_allclose(both.boxes[n, 0], expected, atol=1e-3)
    twice = localise([members[0]] * 2, truth, labels, config, device=CPU)
    once = localise(members[:1], truth, labels, config, device=CPU)
    np.testing.assert_allclose(twice.boxes, once.boxes, atol=1e-3)


def test_an_rpn_and_an_rcnn_are_no_ensemble(truth: Annotations) -> None:
    views, config = Views((64,), None, 300), config_of(Path(".")).eval
    members = [Member(make_rcnn(), views), Member(make_model(), views)]
    for wrong in (members, []):
        with pytest.raises(ValueError, match="of per-class RPNs or of R-CNNs"):
            localise(wrong, truth, own_labels(truth), config, device=CPU)
