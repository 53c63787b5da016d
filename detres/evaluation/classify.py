"""Top-1 and top-5 error of a classifier: one crop, ten crops, fully convolutional at several
scales, and ensembles.

Shapes: M images of a set, N of a batch, V views of an image, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from detres.structures import ClassTargets, CropBatch


@dataclass(frozen=True)
class ClassScores:
    """What a classifier says of a whole set: `probabilities` (M, K) float32, and the true `labels`
    (M,) int64.
    """

    probabilities: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ClassResult:
    """Errors as fractions, with the protocol they were measured by.

    top1_error, top5_error: share of images whose class is not the best, not among the best five.
    per_class: class name -> accuracy, None for a class without images. loss: mean cross-entropy in
    nats.
    """

    protocol: str
    top1_error: float
    top5_error: float
    loss: float
    per_class: dict[str, float | None]
    num_images: int

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers for a log; `top1` is the accuracy, which grows as the error falls."""
        return {
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "loss": self.loss,
            "top1": 1 - self.top1_error,
        }

    @property
    def no_better_than_guessing(self) -> bool:
        """Whether guessing would get as many right, within three standard deviations of its luck;
        fewer than 100 images do not tell.
        """
        guess = 1 / len(self.per_class)
        return self.num_images >= 100 and 1 - self.top1_error < guess + 3 * math.sqrt(
            guess * (1 - guess) / self.num_images
        )

    def to_dict(self) -> dict:
        """Return everything as plain values for JSON."""
        return {
            "protocol": self.protocol,
            "num_images": self.num_images,
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "loss": self.loss,
            "per_class": self.per_class,
        }

    def table(self, per_class: bool = False) -> str:
        """Return the numbers as text, top-5 error where there are more classes; per_class: and each
        class's accuracy.
        """
        lines = [
            f"{self.num_images} images, {self.protocol}",
            f" top-1 error {100 * self.top1_error:6.2f} %",
            *([f" top-5 error {100 * self.top5_error:6.2f} %"] if len(self.per_class) > 5 else []),
        ]
        if per_class:
            width = max(map(len, self.per_class))
            shown = {
                name: "n/a" if value is None else f"{100 * value:6.2f} %"
                for name, value in self.per_class.items()
            }
            lines += [
                " accuracy of each class",
                *(f"  {name:<{width}} {value}" for name, value in shown.items()),
            ]
        return "\n".join(lines)


def score_classes(scores: ClassScores, names: Sequence[str], protocol: str) -> ClassResult:
    """Score probabilities; of equal ones the earlier class counts as better. With fewer than five
    classes top-5 error is 0.

    Raises ValueError for no images, labels out of range, or probabilities that are not finite or
    not for len(names) classes.
    """
    probabilities, labels = scores.probabilities, scores.labels
    if len(labels) == 0 or probabilities.shape != (len(labels), len(names)):
        raise ValueError(
            f"scores {probabilities.shape} and {len(labels)} labels for {len(names)} classes do "
            "not belong together"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"labels {labels.min()}..{labels.max()} for {len(names)} classes, expected "
            f"0..{len(names) - 1}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"image {int(np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[0])}: scores are "
            "NaN or infinite"
        )
    order = np.argsort(-probabilities, axis=1, kind="stable")
    right = order == labels[:, None]
    accuracy = [right[labels == label, 0] for label in range(len(names))]
    own = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    return ClassResult(
        protocol=protocol,
        top1_error=1 - float(right[:, :1].any(axis=1).mean()),
        top5_error=1 - float(right[:, :5].any(axis=1).mean()),
        loss=float(-np.log(own).mean()),
        per_class={
            name: float(found.mean()) if len(found) else None
            for name, found in zip(names, accuracy, strict=True)
        },
        num_images=len(labels),
    )


