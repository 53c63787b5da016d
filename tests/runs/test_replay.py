"""What is said to be at fault: the image that is, or none where it is none of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detres.losses import Losses
from detres.runs.bundle import Bundle
from detres.runs.replay import Replayed, what_is_at_fault

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pictures:
    pixels: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Pictures:
        return replace(self, pixels=self.pixels.to(device))


class Brightness(nn.Module):
    """Its loss is the logarithm of what a layer makes of the mean brightness; its root's gradient
    is infinite where that is 0 and `rooted`.
    """

    def __init__(self, weight: float, *, rooted: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.last = nn.Identity()
        self.rooted = rooted
        nn.init.constant_(self.layer.weight, weight)

    def forward(self, images: Pictures, _targets: list[Tensor]) -> Losses:
        if (images.pixels == 99).any():
            raise IndexError("no such row")
        bright = images.pixels.mean(dim=(1, 2, 3))[:, None]
        made = self.layer(bright)
        value = self.last(made.abs().sqrt() if self.rooted else made.log())
        return Losses({"loss_log": value.sum()}, {"loss_log": len(images)})


def pictures(*levels: float) -> Pictures:
    pixels = (
        torch.tensor(levels, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 4, 5).clone()
    )
    return Pictures(pixels, tuple("abcdefgh"[: len(levels)]))


def record(images: int, step: int, *, loss: float | None, norm: float | None) -> dict:
    ids = list("abcdefgh"[:images])
    return {
        "step": step,
        "ids": ids,
        "files": [f"{each}.jpg" for each in ids],
        "sizes": [[4, 5]] * (images - 1) + [[6, 5]],
        "padded": [[6, 5]],
        "boxes": list(range(images)),
        "lr": 0.5,
        "values": {"loss": loss, "grad_norm": norm},
    }


def bundle_of(images: int, *, kind: str = "non-finite", **given: object) -> Bundle:
    steps = [
        record(images, n, loss=2.0 + n, norm=norm) for n, norm in enumerate(given.pop("norms", ()))
    ]
    return Bundle(
        **{
            "path": Path("runs/x/bundle-step-6"),
            "wing": "detection",
            "kind": kind,
            "error": "SomeError",
            "message": "it failed",
            "doing": "step 6",
            "step": 5,
            "rank": 0,
            "size": 1,
            "records": [*steps, record(images, 5, loss=None, norm=None)],
            "state": {"seed": 3, "precision": "fp32"},
        }
        | given
    )


def said(model: nn.Module, images: Pictures, bundle: Bundle, wrong: dict | None = None) -> list:
    """The lines but the first one; wrong: row of an image -> what is wrong with its targets."""
    step = Replayed(
        model,
        [(images, [torch.zeros(1)] * len(images))],
        lambda images, targets, n: (
            Pictures(images.pixels[n : n + 1], images.ids[n : n + 1]),
            [targets[n]],
        ),
        lambda _images, _targets, n: (wrong or {}).get(n, []),
    )
    first, *lines = what_is_at_fault(bundle, step, CPU)
    assert first == "runs/x/bundle-step-6: step 6, SomeError: it failed"
    return lines


def test_the_image_that_fails_alone_is_named_with_its_layer_and_term():
    assert said(Brightness(1.0), pictures(3, 0, 5), bundle_of(3)) == [
        "at fault: image b (b.jpg): alone it gives loss_log = -inf; the first output that is not "
        "finite: last"
    ]


def test_a_gradient_that_is_not_finite_is_named_by_its_parameter():
    found = said(Brightness(0.0, rooted=True), pictures(3, 0, 5), bundle_of(3))
    assert found[0].startswith("no single image is at fault")  # all of them, by the weight of 0
    assert found[0].endswith(
        "gradient norm not finite, loss not finite over the last 1 step, lr 0.5"
    )
    assert found[1] == (
        "each image alone fails, and a grey one; the first gives a finite loss, but a gradient of "
        "layer.weight that is not"
    )
    (line,) = said(Brightness(1.0, rooted=True), pictures(3, 0), bundle_of(2))
    assert line.startswith(
        "at fault: image b (b.jpg): alone it gives a finite loss, but a gradient"
    )


@pytest.mark.parametrize("levels", [(3, 4, 5), (3,)])
def test_weights_that_fail_on_all_images_and_on_a_grey_one_have_diverged(levels: tuple):
    lines = said(
        Brightness(math.inf), pictures(*levels), bundle_of(len(levels), norms=(1.5, 20.0, 4e9))
    )
    assert lines == [
        "no single image is at fault: the step diverged: gradient norm 1.5 -> 4e+09 -> not "
        "finite, loss 2 -> 4 -> not finite over the last 4 steps, lr 0.5",
        "each image alone fails, and a grey one; the first gives loss_log = inf; the first output "
        "that is not finite: layer",
    ]


def test_the_only_image_of_a_batch_is_named_where_a_grey_one_is_well():
    (line,) = said(Brightness(1.0), pictures(0), bundle_of(1, norms=(1.0, 1.0)))
    assert line.startswith("at fault: image a (a.jpg): alone it gives loss_log = -inf")


def test_what_is_wrong_with_pixels_and_targets_comes_first_and_names_only_these():
    images = pictures(3, 4, 5)
    images.pixels[2, 1, 3, 2] = math.nan
    assert said(Brightness(1.0), images, bundle_of(3)) == [
        "at fault: image c (c.jpg): 1 of its 60 pixel values are not finite, the first nan at x 2, "
        "y 3",
        "alone it gives loss_log = nan; the first output that is not finite: layer",
    ]
    wrong = {1: ["box 0 is odd", "box 7 is odd"]}
    assert said(Brightness(1.0), pictures(3, 4), bundle_of(2), wrong) == [
        "at fault: image b (b.jpg): box 0 is odd; box 7 is odd"
    ]


def test_any_other_error_names_the_image_that_repeats_it():
    (line,) = said(Brightness(1.0), pictures(3, 99, 5), bundle_of(3, kind="error"))
    assert line == "at fault: image b (b.jpg): alone it ends with: IndexError: no such row"


def test_a_step_that_cannot_be_computed_is_no_verdict():
    (line,) = said(Brightness(1.0), pictures(99, 99), bundle_of(2))
    assert line == "the step cannot be computed here: IndexError: no such row"


def test_where_each_image_is_well_alone_that_is_said():
    (line,) = said(Brightness(1.0), pictures(3, 4), bundle_of(2, norms=(1.0, 1.1)))
    assert line.startswith("at fault: no image by itself: each gives a finite loss and gradient")
    grown = said(Brightness(1.0), pictures(3, 4), bundle_of(2, norms=(1.0, 11.0)))
    assert grown[0].startswith(
        "no single image is at fault: the step diverged: gradient norm 1 -> 11 -> not finite, "
    )
    assert grown[1] == "each image alone stays finite"


def test_of_several_processes_it_points_to_the_other_bundles(tmp_path: Path):
    own, other = tmp_path / "bundle-step-6", tmp_path / "bundle-step-6-rank-3"
    own.mkdir()
    other.mkdir()
    (tmp_path / "bundle-step-7-rank-1").mkdir()
    bundle = replace(bundle_of(2, size=4), path=own)
    step = Replayed(
        Brightness(1.0),
        [(pictures(3, 4), [])],
        lambda images, _targets, n: (
            Pictures(images.pixels[n : n + 1], images.ids[n : n + 1]),
            [],
        ),
        lambda *_: [],
    )
    assert what_is_at_fault(bundle, step, CPU)[1:] == [
        f"at fault: none of this process's images; see {other}"
    ]


def test_of_memory_it_names_the_sizes_and_the_settings():
    bundle = bundle_of(3, kind="memory", norms=(1.0, 1.0))
    bundle.records[0]["padded"] = [[2, 5], [3, 5]]
    bundle.records[1]["padded"] = [[1, 1]]
    assert what_is_at_fault(bundle, None, CPU)[1:] == [
        "at fault: the size of the step, 3 images padded to 6 x 5 px (h x w), with 0 + 1 + 2 boxes",
        "its largest: image c (c.jpg), 6 x 5 px, 2 boxes",
        "the 2 steps before were padded to 3 x 5 px at most",
        "what needs less: a smaller train.batch_size (with train.accumulate, the same step in "
        "parts), a smaller model.input.max_side, train.precision=bf16",
    ]
    assert what_is_at_fault(bundle_of(1, kind="memory", records=[]), None, CPU)[1:] == [
        "at fault: no step, for none had begun"
    ]


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("worker", "at fault: a loader's worker that ended (step 6); no image is known to be"),
        ("lost", "at fault: the process that is named"),
        ("error", "at fault: what is named, no step: it came while step 6"),
    ],
)
def test_what_is_of_no_step_is_said_to_be(kind: str, start: str):
    (line,) = what_is_at_fault(bundle_of(1, kind=kind), None, CPU)[1:]
    assert line.startswith(start)
