"""The optimisation and where the data are: settings both wings have, and what is built from
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import nn

from detres.config import Count, Fraction, Positive, PositiveFloat, Section
from detres.engine.batches import Share
from detres.engine.distributed import Group
from detres.engine.memory_probe import largest_that_fits, memory_of, step_peak
from detres.engine.optimizers import adamw, sgd
from detres.engine.probes import compile_failure, native_precision, precision_failure
from detres.engine.schedule import Schedule
from detres.engine.step import Batch
from detres.user_files import expanded


class DataRootError(ValueError):
    """It is not said where the data are, or what is said cannot be."""


class ShapesRootError(DataRootError):
    """The folder that is given for the embedded shapes holds something else."""


_EVALUATIONS = 5
"""Of a run by default, the one at the end among them."""

_LEAST_BETWEEN = 20
"""Steps between two of them: before that a detector has hardly learned anything new."""


class TrainConfig(Section):
    """The optimisation, in steps of `batch_size` times `accumulate` images; `epochs` instead of
    `steps` makes the milestones epochs too.
    """

    # images at once, in all processes together; auto: the largest divisor of `reference_batch` that
    # fits into the memory, and `accumulate` the rest, settled at the start
    batch_size: Positive | Literal["auto"] = 2
    # batches that make one step, whose losses are those of all their images: a larger batch in the
    # memory of a small one (py-faster-rcnn's iter_size)
    accumulate: Positive = 1
    lr: PositiveFloat = 1e-3  # for `reference_batch` images
    # py-faster-rcnn: the gradients of two images averaged (iter_size 2)
    reference_batch: Positive = 2
    # whether lr is multiplied by the images of a step / reference_batch
    lr_scaling: Literal["linear", "none"] = "linear"
    steps: Positive | None = None  # length of the run; this or `epochs`
    epochs: PositiveFloat | None = None  # length in passes over the training set
    # how lr falls: at milestones, when evaluations stall, or along half a cosine to 0
    schedule: Literal["multistep", "plateau", "cosine"] = "multistep"
    milestones: tuple[PositiveFloat, ...] = ()  # where lr is multiplied by gamma
    gamma: Fraction = 0.1  # factor of lr at a milestone
    # plateau: evaluations in a row without a better metric, after which lr is multiplied by gamma
    patience: Positive = 5
    warmup_steps: Count = 500  # Detectron; py-faster-rcnn has no warm-up
    warmup_factor: Fraction = 1 / 3  # share of lr that the warm-up starts from, rising in a line
    # adamw is not the paper's: for short runs from random weights
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Fraction = 0.9  # sgd only
    # sgd only: how much faster biases learn (py-faster-rcnn's lr_mult 2; Detectron's too)
    bias_lr_scale: PositiveFloat = 2.0
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4  # of weights and, with sgd, of biases
    # largest 2-norm of all gradients together; null: no limit
    clip_grad_norm: PositiveFloat | None = None
    # of the forward pass; auto: bf16 where the device has instructions for it, settled at the
    # start; fp16: on GPUs, with scaled losses
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    # whether most activations are computed again in the backward instead of kept: less memory for
    # about a third more time, and the same result
    checkpoint_activations: bool = False
    log_every: Positive = 20  # steps
    # steps; 0: only at the end; auto: a fifth of the run, where that is 20 steps or more
    eval_every: Count | Literal["auto"] = 0
    # evaluations in a row without a better one, after which training ends; 0: never
    early_stopping: Count = 0
    # a moving average of the weights that keeps this share a step is evaluated and kept, null: the
    # weights themselves, as in the paper; 0.999 suits some thousands of steps
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    save_every: Positive = 500  # steps between two states to resume from

    @classmethod
    def overridden(cls, settings: dict, given: set[str], earlier: dict) -> dict:  # noqa: ARG003
        """`steps` and `epochs` displace each other; milestones stay at the same part of the run."""
        for key, other in (("steps", "epochs"), ("epochs", "steps")):
            now, before = settings.get(key), settings.get(other)
            if key in given and now is not None and before is not None and other not in given:
                milestones = settings.get("milestones") if "milestones" not in given else None
                return {other: None} | _milestones_moved(milestones, before, now)
        return {}

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.steps is None and self.epochs is None:
            raise ValueError("give either train.steps or train.epochs")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                "steps and epochs are both given: set one of train.steps and train.epochs to null"
            )
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} are not in rising order")
        length = self.steps if self.steps is not None else self.epochs
        if self.milestones and self.milestones[-1] >= length:
            raise ValueError(
                f"milestone {self.milestones[-1]:g} lies at or beyond the end of training, "
                f"{length:g}: give train.milestones for this length, [] for none"
            )
        if self.schedule != "multistep" and self.milestones:
            raise ValueError(f"schedule {self.schedule} has no milestones")
        if self.schedule == "plateau" and self.eval_every in (0, "auto"):
            raise ValueError("schedule plateau waits for evaluations: give train.eval_every")
        if (
            self.schedule == "plateau"
            and self.steps is not None
            and self.patience * self.eval_every >= self.steps
        ):
            raise ValueError(
                f"schedule plateau would never act: train.patience {self.patience} evaluations, "
                f"one every {self.eval_every} steps, are not over before the end, step {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _parts_follow(self) -> TrainConfig:
        if self.batch_size == "auto" and self.accumulate != 1:
            raise ValueError(
                "batch_size auto settles accumulate, so that a step has reference_batch images: "
                "leave accumulate out"
            )
        return self

    @model_validator(mode="after")
    def _early_stopping_has_evaluations(self) -> TrainConfig:
        if self.early_stopping and self.eval_every == 0:
            raise ValueError(
                "early_stopping counts evaluations on the way: give train.eval_every, in steps"
            )
        return self

    def evaluated_every(self, steps: int) -> int:
        """Return after how many steps of a run of `steps` there is an evaluation; 0: at the end
        alone, as in runs too short for more by default.
        """
        if self.eval_every != "auto":
            return self.eval_every
        every = -(-steps // _EVALUATIONS)
        return every if every >= _LEAST_BETWEEN else 0

    def in_steps(self, num_images: int) -> tuple[int, tuple[int, ...]]:
        """Return the number of steps and the milestones in steps, for a training set of
        `num_images`.
        """
        if self.steps is not None:
            return self.steps, tuple(round(m) for m in self.milestones)
        per_epoch = num_images / self.images_per_step
        return max(1, round(self.epochs * per_epoch)), tuple(
            round(m * per_epoch) for m in self.milestones
        )

    def settled(self, device: torch.device) -> tuple[TrainConfig, str | None]:
        """Return these settings with "auto" replaced by what `device` can do, and why, in words;
        None where nothing was to be settled.
        """
        if self.precision != "auto":
            return self, None
        precision, reason = native_precision(device)
        return self.model_copy(update={"precision": precision}), reason

    def require_possible(self, device: torch.device) -> None:
        """Raise ValueError where `device` cannot train by these settings."""
        failure = precision_failure(self.precision, device)
        if failure is not None:
            raise ValueError(f"train.precision: {failure}")

    @property
    def images_per_step(self) -> int:
        """How many images a step learns from."""
        if self.batch_size == "auto":
            return self.reference_batch
        return self.batch_size * self.accumulate

    @property
    def effective_lr(self) -> float:
        """The learning rate for the images of a step."""
        return (
            self.lr * self.images_per_step / self.reference_batch
            if self.lr_scaling == "linear"
            else self.lr
        )


def _milestones_moved(milestones: object, before: object, now: object) -> dict:
    """The setting of milestones of a run of length `before` at the same parts of one of `now`;
    nothing where there are none, or where a value, none of which is checked yet, is no number.
    """
    values = [before, now, *milestones] if isinstance(milestones, list) else []
    if len(values) < 3 or not all(type(value) in (int, float) and value > 0 for value in values):
        return {}
    return {"milestones": [milestone / before * now for milestone in milestones]}


class DataSettings(Protocol):
    """Where data are: what the data sections of both wings have in common."""

    format: str
    root: str | None

    def model_copy(self, *, update: dict[str, object]) -> DataSettings:
        """Return a copy with some fields changed."""


def with_data_root(data: DataSettings, root: str | Path | None) -> DataSettings:
    """Return `data` with its root settled: `root`, else its own, else the environment variable
    DETRES_DATA.

    A folder becomes an absolute path, so that weights are evaluated from any directory; shards may
    be behind a URL. The shapes data need no root; theirs is the cache folder they are drawn into.

    Raises DataRootError when none of the three is given, ShapesRootError for shapes in a folder
    that holds other files, FileNotFoundError when the folder is not there.
    """
    chosen = root or data.root or os.environ.get("DETRES_DATA")
    chosen = expanded(str(chosen)) if chosen else None
    if data.format == "shapes":
        cache = root or data.root
        if cache and _holds_other_files(Path(cache)):
            raise ShapesRootError(
                f"{cache} holds other files, and the data here are the embedded shapes, which are "
                "drawn into a cache folder of their own"
            )
        return data.model_copy(update={"root": str(Path(cache).absolute()) if cache else None})
    if not chosen:
        raise DataRootError("it is not said where the data are")
    if data.format == "shards" and "://" in str(chosen):
        return data.model_copy(update={"root": str(chosen)})
    if not Path(chosen).is_dir():
        raise FileNotFoundError(f"data folder {chosen} does not exist or is not a folder")
    return data.model_copy(update={"root": str(Path(chosen).absolute())})


def holds_shapes(folder: Path) -> bool:
    """Whether embedded shapes were drawn into `folder`."""
    return folder.is_dir() and any(folder.glob("*shapes-v*"))


def _holds_other_files(cache: Path) -> bool:
    return cache.is_dir() and any(cache.iterdir()) and not holds_shapes(cache)


def build_optimizer(settings: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over what learns in `model`; raises ValueError when nothing does."""
    if settings.optimizer == "adamw":
        return adamw(model, weight_decay=settings.weight_decay)
    return sgd(
        model,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        bias_lr_scale=settings.bias_lr_scale,
    )


