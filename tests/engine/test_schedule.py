"""The learning rate: values worked out by hand, boundaries included, and the invariants of any
schedule.
"""

from __future__ import annotations

import math
import random

import pytest
import torch

from detres.engine.progress import Progress
from detres.engine.schedule import Schedule


def test_warm_up_is_linear_and_ends_on_the_base_rate():
    schedule = Schedule(lr=0.3, steps=100, warmup_steps=4, warmup_factor=0.2)
    assert [schedule.at(Progress(step)) for step in range(6)] == pytest.approx(
        [0.06, 0.12, 0.18, 0.24, 0.3, 0.3]
    )


def test_a_milestone_counts_from_its_own_step_on():
    schedule = Schedule(lr=1e-3, steps=320, milestones=(240, 300), gamma=0.1)
    assert [schedule.at(Progress(step)) for step in (0, 239, 240, 299, 300, 319)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    )


def test_a_milestone_inside_the_warm_up_multiplies_it():
    schedule = Schedule(
        lr=1.0, steps=10, milestones=(2,), gamma=0.5, warmup_steps=4, warmup_factor=0.0
    )
    assert [schedule.at(Progress(step)) for step in range(5)] == pytest.approx(
        [0.0, 0.25, 0.25, 0.375, 0.5]
    )


def test_no_warm_up_starts_at_the_base_rate():
    assert Schedule(lr=0.02, steps=5, warmup_steps=0, warmup_factor=0.0).at(Progress(0)) == 0.02


def test_cosine_falls_from_the_base_rate_through_half_towards_zero():
    schedule = Schedule(lr=2.0, steps=8, shape="cosine")
    assert [schedule.at(Progress(step)) for step in (0, 2, 4, 6)] == pytest.approx(
        [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    )
    assert 0 < schedule.at(Progress(7)) < schedule.at(Progress(6))


@pytest.mark.parametrize("seed", range(5))
def test_multistep_agrees_with_torch(seed):
    draw = random.Random(seed)
    milestones = tuple(sorted(draw.sample(range(1, 60), 3)))
    schedule = Schedule(
        lr=0.1, steps=60, milestones=milestones, gamma=0.3, warmup_steps=7, warmup_factor=0.25
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=7)
    drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma=0.3)
    for step in range(60):
        assert schedule.at(Progress(step)) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9
        )
        optimizer.step()
        warm_up.step()
        drops.step()


def test_milestones_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"\[5, 3\] are not in rising order"):
        Schedule(lr=0.1, steps=10, milestones=(5, 3))


def test_the_rate_falls_after_every_so_many_evaluations_without_a_better_metric():
    schedule = Schedule(lr=1.0, steps=100, shape="plateau", patience=2)
    metrics = [0.1, 0.3, 0.3, 0.2, 0.4, None, float("nan"), 0.4, 0.1, 0.5]
    rates = [
        schedule.at(Progress(10 * n, dict(zip(range(0, 10 * n, 10), metrics[:n], strict=True))))
        for n in range(len(metrics) + 1)
    ]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_resnet_110_s_warm_up_waits_for_the_training_error():
    schedule = Schedule(
        lr=0.1, steps=1000, milestones=(500,), warmup_factor=0.1, warmup_until_error=0.8
    )
    progress = Progress()
    assert schedule.at(progress) == pytest.approx(0.01)
    progress.training_error = 0.805
    progress.see_error(0.4, 0.8)  # 0.80095
    assert schedule.at(progress) == pytest.approx(0.01)
    progress.see_error(0.4, 0.8)  # 0.79694
    assert progress.training_error == pytest.approx(0.7969405)
    assert progress.warmed_up
    assert schedule.at(progress) == pytest.approx(0.1)
    assert schedule.at(Progress(499)) == pytest.approx(0.01)


def test_a_step_counts_and_its_error_is_taken_in_only_while_the_warm_up_waits_for_it():
    waiting = Schedule(lr=0.1, steps=1000, warmup_factor=0.1, warmup_until_error=0.992)
    progress = Progress()
    waiting.advance(progress, {"top1_error": torch.tensor(0.5), "loss": torch.tensor(9.0)})
    assert (progress.step, progress.training_error) == (1, pytest.approx(0.995))
    waiting.advance(progress, {"top1_error": torch.tensor(0.5)})
    assert (progress.step, progress.warmed_up) == (2, True)  # 0.99005
    waiting.advance(progress, {})
    assert (progress.step, progress.training_error) == (3, pytest.approx(0.99005))
    plain = Progress()
    Schedule(lr=0.1, steps=10).advance(plain, {"top1_error": torch.tensor(0.5)})
    assert plain == Progress(step=1)


def test_a_warm_up_that_waits_for_an_error_the_model_does_not_tell():
    progress = Progress()
    with pytest.raises(KeyError, match="top1_error"):
        Schedule(lr=0.1, steps=9, warmup_until_error=0.8).advance(
            progress, {"loss": torch.tensor(1.0)}
        )
    assert progress.step == 0
