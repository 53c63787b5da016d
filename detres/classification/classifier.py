"""A trained classifier, as a user calls it: images in, the likeliest classes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detres.class_map import ClassMap
from detres.classification.data.crops import CenterCrop
from detres.classification.model import ClassificationModel
from detres.classification.structures import CropBatch
from detres.eval_mode import evaluating
from detres.images.decode import Picture, as_rgb, one_or_more


class Classifier:
    """A model with all that classifying needs beside it; `detres.load` makes one of a weights file.

    class_map: of its classes. The centre square of an image is classified, of the size that the
    network's input specification says.
    """

    def __init__(self, model: ClassificationModel, class_map: ClassMap) -> None:
        self.model = model
        self.class_map = class_map
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Classifier:
        """Move the model to `device`, and return this classifier."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def predict(
        self, images: Picture | Sequence[Picture], *, top: int = 5
    ) -> list[dict[str, float]]:
        """Return for each image its `top` likeliest classes, best first: name -> probability.

        images: one or more, each a (H, W, 3) uint8 RGB array or a path (EXIF orientation is
        honoured). No images: an empty list. The model's train/eval state is left as it was.

        Raises ImageReadError naming a file that cannot be read, ValueError for an array of another
        shape or dtype.
        """
        images = one_or_more(images)
        spec = self.model.net.input_spec
        crop = CenterCrop(short_side=spec.short_side, crop_side=spec.crop_side)
        likeliest = []
        with evaluating(self.model):
            for number, image in enumerate(images):
                square = torch.from_numpy(crop(as_rgb(image, f"image {number}"), 0))
                pixels = square.permute(2, 0, 1)[None].to(self.device)  # (S, S, 3) -> (1, 3, S, S)
                logits = self.model(CropBatch(pixels, (number,)))[0].cpu()  # (1, K) -> (K,)
                probabilities = logits.softmax(dim=0)
                best, indices = probabilities.topk(min(top, len(self.class_map)))
                names = [self.class_map.name_of(index) for index in indices.tolist()]
                likeliest.append(dict(zip(names, best.tolist(), strict=True)))
        return likeliest
