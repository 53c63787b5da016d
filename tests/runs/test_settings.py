"""The optimisation's settings, what is built from them, and where the data are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from detres.config import ConfigError, Section, check
from detres.engine.distributed import Group
from detres.engine.progress import Progress
from detres.losses import Losses
from detres.runs.settings import (
    DataRootError,
    ShapesRootError,
    TrainConfig,
    build_optimizer,
    build_schedule,
    with_batch_that_fits,
    with_data_root,
)
from tests.engine.regression import Batch

CPU = torch.device("cpu")


class Data(Section):
    """The least that a data section has."""

    format: str = "coco"
    root: str | None = None


def train_config(**settings: object) -> TrainConfig:
    return check(TrainConfig, settings, "test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either train.steps or train.epochs"),
        ({"steps": 9, "epochs": 3}, r"set one of train\.steps and train\.epochs to null"),
        ({"steps": 100, "milestones": [80, 50]}, "not in rising order"),
        ({"steps": 100, "milestones": [100]}, "milestone 100 lies at or beyond the end"),
        ({"epochs": 2, "milestones": [2.5]}, r"milestone 2\.5 lies at or beyond .* training, 2:"),
        (
            {"steps": 100, "milestones": [50], "schedule": "cosine"},
            "schedule cosine has no milestones",
        ),
        ({"steps": 9, "batch_size": "auto", "accumulate": 2}, "leave accumulate out"),
        ({"steps": 100, "schedule": "plateau"}, r"waits for evaluations: give train\.eval_every"),
        (
            {"steps": 100, "schedule": "plateau", "eval_every": 20},
            r"would never act: train\.patience 5 evaluations, one every 20 steps, are not over",
        ),
    ],
)
def test_lengths_and_schedules_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        train_config(**settings)


def test_fp16_is_refused_on_a_processor() -> None:
    with pytest.raises(ValueError, match=r"train\.precision: fp16 needs a GPU: bf16 is for proc"):
        train_config(steps=9, precision="fp16").require_possible(CPU)
    train_config(steps=9, precision="fp16").require_possible(torch.device("cuda"))
    train_config(steps=9, precision="bf16").require_possible(CPU)


def tried(
    most: int, reference: int, group: Group | None = None
) -> tuple[TrainConfig, list[int], list[str]]:
    """Settings with a batch that fits a model for `most` images, what was tried, what was said."""
    asked: list[int] = []
    said: list[str] = []

    class Small(nn.Linear):
        def forward(self, images: Batch, _: list) -> Losses:
            asked.append(len(images))
            if len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            value = super().forward(images.values).sum()
            return Losses({"loss": value}, {"loss": len(images)})

    settings = train_config(steps=9, batch_size="auto", reference_batch=reference)
    found = with_batch_that_fits(
        settings,
        Small(3, 1),
        lambda number: (Batch(torch.zeros(number, 3), tuple(map(str, range(number)))), []),
        CPU,
        group or Group(),
        said.append,
    )
    return found, asked, said


@pytest.mark.parametrize(
    ("most", "reference", "batch", "parts", "asked"),
    [(3, 16, 2, 8, [1, 2, 4]), (99, 16, 16, 1, [1, 2, 4, 8, 16]), (5, 12, 4, 3, [1, 2, 3, 4, 6])],
)
def test_the_largest_batch_that_fits_and_the_rest_in_parts(most, reference, batch, parts, asked):
    found, tries, said = tried(most, reference)
    assert (found.batch_size, found.accumulate) == (batch, parts)
    assert found.images_per_step == reference
    assert tries == asked
    assert said[0].startswith(
        f"train.batch_size=auto: {batch}, train.accumulate={parts} for the {reference} images"
    )
    assert found.model_copy(update={"batch_size": "auto"}).images_per_step == reference


class Narrow(Group):
    """Of two processes, of which the other has memory for a single image."""

    size = 2

    def gather(self, value: int) -> list[int]:
        return [value, 1]


def test_processes_take_what_fits_all_of_them() -> None:
    found, _, _ = tried(99, 8, Narrow())
    assert (found.batch_size, found.accumulate) == (2, 4)
    with pytest.raises(ValueError, match=r"7 images .* cannot be divided among 2 processes"):
        tried(99, 7, Narrow())


def test_where_not_one_image_fits_it_is_said() -> None:
    with pytest.raises(ValueError, match=r"not even one image fits .* \(1 does not fit\)"):
        tried(0, 8)


def test_a_number_of_images_stays() -> None:
    settings = train_config(steps=9, batch_size=3)
    assert with_batch_that_fits(settings, None, None, CPU, Group(), None) is settings


def test_by_default_a_run_is_evaluated_at_its_end():
    assert train_config(steps=1000).evaluated_every(1000) == 0


@pytest.mark.parametrize(
    ("steps", "every"),
    [(1200, 240), (1201, 241), (100, 20), (96, 20), (95, 0), (3, 0), (320_000, 64_000)],
)
def test_an_automatic_interval_is_a_fifth_of_the_run(steps, every):
    config = train_config(steps=steps, eval_every="auto")
    assert config.evaluated_every(steps) == every
    if every:
        assert 4 <= (steps - 1) // every <= 5
    assert train_config(steps=steps, eval_every=7).evaluated_every(steps) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": 3}, r"counts evaluations on the way: give train\.eval_every"),
        ({"schedule": "plateau", "eval_every": "auto"}, r"give train\.eval_every"),
        (
            {"eval_every": "often"},
            r"test: eval_every: Input should be a valid integer, or 'auto', got 'often'$",
        ),
        (
            {"eval_every": -1},
            r"test: eval_every: Input should be greater than or equal to 0, or 'auto', got -1$",
        ),
        ({"early_stopping": -1}, "early_stopping"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"ema_decay": 0.0}, "ema_decay"),
    ],
)
def test_evaluations_and_averages_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        train_config(steps=1000, **settings)
    assert train_config(steps=9, early_stopping=3, eval_every="auto", ema_decay=0.999)


def test_a_plateau_that_acts_before_the_end():
    assert train_config(steps=101, schedule="plateau", eval_every=20).patience == 5


def test_epochs_become_steps():
    config = train_config(epochs=2.5, milestones=[1, 2], batch_size=4)
    assert config.in_steps(10) == (6, (2, 5))  # 2.5 steps an epoch, rounded to even
    assert train_config(steps=100).in_steps(10) == (100, ())
    assert train_config(steps=100, milestones=[60]).in_steps(10) == (100, (60,))
    assert train_config(epochs=0.01, batch_size=4).in_steps(10) == (1, ())


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.04), ("none", 0.01)])
def test_the_rate_follows_the_batch(scaling, expected):
    config = train_config(steps=1, lr=0.01, reference_batch=2, batch_size=8, lr_scaling=scaling)
    assert config.effective_lr == pytest.approx(expected)


def test_optimizer_and_schedule_follow_the_settings():
    settings = train_config(
        epochs=2, batch_size=5, lr=0.1, reference_batch=10, milestones=[1], warmup_steps=0
    )
    schedule = build_schedule(settings, num_images=20)
    assert (schedule.steps, schedule.milestones) == (8, (4,))
    assert [schedule.at(Progress(3)), schedule.at(Progress(4))] == pytest.approx([0.05, 0.005])
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(settings, model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1, 2]
    plain = build_optimizer(settings.model_copy(update={"bias_lr_scale": 1.0}), model)
    assert [group["lr_scale"] for group in plain.param_groups] == [1, 1]
    adamw = build_optimizer(settings.model_copy(update={"optimizer": "adamw"}), model)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["weight_decay"] == 5e-4
    for optimizer_name in ("sgd", "adamw"):
        chosen = settings.model_copy(update={"optimizer": optimizer_name})
        with pytest.raises(ValueError, match="all are frozen"):
            build_optimizer(chosen, nn.Linear(2, 2).requires_grad_(False))


def test_every_part_of_a_schedule_arrives():
    plateau = build_schedule(
        train_config(
            steps=90,
            schedule="plateau",
            eval_every=10,
            patience=3,
            gamma=0.5,
            warmup_steps=7,
            warmup_factor=0.25,
        ),
        num_images=20,
    )
    assert (plateau.shape, plateau.patience, plateau.gamma) == ("plateau", 3, 0.5)
    assert (plateau.warmup_steps, plateau.warmup_factor, plateau.steps) == (7, 0.25, 90)


def test_the_root_is_the_given_one_then_the_config_s_then_the_environment_s(tmp_path, monkeypatch):
    for name in ("given", "config", "environment"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("DETRES_DATA", str(tmp_path / "environment"))
    inside, bare = Data(root=str(tmp_path / "config")), Data()
    assert with_data_root(inside, tmp_path / "given").root == str(tmp_path / "given")
    assert with_data_root(inside, None).root == str(tmp_path / "config")
    assert with_data_root(bare, None).root == str(tmp_path / "environment")
    monkeypatch.delenv("DETRES_DATA")
    with pytest.raises(DataRootError, match=r"^it is not said where the data are"):
        with_data_root(bare, None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        with_data_root(bare, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="file does not exist or is not a folder"):
        with_data_root(bare, tmp_path / "file")


def test_a_root_becomes_absolute_but_shards_may_be_behind_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert with_data_root(Data(), "here").root == str(tmp_path / "here")
    url = "https://example.org/shards"
    assert with_data_root(Data(format="shards"), url).root == url
    assert with_data_root(Data(format="shards"), "here").root == str(tmp_path / "here")
    with pytest.raises(FileNotFoundError, match=url):
        with_data_root(Data(format="coco"), url)


def test_shapes_are_not_drawn_into_a_folder_of_other_files(tmp_path, monkeypatch):
    shapes = Data(format="shapes")
    assert with_data_root(shapes, tmp_path / "new").root == str(tmp_path / "new")
    assert with_data_root(shapes, tmp_path).root == str(tmp_path)  # it is empty
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(ShapesRootError, match=r"holds other files, .* a cache folder of their own"):
        with_data_root(shapes, tmp_path)
    (tmp_path / "shapes-v3-8-4-0").mkdir()
    assert with_data_root(shapes, tmp_path).root == str(tmp_path)
    monkeypatch.setenv("DETRES_DATA", str(tmp_path / "JPEGImages"))
    assert with_data_root(shapes, None).root is None  # shapes need no data folder
