"""A complete network is found wherever training code put it, and what else is there is said."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from backbones import WeightsError, create_backbone, load_weights, resnet50, resnet_cifar
from backbones.recognise import recognise
from backbones.state_search import NotFoundError, contents_of, find_network
from tests.backbones.nets import randomise_norms

NET = randomise_norms(resnet_cifar(8))
STATE = NET.state_dict()
TRUNK = {name: tensor for name, tensor in STATE.items() if not name.startswith("fc.")}
OTHER = {
    name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in STATE.items()
}


def under(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (STATE, None),
        ({"state_dict": STATE, "epoch": 3}, None),
        ({"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}}, None),
        ({"net": STATE, "acc": 93.1}, None),
        ({"state_dict": under("module.")}, None),
        ({"state_dict": under("model."), "hyper_parameters": {"lr": 0.1}}, None),
        ({"a": {"b": [{"c": under("d.e.f.")}]}}, None),
        (under("_orig_mod.module."), None),
        ({name.replace("layer1.", "layer1._orig_mod."): STATE[name] for name in STATE}, None),
        ({name.replace(".0.", ".0._fsdp_wrapped_module."): STATE[name] for name in STATE}, None),
        ({"model": STATE, "args": argparse.Namespace(lr=0.1)}, None),
        ({"model": STATE, "again": STATE}, "taken from again; left over: model (44 tensors)"),
        (
            {
                **under("module.encoder_q."),
                **under("module.encoder_k.", OTHER),
                "module.queue": torch.ones(2),
            },
            "taken from module.encoder_q, which learns itself and comes before module.encoder_k, "
            "also complete; left over: module.encoder_k (44 tensors), module.queue",
        ),
        (
            {**under("online_network."), **under("target_network.", OTHER)},
            "taken from online_network, which learns itself and comes before target_network, also "
            "complete; left over: target_network (44 tensors)",
        ),
        (
            {**under("base_encoder."), **under("momentum_encoder.", OTHER)},
            "taken from base_encoder, which learns itself and comes before momentum_encoder, also "
            "complete; left over: momentum_encoder (44 tensors)",
        ),
        (
            {"teacher": under("backbone.", TRUNK), "student": under("module.backbone.", OTHER)},
            "taken from teacher.backbone, an average of weights, which comes before "
            "student.module.backbone, also complete; left over: student (44 tensors)",
        ),
        (
            {"state_dict": OTHER, "state_dict_ema": STATE},
            "taken from state_dict_ema, an average of weights, which comes before state_dict, also "
            "complete; left over: state_dict (44 tensors)",
        ),
        (
            {"meta": {"mmengine_version": "1"}, "state_dict": STATE, "ema_state_dict": OTHER},
            "taken from state_dict, an average of weights, which comes before ema_state_dict, also "
            "complete; left over: ema_state_dict (44 tensors)",
        ),
        (
            {"model": OTHER, "ema": under("module.")},
            "taken from ema.module, an average of weights, which comes before model, also "
            "complete; left over: model (44 tensors)",
        ),
        (
            {**under("module.", TRUNK), "module.projection_head.0.weight": torch.ones(2, 2)},
            "taken from module; left over: module.projection_head",
        ),
        (
            {**under("backbone.body.", TRUNK), "rpn.a": torch.ones(2), "rpn.b": torch.ones(2)},
            "taken from backbone.body; left over: rpn (2 tensors)",
        ),
        (
            {**STATE, **{f"p{n}.w": torch.ones(1) for n in range(9)}},
            "taken from the names without a prefix; left over: p0, p1, p2, p3 and 5 more",
        ),
    ],
)
def test_a_network_is_found_and_what_is_left_over_is_said(content, note, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    net = resnet_cifar(8)
    report = load_weights(net, tmp_path / "w.pth")
    found = net.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in TRUNK.items())
    assert report.notes == (() if note is None else (note,))
    assert bool(report.left_over) == (note is not None)
    assert all(f"  {line}" in str(report).splitlines() for line in report.notes)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"state_dict_ema": STATE}, "taken from state_dict_ema, an average of weights"),
        (under("ema_model.module."), "taken from ema_model.module, an average of weights"),
        (
            {"swa": STATE, "step": torch.ones(1)},
            "taken from swa, an average of weights; left over: step",
        ),
        ({"schema": under("teachers.")}, None),
    ],
)
def test_an_average_of_weights_is_called_that_also_where_nothing_else_is(content, note, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    assert load_weights(resnet_cifar(8), tmp_path / "w.pth").notes == ((note,) if note else ())


@pytest.mark.parametrize(
    "content",
    [
        {**under("rgb."), **under("flow.", OTHER)},
        {"state_dict": STATE, "best": OTHER},
        {"ema": STATE, "teacher": OTHER},
    ],
)
def test_where_nothing_decides_both_are_named(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    first, second = sorted({name.split(".")[0] for name in content})
    with pytest.raises(
        WeightsError, match=r"w\.pth holds 2 complete networks and does not"
    ) as caught:
        load_weights(resnet_cifar(8), tmp_path / "w.pth")
    assert first in str(caught.value)
    assert second in str(caught.value)


@pytest.mark.parametrize(
    ("head", "network"), [("head.fc.", "backbone."), ("bbb.head.fc.", "bbb.backbone.")]
)
def test_a_classifier_beside_its_network_comes_along(head, network):
    content = {**under(network, TRUNK), f"{head}weight": STATE["fc.weight"]}
    found = find_network(contents_of(content), STATE, "fc.")
    assert torch.equal(found.named.tensors["fc.weight"], STATE["fc.weight"])
    assert found.left_over == ()


def test_a_deeper_network_is_not_taken_for_a_part_of_it(tmp_path):
    """All that a ResNet-8 needs is in a ResNet-14, too."""
    torch.save(resnet_cifar(14).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"looks like resnet14 or plain14\..*unexpected"):
        load_weights(resnet_cifar(8), tmp_path / "w.pth")
    torch.save({**STATE, "layer4.0.conv1.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="unexpected 1: layer4"):
        load_weights(resnet_cifar(8), tmp_path / "w.pth")


def test_a_whole_module_is_called_that(tmp_path):
    for content in (NET, {"model": NET, "epoch": 3}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(
            WeightsError,
            match=r"holds a whole pickled module \(backbones\.resnet_cifar\.CifarResNet",
        ):
            load_weights(resnet_cifar(8), tmp_path / "w.pth")
    torch.save({"model": NET, "state_dict": STATE}, tmp_path / "w.pth")
    assert load_weights(resnet_cifar(8), tmp_path / "w.pth").matched  # it is not needed


def test_the_state_of_a_training_run_is_called_that(tmp_path):
    state = dict.fromkeys(("config", "classes", "progress", "optimizer"))
    torch.save({**state, "model": under("net.")}, tmp_path / "last.pt")
    with pytest.raises(WeightsError, match=r"last\.pt is the state of a training run"):
        load_weights(resnet_cifar(8), tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("conv5", "backbone"),
    [("roi_head.box_head.conv5.", "backbone."), ("roi_head.conv5.", "backbone.")],
)
def test_a_detectors_network_is_put_together_with_conv5_of_its_head(conv5, backbone, tmp_path):
    net = randomise_norms(resnet50(num_classes=0, norm="frozen"))
    content = {
        conv5 + name.removeprefix("layer4.") if name.startswith("layer4.") else backbone + name: t
        for name, t in net.state_dict().items()
    }
    torch.save({**content, "rpn.head.conv.weight": torch.ones(1)}, tmp_path / "w.pth")
    other = resnet50(num_classes=0, norm="frozen", weights=tmp_path / "w.pth")
    assert all(
        torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items()
    )
    assert other.load_report.left_over == ("rpn.head.conv.weight",)


def test_files_of_transformers(tmp_path):
    net = randomise_norms(resnet50(num_classes=3))
    torch.save({transformers_name(n): t for n, t in net.state_dict().items()}, tmp_path / "w.bin")
    other = resnet50(num_classes=3)
    report = load_weights(other, tmp_path / "w.bin")
    assert (report.naming, report.skipped, report.left_over) == ("transformers", {}, ())
    assert all(
        torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items()
    )
    with pytest.raises(WeightsError, match="trained with stride_placement='torchvision'"):
        load_weights(resnet50(stride_placement="original"), tmp_path / "w.bin")


def transformers_name(name: str) -> str:
    kinds = {"conv": "convolution", "bn": "normalization"}
    part = name.split(".")
    if part[0] == "fc":
        return f"classifier.1.{part[1]}"
    if part[0] in ("conv1", "bn1"):
        return f"resnet.embedder.embedder.{kinds[part[0][:-1]]}.{part[1]}"
    block = f"resnet.encoder.stages.{int(part[0][5:]) - 1}.layers.{part[1]}"
    if part[2] == "downsample":
        kind = "convolution" if part[3] == "0" else "normalization"
        return f"{block}.shortcut.{kind}.{part[4]}"
    return f"{block}.layer.{int(part[2][-1]) - 1}.{kinds[part[2][:-1]]}.{part[3]}"


def test_contents_are_found_no_deeper_than_wrappers_go():
    deep: object = STATE
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(NotFoundError, match="is not a state dict"):
        find_network(contents_of(deep), STATE, "fc.")
    assert contents_of({}).tensors == {}
    assert contents_of([torch.ones(1)]).tensors.keys() == {"0"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer1.0.conv1.weight": (32, 64, 1, 1)}, "resnet50 of 0.5 times the width"),
        ({"layer1.0.conv1.weight": (128, 64, 1, 1)}, "resnet50 of 2 times the width"),
        ({"layer1.0.conv2.weight": (128, 4, 3, 3), "layer1.0.conv1.weight": (128, 64, 1, 1)},
         r"resnet50 with its convolutions in 32 groups \(ResNeXt\)"),
    ],
)  # fmt: skip
def test_unusual_networks_are_said_to_be_none_of_the_papers(change, words, tmp_path):
    with torch.device("meta"):
        state = {name: t.shape for name, t in resnet50(num_classes=0).state_dict().items()}
    tensors = {
        name: torch.zeros(()).expand(change.get(name, shape)) for name, shape in state.items()
    }
    if "layer1.0.conv1.weight" in change and "layer1.0.conv2.weight" not in change:
        width = change["layer1.0.conv1.weight"][0]
        tensors["layer1.0.conv2.weight"] = torch.zeros(()).expand(width, width, 3, 3)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"looks like {words}.*which is none of the paper's"):
        load_weights(resnet50(), tmp_path / "w.pth")
    assert recognise(tensors).settings == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0.5}, "resnet50 of 0.5 times the width"),
        ({"width": 2.0, "shortcut": "C"}, "resnet50 of 2 times the width with shortcut C"),
    ],
)
def test_a_network_of_another_width_is_recognised_by_the_argument_that_makes_it(
    options, words, tmp_path
):
    with torch.device("meta"):
        shapes = {
            name: t.shape for name, t in resnet50(num_classes=0, **options).state_dict().items()
        }
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    assert recognise(tensors).words == words
    assert recognise(tensors).settings == {"name": "resnet50", **options}
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"looks like {words}") as error:
        load_weights(resnet50(), tmp_path / "w.pth")
    assert error.value.settings == {"name": "resnet50", **options}


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_projection_of_a_narrower_first_block_is_not_shortcut_c(name):
    with torch.device("meta"):
        half = create_backbone(name, width=0.5).state_dict()
        everywhere = create_backbone(name, width=0.5, shortcut="C").state_dict()
    assert recognise(half).settings == {"name": name, "width": 0.5}
    assert recognise(everywhere).settings == {"name": name, "width": 0.5, "shortcut": "C"}


def test_a_depth_that_is_none_of_the_papers_is_not_called_one_of_them():
    names = [f"layer{n}.{i}.conv{c}.weight" for n in range(1, 5) for i in (0, 1) for c in (1, 2, 3)]
    tensors = {name: torch.zeros(1, 1, 1, 1) for name in ["conv1.weight", *names]}
    assert recognise(tensors).words.startswith("a residual network of 2, 2, 2, 2 blocks of 3")
