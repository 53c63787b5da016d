from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detres.class_map import ClassMap
from detres.classification.classifier import Classifier
from detres.images.decode import ImageReadError
from tests.classification.parts import NAMES, constant_model, noise, random_model

CLASSES = ClassMap.of_names(NAMES)


def by_hand(classifier: Classifier, square: np.ndarray) -> dict[str, float]:
    """Name -> probability of a (32, 32, 3) image, best first, softmax written out."""
    model = classifier.model.eval()
    pixels = torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        exponents = model.net(model.net.input_spec.normalize(pixels))[0].double().exp()
    shares = (exponents / exponents.sum()).tolist()
    return dict(sorted(zip(NAMES, shares, strict=True), key=lambda pair: -pair[1]))


def assert_likeliest(found: dict[str, float], expected: dict[str, float]) -> None:
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_likeliest_classes_come_first_by_hand() -> None:
    classifier = Classifier(constant_model(), CLASSES)
    image = noise(40, 50)
    found = classifier.predict(image)
    assert_likeliest(found, {"owl": 0.6, "cat": 0.3, "dog": 0.1})
    assert list(classifier.predict(image, top=1)) == ["owl"]
    assert list(classifier.predict(image, top=2)) == ["owl", "cat"]
    assert list(classifier.predict(image, top=4)) == ["owl", "cat", "dog"]


def test_the_centre_square_of_the_networks_own_size_is_classified() -> None:
    classifier = Classifier(random_model(), CLASSES)
    image = noise(32, 44)
    found = classifier.predict(image)
    assert_likeliest(found, by_hand(classifier, image[:, 6:38]))
    aside = by_hand(classifier, image[:, :32])
    assert max(abs(found[name] - aside[name]) for name in NAMES) > 1e-3


def test_a_path_an_array_and_many_of_both(tmp_path: Path) -> None:
    classifier = Classifier(random_model(), CLASSES)
    images = [noise(32, 32, seed) for seed in range(3)]
    expected = [by_hand(classifier, image) for image in images]
    path = tmp_path / "a.png"
    Image.fromarray(images[0]).save(path)
    for given in (images[0], path, str(path), Image.fromarray(images[0])):
        assert_likeliest(classifier.predict(given), expected[0])
    for given in ([path], (images[0],), images[0][None], tmp_path, iter([str(path)])):
        (found,) = classifier.predict(given)
        assert_likeliest(found, expected[0])
    for several in ([path, *images[1:]], [str(path), *images[1:]], np.stack(images)):
        for found, wanted in zip(classifier.predict(several), expected, strict=True):
            assert_likeliest(found, wanted)


def test_no_images_are_an_empty_list() -> None:
    classifier = Classifier(constant_model(), CLASSES)
    assert classifier.predict([]) == []
    assert classifier.predict(()) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_weights_are_left_as_they_were(training: bool, tmp_path: Path) -> None:
    classifier = Classifier(random_model().train(training), CLASSES)
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    classifier.predict(noise(40, 40))
    with pytest.raises(ImageReadError):
        classifier.predict([noise(40, 40), tmp_path / "gone.png"])
    assert all(module.training == training for module in classifier.model.modules())
    for name, value in classifier.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    classifier = Classifier(constant_model(), CLASSES)
    with pytest.raises(ImageReadError, match=r"gone\.png does not exist"):
        classifier.predict(tmp_path / "gone.png")
    for wrong in (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"image 1 is .*, expected uint8 \(H, W, 3\) RGB"):
            classifier.predict([noise(8, 8), wrong])


def test_it_moves_to_a_device_and_is_itself() -> None:
    classifier = Classifier(constant_model(), CLASSES)
    assert classifier.device == torch.device("cpu")
    assert classifier.to("meta") is classifier
    assert classifier.device == torch.device("meta")
    assert all(p.device.type == "meta" for p in classifier.model.parameters())


def test_its_repr_is_short() -> None:
    assert re.fullmatch(
        r"Classifier\(\w+ of \d+\.\d M parameters, ClassMap\(3: \('cat', 'dog', 'owl'\)\), 32 px, "
        r"cpu\)",
        repr(Classifier(random_model(), CLASSES)),
    )
