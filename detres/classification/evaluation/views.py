"""The views of an image whose class probabilities are averaged: one crop, ten crops, or the network
made fully convolutional at several scales (paper, section 3.4).

Shapes: M images of a set, N of a batch, V views of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detres.classification.evaluation.top_k import ClassProbabilities
from detres.classification.structures import ClassTargets, CropBatch
from detres.eval_mode import evaluating
from detres.images.resize import rounded_size
from detres.waiting import PASS_S, counted


def classify(
    model: nn.Module,
    batches: Iterable[tuple[CropBatch, ClassTargets]],
    device: torch.device,
    views: Callable[[Tensor], Tensor],
    num_classes: int,
) -> ClassProbabilities:
    """Run a classifier in eval mode over all batches; its train/eval state is put back afterwards.

    Raises ValueError for no batches, and in the first one when the classifier has not `num_classes`
    classes.

    views: pixels (N, 3, H, W) uint8 on the device -> probabilities (N, K): one of `center`,
    `ten_crop`, `dense` of this module, applied to the model.
    """
    found, labels = [], []
    with evaluating(model):
        for images, targets in counted(batches, "evaluating", "batches", soon=PASS_S):
            found.append(views(images.pixels.to(device)).float().cpu().numpy())
            if found[0].shape[1] != num_classes:
                raise ValueError(
                    f"the classifier tells {found[0].shape[1]} classes apart, the images are of "
                    f"{num_classes}"
                )
            labels.append(targets.labels.cpu().numpy())
    if not found:
        raise ValueError("no images to classify")
    return ClassProbabilities(np.concatenate(found), np.concatenate(labels))


def center(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that classifies images as they come, (N, 3, H, W) uint8: one view."""
    return lambda pixels: model(CropBatch(pixels, ())).softmax(dim=1)


def ten_crop(model: nn.Module, crop_side: int) -> Callable[[Tensor], Tensor]:
    """Return a function that classifies four corners, centre and their mirrors, `crop_side` px, of
    the full rectangle (N, 3, H, W) uint8, softmax averaged (paper, section 3.4); it raises
    ValueError for images that do not hold the crops.

    The paper does not say whether the corners are those of the rectangle or of its central square;
    fb.resnet.torch takes the rectangle, and so does this.
    """

    def classified(pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        if min(height, width) < crop_side:
            raise ValueError(f"images of {height}x{width} px do not hold crops of {crop_side} px")
        middle = (round((height - crop_side) / 2), round((width - crop_side) / 2))
        corners = [
            (0, 0),
            (0, width - crop_side),
            (height - crop_side, 0),
            (height - crop_side, width - crop_side),
            middle,
        ]
        views = [
            pixels[:, :, top : top + crop_side, left : left + crop_side] for top, left in corners
        ]
        mirrored = [view.flip(3) for view in views]
        return center(model)(torch.cat(views + mirrored)).view(10, len(pixels), -1).mean(dim=0)

    return classified


def dense(model: nn.Module, scales: Sequence[int], cells: int) -> Callable[[Tensor], Tensor]:
    """Return a function that classifies whole images of one size (N, 3, H, W) uint8 and their
    mirrors, scaled to each short side in `scales`, px, by the network made fully convolutional.

    The head is applied to every window of `cells` x `cells` cells of the last map (the whole map
    where that is smaller) and the softmax averaged over windows, mirrors and scales (paper, section
    3.4: {224, 256, 384, 480, 640}). Scaled as training crops are, bilinear without antialiasing.
    """
    net = model.net

    def classified(pixels: Tensor) -> Tensor:
        probabilities = []
        for side in scales:
            size = rounded_size(*pixels.shape[2:], side)
            scaled = F.interpolate(pixels.float(), size, mode="bilinear").round().to(torch.uint8)
            maps = net.forward_features(model.normalizer(torch.cat([scaled, scaled.flip(3)])))
            probabilities += _dense_softmax(net, maps, cells).chunk(2)
        return torch.stack(probabilities).mean(dim=0)

    return classified


def _dense_softmax(net: nn.Module, feature: Tensor, cells: int) -> Tensor:
    """Softmax (N, K) of the head over every window of a map (N, C, H, W), averaged."""
    window = (min(cells, feature.shape[2]), min(cells, feature.shape[3]))
    windows = F.unfold(feature, window)  # (N, C * h * w, L)
    count = windows.shape[2]
    maps = windows.permute(0, 2, 1).reshape(-1, feature.shape[1], *window)
    return net.forward_head(maps).float().softmax(dim=1).view(len(feature), count, -1).mean(dim=1)
