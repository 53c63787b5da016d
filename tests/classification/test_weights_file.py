from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import detres
from backbones import InputSpec, WeightsError, read_metadata, resnet_cifar, save_weights
from detres.class_map import ClassMap
from detres.classification.classifier import Classifier
from detres.classification.config import ClassifierConfig
from detres.classification.model import ClassificationModel
from detres.classification.weights_file import (
    bare_classifier,
    is_classifier,
    load_classifier,
    save_classifier,
)
from detres.config import check
from detres.engine.progress import Progress
from detres.files import CheckpointError, write_safetensors
from detres.runs.saved import OtherWingError
from detres.runs.state import load_state, save_state
from tests.classification.parts import NAMES, config_of, noise, random_model

CLASSES = ClassMap(NAMES, (3, 7, 90))


def saved(path: Path, **sections: dict) -> Path:
    save_classifier(path, random_model(), config_of(**sections), CLASSES, 7)
    return path


def settings_of(**fields: object) -> ClassifierConfig:
    return check(ClassifierConfig, {"network": {"name": "resnet20"}, **fields}, "test")


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model, config = random_model(), config_of(model={"label_smoothing": 0.1})
    spec = InputSpec("bgr", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 40, 32)
    model.take_input(spec)
    path = tmp_path / "run" / "weights.safetensors"
    save_classifier(path, model, config, CLASSES, 7)
    found, read, class_map = load_classifier(path)
    assert (read, class_map) == (config, CLASSES)
    assert found.net.input_spec == spec
    assert found.label_smoothing == 0.1
    assert not found.training
    assert found.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    assert read_metadata(path)["step"] == "7"


def test_the_mean_image_comes_along(tmp_path: Path) -> None:
    model = random_model()
    mean_image = torch.rand(3, 32, 32) * 255
    model.take_input(InputSpec(short_side=32, crop_side=32, mean_image=mean_image))
    path = tmp_path / "weights.safetensors"
    save_classifier(path, model, config_of(), CLASSES, 7)
    found, _, _ = load_classifier(path)
    assert torch.equal(found.normalizer.mean_image, mean_image)


