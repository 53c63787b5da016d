from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import detres
from backbones import WeightsError, resnet18, resnet50
from backbones import load_weights as load_weights_of_backbone
from detres.class_map import ClassMap
from detres.classification.weights_file import is_classifier
from detres.config import ConfigError, check
from detres.detection.alternating import TRAININGS
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig, ModelConfig
from detres.detection.detector import Detector
from detres.detection.inference.fast import fast_copy
from detres.detection.weights_file import (
    current_names,
    is_detector,
    load_detector,
    require_same_context,
    save_detector,
    score_thresholds_of,
    started_from,
)
from detres.files import CheckpointError, load_weights, write_safetensors
from detres.runs.run import TrainingRun
from detres.runs.saved import OtherWingError
from detres.runs.state import DamagedStateError, load_state, save_state
from tests.detection.configs import TINY, box, coco_config
from tests.helpers import CLASSES, make_batch, write_coco


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


def test_the_best_scores_come_back_in_the_order_of_the_classes(saved, tmp_path):
    path, detector, config = saved
    assert score_thresholds_of(path, CLASSES) is None
    assert Detector.load(path).score_thresholds is None
    other = tmp_path / "other.safetensors"
    scores = {name: (number + 1) / 7 for number, name in enumerate(CLASSES.names)}
    turned = dict(reversed(scores.items()))
    save_detector(other, detector, config, CLASSES, 12, score_thresholds=turned)
    assert score_thresholds_of(other, CLASSES) == tuple(scores.values())
    assert Detector.load(other).score_thresholds == tuple(scores.values())


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{"a": 0.5}', "of other classes"),
        ("[0.5]", "a list, expected an object"),
        ('{"NAMES": "x"}', "could not convert"),
        ('{"NAMES": NaN}', "outside 0..1"),
        ('{"NAMES": 1.5}', "outside 0..1"),
        ('{"NAMES": null}', "float"),
        ('{"NAMES"', "delimiter"),
    ],
)
def test_scores_that_are_none_are_refused_by_name(saved, tmp_path, written, said):
    path, _, _ = saved
    tensors, metadata = load_weights(path)
    if "NAMES" in written:
        one = written.removeprefix("{").removesuffix("}")
        each = [one.replace("NAMES", name) for name in CLASSES.names]
        written = "{" + ", ".join(each) + ("}" if written.endswith("}") else "")
    other = tmp_path / "other.safetensors"
    write_safetensors(other, tensors, {**metadata, "score_thresholds": written})
    with pytest.raises(CheckpointError, match=rf"other\.safetensors .*'score_thresholds'.*{said}"):
        Detector.load(other)


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
    user_s = Detector.load(path)
    assert isinstance(user_s, Detector)
    assert (user_s.class_map, user_s.short_side, user_s.max_side) == (CLASSES, 64, 96)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    found = user_s.predict(image)
    batch = make_batch([(64, 96)])
    batch = type(batch)(
        torch.from_numpy(image).permute(2, 0, 1)[None], batch.sizes, batch.sizes, batch.ids
    )
    with torch.inference_mode():
        (expected,) = fast_copy(detector)(batch)
    assert len(found) > 0
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0)
    assert found.labels.tolist() == expected.labels.tolist()


# ---- damage, versions, and what else a file is ----


def test_no_damage_anywhere_in_a_detectors_file_loads(saved, tmp_path):
    path, _, _ = saved
    content, rng = path.read_bytes(), random.Random(0)
    damaged = tmp_path / "damaged.safetensors"
    for case in range(30):
        changed = bytearray(content)
        at = rng.randrange(len(content))
        if case % 3 == 0:
            del changed[at:]
        elif case % 3 == 1:
            changed[at] ^= 1 << rng.randrange(8)
        else:
            changed[at : at + 64] = bytes(0xA5 for _ in changed[at : at + 64])
        damaged.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged\.safetensors") as caught:
            load_detector(damaged)
        assert len(str(caught.value).splitlines()) == 1


