"""A detector whose training steps are compiled: the losses, gradients and running statistics of the
plain one, whatever batches come one after the other, and checkpoints by the plain names.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones.files import read_safetensors
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig, ModelConfig
from detres.detection.data.batch import pad_images
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import ImageBatch, Target
from detres.detection.training import WING, DetectionTraining
from detres.runs.run import TrainingRun
from detres.runs.saved import SavedRun
from detres.runs.state import load_state
from tests.detection.configs import PYRAMID, TINY, box, coco_config
from tests.helpers import write_coco

CPU = torch.device("cpu")
K = 3

BATCHES = {
    "whole": [(64, 80)] * 4,
    "padded": [(64, 80), (50, 96), (64, 64), (60, 60)],
    "others": [(70, 66)] * 4,
    "the last, smaller": [(64, 80)],
}
"""(h, w) px of the images, in the order in which one model is given them."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
]


def batch_of(sizes: list[tuple[int, int]]) -> tuple[ImageBatch, list[Target]]:
    """Images of noise with two objects each."""
    generator = torch.Generator().manual_seed(len(sizes))
    images, targets = [], []
    for n, (height, width) in enumerate(sizes):
        shape = (height, width, 3)
        images.append(torch.randint(0, 256, shape, generator=generator).byte().numpy())
        corner = torch.rand((2, 2), generator=generator) * 25
        boxes = torch.cat((corner, corner + 14 + 16 * torch.rand((2, 2), generator=generator)), 1)
        nothing = torch.zeros(2, dtype=torch.bool)
        labels = torch.randint(1, K + 1, (2,), generator=generator)
        targets.append(Target(n, boxes, labels, nothing, nothing))
    return pad_images(images, original_sizes=sizes, ids=range(len(sizes))), targets


def step(model: FasterRCNN, sizes: list[tuple[int, int]]) -> dict[str, dict[str, Tensor]]:
    """What one step leaves: losses, gradients and buffers, by name."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    losses = model(*batch_of(sizes))
    losses.total().backward()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert trained
    return {
        "loss": {name: each.detach() for name, each in losses.terms().items()},
        "gradient": {name: each.grad for name, each in trained.items()},
        "buffer": {name: each.clone() for name, each in model.named_buffers()},
    }


def require_same(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    """To 1e-5 of the largest."""
    assert found.keys() == wanted.keys()
    scale = max(float(each.abs().max()) for each in wanted.values())
    for name, value in wanted.items():
        off = float((found[name] - value).abs().max())
        assert off <= 1e-5 * scale, (what, name, off, scale)


@pytest.mark.parametrize("settings", [TINY, PYRAMID], ids=["conv5", "pyramid"])
def test_a_compiled_step_is_the_plain_one_in_every_batch(
    settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, but for what the compiled RPN rounds to float32: of float32 batch norm of four
    small images leaves three digits in the gradients.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.manual_seed(0)
    plain = build_detector(check(ModelConfig, settings, "test"), K, pretrained=False).train()
    plain.double().normalizer.register_forward_hook(lambda _m, _i, pixels: pixels.double())
    plain.rpn.head.register_forward_hook(lambda _m, _i, found: [each.double() for each in found])
    compiled = copy.deepcopy(plain)
    compiled.compile_training()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for which, sizes in BATCHES.items():
        wanted, found = step(plain, sizes), step(compiled, sizes)
        for kind, values in wanted.items():
            require_same(found[kind], values, f"{kind}, {which}")


def test_a_compiled_run_keeps_plain_names_and_goes_on_without(tmp_path: Path) -> None:
    write_coco(tmp_path, [(64, 80)] * 4, [box(n) for n in (1, 2, 3, 4)])

    def trained(name: str, asked: bool) -> tuple[dict, dict, float]:
        """The weights in last.pt and those that are kept, and the loss of the first step."""
        config = coco_config(tmp_path, data={"workers": 0})
        settings = {
            "compile": asked,
            "steps": 2,
            "batch_size": 2,
            "log_every": 1,
            "warmup_steps": 0,
        }
        config = config.model_copy(update={"train": config.train.model_copy(update=settings)})
        training = DetectionTraining.start(config, CPU)
        folder, line = tmp_path / name, (lambda *_: "x")
        with TrainingRun.start(training, folder, device=CPU, resume_line=line) as run:
            run.train()
        first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        assert (first["step"], first["kind"]) == (1, "train")
        kept = read_safetensors(folder / "best.safetensors")[0]
        return load_state(folder / "last.pt", ())["model"], kept, first["loss"]

    plain, compiled = trained("plain", False), trained("compiled", True)
    assert compiled[0].keys() == plain[0].keys()
    assert compiled[1].keys() == plain[1].keys()
    assert compiled[2] == pytest.approx(plain[2], rel=1e-5)  # later steps learn of rounding too
    saved = SavedRun.read(tmp_path / "compiled", DetectionConfig, wing=WING)
    without = saved.config.train.model_copy(update={"compile": False})
    config = saved.config.model_copy(update={"train": without})
    model = DetectionTraining.resume(replace(saved, config=config), CPU).model
    for name, value in model.state_dict().items():
        assert torch.equal(value, compiled[0][name]), name
