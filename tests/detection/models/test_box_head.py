from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones import resnet50
from detres.detection.models import box_head
from detres.detection.models.box_head import Conv5BoxHead, FcBoxHead
from detres.detection.models.roi_pool import RoIPooler
from detres.detection.structures import FeatureMap
from tests.helpers import random_boxes, whole_map


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


@pytest.mark.parametrize("cells", [(1, 1), (5, 6), (7, 7), (14, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_of_all_cells_of_any_grid_in_its_dtype(cells, dtype):
    pooled = torch.arange(2.0 * 3 * cells[0] * cells[1]).view(2, 3, *cells).to(dtype)
    head = Conv5BoxHead(conv5=nn.Identity(), out_channels=3)
    expected = pooled.float().flatten(2).mean(2)
    found = head(pooled.to(memory_format=torch.channels_last).requires_grad_())
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=1e-5)
    torch.testing.assert_close(head(pooled).float(), expected, rtol=0.01, atol=1e-5)


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


STRIDE = 16


def conv5_head(placement: str, norm: str, *, dtype=torch.float64) -> Conv5BoxHead:
    """conv5 of a narrow ResNet-50 whose norms do something; 32 channels in, 64 out."""
    torch.manual_seed(0)
    net = resnet50(width=1 / 32, stride_placement=placement, norm=norm, num_classes=0)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_()
    head = Conv5BoxHead(conv5=net.pop_stage("conv5"), out_channels=64)
    return head.to(dtype)


def pooler_of(kind: str, sampling_ratio: int = 2) -> RoIPooler:
    return RoIPooler(
        strides={"conv4": STRIDE}, kind=kind, output_size=14, sampling_ratio=sampling_ratio
    )


def some_regions(counts, dtype=torch.float64) -> list[torch.Tensor]:
    """Regions of every size, over the border among them."""
    return [
        (random_boxes(count, 400, seed=seed) * 1.2 - 40).to(dtype)
        for seed, count in enumerate(counts)
    ]


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("kind", ["roi_pool", "roi_align", "roi_align_aligned"])
@pytest.mark.parametrize("placement", ["original", "torchvision"])
@pytest.mark.parametrize("counts", [(60, 0, 41), (1, 2, 0)])  # 1x1 convolutions before, after
def test_features_of_regions_are_those_of_their_pooled_grids(counts, placement, kind, norm):
    head = conv5_head(placement, norm)
    sizes = ((20, 30), (30, 11), (30, 30))
    values = torch.zeros((3, 32, 30, 30), dtype=torch.float64)
    for each, (height, width) in zip(values, sizes, strict=True):
        each[:, :height, :width] = torch.randn((32, height, width), dtype=torch.float64)
    pooler, rois = pooler_of(kind), some_regions(counts)
    for training in (True, False):
        head.train(training)
        found, gradients = [], []
        for way in ("of_regions", "forward"):
            feature = values.clone().requires_grad_()
            maps = {"conv4": FeatureMap(feature, sizes)}
            made = (
                head.of_regions(pooler, maps, rois)
                if way == "of_regions"
                else head(pooler(maps, rois))
            )
            weights = torch.linspace(-1, 1, made.numel(), dtype=torch.float64).view_as(made)
            found.append(made.detach())
            loss = (made * weights).sum()
            gradients.append(torch.autograd.grad(loss, (feature, *head.parameters())))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
        for mine, plain in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-7, atol=1e-7)


def counting(bags, sizes: list[int]):
    """`bags`, which notes how many regions it is asked for."""

    def counted(feature, rois):
        sizes.append(sum(map(len, rois)))
        return bags(feature, rois)

    return counted


@pytest.mark.parametrize("placement", ["original", "torchvision"])
def test_regions_go_through_in_groups_without_a_gradient(placement, monkeypatch):
    head = conv5_head(placement, "frozen").eval()
    values = torch.randn((2, 32, 20, 30), dtype=torch.float64)
    maps, pooler = {"conv4": whole_map(values)}, pooler_of("roi_align", 0)
    rois = some_regions((33, 40))
    expected = head(pooler(maps, rois)).detach()
    for regions_together in (1, 7, 40, 100):
        of_one = 49 * head.out_channels * 8
        monkeypatch.setattr(box_head, "_CACHE", regions_together * of_one)
        sizes: list[int] = []
        monkeypatch.setattr(pooler, "bags", counting(pooler.bags, sizes))
        with torch.inference_mode():
            found = head.of_regions(pooler, maps, rois)
        monkeypatch.undo()
        assert sizes[:-1] == [regions_together] * ((73 - 1) // regions_together)
        assert sum(sizes) == 73
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_statistics_of_the_batch_are_those_of_all_regions(monkeypatch):
    """Without a gradient too: groups would have statistics of their own."""
    head = conv5_head("original", "batch")
    maps, pooler = (
        {"conv4": whole_map(torch.randn((1, 32, 20, 30)).double())},
        pooler_of("roi_pool"),
    )
    rois = some_regions((25,))
    monkeypatch.setattr(box_head, "_CACHE", 1)
    with torch.no_grad():
        plain = head(pooler(maps, rois))
        torch.testing.assert_close(head.of_regions(pooler, maps, rois), plain)


@pytest.mark.parametrize("which", ["conv5.0.conv1", "conv5.0.downsample.1", "conv5.2", ""])
def test_who_waits_for_a_layer_is_called(which):
    head = conv5_head("original", "frozen")
    maps = {"conv4": whole_map(torch.randn((1, 32, 20, 30)).double())}
    called = []
    module = head.get_submodule(which)
    module.register_forward_hook(lambda *_: called.append(which))
    head.of_regions(pooler_of("roi_align"), maps, some_regions((30,)))
    assert called == [which]


def test_who_waits_for_the_gradient_of_a_block_is_called():
    head = conv5_head("original", "frozen")
    maps = {"conv4": whole_map(torch.randn((1, 32, 20, 30)).double().requires_grad_())}
    called = []
    head.conv5[0].register_full_backward_hook(lambda *_: called.append(1))
    head.of_regions(pooler_of("roi_align"), maps, some_regions((30,))).sum().backward()
    assert called == [1]


def test_a_layer_that_was_replaced_is_used():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    head = conv5_head("original", "frozen")
    maps = {"conv4": whole_map(torch.randn((1, 32, 20, 30)).double())}
    pooler, rois = pooler_of("roi_align"), some_regions((30,))
    first = head.conv5[0]
    with torch.no_grad():
        before = head.of_regions(pooler, maps, rois)
        doubled = Doubled(32, 16, 1, stride=2, bias=False).double()
        doubled.weight.copy_(first.conv1.weight)
        first.conv1 = doubled
        after = head.of_regions(pooler, maps, rois)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, head(pooler(maps, rois)).detach())
