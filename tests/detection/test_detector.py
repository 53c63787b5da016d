from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.inference.detector import Detector, detect_batch
from detres.detection.structures import Detections, ImageBatch
from detres.images.decode import ImageReadError
from tests.detection.configs import TINY
from tests.helpers import CLASSES


class FindsWholeImages(nn.Module):
    """Finds one object in every image, as large as it is in the batch, of label 1, 2 or 3 by its
    id; notes the sizes it was shown and in which mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.sizes, self.modes = [], []

    def forward(self, images: ImageBatch) -> list[Detections]:
        self.sizes.append(images.sizes)
        self.modes.append(self.training)
        return [
            Detections(
                torch.tensor([[0.0, 0.0, width, height]]) + self.bias,
                torch.tensor([0.5]),
                torch.tensor([image_id % 3 + 1]),
            )
            for image_id, (height, width) in zip(images.ids, images.sizes, strict=True)
        ]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    cv2.imwrite(str(path), image[:, :, ::-1])
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_detector(check(ModelConfig, TINY, "test"), len(CLASSES))
    nn.init.normal_(model.roi_head.predictor.cls_score.weight, std=0.5)
    return model


@pytest.fixture
def detector(model) -> Detector:
    return Detector(model.eval(), CLASSES, short_side=64, max_side=128)


@pytest.fixture
def whole() -> Detector:
    return Detector(FindsWholeImages(), CLASSES, short_side=64, max_side=128)


def assert_same(first: list[Detections], second: list[Detections]) -> None:
    assert len(first) == len(second)
    assert all(len(each) for each in first)
    for mine, other in zip(first, second, strict=True):
        assert torch.equal(mine.boxes, other.boxes)
        assert torch.equal(mine.scores, other.scores)
        assert torch.equal(mine.labels, other.labels)


def test_predict_returns_boxes_in_the_pixels_given(model):
    model.train()
    detector = Detector(model, CLASSES, short_side=64, max_side=128)
    image = noise(90, 150)
    found = detector.predict([image, image[:, :70]], batch_size=2)
    assert model.training
    assert len(found) == 2
    assert (found[0].boxes[:, 2] <= 150 + 1e-3).all()
    assert (found[0].boxes[:, 3] <= 90 + 1e-3).all()
    assert detector.predict([]) == []
    with pytest.raises(ValueError, match="image 0 is float32"):
        detector.predict([image.astype(np.float32)])


def test_images_are_resized_and_boxes_scaled_back_by_hand(whole):
    found = whole.predict([noise(90, 150), noise(32, 16), noise(10, 200)], batch_size=3)
    assert whole.model.sizes == [((64, 107), (128, 64), (6, 128))]
    for each, (height, width) in zip(found, [(90, 150), (32, 16), (10, 200)], strict=True):
        assert each.boxes[0].tolist() == pytest.approx([0, 0, width, height])
        assert each.boxes.device.type == "cpu"
        assert not each.boxes.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_left_as_it_was(whole, training):
    whole.model.train(training)
    whole.predict(noise(20, 20))
    assert whole.model.modes == [False]
    assert whole.model.training is training


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 5), (2, 3), (8, 1)])
def test_batches_and_numbers_of_images(whole, batch_size, batches):
    found = whole.predict([noise(64, 64)] * 5, batch_size=batch_size)
    assert len(whole.model.sizes) == batches
    assert [each.labels.item() for each in found] == [1, 2, 3, 1, 2]


def test_one_path_one_array_and_a_list_are_the_same_image(detector, tmp_path):
    image = noise(70, 90)
    path = write(tmp_path / "a.png", image)
    expected = detector.predict([image])
    assert len(expected) == 1
    for given in (image, path, str(path), [path], [str(path)], (image,)):
        assert_same(detector.predict(given), expected)
    assert_same(detector.predict([path, image]), expected * 2)


def test_no_images_are_no_detections(whole):
    for none in ([], (), np.zeros((0, 8, 8, 3), np.uint8)):
        assert whole.predict(none) == []
        assert whole.predict(none, batch_size=4) == []
    assert whole.model.sizes == []


def test_images_that_cannot_be_used_are_named(whole, tmp_path):
    good = noise(20, 20)
    with pytest.raises(ValueError, match=r"image 0 is uint8 \(20, 20, 4\), expected uint8"):
        whole.predict(np.zeros((20, 20, 4), np.uint8))
    with pytest.raises(ValueError, match=r"image 2 is uint8 \(20, 20\)"):
        whole.predict([good, good, good[:, :, 0]])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("text.jpg", "absent.jpg"):
        with pytest.raises(ImageReadError, match=name):
            whole.predict(tmp_path / name)
        with pytest.raises(ImageReadError, match=name):
            whole.predict([good, str(tmp_path / name)])


def test_names_of_detections(whole):
    found = whole.predict([noise(20, 20)] * 3)
    assert [whole.names_of(each) for each in found] == [["cat"], ["dog"], ["owl"]]
    none = Detections(torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert whole.names_of(none) == []
    background = Detections(torch.zeros((1, 4)), torch.zeros(1), torch.tensor([0]))
    with pytest.raises(IndexError, match=r"outside 0\.\.2"):
        whole.names_of(background)


def test_to_moves_the_model_and_returns_the_detector(whole):
    assert whole.device == torch.device("cpu")
    assert whole.to("cpu") is whole
    with pytest.raises(RuntimeError):
        whole.to("no such device")
    moved = whole.to("meta")
    assert moved.device == torch.device("meta")
    assert moved.model.bias.device.type == "meta"


def test_a_batch_is_detected_in_the_pixels_of_the_files():
    model = FindsWholeImages()
    images = ImageBatch(
        torch.zeros((2, 3, 32, 64), dtype=torch.uint8), ((32, 64), (20, 10)), ((64, 256), (5, 5)),
        (0, 1),
    )  # fmt: skip
    first, second = detect_batch(model, images, torch.device("cpu"))
    assert first.boxes.tolist() == [[0, 0, 256, 64]]
    assert second.boxes.tolist() == [[0, 0, 5, 5]]
    assert (first.labels.tolist(), second.labels.tolist()) == ([1], [2])
    assert model.training
