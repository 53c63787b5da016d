"""The report of a step whose loss or gradient is not finite."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from pathlib import Path

from torch import Tensor, nn

from detres.engine.step import Batch


class NonFiniteLossError(RuntimeError):
    """A loss or a gradient became NaN or infinite; the message names the loss term, or the
    parameter, and the images.

    record: enough to repeat the step, as plain values: step, lr, terms, ids of the images, targets.
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
        self.record = {
            "step": step,
            "lr": lr,
            "terms": values,
            "images": ids,
            "targets": _plain([each for _, targets in parts for each in _listed(targets)]),
        }
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

    def written_to(self, path: Path) -> None:
        """Say in the message where the record now is."""
        self.args = (f"{self}; the batch is in {path}",)


def _listed(targets: object) -> list:
    """Those of each image, or of a whole batch as one."""
    return targets if isinstance(targets, list) else [targets]


def _plain(target: object) -> object:
    """Targets as JSON: tensors become lists, dataclasses mappings."""
    if isinstance(target, list):
        return [_plain(item) for item in target]
    if is_dataclass(target):
        return {field.name: _plain(getattr(target, field.name)) for field in fields(target)}
    return target.tolist() if isinstance(target, Tensor) else target
