from __future__ import annotations

import copy
import pickle
import re
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detres.config import check
from detres.detection.build import build_detector, build_ensemble
from detres.detection.config import EvalConfig, ModelConfig
from detres.detection.detector import Detector
from detres.detection.inference.results import Results
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


def assert_same(first: list[Results], second: list[Results]) -> None:
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
    assert [each.size for each in found] == [(90, 150), (90, 70)]
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
    with Image.open(path) as pillow:
        for given in (image, path, str(path), pillow):
            alone = detector.predict(given)
            assert isinstance(alone, Results)
            assert_same([alone], expected)
        for given in ([path], [str(path)], (image,), [pillow], image[None], iter([path])):
            assert_same(detector.predict(given), expected)
        assert_same(detector.predict([path, image, pillow]), expected * 3)


def test_a_folder_and_a_list_of_files_are_several_images(whole, tmp_path):
    for name, width in (("b.png", 30), ("a.png", 20)):
        write(tmp_path / name, noise(10, width))
    (tmp_path / "list.txt").write_text("b.png")
    found = whole.predict(tmp_path)
    assert [(each.image, each.size) for each in found] == [
        (tmp_path / "a.png", (10, 20)), (tmp_path / "b.png", (10, 30)),
    ]  # fmt: skip
    listed = whole.predict(str(tmp_path / "list.txt"))
    assert [each.image for each in listed] == [tmp_path / "b.png"]
    assert len(whole.predict([tmp_path, tmp_path / "a.png"])) == 3
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"no image .* in folder .*none"):
        whole.predict(tmp_path / "none")


def test_no_images_are_no_detections(whole):
    for none in ([], (), np.zeros((0, 8, 8, 3), np.uint8)):
        assert whole.predict(none) == []
        assert whole.predict(none, batch_size=4) == []
    assert whole.model.sizes == []


def test_images_that_cannot_be_used_are_named(whole, tmp_path):
    good = noise(20, 20)
    with pytest.raises(ValueError, match=r"image 0 is uint8 \(20, 20, 4\), expected uint8"):
        whole.predict(np.zeros((20, 20, 4), np.uint8))
    with pytest.raises(ValueError, match=r"image 0 is a NoneType, expected a path, an array or"):
        whole.predict(None)
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
    assert [each.names for each in found] == [["cat"], ["dog"], ["owl"]]
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


# ---- tiles ----


class FindsRectangles(nn.Module):
    """Finds every patch of one colour in what it is shown, as far as it is shown it: red ones are
    label 1, green ones 2; notes the sizes of the images and batches.
    """

    def __init__(self, scores: float = 0.9) -> None:
        super().__init__()
        self.sizes, self.batches, self.score = [], [], scores

    def forward(self, images: ImageBatch) -> list[Detections]:
        self.batches.append(len(images))
        self.sizes += images.sizes
        return [
            self.found_in(pixels[:, :height, :width].permute(1, 2, 0).numpy())
            for pixels, (height, width) in zip(images.pixels, images.sizes, strict=True)
        ]

    def found_in(self, image: np.ndarray) -> Detections:
        boxes, labels = [], []
        for label, channel in ((1, 0), (2, 1)):
            mask = (image[:, :, channel] > 128).astype(np.uint8)
            _, _, parts, _ = cv2.connectedComponentsWithStats(mask)
            boxes += [[x, y, x + width, y + height] for x, y, width, height, _ in parts[1:]]
            labels += [label] * (len(parts) - 1)
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.full((len(boxes),), self.score),
            torch.tensor(labels, dtype=torch.int64),
        )


def rectangles() -> Detector:
    return Detector(FindsRectangles(), CLASSES, short_side=64, max_side=128)


RED, GREEN = (255, 0, 0), (0, 255, 0)


def painted(height: int, width: int, *boxes: tuple) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for (x1, y1, x2, y2), color in boxes:
        image[y1:y2, x1:x2] = color
    return image


def boxes_of(found: Results) -> list[tuple]:
    rows = zip(found.boxes.tolist(), found.labels.tolist(), strict=True)
    return sorted((tuple(round(value) for value in box), label) for box, label in rows)


def test_objects_across_seams_come_out_once_whole_and_two_stay_two():
    across, first, second = (70, 20, 130, 50), (60, 60, 88, 90), (92, 60, 150, 90)
    long, small = (10, 100, 290, 120), (85, 130, 95, 140)
    objects = [(across, RED), (first, RED), (second, RED), (long, GREEN), (small, GREEN)]
    image = painted(160, 300, *objects)
    expected = sorted((box, 1 if color == RED else 2) for box, color in objects)
    detector = rectangles()
    alone = detector.predict(image, tile=100, overlap=0.2, whole=False)
    assert boxes_of(alone) == expected
    # at the picture's own resolution: 2 x 4 tiles of 100 px, none resized to 64
    assert detector.model.sizes == [(100, 100)] * 8
    together = rectangles().predict(image, tile=100, overlap=0.2, batch_size=3)
    assert boxes_of(together) == expected


