"""What is kept of the last steps, and what the message of one that is not finite names."""

from __future__ import annotations

import gc
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detres.detection.structures import ImageBatch
from detres.engine.distributed import LostProcessError
from detres.engine.flight_recorder import (
    FlightRecorder,
    NonFiniteLossError,
    kind_of,
    message_of,
)
from tests.helpers import make_target

IMAGES = SimpleNamespace(ids=(7, "b.jpg"))


def test_the_message_has_the_terms_that_are_not_finite_and_the_images():
    terms = {"loss_a": torch.tensor(math.inf), "loss_b": torch.tensor(0.5, requires_grad=True)}
    error = NonFiniteLossError(nn.Linear(1, 1), terms, [(IMAGES, [])], step=4, lr=0.25)
    assert str(error) == (
        "non-finite loss in step 5: loss_a = inf; images 7, b.jpg; lr 0.25. Nothing was saved "
        "after it"
    )


def test_a_gradient_is_named_by_its_parameter_and_only_four_of_many():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, math.inf if number % 7 else 1.0)
    model[3].bias.grad = None
    terms = {"loss": torch.tensor(1.0)}
    error = NonFiniteLossError(model, terms, [(IMAGES, [])], step=0, lr=1.0)
    assert str(error).startswith(
        "finite loss but non-finite gradient in step 1: 0.bias, 1.weight, 1.bias, 2.weight and 2 "
        "more; images 7"
    )


def pictures(*ids: object, height: int = 40) -> ImageBatch:
    size = (height, 50)
    pixels = torch.zeros(len(ids), 3, *size, dtype=torch.uint8)
    return ImageBatch(pixels, (size,) * len(ids), (size,) * len(ids), ids)


def step_of(recorder: FlightRecorder, number: int, parts: list) -> None:
    recorder.begin(number, parts, lr=0.5, seed=number, data_s=0.25)
    recorder.computed({"loss": torch.tensor(float(number))})
    recorder.end(0.75)


def test_it_keeps_the_last_twenty_steps_and_the_pixels_of_none_that_is_done():
    recorder, seen = FlightRecorder(), []
    for number in range(33):
        images = pictures(number)
        seen.append(weakref.ref(images.pixels))
        step_of(recorder, number, [(images, [make_target([[1, 2, 3, 4]], [1])])])
    del images
    assert [each.step for each in recorder.records] == list(range(13, 33))
    assert [each.values["loss"].item() for each in recorder.records] == list(range(13, 33))
    assert recorder.parts is None
    gc.collect()
    assert [each() for each in seen] == [None] * 33


def test_a_record_has_what_the_step_was_of():
    recorder = FlightRecorder()
    parts = [
        (
            pictures("a", "b"),
            [make_target([[1, 2, 3, 4]], [1]), make_target([[1, 2, 3, 4]] * 3, [1] * 3)],
        ),
        (pictures("c", height=60), [make_target([], [])]),
    ]
    step_of(recorder, 4, parts)
    found = recorder.records[0].to_dict()
    assert found.pop("memory") > 0
    assert found == {
        "step": 4,
        "ids": ["a", "b", "c"],
        "sizes": [(40, 50), (40, 50), (60, 50)],
        "padded": [(40, 50), (60, 50)],
        "boxes": [1, 3, 0],
        "lr": 0.5,
        "seed": 4,
        "data_s": 0.25,
        "values": {"loss": 4.0},
        "step_s": 0.75,
    }


def test_the_batch_that_is_computed_is_held_until_its_step_is_done():
    recorder, parts = FlightRecorder(), [(IMAGES, torch.ones(2))]
    recorder.begin(0, parts, lr=1.0, seed=0, data_s=0.0)
    assert recorder.parts is parts
    assert recorder.records[0].boxes == recorder.records[0].sizes == []
    recorder.end(0.0)
    assert recorder.parts is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "worker"),
        (LostProcessError("lost: process 1", told_here=True), "lost"),
        (ValueError("DataLoader worker"), "error"),
        (OSError("a.jpg"), "error"),
    ],
)
def test_what_an_error_is(error: Exception, kind: str):
    assert kind_of(error) == kind


def test_the_message_of_a_worker_s_error_is_what_the_worker_said():
    said = "Caught E in DataLoader worker.\nOriginal Traceback (most ...)\n  x\na.E: b.jpg: cut off"
    assert message_of(ValueError(said)) == "b.jpg: cut off"
    assert message_of(ValueError("a: b")) == "a: b"
