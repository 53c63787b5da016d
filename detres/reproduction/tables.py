"""The tables of He et al. 2016 as data: the paper's numbers, what measures each here, and what
others measured. Rows of other authors' methods are left out; numbers are in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

TITLES = {
    2: "ImageNet validation, 10 crops",
    3: "ImageNet validation, 10 crops",
    4: "ImageNet validation, single models, fully convolutional at several scales",
    5: "ImageNet, ensembles, fully convolutional at several scales",
    6: "CIFAR-10 test set",
    7: "PASCAL VOC, baseline Faster R-CNN",
    8: "COCO train2014 -> val2014, baseline Faster R-CNN",
    9: "COCO, improvements",
    10: "VOC 2007 test",
    11: "VOC 2012 test",
    12: "ImageNet detection",
    13: "ImageNet localisation, validation",
    14: "ImageNet localisation, ensembles",
}

METRICS = {
    "top1_error": "top-1",
    "top5_error": "top-5",
    "loc_error": "error",
    "top5_loc_error": "top-5 error",
}
"""Metric -> what a table calls it; AP by its own name."""

TRAINED = "metrics"
"""Label of the numbers with which training ends, in metrics.json."""

NEUTRAL = {"name", "seed", "data.root", "data.workers", "data.test", "data.test_images"}
NEUTRAL |= {"train.log_every", "train.save_every", "train.compile", "eval.batch_size"}
NEUTRAL |= {"train.checkpoint_activations"}
"""Settings that change no result, and the seed, which is recorded."""

KEEPS_WEIGHTS = {"eval.protocol", "eval.improved_in_training"}
"""Of `eval`, what decides which weights a run keeps."""


@dataclass(frozen=True)
class Cost:
    """What one image of training costs, in seconds of `device`; source: of that number."""

    seconds: float
    device: str
    source: str


@dataclass(frozen=True)
class Training:
    """A run. config: file of configs/; settings: what --set changes, in which {needs} stands for
    the weights of `needs`; data: name of the data folder, None: the embedded shapes; init_from: run
    that --init-from names.
    """

    command: Literal["train-cls", "train-det", "train-loc"]
    config: str
    data: str | None
    cost: Cost | None = None
    settings: tuple[str, ...] = ()
    needs: Training | None = None
    init_from: Training | None = None

    @property
    def name(self) -> str:
        """Of its run folder."""
        named = [each[len("name=") :] for each in self.settings if each.startswith("name=")]
        return named[-1] if named else self.config

    @property
    def changes(self) -> tuple[str, ...]:
        """Those of its settings that can change a result."""
        return tuple(each for each in self.settings if each.partition("=")[0] not in NEUTRAL)

    def changed(self, name: str, *settings: str) -> Training:
        """Return the same under another name, with more settings."""
        others = [each for each in self.settings if not each.startswith("name=")]
        return replace(self, settings=(*others, *settings, f"name={name}"))

    def and_seeds(self, *seeds: int) -> tuple[Training, ...]:
        """Return it as it is, and once more with each of `seeds`."""
        return (self, *(self.changed(f"{self.name}_seed{n}", f"seed={n}") for n in seeds))

    def in_order(self) -> Iterator[Training]:
        """Give the runs it needs, then itself."""
        for other in (self.needs, self.init_from):
            if other is not None:
                yield from other.in_order()
        yield self


@dataclass(frozen=True)
class Evaluation:
    """What tools/eval.py does after training. label: its numbers are in label.json of the run
    folder; settings: of --set; classifiers: predict the classes for a localiser, together; server:
    a test server evaluates, and its numbers are put into label.json by hand.
    """

    label: str
    settings: tuple[str, ...] = ()
    classifiers: tuple[Training, ...] = ()
    server: bool = False


@dataclass(frozen=True)
class Cell:
    """A row, or a row and column, of a table: its numbers by metric (a class: its AP), None where
    the paper has none.

    runs: those that are evaluated, together where there is an `evaluation`, else each by what its
    training ends with; none: it cannot be measured here, and `note` says why. reruns: source -> its
    numbers. deviations: rows of docs/deviations.md.
    """

    table: int
    row: str
    paper: Mapping[str, float | None]
    runs: tuple[Training, ...] = ()
    evaluation: Evaluation | None = None
    deviations: tuple[str, ...] = ()
    reruns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""

    def in_order(self) -> list[Training]:
        """Return every run it needs, each after those that it needs itself."""
        ends = (*self.runs, *(self.evaluation.classifiers if self.evaluation else ()))
        return list(dict.fromkeys(each for end in ends for each in end.in_order()))


# ---- classification ----

MULTIPLY_ADDS = {"18": 1.8e9, "34": 3.6e9, "50": 3.8e9, "101": 7.6e9, "152": 11.3e9}  # table 1
MULTIPLY_ADDS["vgg16"] = 15.3e9  # section 3.3
TEN_CROP = Evaluation("ten_crop", ("eval.views=ten_crop",))
DENSE = Evaluation("dense", ("eval.views=dense",))
OF_IMAGENET = ("initial weights", "schedule on ImageNet", "batch norm", "momentum", "resizing")
OF_IMAGENET += ("mean on ImageNet", "weight decay", "colour shift")
OF_CIFAR = ("initial weights", "batch norm", "momentum", "mean on CIFAR", "weight decay")


def counted(network: str) -> Cost:
    """Return what an image of 224 px costs by the paper's count of a forward pass."""
    source = "counted: 3 forward passes an image, at an assumed 4e12 multiply-adds a second"
    return Cost(3 * MULTIPLY_ADDS[network] / 4e12, "a GPU", source)


