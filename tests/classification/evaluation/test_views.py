from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import five_crop
from torchvision.transforms.functional import resize as torchvision_resize

from backbones import resnet_cifar
from detres.classification.evaluation.views import center, classify, dense, ten_crop
from detres.classification.model import ClassificationModel
from detres.classification.structures import ClassTargets, CropBatch
from tests.backbones.nets import randomise_norms

CPU = torch.device("cpu")


def random_pixels(num: int, height: int, width: int) -> Tensor:
    """Noise in blocks of 4x4 px, so that crops and scales differ by more than their averages."""
    coarse = torch.randint(0, 256, (num, 3, -(-height // 4), -(-width // 4)), dtype=torch.uint8)
    return (
        coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :height, :width].contiguous()
    )


@pytest.fixture
def model() -> ClassificationModel:
    """A classifier whose probabilities differ plainly from image to image: logits of noise are
    centred at zero.
    """
    model = ClassificationModel(net=randomise_norms(resnet_cifar(8))).eval()
    nn.init.normal_(model.net.fc.weight, std=5.0)
    nn.init.zeros_(model.net.fc.bias)
    with torch.no_grad():
        model.net.fc.bias.copy_(-model(CropBatch(random_pixels(8, 32, 32), ())).mean(dim=0))
    return model


def probabilities(model: ClassificationModel, pixels: Tensor) -> Tensor:
    """Softmax written out, one image at a time."""
    with torch.inference_mode():
        exponents = (
            torch.cat([model(CropBatch(image[None], (0,))) for image in pixels]).double().exp()
        )
    return (exponents / exponents.sum(dim=1, keepdim=True)).float()


def run(score, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return score(pixels)


# ---- views ----


def test_the_centre_view_is_the_softmax_of_the_logits(model: ClassificationModel) -> None:
    pixels = random_pixels(5, 32, 32)
    expected = probabilities(model, pixels)
    assert (
        expected.std(dim=0).max() > 0.05
    )  # else the tests of the views could not tell images apart
    torch.testing.assert_close(run(center(model), pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(40, 52), (53, 37), (51, 39), (32, 41), (32, 32)])
def test_ten_crops_equal_torchvisions_five_and_their_mirrors_one_by_one(
    model: ClassificationModel, height: int, width: int
) -> None:
    pixels = random_pixels(3, height, width)
    views = torch.stack(
        [
            probabilities(model, view)
            for crop in five_crop(pixels, 32)
            for view in (crop, crop.flip(3))
        ]
    )
    assert len(views) == 10
    found = run(ten_crop(model, 32), pixels)
    torch.testing.assert_close(found, views.mean(dim=0), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)
    # no view could be left out or taken twice unseen
    if height > 32 and width > 32:
        assert all((views.sum(dim=0) - view - 9 * found).abs().max() > 1e-3 for view in views)


def test_ten_crops_do_not_see_a_mirrored_image(model: ClassificationModel) -> None:
    pixels = random_pixels(2, 36, 44)
    torch.testing.assert_close(
        run(ten_crop(model, 32), pixels),
        run(ten_crop(model, 32), pixels.flip(3)),
        rtol=0,
        atol=1e-5,
    )
    assert (probabilities(model, pixels) - probabilities(model, pixels.flip(3))).abs().max() > 1e-3


def test_ten_crops_need_images_that_hold_them(model: ClassificationModel) -> None:
    with pytest.raises(ValueError, match="images of 31x40 px do not hold crops of 32 px"):
        run(ten_crop(model, 32), random_pixels(1, 31, 40))
    with pytest.raises(ValueError, match="images of 40x31 px do not hold crops of 32 px"):
        run(ten_crop(model, 32), random_pixels(1, 40, 31))


def naive_dense(
    model: ClassificationModel, pixels: Tensor, sizes: list[tuple[int, int]], cells: int
) -> Tensor:
    """Every image, scale, mirror and window in loops: the average of a window's cells goes into the
    linear layer.
    """
    net, rows = model.net, []
    for image in pixels:
        of_scales = []
        for size in sizes:
            scaled = torchvision_resize(image[None], list(size), antialias=False)
            for view in (scaled, scaled.flip(3)):
                feature = net.forward_features(model.normalizer(view))[0]
                height, width = feature.shape[1:]
                of_windows = []
                for top in range(max(height - cells, 0) + 1):
                    for left in range(max(width - cells, 0) + 1):
                        average = feature[:, top : top + cells, left : left + cells].mean(
                            dim=(1, 2)
                        )
                        of_windows.append((net.fc.weight @ average + net.fc.bias).softmax(dim=0))
                of_scales.append(torch.stack(of_windows).mean(dim=0))
        rows.append(torch.stack(of_scales).mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("shape", "short_sides", "sizes", "cells"),
    [
        ((40, 52), (32, 48), [(32, 42), (48, 62)], 8),  # 52 * 0.8 = 41.6, 52 * 1.2 = 62.4
        ((53, 40), (36,), [(48, 36)], 8),  # 53 * 0.9 = 47.7
        ((32, 32), (32, 40), [(32, 32), (40, 40)], 3),
        (
            (32, 48),
            (16, 24),
            [(16, 24), (24, 36)],
            8,
        ),  # maps of 4x6 and 6x9: both smaller, and in one direction
    ],
)
def test_dense_equals_loops_over_windows(
    model: ClassificationModel,
    shape: tuple[int, int],
    short_sides: tuple[int, ...],
    sizes: list[tuple[int, int]],
    cells: int,
) -> None:
    pixels = random_pixels(2, *shape)
    with torch.inference_mode():
        expected = naive_dense(model, pixels, sizes, cells)
    assert expected.std(dim=0).max() > 1e-3
    found = run(dense(model, short_sides, cells), pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cells", [8, 100])
def test_dense_with_one_window_is_the_network_on_image_and_mirror(
    model: ClassificationModel, cells: int
) -> None:
    pixels = random_pixels(3, 32, 32)
    expected = (probabilities(model, pixels) + probabilities(model, pixels.flip(3))) / 2
    torch.testing.assert_close(run(dense(model, (32,), cells), pixels), expected, rtol=0, atol=1e-5)


def test_dense_windows_are_views_of_their_own(model: ClassificationModel) -> None:
    pixels = random_pixels(2, 48, 48)
    one, many = (run(dense(model, (48,), cells), pixels) for cells in (12, 4))
    assert (one - many).abs().max() > 1e-3


# ---- a whole set ----


def batches_of(
    pixels: Tensor, labels: list[int], sizes: list[int]
) -> list[tuple[CropBatch, ClassTargets]]:
    ends = np.cumsum(sizes).tolist()
    return [
        (
            CropBatch(pixels[end - size : end], tuple(range(end - size, end))),
            ClassTargets(torch.tensor(labels[end - size : end])),
        )
        for size, end in zip(sizes, ends, strict=True)
    ]


@pytest.mark.parametrize("training", [True, False])
def test_classify_gives_all_probabilities_in_order_in_eval_mode_and_restores_the_mode(
    model: ClassificationModel, training: bool
) -> None:
    pixels, labels = random_pixels(7, 32, 32), [3, 1, 4, 1, 5, 9, 2]
    expected = probabilities(model, pixels).numpy()
    model.train(training)
    state = {name: value.clone() for name, value in model.net.state_dict().items()}
    found = classify(model, batches_of(pixels, labels, [3, 3, 1]), CPU, center(model), 10)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.net.state_dict().items())
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-5)
    assert found.probabilities.dtype == np.float32
    assert found.labels.tolist() == labels
    assert found.labels.dtype == np.int64


def test_classify_takes_images_of_different_sizes_one_by_one(model: ClassificationModel) -> None:
    images = [random_pixels(1, 34, 40), random_pixels(1, 50, 32)]
    batches = [
        (CropBatch(image, (n,)), ClassTargets(torch.tensor([n]))) for n, image in enumerate(images)
    ]
    found = classify(model, batches, CPU, ten_crop(model, 32), 10)
    expected = torch.cat([run(ten_crop(model, 32), image) for image in images]).numpy()
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-6)


def test_classify_says_at_once_that_the_classes_are_others(model: ClassificationModel) -> None:
    seen = []

    def batches() -> Iterator:
        for batch in batches_of(random_pixels(4, 32, 32), [0, 1, 2, 3], [2, 2]):
            seen.append(len(batch[0]))
            yield batch

    with pytest.raises(
        ValueError, match="the classifier tells 10 classes apart, the images are of 3"
    ):
        classify(model, batches(), CPU, center(model), 3)
    assert seen == [2]


def test_classify_needs_batches(model: ClassificationModel) -> None:
    with pytest.raises(ValueError, match="no images to classify"):
        classify(model.train(), [], CPU, center(model), 10)
    assert model.training