def test_the_whole_picture_is_looked_at_too_unless_told_otherwise():
    detector = rectangles()
    large = painted(200, 300, ((20, 20, 280, 180), RED))
    (found,) = detector.predict(large, tile=100)
    assert found.box == pytest.approx((20, 20, 280, 180), abs=300 / 96)  # a pixel of the resized
    assert detector.model.sizes[0] == (64, 96)
    assert set(detector.model.sizes[1:]) == {(100, 100)}


def test_parts_in_tiles_are_part_of_what_the_whole_picture_shows():
    wide = painted(100, 300, ((110, 20, 290, 80), RED))
    (found,) = rectangles().predict(wide, tile=100)
    assert found.box == pytest.approx((110, 20, 290, 80), abs=300 / 128)
    tall = np.ascontiguousarray(wide.swapaxes(0, 1))
    (found,) = rectangles().predict(tall, tile=100)
    assert found.box == pytest.approx((20, 110, 80, 290), abs=300 / 128)


def test_a_batch_has_an_image_at_least(whole):
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {wrong}, expected 1 or more"):
            whole.predict(noise(8, 8), batch_size=wrong)


def test_a_picture_no_larger_than_a_tile_is_looked_at_as_without_tiles():
    image = painted(80, 100, ((10, 10, 50, 40), RED))
    detector = rectangles()
    for whole in (True, False):
        found = detector.predict(image, tile=100, whole=whole)
        assert_same([found], [rectangles().predict(image)])
    assert detector.model.sizes == [(64, 80)] * 2


def test_tiles_go_in_batches_and_several_pictures_keep_their_order():
    detector = rectangles()
    images = [painted(100, 260, ((n, 10, n + 20, 40), RED)) for n in (10, 90, 200)]
    found = detector.predict(images, tile=100, batch_size=2, whole=False)
    assert [boxes_of(each) for each in found] == [[((n, 10, n + 20, 40), 1)] for n in (10, 90, 200)]
    assert detector.model.batches == [2, 1] * 3


def test_tiles_that_cannot_be_are_refused():
    for wrong, message in (
        ({"tile": 8}, "a tile of 8 px"),
        ({"tile": 100, "overlap": 1.5}, "tiles overlap by 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            rectangles().predict(painted(10, 10), **wrong)


def test_a_model_of_several_scales_sees_every_tile_at_them_too():
    class SeesScales(FindsRectangles):
        def forward(self, images: ImageBatch) -> list[Detections]:
            assert images.others[(32, 64)].sizes == ((32, 32),) * len(images)
            return super().forward(images)

    detector = Detector(SeesScales(), CLASSES, short_side=64, max_side=128, other_scales=[(32, 64)])
    image = painted(100, 180, ((70, 20, 130, 50), RED))
    found = detector.predict(image, tile=100, whole=False, batch_size=2)
    assert boxes_of(found) == [((70, 20, 130, 50), 1)]


def test_a_huge_picture_takes_no_more_memory_than_its_tiles():
    """20,000 px wide: beside the picture, 12 MB, a batch of tiles and what was found."""
    objects = [((x, 60, x + 40, 100), RED) for x in range(0, 20_000, 100)]
    image = painted(200, 20_000, *objects)
    detector = rectangles()
    tracemalloc.start()
    found = detector.predict(image, tile=200, whole=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert boxes_of(found) == sorted((box, 1) for box, _ in objects)
    assert max(detector.model.batches) == 1
    assert peak < 3_000_000


# ---- what it is called by ----


@pytest.mark.parametrize("carried", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_of_one_that_has_been_used_finds_the_same(detector, carried):
    image = noise(60, 90)
    before = detector.predict([image])
    twin = carried(detector)
    assert_same(before, twin.predict([image]))
    assert_same(before, detector.predict([image]))


def test_its_repr_is_short(detector, whole):
    assert re.fullmatch(
        r"Detector\(FasterRCNN of \d+\.\d M parameters, ClassMap\(3: \('cat', 'dog', 'owl'\)\), 64 "
        r"px, cpu\)",
        repr(detector),
    )
    assert "\n" not in repr(whole)
    assert len(repr(whole)) < 120
    config = check(ModelConfig, TINY, "test")
    for number, networks in ((1, "FasterRCNN"), (2, "FasterRCNN + FasterRCNN")):
        ensemble = build_ensemble([(detector.model, config)] * number, EvalConfig())
        combined = Detector(ensemble, CLASSES, short_side=64, max_side=128)
        assert repr(combined).startswith(f"Detector({networks} of ")