def imagenet(network: str) -> Training:
    """Return the training of a network: "plain18", "resnet34b", "vgg16"."""
    size = network.removeprefix("plain").removeprefix("resnet").rstrip("abc")
    return Training("train-cls", f"imagenet_{network}", "IMAGENET", counted(size))


def errors(top1: float, top5: float | None = None) -> dict[str, float]:
    """Return the errors of a cell."""
    return {"top1_error": top1, **({} if top5 is None else {"top5_error": top5})}


def on_imagenet(table: int, row: str, network: str, *paper: float) -> Cell:
    """Return a cell of tables 2 to 4: top-1 error, and top-5 where it is given."""
    how = DENSE if table == 4 else TEN_CROP
    reruns = RERUNS_10_CROP.get(network, {}) if table == 3 else {}
    note = "with batch norm; the paper tested published weights without" * (network == "vgg16")
    return Cell(table, row, errors(*paper), (imagenet(network),), how, OF_IMAGENET, reruns, note)


FB, MSRA = "fb.resnet.torch", "the authors' release"
RERUNS_10_CROP = {
    "resnet34b": {FB: errors(24.76, 7.35)},
    "resnet50": {MSRA: errors(22.9, 6.7), FB: errors(22.24, 6.08)},
    "resnet101": {MSRA: errors(21.8, 6.1), FB: errors(21.08, 5.35)},
    "resnet152": {MSRA: errors(21.4, 5.7), FB: errors(20.69, 5.21)},
}
TABLES_2_TO_4 = (
    on_imagenet(2, "plain-18", "plain18", 27.94),
    on_imagenet(2, "ResNet-18, shortcuts A", "resnet18a", 27.88),
    on_imagenet(2, "plain-34", "plain34", 28.54),
    on_imagenet(2, "ResNet-34, shortcuts A", "resnet34a", 25.03),
    on_imagenet(3, "VGG-16", "vgg16", 28.07, 9.33),
    on_imagenet(3, "plain-34", "plain34", 28.54, 10.02),
    on_imagenet(3, "ResNet-34 A", "resnet34a", 25.03, 7.76),
    on_imagenet(3, "ResNet-34 B", "resnet34b", 24.52, 7.46),
    on_imagenet(3, "ResNet-34 C", "resnet34c", 24.19, 7.40),
    on_imagenet(3, "ResNet-50", "resnet50", 22.85, 6.71),
    on_imagenet(3, "ResNet-101", "resnet101", 21.75, 6.05),
    on_imagenet(3, "ResNet-152", "resnet152", 21.43, 5.71),
    on_imagenet(4, "ResNet-34 B", "resnet34b", 21.84, 5.71),
    on_imagenet(4, "ResNet-34 C", "resnet34c", 21.53, 5.60),
    on_imagenet(4, "ResNet-50", "resnet50", 20.74, 5.25),
    on_imagenet(4, "ResNet-101", "resnet101", 19.87, 4.60),
    on_imagenet(4, "ResNet-152", "resnet152", 19.38, 4.49),
)
SIX = tuple(imagenet(name) for name in ("resnet34b", "resnet34c", "resnet50", "resnet101"))
SIX += imagenet("resnet152").and_seeds(4)
TABLE_5 = (
    Cell(
        5,
        "six ResNets, two of them of 152 layers",
        {"top5_error": 3.57},
        SIX,
        replace(DENSE, label="ensemble"),
        OF_IMAGENET,
        note="the paper's is of the test set, by its server, and it does not name the other four; "
        "here of the validation set",
    ),
)


