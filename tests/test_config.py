from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from detres.classification.config import ClassificationConfig
from detres.config import (
    ConfigError,
    Section,
    check,
    config_of,
    given_settings,
    in_yaml,
    load_config,
    nested,
    read_texts,
    to_yaml,
    what_differs,
    with_overrides,
)
from detres.detection.config import DataConfig, DetectionConfig
from detres.detection.data.read import NoSplitError, read_split

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
    config = load_config(write(tmp_path, SMALL), DetectionConfig)
    assert config.model.backbone.name == "resnet18"
    assert config.data.train == ("train",)
    assert (config.seed, config.train.lr, config.train.weight_decay, config.train.momentum) == (
        3,
        1e-3,
        5e-4,
        0.9,
    )
    assert (config.model.input.short_side, config.model.input.max_side) == (600, 1000)
    assert (
        config.model.rpn.width,
        config.model.rpn.test_post_nms_top_n,
        config.model.roi.pool_size,
    ) == (512, 300, 14)


def test_what_is_written_reads_back_the_same(tmp_path):
    config = load_config(
        write(tmp_path, SMALL),
        DetectionConfig,
        ["train.milestones=[50,80]", "model.input.train_short_sides=[480, 600]"],
    )
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_config(again, DetectionConfig) == config


def test_a_config_cannot_be_changed(tmp_path):
    config = load_config(write(tmp_path, SMALL), DetectionConfig)
    with pytest.raises(ValidationError):
        config.train.lr = 1.0


def test_what_differs_from_the_defaults_is_all_there_is_to_say(tmp_path):
    config = load_config(
        write(tmp_path, SMALL),
        DetectionConfig,
        ["train.lr=0.5", "model.roi.pool_size=7", "eval.batch_size=1"],
    )
    text = what_differs(config)
    assert "pool_size: 7" in text
    assert "nms_thresh" not in text
    assert "eval" not in text  # 1 is the default
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load_config(again, DetectionConfig) == config


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "+1e-4"])
def test_exponents_are_numbers(tmp_path, text):
    assert (
        load_config(write(tmp_path, SMALL), DetectionConfig, [f"train.lr={text}"]).train.lr == 1e-4
    )


def test_a_key_given_twice_is_refused_with_its_line(tmp_path):
    path = write(tmp_path, SMALL + "  steps: 200\n")
    with pytest.raises(ConfigError, match=r"small\.yaml:7: key 'steps' is given twice"):
        load_config(path, DetectionConfig)


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
        load_config(write(tmp_path, SMALL), DetectionConfig, [override])
    assert f"unknown key '{key}'" in str(caught.value)
    assert (f"did you mean '{near}'?" if near else "valid keys are:") in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps='100'", "train.steps: Input should be a valid integer, or null, got '100'"),
        ("train.steps=true", "train.steps: Input should be a valid integer, or null, got True"),
        ("train.steps=1.5", "train.steps"),
        (
            "train.steps=0",
            "train.steps: Input should be greater than or equal to 1, or null, got 0",
        ),
        (
            "train.clip_grad_norm=0",
            "train.clip_grad_norm: Input should be greater than 0, or null, got 0",
        ),
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
        load_config(write(tmp_path, SMALL), DetectionConfig, [override])
    assert message in str(caught.value)
    assert "small.yaml with --set" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone.norm=frozen"], "it would stay random"),
        (["model.backbone.freeze_at=2"], "it would stay random"),
        (
            ["train.epochs=3", "train.steps=5"],
            "steps and epochs are both given: set one of train.steps and train.epochs to null",
        ),
        (["train.steps=null"], "give either train.steps or train.epochs"),
        (["train.milestones=[80, 50]"], "not in rising order"),
        (["train.milestones=[100]"], "beyond the end of training"),
        (["train.milestones=[50]", "train.schedule=cosine"], "cosine has no milestones"),
        (
            ["data.format=coco", "data.train=[a]", "data.val=[b]"],
            "train has 1 annotation files but train_images 0 folders",
        ),
        (["data.format=coco"], "train is missing: format coco needs at least one entry"),
        (["data.format=shapes", "data.train=[a]"], "shapes has splits of its own"),
        (["data.train=[]", "data.hold_out=3"], "train is missing"),
        (["data.train_images=[images]"], "does not apply to format voc"),
    ],
)
def test_pairs_that_cannot_be(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, SMALL), DetectionConfig, overrides)


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
        load_config(write(tmp_path, text), DetectionConfig)


