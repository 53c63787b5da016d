from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from detres.class_map import ClassMap
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.inference.detector import Detector
from detres.detection.weights_file import (
    as_detector,
    current_names,
    is_detector,
    load_detector,
    save_detector,
)
from detres.files import CheckpointError, load_weights, write_safetensors
from tests.detection.configs import TINY, coco_config
from tests.helpers import CLASSES, make_batch


@pytest.fixture
def saved(tmp_path):
    config = coco_config(tmp_path)
    torch.manual_seed(5)
    detector = build_detector(config.model, len(CLASSES)).eval()
    torch.nn.init.normal_(detector.roi_head.predictor.cls_score.weight, std=0.5)
    path = tmp_path / "best.safetensors"
    save_detector(path, detector, config, CLASSES, 12)
    return path, detector, config


def assert_same_detections(detector, again) -> None:
    images = make_batch([(64, 80), (60, 64)], seed=1)
    with torch.inference_mode():
        pairs = list(zip(detector(images), again(images), strict=True))
    assert sum(len(mine) for mine, _ in pairs) > 0
    for mine, other in pairs:
        torch.testing.assert_close(mine.boxes, other.boxes, rtol=0, atol=0)
        torch.testing.assert_close(mine.scores, other.scores, rtol=0, atol=0)
        assert mine.labels.tolist() == other.labels.tolist()


def test_a_weights_file_alone_rebuilds_the_detector(saved):
    path, detector, config = saved
    again, loaded, class_map = load_detector(path)
    assert class_map == CLASSES
    assert (loaded.model, loaded.data, loaded.eval) == (config.model, config.data, config.eval)
    assert_same_detections(detector, again)


def test_files_that_are_no_detector_are_refused_by_name(saved, tmp_path):
    path, detector, config = saved
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-1000])
    pickled = tmp_path / "pickled.pt"
    torch.save(detector.state_dict(), pickled)
    text = tmp_path / "text.safetensors"
    text.write_text(json.dumps({"a": 1}))
    other = tmp_path / "other.safetensors"
    wider = check(ModelConfig, {**TINY, "rpn": {"width": 32}}, "test")
    save_detector(other, build_detector(wider, len(CLASSES)), config, CLASSES, 1)
    more = tmp_path / "more.safetensors"
    save_detector(more, detector, config, ClassMap(names=("a", "b"), source_ids=(1, 2)), 1)
    for file in (cut, pickled, text, other, more):
        with pytest.raises(CheckpointError, match=file.name):
            load_detector(file)
    with pytest.raises(CheckpointError, match="absent"):
        load_detector(tmp_path / "absent.safetensors")


def earlier_name(name: str) -> str:
    return name.replace("roi_head.box_head.conv5.", "roi_head.conv5.")


def write_earlier(path, given) -> None:
    """Write the file at `given` to `path` as an earlier version did: its format, its names of
    tensors, its keys of the configuration.
    """
    tensors, metadata = load_weights(given)
    model, data = json.loads(metadata["model"]), json.loads(metadata["data"])
    now = model["input"]
    now["shorter"] = now.pop("short_side")
    now["longer"] = now.pop("max_side")
    now["train_shorter"] = now.pop("train_short_sides")
    data["boxes"] = data.pop("box_policy")
    metadata = {
        **metadata,
        "format": "detres-detector-1",
        "model": json.dumps(model),
        "data": json.dumps(data),
    }
    write_safetensors(path, {earlier_name(name): t for name, t in tensors.items()}, metadata)


def test_current_names_of_an_earlier_version_keep_order_and_tensors(saved):
    _, detector, _ = saved
    state = detector.state_dict()
    earlier = {earlier_name(name): tensor for name, tensor in state.items()}
    assert earlier.keys() != state.keys()
    renamed = current_names(earlier)
    assert list(renamed) == list(state)
    assert all(renamed[name] is tensor for name, tensor in state.items())


def test_current_names_leave_all_others_alone():
    tensors = {
        "roi_head.box_head.conv5.0.weight": torch.zeros(1),
        "backbone.roi_head.conv5.weight": torch.zeros(2),
        "roi_head.conv5": torch.zeros(3),
    }
    assert list(current_names(tensors)) == list(tensors)
    assert current_names({"roi_head.conv5.0.w": torch.zeros(1)}).keys() == {
        "roi_head.box_head.conv5.0.w"
    }
    assert current_names({}) == {}


def test_a_file_of_an_earlier_version_gives_the_same_detector(saved, tmp_path):
    path, detector, config = saved
    earlier = tmp_path / "earlier.safetensors"
    write_earlier(earlier, path)
    assert any(name.startswith("roi_head.conv5.") for name in load_weights(earlier)[0])
    again, loaded, class_map = load_detector(earlier)
    assert class_map == CLASSES
    assert (loaded.model, loaded.data, loaded.eval) == (config.model, config.data, config.eval)
    assert not again.training
    assert_same_detections(detector, again)


def test_is_detector_tells_by_the_metadata(saved, tmp_path):
    path, _, _ = saved
    assert is_detector(path)
    earlier, bare = tmp_path / "earlier.safetensors", tmp_path / "bare.safetensors"
    write_earlier(earlier, path)
    assert is_detector(earlier)
    tensors, metadata = load_weights(path)
    del metadata["classes"]
    write_safetensors(bare, tensors, metadata)
    assert not is_detector(bare)
    assert not is_detector(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match=r"bare\.safetensors .*: classes"):
        load_detector(bare)


def test_a_user_s_detector_has_the_classes_and_sizes_of_the_file(saved):
    path, detector, _ = saved
    user_s = as_detector(path)
    assert isinstance(user_s, Detector)
    assert (user_s.class_map, user_s.short_side, user_s.max_side) == (CLASSES, 64, 96)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    (found,) = user_s.predict(image)
    batch = make_batch([(64, 96)])
    batch = type(batch)(
        torch.from_numpy(image).permute(2, 0, 1)[None], batch.sizes, batch.sizes, batch.ids
    )
    with torch.inference_mode():
        (expected,) = detector(batch)
    assert len(found) > 0
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0)
    assert found.labels.tolist() == expected.labels.tolist()
