from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backbones import InputSpec, resnet_cifar, save_weights
from detres.class_map import ClassMap
from detres.classification.build import (
    build_class_optimizer,
    build_class_schedule,
    build_model,
    build_train_batches,
)
from detres.classification.data.crops import TrainCrop
from detres.classification.data.image_folder import read_image_folder
from detres.classification.data.in_memory import decode_in_memory
from tests.classification.parts import config_of, folder_data, noise, random_model, write_folder

CPU = torch.device("cpu")


# ---- the model ----


def test_the_model_is_that_of_the_configuration_in_channels_last() -> None:
    torch.manual_seed(3)
    expected = resnet_cifar(20, num_classes=5)
    torch.manual_seed(3)
    model = build_model(config_of(model={"label_smoothing": 0.1}), 5)
    assert model.label_smoothing == 0.1
    assert model.mixup is None
    assert model.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], value)
    assert build_model(config_of(train={"mixup": 0.2}), 5).mixup is not None


def test_weights_are_loaded_unless_others_are_about_to_be(tmp_path: Path) -> None:
    path = tmp_path / "init.safetensors"
    net = resnet_cifar(20, num_classes=5)
    save_weights(net, path)
    config = config_of(model={"network": {"name": "resnet20", "weights": str(path)}})
    model = build_model(config, 5)
    assert all(torch.equal(model.net.state_dict()[k], v) for k, v in net.state_dict().items())
    path.unlink()
    with pytest.raises(ValueError, match=r"init\.safetensors"):
        build_model(config, 5)
    spec = InputSpec(short_side=40, crop_side=36, mean_image=torch.zeros(3, 36, 36))
    resumed = build_model(config, 5, resumed=spec)
    assert resumed.net.input_spec is spec
    assert torch.equal(resumed.normalizer.mean_image, spec.mean_image)
    assert resumed.net.load_report is None


def test_statistics_of_batch_norm_are_not_averaged_where_there_are_none() -> None:
    network = {"network": {"name": "vgg16"}}
    with pytest.raises(ValueError, match=r"recompute_batches averages .*, and vgg16 has none"):
        build_model(config_of(model=network, train={"recompute_batches": 3}), 2)
    build_model(config_of(train={"recompute_batches": 3}), 2)


# ---- batches ----


def test_training_batches_are_crops_of_the_files_by_the_configuration(tmp_path: Path) -> None:
    images = read_image_folder(write_folder(tmp_path) / "train")
    config = config_of(data=folder_data(flip=1.0, pca=0.0))
    batches = list(build_train_batches(config, images, steps=4, start_step=1, device=CPU))
    assert len(batches) == 3
    expected = TrainCrop(short_sides=(36, 40), crop_side=32, flip=1.0, pca=0.0)
    label_of = dict(zip(images.files.tolist(), images.labels.tolist(), strict=True))
    for crops, targets in batches:
        assert crops.pixels.shape == (2, 3, 32, 32)
        assert targets.labels.tolist() == [label_of[file] for file in crops.ids]
    whole = list(build_train_batches(config, images, steps=4, start_step=0, device=CPU))
    for (crops, _), (same, _) in zip(whole[1:], batches, strict=True):
        assert crops.ids == same.ids
        assert torch.equal(crops.pixels, same.pixels)
    built = build_train_batches(config, images, steps=4, start_step=0, device=CPU)
    transform, image = built.dataset.transform, noise(40, 48)
    assert all((transform(image, seed) == expected(image, seed)).all() for seed in range(5))


def test_training_batches_of_arrays_are_padded_and_mirrored(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=(8, 8))
    images = decode_in_memory(read_image_folder(root / "train"))
    data = {"format": "folder", "in_memory": True, "pad": 0, "flip": 1.0}
    config = config_of(data=data)
    batches = list(build_train_batches(config, images, steps=3, start_step=0, device=CPU))
    assert len(batches) == 3
    for crops, targets in batches:
        rows = list(crops.ids)
        mirrored = torch.from_numpy(images.pixels[rows]).flip(2).permute(0, 3, 1, 2)
        assert torch.equal(crops.pixels, mirrored)
        assert targets.labels.tolist() == images.labels[rows].tolist()


def test_no_images_make_no_batches(tmp_path: Path) -> None:
    images = decode_in_memory(read_image_folder(write_folder(tmp_path, size=(8, 8)) / "train"))
    none = type(images)("none", ClassMap.of_names(("a",)), images.pixels[:0], images.labels[:0])
    config = config_of(data={"format": "folder", "in_memory": True})
    with pytest.raises(ValueError, match="0 images in batches of 2"):
        build_train_batches(config, none, steps=3, start_step=0, device=CPU)


# ---- the schedule and the optimizer ----


def test_the_schedule_is_in_steps_and_ends_its_warm_up_by_the_error() -> None:
    train = {"steps": None, "epochs": 6, "milestones": [2, 4], "warmup_until_error": 0.8}
    config = config_of(train={**train, "batch_size": 10})
    schedule = build_class_schedule(config.train, 50)
    assert (schedule.steps, schedule.milestones) == (30, (10, 20))
    assert schedule.warmup_until_error == 0.8
    assert build_class_schedule(config_of().train, 50).warmup_until_error is None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_optimizer_learns_every_parameter_once(optimizer: str) -> None:
    model = random_model()
    settings = config_of(train={"optimizer": optimizer, "weight_decay": 0.01}).train
    found = build_class_optimizer(settings, model)
    assert isinstance(found, {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer])
    parameters = [p for group in found.param_groups for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    assert len(parameters) == len(list(model.parameters()))


def test_sgd_decays_weights_biases_and_norms_alike() -> None:
    settings = config_of(train={"weight_decay": 0.01, "momentum": 0.8}).train
    found = build_class_optimizer(settings, random_model())
    assert {group["weight_decay"] for group in found.param_groups} == {0.01}
    assert {group["momentum"] for group in found.param_groups} == {0.8}


def test_a_model_in_which_nothing_learns_has_no_optimizer() -> None:
    model = random_model().requires_grad_(False)
    for optimizer in ("sgd", "adamw"):
        with pytest.raises(ValueError, match="no parameter of the model learns"):
            build_class_optimizer(config_of(train={"optimizer": optimizer}).train, model)