@pytest.mark.parametrize("pattern", ["*.tar", "{00..10}.tar", "val-*.tar", "train-{000..146}.tar"])
def test_a_pattern_of_shards_is_taken_as_it_is(pattern):
    given = ["data.format=shards", f"data.val={pattern}"]
    assert (
        load_config(CONFIGS / "imagenet_resnet50.yaml", ClassificationConfig, given).data.val
        == pattern
    )


@pytest.mark.parametrize("override", ["train.lr", "=3", "name.first=3"])
def test_an_override_that_cannot_be_applied(tmp_path, override):
    with pytest.raises(ConfigError, match="--set"):
        load_config(write(tmp_path, SMALL), DetectionConfig, [override])


@pytest.mark.parametrize(
    "override",
    [
        "a" * 100_000 + "=1",
        "train." + "a" * 100_000 + "=1",
        "name." + "a" * 100_000 + ".b=1",
        "a" * 100_000,
        "train.lr=" + "[" * 5000,
        "train.lr=" + "x" * 100_000,
        "train.lr=!" + "x" * 100_000,
        "train.lr=*" + "x" * 100_000,
        "train.lr={" + "x" * 100_000,
        "train.lr={" + "x" * 1000 + ": 1, " + "x" * 1000 + ": 2}",
        "train.milestones=" + str([2, 1] * 50_000),
        "a." * 50_000 + "b=1",
        "data.train=[" + ", ".join(["{a: 1}"] * 9999) + "]",
        'train.lr="\n' + "\n" * 999 + 'x"',
    ],
    ids=lambda text: text[:24],
)
def test_an_override_of_any_length_has_a_short_message(tmp_path, override):
    with pytest.raises(ConfigError, match="--set") as caught:
        load_config(write(tmp_path, SMALL), DetectionConfig, [override])
    assert str(caught.value).count("\n") <= 2
    assert len(str(caught.value)) < 3000


def test_a_missing_file_is_named_with_the_nearest(tmp_path):
    write(tmp_path, SMALL)
    with pytest.raises(FileNotFoundError, match=r"did you mean .*small\.yaml"):
        load_config(tmp_path / "smal.yaml", DetectionConfig)


def test_epochs_become_steps(tmp_path):
    config = load_config(
        write(tmp_path, SMALL),
        DetectionConfig,
        ["train.steps=null", "train.epochs=2.5", "train.milestones=[1, 2]", "train.batch_size=4"],
    )
    assert config.train.in_steps(num_images=10) == (
        6,
        (2, 5),
    )  # 2.5 steps an epoch, rounded to even
    assert load_config(write(tmp_path, SMALL), DetectionConfig).train.in_steps(10) == (100, ())


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.04), ("none", 0.01)])
def test_the_rate_follows_the_batch(tmp_path, scaling, expected):
    overrides = [
        "train.lr=0.01",
        "train.reference_batch=2",
        "train.batch_size=8",
        f"train.lr_scaling={scaling}",
    ]
    assert load_config(
        write(tmp_path, SMALL), DetectionConfig, overrides
    ).train.effective_lr == pytest.approx(expected)


def test_every_fault_is_told_at_once():
    tree = {"name": "x", "data": {"format": "shapes"}, "train": {"steps": -1, "lr": "x"}}
    with pytest.raises(ConfigError) as caught:
        check(DetectionConfig, tree, "tree")
    assert len(str(caught.value).splitlines()) == 3  # steps, lr and the missing model


# --- earlier names of keys

RENAMED = {
    DetectionConfig: {
        "data.boxes": ("data.box_policy", "error"),
        "model.input.shorter": ("model.input.short_side", 480),
        "model.input.longer": ("model.input.max_side", 900),
        "model.input.train_shorter": ("model.input.train_short_sides", [480, 600]),
    },
    ClassificationConfig: {
        "data.size": ("data.crop_side", 200),
        "data.shorter": ("data.short_sides", [230, 300]),
        "eval.resize": ("eval.short_side", 240),
    },
}
"""Kind -> earlier key -> the key now, and a value that is not the default."""

