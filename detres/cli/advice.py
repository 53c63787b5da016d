"""What a flag that a command does not have was probably meant to be.

The tables have the words of other tools for what is a flag or a setting here under another name;
dashes stand for underscores too.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from detres.cli.setting_names import keys_of

_TRAINING = {
    "train.lr": "lr0 base-lr learning-rate",
    "train.epochs": "epoch num-epochs max-epochs n-epochs",
    "train.steps": "step max-steps num-steps iter iters iterations max-iter max-iters",
    "train.batch_size": "batch batch-size bs ims-per-batch train-batch-size",
    "train.optimizer": "optim opt-name",
    "train.weight_decay": "wd",
    "train.schedule": "scheduler lr-scheduler lr-schedule",
    "train.schedule=cosine": "cos-lr cosine",
    "train.milestones": "lr-steps lr-milestones",
    "train.gamma": "lr-gamma",
    "train.warmup_steps": "warmup warmup-iters warmup-epochs",
    "train.clip_grad_norm": "grad-clip clip-grad gradient-clip max-grad-norm",
    "train.precision": "dtype",
    "train.precision=bf16": "amp half fp16 bf16",
    "train.eval_every": "eval-interval eval-period val-interval",
    "train.early_stopping": "patience early-stop stop-after",
    "train.ema_decay": "ema model-ema",
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
    "model.backbone.name": "model backbone arch architecture",
    "model.backbone.weights": "pretrained weights-backbone backbone-weights",
    "model.backbone.freeze_at": "freeze",
    "model.anchors.sizes": "anchors anchor-sizes",
    "model.anchors.aspect_ratios": "ratios anchor-ratios",
}


class Settings(NamedTuple):
    """What --set of a command takes: settings of the Sections of these names, or those parts of
    them; words: setting -> words for it, with a value where they say it.
    """

    words: Mapping[str, str] = {}
    sections: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)

    def by_last_name(self) -> dict[str, list[str]]:
        """Return last name -> the settings that have it."""
        named: dict[str, list[str]] = {}
        for key in keys_of(*self.sections):
            if key.startswith(self.parts):
                named.setdefault(key.rpartition(".")[2].replace("_", "-"), []).append(key)
        return named


DETECTION = Settings(
    {
        **_TRAINING,
        **_BACKBONE,
        "model.input.short_side": f"{_SIDE} min-size",
        "model.input.max_side": "max-size",
        "data.val_share": "val-split val-ratio val-fraction test-size",
        "eval.protocol": "metric metrics",
    },
    ("DetectionConfig",),
)
LOCALISATION = Settings(
    {**_TRAINING, **_BACKBONE, "model.input.crop_side": _SIDE}, ("LocalisationConfig",)
)
CLASSIFICATION = Settings(
    {
        **_TRAINING,
        "data.crop_side": _SIDE,
        "model.network.name": "network model backbone arch architecture",
        "model.network.weights": "pretrained",
        "model.label_smoothing": "smoothing",
        "train.mixup": "mixup-alpha",
    },
    ("ClassificationConfig",),
)
EVALUATION = Settings(
    {
        "eval.batch_size": "batch bs",
        "data.workers": "num-workers n-workers jobs",
        "data.val": "val-data val-json",
        "data.test": "test-data test-json",
    },
    (*DETECTION.sections, *CLASSIFICATION.sections, *LOCALISATION.sections),
    ("data.", "eval."),
)

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
    "--time": "max-time time-limit duration",
    "{} without a flag": "source input image images img files file path",
}
"""What a command may have -> words for it; {} is where the value goes, which else follows a flag
that stands alone. Of two with the same word, the first counts that a command has.
"""

_MODELS = ("model", "backbone", "network", "arch", "architecture")
_FLAGS_OF_SUFFIX = {
    **dict.fromkeys((".yaml", ".yml"), ("--cfg",)),
    **dict.fromkeys((".pt", ".pth", ".safetensors"), ("--weights", "--init-from")),
}
"""Suffix of a file that is given as one of _MODELS -> the flags that take it."""

_MOST = 3
"""Answers that are given where a word may mean several things."""


class Advice:
    """What words mean to a command.

    flags: that it has, as "--weights"; "{}" where it takes arguments without one. settings: that
    its --set takes.
    """

    def __init__(self, flags: Iterable[str], settings: Settings) -> None:
        self.flags = sorted(flags)
        own = {flag.removeprefix("--"): [flag] for flag in self.flags if flag.startswith("--")}
        named = settings.by_last_name()
        of_settings = {}
        for key, words in settings.words.items():
            for word in words.split():
                same = named.get(word, [])
                of_settings[word] = [key] if key in same else [key, *same]
        of_flags: dict[str, list[str]] = {}
        for answer, words in _FLAGS.items():
            if answer.split()[0] in self.flags:
                of_flags = {word: [answer] for word in words.split()} | of_flags
        self.answers = named | of_flags | of_settings | own

    def meant_by(self, word: str, value: str | None) -> str | None:
        """Return what `word` with `value` was probably meant to be, as it is written, "--cfg FILE"
        or "--set train.lr=0.1"; None where nothing is like it.

        word: "--batch_size", "-lr", "epochs", "--train.lr".
        """
        plain = word.lstrip("-")
        name = plain.lower().replace("_", "-")
        if "--set" in self.flags and "." in name:
            return _with_value(plain, value)
        begun = [flag for flag in self.flags if len(name) > 1 and flag.startswith(f"--{name}")]
        if not begun and value is not None:
            begun = self._flags_of(name, value)
        if not begun:
            near = difflib.get_close_matches(name, self.answers, n=1)
            begun = self.answers[near[0]] if near else []
        return " or ".join(_with_value(answer, value) for answer in begun[:_MOST]) or None

    def _flags_of(self, name: str, value: str) -> list[str]:
        """The flag for a file that is given as a model: its configuration, or its weights."""
        suffix = f".{value.rpartition('.')[2].lower()}"
        flags = _FLAGS_OF_SUFFIX.get(suffix, ()) if name in _MODELS else ()
        return [flag for flag in flags if flag in self.flags][:1]


def _with_value(answer: str, value: str | None) -> str:
    """What to write for an answer of the tables."""
    given = None if value is None else shlex.quote(value)
    if "{}" in answer:
        return answer.replace("{}", given or "VALUE")
    if not answer.startswith("--"):  # a setting
        return f"--set {answer}" if "=" in answer else f"--set {answer}={given or 'VALUE'}"
    return answer if given is None or " " in answer else f"{answer} {given}"