def on_cifar(depth: int, multiply_adds: float, paper: float, rerun: float, **more: object) -> Cell:
    """Return a ResNet's cell of table 6."""
    reruns = {"akamaster/pytorch_resnet_cifar10, best over its epochs": errors(rerun)}
    if depth == 110:
        reruns["the paper's mean of 5"] = errors(6.61)
    run = cifar(f"resnet{depth}", multiply_adds)
    cell = Cell(6, f"ResNet-{depth}", errors(paper), (run,), None, OF_CIFAR, reruns)
    return replace(cell, **more)


def cifar(network: str, multiply_adds: float) -> Training:
    """Return the training of a network, its cost by what ResNet-20 took here."""
    seconds = 111 * 60 / (64_000 * 128) * multiply_adds / 40.55e6
    source = "ResNet-20's 111 min here, by multiply-adds"
    cost = Cost(seconds, "two CPU cores with AMX", source)
    return Training("train-cls", f"cifar10_{network}", "CIFAR", cost)


def on_plain_cifar(depth: int, multiply_adds: float) -> Cell:
    """Return a plain network's cell, which figure 6 shows."""
    run, note = cifar(f"plain{depth}", multiply_adds), "a curve of figure 6, left"
    return Cell(6, f"plain-{depth}", {"top1_error": None}, (run,), None, OF_CIFAR, note=note)


WARMED_UP = (*OF_CIFAR, "warm-up of ResNet-110 and 1202")
TABLE_6 = (
    on_cifar(20, 40.55e6, 8.75, 8.27),
    on_cifar(32, 68.86e6, 7.51, 7.37),
    on_cifar(44, 97.17e6, 7.17, 6.90),
    on_cifar(56, 125.49e6, 6.97, 6.61),
    on_cifar(
        110,
        252.89e6,
        6.43,
        6.32,
        runs=cifar("resnet110", 252.89e6).and_seeds(4, 5, 6, 7),
        deviations=WARMED_UP,
        note="best of 5; their mean 6.61 +- 0.16",
    ),
    on_cifar(1202, 2829.2e6, 7.93, 6.18, deviations=WARMED_UP),
    on_plain_cifar(20, 40.55e6),
    on_plain_cifar(32, 68.86e6),
    on_plain_cifar(44, 97.17e6),
    on_plain_cifar(56, 125.49e6),
)

# ---- detection ----