EVERY_RENAMED = [
    (kind, earlier, now, value)
    for kind, keys in RENAMED.items()
    for earlier, (now, value) in keys.items()
]
BASES = {
    DetectionConfig: SMALL,
    ClassificationConfig: "name: small\ndata: {format: folder}\ntrain: {steps: 100}\n",
}


def put(tree: dict, key: str, value: object) -> None:
    """Set a dotted key."""
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def take(tree: dict, key: str) -> object:
    """Take a dotted key out and return its value."""
    *sections, last = key.split(".")
    for section in sections:
        tree = tree[section]
    return tree.pop(last)


def with_keys(folder: Path, kind: type[Section], keys: dict[str, object]) -> Path:
    tree = yaml.safe_load(BASES[kind])
    for key, value in keys.items():
        put(tree, key, value)
    return write(folder, yaml.safe_dump(tree))


def renamed_in(kind: type[Section], at: str = "") -> dict[str, str]:
    """Every earlier key of a Section and those in it -> the key now, dotted."""
    found = {f"{at}{earlier}": f"{at}{now}" for earlier, now in kind.renamed.items()}
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= renamed_in(field.annotation, f"{at}{name}.")
    return found


@pytest.mark.parametrize("kind", RENAMED)
def test_the_keys_with_an_earlier_name(kind):
    assert renamed_in(kind) == {earlier: now for earlier, (now, _) in RENAMED[kind].items()}


@pytest.mark.parametrize(("kind", "earlier", "now", "value"), EVERY_RENAMED)
def test_an_earlier_name_in_a_file_is_read_and_said(tmp_path, kind, earlier, now, value):
    notices = []
    wanted = load_config(with_keys(tmp_path, kind, {now: value}), kind, notice=notices.append)
    assert notices == []
    path = with_keys(tmp_path, kind, {earlier: value})
    assert load_config(path, kind, notice=notices.append) == wanted
    assert notices == [f"{path}: '{earlier}' is now called '{now}'"]
    assert wanted != load_config(write(tmp_path, BASES[kind]), kind)


@pytest.mark.parametrize(("kind", "earlier", "now", "value"), EVERY_RENAMED)
def test_an_earlier_name_in_an_override_is_read_and_said(tmp_path, kind, earlier, now, value):
    path, notices = write(tmp_path, BASES[kind]), []
    wanted = load_config(path, kind, [f"{now}={value}"], notice=notices.append)
    assert notices == []
    assert load_config(path, kind, [f"{earlier}={value}"], notice=notices.append) == wanted
    assert notices == [f"--set {earlier}={value}: this is now called {now}"]
    in_file = with_keys(tmp_path, kind, {now: take(wanted.model_dump(mode="json"), now)})
    assert load_config(in_file, kind) == wanted


@pytest.mark.parametrize(("kind", "earlier", "now", "value"), EVERY_RENAMED)
def test_both_names_of_a_key_in_a_file_are_refused(tmp_path, kind, earlier, now, value):
    path, notices = with_keys(tmp_path, kind, {earlier: value, now: value}), []
    with pytest.raises(ConfigError) as caught:
        load_config(path, kind, notice=notices.append)
    assert str(caught.value) == (
        f"{path}: '{earlier}' is the earlier name of '{now}', and both are given"
    )
    assert notices == []


@pytest.mark.parametrize("in_file", ["shorter", "short_side"])
@pytest.mark.parametrize("override", ["shorter", "short_side"])
def test_an_override_outdoes_the_file_under_either_name(tmp_path, in_file, override):
    path = with_keys(tmp_path, DetectionConfig, {f"model.input.{in_file}": 480})
    config = load_config(path, DetectionConfig, [f"model.input.{override}=512"])
    assert config.model.input.short_side == 512