def test_a_class_map_that_was_edited_is_refused(saved, tmp_path):
    path, _, _ = saved
    tensors, metadata = load_weights(path)
    edited = metadata["classes"].replace("cat", "fox")
    save_file(tensors, tmp_path / "edited.safetensors", {**metadata, "classes": edited})
    with pytest.raises(CheckpointError, match=r"edited\.safetensors is damaged: its content"):
        load_detector(tmp_path / "edited.safetensors")
    del metadata["sha256"]
    save_file(tensors, tmp_path / "bare.safetensors", metadata)
    with pytest.raises(CheckpointError, match="files of its format carry a sha256"):
        load_detector(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_earlier_version_has_no_checksum_and_says_so(version, saved, tmp_path):
    path, detector, _ = saved
    tensors, metadata = load_weights(path)
    del metadata["sha256"], metadata["backbone"]
    earlier = tmp_path / "earlier.safetensors"
    save_file(tensors, earlier, {**metadata, "format": f"detres-detector-{version}"})
    notices: list[str] = []
    again, _, _ = load_detector(earlier, notices.append)
    assert_same_detections(detector, again)
    assert notices == [f"{earlier}: it carries no checksum: damage would not be noticed"]
    notices.clear()
    load_detector(path, notices.append)
    assert notices == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "detres-detector-9"},
            "the format detres-detector-9, written by a newer detres",
        ),
        ({"format": "pt"}, "has the format 'pt', not one of detres: detres-detector-3"),
        ({"classes": "{"}, "its metadata 'classes' cannot be read"),
        ({"classes": "[]"}, "its metadata 'classes' cannot be read"),
        ({"classes": '{"names": ["a", "a"], "source_ids": [1, 2]}'}, "'classes' cannot be read"),
        ({"model": "3"}, "its metadata 'model' cannot be read"),
        ({"data": "nonsense"}, "its metadata 'data' cannot be read"),
    ],
)
def test_metadata_that_no_detector_has(change, message, saved, tmp_path):
    path, _, _ = saved
    tensors, metadata = load_weights(path)
    write_safetensors(tmp_path / "odd.safetensors", tensors, {**metadata, **change})
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors.*{message}"):
        load_detector(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("classes", lambda _: {"names": [f"c{n}" for n in range(10**6)],
                               "source_ids": list(range(10**6))}),
        ("model", lambda tree: {**tree, "rpn": {**tree["rpn"], "width": 65_536}}),
    ],
)  # fmt: skip
def test_a_model_far_larger_than_its_weights_is_never_built(
    key, change, saved, tmp_path, monkeypatch
):
    tensors, metadata = load_weights(saved[0])
    metadata[key] = json.dumps(change(json.loads(metadata[key])))
    write_safetensors(tmp_path / "huge.safetensors", tensors, metadata)
    built = []

    def building(*arguments, **options):
        built.append(torch.get_default_device().type)
        return build_detector(*arguments, **options)

    monkeypatch.setattr("detres.detection.weights_file.build_detector", building)
    with pytest.raises(CheckpointError, match=r"huge\.safetensors holds weights of another arch"):
        load_detector(tmp_path / "huge.safetensors")
    assert built == ["meta"]


def test_weights_that_are_not_finite_or_no_floats(saved, tmp_path):
    path, _, _ = saved
    tensors, metadata = load_weights(path)
    name = "rpn.head.conv.weight"
    assert name in tensors
    for wrong, message in (
        (torch.full_like(tensors[name], float("nan")), "has values that are NaN or infinite"),
        (tensors[name].to(torch.int32), r"is torch\.int32, expected torch\.float32"),
        (tensors[name].to(torch.float8_e5m2), r"is torch\.float8_e5m2, expected torch\.float32"),
    ):
        write_safetensors(tmp_path / "w.safetensors", {**tensors, name: wrong}, metadata)
        with pytest.raises(CheckpointError, match=rf"{name} {message}"):
            load_detector(tmp_path / "w.safetensors")


def test_a_detectors_backbone_starts_another_network(saved, tmp_path):
    """conv1..conv4 are the detector's backbone, conv5 is in its head; its file says the stride."""
    path, detector, config = saved
    net = resnet18(num_classes=0)
    report = load_weights_of_backbone(net, path)
    own = detector.state_dict()
    assert torch.equal(net.layer3[0].conv1.weight, own["backbone.layer3.0.conv1.weight"])
    conv5 = own["roi_head.box_head.conv5.0.conv1.weight"]
    assert torch.equal(net.layer4[0].conv1.weight, conv5)
    assert net.input_spec.mean == config.model.input.mean
    (note,) = report.notes
    assert note.startswith("taken from backbone; left over: ")
    assert "rpn (" in note

    model = {**TINY, "backbone": {"name": "resnet50", "norm": "batch", "freeze_at": 0}}
    config = coco_config(tmp_path, model=model)
    deep = build_detector(config.model, len(CLASSES))
    save_detector(tmp_path / "r50.safetensors", deep, config, CLASSES, 1)
    tensors, metadata = load_weights(tmp_path / "r50.safetensors")
    del metadata["backbone"], metadata["sha256"]
    metadata["format"] = "detres-detector-2"
    save_file(tensors, tmp_path / "earlier.safetensors", metadata)
    for name in ("r50.safetensors", "earlier.safetensors"):
        with pytest.raises(WeightsError, match="was trained with stride_placement='original'"):
            load_weights_of_backbone(resnet50(num_classes=0), tmp_path / name)
        fitting = resnet50(num_classes=0, stride_placement="original")
        assert load_weights_of_backbone(fitting, tmp_path / name).input_spec is not None


# ---- global context ----


def detector_of(name="resnet18", num_classes=3, **roi):
    tree = {**TINY, "backbone": {**TINY["backbone"], "name": name}, "roi": {**TINY["roi"], **roi}}
    return build_detector(check(ModelConfig, tree, "test"), num_classes)


