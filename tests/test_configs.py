"""The configurations that ship: each loads, builds, and says the paper's numbers where it is the
paper's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detres.classification.build import build_class_schedule
from detres.classification.config import ClassificationConfig
from detres.config import load_config
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.localisation.build import build_class_rpn, build_rcnn
from detres.detection.localisation.config import LocalisationConfig
from detres.engine.progress import Progress
from detres.network import build_network

ALL = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
CLASSIFICATION = [
    path
    for path in ALL
    if path.stem.startswith(("cls_", "cifar10_", "imagenet_", "tiny_imagenet50_"))
    and not path.stem.startswith(("imagenet_det_", "imagenet_loc_"))
]
LOCALISATION = [
    path for path in ALL if "_loc_" in path.stem or path.stem.startswith("shapes_rcnn_")
]
FILES = [path for path in ALL if path not in (*CLASSIFICATION, *LOCALISATION)]
WITHOUT_DOWNLOAD = [
    "model.backbone.weights=null",
    "model.backbone.norm=batch",
    "model.backbone.freeze_at=0",
]


def config_of(name):
    return load_config(next(path for path in FILES if path.stem == name), DetectionConfig)


TABLES = {  # of the paper, 7 and 8: training data -> (train, val, protocol, steps, milestone)
    "voc0712": (("2007/trainval", "2012/trainval"), ("2007/test",), "voc07", 70_000, 50_000),
    "voc0712plus": (
        ("2007/trainval", "2007/test", "2012/trainval"),
        (),
        "voc12",
        110_000,
        80_000,
    ),
    "coco": (
        ("annotations/instances_train2014.json",),
        ("annotations/instances_val2014.json",),
        "coco",
        320_000,
        240_000,
    ),
}
NETWORKS = {"vgg16": "vgg16", "r50": "resnet50", "r101": "resnet101"}
CELLS = [f"{data}_{network}" for data in TABLES for network in NETWORKS]


def test_every_cell_of_tables_7_and_8_and_the_small_ones_are_there():
    assert {path.stem for path in FILES} >= {"shapes_r18", "bccd_r18", *CELLS}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_key_has_the_name_of_today(path):
    kind = ClassificationConfig if path in CLASSIFICATION else DetectionConfig
    kind = LocalisationConfig if path in LOCALISATION else kind
    notices = []
    load_config(path, kind, notice=notices.append)
    assert notices == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_under_its_own_name_and_builds(path):
    assert load_config(path, DetectionConfig).name == path.stem
    changed = [each for each in WITHOUT_DOWNLOAD if "norm" not in each or "vgg16" not in path.stem]
    config = load_config(path, DetectionConfig, changed)
    detector = build_detector(config.model, 20)
    anchors = len(config.model.anchors.sizes) * len(config.model.anchors.aspect_ratios)
    on_a_level = anchors // len(detector.rpn.anchors)  # of a pyramid one size on each
    assert {each.num_anchors for each in detector.rpn.anchors.values()} == {on_a_level}
    boxes = 1 if config.model.roi.class_agnostic else 20
    assert detector.roi_head.predictor.bbox_pred.out_features == 4 * boxes


@pytest.mark.parametrize("path", LOCALISATION, ids=lambda path: path.stem)
def test_a_localisation_config_loads_under_its_own_name_and_builds(path):
    assert load_config(path, LocalisationConfig).name == path.stem
    config = load_config(path, LocalisationConfig, WITHOUT_DOWNLOAD)
    if config.model.kind == "rcnn":
        rpn = load_config(path.with_name("shapes_loc_r18.yaml"), LocalisationConfig)
        model = build_rcnn(config.model, 6, build_class_rpn(rpn.model, 6))
        assert model.bbox_pred.out_features == 24
    else:
        model = build_class_rpn(config.model, 6)
        anchors = len(config.model.anchors.sizes) * len(config.model.anchors.aspect_ratios)
        assert model.rpn.head.deltas.out_channels == anchors * 24


def test_the_papers_localisation():
    path = next(path for path in LOCALISATION if path.stem == "imagenet_loc_r101")
    config = load_config(path, LocalisationConfig)
    model, train = config.model, config.train
    assert (model.backbone.name, model.input.crop_side) == ("resnet101", 224)
    assert (train.batch_size, train.effective_lr) == (256, 0.01)
    assert (model.rpn.batch_size, model.rpn.positive_fraction) == (8, 0.5)
    assert (config.eval.views, config.eval.short_side) == ("center", 256)
    settings = ["model.kind=rcnn", "model.rcnn.proposals=x", "name=imagenet_rcnn_r101"]
    assert load_config(path, LocalisationConfig, settings).model.kind == "rcnn"


def test_imagenet_det_is_the_detector_of_coco():
    """With all that the figure of table 12 has."""
    det, coco = config_of("imagenet_det_r101"), config_of("coco_r101_context")
    assert (det.model, det.train) == (coco.model, coco.train)
    improved = config_of("voc0712_r101_context").eval
    assert (det.eval.refine, det.eval.multi_scale) == (improved.refine, improved.multi_scale)
    assert (det.data.format, det.eval.protocol) == ("ilsvrc", "imagenet_det")


@pytest.mark.parametrize("name", CELLS)
def test_the_papers_settings(name):
    config = config_of(name)
    data, model, train = config.data, config.model, config.train
    table, _, network = name.rpartition("_")
    assert (model.input.short_side, model.input.max_side) == (600, 1000)
    assert (model.backbone.name, model.backbone.freeze_at) == (NETWORKS[network], 2)
    assert (model.rpn.test_post_nms_top_n, model.roi.pool) == (300, "roi_pool")
    if network == "vgg16":
        assert model.roi.pool_size == 7
    else:
        assert (model.backbone.norm, model.roi.pool_size) == ("frozen", 14)
    assert (
        train.optimizer,
        train.effective_lr,
        train.momentum,
        train.gamma,
        train.weight_decay,
    ) == ("sgd", 1e-3, 0.9, 0.1, 5e-4)
    anchors = len(model.anchors.sizes) * len(model.anchors.aspect_ratios)
    assert anchors == (12 if table == "coco" else 9)
    assert (data.train, data.val, config.eval.protocol, train.steps, *train.milestones) == TABLES[
        table
    ]
    assert config.eval.competition == "comp4"


def test_what_is_held_out_of_07_plus_plus_12_is_a_small_part():
    config = config_of("voc0712plus_r101")
    assert (config.data.hold_out, config.data.test) == (500, ("2012/test",))
    assert config.train.eval_every == 0  # so the weights are those of the last step


@pytest.mark.parametrize("name", CELLS)
def test_its_head_says_what_it_is_and_how_it_is_run(name):
    text = next(path for path in FILES if path.stem == name).read_text(encoding="utf-8")
    head = text.partition("\nname:")[0]
    assert "He et al. 2016" in head
    assert f"# python tools/train_det.py --cfg configs/{name}.yaml --data " in head
    assert "in the paper" in head.replace("\n# ", " ")
    has_test_set = bool(config_of(name).data.test)
    assert (f"eval.py --weights runs/{name}/best.safetensors --split test" in head) == has_test_set


@pytest.mark.parametrize(
    ("name", "baseline", "scales", "paper"),
    [
        ("coco_r101_context", "coco_r101", (), "53.8 / 32.5"),
        ("coco_r101_context_trainval", "coco_r101", (), "55.7 / 34.9"),
        ("voc0712_r101_context", "voc0712_r101", (200, 400, 600, 800, 1000), "85.6"),
        ("voc0712plus_r101_context", "voc0712plus_r101", (200, 400, 600, 800, 1000), "83.8"),
    ],
)
def test_the_papers_improvements(name, baseline, scales, paper):
    """Trained as the baseline is but for context; on VOC with the anchors of the COCO detector."""
    config, plain = config_of(name), config_of(baseline)
    anchors = config_of("coco_r101").model.anchors
    assert config.model.roi == plain.model.roi.model_copy(update={"context": True})
    assert config.model == plain.model.model_copy(
        update={"roi": config.model.roi, "anchors": anchors}
    )
    assert config.train == plain.train
    refine = config.eval.refine
    assert (refine.iterations, refine.nms_thresh, refine.voting) == (1, 0.3, "after_refinement")
    assert config.eval.multi_scale.short_sides == scales
    assert not config.eval.improved_in_training
    head = next(path for path in FILES if path.stem == name).read_text().partition("\nname:")[0]
    assert paper in head


@pytest.mark.parametrize("path", CLASSIFICATION, ids=lambda path: path.stem)
def test_a_classification_config_loads_under_its_own_name_and_builds(path):
    config = load_config(path, ClassificationConfig)
    assert config.name == path.stem
    with torch.device("meta"):
        net = build_network(config.model.network, num_classes=10)
    assert net.get_classifier().out_features == 10


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
@pytest.mark.parametrize("kind", ["resnet", "plain"])
def test_the_papers_cifar_recipe(kind, depth):
    if kind == "plain" and depth > 56:
        assert f"cifar10_plain{depth}" not in {path.stem for path in CLASSIFICATION}
        return
    path = next(path for path in CLASSIFICATION if path.stem == f"cifar10_{kind}{depth}")
    config = load_config(path, ClassificationConfig)
    assert config.model.network.name == f"{kind}{depth}"
    assert config.model.network.shortcut == ("A" if kind == "resnet" else None)
    assert (config.model.mean, config.data.pad, config.data.flip) == ("pixel", 4, 0.5)
    assert (
        config.train.batch_size,
        config.train.momentum,
        config.train.weight_decay,
        config.train.optimizer,
    ) == (128, 0.9, 1e-4, "sgd")
    schedule = build_class_schedule(config.train, 50_000)
    assert schedule.steps == 64_000
    rates = [
        schedule.at(Progress(step, warmed_up=True))
        for step in (400, 31_999, 32_000, 47_999, 48_000, 63_999)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert schedule.at(Progress()) == pytest.approx(0.01 if depth >= 110 else 0.1)


@pytest.mark.parametrize(
    "path",
    [path for path in CLASSIFICATION if path.stem.startswith("imagenet_")],
    ids=lambda path: path.stem,
)
def test_the_papers_imagenet_recipe(path):
    config = load_config(path, ClassificationConfig)
    data, train = config.data, config.train
    assert (data.crop_side, data.short_sides, data.flip, data.pca) == (224, (256, 480), 0.5, 0.1)
    assert (
        train.batch_size,
        train.effective_lr,
        train.steps,
        train.weight_decay,
        train.momentum,
    ) == (256, 0.1, 600_000, 1e-4, 0.9)
    assert (
        config.model.label_smoothing,
        config.model.network.zero_init_residual,
        train.schedule,
    ) == (0.0, None, "multistep")
    assert config.eval.scales == (224, 256, 384, 480, 640)
    network = config.model.network
    wanted = {"a": "A", "b": "B", "c": "C"}.get(path.stem[-1])
    assert network.shortcut == wanted
    assert network.stride_placement == (
        "original" if network.name in ("resnet50", "resnet101", "resnet152") else None
    )


def test_every_network_of_tables_2_to_6_has_its_config():
    names = {path.stem for path in CLASSIFICATION}
    deep = {
        f"imagenet_{name}"
        for name in ("plain18", "plain34", "resnet50", "resnet101", "resnet152", "vgg16")
    }
    assert deep | {f"imagenet_resnet{depth}{kind}" for depth in (18, 34) for kind in "abc"} <= names
    assert {f"cifar10_resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)} | {
        f"cifar10_plain{depth}" for depth in (20, 32, 44, 56)
    } <= names