@pytest.mark.parametrize(("kind", "earlier", "now", "value"), EVERY_RENAMED)
def test_a_stored_tree_may_have_earlier_names_and_is_left_as_it_is(
    tmp_path, capsys, kind, earlier, now, value
):
    config = load_config(with_keys(tmp_path, kind, {now: value}), kind)
    tree = json.loads(config.model_dump_json())
    put(tree, earlier, take(tree, now))
    before = copy.deepcopy(tree)
    assert check(kind, tree, "last.pt") == config
    assert tree == before
    assert capsys.readouterr() == ("", "")
    put(tree, now, value)
    with pytest.raises(ConfigError, match=f"last.pt: '{earlier}' is the earlier name of '{now}'"):
        check(kind, tree, "last.pt")


@pytest.mark.parametrize(("kind", "earlier", "now", "value"), EVERY_RENAMED)
def test_an_override_of_a_checked_config_may_have_an_earlier_name(kind, earlier, now, value):
    config = check(kind, yaml.safe_load(BASES[kind]), "tree")
    changed = with_overrides(config, [f"{earlier}={value}"], "w.safetensors")
    assert changed == with_overrides(config, [f"{now}={value}"], "w.safetensors")
    assert changed != config
    assert with_overrides(config, [], "w.safetensors") == config
    with pytest.raises(ConfigError, match=r"w\.safetensors with --set: unknown key 'seeds'"):
        with_overrides(config, ["seeds=1"], "w.safetensors")


def test_an_earlier_name_holds_in_its_own_section_alone(tmp_path):
    for key in ("train.shorter", "eval.boxes", "model.roi.longer"):
        with pytest.raises(ConfigError, match=f"unknown key '{key}'"):
            load_config(write(tmp_path, SMALL), DetectionConfig, [f"{key}=1"])
    with pytest.raises(ConfigError, match=r"unknown key 'data\.boxes'"):
        load_config(
            write(tmp_path, BASES[ClassificationConfig]), ClassificationConfig, ["data.boxes=drop"]
        )


def test_an_earlier_name_inside_a_mapping_given_to_set_is_read_and_said(tmp_path):
    notices: list[str] = []
    overrides = ["model.input={shorter: 96, longer: 128}"]
    config = load_config(write(tmp_path, SMALL), DetectionConfig, overrides, notice=notices.append)
    assert (config.model.input.short_side, config.model.input.max_side) == (96, 128)
    assert ["short_side" in notices[0], "max_side" in notices[1]] == [True, True]


def test_overrides_of_a_checked_configuration_say_a_new_name(tmp_path):
    notices: list[str] = []
    config = load_config(write(tmp_path, SMALL), DetectionConfig)
    changed = with_overrides(config, ["model.input.shorter=96"], "w", notice=notices.append)
    assert changed.model.input.short_side == 96
    assert len(notices) == 1
    assert "model.input.short_side" in notices[0]


# --- scalars, by the type of their field


@pytest.mark.parametrize(
    "text",
    ["2024-05-01", "0012", "1e-4", "yes", "off", "null", "~x", "1_0", "12:30:00", ".5", "true"],
)
def test_text_stays_text_where_the_field_is_text(tmp_path, text):
    config = load_config(write(tmp_path, SMALL), DetectionConfig, [f"data.train=[{text}, b]"])
    assert config.data.train == (text, "b")
    path = write(tmp_path, SMALL.replace("[train]", f"[{text}]", 1))
    assert load_config(path, DetectionConfig).data.train == (text,)
    config = load_config(write(tmp_path, SMALL), DetectionConfig, [f"data.root={text}"])
    assert config.data.root == (None if text == "null" else text)


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("train.steps=0012", "train", "steps", 12),
        ("train.steps=1_000", "train", "steps", 1000),
        ("train.lr=1e-4", "train", "lr", 1e-4),
        ("train.lr=1", "train", "lr", 1.0),
        ("train.lr=.5", "train", "lr", 0.5),
        ("train.clip_grad_norm=~", "train", "clip_grad_norm", None),
        ("train.clip_grad_norm=", "train", "clip_grad_norm", None),
        ("data.classes=[no, 1, null, 20-1]", "data", "classes", ("no", "1", "null", "20-1")),
        ("data.classes=null", "data", "classes", None),
        ("data.root='~'", "data", "root", str(Path.home())),
    ],
)  # fmt: skip
def test_scalars_are_what_their_field_takes(tmp_path, override, section, key, expected):
    config = load_config(write(tmp_path, SMALL), DetectionConfig, [override])
    assert getattr(getattr(config, section), key) == expected