def test_weights_with_and_without_context_are_told_apart():
    """Also where the classes are others, but not where another network's features are as many."""
    plain, context = detector_of(), detector_of(context=True)
    for model in (plain, context):
        require_same_context(model, model.state_dict(), "own")
        require_same_context(model, {}, "empty")
    for other in (plain, detector_of(num_classes=5)):
        with pytest.raises(
            CheckpointError, match=r"f holds a detector without global context.*false"
        ):
            require_same_context(context, other.state_dict(), "f")
    for other in (context, detector_of(num_classes=5, context=True)):
        with pytest.raises(CheckpointError, match=r"f holds a detector with global context.*true"):
            require_same_context(plain, other.state_dict(), "f")
    deeper = detector_of("resnet34", context=True)
    require_same_context(plain, deeper.state_dict(), "another network")
    flat = {**plain.state_dict(), "roi_head.predictor.cls_score.weight": torch.zeros(1024)}
    require_same_context(context, flat, "another rank")


# ---- the training state of a run ----


def stopped_run(root, **train: object):
    """The folder of a run that was stopped before its first step, and what it trained."""
    write_coco(root, [(50, 60), (64, 40)], [box(1), box(2)])
    tree = json.loads(coco_config(root, data={"workers": 0}).model_dump_json())
    config = check(DetectionConfig, {**tree, "train": {"steps": 4, **train}}, "test")
    training = TRAININGS[config.train.scheme].start(config, torch.device("cpu"))
    torch.nn.init.normal_(training.detector.roi_head.predictor.cls_score.weight, std=0.5)
    how = {"device": torch.device("cpu"), "resume_line": lambda *_: "x"}
    with TrainingRun.start(training, root / "run", **how) as run:
        if run.average is not None:
            for tensor in run.average.tensors.values():
                tensor.mul_(2 if tensor.is_floating_point() else 1)
        run.progress.step = 3
        run.save()
    return root / "run", training, config


@pytest.mark.parametrize("name", ["last.pt", "copy.bin"])
def test_a_state_alone_rebuilds_the_detector(tmp_path, name):
    folder, training, config = stopped_run(tmp_path)
    path = (folder / "last.pt").rename(folder / name)
    notices: list[str] = []
    again, loaded, class_map = load_detector(path, notices.append)
    assert notices == [f"{path} is the state of a run after step 3"]
    assert (class_map, loaded) == (CLASSES, config)
    assert not again.training
    assert_same_detections(training.detector.eval(), again)
    assert is_detector(path)
    assert not is_classifier(path)
    assert started_from(path) is None
    assert isinstance(detres.load(path), Detector)


def test_of_a_state_with_a_moving_average_that_is_the_detector(tmp_path):
    folder, training, _ = stopped_run(tmp_path, ema_decay=0.9)
    again, _, _ = load_detector(folder / "last.pt")
    for name, tensor in training.detector.state_dict().items():
        expected = tensor * 2 if tensor.is_floating_point() else tensor
        assert torch.equal(again.state_dict()[name], expected)


def test_the_state_of_an_rpn_alone_is_a_detector_that_proposes(tmp_path):
    folder, training, _ = stopped_run(tmp_path, scheme="rpn")
    notices: list[str] = []
    again, _, _ = load_detector(folder / "last.pt", notices.append)
    assert "its run trained the RPN alone" in notices[-1]
    own = training.detector.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.state_dict().items())


def test_a_run_folder_is_loaded_by_its_best_weights_else_by_its_state(tmp_path):
    folder, _, _ = stopped_run(tmp_path)
    notices: list[str] = []
    detres.load(folder, notices.append)
    assert notices == [f"{folder / 'last.pt'} is the state of a run after step 3"]
    detector, config, class_map = load_detector(folder / "last.pt")
    save_detector(folder / "best.safetensors", detector, config, class_map, 2)
    notices.clear()
    detres.load(folder, notices.append)
    assert notices == []


def test_states_that_are_damaged_or_none_are_refused_by_name(tmp_path):
    folder, _, _ = stopped_run(tmp_path)
    path = folder / "last.pt"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 1
    for content, said in (
        (whole[: len(whole) // 2], "is not a training state: it is cut short or damaged"),
        (bytes(flipped), "is damaged: "),
        (b"", "is not a training state: it is empty"),
    ):
        path.write_bytes(content)
        for read in (load_detector, detres.load, is_detector):
            with pytest.raises(DamagedStateError, match=f"{path} {said}"):
                read(path)
    path.write_bytes(whole)
    state = load_state(path, ("wing",))
    for wing in ("localisation", "classification"):
        save_state(path, {**state, "wing": wing, "input": "{}", "mean_image": None})
        with pytest.raises(OtherWingError, match=f"is a run of {wing}, not of detection"):
            load_detector(path)
        assert not is_detector(path)
    save_state(path, {**state, "config": "{}"})
    with pytest.raises(ConfigError, match="name"):
        load_detector(path)
    del state["model"][next(iter(state["model"]))]
    save_state(path, state)
    with pytest.raises(CheckpointError, match="holds weights of another architecture"):
        load_detector(path)
