from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from backbones import BACKBONES, create_backbone
from backbones.__main__ import VARIANTS, main
from backbones.describe import count, totals

# Parameters, and multiply-adds of the convolutions and linear layers for one image of the network's
# own size.
COUNTS = {
    ("plain18",): (11_515_688, 1_794_805_760),
    ("resnet18", "A"): (11_515_688, 1_794_805_760),
    ("resnet18",): (11_689_512, 1_814_073_344),
    ("resnet18", "C"): (12_043_816, 1_878_298_624),
    ("plain34",): (21_623_848, 3_644_493_824),
    ("resnet34", "A"): (21_623_848, 3_644_493_824),
    ("resnet34",): (21_797_672, 3_663_761_408),
    ("resnet34", "C"): (22_716_840, 3_830_747_136),
    ("resnet50", "original"): (25_557_032, 3_857_973_248),
    ("resnet50",): (25_557_032, 4_089_184_256),
    ("resnet50", "half"): (6_927_528, 1127374848),
    ("resnet101", "original"): (44_549_160, 7_570_194_432),
    ("resnet101",): (44_549_160, 7_801_405_440),
    ("resnet152", "original"): (60_192_808, 11_282_415_616),
    ("resnet152",): (60_192_808, 11_513_626_624),
    ("vgg16",): (138_357_544, 15_470_264_320),
    ("vgg19",): (143_667_240, 19_632_062_464),
    ("vgg16_bn",): (138_365_992, 15_470_264_320),
    ("vgg19_bn",): (143_678_248, 19_632_062_464),
    ("resnet20",): (269_722, 40_551_040),
    ("resnet32",): (464_154, 68_862_592),
    ("resnet44",): (658_586, 97_174_144),
    ("resnet56",): (853_018, 125_485_696),
    ("resnet110",): (1_727_962, 252_887_680),
    ("resnet1202",): (19_421_274, 2_829_238_912),
    **{
        (f"plain{depth}",): both
        for depth, both in ((20, (269_722, 40_551_040)), (56, (853_018, 125_485_696)))
    },
    ("plain32",): (464_154, 68_862_592),
    ("plain44",): (658_586, 97_174_144),
    ("plain110",): (1_727_962, 252_887_680),
}
# Table 1, in 1e9; the 3.8 of ResNet-50 is cut off, not rounded.
TABLE_1 = {
    ("plain18",): 1.8, ("resnet18",): 1.8, ("resnet34", "A"): 3.6, ("resnet50", "original"): 3.8,
    ("resnet101", "original"): 7.6, ("resnet152", "original"): 11.3,
}  # fmt: skip
OPTIONS = {
    ("original",): {"stride_placement": "original"},
    ("half",): {"width": 0.5},
    (): {},
    **{(kind,): {"shortcut": kind} for kind in "ABC"},
}


@pytest.mark.parametrize("key", list(COUNTS), ids=" ".join)
def test_parameters_and_multiply_adds(key):
    with torch.device("meta"):
        net = create_backbone(key[0], **OPTIONS[key[1:]])
    assert totals(count(net)) == COUNTS[key]
    assert sum(parameter.numel() for parameter in net.parameters()) == COUNTS[key][0]


def test_every_network_is_counted():
    named = {(): (), (0.5,): ("half",)}
    found = {(name, *options.values()) for name, options in VARIANTS}
    assert {(name, *named.get(tuple(rest), rest)) for name, *rest in found} == set(COUNTS)


@pytest.mark.parametrize("width", [0.25, 0.5, 1.5])
def test_counts_of_another_width_follow_from_the_layers(width):
    """ResNet-50 with projections, the stride in the 3x3: every 1x1, 3x3 and 1x1 written out, conv1
    as it is.
    """
    weights, norms, inputs, side = 49 * 3 * 64, 64, 64, 56
    multiply_adds = weights * 112**2
    for number, depth in enumerate((3, 4, 6, 3)):
        inner = int(64 * width) << number
        for index in range(depth):
            before = side
            side = side // 2 if index == 0 and number > 0 else side
            block = ((inputs * inner, before), (9 * inner**2, side), (4 * inner**2, side))
            norms += 6 * inner
            if index == 0 and (number > 0 or inputs != 4 * inner):
                block += ((inputs * 4 * inner, side),)
                norms += 4 * inner
            weights += sum(size for size, _ in block)
            multiply_adds += sum(size * cells**2 for size, cells in block)
            inputs = 4 * inner
    with torch.device("meta"):
        net = create_backbone("resnet50", width=width, num_classes=0)
    assert totals(count(net)) == (weights + 2 * norms, multiply_adds)
    assert net.channels["conv5"] == net.num_features == inputs


def test_table_1_of_the_paper():
    for key, published in TABLE_1.items():
        assert (
            int(COUNTS[key][1] / 1e8) / 10 == published
            or round(COUNTS[key][1] / 1e9, 1) == published
        )


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [
        (20, 272_474),
        (32, 466_906),
        (44, 661_338),
        (56, 855_770),
        (110, 1_730_714),
        (1202, 19_424_026),
    ],
)
def test_cifar_networks_with_projections(depth, parameters):
    with torch.device("meta"):
        net = create_backbone(f"resnet{depth}", shortcut="B")
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