@pytest.mark.parametrize(("text", "expected"), [("yes", True), ("Off", False), ("TRUE", True)])
def test_words_for_booleans(text, expected):
    base = CONFIGS / "imagenet_resnet50.yaml"
    config = load_config(base, ClassificationConfig, [f"data.in_memory={text}"])
    assert config.data.in_memory is expected
    auto = load_config(base, ClassificationConfig, ["train.compile=auto"])
    assert auto.train.compile == "auto"


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = [
        "data.root=~/data",
        "data.train=[~/a]",
        "data.val=[~/b]",
        "model.backbone.weights=~/w.pth",
    ]
    config = load_config(write(tmp_path, SMALL), DetectionConfig, given)
    assert (config.data.root, config.data.train) == ("/home/me/data", ("/home/me/a",))
    assert (config.data.val, config.model.backbone.weights) == (("/home/me/b",), "/home/me/w.pth")


def test_a_value_that_is_written_twice_by_alias_counts_for_both(tmp_path):
    text = SMALL.replace("[train]", "&list [train]").replace("[val]", "*list")
    config = load_config(write(tmp_path, text), DetectionConfig)
    assert config.data.val == config.data.train == ("train",)


def test_merged_keys_give_way_to_own_ones(tmp_path):
    text = SMALL.replace("train:\n", "train:\n  <<: [{lr: 0.5, momentum: 0.1}, {lr: 9.0}]\n")
    train = load_config(write(tmp_path, text), DetectionConfig).train
    assert (train.steps, train.lr, train.momentum) == (100, 0.5, 0.1)
    own = load_config(write(tmp_path, text + "  lr: 0.25\n"), DetectionConfig).train
    assert own.lr == 0.25


# --- size and depth


def laughs(depth):
    lists = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(["a0: &a0 [x, x]", *lists, "name: x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(12), "more than 100000 values, aliases written out"),
        ("a: &a {b: *a}\n", "nested more than 50 deep|found undefined alias"),
        ("name: " + "[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("name: " + "[" * 100_000, "nested more than 50 deep"),
        (SMALL.replace("100", "9" * 5000), "train.steps: Input should be a valid integer"),
        (SMALL.replace("100", "9" * 400), "train.steps"),
        ("name: '", r"small\.yaml:"),
        ("name: a\n---\nname: b\n", "expected a single document"),
        ("x: {[1]: 2}", "key a list or mapping is not a name"),
        ("name: \0", "not YAML"),
        ("<<: 3\n", "<< takes a mapping"),
        (f"name: !{'x' * 9999} y\n", "for the tag '!xxx.*characters"),
        (f"a: *{'x' * 9999}\n", "undefined alias 'xxx.*characters"),
        (f"{'k' * 900}: 1\n{'k' * 900}: 2\n", "small.yaml:2: key 'kkk.* is given twice"),
    ],
)  # fmt: skip
def test_a_file_beyond_all_measure_is_refused_in_few_lines(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, text), DetectionConfig)
    assert str(caught.value).count("\n") <= 2
    assert len(str(caught.value)) < 2000


def test_a_file_of_another_size_is_not_parsed(tmp_path):
    path = write(tmp_path, "#" * (5 << 20))
    with pytest.raises(ConfigError, match="a configuration at most 4194304: it is another file"):
        load_config(path, DetectionConfig)


def test_many_faults_are_three_lines(tmp_path):
    text = SMALL + "".join(f"  key{n}: 1\n" for n in range(20))
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), DetectionConfig)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "unknown key 'train.key0'" in lines[0]
    assert lines[2].endswith("and 18 more such errors")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-le"])
def test_a_configuration_in_other_encodings(tmp_path, encoding):
    path = tmp_path / "a.yaml"
    path.write_bytes(SMALL.encode(encoding))
    assert load_config(path, DetectionConfig).train.steps == 100
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: byte 0xe9 at offset 9 \(line 1\) is not"):
        load_config(path, DetectionConfig)


