"""Files of version 0.1's first layout go on working: weights, run folders, their YAML.

tests/earlier_files were written by that version: two runs on the drawn shapes, stopped after step 3
of 6. Of their large tensors all but one value in 200 are zero, so that they compress; expected.json
is what that version then computed from the weights.
"""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import detres
from detres.classification.config import ClassificationConfig
from detres.classification.data.read import read_held_out
from detres.classification.structures import CropBatch
from detres.classification.weights_file import load_classifier
from detres.cli import eval as eval_command
from detres.cli import train_cls, train_det
from detres.config import load_config
from detres.detection.build import build_val_set, eval_loader
from detres.detection.config import DetectionConfig
from detres.detection.data.read import read_split
from detres.detection.structures import ImageBatch
from detres.detection.weights_file import load_detector
from detres.runs.state import load_state

FILES = Path(__file__).with_name("earlier_files")
EXPECTED = json.loads((FILES / "expected.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRES_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DETRES_DATA", raising=False)
        yield


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function: "detector" or "classifier" -> a copy of that run's folder, unpacked."""

    def unpack(kind: str) -> Path:
        folder = tmp_path / kind
        folder.mkdir()
        for file in (FILES / kind).iterdir():
            if file.suffix == ".xz":
                (folder / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
            else:
                shutil.copy(file, folder)
        return folder

    yield unpack
    for large in [*tmp_path.rglob("*.pt"), *tmp_path.rglob("*.safetensors")]:
        large.unlink()


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_detectors_weights_give_the_losses_and_detections_of_their_time(run_folder):
    path = run_folder("detector") / "best.safetensors"
    detector, config, class_map = load_detector(path)
    assert (config.model.input.short_side, config.model.input.max_side) == (96, 128)
    assert config.model.input.train_short_sides == (80, 96)
    assert (config.data.box_policy, class_map.name_of(0)) == ("drop", "circle")
    truth = read_split(config.data, "val")
    images, targets = next(iter(eval_loader(build_val_set(config.model, truth), batch_size=2)))
    square = ((96, 96), (96, 96))  # without padding, in which that version computed
    images = ImageBatch(images.pixels[..., :96, :96], square, square, images.ids)
    torch.manual_seed(0)
    with torch.no_grad():
        losses = {name: value.item() for name, value in detector(images, targets).terms().items()}
        found = detector(images)
    assert losses == pytest.approx(EXPECTED["losses"], rel=1e-4)
    assert [len(each) for each in found] == EXPECTED["num_detections"]
    best = [[*f.boxes[0].tolist(), f.scores[0].item(), f.labels[0].item()] for f in found]
    for row, expected in zip(best, EXPECTED["best"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_classifiers_weights_give_the_logits_of_their_time(run_folder):
    path = run_folder("classifier") / "weights.safetensors"
    model, config, class_map = load_classifier(path)
    assert (config.data.crop_side, model.net.input_spec.crop_side) == (32, 32)
    mean_image = model.net.input_spec.mean_image
    assert mean_image.sum().item() == pytest.approx(EXPECTED["mean_image_sum"])
    images = read_held_out(config.data, class_map)
    pixels = torch.from_numpy(images.pixels[:2]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(CropBatch(pixels, (0, 1)))
    torch.testing.assert_close(logits, torch.tensor(EXPECTED["logits"]), rtol=1e-4, atol=1e-4)


def test_both_are_loaded_and_evaluated_by_name_of_the_file_alone(run_folder, capsys):
    for kind, name in (("detector", "best"), ("classifier", "weights")):
        path = run_folder(kind) / f"{name}.safetensors"
        for each in (path, path.parent, path.parent / "last.pt"):  # the folder, the state too
            assert type(detres.load(each)).__name__.lower() == kind
        assert eval_command.main(["--weights", str(path), "--device", "cpu"]) == 0
        captured = capsys.readouterr()
        assert "now called" not in captured.out + captured.err


@pytest.mark.parametrize(("kind", "command"), [("detector", train_det), ("classifier", train_cls)])
def test_a_run_goes_on_from_its_last_state(run_folder, capsys, kind, command):
    folder = run_folder(kind)
    before = load_state(folder / "last.pt", ("model", "progress"))
    assert before["progress"]["step"] == 3
    assert "scores" in before["progress"]
    earlier_lines = lines_of(folder)
    assert command.main(["--resume", str(folder), "--device", "cpu"]) == 0
    after = load_state(folder / "last.pt", ("model", "progress"))
    assert after["progress"]["step"] == 6
    assert list(after["progress"]["evaluations"]) == [2, 4, 6]
    assert lines_of(folder)[: len(earlier_lines)] == earlier_lines
    assert [(line["step"], line["kind"]) for line in lines_of(folder)[len(earlier_lines) :]] == [
        (4, "train"),
        (4, "eval"),
        (5, "train"),
        (6, "train"),
        (6, "eval"),
    ]
    assert not list(folder.glob("config-until-step-*"))  # names have changed, no setting has
    assert "now called" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "section", "renamed"),
    [
        ("detector", DetectionConfig, 4),
        ("classifier", ClassificationConfig, 3),
    ],
)
def test_a_runs_yaml_is_read_with_a_line_for_every_key_renamed(kind, section, renamed):
    notices: list[str] = []
    config = load_config(FILES / kind / "config.yaml", section, notice=notices.append)
    assert config.train.steps == 6
    assert len(notices) == renamed
    assert all("is now called" in line for line in notices)
