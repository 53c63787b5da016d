from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backbones.files import DIGEST, read_safetensors, write_safetensors
from detres.classification.weights_file import is_classifier
from detres.detection.localisation.config import LocalisationConfig
from detres.detection.localisation.weights_file import (
    is_localiser,
    load_localiser,
    load_proposer,
    save_localiser,
)
from detres.detection.models.rcnn import RCNN
from detres.detection.weights_file import is_detector, load_detector
from detres.files import CheckpointError
from tests.detection.localisation.parts import config_of
from tests.detection.models.test_class_rpn import make_model
from tests.detection.models.test_rcnn import MODEL, make_rcnn
from tests.helpers import CLASSES, make_batch


def rcnn_config() -> LocalisationConfig:
    tree = config_of(Path(".")).model_dump()
    return LocalisationConfig(**{**tree, "model": MODEL})


def test_a_class_rpn_comes_back(tmp_path: Path) -> None:
    model, config, path = make_model(), config_of(tmp_path), tmp_path / "best.safetensors"
    save_localiser(path, model, config, CLASSES, 7)
    found, own, class_map = load_localiser(path)
    assert (own, class_map) == (config, CLASSES)
    assert not found.training
    images, labels = make_batch([(64, 64)]), torch.tensor([[2]])
    with torch.no_grad():
        mine, theirs = model(images, labels=labels)[0][0], found(images, labels=labels)[0][0]
    assert torch.equal(mine.boxes, theirs.boxes)
    assert load_proposer(path)[1] == config
    assert is_localiser(path)
    assert not is_detector(path)
    assert not is_classifier(path)


def test_an_rcnn_brings_its_rpn_along(tmp_path: Path) -> None:
    model, path = make_rcnn(), tmp_path / "best.safetensors"
    save_localiser(path, model, rcnn_config(), CLASSES, 7, config_of(tmp_path).model)
    found, own, _ = load_localiser(path)  # rpn.safetensors, where it was trained, is not there
    assert isinstance(found, RCNN)
    assert own.model.kind == "rcnn"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name
    with pytest.raises(CheckpointError, match=r"holds an R-CNN: .* of rpn\.safetensors"):
        load_proposer(path)


def test_files_of_another_kind_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_localiser(path, make_model(), config_of(tmp_path), CLASSES, 7)
    with pytest.raises(CheckpointError, match="holds the weights of a localiser, not of a detec"):
        load_detector(path)
    tensors, metadata = read_safetensors(path)
    own = {name: text for name, text in metadata.items() if name != DIGEST}
    for key, value in (("classes", "[]"), ("localiser", "3")):
        write_safetensors(path, tensors, {**own, key: value})
        with pytest.raises(CheckpointError, match=f"'{key}'"):
            load_localiser(path)
    write_safetensors(path, {}, own)
    with pytest.raises(CheckpointError, match="another architecture"):
        load_localiser(path)
    with pytest.raises(CheckpointError, match="no weights file at"):
        load_localiser(tmp_path / "none.safetensors")
    assert not is_localiser(tmp_path / "none.safetensors")
