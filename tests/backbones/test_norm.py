from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from backbones import (
    FrozenBatchNorm2d,
    fold_batch_norm,
    freeze_batch_norm,
    recompute_batch_norm,
    resnet18,
    resnet50,
    resnet_cifar,
)
from backbones.norm import SyncBatchNorm2d, conv_norm, make_norm, scale_and_shift
from tests.backbones.nets import batch_norm, randomise_norms, torchvision_net

NORMS = {"frozen": FrozenBatchNorm2d, "batch in eval mode": nn.BatchNorm2d}


@pytest.fixture(params=list(NORMS))
def fixed_norm(request) -> nn.Module:
    return randomise_norms(NORMS[request.param](6)).eval()


def test_frozen_batch_norm_by_hand():
    norm = FrozenBatchNorm2d(2, eps=0.0)
    norm.weight.copy_(torch.tensor([2.0, 1.0]))
    norm.bias.copy_(torch.tensor([0.5, -1.0]))
    norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    x = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    assert norm(x).flatten().tolist() == [2.5, 1.0]  # (3 - 1) / 2 * 2 + 0.5 and (1 - 0) / 0.5 - 1


def test_frozen_batch_norm_agrees_with_torchvision():
    ours = randomise_norms(FrozenBatchNorm2d(6))
    theirs = torchvision.ops.FrozenBatchNorm2d(6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x[:0]).shape == (0, 6, 5, 7)


@pytest.mark.parametrize("with_counter", [True, False])
def test_frozen_batch_norm_takes_the_state_of_batch_norm(with_counter):
    trained = randomise_norms(nn.BatchNorm2d(6))
    state = trained.state_dict()
    if not with_counter:
        del state["num_batches_tracked"]
    frozen = FrozenBatchNorm2d(6)
    frozen.load_state_dict(state)
    assert ("num_batches_tracked" in state) == with_counter  # the caller's dict is left alone
    assert set(frozen.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    assert not list(frozen.parameters())
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_frozen_batch_norm_refuses_a_state_with_gaps():
    state = FrozenBatchNorm2d(6).state_dict()
    del state["running_var"]
    with pytest.raises(RuntimeError, match="running_var"):
        FrozenBatchNorm2d(6).load_state_dict(state)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, 2, 1, bias=False),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False),
    ],
)
def test_fold_equals_conv_then_norm_with_gradients(conv, fixed_norm):
    conv, norm = copy.deepcopy(conv).double(), fixed_norm.double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    wanted = [conv.weight, x, *norm.parameters()]
    cotangent = torch.randn_like(conv(x))

    expected = batch_norm(conv(x), norm)
    expected_grads = torch.autograd.grad(expected, wanted, cotangent)
    folded = conv_norm(conv, norm, x)
    grads = torch.autograd.grad(folded, wanted, cotangent)

    torch.testing.assert_close(folded, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_fold_is_one_convolution_and_stores_nothing(fixed_norm):
    conv = nn.Conv2d(4, 6, 1, bias=False)
    before = {
        **conv.state_dict(),
        **{f"n.{k}": v.clone() for k, v in fixed_norm.state_dict().items()},
    }
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        conv_norm(conv, fixed_norm, torch.randn(1, 4, 3, 3))
    names = [event.key for event in profile.key_averages()]
    assert "aten::conv2d" in names
    assert not [name for name in names if "batch_norm" in name]
    after = {**conv.state_dict(), **{f"n.{k}": v for k, v in fixed_norm.state_dict().items()}}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_batch_norm_in_train_mode_uses_the_batch_and_updates_its_statistics():
    conv, norm = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6).train()
    out = conv_norm(conv, norm, torch.randn(8, 4, 5, 5) * 3 + 1)
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        out.var(dim=(0, 2, 3), unbiased=False), torch.ones(6), atol=1e-3, rtol=0
    )
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False)],
    ids=["bias", "reflect"],
)
def test_a_convolution_with_bias_or_another_padding_is_not_folded(conv, fixed_norm):
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(
        conv_norm(conv, fixed_norm, x), batch_norm(conv(x), fixed_norm), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_the_convolution_and_of_the_norm_run(layer, register, fixed_norm):
    layers, seen = (nn.Conv2d(4, 6, 1, bias=False), fixed_norm), []
    getattr(layers[layer], register)(lambda *_: seen.append("called"))
    conv_norm(*layers, torch.randn(1, 4, 3, 3))
    assert seen == ["called"]


def test_fold_computes_its_scale_in_float32_under_autocast():
    """A variance of 1e-6 beside eps is lost where the scale is taken in bfloat16: 1e-5 + 1e-6
    rounds by up to 0.4 %.
    """
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), FrozenBatchNorm2d(1)
    nn.init.ones_(conv.weight)
    norm.running_var.fill_(1e-6)
    x = torch.ones(1, 1, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv_norm(conv, norm, x)
    assert out.dtype == torch.bfloat16
    exact = torch.tensor((1e-6 + 1e-5) ** -0.5)
    assert torch.equal(out.flatten()[0], exact.to(torch.bfloat16))


def test_fold_of_a_network_kept_in_bfloat16(fixed_norm):
    conv = nn.Conv2d(4, 6, 3, bias=False)
    x = torch.randn(1, 4, 8, 8)
    expected = conv_norm(conv, fixed_norm, x)
    out = conv_norm(conv.bfloat16(), fixed_norm.bfloat16(), x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.06, rtol=0.03)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scale_and_shift_of_a_norm_kept_in_half_precision_are_taken_in_float32(dtype, fixed_norm):
    """Halved buffers lose bits once, when they are stored; the arithmetic on them loses none."""
    half = fixed_norm.to(dtype)
    found = [tensor.detach() for tensor in scale_and_shift(half)]
    expected = [tensor.detach() for tensor in scale_and_shift(copy.deepcopy(half).float())]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)  # the dtype as well