C4 = "detectron2's ResNet-{}-C4 at 800 px, {} s for 16 images on 8 of them"
R50 = Cost(0.551 * 8 / 16, "a V100", C4.format(50, 0.551))
R101 = Cost(0.619 * 8 / 16, "a V100", C4.format(101, 0.619))
VGG16 = Cost(1 / 6, "a Titan Xp", "simple-faster-rcnn, 6 images a second at 600 px")
NETWORKS = {"VGG-16": ("vgg16", VGG16), "ResNet-50": ("r50", R50), "ResNet-101": ("r101", R101)}

OF_TURNS = ("4 steps: what starts what", "4 steps: box targets of Fast R-CNN", "4 steps: batch")
OF_BOTH = ("warm-up", "momentum", "batch", "flips", "first max pooling", "weights")
OF_DETECTOR = ("training scheme", *OF_BOTH)
OF_12 = ("VOC 07++12: steps", "VOC 07++12: held-out images")
OF_REFINED = (*OF_DETECTOR, "box refinement: which box", "box voting: overlap")
OF_CONTEXT = (*OF_REFINED, "global context: normalisation")
OF_IMPROVED = (*OF_CONTEXT, "several scales: which two", "several scales: cap of the long side")
OF_IMPROVED += ("several scales: maxout",)

SIDES = "eval.multi_scale.short_sides=[200,400,600,800,1000]"
SERVER = Evaluation("server", server=True)
IMPROVED = Evaluation("improved")  # as the configuration says


def detector(data: str, network: str, folder: str = "VOCdevkit") -> Training:
    """Return the training of configs/DATA_NETWORK; network: as the paper calls it."""
    name, cost = NETWORKS[network]
    return Training("train-det", f"{data}_{name}", folder, cost)


def in_turns(training: Training, steps: list[int], drops: list[int]) -> Training:
    """Return a training in the paper's four steps: their lengths, and where the rate drops."""
    settings = {
        "train.scheme": "alternating",
        "train.steps": sum(steps),
        "train.milestones": [],
        "train.phase_steps": steps,
        "train.phase_milestones": [[drop] for drop in drops],
    }
    given = [f"{key}={value}".replace(" ", "") for key, value in settings.items()]
    return training.changed(f"{training.name}_alternating", *given)


VOC_CLASSES = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
VOC_CLASSES += "motorbike person pottedplant sheep sofa train tvmonitor"


def mean_ap(value: float | None, of_classes: str = "") -> dict[str, float | None]:
    """Return the numbers of a VOC cell; of_classes: AP of each, in VOC's order."""
    each = [float(ap) for ap in of_classes.split()]
    named = zip(VOC_CLASSES.split(), each, strict=True) if each else ()
    return {"mAP": value, **dict(named)}


def coco(ap50: float | None, ap: float | None) -> dict[str, float | None]:
    """Return the numbers of a COCO cell: the paper's mAP@.5 and mAP@[.5, .95]."""
    return {"AP50": ap50, "AP": ap}


RL, TF = "ruotianluo/pytorch-faster-rcnn", "endernewton/tf-faster-rcnn"
EX, PY = "Eniac-Xie/faster-rcnn-resnet", "py-faster-rcnn, of other images, on test-dev"
LONGER = "{}, of more images, on minival"
ON_VOC_07 = {
    "VGG-16": {RL: mean_ap(75.33), TF: mean_ap(75.7)},
    "ResNet-50": {"detectron2, 480 to 800 px": mean_ap(80.3), "mmdetection": mean_ap(80.9)},
    "ResNet-101": {EX: mean_ap(78.78), RL: mean_ap(79.26), TF: mean_ap(79.8)},
}
ON_COCO = {
    "VGG-16": {
        PY: {"AP50": 45.3, "AP": 24.2},
        LONGER.format(RL): {"AP": 29.2},
        LONGER.format(TF): {"AP": 30.2},
    },
    "ResNet-50": {LONGER.format(TF): {"AP": 32.4}},
    "ResNet-101": {LONGER.format(RL): {"AP": 35.1}, LONGER.format(TF): {"AP": 35.4}},
}


