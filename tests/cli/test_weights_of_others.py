"""Weights given where others belong: what they are is said, and the line that would use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backbones import create_backbone, resnet18, resnet50, resnet_cifar, save_weights
from detres.cli import eval as evaluate
from detres.cli import predict, train_det
from tests.cli.conftest import FinishedRun


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function: command and flags -> the last line of its refusal."""
    monkeypatch.chdir(tmp_path)

    def call(main: Callable[[list[str]], int], *flags: object) -> str:
        assert main([*map(str, flags), "--device", "cpu"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    return call


def test_bare_weights_are_evaluated_by_the_line_that_is_given(refused: Callable[..., str]) -> None:
    port = {
        name.replace("fc.", "module.linear.") if name.startswith("fc.") else f"module.{name}": t
        for name, t in resnet_cifar(20).state_dict().items()
    }
    torch.save({"state_dict": port}, "port.th")
    assert refused(evaluate.main, "--weights", "port.th").endswith(
        "port.th holds the weights of a network alone, by its tensors resnet20 or plain20: "
        "evaluate it as a classifier with --cfg, which says its data, and --set "
        "model.network.name=resnet20 model.network.shortcut=A model.network.shortcut_padding=both"
    )
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in resnet50().state_dict().items()}
    shapes["layer1.0.conv1.weight"], shapes["layer1.0.conv2.weight"] = (
        (32, 64, 1, 1),
        (32, 32, 3, 3),
    )
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, "half.pth")
    assert "resnet50 of 0.5 times the width (32 channels where it has 64)" in refused(
        evaluate.main, "--weights", "half.pth"
    )


def test_a_detectors_weights_of_another_network_name_the_setting(
    tiny: Path, refused: Callable[..., str]
) -> None:
    torch.save(create_backbone("resnet34").state_dict(), "other.pth")
    torch.save(resnet_cifar(20).state_dict(), "cifar.pth")
    save_weights(resnet50(stride_placement="original"), "original.safetensors")
    flags = ("--cfg", tiny, "--set", "model.backbone.stride_placement=torchvision")
    message = refused(train_det.main, *flags, "model.backbone.weights=other.pth")
    assert message.endswith(". Give --set model.backbone.name=resnet34")
    message = refused(
        train_det.main,
        *flags,
        "model.backbone.name=resnet50",
        "model.backbone.weights=original.safetensors",
    )
    assert message.endswith(". Give --set model.backbone.stride_placement=original")
    message = refused(train_det.main, *flags, "model.backbone.weights=cifar.pth")
    assert "looks like resnet20" in message
    assert "--set" not in message  # no detector has it


def test_what_is_no_detector_is_said_to_be_what_it_is(
    finished: FinishedRun, tiny: Path, refused: Callable[..., str]
) -> None:
    save_weights(resnet18(num_classes=2), "net.safetensors")
    Path("page.pth").write_text("<html>403 Forbidden</html>")
    for weights, what in (
        ("net.safetensors", "net.safetensors holds the weights of a network alone, not of a det"),
        ("page.pth", "page.pth is a web page (HTML), not weights"),
        ("torchvision/resnet50.v1", "that is the name of published weights of a backbone"),
    ):
        assert what in refused(predict.main, "--weights", weights, finished.data / "val")
        assert what in refused(train_det.main, "--cfg", tiny, "--init-from", weights)
    message = refused(
        train_det.main, "--cfg", tiny, "--set", f"model.backbone.weights={finished.folder}/last.pt"
    )
    assert "is the state of a training run (last.pt), from which it goes on: give the" in message


def test_a_detectors_file_starts_another_detectors_backbone(
    finished: FinishedRun, tiny: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [f"model.backbone.weights={finished.weights}", "train.steps=1"]
    assert train_det.main(["--cfg", str(tiny), "--device", "cpu", "--set", *settings]) == 0
    out = capsys.readouterr().out
    assert f"{finished.weights}: 120 tensors under torchvision's names" in out
    assert "  taken from backbone; left over: " in out