def test_make_norm():
    assert isinstance(make_norm("batch", 64), nn.BatchNorm2d)
    assert isinstance(make_norm("frozen", 64), FrozenBatchNorm2d)
    group = make_norm("group", 64)
    assert isinstance(group, nn.GroupNorm)
    assert (group.num_groups, group.num_channels) == (32, 64)
    with pytest.raises(
        ValueError, match=r"unknown norm 'layer', expected batch, frozen, sync or group"
    ):
        make_norm("layer", 64)


def test_freeze_batch_norm_keeps_outputs_and_state():
    net = randomise_norms(resnet18(num_classes=3)).eval()
    x = torch.randn(1, 3, 48, 40)
    before, logits = net.state_dict(), net(x)
    frozen = freeze_batch_norm(copy.deepcopy(net))
    assert not [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)]
    assert torch.equal(frozen.train()(x), logits)
    expected = {name for name in before if not name.endswith("num_batches_tracked")}
    assert set(frozen.state_dict()) == expected
    assert all(torch.equal(frozen.state_dict()[name], before[name]) for name in expected)


def test_freeze_batch_norm_of_a_batch_norm_itself():
    norm = randomise_norms(nn.BatchNorm2d(6, eps=1e-3)).double().eval()
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    frozen = freeze_batch_norm(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    torch.testing.assert_close(frozen(x), norm(x))


# ---- folding for good ----


def _conv_with_bias() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), FrozenBatchNorm2d(5)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet50(num_classes=3),
        lambda: resnet_cifar(8),
        lambda: torchvision_net("resnet18"),
        _conv_with_bias,
    ],
)
def test_fold_batch_norm_is_exact_and_leaves_the_network_alone(make):
    net = randomise_norms(make()).double().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        folded = fold_batch_norm(net.train())
        torch.testing.assert_close(folded(x), expected, rtol=1e-9, atol=1e-9)
    assert not [
        module
        for module in folded.modules()
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d))
    ]
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_fold_batch_norm_in_single_precision():
    net = randomise_norms(resnet18(num_classes=10)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (fold_batch_norm(net)(x) - net(x)).abs().max() < 1e-4 * net(x).abs().max()


class _Named(nn.Module):
    """Layers as attributes, in the order given."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class _NormThatActs(nn.BatchNorm2d):
    """As some projects have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def _shared() -> nn.Module:
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3))


def _shared_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), "0"),
        (lambda: _Named(bn1=nn.BatchNorm2d(3), conv1=nn.Conv2d(3, 3, 1)), "bn1"),  # pre-activation
        (lambda: _Named(conv1=nn.Conv2d(3, 5, 1), bn1=nn.BatchNorm2d(3)), "bn1"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), _NormThatActs(3)), "1"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            "1",
        ),
        (_shared, "1"),
        (_shared_norm, "1"),
    ],
)
def test_fold_batch_norm_names_a_norm_it_cannot_fold(make, name):
    with pytest.raises(
        ValueError,
        match=f"no convolution of its own found before the batch norm {name}: it cannot be folded",
    ):
        fold_batch_norm(make())