def test_a_file_with_the_earlier_names_loads_as_one_with_the_present_ones(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.safetensors")
    expected, config, _ = load_classifier(path)
    metadata, tensors = read_metadata(path), load_file(path)
    tree = json.loads(metadata["config"])
    tree["data"]["size"] = tree["data"].pop("crop_side")
    tree["data"]["shorter"] = tree["data"].pop("short_sides")
    tree["eval"]["resize"] = tree["eval"].pop("short_side")
    spec = json.loads(metadata["input_spec"])
    spec["resize"], spec["crop"] = spec.pop("short_side"), spec.pop("crop_side")
    earlier = {"config": json.dumps(tree), "input_spec": json.dumps(spec)}
    del metadata["sha256"]
    save_file(tensors, path, {**metadata, **earlier, "format": "backbones-1"})
    found, read, class_map = load_classifier(path)
    assert (read, class_map) == (config, CLASSES)
    assert (read.data.crop_side, read.data.short_sides, read.eval.short_side) == (32, (36, 40), 36)
    assert found.net.input_spec == expected.net.input_spec
    image = noise(40, 40)
    assert Classifier.load(path).predict(image) == Classifier(expected, CLASSES).predict(image)


def test_a_classifiers_file_is_known_by_its_metadata(tmp_path: Path) -> None:
    assert is_classifier(saved(tmp_path / "weights.safetensors"))
    save_weights(resnet_cifar(8), tmp_path / "bare.safetensors")
    assert not is_classifier(tmp_path / "bare.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    assert not is_classifier(tmp_path / "text.safetensors")
    assert not is_classifier(tmp_path / "gone.safetensors")


def test_a_user_gets_the_classifier_that_was_saved(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.safetensors")
    model, _, _ = load_classifier(path)
    image = noise(40, 50)
    expected = Classifier(model, CLASSES).predict(image)
    for found in (Classifier.load(path), detres.load(path), detres.load(str(path))):
        assert isinstance(found, Classifier)
        assert found.class_map == CLASSES
        assert found.predict(image) == expected


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    save_weights(resnet_cifar(20, num_classes=3), tmp_path / "bare.safetensors", {"step": "1"})
    with pytest.raises(
        CheckpointError,
        match=r"bare\.safetensors holds the weights of a network alone, not of a classifier; .*, a "
        r"classifier's weights\.safetensors",
    ):
        load_classifier(tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match=r"no weights file at \S*gone\.safetensors"):
        load_classifier(tmp_path / "gone.safetensors")
    path = saved(tmp_path / "weights.safetensors")
    metadata, tensors = read_metadata(path), load_file(path)
    del tensors["layer1.0.conv1.weight"]
    write_safetensors(path, tensors, metadata)
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight"):
        load_classifier(path)


# ---- weights of another origin ----


def test_bare_weights_bring_their_own_number_of_classes(tmp_path: Path) -> None:
    net = resnet_cifar(20, num_classes=7)
    save_weights(net, tmp_path / "bare.safetensors")
    model = bare_classifier(settings_of(), tmp_path / "bare.safetensors")
    assert model.net.get_classifier().out_features == 7
    assert not model.training
    for name, value in net.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], value)


def test_bare_weights_without_a_classifier_are_refused(tmp_path: Path) -> None:
    tensors = resnet_cifar(20).state_dict()
    save_file(
        {name: value for name, value in tensors.items() if not name.startswith("fc.")},
        tmp_path / "body.safetensors",
    )
    with pytest.raises(WeightsError, match="no classifier that could be evaluated"):
        bare_classifier(settings_of(), tmp_path / "body.safetensors")


@pytest.mark.parametrize("mean", ["pixel", "channel"])
def test_bare_weights_bring_no_mean_of_a_training_set(tmp_path: Path, mean: str) -> None:
    with pytest.raises(ValueError, match=rf"brings no mean .* \(model\.mean is {mean}\)"):
        bare_classifier(settings_of(mean=mean), tmp_path / "bare.safetensors")


# ---- the training state of a run ----


def stopped_run(tmp_path: Path) -> tuple[Path, ClassificationModel]:
    """The state of a run that was stopped, and what it holds."""
    model, config = random_model(), config_of()
    mean_image = torch.rand(3, 32, 32) * 255
    model.take_input(InputSpec(short_side=32, crop_side=32, mean_image=mean_image))
    state = {
        "wing": "classification",
        "config": config.model_dump_json(),
        "classes": CLASSES.to_dict(),
        "num_images": 7,
        "progress": Progress(3).to_dict(),
        "model": model.state_dict(),
        "optimizer": {},
        "input": model.net.input_spec.to_json(),
        "mean_image": mean_image,
    }
    save_state(tmp_path / "last.pt", state)
    return tmp_path / "last.pt", model


def test_a_state_alone_rebuilds_the_classifier(tmp_path: Path) -> None:
    path, model = stopped_run(tmp_path)
    notices: list[str] = []
    found, config, class_map = load_classifier(path, notices.append)
    assert notices == [f"{path} is the state of a run after step 3"]
    assert (config, class_map) == (config_of(), CLASSES)
    assert not found.training
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    assert is_classifier(path)
    assert isinstance(detres.load(path), Classifier)
    assert isinstance(detres.load(tmp_path), Classifier)


def test_a_state_of_another_wing_or_without_its_input_is_refused(tmp_path: Path) -> None:
    path, _ = stopped_run(tmp_path)
    state = load_state(path, ())
    save_state(path, {**state, "wing": "detection"})
    assert not is_classifier(path)
    with pytest.raises(OtherWingError, match="is a run of detection, not of classification"):
        load_classifier(path)
    save_state(path, {**state, "mean_image": torch.ones(3)})
    with pytest.raises(CheckpointError, match="its mean image is no float32"):
        load_classifier(path)
    del state["mean_image"]
    save_state(path, state)
    with pytest.raises(CheckpointError, match="it lacks mean_image"):
        load_classifier(path)