def test_a_configuration_that_is_no_file(tmp_path):
    (tmp_path / "link.yaml").symlink_to("gone.yaml")
    with pytest.raises(FileNotFoundError, match=r"link\.yaml is a link to gone\.yaml"):
        load_config(tmp_path / "link.yaml", DetectionConfig)


# ---- settings by whole key ----


def test_what_overrides_give_is_told_by_whole_key():
    overrides = ["train.steps=5", "model.anchors={sizes: [32], style: torchvision}", "name=0012"]
    overrides += ["model.input.shorter=100", "train.steps=6"]
    assert given_settings(DetectionConfig, overrides) == {
        "train.steps": 6,
        "model.anchors.sizes": [32],
        "model.anchors.style": "torchvision",
        "name": "0012",
        "model.input.short_side": 100,
    }
    with pytest.raises(ConfigError, match="expected key=value"):
        given_settings(DetectionConfig, ["train.steps"])


def test_settings_by_whole_key_nest_the_later_one_wins():
    given = [("a.b", 1), ("a", {"c": 2, "b": 3}), ("a.c", 4), ("d", 5), ("e.f.g", [6])]
    assert nested(given) == {"a": {"b": 3, "c": 4}, "d": 5, "e": {"f": {"g": [6]}}}
    assert nested([]) == {}


def test_a_mapping_is_checked_as_a_file_is():
    tree = {"name": "a", "data": {"format": "shapes"}, "train": {"steps": 5}}
    tree["model"] = {"backbone": {"weights": "w"}}
    config = config_of(copy.deepcopy(tree), DetectionConfig, ["train.lr=1e-5"], "what was chosen")
    assert (config.train.lr, config.train.steps) == (1e-5, 5)
    with pytest.raises(ConfigError, match=r"^what was chosen with --set: unknown key 'train\.lrr'"):
        config_of(copy.deepcopy(tree), DetectionConfig, ["train.lrr=1"], "what was chosen")


@pytest.mark.parametrize(
    "value",
    [
        3,
        0.1,
        1e-05,
        True,
        None,
        "a b",
        "no",
        "[x]",
        [16.0, 32.0],
        ["a", "b c"],
        {"a": [1], "b": "x"},
    ],
)
def test_a_value_in_yaml_is_read_back(value):
    text = in_yaml(value)
    assert "\n" not in text
    assert yaml.safe_load(text) == value


# ---- one value where a list belongs, and settings that displace each other ----


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.train=trainval", ("trainval",)),
        ("data.train=VOC2007/trainval", ("VOC2007/trainval",)),
        ("data.train=2007", ("2007",)),
        ("data.train=no", ("no",)),
        ("data.train=[a, b]", ("a", "b")),
        ("data.classes=dog", ("dog",)),
        ("data.classes=null", None),
        ("train.milestones=50", (50.0,)),
        ("model.anchors.sizes=64", (64.0,)),
        ("model.input.train_short_sides=480", (480,)),
        ("eval.multi_scale.short_sides=600", (600,)),
    ],
)
def test_one_value_stands_for_a_list_of_it(tmp_path, override, value):
    path = write(tmp_path, SMALL)
    keys = override.partition("=")[0].split(".")
    config = load_config(path, DetectionConfig, [override])
    assert functools.reduce(getattr, keys, config) == value
    again = with_overrides(load_config(path, DetectionConfig), [override], "t")
    assert functools.reduce(getattr, keys, again) == value


def test_one_value_stands_for_a_list_in_a_file_too(tmp_path):
    config = load_config(write(tmp_path, SMALL.replace("[val]", "val")), DetectionConfig)
    assert config.data.val == ("val",)


