from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from detres.cls_config import ClassificationConfig
from detres.config import Config, ConfigError, check, load_config, to_yaml, what_differs

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = """\
name: small
data: {format: voc, train: [train], val: [val]}
model:
  backbone: {name: resnet18, norm: batch, freeze_at: 0}
train:
  steps: 100
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_and_defaults(tmp_path):
    config = load_config(write(tmp_path, SMALL))
    assert config.model.backbone.name == "resnet18"
    assert config.data.train == ("train",)
    assert (config.seed, config.train.lr, config.train.weight_decay, config.train.momentum) == (
        3,
        1e-3,
        5e-4,
        0.9,
    )
    assert (config.model.input.shorter, config.model.input.longer) == (600, 1000)
    assert (
        config.model.rpn.width,
        config.model.rpn.test_post_nms_top_n,
        config.model.roi.pool_size,
    ) == (512, 300, 14)


def test_what_is_written_reads_back_the_same(tmp_path):
    config = load_config(
        write(tmp_path, SMALL), ["train.milestones=[50,80]", "model.input.train_shorter=[480, 600]"]
    )
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again) == config


def test_a_config_cannot_be_changed(tmp_path):
    config = load_config(write(tmp_path, SMALL))
    with pytest.raises(ValidationError):
        config.train.lr = 1.0


def test_what_differs_from_the_defaults_is_all_there_is_to_say(tmp_path):
    config = load_config(
        write(tmp_path, SMALL), ["train.lr=0.5", "model.roi.pool_size=7", "eval.batch_size=1"]
    )
    text = what_differs(config)
    assert "pool_size: 7" in text
    assert "nms_thresh" not in text
    assert "eval" not in text  # 1 is the default
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load_config(again) == config


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "+1e-4"])
def test_exponents_are_numbers(tmp_path, text):
    assert load_config(write(tmp_path, SMALL), [f"train.lr={text}"]).train.lr == 1e-4


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, SMALL + "  steps: 200\n")
    with pytest.raises(ConfigError, match=r"small\.yaml:7: key 'steps' is given twice"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("sed=3", "sed", "seed"),
        ("steps=3", "steps", "train.steps"),
        ("model.pool=roi_align", "model.pool", "model.roi.pool"),
        ("train.learning_rate=1", "train.learning_rate", None),
        ("model.roi.pool_sise=7", "model.roi.pool_sise", "model.roi.pool_size"),
        ("model.backbone.nam=resnet18", "model.backbone.nam", "model.backbone.name"),
    ],
)
def test_an_unknown_key_is_named_at_every_depth(tmp_path, override, key, near):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, SMALL), [override])
    assert f"unknown key '{key}'" in str(caught.value)
    assert (f"did you mean '{near}'?" if near else "valid keys are:") in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps='100'", "train.steps: Input should be a valid integer, got '100'"),
        ("train.steps=true", "train.steps: Input should be a valid integer, got True"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=0", "train.steps: Input should be greater than or equal to 1, got 0"),
        ("train.lr=fast", "train.lr: Input should be a valid number, got 'fast'"),
        ("train.lr=[0.1]", "train.lr"),
        ("train.lr=.nan", "train.lr"),
        ("train.lr=.inf", "train.lr"),
        ("train=5", "train"),
        ("model.roi.pool=mean", "model.roi.pool"),
        ("model.input.mean=[1, 2]", "model.input.mean"),
        ("name='a/b'", "name"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(tmp_path, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, SMALL), [override])
    assert message in str(caught.value)
    assert "small.yaml with --set" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone.norm=frozen"], "it would stay random"),
        (["model.backbone.freeze_at=2"], "it would stay random"),
        (["train.epochs=3"], "steps and epochs are both given: set the other to null"),
        (["train.steps=null"], "give either train.steps or train.epochs"),
        (["train.milestones=[80, 50]"], "not in rising order"),
        (["train.milestones=[100]"], "beyond the end of training"),
        (["train.milestones=[50]", "train.schedule=cosine"], "cosine has no milestones"),
        (["data.format=coco"], "train has 1 annotation files but train_images 0 folders"),
        (["data.format=shapes"], "shapes has splits of its own"),
        (["data.train=[]"], "train is missing"),
        (["data.train_images=[images]"], "does not apply to format voc"),
    ],
)
def test_pairs_that_cannot_be(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, SMALL), overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a mapping of sections"),
        ("name: [unclosed\n", r"small\.yaml:"),
        ("name: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("1: x\n", "key 1 is not a name"),
        ("", "expected a mapping"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize("pattern", ["*.tar", "{00..10}.tar", "val-*.tar", "train-{000..146}.tar"])
def test_a_pattern_of_shards_is_taken_as_it_is(pattern):
    given = ["data.format=shards", f"data.val={pattern}"]
    assert (
        load_config(CONFIGS / "imagenet_resnet50.yaml", given, ClassificationConfig).data.val
        == pattern
    )


@pytest.mark.parametrize("override", ["train.lr", "=3", "name.first=3"])
def test_an_override_that_cannot_be_applied(tmp_path, override):
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path, SMALL), [override])


def test_a_missing_file_is_named_with_the_nearest(tmp_path):
    write(tmp_path, SMALL)
    with pytest.raises(FileNotFoundError, match=r"did you mean .*small\.yaml"):
        load_config(tmp_path / "smal.yaml")


def test_epochs_become_steps(tmp_path):
    config = load_config(
        write(tmp_path, SMALL),
        ["train.steps=null", "train.epochs=2.5", "train.milestones=[1, 2]", "train.batch_size=4"],
    )
    assert config.train.in_steps(num_images=10) == (
        6,
        (2, 5),
    )  # 2.5 steps an epoch, rounded to even
    assert load_config(write(tmp_path, SMALL)).train.in_steps(10) == (100, ())


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.04), ("none", 0.01)])
def test_the_rate_follows_the_batch(tmp_path, scaling, expected):
    overrides = [
        "train.lr=0.01",
        "train.reference_batch=2",
        "train.batch_size=8",
        f"train.lr_scaling={scaling}",
    ]
    assert load_config(write(tmp_path, SMALL), overrides).train.effective_lr == pytest.approx(
        expected
    )


def test_every_fault_is_told_at_once():
    tree = {"name": "x", "data": {"format": "shapes"}, "train": {"steps": -1, "lr": "x"}}
    with pytest.raises(ConfigError) as caught:
        check(Config, tree, "tree")
    assert len(str(caught.value).splitlines()) == 3  # steps, lr and the missing model
