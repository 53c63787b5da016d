from __future__ import annotations

import pytest
import torch

from backbones.shortcuts import PaddingShortcut, ProjectionShortcut, ShortcutRule


@pytest.mark.parametrize(
    ("kind", "same", "wider", "halved"),
    [
        ("A", type(None), PaddingShortcut, PaddingShortcut),
        ("B", type(None), ProjectionShortcut, ProjectionShortcut),
        ("C", ProjectionShortcut, ProjectionShortcut, ProjectionShortcut),
        ("none", type(None), type(None), type(None)),
    ],
)
def test_which_shortcut_a_block_gets(kind, same, wider, halved):
    rule = ShortcutRule(kind)
    assert type(rule.make(4, 4, 1, "batch")) is same
    assert type(rule.make(4, 8, 1, "batch")) is wider
    assert type(rule.make(4, 4, 2, "batch")) is halved


def test_padding_by_hand():
    x = torch.arange(2 * 3 * 3, dtype=torch.float32).view(1, 2, 3, 3)
    kept = torch.tensor([[[0.0, 2], [6, 8]], [[9, 11], [15, 17]]])
    zeros = torch.zeros(1, 2, 2)
    assert torch.equal(PaddingShortcut(2, 4, 2, "end")(x)[0], torch.cat((kept, zeros, zeros)))
    assert torch.equal(PaddingShortcut(2, 4, 2, "both")(x)[0], torch.cat((zeros, kept, zeros)))
    assert torch.equal(PaddingShortcut(2, 2, 2, "both")(x)[0], kept)
    assert not list(PaddingShortcut(2, 4, 2, "end").parameters())
    assert PaddingShortcut(2, 4, 2, "end")(torch.zeros(0, 2, 3, 3)).shape == (0, 4, 2, 2)


def test_subsampling_is_an_average_pool_of_one_pixel():
    x = torch.randn(2, 3, 7, 6)
    assert torch.equal(PaddingShortcut(3, 3, 2, "end")(x), torch.nn.functional.avg_pool2d(x, 1, 2))


def test_projection_is_a_strided_1x1_and_a_norm():
    projection = ProjectionShortcut(2, 4, 2, "batch").eval()
    assert list(projection.state_dict())[:2] == ["0.weight", "1.weight"]
    x = torch.randn(1, 2, 4, 4)
    expected = (
        torch.einsum("oi,bihw->bohw", projection[0].weight[:, :, 0, 0], x[:, :, ::2, ::2])
        / (1 + 1e-5) ** 0.5
    )
    torch.testing.assert_close(projection(x), expected)


def test_unknown_kinds():
    with pytest.raises(ValueError, match="unknown shortcut 'b', expected A, B, C or none"):
        ShortcutRule("b")
    with pytest.raises(ValueError, match="unknown shortcut_padding 'left', expected end or both"):
        ShortcutRule("A", "left")
