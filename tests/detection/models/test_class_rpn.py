"""The per-class RPN: its outputs are those of whole layers, its losses the RPN's, its boxes those
of the class asked for.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detres.config import check
from detres.detection.localisation.build import build_class_rpn
from detres.detection.localisation.config import LocalisationModelConfig
from detres.detection.models.class_rpn import ClassRPN, ClassRPNHead
from detres.detection.structures import ImageBatch
from tests.helpers import make_batch, make_target

K, A = 3, 2
TINY_MODEL = {
    "backbone": {"name": "resnet18", "norm": "group", "freeze_at": 0},
    "input": {"crop_side": 64, "train_short_sides": [64, 80]},
    "anchors": {"sizes": [24, 48], "aspect_ratios": [1.0], "style": "detectron2"},
    "rpn": {"stage": "conv4", "width": 16, "test_post_nms_top_n": 5},
}


def make_head(seed: int = 0) -> ClassRPNHead:
    torch.manual_seed(seed)
    head = ClassRPNHead(in_channels=8, width=6, num_anchors=A, num_classes=K)
    for layer in (head.scores, head.deltas):
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    return head


def whole_outputs(head: ClassRPNHead, feature: Tensor) -> tuple[Tensor, Tensor]:
    """What the layers give as convolutions: logits (N, L, K) and deltas (N, L, K, 4)."""
    hidden = F.relu(head.conv(feature))
    num = len(feature)
    logits = head.scores(hidden).permute(0, 2, 3, 1).reshape(num, -1, K)
    deltas = head.deltas(hidden).permute(0, 2, 3, 1).reshape(num, -1, K, 4)
    return logits, deltas


def test_outputs_are_those_of_the_convolutions_in_the_channels_of_the_class() -> None:
    head, feature = make_head(), torch.randn(4, 8, 5, 3)
    all_logits, all_deltas = whole_outputs(head, feature)
    labels = torch.tensor([3, 1, 2, 1])
    logits, deltas = head.of_classes(head.hidden(feature), labels)
    assert logits.shape == (4, 5 * 3 * A)
    assert deltas.shape == (4, 5 * 3 * A, 4)
    for n, label in enumerate(labels.tolist()):
        torch.testing.assert_close(logits[n], all_logits[n, :, label - 1])
        torch.testing.assert_close(deltas[n], all_deltas[n, :, label - 1])


def test_only_the_outputs_of_the_class_learn() -> None:
    head = make_head()
    logits, deltas = head.of_classes(head.hidden(torch.randn(1, 8, 4, 4)), torch.tensor([2]))
    (logits.sum() + deltas.sum()).backward()
    of_class = head.scores.weight.grad.view(A, K, -1).abs().sum(dim=(0, 2)) > 0
    assert of_class.tolist() == [False, True, False]
    of_class = head.deltas.bias.grad.view(A, K, 4).abs().sum(dim=(0, 2)) > 0
    assert of_class.tolist() == [False, True, False]


def make_model(seed: int = 0, **rpn: object) -> ClassRPN:
    torch.manual_seed(seed)
    tree = {**TINY_MODEL, "rpn": {**TINY_MODEL["rpn"], **rpn}}
    model = build_class_rpn(check(LocalisationModelConfig, tree, "test"), K)
    for layer in (model.rpn.head.scores, model.rpn.head.deltas):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model.eval()


def test_the_paper_samples_eight_anchors_half_of_them_positive() -> None:
    sampler = make_model().rpn.sampler
    assert (sampler.batch_size, sampler.positive_fraction) == (8, 0.5)


def test_losses_are_the_rpns_over_the_outputs_of_each_images_class() -> None:
    model, images = make_model(batch_size=10_000), make_batch([(64, 96), (64, 64)])
    targets = [
        make_target([[5, 5, 30, 30], [40, 8, 90, 60]], [2, 2]),
        make_target([[10, 20, 60, 60]], [3]),
    ]
    losses = model(images, targets).terms()
    feature, hidden = model.features(images)
    all_logits = model.rpn.head.scores(hidden).permute(0, 2, 3, 1)
    logits = all_logits.reshape(2, *feature.values.shape[2:], A, K)
    terms, count = torch.zeros(()), 0
    for n, (target, label) in enumerate(zip(targets, (2, 3), strict=True)):
        height, width = feature.sizes[n]
        own = logits[n, :height, :width, :, label - 1].flatten()
        anchors = model.rpn.anchors["conv4"](height, width)
        matched = model.rpn.match(anchors, target.boxes, images.sizes[n])
        for anchor, match in enumerate(matched.tolist()):
            if match != -2:
                sign = 1.0 if match >= 0 else -1.0
                terms, count = terms + F.softplus(-sign * own[anchor]), count + 1
    # all are sampled here: the negatives fill what the positives leave
    torch.testing.assert_close(losses["loss_rpn_cls"], terms / count)
    assert losses["loss_rpn_box"] > 0


def test_an_image_without_an_object_teaches_nothing() -> None:
    model, images = make_model(), make_batch([(64, 64)] * 2)
    one, none = make_target([[10, 20, 60, 60]], [3]), make_target([], [])
    torch.manual_seed(1)
    both = model(images, [none, one]).terms()
    torch.manual_seed(1)
    alone = model(images.select([1]), [one]).terms()
    for name, loss in both.items():
        torch.testing.assert_close(loss, alone[name])
    losses = model(images, [none, none])
    assert losses.total() == 0
    losses.total().backward()  # a batch of such images is a step as any other


def test_boxes_of_a_class_are_the_best_of_its_own_outputs() -> None:
    model, images = make_model(nms_thresh=1.0), make_batch([(64, 96), (48, 64)])
    labels = torch.tensor([[1, 3], [2, 2]])
    with torch.no_grad():
        model.rpn.head.deltas.weight.zero_()  # no box leaves its image, where it would be dropped
        found = model(images, labels=labels)
        feature, hidden = model.features(images)
        all_logits = model.rpn.head.scores(hidden).permute(0, 2, 3, 1)
    logits = all_logits.reshape(2, *feature.values.shape[2:], A, K)
    for n in range(2):
        height, width = feature.sizes[n]
        for guess, label in enumerate(labels[n].tolist()):
            own = logits[n, :height, :width, :, label - 1].flatten()
            each = found[n][guess]
            assert each.labels.tolist() == [label] * 5
            torch.testing.assert_close(each.scores, own.sigmoid().sort(descending=True)[0][:5])
            assert (each.boxes[:, 2] <= images.sizes[n][1]).all()
    torch.testing.assert_close(found[1][0].boxes, found[1][1].boxes)


def test_an_image_does_not_depend_on_its_batch() -> None:
    model, images = make_model(), make_batch([(64, 96), (48, 64)])
    labels = torch.tensor([[1], [2]])
    with torch.no_grad():
        together = model(images, labels=labels)[1][0]
        small = ImageBatch(
            images.pixels[1:, :, :48, :64],
            images.sizes[1:],
            images.original_sizes[1:],
            images.ids[1:],
        )
        alone = model(small, labels=labels[1:])[0][0]
    torch.testing.assert_close(together.boxes, alone.boxes, atol=1e-3, rtol=1e-4)


def test_what_does_not_belong_together_is_refused() -> None:
    model, images = make_model(), make_batch([(64, 64)])
    with pytest.raises(ValueError, match="1 images but targets or labels for none"):
        model(images)
    with pytest.raises(ValueError, match="1 images but targets or labels for 2"):
        model(images, labels=torch.ones((2, 1), dtype=torch.int64))
    mixed = make_target([[10, 20, 60, 60], [0, 0, 9, 9]], [3, 1], image_id=7)
    with pytest.raises(ValueError, match="image 7 has objects of several classes"):
        model(images, [mixed])
