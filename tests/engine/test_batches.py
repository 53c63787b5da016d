"""Every step's images: full batches, every image once an epoch, the same for any workers and any
start.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from detres.engine.batches import StepSampler, make_loader, once_in_order, targets_to

Item = tuple[int, int]


class Drawn(Dataset):
    """Items are their index, and a number drawn from their seed."""

    def __getitem__(self, key: Item) -> tuple[int, float]:
        index, seed = key
        return index, np.random.default_rng(seed).random()


class Threads(Dataset):
    """Items tell the threads, and the process group, of the process that makes them."""

    def __getitem__(self, _: Item) -> tuple[int, int, int]:
        return torch.get_num_threads(), cv2.getNumThreads(), os.getpgrp()


def random_ratios(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2.0, num)


@pytest.mark.parametrize(
    ("num", "batch_size"), [(40, 8), (41, 8), (7, 2), (5, 1), (3, 4), (1, 8), (100, 3)]
)
@pytest.mark.parametrize("group", [True, False])
def test_every_batch_is_full_and_every_image_comes_each_epoch(
    num: int, batch_size: int, group: bool
) -> None:
    per_epoch = -(-num // batch_size)
    ratios = random_ratios(num)
    batches = list(
        StepSampler(
            ratios, batch_size=batch_size, seed=0, steps=3 * per_epoch, group_by_aspect=group
        )
    )
    assert all(len(batch) == batch_size for batch in batches)
    for epoch in range(3):
        seen = Counter(
            index
            for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch]
            for index, _ in batch
        )
        assert set(seen) == set(range(num))
        assert sum(seen.values()) - num == per_epoch * batch_size - num < batch_size
        if num >= batch_size:
            assert max(seen.values()) <= 2
        if num % batch_size == 0:
            assert set(seen.values()) == {1}


def test_wide_and_tall_images_meet_in_two_batches_of_an_epoch_at_most() -> None:
    for seed in range(20):
        ratios = random_ratios(101, seed)
        batches = list(StepSampler(ratios, batch_size=4, seed=seed, steps=26))
        mixed = sum(len({bool(ratios[index] < 1) for index, _ in batch}) == 2 for batch in batches)
        assert mixed <= 2
    ungrouped = list(StepSampler(ratios, batch_size=4, seed=0, steps=26, group_by_aspect=False))
    assert (
        sum(len({bool(ratios[index] < 1) for index, _ in batch}) == 2 for batch in ungrouped) > 10
    )


@pytest.mark.parametrize("start", [0, 1, 5, 6, 17, 30])
def test_starting_at_a_step_gives_the_tail_of_the_whole(start: int) -> None:
    arguments = {"batch_size": 4, "seed": 7, "steps": 30}
    whole = list(StepSampler(random_ratios(22), **arguments))
    tail = StepSampler(random_ratios(22), start_step=start, **arguments)
    assert list(tail) == whole[start:]
    assert list(tail) == whole[start:]  # a second pass as well
    assert len(tail) == 30 - start


def test_order_and_item_seeds_change_with_the_seed_the_epoch_and_the_item() -> None:
    sampler = list(StepSampler(random_ratios(40), batch_size=8, seed=0, steps=10))
    other = list(StepSampler(random_ratios(40), batch_size=8, seed=1, steps=10))
    indices = [[index for index, _ in batch] for batch in sampler]
    assert indices[:5] != indices[5:]
    assert indices != [[index for index, _ in batch] for batch in other]
    seeds = [seed for batch in sampler + other for _, seed in batch]
    assert len(set(seeds)) == len(seeds)


def test_sampler_errors() -> None:
    with pytest.raises(ValueError, match="0 images"):
        StepSampler(np.zeros(0), batch_size=2, seed=0, steps=1)
    with pytest.raises(ValueError, match="batches of 0"):
        StepSampler(np.ones(3), batch_size=0, seed=0, steps=1)


def test_batches_of_a_loader_do_not_depend_on_its_workers_or_its_start() -> None:
    arguments = {"batch_size": 4, "seed": 3, "steps": 9}
    ratios = random_ratios(22)
    alone = list(make_loader(Drawn(), list, StepSampler(ratios, **arguments), 0))
    assert [[index for index, _ in batch] for batch in alone] == [
        [index for index, _ in batch] for batch in StepSampler(ratios, **arguments)
    ]
    assert list(make_loader(Drawn(), list, StepSampler(ratios, **arguments), 2)) == alone
    late = StepSampler(ratios, start_step=4, **arguments)
    assert list(make_loader(Drawn(), list, late, 1)) == alone[4:]


def test_a_loader_gives_lists_of_batches_in_their_order_as_often_as_it_is_gone_through() -> None:
    batches = [[(2, 0), (0, 0)], [(1, 5)]]
    loader = make_loader(Drawn(), lambda items: [index for index, _ in items], batches, 1)
    for _ in range(2):
        assert list(loader) == [[2, 0], [1]]
    assert list(make_loader(Drawn(), list, [], 0)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_leaves_the_global_random_state_alone(num_workers: int) -> None:
    before = torch.get_rng_state()
    numpy_before = pickle.dumps(np.random.get_state())
    list(make_loader(Drawn(), list, [[(0, 0)], [(1, 0)]], num_workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert pickle.dumps(np.random.get_state()) == numpy_before


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_a_worker_has_one_thread_and_a_process_group_of_its_own() -> None:
    ((torch_threads, cv2_threads, group),) = next(iter(make_loader(Threads(), list, [[(0, 0)]], 1)))
    assert (torch_threads, cv2_threads) == (1, 1)
    assert group != os.getpgrp()


def test_targets_go_to_a_device_one_by_one_or_as_one() -> None:
    meta = torch.device("meta")
    several = targets_to(meta, [torch.ones(2), torch.ones(3)])
    assert [(target.device, len(target)) for target in several] == [(meta, 2), (meta, 3)]
    assert targets_to(meta, torch.ones(2)).device == meta
    assert targets_to(meta, []) == []
    with pytest.raises(AttributeError):
        targets_to(meta, None)


def test_every_item_once_in_order_with_a_short_last_batch() -> None:
    assert once_in_order(5, 2) == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0)]]
    assert once_in_order(2, 5) == [[(0, 0), (1, 0)]]
    assert once_in_order(0, 3) == []
    with pytest.raises(ValueError, match="zero"):
        once_in_order(3, 0)