@pytest.mark.parametrize("depth", [8, 20, 110])
def test_cifar_counts_follow_from_the_layers(depth):
    """Conv 3 -> 16, then n blocks of two 3x3 convolutions at 16, 32 and 64 channels on 32, 16 and 8
    px, then 64 -> 10.
    """
    n = (depth - 2) // 6
    layers = [(3, 16, 32)]
    for width, side in ((16, 32), (32, 16), (64, 8)):
        layers += [(layers[-1][1], width, side)] + [(width, width, side)] * (2 * n - 1)
    weights = (
        sum(9 * inputs * outputs for inputs, outputs, _ in layers)
        + 64 * 10
        + 10
        + 2 * sum(outputs for _, outputs, _ in layers)
    )
    multiply_adds = (
        sum(9 * inputs * outputs * side**2 for inputs, outputs, side in layers) + 64 * 10
    )
    with torch.device("meta"):
        net = BACKBONES["resnet20"].func(depth)
    assert totals(count(net)) == (weights, multiply_adds)


def test_counts_follow_the_image_and_leave_the_network_alone():
    net = create_backbone("resnet18", num_classes=0)
    before = net.conv1.weight.clone()
    rows = {row.stage: row for row in count(net, 448)}
    assert rows["conv2"].size == (112, 112)
    assert rows["conv1"].multiply_adds == 49 * 3 * 64 * 224**2
    assert rows["head"].parameters == rows["head"].multiply_adds == 0
    assert torch.equal(net.conv1.weight, before)
    with pytest.raises(ValueError, match="too small"):
        count(net, 16)


def test_the_command_prints_every_network_and_every_file(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for words in (
        (
            "resnet152 original",
            "60,192,808",
            "11,282,415,616",
            "224",
            "2 4 8 16 32",
            "21.43 / 5.71",
        ),
        ("resnet1202", "19,421,274", "2,829,238,912", "32", "1 1 2 4", "7.93"),
        ("torchvision/vgg16.features", "-", "rgb 256/224", "vgg16_features-amdegroot-88682ab5.pth"),
    ):
        line = next(line for line in out.splitlines() if line.startswith(words[0] + " "))
        assert all(word in line for word in words)


def test_the_command_describes_a_network(capsys):
    assert main(["--describe", "resnet101"]) == 0
    out = capsys.readouterr().out
    for words in (
        ("conv1", "112x112", "7x7, 64, stride 2", "9,536", "118,013,952"),
        ("conv2", "56x56", "3x3 max pool, stride 2; [1x1, 64, 3x3, 64, 1x1, 256] x 3"),
        ("conv4", "14x14", "[1x1, 256, 3x3, 256, 1x1, 1024] x 23"),
        ("head", "average pool, 1000-d fc", "2,049,000"),
        ("total", "44,549,160", "7,801,405,440"),
    ):
        line = next(line for line in out.splitlines() if line.startswith(words[0]))
        assert all(word in line for word in words)
    assert main(["--describe", "vgg16", "--size", "64"]) == 0
    out = capsys.readouterr().out
    assert "[3x3, 512] x 3" in out
    assert "max pool, 4096-d fc, 4096-d fc, 1000-d fc" in out
    assert main(["--describe", "resnet50 original"]) == 0
    assert "3,857,973,248" in capsys.readouterr().out
    assert main(["--describe", "resnet50 width=0.5", "--pool1", "caffe"]) == 0
    assert "6,927,528" in capsys.readouterr().out
    assert main(["--describe", "resnet34 C"]) == 0
    assert "22,716,840" in capsys.readouterr().out
    assert main(["--describe", "resnet20"]) == 0
    assert "conv1  32x32   3x3, 16 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--describe", "resnet49"], "unknown backbone 'resnet49', did you mean"),
        (["--describe", "vgg16", "--shortcut", "A"], "vgg16 has no shortcut"),
        (["--describe", "resnet18", "--size", "8"], "too small"),
        (["--describe", "resnet18 width=0.3"], "expected one that makes a whole number"),
        (["--describe", "resnet18", "--width", "nan"], "expected one that makes a whole number"),
        (["--describe", "resnet18", "--width", "inf"], "expected one that makes a whole number"),
        (["--describe", "resnet18 width=half"], "width=half"),
        (["--describe", "resnet18 A", "--width", "0.5"], "shortcut A adds channels"),
        (["--describe", "vgg16", "--width", "0.5"], "vgg16 has no width"),
    ],
)
def test_the_command_refuses(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err


@pytest.mark.parametrize("size", ["-5", "0", "99999999999"])
def test_the_command_wants_a_size_for_an_image(size, capsys):
    with pytest.raises(SystemExit):
        main(["--describe", "resnet20", "--size", size])
    assert f"{size} px is no size for an image" in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "backbones", "--size", "3"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "go with --describe NAME" in done.stderr
