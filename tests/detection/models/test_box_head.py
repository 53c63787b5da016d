from __future__ import annotations

import pytest
import torch
from torch import nn

from detres.detection.models.box_head import Conv5BoxHead, FcBoxHead


def test_one_vector_a_region():
    head = Conv5BoxHead(conv5=nn.Conv2d(8, 16, 3, stride=2, padding=1), out_channels=16)
    assert head.out_channels == 16
    assert head(torch.randn((5, 8, 7, 7))).shape == (5, 16)
    assert list(head.state_dict()) == ["conv5.weight", "conv5.bias"]


def test_the_mean_over_the_grid_by_hand():
    conv5 = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        conv5.weight.copy_(torch.tensor([1.0, -2.0]).view(2, 1, 1, 1))
        conv5.bias.copy_(torch.tensor([0.0, 10.0]))
    head = Conv5BoxHead(conv5=conv5, out_channels=2)
    pooled = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]], [[[0.0, 0.0], [0.0, 4.0]]]])
    assert head(pooled).tolist() == [[3.0, 4.0], [1.0, 8.0]]


def test_regions_of_other_channels_are_refused():
    head = Conv5BoxHead(conv5=nn.Conv2d(8, 16, 3), out_channels=16)
    with pytest.raises(RuntimeError, match="channels"):
        head(torch.randn((5, 4, 7, 7)))


def test_fc_layers_read_the_grid_channel_by_channel_by_hand():
    layer = nn.Linear(8, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0, 0, 0, 3.0]]))
        layer.bias.copy_(torch.tensor([0.0, 0.5]))
    head = FcBoxHead(layers=nn.Sequential(layer), out_channels=2)
    pooled = torch.arange(8.0).view(1, 2, 2, 2)  # channel 0: 0 1 / 2 3, channel 1: 4 5 / 6 7
    expected = [[0.0, 2 * 1 + 3 * 7 + 0.5]]
    assert head(pooled).tolist() == expected
    assert head(pooled.to(memory_format=torch.channels_last)).tolist() == expected
    assert list(head.state_dict()) == ["layers.0.weight", "layers.0.bias"]
