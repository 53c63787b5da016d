"""Digests of weights and of the order of images, and what torch says of operations."""

from __future__ import annotations

import pytest
import torch

from detres.engine.batches import Share
from detres.engine.determinism import OrderDigest, explained, weights_digest
from detres.engine.distributed import Group


class Others(Group):
    """One of several processes, given what the others have."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.others = rank, size, []

    def gather(self, value: object) -> list:
        return [*self.others, value]


def order_of(steps: list[list[object]], size: int = 1, parts: int = 1, split: int = 0) -> str:
    """The digest of steps of images, divided; the steps from `split` on see a restored one."""
    groups = [Others(rank, size) for rank in range(size)]
    digests = [OrderDigest() for _ in groups]
    for number, step in enumerate(steps):
        if split == number > 0:
            groups[-1].others = [each.total for each in digests[:-1]]
            saved = digests[-1].of_all(groups[-1])
            digests = [OrderDigest() for _ in groups]
            for digest, group in zip(digests, groups, strict=True):
                digest.restore(saved, group)
        for digest, group in zip(digests, groups, strict=True):
            shares = Share(group.rank, size, parts).of(step)
            digest.see(number + 1, [(Batch(tuple(ids)), None) for ids in shares], group)
    groups[-1].others = [each.total for each in digests[:-1]]
    return digests[-1].of_all(groups[-1])


class Batch:
    def __init__(self, ids: tuple) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)


STEPS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3], [2, 3, 8, 4, 6, 2, 6, 4]]


@pytest.mark.parametrize(("size", "parts"), [(1, 2), (2, 1), (4, 1), (2, 2), (8, 1)])
@pytest.mark.parametrize("split", [0, 1, 2])
def test_an_order_has_one_digest_however_it_is_divided_and_resumed(size, parts, split) -> None:
    assert order_of(STEPS, size, parts, split) == order_of(STEPS)


def test_any_other_order_has_another_digest() -> None:
    swapped = [STEPS[0][:2][::-1] + STEPS[0][2:], *STEPS[1:]]
    later = [STEPS[1], STEPS[0], STEPS[2]]
    words = [[str(each) for each in step] for step in STEPS]
    found = {order_of(each) for each in (STEPS, swapped, later, STEPS[:2], words, [])}
    assert len(found) == 6


@pytest.mark.parametrize("wrong", [None, 3, "xyz", "a" * 31])
def test_what_is_no_digest_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="is no digest"):
        OrderDigest().restore(wrong, Group())


def test_weights_have_one_digest_in_any_layout_of_memory() -> None:
    tensors = {"w": torch.randn(4, 3, 2, 2), "n": torch.tensor(3), "b": torch.zeros(0)}
    last = {**tensors, "w": tensors["w"].to(memory_format=torch.channels_last)}
    assert weights_digest(tensors) == weights_digest(last)
    assert len(weights_digest({})) == 16
    nearly = tensors["w"].clone()
    nearly[3, 2, 1, 1] = torch.nextafter(nearly[3, 2, 1, 1], torch.tensor(9.0))
    others = [
        {**tensors, "w": nearly},
        {**tensors, "n": torch.tensor(4)},
        {**tensors, "w": tensors["w"].reshape(3, 4, 2, 2)},
        {"v": tensors["w"], "n": tensors["n"], "b": tensors["b"]},
    ]
    assert len({weights_digest(each) for each in (tensors, *others)}) == 5


def test_an_operation_that_differs_every_time_is_named() -> None:
    said = explained(
        RuntimeError(
            "roi_align_backward_kernel does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can ..."
        )
    )
    assert str(said) == "roi_align_backward_kernel does not compute alike every time on this device"
    assert explained(RuntimeError("shapes do not fit")) is None