def test_norms_without_scale_and_shift_or_without_statistics():
    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = net(x)
    torch.testing.assert_close(fold_batch_norm(net)(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(freeze_batch_norm(net)(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="keeps no statistics that could be frozen"):
        freeze_batch_norm(nn.BatchNorm2d(4, track_running_stats=False))
    acting = nn.Sequential(_NormThatActs(4))
    assert freeze_batch_norm(acting)[0].training


# ---- recomputing the statistics ----


def test_recompute_gives_plain_averages_over_batches():
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).double()
    batches = [torch.randn(5, 3, 6, 6, dtype=torch.float64) * scale + scale for scale in (1, 2, 5)]
    assert recompute_batch_norm(net, batches) == 3
    responses = [net[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    torch.testing.assert_close(net[1].running_mean, sum(r.mean(1) for r in responses).detach() / 3)
    torch.testing.assert_close(net[1].running_var, sum(r.var(1) for r in responses).detach() / 3)
    assert net[1].momentum == 0.1


def test_recompute_drops_nothing_out():
    conv = nn.Conv2d(3, 4, 1, bias=False)
    net = nn.Sequential(nn.Dropout(0.5), conv, nn.BatchNorm2d(4)).train()
    x = torch.randn(5, 3, 6, 6) + 2
    recompute_batch_norm(net, [x])
    torch.testing.assert_close(net[2].running_mean, conv(x).mean(dim=(0, 2, 3)).detach())
    assert net[0].training


def test_recompute_on_the_training_batch_makes_eval_equal_to_train():
    """With one batch, the fixed statistics are that batch's (but for the unbiased variance)."""
    net = resnet_cifar(8).double().train()
    x = torch.randn(16, 3, 32, 32, dtype=torch.float64)
    recompute_batch_norm(net, [x])
    assert net.training
    expected = net(x)
    torch.testing.assert_close(net.eval()(x), expected, rtol=0.02, atol=0.02)


def test_recompute_leaves_frozen_stages_weights_and_modes_alone():
    net = randomise_norms(resnet18(num_classes=0, freeze_at=2)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    recompute_batch_norm(net, iter([torch.randn(2, 3, 64, 64)]))
    assert not net.training
    for name, tensor in net.state_dict().items():
        changed = "running" in name and name.startswith(("layer2", "layer3", "layer4"))
        assert torch.equal(tensor, before[name]) is not (
            changed
            or (name.endswith("tracked") and name.startswith(("layer2", "layer3", "layer4")))
        )


def test_recompute_after_an_error_and_with_empty_batches():
    net = randomise_norms(resnet_cifar(8)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x = torch.randn(4, 3, 32, 32)
    with pytest.raises(ValueError, match="expected images"):
        recompute_batch_norm(net, [x, x[:, :1]])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(
        norm.momentum == 0.1 and norm.training
        for norm in net.modules()
        if isinstance(norm, nn.BatchNorm2d)
    )
    assert recompute_batch_norm(net, [x[:0], x]) == 1
    twin = resnet_cifar(8)
    twin.load_state_dict(before)
    recompute_batch_norm(twin, [x])
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True)
    )


def test_recompute_without_batches_or_norms():
    net = randomise_norms(resnet_cifar(8))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match="no batches"):
        recompute_batch_norm(net, [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="no batch norm"):
        recompute_batch_norm(resnet_cifar(8, norm="frozen"), [torch.randn(1, 3, 32, 32)])
    keeps_none = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="no batch norm"):
        recompute_batch_norm(keeps_none, [torch.randn(2, 3, 4, 4)])


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (2, 3, 9, 4)])
def test_a_synchronised_norm_alone_is_a_batch_norm(shape):
    """Of one process: result, averages and gradients."""
    torch.manual_seed(0)
    own, reference = SyncBatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    reference.load_state_dict(own.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    upstream = torch.randn_like(x)
    found = []
    for norm in (own, reference):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        gradients = torch.autograd.grad(y, (leaf, *norm.parameters()), upstream)
        found.append((y, *gradients, *norm.buffers()))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)