@pytest.mark.parametrize("override", ["model.input.mean=1", "data.train={a: b}", "data.train="])
def test_one_value_is_no_list_of_three_and_a_mapping_is_none(tmp_path, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_config(write(tmp_path, SMALL), DetectionConfig, [override])


def test_epochs_take_the_place_of_steps_and_back(tmp_path):
    path, said = write(tmp_path, SMALL), []
    epochs = load_config(path, DetectionConfig, ["train.epochs=3"], notice=said.append)
    assert (epochs.train.steps, epochs.train.epochs) == (None, 3.0)
    steps = with_overrides(epochs, ["train.steps=7"], "t", notice=said.append)
    assert (steps.train.steps, steps.train.epochs) == (7, None)
    assert said == []
    null = load_config(path, DetectionConfig, ["train.epochs=3", "train.steps=null"])
    assert null == epochs
    assert load_config(path, DetectionConfig, ["train={epochs: 3}"]).train == epochs.train


def test_milestones_move_with_the_length(tmp_path):
    path, said = write(tmp_path, f"{SMALL}  milestones: [50, 80]\n"), []
    config = load_config(path, DetectionConfig, ["train.epochs=10"], notice=said.append)
    assert config.train.milestones == (5.0, 8.0)
    assert said == ["with --set, train.milestones is now [5.0, 8.0]"]
    given = load_config(path, DetectionConfig, ["train.epochs=10", "train.milestones=[9]"])
    assert given.train.milestones == (9.0,)
    with pytest.raises(ConfigError, match="milestone 80 lies at or beyond the end"):
        load_config(path, DetectionConfig, ["train.steps=60"])  # steps as before: nothing moves
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        load_config(path, DetectionConfig, ["train.epochs=many"])


def test_what_says_val_takes_the_place_of_what_said_it(tmp_path):
    path = write(tmp_path, SMALL)
    held = load_config(path, DetectionConfig, ["data.hold_out=5"]).data
    assert (held.val, held.hold_out) == ((), 5)
    assert with_overrides(held, ["val=[x]"], "t").hold_out == 0
    shared = with_overrides(held, ["val_share=0.5"], "t")
    assert (shared.hold_out, shared.val_share) == (0, 0.5)
    with pytest.raises(ConfigError, match="hold_out makes 5 images of train val"):
        load_config(path, DetectionConfig, ["data.hold_out=5", "data.val=[x]"])


def test_another_format_takes_the_entries_of_the_one_before_away(tmp_path):
    path = write(tmp_path, SMALL)
    files = ["data.val=v.json", "data.val_images=v"]
    data = load_config(path, DetectionConfig, ["data.format=coco", *files]).data
    assert (data.train, data.val, data.val_images) == ((), ("v.json",), ("v",))
    assert with_overrides(data, ["format=shapes"], "t").val_images == ()
    same = load_config(path, DetectionConfig, ["data.format=voc", "data.val=other"]).data
    assert (same.train, same.val) == (("train",), ("other",))


def test_annotation_files_without_folder_are_of_the_one_there_is():
    own = {"format": "coco", "train": ["t.json"], "train_images": ["photos"], "hold_out": 3}
    data = check(DataConfig, own, "t")
    two = with_overrides(data, ["val=[a.json, b.json]"], "t")
    assert (two.val_images, two.hold_out) == (("photos", "photos"), 0)
    given = with_overrides(data, ["val=a.json", "val_images=others"], "t")
    assert given.val_images == ("others",)
    apart = {**own, "train": ["a.json", "b.json"], "train_images": ["a", "b"]}
    with pytest.raises(ConfigError, match="val has 1 annotation files but val_images 0"):
        with_overrides(check(DataConfig, apart, "t"), ["val=c.json"], "t")


def test_val_alone_is_enough_to_evaluate_on():
    data = check(DataConfig, {"format": "voc", "val": ["test"]}, "t")
    assert (data.train, data.val) == ((), ("test",))
    with pytest.raises(
        NoSplitError, match=r"data\.train is not given, so there is nothing to read"
    ):
        read_split(data.model_copy(update={"root": "/x"}), "train")


def test_texts_of_other_programs_files_are_as_written(tmp_path):
    path = write(tmp_path, "0: no\n1: 007\nb: [null, ~, 1e3, 'null']\nc:\n")
    assert read_texts(path, "file") == {
        "0": "no",
        "1": "007",
        "b": [None, None, "1e3", "null"],
        "c": None,
    }
    with pytest.raises(ConfigError, match="key 0 is not a name"):
        load_config(path, DetectionConfig)
