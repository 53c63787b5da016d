from __future__ import annotations

import pytest
import torch

from detres.losses import Losses


def test_terms_are_means_and_add_up() -> None:
    losses = Losses(
        {"loss_cls": torch.tensor(6.0), "loss_box": torch.tensor(1.0), "error": torch.tensor(3.0)},
        {"loss_cls": 3, "loss_box": 2, "error": 4},
        watched=frozenset({"error"}),
    )
    assert {name: value.item() for name, value in losses.terms().items()} == {
        "loss_cls": 2.0,
        "loss_box": 0.5,
        "error": 0.75,
    }
    assert losses.total().item() == 2.5  # the error is only watched


def test_nothing_counted_divides_by_one() -> None:
    losses = Losses({"loss_box": torch.tensor(0.0)}, {"loss_box": 0})
    assert losses.total().item() == 0.0
    assert Losses({}, {}).terms() == {}


def test_one_thing_counted_is_its_own_mean() -> None:
    assert Losses({"loss": torch.tensor(3.0)}, {"loss": 1}).total().item() == 3.0
    assert Losses({"loss": torch.tensor(3.0)}, {"loss": 9}).total({"loss": 1}).item() == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_the_shares_of_the_parts_are_the_mean_of_the_whole(seed: int) -> None:
    """However unevenly a batch is divided; the mean of the parts' means is another number."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(20, generator=generator, dtype=torch.float64)
    cuts = torch.randperm(19, generator=generator)[:3].sort().values + 1
    parts = [
        Losses({"loss": part.sum()}, {"loss": len(part)})
        for part in values.tensor_split(cuts.tolist())
    ]
    whole = {"loss": sum(part.counts["loss"] for part in parts)}
    shares = sum(part.total(whole) for part in parts)
    torch.testing.assert_close(shares, values.mean(), rtol=1e-12, atol=0)


def test_terms_of_two_networks_stand_beside_each_other() -> None:
    both = Losses({"a": torch.tensor(1.0)}, {"a": 2}) | Losses(
        {"b": torch.tensor(3.0)}, {"b": 4}, frozenset({"b"})
    )
    assert list(both.terms()) == ["a", "b"]
    assert both.counts == {"a": 2, "b": 4}
    assert both.total().item() == 0.5