def on_voc07(network: str, paper: float | None) -> Cell:
    """Return a cell of table 7, left."""
    row, run = f"{network}, 07+12 -> VOC 07 test", detector("voc0712", network)
    return Cell(7, row, mean_ap(paper), (run,), None, OF_DETECTOR, ON_VOC_07[network])


def on_voc12(network: str, paper: float | None) -> Cell:
    """Return a cell of table 7, right."""
    row, run = f"{network}, 07++12 -> VOC 12 test", detector("voc0712plus", network)
    return Cell(7, row, mean_ap(paper), (run,), SERVER, (*OF_DETECTOR, *OF_12))


def on_coco(network: str, ap50: float | None, ap: float | None) -> Cell:
    """Return a cell of table 8."""
    run, known = detector("coco", network, "COCO"), (*OF_DETECTOR, "COCO crowds")
    return Cell(8, network, coco(ap50, ap), (run,), None, known, ON_COCO[network])


def by_turns(cell: Cell, steps: list[int], drops: list[int]) -> Cell:
    """Return a cell whose detector is trained by the paper's scheme."""
    known = [row for row in cell.deviations if row != "training scheme"]
    return replace(
        cell,
        row=f"{cell.row}, in 4 steps",
        runs=tuple(in_turns(run, steps, drops) for run in cell.runs),
        deviations=(*known, *OF_TURNS),
        note="the paper's own scheme of training",
    )


VGG_07, R101_07 = on_voc07("VGG-16", 73.2), on_voc07("ResNet-101", 76.4)
VGG_12, R101_12 = on_voc12("VGG-16", 70.4), on_voc12("ResNet-101", 73.8)
VGG_COCO, R101_COCO = on_coco("VGG-16", 41.5, 21.2), on_coco("ResNet-101", 48.4, 27.2)
MATLAB = ([80_000, 60_000, 80_000, 60_000], [60_000, 30_000, 60_000, 30_000])  # on 07+12
TABLE_7 = (VGG_07, on_voc07("ResNet-50", None), R101_07, VGG_12, on_voc12("ResNet-50", None))
TABLE_7 += (R101_12, by_turns(VGG_07, *MATLAB), by_turns(R101_07, *MATLAB))
TABLE_8 = (VGG_COCO, on_coco("ResNet-50", None, None), R101_COCO)
TABLE_8 += tuple(by_turns(each, [320_000] * 4, [240_000] * 4) for each in (VGG_COCO, R101_COCO))

CONTEXT = replace(R101_COCO.runs[0], config="coco_r101_context")
TRAINVAL = replace(CONTEXT, config="coco_r101_context_trainval")
SCALES_SERVER = Evaluation("server_scales", (SIDES,), server=True)
OF_ENSEMBLE = (*OF_IMPROVED, "ensemble: average")
SEEDS = "the paper does not say in what its networks differ; here in their seeds"


def on_coco_improved(
    row: str, ap50: float, ap: float, runs: tuple[Training, ...], how: Evaluation, known: tuple
) -> Cell:
    """Return a cell of table 9."""
    return Cell(9, row, coco(ap50, ap), runs, how, known, note=SEEDS * (len(runs) > 1))


