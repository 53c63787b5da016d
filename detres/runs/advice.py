"""What is said of settings before a run begins: how a step is divided, and what of them cannot
act or depends on the number of processes.
"""

from __future__ import annotations

from torch import nn

from detres.console import plural
from detres.engine.schedule import Schedule
from detres.runs.settings import TrainConfig


def batch_in_words(train: TrainConfig, num_processes: int) -> str:
    """Return how many images a step has, and how they are divided."""
    divided = [] if num_processes == 1 else [plural(num_processes, "process", "processes")]
    if train.accumulate > 1:
        divided.append(f"{train.accumulate} parts one after the other")
    each = train.batch_size // num_processes
    said = f" ({' x '.join(divided)} of {plural(each, 'image')})" if divided else ""
    return f"{train.images_per_step}{said}"


def advice_on(
    train: TrainConfig, schedule: Schedule, model: nn.Module, num_processes: int
) -> list[str]:
    """Return what is to be said of the settings of a run, a line each."""
    found = (
        _of_warmup(train, schedule),
        _of_batch_norm(train, model, num_processes),
        _of_early_stopping(train, schedule.steps),
    )
    return [line for line in found if line is not None]


def _of_warmup(train: TrainConfig, schedule: Schedule) -> str | None:
    if schedule.warmup_steps <= schedule.steps or schedule.warmup_until_error is not None:
        return None
    return (
        f"the warm-up of {schedule.warmup_steps} steps (train.warmup_steps) is longer than the "
        f"run: its rate stays below {train.effective_lr:g}"
    )


def _of_batch_norm(train: TrainConfig, model: nn.Module, num_processes: int) -> str | None:
    """Of a batch norm that learns where a step is divided."""
    norms = [norm for norm in model.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    if num_processes > 1 and any(type(norm) is nn.BatchNorm2d for norm in norms):
        return (
            f"batch norm takes its statistics from the {train.batch_size // num_processes} images "
            "of each process, so the result depends on their number: norm=sync takes them from "
            "all, norm=frozen and norm=group need none"
        )
    if train.accumulate > 1 and norms:
        return (
            f"batch norm takes its statistics from {train.batch_size} images at once, not from all "
            f"{train.images_per_step} of a step: norm=frozen and norm=group need none"
        )
    return None


def _of_early_stopping(train: TrainConfig, steps: int) -> str | None:
    every = train.evaluated_every(steps)
    on_the_way = (steps - 1) // every if every else 0
    if train.early_stopping < max(on_the_way, 1):  # the first is better than none
        return None
    return (
        f"train.early_stopping={train.early_stopping} cannot act: there are {on_the_way} "
        "evaluations on the way, the first of them among these"
    )
