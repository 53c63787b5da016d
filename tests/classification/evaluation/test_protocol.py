from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detres.class_map import ClassMap
from detres.classification.data.image_folder import read_image_folder
from detres.classification.evaluation.protocol import (
    class_probabilities,
    evaluate_classifier,
    protocol_of,
)
from detres.classification.evaluation.top_k import top_k_errors
from detres.classification.evaluation.views import dense, ten_crop
from detres.classification.model import ClassificationModel
from detres.images.decode import ImageReadError
from detres.images.source import ImageArrays, ImageFiles
from tests.classification.parts import (
    NAMES,
    config_of,
    constant_model,
    noise,
    random_model,
    write_folder,
)

CPU = torch.device("cpu")
IN_MEMORY = {"format": "folder", "in_memory": True}


def softmax_of(model: ClassificationModel, square: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = model.eval().net(model.net.input_spec.normalize(pixels))[0].double()
    return (logits.exp() / logits.exp().sum()).numpy()


def arrays(number: int, side: int = 32) -> ImageArrays:
    pixels = np.stack([noise(side, side, seed) for seed in range(number)])
    return ImageArrays("arrays", ClassMap.of_names(NAMES), pixels, np.arange(number) % 3)


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    return read_image_folder(write_folder(tmp_path, size=(36, 44)) / "val")


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (
            None,
            {},
            "centre crop, 32 px of shorter side 36 px, bilinear without antialiasing",
        ),
        (
            None,
            {"views": "ten_crop"},
            "10 crops (corners, centre, mirrors), 32 px of shorter side 36 px, bilinear without "
            "antialiasing",
        ),
        (
            None,
            {"views": "dense", "scales": [32, 40]},
            "fully convolutional, shorter sides [32, 40] px and mirrors, bilinear without "
            "antialiasing",
        ),
        (IN_MEMORY, {}, "whole images as they are"),
        (
            IN_MEMORY,
            {"views": "dense", "scales": [32]},
            "fully convolutional, shorter sides [32] px and mirrors, bilinear without antialiasing",
        ),
    ],
)
def test_the_protocol_in_words(data: dict | None, settings: dict, words: str) -> None:
    assert protocol_of(config_of(data=data, eval=settings)) == words


def test_files_are_classified_by_their_centre_crops(files: ImageFiles) -> None:
    model = random_model()
    found = class_probabilities(config_of(), model, files, CPU)
    expected = [softmax_of(model, np.asarray(Image.open(f))[2:34, 6:38]) for f in files.files]
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-5)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_files_are_classified_by_ten_crops_or_densely_one_by_one(files: ImageFiles) -> None:
    model = random_model().eval()
    images = [torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1)[None] for f in files.files]
    for settings, views in (
        ({"views": "ten_crop"}, ten_crop(model, 32)),
        ({"views": "dense", "scales": [36, 40]}, dense(model, (36, 40), 8)),  # 32 px / stride 4
    ):
        found = class_probabilities(config_of(eval=settings), model, files, CPU)
        with torch.inference_mode():
            expected = torch.cat([views(image) for image in images]).numpy()
        np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-5)


def test_arrays_are_classified_as_they_are_or_densely_by_their_own_size() -> None:
    model, images = random_model().eval(), arrays(5, side=24)
    found = class_probabilities(config_of(data=IN_MEMORY), model, images, CPU)
    expected = [softmax_of(model, image) for image in images.pixels]
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-5)
    config = config_of(data=IN_MEMORY, eval={"views": "dense", "scales": [32]})
    found = class_probabilities(config, model, images, CPU)
    with torch.inference_mode():
        pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2)
        expected = dense(model, (32,), 6)(pixels).numpy()  # 24 px / stride 4
    np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-5)


def test_the_errors_are_those_of_the_probabilities() -> None:
    result = evaluate_classifier(config_of(data=IN_MEMORY), constant_model(), arrays(5), CPU)
    assert (result.num_images, result.protocol) == (5, "whole images as they are")
    assert result.per_class == {"cat": 0.0, "dog": 0.0, "owl": 1.0}  # owl is always the likeliest
    assert result.top1_error == pytest.approx(4 / 5)
    assert result.loss == pytest.approx(-(2 * np.log(0.3) + 2 * np.log(0.1) + np.log(0.6)) / 5)
    model, images, config = random_model(), arrays(7), config_of(data=IN_MEMORY)
    found = class_probabilities(config, model, images, CPU)
    expected = top_k_errors(found, NAMES, protocol_of(config))
    assert evaluate_classifier(config, model, images, CPU) == expected


def test_no_images_other_classes_and_damaged_files_are_refused(files: ImageFiles) -> None:
    config, few = config_of(data=IN_MEMORY), arrays(1)
    none = ImageArrays("none", few.class_map, few.pixels[:0], few.labels[:0])
    with pytest.raises(ValueError, match="no images to classify"):
        class_probabilities(config, random_model(), none, CPU)
    with pytest.raises(ValueError, match="tells 4 classes apart, the images are of 3"):
        class_probabilities(config, random_model(4), arrays(2), CPU)
    Path(files.files[3]).write_bytes(b"")
    with pytest.raises(ImageReadError, match=r"dog/1\.png"):
        class_probabilities(config_of(), random_model(), files, CPU)