REFINED = Evaluation("refined", ("eval.refine.iterations=1",))
SCALES = Evaluation("improved_scales", (SIDES,))
ENSEMBLE_SERVER = replace(SCALES_SERVER, label="server_ensemble")
ON_VAL, ON_TEST = "train -> val", "trainval -> test-dev"
TABLE_9 = (
    replace(VGG_COCO, table=9, row=f"VGG-16, baseline, {ON_VAL}"),
    replace(R101_COCO, table=9, row=f"ResNet-101, baseline, {ON_VAL}"),
    on_coco_improved(
        f"+ box refinement, {ON_VAL}", 49.9, 29.9, R101_COCO.runs, REFINED, OF_REFINED
    ),
    on_coco_improved(f"+ context, {ON_VAL}", 51.1, 30.0, (CONTEXT,), IMPROVED, OF_CONTEXT),
    on_coco_improved(f"+ several scales, {ON_VAL}", 53.8, 32.5, (CONTEXT,), SCALES, OF_IMPROVED),
    on_coco_improved(f"+ context, {ON_TEST}", 53.3, 32.2, (TRAINVAL,), SERVER, OF_CONTEXT),
    on_coco_improved(
        f"+ several scales, {ON_TEST}", 55.7, 34.9, (TRAINVAL,), SCALES_SERVER, OF_IMPROVED
    ),
    on_coco_improved(
        f"ensemble of 3, {ON_TEST}",
        59.0,
        37.4,
        TRAINVAL.and_seeds(4, 5),
        ENSEMBLE_SERVER,
        OF_ENSEMBLE,
    ),
)

AP_OF_CLASSES = {
    "VGG-16, 07": "76.5 79.0 70.9 65.5 52.1 83.1 84.7 86.4 52.0 81.9 "
    "65.7 84.8 84.6 77.5 76.7 38.8 73.6 73.9 83.0 72.6",
    "R101, 07": "79.8 80.7 76.2 68.3 55.9 85.1 85.3 89.8 56.7 87.8 "
    "69.4 88.3 88.9 80.9 78.4 41.7 78.6 79.8 85.3 72.0",
    "+++, 07": "90.0 89.6 87.8 80.8 76.1 89.9 89.9 89.6 75.5 90.0 "
    "80.7 89.6 90.3 89.1 88.7 65.4 88.1 85.6 89.0 86.8",
    "VGG-16, 12": "84.9 79.8 74.3 53.9 49.8 77.5 75.9 88.5 45.6 77.1 "
    "55.3 86.9 81.7 80.9 79.6 40.1 72.6 60.9 81.2 61.5",
    "R101, 12": "86.5 81.6 77.2 58.0 51.0 78.6 76.6 93.2 48.6 80.4 "
    "59.0 92.1 85.3 84.8 80.7 48.1 77.3 66.5 84.7 65.6",
    "+++, 12": "92.1 88.4 84.8 75.9 71.4 86.3 87.8 94.2 66.8 89.4 "
    "69.2 93.9 91.9 90.9 89.6 67.9 88.2 76.8 90.3 80.0",
}


def per_class(cell: Cell, table: int, row: str, classes: str) -> Cell:
    """Return a cell of table 7 as one of table 10 or 11, which have every class."""
    paper = mean_ap(cell.paper["mAP"], AP_OF_CLASSES[classes])
    return replace(cell, table=table, row=row, paper=paper)


PLUS_07 = replace(R101_07.runs[0], config="voc0712_r101_context", init_from=TRAINVAL)
PLUS_12 = replace(PLUS_07, config="voc0712plus_r101_context")
PLUS = "ResNet-101, baseline+++, COCO+{}"
TABLE_10 = (
    per_class(VGG_07, 10, "VGG-16, baseline, 07+12", "VGG-16, 07"),
    per_class(R101_07, 10, "ResNet-101, baseline, 07+12", "R101, 07"),
    per_class(
        Cell(10, "", mean_ap(85.6), (PLUS_07,), IMPROVED, OF_IMPROVED),
        10,
        PLUS.format("07+12"),
        "+++, 07",
    ),
)
TABLE_11 = (
    per_class(VGG_12, 11, "VGG-16, baseline, 07++12", "VGG-16, 12"),
    per_class(R101_12, 11, "ResNet-101, baseline, 07++12", "R101, 12"),
    per_class(
        Cell(11, "", mean_ap(83.8), (PLUS_12,), SERVER, (*OF_IMPROVED, *OF_12)),
        11,
        PLUS.format("07++12"),
        "+++, 12",
    ),
)

# ---- ImageNet detection and localisation ----

