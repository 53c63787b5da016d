"""A step for which the memory is too small goes in halves, with the same result, or says why
not.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from backbones import freeze_batch_norm
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.structures import ImageBatch, Target
from detres.engine.distributed import Group
from detres.engine.memory import CPU_ALLOCATOR, StepMemoryError, described, is_out_of_memory
from detres.engine.optimizers import sgd
from detres.engine.step import Batch, GradientStep
from detres.losses import Losses
from tests.classification.test_model import make_classifier, make_crops, targets_of
from tests.engine.test_step import MANY, MODEL, K, batch_of, make_images

CPU = torch.device("cpu")


class Limited(nn.Module):
    """A model with memory for so many images at once; asked: how many it was given."""

    def __init__(self, model: nn.Module, most: int, error: Callable[[str], Exception]) -> None:
        super().__init__()
        self.model, self.most, self.error = model, most, error
        self.asked: list[int] = []

    def forward(self, images: ImageBatch, targets: list[Target]) -> Losses:
        self.asked.append(len(images))
        losses = self.model(images, targets)
        if len(images) > self.most:  # as where the last layers do not fit
            raise self.error("CUDA out of memory. Tried to allocate 3 GiB.")
        return losses


def out_of_cpu(message: str) -> RuntimeError:
    return RuntimeError(f"[enforce fail] {CPU_ALLOCATOR}: can't allocate memory: {message}")


def detector(norm: str = "group") -> nn.Module:
    torch.manual_seed(0)
    settings = {**MODEL, "backbone": {**MODEL["backbone"], "norm": norm}}
    return build_detector(check(ModelConfig, settings, "test"), K, pretrained=False).train()


def trained(
    most: int, error: Callable[[str], Exception], parts: list[list[int]]
) -> tuple[dict[str, Tensor], list[int], list[str]]:
    """Weights after five steps in float64, the batches that were tried, and what was said."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        model = detector().double()
        model.normalizer.register_forward_hook(lambda _m, _i, pixels: pixels.double())
        limited = Limited(model, most, error)
        optimizer = sgd(model, momentum=0.9, weight_decay=1e-3)
        gradients = GradientStep(limited, limited, Group(), CPU, "fp32", say=said.append)
        images, targets = make_images(MANY)
        for step in range(5):
            optimizer.zero_grad()
            gradients.take([batch_of(images, targets, rows) for rows in parts], seed=step)
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.step()
    return dict(model.state_dict()), limited.asked, said


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, out_of_cpu])
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4]], [[0, 1, 2, 3], [4, 5, 6, 7]]])
def test_five_steps_in_halves_give_the_weights_of_whole_ones(error, parts) -> None:
    wanted, whole, nothing = trained(8, error, parts)
    found, asked, said = trained(3, error, parts)
    assert set(whole) == {len(parts[0])}
    assert nothing == []
    assert asked[0] == len(parts[0])
    assert max(asked[1:]) == (len(parts[0]) + 1) // 2  # and stays so
    assert len(said) == 1
    assert re.search(r"memory is used up \(\d of \d+x\d+ px with 3, 1, 2, 4(, 1)? boxes", said[0])
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


def taken(model: nn.Module, parts: list[Batch], group: Group | None = None) -> None:
    gradients = GradientStep(model, model, group or Group(), CPU, "fp32")
    gradients.take(parts, seed=1)


def test_a_second_time_is_an_error_with_sizes_and_boxes() -> None:
    limited = Limited(detector(), 1, torch.OutOfMemoryError)
    batch = batch_of(*make_images(MANY), [0, 1, 2, 3])
    with pytest.raises(StepMemoryError) as caught:
        taken(limited, [batch])
    assert re.fullmatch(
        r"images at once: 2 of \d+x\d+ px with 3, 1 boxes; 2 of \d+x\d+ px with 2, 4 boxes; in "
        r"halves already; CUDA out of memory\. Tried to allocate 3 GiB\.",
        str(caught.value),
    )
    assert limited.asked == [4, 2]


def test_of_parts_of_one_and_of_several_images_those_of_several_are_divided() -> None:
    limited = Limited(detector(), 2, torch.OutOfMemoryError)
    images, targets = make_images(MANY)
    parts = [batch_of(images, targets, rows) for rows in ([0], [1, 2, 3])]
    taken(limited, parts)
    assert limited.asked == [1, 3, *[1, 2, 1] * 2]  # once more, with what was counted


@pytest.mark.parametrize(("number", "said"), [(8, "1, 1"), (9, "1, 1 and 1 more"), (0, "")])
def test_the_boxes_of_up_to_eight_images_are_named(number: int, said: str) -> None:
    images, targets = make_images([1] * max(1, number))
    whole, its_targets = batch_of(images, targets, [*range(max(1, number))])
    words = described([(whole, its_targets[:number])])
    listed = ", ".join(["1"] * max(0, min(number, 8) - 2) + [said])
    assert words.endswith(f" px with {listed} boxes")


class OneOfTwo(Group):
    size = 2


@pytest.mark.parametrize(
    ("norm", "rows", "group", "why"),
    [
        ("batch", [0, 1], None, "batch norm takes its statistics from the images at once"),
        ("sync", [0, 1], None, "batch norm takes its statistics from the images at once"),
        ("group", [0], None, "a single image at once"),
        ("group", [0, 1], OneOfTwo(), "one of 2 processes"),
    ],
)
def test_where_halves_would_be_something_else_it_stops_at_once(norm, rows, group, why) -> None:
    limited = Limited(detector(norm), 0, torch.OutOfMemoryError)
    with pytest.raises(StepMemoryError, match=f"not divided: {why}"):
        taken(limited, [batch_of(*make_images(MANY), rows)], group)
    assert len(limited.asked) == 1


def test_frozen_batch_norm_is_of_one_image() -> None:
    limited = Limited(freeze_batch_norm(detector("batch")), 1, torch.OutOfMemoryError)
    taken(limited, [batch_of(*make_images(MANY), [0, 1])])
    assert limited.asked == [2, 1, 1]


def test_a_classifier_is_divided_too_but_not_where_it_mixes_images() -> None:
    batch = make_crops(3), targets_of(2, 0, 1)
    halves = [batch[0].select(rows) for rows in ([0, 1], [2])]
    assert [each.ids for each in halves] == [batch[0].ids[:2], batch[0].ids[2:]]
    assert torch.equal(torch.cat([each.pixels for each in halves]), batch[0].pixels)
    assert batch[1].select([2, 0]).labels.tolist() == [1, 2]
    model = make_classifier().train()
    model.eval()
    limited = Limited(model, 2, torch.OutOfMemoryError)
    taken(limited, [batch])
    assert limited.asked == [3, 2, 1]
    limited = Limited(model, 2, torch.OutOfMemoryError)
    limited.indivisible = "mixup mixes the images at once"
    with pytest.raises(StepMemoryError, match="not divided: mixup"):
        taken(limited, [batch])


def test_other_errors_are_left_as_they_are() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(MemoryError())
    limited = Limited(detector(), 0, ValueError)
    with pytest.raises(ValueError, match="Tried"):
        taken(limited, [batch_of(*make_images(MANY), [0, 1])])
