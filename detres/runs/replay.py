"""What is at fault in a bundle: the step is computed once more, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detres.console import plural, shortened
from detres.engine.distributed import Group
from detres.engine.layers import gradient_statistics, watched
from detres.engine.optimizers import gradient_norm
from detres.engine.step import GradientStep
from detres.files import first_line
from detres.runs.bundle import Bundle

Part = tuple[Any, Any]
"""Images with .pixels (N, 3, H, W), .ids and len(), and their targets."""

_NAMED = 4
"""Of images, boxes or parameters at fault so many are named."""

_GREW = 10.0
"""A step has diverged whose gradient norm or loss is so many times that of the first one kept."""

_GREY = 127


@dataclass(frozen=True)
class Replayed:
    """The step at fault: its model and batches.

    alone: (images, targets, n) -> those of image `n` alone. faults: (images, targets, n) -> what is
    wrong with the targets of image `n`, in words.
    """

    model: nn.Module
    parts: list[Part]
    alone: Callable[[Any, Any, int], Part]
    faults: Callable[[Any, Any, int], list[str]]


@dataclass(frozen=True)
class _Outcome:
    """What one image gives by itself: terms of the loss that are not finite, the first layer whose
    output is not, the parameters whose gradient is not, or the error that stopped it.
    """

    terms: tuple[str, ...] = ()
    layer: str | None = None
    parameters: tuple[str, ...] = ()
    error: str | None = None

    @property
    def is_bad(self) -> bool:
        return bool(self.terms or self.parameters or self.error)

    def described(self) -> str:
        if self.error is not None:
            return f"ends with: {shortened(self.error, 200)}"
        said = ", ".join(self.terms[:_NAMED])
        if not self.terms:
            said = f"a finite loss, but a gradient of {_listed(self.parameters)} that is not"
        layer = f"; the first output that is not finite: {self.layer}" if self.layer else ""
        return f"gives {said}{layer}"


def what_is_at_fault(bundle: Bundle, step: Replayed | None, device: torch.device) -> list[str]:
    """Return lines that say which image, box, loss term or layer is at fault, or what else is.

    step: of the bundle, which is computed on `device`; None where it holds none.
    """
    lines = [f"{bundle.path}: step {bundle.step + 1}, {bundle.error}: {bundle.message}"]
    if bundle.kind == "worker":
        return [
            *lines,
            f"at fault: a loader's worker that ended ({bundle.doing}); no image is known to be: "
            "it was ended from outside, or the memory was used up: try a smaller data.workers",
        ]
    if bundle.kind == "lost":
        return [*lines, "at fault: the process that is named, which may have a bundle of its own"]
    if bundle.kind == "memory":
        return lines + _of_memory(bundle)
    if step is None:
        return [*lines, f"at fault: what is named, no step: it came while {bundle.doing}"]
    return lines + _of_step(bundle, step, device)


def _of_memory(bundle: Bundle) -> list[str]:
    if not bundle.records:
        return ["at fault: no step, for none had begun"]
    *before, last = bundle.records
    padded = last["padded"] or [()]
    batches = " and ".join(_size(size) for size in padded if size)
    number = len(last["ids"])
    lines = [
        f"at fault: the size of the step, {plural(number, 'image')} padded to {batches} px (h x w)"
        + _and_boxes(last)
    ]
    if last["sizes"]:
        areas = [height * width for height, width in last["sizes"]]
        n = areas.index(max(areas))
        boxes = f", {plural(last['boxes'][n], 'box', 'boxes')}" if last["boxes"] else ""
        lines.append(f"its largest: {_image(last, n)}, {_size(last['sizes'][n])} px{boxes}")
    pixels = [math.prod(size) for each in before for size in each["padded"]]
    if pixels and padded[0]:
        least = max(range(len(pixels)), key=pixels.__getitem__)
        most = [size for each in before for size in each["padded"]][least]
        lines.append(f"the {len(before)} steps before were padded to {_size(most)} px at most")
    side = "model.input.max_side" if bundle.wing == "detection" else "data.crop_side"
    lines.append(
        f"what needs less: a smaller train.batch_size (with train.accumulate, the same step in "
        f"parts), a smaller {side}, train.precision=bf16"
    )
    return lines


def _of_step(bundle: Bundle, step: Replayed, device: torch.device) -> list[str]:
    with bundle.reading():
        seed, precision = int(bundle.state["seed"]), bundle.state["precision"]
        gradients = GradientStep(step.model.to(device), step.model, Group(), device, precision)
    step.model.train()
    places = [(part, n) for part, (images, _) in enumerate(step.parts) for n in range(len(images))]
    outcomes = [_computed(gradients, step.alone(*step.parts[p], n), seed) for p, n in places]
    inputs = [_input_faults(step, p, n) for p, n in places]
    named = [_image(bundle.records[-1], number) for number in range(len(places))]
    wrong = [number for number, faults in enumerate(inputs) if faults]
    bad = [number for number, outcome in enumerate(outcomes) if outcome.is_bad]
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if bundle.kind == "non-finite" and len(failed) == len(places):
        return [f"the step cannot be computed here: {failed[0]}"]
    if wrong:
        return [
            line
            for number in wrong[:_NAMED]
            for line in (
                f"at fault: {named[number]}: {_listed(inputs[number], '; ')}",
                *([f"alone it {outcomes[number].described()}"] if outcomes[number].is_bad else []),
            )
        ]
    if bad and not _is_of_weights(bundle, step, gradients, seed, bad, places):
        return [f"at fault: {named[n]}: alone it {outcomes[n].described()}" for n in bad[:_NAMED]]
    if not bad and bundle.size > 1 and (others := _others(bundle)):
        return [f"at fault: none of this process's images; see {_listed(others)}"]
    if not bad and not _has_grown(bundle):
        return [
            "at fault: no image by itself: each gives a finite loss and gradient on this device "
            f"({device}); all together, or another device, do not"
        ]
    alone = "each image alone stays finite"
    if bad:
        alone = f"each image alone fails, and a grey one; the first {outcomes[bad[0]].described()}"
    return [
        f"no single image is at fault: the step diverged: {_growth(bundle)}",
        alone,
    ]


def _computed(gradients: GradientStep, part: Part, seed: int) -> _Outcome:
    """One image, forward and backward."""
    model = gradients.model
    model.zero_grad()
    with watched(model) as outputs:
        try:
            losses = gradients.forward(part, 0, seed)
            losses.total().backward()
        except Exception as error:  # whatever it is, it is what is looked for
            return _Outcome(error=f"{type(error).__name__}: {first_line(error)}")
    terms = {name: value.item() for name, value in losses.terms().items()}
    bad = tuple(f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value))
    layer = next((each.name for each in outputs if each.nonfinite), None)
    parameters = tuple(each.name for each in gradient_statistics(model) if each.nonfinite)
    if not parameters and not bool(gradient_norm(model).isfinite()):
        parameters = ("all together",)
    return _Outcome(bad, layer, parameters)


def _input_faults(step: Replayed, part: int, n: int) -> list[str]:
    images, targets = step.parts[part]
    pixels: Tensor = images.pixels[n]
    found = []
    lost = (~pixels.isfinite()).nonzero() if pixels.is_floating_point() else ()
    if len(lost):
        channel, y, x = lost[0].tolist()
        value = pixels[channel, y, x].item()
        found.append(
            f"{len(lost)} of its {pixels.numel()} pixel values are not finite, the first {value} "
            f"at x {x}, y {y}"
        )
    return found + step.faults(images, targets, n)


def _is_of_weights(
    bundle: Bundle,
    step: Replayed,
    gradients: GradientStep,
    seed: int,
    bad: list[int],
    places: list[tuple[int, int]],
) -> bool:
    """Whether it is not the images: all of them are bad, and so is a grey one in their place."""
    if bundle.kind != "non-finite" or len(bad) < len(places):
        return False
    part, n = places[0]
    images, targets = step.alone(*step.parts[part], n)
    grey = replace(images, pixels=torch.full_like(images.pixels, _GREY))
    return _computed(gradients, (grey, targets), seed).is_bad


def _has_grown(bundle: Bundle) -> bool:
    for name in ("grad_norm", "loss"):
        values = [each["values"].get(name) for each in bundle.records]
        finite = [value for value in values if value is not None]
        if len(finite) > 1 and finite[-1] > _GREW * finite[0]:
            return True
    return False


def _growth(bundle: Bundle) -> str:
    values = [each["values"] for each in bundle.records]
    norm, loss = (_course([each.get(name) for each in values]) for name in ("grad_norm", "loss"))
    return (
        f"gradient norm {norm}, loss {loss} over the last {plural(len(values), 'step')}, "
        f"lr {bundle.records[-1]['lr']:g}"
    )


def _course(values: list[float | None]) -> str:
    """The first and the last of values, where they are two, and whether they ended beyond all."""
    finite = [f"{value:.3g}" for value in values if value is not None]
    ended = ["not finite"] if values[-1] is None else []
    return " -> ".join([*finite[:1], *finite[1:][-1:], *ended])


def _others(bundle: Bundle) -> list[str]:
    """Bundles of the same step by other processes."""
    found = bundle.path.parent.glob(f"bundle-step-{bundle.step + 1}*")
    return sorted(str(path) for path in found if path.name != bundle.path.name)


def _image(record: dict, number: int) -> str:
    return f"image {record['ids'][number]} ({record['files'][number]})"


def _and_boxes(record: dict) -> str:
    counts = [number for number in record["boxes"] if number is not None]
    return f", with {' + '.join(map(str, counts))} boxes" if counts else ""


def _size(size: list[int]) -> str:
    return " x ".join(map(str, size))


def _listed(items: tuple[str, ...] | list[str], between: str = ", ") -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return f"{between.join(items[:_NAMED])}{more}"