DET = Training("train-det", "imagenet_det_r101", "ILSVRC", R101)
DET_IMPROVED = Evaluation("improved_scales", (*REFINED.settings, SIDES))
DET_ENSEMBLE = replace(DET_IMPROVED, label="ensemble")
DET_SERVER = replace(DET_IMPROVED, label="server", server=True)
OF_DET = ("DET: what is trained on", "DET: schedule")
HERE = "ImageNet DET: blacklist"  # of the validation set, which no server evaluates


def on_det(row: str, paper: float, how: Evaluation, runs: tuple[Training, ...] = (DET,)) -> Cell:
    """Return a cell of table 12."""
    several = len(runs) > 1
    known = (*(OF_ENSEMBLE if several else OF_IMPROVED), *OF_DET, *(() if how.server else (HERE,)))
    return Cell(12, row, mean_ap(paper), runs, how, known, note=SEEDS * several)


TABLE_12 = (
    on_det("ResNet-101, val2", 60.5, DET_IMPROVED),
    on_det("ResNet-101, test", 58.8, DET_SERVER),
    on_det("ensemble of 3, val2", 63.6, DET_ENSEMBLE, DET.and_seeds(4, 5)),
    on_det(
        "ensemble of 3, test",
        62.1,
        replace(DET_SERVER, label="server_ensemble"),
        DET.and_seeds(4, 5),
    ),
)

LOC = Training("train-loc", "imagenet_loc_r101", "ILSVRC", counted("101"))
RCNN = replace(LOC, needs=LOC)
RCNN = RCNN.changed("imagenet_rcnn_r101", "model.kind=rcnn", "model.rcnn.proposals={needs}")
OF_LOC = ("LOC: what is trained on", "LOC: feature map", "LOC: anchors")
OF_LOC += ("LOC: which outputs learn", "LOC: schedule, frozen layers")
OF_DENSE = (*OF_LOC, "LOC: dense scales")
OF_RCNN = (*OF_DENSE, "R-CNN: samples", "R-CNN: proposals to learn from", "R-CNN: the box")
PREDICTED = Evaluation("predicted", DENSE.settings, classifiers=(imagenet("resnet101"),))
TOGETHER = Evaluation("ensemble", DENSE.settings, classifiers=SIX)
OF_TOGETHER = (*OF_RCNN, "LOC: ensemble")
RPN = "per-class RPN on ResNet-101"
BY_R101 = "dense, classes predicted by ResNet-101"
TABLE_13 = (
    Cell(13, f"{RPN}, 1 crop, class given", {"loc_error": 13.3}, (LOC,), None, OF_LOC),
    Cell(13, f"{RPN}, dense, class given", {"loc_error": 11.7}, (LOC,), DENSE, OF_DENSE),
    Cell(13, f"{RPN}, {BY_R101}", {"top5_loc_error": 14.4}, (LOC,), PREDICTED, OF_DENSE),
    Cell(13, f"with R-CNN, {BY_R101}", {"top5_loc_error": 10.6}, (RCNN,), PREDICTED, OF_RCNN),
    Cell(
        13,
        "with R-CNN, ensemble",
        {"top5_loc_error": 8.9},
        RCNN.and_seeds(4, 5),
        TOGETHER,
        OF_TOGETHER,
        note=SEEDS,
    ),
)
TABLE_14 = (
    replace(TABLE_13[-1], table=14, row="ensemble, validation"),
    replace(
        TABLE_13[-1],
        table=14,
        row="ensemble, test",
        paper={"top5_loc_error": 9.0},
        evaluation=replace(TOGETHER, label="server", server=True),
    ),
)

CELLS = (*TABLES_2_TO_4, *TABLE_5, *TABLE_6, *TABLE_7, *TABLE_8, *TABLE_9, *TABLE_10, *TABLE_11)
CELLS += (*TABLE_12, *TABLE_13, *TABLE_14)
"""Every cell, in the order of the paper."""
