from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import MixUp

from backbones import resnet_cifar
from detres.classification.model import ClassificationModel
from detres.classification.structures import ClassTargets, CropBatch
from detres.losses import Losses
from tests.backbones.nets import randomise_norms

K = 10


def make_classifier(label_smoothing: float = 0.0, **spec) -> ClassificationModel:
    net = randomise_norms(resnet_cifar(8, num_classes=K))
    net.input_spec = dataclasses.replace(net.input_spec, **spec)
    return ClassificationModel(net=net, label_smoothing=label_smoothing)


def constant_classifier(bias: list[float], label_smoothing: float = 0.0) -> ClassificationModel:
    """Logits that are `bias` whatever the image."""
    net = resnet_cifar(8, num_classes=len(bias))
    nn.init.zeros_(net.fc.weight)
    net.fc.bias.data = torch.tensor(bias)
    return ClassificationModel(net=net, label_smoothing=label_smoothing)


def make_crops(num: int, height: int = 32, width: int = 32) -> CropBatch:
    pixels = torch.randint(0, 256, (num, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return CropBatch(pixels, tuple(range(num)))


def targets_of(*labels: int) -> ClassTargets:
    return ClassTargets(torch.tensor(labels))


def test_means_are_buffers_that_no_checkpoint_holds() -> None:
    model = make_classifier(mean_image=torch.zeros(3, 32, 32))
    assert {name for name, _ in model.normalizer.named_buffers()} == {"mean", "mean_image", "std"}
    assert all(name.startswith("net.") for name in model.state_dict())


# ---- loss and logits ----


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_the_cross_entropy_of_the_normalised_images(
    smoothing: float, training: bool
) -> None:
    model = make_classifier(smoothing, channel_order="bgr").train(training)
    images, targets = make_crops(6), targets_of(0, 9, 3, 3, 5, 1)
    spec = model.net.input_spec
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    logits = model.net((images.pixels.float().flip(1) - mean) / std)
    found = model(images, targets)
    torch.testing.assert_close(
        found.terms()["loss_cls"],
        F.cross_entropy(logits, targets.labels, label_smoothing=smoothing),
    )
    assert found.terms()["top1_error"].item() == pytest.approx(
        (logits.argmax(dim=1) != targets.labels).double().mean().item()
    )


def test_loss_and_error_by_hand() -> None:
    model = constant_classifier([math.log(6), math.log(3), 0.0])  # probabilities 0.6, 0.3, 0.1
    found = model(make_crops(4), targets_of(0, 0, 1, 2))
    assert found.terms()["loss_cls"].item() == pytest.approx(
        -(2 * math.log(0.6) + math.log(0.3) + math.log(0.1)) / 4, rel=1e-5
    )
    assert list(found.terms()) == ["loss_cls", "top1_error"]
    assert found.total() == found.terms()["loss_cls"]  # the error is only watched
    for labels, error in (((0, 0, 1, 2), 0.5), ((0, 0), 0.0), ((1, 2, 1), 1.0)):
        found = model(make_crops(len(labels)), targets_of(*labels))
        assert found.terms()["top1_error"].item() == error


def test_label_smoothing_by_hand() -> None:
    model = constant_classifier([math.log(6), math.log(3), 0.0], label_smoothing=0.3)
    found = model(make_crops(2), targets_of(1, 1)).terms()["loss_cls"].item()
    assert found == pytest.approx(
        -(0.1 * math.log(0.6) + 0.8 * math.log(0.3) + 0.1 * math.log(0.1)), rel=1e-5
    )


def test_mixup_mixes_each_image_with_another_and_the_targets_alike() -> None:
    """alpha is so large that the share is a half; with another image of the batch, its neighbour in
    torchvision's reading.
    """
    model = make_classifier(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model.mixup = MixUp(alpha=1e8, num_classes=K)
    seen = []
    model.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    images, targets = make_crops(4), targets_of(3, 1, 4, 1)
    found = model(images, targets)
    pixels = images.pixels.float()
    torch.testing.assert_close(seen[0], (pixels + pixels.roll(1, 0)) / 2, rtol=1e-3, atol=0.1)
    soft = (F.one_hot(targets.labels, K) + F.one_hot(targets.labels.roll(1), K)).float() / 2
    expected = -(soft * model.net(seen[0]).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(found.terms()["loss_cls"], expected, rtol=1e-3, atol=1e-4)
    assert model(images).shape == (4, K)
    torch.testing.assert_close(seen[-1], pixels)  # scoring is never mixed


def test_mixup_is_seeded_by_torch() -> None:
    model = make_classifier()
    model.mixup = MixUp(alpha=0.2, num_classes=K)
    images, targets = make_crops(4), targets_of(3, 1, 4, 1)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(images, targets).terms()["loss_cls"].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
def test_compiled_training_steps_give_the_loss_and_gradients_of_plain_ones() -> None:
    plain = make_classifier().train()
    compiled = copy.deepcopy(plain)
    compiled.compile_training()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    images, targets = make_crops(8), targets_of(*range(8))
    for _ in range(2):
        losses = [model(images, targets) for model in (plain, compiled)]
        torch.testing.assert_close(
            losses[1].terms()["loss_cls"], losses[0].terms()["loss_cls"], rtol=1e-4, atol=1e-5
        )
        for loss in losses:
            loss.total().backward()
    for (name, one), two in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, one), two in zip(plain.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5, msg=name)


def test_loss_or_logits_by_the_argument_alone() -> None:
    model = make_classifier()
    images, targets = make_crops(3), targets_of(1, 2, 3)
    for mode in (True, False):
        model.train(mode)
        assert isinstance(model(images, targets), Losses)
        logits = model(images)
        assert isinstance(logits, Tensor)
        assert logits.shape == (3, K)
        assert logits.dtype == torch.float32


def test_images_are_scored_one_by_one_in_eval_mode() -> None:
    model = make_classifier().eval()
    images = make_crops(4)
    alone = torch.cat([model(CropBatch(image[None], (0,))) for image in images.pixels])
    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)
    assert model(make_crops(0)).shape == (0, K)


def test_logits_are_float32_under_autocast() -> None:
    model = make_classifier().eval()
    images = make_crops(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = model(images), model(images, targets_of(1, 2))
    assert logits.dtype == loss.terms()["loss_cls"].dtype == torch.float32
    assert not torch.equal(logits, model(images))


def test_every_parameter_gets_a_gradient_of_the_loss_and_the_error_gives_none() -> None:
    model = make_classifier().train()
    found = model(make_crops(4), targets_of(1, 2, 3, 4))
    assert not found.terms()["top1_error"].requires_grad
    found.total().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_loss_starts_near_that_of_guessing() -> None:
    model = ClassificationModel(net=resnet_cifar(20, num_classes=K)).train()
    labels = torch.arange(40) % K
    found = model(make_crops(40), ClassTargets(labels))
    assert found.terms()["loss_cls"].item() == pytest.approx(math.log(K), abs=0.5)
    assert found.terms()["top1_error"].item() > 0.6


def test_a_few_steps_learn_four_images() -> None:
    model = ClassificationModel(net=resnet_cifar(8, num_classes=4)).train()
    images, targets = make_crops(4, 16, 16), targets_of(0, 1, 2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        loss = model(images, targets)
        optimizer.zero_grad()
        loss.total().backward()
        optimizer.step()
    assert loss.terms()["loss_cls"].item() < 0.1
    assert loss.terms()["top1_error"].item() == 0.0


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(IndexError, match="Target 10 is out of bounds"):
        make_classifier()(make_crops(2), targets_of(0, K))
    with pytest.raises(ValueError, match="to match target batch_size"):
        make_classifier()(make_crops(2), targets_of(0))
