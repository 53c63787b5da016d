"""What is said of flags that a command does not have."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from detres.classification.config import ClassificationConfig
from detres.cli import COMMANDS, advice, eval, predict, train_cls, train_det, train_loc
from detres.cli.advice import CLASSIFICATION, DETECTION, EVALUATION, LOCALISATION, Advice
from detres.cli.flags import (
    CLASSIFICATION_CONFIG,
    DETECTION_CONFIG,
    LOCALISATION_CONFIG,
    CommandParser,
    add_training_flags,
    settle_data,
)
from detres.cli.setting_names import keys_of
from detres.config import Section, load_config
from detres.detection.config import DetectionConfig
from detres.detection.localisation.config import LocalisationConfig


def error_of(main, arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(arguments))
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


@pytest.mark.parametrize(
    ("main", "given", "meant"),
    [
        (train_det.main, "--epochs 3", "--set train.epochs=3"),
        (train_det.main, "--epoch=3", "--set train.epochs=3"),
        (train_det.main, "--eopchs 3", "--set train.epochs=3"),
        (train_det.main, "--config my.yaml", "--cfg my.yaml"),
        (train_det.main, "--config", "--cfg"),
        (train_det.main, "--CFG my.yaml", "--cfg my.yaml"),
        (train_det.main, "--batch-size 4", "--set train.batch_size=4"),
        (train_det.main, "--batch_size 4", "--set train.batch_size=4"),
        (train_det.main, "--batch 4", "--set train.batch_size=4"),
        (train_det.main, "--lr 0.01", "--set train.lr=0.01"),
        (train_det.main, "-lr 0.01", "--set train.lr=0.01"),
        (train_det.main, "--lr", "--set train.lr=VALUE"),
        (train_det.main, "--gamma -1", "--set train.gamma=-1"),
        (train_det.main, "--imgsz 640", "--set model.input.short_side=640"),
        (train_det.main, "--short-side 640", "--set model.input.short_side=640"),
        (train_det.main, "--amp", "--set train.precision=bf16"),
        (train_det.main, "--train.lr 0.1", "--set train.lr=0.1"),
        (train_det.main, "--model.rpn.nms_thresh=0.1", "--set model.rpn.nms_thresh=0.1"),
        (train_det.main, "--name first", "--out runs/first"),
        (train_det.main, "--output 'my runs'", "--out 'my runs'"),
        (train_det.main, "--dataset photos", "--data photos"),
        (train_det.main, "--weights w", "--init-from w"),
        (train_det.main, "--init w", "--init-from w"),
        (train_det.main, "--model resnet50", "--set model.backbone.name=resnet50"),
        (train_det.main, "--model my.yaml", "--cfg my.yaml"),
        (train_det.main, "--model yolo.PT", "--init-from yolo.PT"),
        (train_det.main, "--arch resnet50", "--set model.backbone.name=resnet50"),
        (train_cls.main, "--model my.yml", "--cfg my.yml"),
        (eval.main, "--model my.pth", "--weights my.pth"),
        (train_det.main, "--pretrained w", "--set model.backbone.weights=w"),
        (train_det.main, "--workers 0", "--set data.workers=0"),
        (train_det.main, "--hold-out 5", "--set data.hold_out=5"),
        (train_det.main, "--warmup_factor 0.1", "--set train.warmup_factor=0.1"),
        (train_det.main, "--pool roi_align", "--set model.roi.pool=roi_align"),
        (
            train_det.main,
            "--nms-thresh 0.5",
            "--set model.rpn.nms_thresh=0.5 or --set model.roi.nms_thresh=0.5 or "
            "--set eval.refine.nms_thresh=0.5",
        ),
        (
            train_det.main,
            "--iterations 90",
            "--set train.steps=90 or --set eval.refine.iterations=90",
        ),
        (
            train_det.main,
            "--patience 5",
            "--set train.early_stopping=5 or --set train.patience=5",
        ),
        (train_det.main, "--val-split 0.1", "--set data.val_share=0.1"),
        (train_det.main, "--max-time 2h", "--time 2h"),
        (train_cls.main, "--damaged skip", "--set data.damaged=skip"),
        (eval.main, "--weights w --views dense", "--set eval.views=dense"),
        (train_det.main, "--gpu 1", "--device cuda:1"),
        (train_det.main, "--gpus 4", "--device cuda"),
        (train_det.main, "--cpu", "--device cpu"),
        (train_det.main, "photos epochs=3", "--set train.epochs=3"),
        (train_det.main, "data=photos", "--data photos"),
        (train_det.main, "--lr 1 --config a", "--set train.lr=1 --cfg a"),
        (train_det.main, "--klingon --lr 1", "--set train.lr=1"),
        (train_cls.main, "--imgsz 640", "--set data.crop_side=640"),
        (train_cls.main, "--model resnet18", "--set model.network.name=resnet18"),
        (train_cls.main, "--weights w", "--set model.network.weights=w"),
        (train_loc.main, "--imgsz 640", "--set model.input.crop_side=640"),
        (eval.main, "--weight w", "--weights w"),
        (eval.main, "--model w", "--weights w"),
        (eval.main, "--det d", "--detections d"),
        (eval.main, "--gt d", "--annotations d"),
        (eval.main, "--batch-size 4", "--set eval.batch_size=4"),
        (eval.main, "--weights w --epochs 4 --workers 3", "--set data.workers=3"),
        (predict.main, "a.jpg --model w", "--weights w"),
        (predict.main, "a.jpg --conf 0.3", "--score 0.3"),
        (predict.main, "--source a.jpg", "a.jpg without a flag"),
        (predict.main, "--output x a.jpg", "--out x"),
    ],
)
def test_what_was_meant_is_said_in_one_line(main, given, meant, capsys):
    said = error_of(main, given, capsys)
    assert said.count("\n") == 1
    assert "error: unrecognized arguments: " in said
    assert said.endswith(f"; did you mean {meant}?\n")


def test_what_was_given_is_repeated(capsys):
    said = error_of(train_det.main, "--seed 3 --lr 1 --zzz --out=x --batch=4 -1", capsys)
    assert ": unrecognized arguments: --lr 1 --zzz --batch=4; did you mean " in said


@pytest.mark.parametrize(
    ("main", "given"),
    [
        (train_det.main, "--klingon 3"),
        (predict.main, "a.jpg --weights w --epochs 3"),  # it has no settings
        (predict.main, "a.jpg --weights w --train.lr 3"),
        (eval.main, "best"),
        (train_det.main, "photos more"),
    ],
)
def test_of_what_is_like_nothing_help_is_named(main, given, capsys):
    said = error_of(main, given, capsys)
    assert "error: unrecognized arguments: " in said
    assert said.endswith("; --help lists the flags\n")
    assert said.count("\n") == 1


def test_flags_are_not_abbreviated(capsys):
    said = error_of(train_det.main, "--devic cpu", capsys)
    assert said.endswith("; did you mean --device cpu?\n")
    for given in ("--save-p x", "--save_p x"):
        said = error_of(eval.main, given, capsys)
        assert said.endswith("; did you mean --save-probabilities x or --save-proposals x?\n")


@pytest.mark.parametrize(
    "given", ["--help --klingon", "-h --epochs 3", "--epochs 3 --help", "photos --lr 3 -h"]
)
def test_help_is_given_whatever_is_wrong_beside_it(given, capsys):
    with pytest.raises(SystemExit) as ended:
        train_det.main(given.split())
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: ")
    assert shown.err == ""


def test_help_behind_two_dashes_is_a_value(capsys):
    said = error_of(train_det.main, "--epochs 3 -- --help", capsys)
    assert said.endswith("; did you mean --set train.epochs=3?\n")


def test_what_was_meant_is_said_of_long_values_too(capsys):
    said = error_of(train_det.main, f"--klingon {'x' * 9999} --lr 1", capsys)
    assert said.endswith("; did you mean --set train.lr=1?\n")
    assert len(said) < 1200


def test_values_are_no_flags():
    parser = CommandParser()
    parser.add_argument("--number", type=float)
    parser.add_argument("rest", nargs="*")
    given = parser.parse_args(["--number", "-3.5", "a", "--", "--number", "--klingon"])
    assert (given.number, given.rest) == (-3.5, ["a", "--number", "--klingon"])


def test_a_path_that_stands_alone_is_of_the_weights_or_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("best").touch()
    Path("photos").mkdir()
    assert error_of(eval.main, "best", capsys).endswith("; did you mean --weights best?\n")
    assert error_of(eval.main, "photos", capsys).endswith("; did you mean --data photos?\n")
    said = error_of(train_det.main, "photos best", capsys)
    assert said.endswith("; did you mean --init-from best?\n")


# --- DATA


def data_of(*given: str) -> str | None:
    parser = CommandParser()
    add_training_flags(parser, DETECTION_CONFIG)
    arguments = parser.parse_args([*given])
    settle_data(parser, arguments)
    return arguments.data


@pytest.mark.parametrize(
    ("given", "data"),
    [
        ("", None),
        ("photos", "photos"),
        ("--data photos", "photos"),
        ("photos --seed 3", "photos"),
        ("--seed 3 photos", "photos"),
        ("--accept-data-change photos --seed 3", "photos"),
        ("--set train.lr=1 --seed 3 photos --out x", "photos"),
        ("--resume run", None),
        ("photos --resume", "photos"),
        ("~/photos", str(Path.home() / "photos")),
    ],
)
def test_the_data_stand_alone_or_behind_their_flag(given, data):
    assert data_of(*given.split()) == data


def test_data_are_given_once(capsys):
    with pytest.raises(SystemExit):
        data_of("photos", "--data", "others")
    assert capsys.readouterr().err.endswith(
        "error: DATA, photos, and --data others say the same: give one of them\n"
    )


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("epochs=3").mkdir()
    assert data_of("epochs=3") == "epochs=3"


# --- the tables


def fields_of(section: type[Section], before: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        is_section = isinstance(inner, type) and issubclass(inner, Section)
        keys += fields_of(inner, f"{before}{name}.") if is_section else [f"{before}{name}"]
    return keys


SCHEMAS = {
    schema.__name__: schema
    for schema in (DetectionConfig, ClassificationConfig, LocalisationConfig)
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_names_are_those_of_the_schema(name):
    keys = keys_of(name)
    assert sorted(keys) == sorted(fields_of(SCHEMAS[name]))
    assert len(keys) > 50


def test_the_names_of_several_schemas_come_once_each():
    keys = keys_of(*SCHEMAS)
    assert len(keys) == len(set(keys))
    assert set(keys) == set().union(*map(fields_of, SCHEMAS.values()))
    assert keys_of() == []


def test_without_the_source_there_are_no_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("detres.cli.setting_names._PACKAGE", tmp_path)
    assert keys_of("DetectionConfig") == []
    assert error_of(train_det.main, "--lr0 3", capsys).endswith("did you mean --set train.lr=3?\n")


@pytest.mark.parametrize(
    ("table", "config"),
    [
        (DETECTION, DETECTION_CONFIG),
        (CLASSIFICATION, CLASSIFICATION_CONFIG),
        (LOCALISATION, LOCALISATION_CONFIG),
    ],
    ids=["detection", "classification", "localisation"],
)
def test_the_settings_of_the_tables_are_there(table, config):
    (name,) = table.sections
    assert {key.partition("=")[0] for key in table.words} - set(keys_of(name)) == set()
    for key in table.words:
        if "=" in key and "schedule" not in key:
            load_config(config, SCHEMAS[name], [key])
    load_config(config, SCHEMAS[name], ["train.schedule=cosine", "train.milestones=[]"])


def test_the_settings_of_an_evaluation_are_of_some_weights():
    assert set(EVALUATION.words) <= set(keys_of(*SCHEMAS))
    names = EVALUATION.by_last_name()
    assert {key.partition(".")[0] for keys in names.values() for key in keys} == {"data", "eval"}
    assert names["batch-size"] == ["eval.batch_size"]


def test_the_flags_of_the_tables_are_there(capsys):
    flags = set()
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            importlib.import_module(f"detres.cli.{name.replace('-', '_')}").main(["--help"])
        flags |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out))
    assert {answer.split()[0] for answer in advice._FLAGS} - {"{}"} <= flags


@pytest.mark.parametrize("table", [DETECTION, CLASSIFICATION, LOCALISATION, EVALUATION])
def test_a_word_stands_for_one_setting(table):
    words = [word for words in table.words.values() for word in words.split()]
    assert len(words) == len(set(words))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", word) for word in words)


def test_every_setting_is_understood_by_its_last_name():
    understood = Advice(["--set"], DETECTION)
    for key in keys_of("DetectionConfig"):
        last = key.rpartition(".")[2]
        said = understood.meant_by(f"--{last}", "3")
        assert said.startswith("--set ")
        assert f"{last}=3" in said, key


def test_two_letters_in_the_wrong_order_are_understood():
    parser = CommandParser()
    add_training_flags(parser, DETECTION_CONFIG)
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", parser.format_help()))
    understood = Advice(flags, DETECTION)
    for flag in flags - {"--set", "--cfg", "--out"}:  # too short to tell
        for at in range(3, len(flag) - 1):
            wrong = flag[:at] + flag[at + 1] + flag[at] + flag[at + 2 :]
            assert understood.meant_by(wrong, None) == flag, wrong