def share_of(settings: TrainConfig, group: Group) -> Share:
    """Return what one process of `group` gets of a step; raises ValueError where a batch cannot be
    divided among them.
    """
    if settings.batch_size % group.size:
        raise ValueError(
            f"train.batch_size={settings.batch_size} cannot be divided among {group.size} "
            f"processes: give a multiple of {group.size}, or start as many processes as divide it"
        )
    return replace(group.share, parts=settings.accumulate)


def with_batch_that_fits(
    settings: TrainConfig,
    model: nn.Module,
    worst_batch: Callable[[int], Batch],
    device: torch.device,
    group: Group,
    show: Callable[[str], None],
) -> TrainConfig:
    """Return `settings` with numbers in the place of batch_size "auto": the largest divisor of
    reference_batch whose worst batch goes forward and backward on `device`, in every process of
    `group`, and accumulate the rest; any others as they are.

    worst_batch: number of images -> the batch. show: called with a line. Raises ValueError where a
    step cannot be shared out, and where one image does not fit.
    """
    if settings.batch_size != "auto":
        return settings
    whole, rest = divmod(settings.reference_batch, group.size)
    if rest:
        raise ValueError(
            f"train.batch_size=auto: {settings.reference_batch} images (train.reference_batch) "
            f"cannot be divided among {group.size} processes"
        )
    precision = settings.settled(device)[0].precision
    each, why = largest_that_fits(
        [size for size in range(1, whole + 1) if whole % size == 0],
        lambda size: step_peak(model, worst_batch(size), device, precision),
        memory_of(device),
    )
    each = min(group.gather(each or 0))
    if each == 0:
        raise ValueError(
            f"train.batch_size=auto: not even one image fits into the memory ({why}): give smaller "
            "images or train.checkpoint_activations=true"
        )
    update = {"batch_size": each * group.size, "accumulate": whole // each}
    show(
        f"train.batch_size=auto: {update['batch_size']}, train.accumulate={update['accumulate']} "
        f"for the {settings.reference_batch} images of a step: {why}"
    )
    return settings.model_copy(update=update)


class Compilable(Protocol):
    """A model whose training steps torch.compile can be asked to make faster."""

    def compile_training(self) -> None:
        """Compile what training steps consist of."""


def compile_where_asked(
    asked: bool | Literal["auto"],
    model: Compilable,
    device: torch.device,
    show: Callable[[str], None],
) -> None:
    """Compile the training steps of `model`, which is on its `device`, if `asked`, "auto" being on
    a GPU where that works.

    show: called with a line where "auto" does not work. Raises ValueError with the cause when True
    is asked and it does not work.
    """
    if asked is False or (asked == "auto" and device.type != "cuda"):
        return
    failure = compile_failure(device)
    if failure is None:
        model.compile_training()
    elif asked is True:
        raise ValueError(
            f"train.compile: torch.compile does not work here: {failure}; train.compile=false goes "
            "without it"
        )
    else:
        show(f"note: training steps are not compiled, torch.compile does not work here: {failure}")


def build_schedule(settings: TrainConfig, num_images: int) -> Schedule:
    """Return the schedule, its length and milestones in steps, for a training set of
    `num_images`.
    """
    steps, milestones = settings.in_steps(num_images)
    return Schedule(
        lr=settings.effective_lr,
        steps=steps,
        shape=settings.schedule,
        milestones=milestones,
        gamma=settings.gamma,
        patience=settings.patience,
        warmup_steps=settings.warmup_steps,
        warmup_factor=settings.warmup_factor,
    )
