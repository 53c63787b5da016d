"""The last steps of a training, kept in memory, and what an error of a step says."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from detres.engine.distributed import LostProcessError
from detres.engine.memory import is_out_of_memory, most_bytes
from detres.engine.step import Batch

LAST = 20
"""So many steps are kept."""

Kind = Literal["non-finite", "memory", "worker", "lost", "error"]
"""What an error that ends a training is: of the numbers, of memory, of a loader's worker, of
another process, or any other.
"""

_DEAD_WORKER = "DataLoader worker"
"""In the RuntimeError that PyTorch has for a worker that ended."""


class NonFiniteLossError(RuntimeError):
    """A loss or a gradient became NaN or infinite; the message names the loss term, or the
    parameter, and the images.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: dict[str, Tensor],
        parts: list[Batch],
        *,
        step: int,
        lr: float,
    ) -> None:
        """terms: name -> scalar tensor. parts: the batches of the step, of images that have .ids.
        step: the steps done before this one.
        """
        values = {name: value.item() for name, value in terms.items()}
        ids = [image_id for images, _ in parts for image_id in images.ids]
        bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        what = "non-finite loss" if bad else "finite loss but non-finite gradient"
        bad = bad or [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
        super().__init__(
            f"{what} in step {step + 1}: {', '.join(bad[:4])}{more}; images "
            f"{', '.join(map(str, ids))}; lr {lr:g}. Nothing was saved after it"
        )


def kind_of(error: BaseException) -> Kind:
    """Return what an error that ends a training is."""
    if isinstance(error, NonFiniteLossError):
        return "non-finite"
    if isinstance(error, LostProcessError):
        return "lost"
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return "memory"
    if isinstance(error, RuntimeError) and _DEAD_WORKER in str(error):
        return "worker"
    return "error"


def message_of(error: BaseException) -> str:
    """Return the message of an error; of one in a loader's worker, whose traceback PyTorch puts
    into it, the message the worker raised.
    """
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


@dataclass
class StepRecord:
    """One step of this process: the steps done before it, its images and their sizes (h, w) px as
    far as these are known, the px (h, w) of its padded batches, the boxes of each image, None for
    targets without any; seconds of waiting for data and of the step; values by name, scalar tensors
    on their device: nothing waits for them. seed: of what the model draws. memory: the most bytes
    taken so far.
    """

    step: int
    ids: list
    sizes: list
    padded: list
    boxes: list[int | None]
    lr: float
    seed: int
    data_s: float
    values: dict[str, Tensor] = field(default_factory=dict)
    memory: int | None = None
    step_s: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values, which are read from their device now."""
        return {**vars(self), "values": {name: each.item() for name, each in self.values.items()}}


class FlightRecorder:
    """Keeps the last steps for a bundle, should one fail; costs no wait for the device.

    parts: the batches of the step that is being computed, the only ones whose pixels are held; None
    between two steps.
    """

    def __init__(self) -> None:
        self.records: deque[StepRecord] = deque(maxlen=LAST)
        self.parts: list[Batch] | None = None

    def begin(self, step: int, parts: list[Batch], *, lr: float, seed: int, data_s: float) -> None:
        """A step begins, after `step` others, on these batches."""
        self.parts = parts
        self.records.append(
            StepRecord(
                step,
                [image_id for images, _ in parts for image_id in images.ids],
                [size for images, _ in parts for size in getattr(images, "sizes", ())],
                [tuple(i.pixels.shape[2:]) for i, _ in parts if hasattr(i, "pixels")],
                [number for _, targets in parts for number in _box_counts(targets)],
                lr,
                seed,
                data_s,
            )
        )

    def computed(self, values: dict[str, Tensor]) -> None:
        """The step's losses and gradients are there: name -> scalar tensor without gradient."""
        self.records[-1].values = values
        self.records[-1].memory = most_bytes()

    def end(self, step_s: float) -> None:
        """The step is done, in `step_s` seconds."""
        self.records[-1].step_s = step_s
        self.parts = None


def _box_counts(targets: object) -> list[int | None]:
    """Of each image; nothing for the targets of a whole batch."""
    each = targets if isinstance(targets, list) else []
    return [len(one.boxes) if hasattr(one, "boxes") else None for one in each]
