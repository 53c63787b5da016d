"""A trained classifier, as a user calls it: images in, the likeliest classes out."""

from __future__ import annotations

from pathlib import Path

import torch

from detres.class_map import ClassMap
from detres.classification.data.crops import CenterCrop
from detres.classification.model import ClassificationModel
from detres.classification.structures import CropBatch
from detres.classification.weights_file import load_classifier
from detres.config import Notice
from detres.eval_mode import evaluating
from detres.images.decode import as_rgb
from detres.images.given import Pictures, is_one, pictures_of
from detres.runs.weights import find_weights


class Classifier:
    """A model with all that classifying needs beside it; `Classifier.load` makes one of a weights
    file.

    class_map: of its classes. The centre square of an image is classified, of the size that the
    network's input specification says.
    """

    def __init__(self, model: ClassificationModel, class_map: ClassMap) -> None:
        self.model = model
        self.class_map = class_map
        self.device = torch.device("cpu")

    @classmethod
    def load(cls, file_or_name: str | Path, notice: Notice = lambda _: None) -> Classifier:
        """Return the classifier that a run has learned, on the CPU.

        file_or_name: its weights file; the state it was stopped in, last.pt; its folder, or its
        name (runs/NAME, of several the one saved last), of which it is what find_weights chooses.
        notice: called with a line when the file, of an earlier version, carries no checksum, and
        when it is a state. Raises CheckpointError naming the file when it is missing, damaged, or
        no classifier's, and saying what it is; OtherWingError for the state of another wing.
        """
        model, _, class_map = load_classifier(find_weights(file_or_name), notice)
        return cls(model, class_map)

    def __repr__(self) -> str:
        num = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"Classifier({type(self.model.net).__name__} of {num / 1e6:.1f} M parameters, "
            f"{self.class_map!r}, {self.model.net.input_spec.crop_side} px, {self.device})"
        )

    def to(self, device: torch.device | str) -> Classifier:
        """Move the model to `device`, and return this classifier."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def predict(
        self, images: Pictures, *, top: int = 5
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return of one image its `top` likeliest classes, best first, name -> probability; of
        several a list of such.

        images: one is a path, a (H, W, 3) uint8 RGB array or a picture of Pillow; several are a
        list of such, a folder, a text file with a path a line, or an array (N, H, W, 3). EXIF
        orientation is honoured. No images: an empty list. The model's train/eval state is left as
        it was.

        Raises ImageReadError naming a file that cannot be read, ValueError for an array of another
        shape or dtype and for a folder without images.
        """
        spec = self.model.net.input_spec
        crop = CenterCrop(short_side=spec.short_side, crop_side=spec.crop_side)
        likeliest = []
        with evaluating(self.model):
            for number, image in enumerate(pictures_of(images)):
                square = torch.from_numpy(crop(as_rgb(image, f"image {number}"), 0))
                pixels = square.permute(2, 0, 1)[None].to(self.device)  # (S, S, 3) -> (1, 3, S, S)
                logits = self.model(CropBatch(pixels, (number,)))[0].cpu()  # (1, K) -> (K,)
                probabilities = logits.softmax(dim=0)
                best, indices = probabilities.topk(min(top, len(self.class_map)))
                names = [self.class_map.name_of(index) for index in indices.tolist()]
                likeliest.append(dict(zip(names, best.tolist(), strict=True)))
        return likeliest[0] if is_one(images) else likeliest