@torch.inference_mode()
def classify(
    model: nn.Module,
    batches: Iterable[tuple[CropBatch, ClassTargets]],
    device: torch.device,
    score: Callable[[Tensor], Tensor],
    num_classes: int,
) -> ClassScores:
    """Run a classifier in eval mode over all batches; its train/eval state is put back afterwards.

    Raises ValueError for no batches, and in the first one when the classifier has not `num_classes`
    classes.

    score: pixels (N, 3, H, W) uint8 on the device -> probabilities (N, K): one of `center`,
    `ten_crop`, `dense` of this module, applied to the model.
    """
    was_training = model.training
    model.eval()
    found, labels = [], []
    try:
        for images, targets in tqdm(
            batches, desc="scoring", unit="batch", leave=False, disable=None
        ):  # on a terminal only
            found.append(score(images.pixels.to(device)).float().cpu().numpy())
            if found[0].shape[1] != num_classes:
                raise ValueError(
                    f"the classifier tells {found[0].shape[1]} classes apart, the images are of "
                    f"{num_classes}"
                )
            labels.append(targets.labels.cpu().numpy())
    finally:
        model.train(was_training)
    if not found:
        raise ValueError("no images to classify")
    return ClassScores(np.concatenate(found), np.concatenate(labels))


def center(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Score the images as they come: one view."""
    return lambda pixels: model(CropBatch(pixels, ())).softmax(dim=1)


def ten_crop(model: nn.Module, crop: int) -> Callable[[Tensor], Tensor]:
    """Score four corners, centre and their mirrors, `crop` px, of the full rectangle, softmax
    averaged (paper, section 3.4).

    The paper does not say whether the corners are those of the rectangle or of its central square;
    fb.resnet.torch takes the rectangle, and so does this.
    """

    def score(pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        if min(height, width) < crop:
            raise ValueError(f"images of {height}x{width} px do not hold crops of {crop} px")
        middle = (round((height - crop) / 2), round((width - crop) / 2))
        corners = [
            (0, 0),
            (0, width - crop),
            (height - crop, 0),
            (height - crop, width - crop),
            middle,
        ]
        views = [pixels[:, :, top : top + crop, left : left + crop] for top, left in corners]
        mirrored = [view.flip(3) for view in views]
        return center(model)(torch.cat(views + mirrored)).view(10, len(pixels), -1).mean(dim=0)

    return score


def dense(model: nn.Module, shorter: Sequence[int], cells: int) -> Callable[[Tensor], Tensor]:
    """Score whole images of one size, scaled to each shorter side in px, by the network made fully
    convolutional, and its mirror.

    The head is applied to every window of `cells` x `cells` cells of the last map (the whole map
    where that is smaller) and the softmax averaged over windows, mirrors and scales (paper, section
    3.4: {224, 256, 384, 480, 640}). Scaled as training crops are, bilinear without antialiasing.
    """
    net = model.net

    def score(pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        probabilities = []
        for side in shorter:
            factor = side / min(height, width)
            size = (round(height * factor), round(width * factor))
            scaled = F.interpolate(pixels.float(), size, mode="bilinear").round().to(torch.uint8)
            maps = net.forward_features(model.normalizer(torch.cat([scaled, scaled.flip(3)])))
            probabilities += _dense_softmax(net, maps, cells).chunk(2)
        return torch.stack(probabilities).mean(dim=0)

    return score


def _dense_softmax(net: nn.Module, feature: Tensor, cells: int) -> Tensor:
    """Softmax (N, K) of the head over every window of a map (N, C, H, W), averaged."""
    window = (min(cells, feature.shape[2]), min(cells, feature.shape[3]))
    windows = F.unfold(feature, window)  # (N, C * h * w, L)
    count = windows.shape[2]
    maps = windows.permute(0, 2, 1).reshape(-1, feature.shape[1], *window)
    return net.forward_head(maps).float().softmax(dim=1).view(len(feature), count, -1).mean(dim=1)


def ensemble(scores: Sequence[ClassScores]) -> ClassScores:
    """Average the probabilities of several classifiers of the same images; raises ValueError when
    their labels differ.
    """
    if any(not np.array_equal(scores[0].labels, other.labels) for other in scores[1:]):
        raise ValueError("the classifiers of an ensemble were run on different images")
    return ClassScores(np.mean([one.probabilities for one in scores], axis=0), scores[0].labels)
