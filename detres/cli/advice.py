"""What a flag that a command does not have was probably meant to be.

The tables have the words of other tools for what is a flag or a setting here, apart from the name
that it has here; dashes stand for underscores too.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping

_TRAINING = {
    "train.lr": "lr0 base-lr learning-rate",
    "train.epochs": "epoch num-epochs max-epochs n-epochs",
    "train.steps": "step max-steps num-steps iter iters iterations max-iter max-iters",
    "train.batch_size": "batch bs ims-per-batch train-batch-size",
    "train.optimizer": "optim opt-name",
    "train.momentum": "",
    "train.weight_decay": "wd",
    "train.schedule": "scheduler lr-scheduler lr-schedule",
    "train.schedule=cosine": "cos-lr cosine",
    "train.milestones": "lr-steps lr-milestones",
    "train.gamma": "lr-gamma",
    "train.patience": "",
    "train.warmup_steps": "warmup warmup-iters warmup-epochs",
    "train.clip_grad_norm": "grad-clip clip-grad gradient-clip max-grad-norm",
    "train.precision": "dtype",
    "train.precision=bf16": "amp half fp16 bf16",
    "train.eval_every": "eval-interval eval-period val-interval",
    "train.save_every": "save-period save-interval checkpoint-interval",
    "train.log_every": "log-interval print-freq",
    "data.format": "dataset-type data-format",
    "data.classes": "names class-names",
    "data.train": "train-data train-json train-annotations",
    "data.val": "val-data val-json val-annotations",
    "data.flip": "hflip fliplr",
    "data.workers": "num-workers n-workers jobs",
}
_SIDE = "img imgsz img-size image-size input-size resolution crop-size"
_BACKBONE = {
    "model.backbone.name": "backbone arch architecture",
    "model.backbone.weights": "pretrained weights-backbone backbone-weights",
    "model.backbone.norm": "",
    "model.backbone.freeze_at": "freeze",
    "model.anchors.sizes": "anchors anchor-sizes",
    "model.anchors.aspect_ratios": "ratios anchor-ratios",
}
DETECTION = {
    **_TRAINING,
    **_BACKBONE,
    "model.input.short_side": f"{_SIDE} min-size",
    "model.input.max_side": "max-size",
    "eval.protocol": "metric metrics",
}
LOCALISATION = {**_TRAINING, **_BACKBONE, "model.input.crop_side": _SIDE}
CLASSIFICATION = {
    **_TRAINING,
    "data.crop_side": _SIDE,
    "model.network.name": "network model backbone arch architecture",
    "model.network.weights": "pretrained",
    "model.label_smoothing": "smoothing",
    "train.mixup": "mixup-alpha",
}
EVALUATION = {
    "eval.batch_size": "batch bs",
    "data.workers": "num-workers n-workers jobs",
    "data.val": "val-data val-json",
    "data.test": "test-data test-json",
    "eval.short_side": _SIDE,
}
"""Setting of what --set takes -> words for it, with a value where they say it."""

_FLAGS = {
    "--weights": "weight model checkpoint ckpt load load-from model-path pth",
    "--init-from": "weights weight checkpoint ckpt load load-from model-path pretrained finetune",
    "--cfg": "config config-file configuration yaml model",
    "--set": "opt opts options cfg-options override overrides",
    "--resume": "continue resume-from restart",
    "--out runs/{}": "name exp exp-name experiment experiment-name run run-name",
    "--out": "output output-dir outdir out-dir dir project dest save-dir work-dir log-dir logdir",
    "--data": "dataset data-dir data-path data-root dataset-dir dataset-root root",
    "--annotations": "ann ann-file annotation gt ground-truth truth",
    "--detections": "dets predictions results",
    "--score": "conf conf-thres confidence score-thr score-thresh score-threshold threshold",
    "--device cpu": "cpu no-cuda",
    "--device cuda:{}": "gpu gpu-id cuda local-rank",
    "--device cuda": "gpus",
    "--seed": "random-state random-seed manual-seed",
    "{} without a flag": "source input image images file files path",
}
"""What a command may have -> words for it; {} is where the value goes, which else follows a flag
that stands alone. Of two with the same word, the first counts that a command has.
"""


def meant_by(
    word: str, value: str | None, flags: Iterable[str], settings: Mapping[str, str]
) -> str | None:
    """Return what `word` with `value` was probably meant to be, as it is written, "--cfg FILE" or
    "--set train.lr=0.1"; None where nothing is like it.

    word: "--batch_size", "-lr", "epochs". flags: of the command, as "--weights"; "{}" where it
    takes arguments without one. settings: of the tables above what its --set takes.
    """
    flags, plain = set(flags), word.lstrip("-")
    name = plain.lower().replace("_", "-")
    if "--set" in flags and "." in name:
        return _with_value(plain, value)
    answers = _answers(flags, settings if "--set" in flags else {})
    begun = [flag for flag in sorted(flags) if len(name) > 1 and flag.startswith(f"--{name}")]
    if name not in answers and begun:
        return _with_value(begun[0], value) if len(begun) == 1 else " or ".join(begun)
    near = difflib.get_close_matches(name, answers, n=1)
    return _with_value(answers[near[0]], value) if near else None


def _answers(flags: set[str], settings: Mapping[str, str]) -> dict[str, str]:
    """Word -> what it stands for: a flag of the command before other tools' word for a setting,
    that before their word for a flag, and last the name of a setting without its sections.
    """
    pairs = [(flag.removeprefix("--"), flag) for flag in sorted(flags) if flag.startswith("--")]
    pairs += [(word, key) for key, words in settings.items() for word in words.split()]
    for answer, words in _FLAGS.items():
        if answer.split()[0] in flags:
            pairs += [(word, answer) for word in words.split()]
    pairs += [(key.rpartition(".")[2].replace("_", "-"), key) for key in settings if "=" not in key]
    return dict(reversed(pairs))


def _with_value(answer: str, value: str | None) -> str:
    """What to write for an answer of the tables."""
    given = None if value is None else shlex.quote(value)
    if "{}" in answer:
        return answer.replace("{}", given or "VALUE")
    if not answer.startswith("--"):  # a setting
        return f"--set {answer}" if "=" in answer else f"--set {answer}={given or 'VALUE'}"
    return answer if given is None or " " in answer else f"{answer} {given}"
