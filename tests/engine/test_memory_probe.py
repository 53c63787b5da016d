"""The worst batch goes through once and leaves nothing behind; the largest that fits is found."""

from __future__ import annotations

import pytest
import torch

from detres.detection.data.batch import worst_batch
from detres.engine.distributed import Group
from detres.engine.memory_probe import largest_that_fits, memory_of, step_peak
from tests.engine.regression import same_tensors
from tests.engine.test_step_memory import Limited, detector
from tests.processes import together

CPU = torch.device("cpu")
GIB = 2**30


@pytest.mark.parametrize("training", [True, False])
def test_a_probe_leaves_weights_statistics_modes_and_random_numbers_as_they_were(training) -> None:
    model = detector("batch").train(training)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    random = torch.get_rng_state()
    peak = step_peak(model, worst_batch(2, (64, 96), num_boxes=5, num_proposals=None), CPU, "fp32")
    assert 2**20 < peak < 2**40
    assert same_tensors(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training == model.backbone.training == training
    assert all(parameter.grad is None for parameter in model.parameters())


def peaks(_group: Group) -> list[int]:
    model = detector()
    return [
        step_peak(model, worst_batch(n, (96, 128), num_boxes=2, num_proposals=None), CPU, "fp32")
        for n in (1, 16)
    ]


def test_a_larger_batch_has_a_higher_peak() -> None:
    """In a process of its own, which has no memory left over from something else."""
    ((small, large),) = together(1, peaks)
    assert large > small + 16 * 2**20


def test_where_the_memory_is_used_up_the_model_is_left_as_it_was_too() -> None:
    model = detector("batch")
    limited = Limited(model, 1, torch.OutOfMemoryError)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(torch.OutOfMemoryError):
        step_peak(limited, worst_batch(2, (64, 64), num_boxes=1, num_proposals=None), CPU, "fp32")
    assert same_tensors(model.state_dict(), before)


def test_the_worst_batch_is_as_large_and_as_crowded_as_said() -> None:
    images, targets = worst_batch(3, (40, 60), num_boxes=200, num_proposals=7)
    assert images.pixels.shape == (3, 3, 40, 60)
    assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    assert [len(each) for each in images.proposals] == [7, 7, 7]
    for target in targets:
        x1, y1, x2, y2 = target.boxes.T
        assert len(target) == 200
        assert bool(((x2 - x1 >= 16) & (y2 - y1 >= 16) & (x1 >= 0) & (y1 >= 0)).all())
        assert bool(((x2 <= 60) & (y2 <= 40)).all())
    assert [len(each) for each in worst_batch(1, (8, 8), num_boxes=0, num_proposals=None)[1]] == [0]


@pytest.mark.parametrize(
    ("limit", "tried", "found", "why"),
    [
        (None, [1, 2, 4, 8], 8, "it takes 9.0 GiB"),
        (100, [1, 2, 4, 8], 8, "it takes 9.0 GiB"),
        (8, [1, 2, 4], 4, "8 would take 9.0 GiB of 8.0 GiB"),
        (5, [1, 2], 2, "4 would take 5.0 GiB of 5.0 GiB"),
        (3, [1, 2], 1, "2 takes 3.0 GiB of 3.0 GiB"),
        (1, [1], None, "1 takes 2.0 GiB of 1.0 GiB"),
    ],
)
def test_the_largest_that_fits_is_found_without_trying_what_would_not(limit, tried, found, why):
    asked = []

    def peak(size: int) -> int:
        asked.append(size)
        return (1 + size) * GIB

    limit = None if limit is None else limit * GIB
    assert largest_that_fits([1, 2, 4, 8], peak, limit) == (found, why)
    assert asked == tried


@pytest.mark.parametrize(("most", "found"), [(0, None), (1, 1), (3, 2)])
def test_the_device_s_own_error_ends_the_search(most, found) -> None:
    def peak(size: int) -> int:
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return GIB

    size = {0: 1, 1: 2, 3: 4}[most]
    assert largest_that_fits([1, 2, 4], peak, None) == (found, f"{size} does not fit")


def test_a_machine_has_memory() -> None:
    found = memory_of(CPU)
    assert found is None or found > 2**26
