"""train-cls and the classification side of eval, end to end on small real
files.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._inductor import config as inductor

from backbones import load_weights, read_metadata, resnet_cifar, save_weights
from backbones.files import write_safetensors
from detres.class_map import ClassMap
from detres.classification import training
from detres.classification.weights_file import load_classifier, save_classifier
from detres.cli import eval as evaluate
from detres.cli import plot, predict, train_cls, train_det
from detres.engine.stop import Interrupted
from detres.runs import run as run_module
from detres.runs.run import TrainingRun
from tests.cli.conftest import numbers_in, records

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SMALL = [
    "train.batch_size=16",
    "train.reference_batch=16",
    "train.steps=6",
    "train.milestones=[4]",
    "train.log_every=1",
    "train.precision=fp32",
]


def write_cifar(root: Path, number: int = 40) -> Path:
    """CIFAR-10's binary version with `number` rows a file, each class of a colour of its own."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        labels = rng.integers(0, 10, number).astype(np.uint8)
        pixels = rng.integers(0, 60, (number, 3, 32, 32)) + (labels[:, None, None, None] * 19)
        rows = np.concatenate(
            (labels[:, None], pixels.reshape(number, -1).astype(np.uint8)), axis=1
        )
        (folder / name).write_bytes(rows.tobytes())
    return root


def write_folder(root: Path, *, side: int = 40) -> Path:
    """Two classes of JPEG files in train/ and val/, bright and dark."""
    rng = np.random.default_rng(1)
    for split, number in (("train", 12), ("val", 4)):
        for name, level in (("dark", 40), ("bright", 200)):
            (root / split / name).mkdir(parents=True)
            for n in range(number):
                image = np.clip(rng.normal(level, 20, (side, side + 8, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(root / split / name / f"{n}.jpg"), image)
    return root


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_cifar(tmp_path / "data")


def train(*arguments: str) -> int:
    return train_cls.main([*arguments, "--device", "cpu"])


def test_cifar_from_files_to_weights(cifar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        train(
            "--cfg",
            "configs/cifar10_resnet20.yaml",
            "--data",
            str(cifar),
            "--set",
            *SMALL,
            "train.eval_every=3",
        )
        == 0
    )
    folder = Path("runs/cifar10_resnet20")
    out = capsys.readouterr().out
    assert "200 images of 10 classes" in out
    assert "weights runs/cifar10_resnet20/weights.safetensors" in out
    losses = records(folder, "train")
    assert [record["step"] for record in losses] == [1, 2, 3, 4, 5, 6]
    assert [round(record["lr"], 6) for record in losses] == [0.1] * 4 + [0.01] * 2
    assert all(0 <= record["top1_error"] <= 1 for record in losses)
    assert [record["step"] for record in records(folder, "eval")] == [3, 6]
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "metrics.json",
        "last.pt",
        "weights.safetensors",
    }

    pixels = np.concatenate(
        [
            np.fromfile(file, np.uint8).reshape(-1, 3073)[:, 1:]
            for file in sorted(cifar.rglob("data_batch_*.bin"))
        ]
    )
    mean_image = load_file(folder / "weights.safetensors")["input.mean_image"]
    np.testing.assert_allclose(mean_image.numpy().ravel(), pixels.mean(axis=0), rtol=1e-5)
    net = resnet_cifar(20)
    assert load_weights(net, folder / "weights.safetensors").skipped == {}
    assert torch.equal(net.input_spec.mean_image, mean_image)


def test_eval_gives_the_runs_own_number_and_saves_probabilities_under_either_name(
    cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        train("--cfg", "configs/cifar10_plain20.yaml", "--data", str(cifar), "--set", *SMALL) == 0
    )
    folder = Path("runs/cifar10_plain20")
    capsys.readouterr()
    weights = str(folder / "weights.safetensors")
    assert (
        evaluate.main(
            [
                "--weights",
                weights,
                "--json",
                "out.json",
                "--save-scores",
                "scores.npz",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert "accuracy of each class" in capsys.readouterr().out
    in_run, again = (
        json.loads((folder / "metrics.json").read_text()),
        numbers_in(Path("out.json")),
    )
    assert in_run.pop("step") == 6
    assert again == in_run
    assert again["protocol"] == "whole images as they are"
    saved = np.load("scores.npz")
    assert float((saved["probabilities"].argmax(1) != saved["labels"]).mean()) == pytest.approx(
        again["top1_error"]
    )
    assert saved["classes"].tolist() == NAMES
    flags = ["--weights", weights, "--device", "cpu"]
    assert evaluate.main([*flags, "--save-probabilities", "probabilities.npz"]) == 0
    again_saved = np.load("probabilities.npz")
    assert set(again_saved) == set(saved) == {"probabilities", "labels", "classes"}
    assert all(np.array_equal(saved[name], again_saved[name]) for name in saved)
    assert (
        evaluate.main(["--weights", weights, weights, "--json", "two.json", "--device", "cpu"]) == 0
    )
    assert json.loads(Path("two.json").read_text())["top1_error"] == again["top1_error"]


def test_an_earlier_name_of_a_setting_trains_alike_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "photos")
    flags = ["--cfg", "configs/imagenet_resnet18b.yaml", "--data", str(data), "--set", *PHOTOS]
    flags.append("train.steps=1")
    assert train(*flags, "--out", "now") == 0
    assert capsys.readouterr().err == ""
    earlier = {"data.crop_side": "data.size", "eval.short_side": "eval.resize"}
    given = [
        f"{earlier.get(key, key)}={value}"
        for key, _, value in (s.partition("=") for s in flags[5:])
    ]
    assert train(*flags[:5], *given, "--out", "earlier") == 0
    assert capsys.readouterr().err == (
        "note: --set data.size=32: this is now called data.crop_side\n"
        "note: --set eval.resize=36: this is now called eval.short_side\n"
    )
    assert Path("now/config.yaml").read_text() == Path("earlier/config.yaml").read_text()
    one, two = (load_file(f"{run}/weights.safetensors") for run in ("now", "earlier"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_files_of_a_run_with_earlier_names_are_read_without_a_word(
    cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [*SMALL, "train.steps=1", "train.milestones=[]", "train.recompute_batches=0"]
    assert train("--cfg", "configs/cifar10_plain20.yaml", "--data", str(cifar), "--set", *few) == 0
    folder = Path("runs/cifar10_plain20")
    wanted = json.loads((folder / "metrics.json").read_text())
    _, config, _ = load_classifier(folder / "weights.safetensors")

    def with_earlier_names(text: str) -> str:
        tree = json.loads(text)
        tree["data"]["size"] = tree["data"].pop("crop_side")
        tree["data"]["shorter"] = tree["data"].pop("short_sides")
        tree["eval"]["resize"] = tree["eval"].pop("short_side")
        return json.dumps(tree)

    state = torch.load(folder / "last.pt", weights_only=True)
    state["config"] = with_earlier_names(state["config"])
    torch.save(state, folder / "last.pt")
    metadata = read_metadata(folder / "weights.safetensors")
    metadata["config"] = with_earlier_names(metadata["config"])
    old = folder / "old.safetensors"
    write_safetensors(old, load_file(folder / "weights.safetensors"), metadata)
    assert load_classifier(old)[1] == config
    capsys.readouterr()
    assert evaluate.main(["--weights", str(old), "--json", "out.json", "--device", "cpu"]) == 0
    assert {"step": 1, **numbers_in(Path("out.json"))} == wanted
    assert train("--resume", str(folder)) == 0
    assert capsys.readouterr().err == ""


def test_a_resumed_run_is_a_straight_one(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [
        "--cfg",
        "configs/cifar10_resnet20.yaml",
        "--data",
        str(cifar),
        "--set",
        *SMALL,
        "train.recompute_batches=2",
    ]
    assert train(*flags, "--out", "straight") == 0

    def stopping(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterable,
        *,
        run: TrainingRun,
        **arguments: object,
    ) -> None:
        few = (batch for number, batch in enumerate(batches) if number < 3)
        try:
            real_fit(model, optimizer, few, run=run, **arguments)
        except ValueError:  # the batches ended early
            run.save()
            raise Interrupted(run.progress.step) from None

    real_fit = run_module.fit
    monkeypatch.setattr(run_module, "fit", stopping)
    assert train(*flags, "--out", "halved") == 130
    monkeypatch.undo()
    monkeypatch.chdir(cifar.parent)
    assert train("--resume", "halved") == 0
    straight, halved = (load_file(f"{name}/weights.safetensors") for name in ("straight", "halved"))
    assert straight.keys() == halved.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, halved[name]), name
    assert records(Path("straight"), "eval") == records(Path("halved"), "eval")


def test_an_image_folder_and_every_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "photos")
    settings = [
        *SMALL,
        "name=photos",
        "model.network.name=resnet20",
        "data.crop_side=32",
        "data.short_sides=[34,40]",
        "data.workers=0",
        "train.steps=8",
        "train.milestones=[]",
    ]
    assert (
        train(
            "--cfg",
            "configs/imagenet_resnet18b.yaml",
            "--data",
            str(data),
            "--set",
            *settings,
            "eval.short_side=36",
            "train.recompute_batches=2",
        )
        == 0
    )
    weights = "runs/photos/weights.safetensors"
    model, config, classes = load_classifier(Path(weights))
    assert classes.names == ("bright", "dark")
    assert config.data.root == str(data)
    assert not model.training
    for view, words in (
        ("center", "centre crop, 32 px"),
        ("ten_crop", "10 crops"),
        ("dense", "fully convolutional"),
    ):
        settings = [f"eval.views={view}", "eval.scales=[32,48]"]
        assert (
            evaluate.main(
                [
                    "--weights",
                    weights,
                    "--set",
                    *settings,
                    "--json",
                    f"{view}.json",
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        result = json.loads(Path(f"{view}.json").read_text())
        assert result["protocol"].startswith(words)
        assert result["num_images"] == 8


def write_shards(root: Path, folder: Path) -> Path:
    """The images of `folder` in webdataset shards, one a class and split: train-0.tar, train-1.tar,
    val-0.tar, val-1.tar.
    """
    root.mkdir()
    for split in ("train", "val"):
        for label, name in enumerate(("bright", "dark")):
            with tarfile.open(root / f"{split}-{label}.tar", "w") as tar:
                for file in sorted((folder / split / name).iterdir()):
                    for suffix, content in (
                        (".jpg", file.read_bytes()),
                        (".cls", str(label).encode()),
                    ):
                        member = tarfile.TarInfo(f"{name}_{file.stem}{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return root


PHOTOS = [
    *SMALL,
    *("name=photos", "model.network.name=resnet20", "train.milestones=[]"),
    *(
        "data.crop_side=32",
        "data.short_sides=[34,40]",
        "data.workers=0",
        "eval.short_side=36",
        "train.recompute_batches=0",
    ),
]


def evaluations(folder: Path) -> list[dict]:
    """Those of a run but for the digest of its order, in which images go by their names."""
    return [
        {name: value for name, value in record.items() if name != "order_digest"}
        for record in records(folder, "eval")
    ]


def test_shards_train_as_the_same_files_in_folders_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / "photos")
    shards = write_shards(tmp_path / "tars", folder)
    modern = [
        "data.randaugment=9",
        "train.mixup=0.2",
        "model.label_smoothing=0.1",
        "train.schedule=plateau",
        "train.eval_every=2",
    ]
    base = [
        "--cfg",
        "configs/imagenet_resnet18b.yaml",
        "--set",
        *PHOTOS,
        *modern,
        "train.patience=1",
    ]
    named = [
        "data.format=shards",
        "data.train=train-{0..1}.tar",
        "data.val=val-*.tar",
        "data.classes=[bright,dark]",
    ]
    assert train(*base, "--data", str(folder), "--out", "folders") == 0
    assert train(*base, *named, "--data", str(shards), "--out", "shards") == 0
    assert train(*base, *named, "--data", f"file://{shards}", "--out", "remote") == 0
    one = load_file("folders/weights.safetensors")
    for other in ("shards", "remote"):
        two = load_file(f"{other}/weights.safetensors")
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
        assert evaluations(Path("folders")) == evaluations(Path(other))
    assert (
        evaluate.main(
            ["--weights", "remote/weights.safetensors", "--json", "out.json", "--device", "cpu"]
        )
        == 0
    )
    assert (
        json.loads(Path("out.json").read_text())["top1_error"]
        == records(Path("folders"), "eval")[-1]["top1_error"]
    )


@pytest.mark.parametrize("mean", ["pixel", "channel"])
def test_the_mean_of_image_files_is_that_of_their_centre_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mean: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "photos")
    flags = [
        "--cfg",
        "configs/imagenet_resnet18b.yaml",
        "--data",
        str(data),
        "--set",
        *PHOTOS,
        "eval.short_side=40",
        "train.steps=1",
    ]
    assert train(*flags, f"model.mean={mean}") == 0
    crops = [
        cv2.imread(str(file))[4:36, 8:40, ::-1] for file in sorted((data / "train").rglob("*.jpg"))
    ]
    expected = np.mean(crops, axis=0)
    model, _, _ = load_classifier(Path("runs/photos/weights.safetensors"))
    spec = model.net.input_spec
    assert spec.mean == pytest.approx(expected.mean(axis=(0, 1)), rel=1e-5)
    assert (spec.std, spec.short_side, spec.crop_side) == ((1.0, 1.0, 1.0), 40, 32)
    if mean == "pixel":
        np.testing.assert_allclose(spec.mean_image.permute(1, 2, 0).numpy(), expected, rtol=1e-5)
    else:
        assert spec.mean_image is None


@pytest.mark.parametrize("in_memory", [False, True])
def test_damaged_training_images_are_named_and_skipped_or_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    in_memory: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "photos", side=32 if in_memory else 40)
    damaged = [data / "train" / "bright" / "3.jpg", data / "train" / "dark" / "7.jpg"]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:300])
    more = ["data.in_memory=true", "data.short_sides=[256,480]"] if in_memory else []
    flags = [
        "--cfg",
        "configs/imagenet_resnet18b.yaml",
        "--data",
        str(data),
        "--set",
        *PHOTOS,
        *more,
    ]
    assert train(*flags, "--out", "refused") == 2
    assert "3.jpg cannot be read" in capsys.readouterr().err
    assert train(*flags, "data.damaged=skip", "--out", "skipped") == 0
    assert sorted(Path("skipped/skipped.txt").read_text().split()) == [
        str(file) for file in damaged
    ]
    assert str(damaged[1]) in capsys.readouterr().out or in_memory
    (data / "val" / "dark" / "0.jpg").write_bytes(b"no image")  # what is scored is never left out
    assert train(*flags, "data.damaged=skip", "--out", "scored") == 2
    assert "val/dark/0.jpg cannot be read" in capsys.readouterr().err


def test_a_damaged_image_costs_no_steps_and_can_be_passed_over_on_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "photos")
    base = [
        "--cfg",
        "configs/imagenet_resnet18b.yaml",
        "--data",
        str(data),
        "--set",
        *PHOTOS,
        "train.batch_size=4",
    ]
    damaged = data / "train" / "dark" / "7.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert train(*base, "data.damaged=skip", "--out", "skipping") == 0
    capsys.readouterr()
    assert train(*base, "--out", "stopped") == 2
    assert str(damaged) in capsys.readouterr().err
    stopped_at = torch.load("stopped/last.pt", weights_only=True)["progress"]["step"]
    assert 0 < stopped_at == len(records(Path("stopped"), "train")) < 6
    with pytest.raises(SystemExit):
        train("--resume", "stopped", "--set", "train.batch_size=9", "data.damaged=skip")
    message = (
        "all but data.workers, data.damaged, train.lr, train.clip_grad_norm, train.steps, "
        "train.epochs, train.milestones, train.early_stopping; --set train.batch_size=9 starts a "
        "new run"
    )
    assert message in capsys.readouterr().err
    assert train("--resume", "stopped", "--set", "data.damaged=skip") == 0
    one, two = (load_file(f"{run}/weights.safetensors") for run in ("skipping", "stopped"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert Path("stopped/skipped.txt").read_text() == f"{damaged}\n"
    damaged.unlink()
    assert train("--resume", "stopped") == 2
    assert capsys.readouterr().err == (
        "error: the data are not those that stopped/last.pt was trained on: in train, 24 records "
        f"then, 23 now, the first that differs is {data / 'train' / 'dark' / '8.jpg'}: put them "
        "back as they were, or give --resume DIR --accept-data-change to go on with them as they "
        "are now\n"
    )


def test_a_run_whose_loss_became_infinite_goes_on_with_a_smaller_rate(
    cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steep = [
        "train.lr=1e28",
        "train.warmup_factor=1e-30",
        "train.warmup_until_error=0.995",
        "train.milestones=[]",
        "train.save_every=3",
    ]
    assert (
        train(
            "--cfg",
            "configs/cifar10_resnet20.yaml",
            "--data",
            str(cifar),
            "--set",
            *SMALL,
            *steep,
            "--out",
            "run",
        )
        == 1
    )
    shown = capsys.readouterr()
    assert (
        "a smaller train.lr or train.clip_grad_norm, both of which --resume --set takes"
        in shown.err
    )
    assert (
        "stopped; continue with: detres train-cls --resume run --set train.lr=1e+27\n" in shown.out
    )
    assert torch.load("run/last.pt", weights_only=True)["progress"]["step"] == 3
    assert train("--resume", "run") == 1
    first = Path("run/config.yaml").read_text()
    assert train("--resume", "run", "--set", "train.lr=0.01", "train.clip_grad_norm=1") == 0
    assert [record["lr"] for record in records(Path("run"), "train")][-1] == 0.01
    assert Path("run/config-until-step-3.yaml").read_text() == first
    assert "lr: 0.01\n" in Path("run/config.yaml").read_text()
    assert [segment["start_step"] for segment in json.loads(Path("run/env.json").read_text())] == [
        0,
        3,
        3,
    ]


@pytest.mark.parametrize("asked", ["true", "auto"])
def test_a_step_that_cannot_be_compiled(
    cifar: Path, refused: Callable[..., str], asked: str
) -> None:
    flags = [
        "--cfg",
        "configs/cifar10_resnet20.yaml",
        "--data",
        str(cifar),
        "--set",
        *SMALL,
        f"train.compile={asked}",
    ]
    torch._dynamo.reset()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        if asked == "true":
            message = refused(*flags)
            assert "train.compile: torch.compile does not work here: " in message
            assert "train.compile=false goes without it" in message
        else:  # on a CPU not even tried
            assert train(*flags) == 0
    torch._dynamo.reset()


def test_weights_are_those_of_the_last_evaluation(
    cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [
        "--cfg",
        "configs/cifar10_resnet20.yaml",
        "--data",
        str(cifar),
        "--set",
        *SMALL,
        "train.eval_every=2",
    ]
    real = training.evaluate_classifier
    calls = []

    def stop_at_the_second(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "evaluate_classifier", stop_at_the_second)
    assert train(*flags, "--out", "stopped") == 130
    assert read_metadata("stopped/weights.safetensors")["step"] == "2"
    assert (
        evaluate.main(
            ["--weights", "stopped/weights.safetensors", "--json", "out.json", "--device", "cpu"]
        )
        == 0
    )
    assert (
        json.loads(Path("out.json").read_text())["top1_error"]
        == records(Path("stopped"), "eval")[0]["top1_error"]
    )


def test_a_resumed_run_keeps_its_mean_and_asks_for_no_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "photos")
    flags = ["--cfg", "configs/imagenet_resnet18b.yaml", "--data", str(data), "--set", *PHOTOS]
    assert train(*flags, "model.mean=pixel", "--out", "mean") == 0
    mean = load_file("mean/weights.safetensors")["input.mean_image"]
    shutil.copy("mean/weights.safetensors", "init.safetensors")
    assert train(*flags, "model.network.weights=init.safetensors", "--out", "started") == 0
    Path("init.safetensors").unlink()
    for file in (data / "train").rglob("*.jpg"):
        cv2.imwrite(str(file), np.zeros((40, 48, 3), np.uint8))
    for folder in ("mean", "started"):  # both networks learned on that mean
        assert train("--resume", folder) == 2  # the files have another size
        assert train("--resume", folder, "--accept-data-change") == 0
        assert torch.equal(load_file(f"{folder}/weights.safetensors")["input.mean_image"], mean)
        assert [record["step"] for record in records(Path(folder), "eval")] == [6]


def test_averaged_statistics_are_scored_once_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "photos")
    damaged = data / "train" / "dark" / "7.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    flags = [
        "--cfg",
        "configs/imagenet_resnet18b.yaml",
        "--data",
        str(data),
        "--set",
        *PHOTOS,
        "train.steps=1",
        "data.damaged=skip",
    ]
    assert train(*flags, "train.recompute_batches=3", "--out", "run") == 0
    assert (
        Path("run/skipped.txt").read_text() == f"{damaged}\n"
    )  # met at the latest among the 48 + 16 images of an epoch of 24
    for _ in range(2):
        assert [len(records(Path("run"), kind)) for kind in ("eval", "averaged")] == [1, 1]
        assert (
            json.loads(Path("run/metrics.json").read_text())["loss"]
            == records(Path("run"), "averaged")[0]["loss"]
        )
        assert train("--resume", "run") == 0
    assert plot.main(["curves", "run", "--out", "figures"]) == 0
    assert [
        line.split(",")[:3] for line in Path("figures/curves.csv").read_text().splitlines()[1:]
    ] == [
        ["run", "training", "1"],
        ["run", "test", "1"],
    ]


def test_a_detector_starts_from_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["data.shapes_train=8", "data.shapes_val=4"]
    assert (
        train(
            "--set",
            *few,
            *SMALL,
            "train.milestones=[]",
            "train.warmup_steps=0",
            "train.steps=2",
            "data.crop_side=32",
        )
        == 0
    )
    weights = "runs/cls_shapes_r18/weights.safetensors"
    assert json.loads(read_metadata(weights)["classes"])["names"] == [
        "circle",
        "square",
        "triangle",
        "star",
        "cross",
        "ring",
    ]
    settings = [
        *few,
        "train.steps=1",
        "train.warmup_steps=0",
        "train.lr=1e-9",
        "train.precision=fp32",
        f"model.backbone.weights={weights}",
    ]
    capsys.readouterr()
    assert train_det.main(["--set", *settings, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert (
        f"from  {weights}: 120 tensors under torchvision's names, 2 skipped\n  fc.bias, "
        "fc.weight: the network has no such layer" in out
    )
    given, found = load_file(weights), load_file("runs/shapes_r18/best.safetensors")
    torch.testing.assert_close(
        found["backbone.layer2.0.conv1.weight"],
        given["layer2.0.conv1.weight"],
        rtol=1e-4,
        atol=1e-6,
    )
    torch.testing.assert_close(
        found["roi_head.box_head.conv5.1.conv2.weight"],
        given["layer4.1.conv2.weight"],
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function: arguments -> the one line on stderr, after exit status 2 and no run
    folder.
    """

    def call(*arguments: str, main: Callable[[list[str]], int] = train_cls.main) -> str:
        assert main([*arguments, "--device", "cpu"]) == 2
        assert not Path("runs").exists()
        return capsys.readouterr().err

    return call


def test_bad_settings(cifar: Path, refused: Callable[..., str]) -> None:
    base = ["--cfg", "configs/cifar10_resnet20.yaml", "--data", str(cifar), "--set"]
    for settings, message in (
        (
            ["model.network.nam=resnet20"],
            "unknown key 'model.network.nam'; did you mean 'model.network.name'",
        ),
        (["model.network.name=resnet21"], "unknown backbone 'resnet21', did you mean"),
        (["model.network.name=plain20"], "plain20 has no shortcut"),
        (["eval.views=ten_crop"], "ten_crop needs images larger than the crop"),
        (["data.hold_out=200"], "cannot hold out 200 of 200 images"),
        (["data.format=shapes", "data.hold_out=5"], "data.hold_out applies to format cifar10"),
        (
            ["model.network.weights=w.pth"],
            "model.mean pixel does not go with model.network.weights",
        ),
        (["data.pca=0.3"], "data.short_sides and data.pca apply to image files read one by one"),
        (
            ["data.short_sides=[32,40]"],
            "data.short_sides and data.pca apply to image files read one by one",
        ),
        (["data.randaugment=9"], "data.randaugment applies to image files"),
        (["data.classes=[]"], "data.classes"),
        (["data.classes=[cat]"], "data.classes and data.damaged do not apply to format cifar10"),
        (["eval.views=dense"], "eval.scales are those of photographs"),
        (["eval.views=dense", "eval.scales=[]"], "eval.scales"),
        (
            ["model.network={name: vgg16}", "train.recompute_batches=9"],
            "averages statistics of batch norm, and vgg16 has none",
        ),
        (
            ["model.network.norm=group", "train.recompute_batches=9"],
            "averages statistics of batch norm",
        ),
        (["train.compile=fast"], "train.compile"),
        (
            ["train.warmup_until_error=0.8", "train.warmup_steps=4"],
            "either train.warmup_steps or train.warmup_until_error",
        ),
        (["train.schedule=plateau"], "schedule plateau has no milestones"),
        (
            ["train.schedule=plateau", "train.milestones=[]", "train.eval_every=0"],
            "give train.eval_every",
        ),
        (["train.schedule=plateau", "train.milestones=[]", "train.steps=10000"], "would never act"),
        (
            ["train.early_stopping=2", "train.eval_every=2"],
            "early_stopping is for detectors and localisers: a classifier is evaluated on its test "
            "set, which must not decide when training ends",
        ),
        (["train.ema_decay=0.9"], "ema_decay is for detectors and localisers"),
        (["train.eval_images=5"], "unknown key 'train.eval_images'"),
    ):
        assert message in refused(*base, *settings)


def test_bad_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = ["--cfg", "configs/tiny_imagenet50_r18.yaml", "--data"]
    cifar = ["--cfg", "configs/cifar10_resnet20.yaml", "--data"]
    assert "data folder nowhere does not exist" in refused(*folder, "nowhere")
    Path("empty").mkdir()
    assert "image folder empty/train does not exist" in refused(
        *folder, str(Path("empty"))
    ).replace(str(tmp_path) + "/", "")
    assert "batches.meta.txt is missing" in refused(*cifar, "empty")
    data = write_folder(tmp_path / "photos")
    (data / "val" / "more").mkdir()
    assert f"class folder {data}/val/more has no image" in refused(*folder, str(data))
    cv2.imwrite(str(data / "val" / "more" / "x.png"), np.zeros((40, 48, 3), np.uint8))
    message = refused(*folder, str(data))
    assert "the class lists differ" in message
    assert "3=more" in message
    (data / "train" / "more").mkdir()
    cv2.imwrite(str(data / "train" / "more" / "x.png"), np.zeros((41, 48, 3), np.uint8))
    assert "in memory they must be of one size" in refused(*folder, str(data))
    cv2.imwrite(str(data / "train" / "more" / "x.png"), np.zeros((40, 48, 3), np.uint8))
    cv2.imwrite(str(data / "val" / "more" / "x.png"), np.zeros((41, 48, 3), np.uint8))
    for file in (*(data / "val" / "dark").iterdir(), *(data / "val" / "bright").iterdir()):
        cv2.imwrite(str(file), np.zeros((41, 48, 3), np.uint8))
    assert (
        f"{data}/train has images of 48x40 px, {data}/val of 48x41: data.in_memory wants one size"
        in refused(*folder, str(data))
    )
    few = ["data.classes=[bright,dark]", "data.crop_side=32"]
    for file in (*(data / "val" / "dark").iterdir(), *(data / "val" / "bright").iterdir()):
        cv2.imwrite(str(file), np.zeros((40, 48, 3), np.uint8))
    message = refused(*folder, str(data), "--set", *few)
    assert (
        "data.in_memory takes images as they are, 48x40 px; leave out data.crop_side 32" in message
    )
    (data / "train" / "more" / "x.png").write_bytes(b"no image")
    assert "train/more/x.png cannot be read" in refused(*folder, str(data))
    cut = write_cifar(tmp_path / "cut")
    file = cut / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-7])
    assert f"{file} has {40 * 3073 - 7} bytes, expected a multiple of 3073" in refused(
        *cifar, str(cut)
    )


@pytest.fixture
def photo_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    """The weights of a run on photos/, relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos")
    assert (
        train(
            "--cfg",
            "configs/imagenet_resnet18b.yaml",
            "--data",
            "photos",
            "--set",
            *PHOTOS,
            "train.steps=30",
            "train.lr=0.02",
        )
        == 0
    )
    capsys.readouterr()
    return Path("runs/photos/weights.safetensors")


def test_bare_weights_are_scored_by_a_configuration(
    photo_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--json", "out.json", "--device", "cpu"]
    assert evaluate.main(["--weights", str(photo_weights), *flags]) == 0
    wanted = numbers_in(Path("out.json"))
    torch.save({"state_dict": load_file(photo_weights)}, "bare.pth")
    scored_by = ["--cfg", "runs/photos/config.yaml", "--data", "photos"]
    assert evaluate.main(["--weights", "bare.pth", *scored_by, *flags]) == 0
    assert numbers_in(Path("out.json")) == wanted
    out = capsys.readouterr().out
    assert "bare.pth" in out
    assert "top-5" not in out  # of two classes
    assert (
        "note: bare.pth names no classes: its outputs are taken in this order, bright, dark of "
        f"{Path('photos/val').resolve()}\n" in out
    )
    assert "no better than guessing" not in out  # of eight images
    assert "note: bare.pth: 128 tensors under torchvision's names, 0 skipped" in out
    assert (
        "taken as rgb images, mean [123.675, 116.28, 103.53], deviation [58.395, 57.12, 57.375]"
        in out
    )
    assert evaluate.main(["--weights", str(photo_weights), "bare.pth", *scored_by, *flags]) == 0
    assert json.loads(Path("out.json").read_text())["top1_error"] == wanted["top1_error"]

    torch.save(
        {name: tensor for name, tensor in load_file(photo_weights).items() if "fc." not in name},
        "headless.pth",
    )
    save_weights(resnet_cifar(20, num_classes=3, shortcut="B"), "three.safetensors")
    save_weights(resnet_cifar(32), "deeper.safetensors")
    torch.save(
        {**load_file(photo_weights), "input.mean_image": torch.zeros(3, 32, 32)}, "with_mean.pth"
    )
    Path("cut.safetensors").write_bytes(photo_weights.read_bytes()[:1000])
    Path("elsewhere").mkdir()
    torch.save({"w": torch.ones(1)}, "elsewhere/last.pt")
    for arguments, message in (
        (
            ["--weights", "bare.pth", *scored_by, "--set", "model.mean=pixel"],
            "bare.pth brings no mean of the images it was trained on",
        ),
        (
            ["--weights", "bare.pth", *scored_by, "--set", "train.lr=1"],
            "only data.*, eval.*, model.* say how weights are evaluated",
        ),
        (
            ["--weights", "with_mean.pth", *scored_by],
            "with_mean.pth holds a mean image but not the rest of what the network expects",
        ),
        (
            ["--weights", "cut.safetensors", *scored_by],
            "cut.safetensors is damaged",
        ),
        (
            ["--weights", "bare.pth", "--save-scores", "s.npz"],
            "evaluate it as a classifier with --cfg",
        ),
        (
            ["--weights", "elsewhere/last.pt", *scored_by],
            "elsewhere/last.pt is not a training state of detres: it lacks config",
        ),
        (
            ["--weights", "bare.pth", "--cfg", "configs/shapes_r18.yaml"],
            "bare.pth is a file of torch.save, not a run's .safetensors",
        ),
        (["--weights", "bare.pth"], "evaluate it as a classifier with --cfg"),
        (
            ["--weights", str(photo_weights), "bare.pth"],
            "bare.pth does not say what network it is of",
        ),
        (
            ["--weights", "headless.pth", *scored_by],
            "these weights have no classifier that could be evaluated: headless.pth",
        ),
        (
            ["--weights", "three.safetensors", *scored_by],
            "the classifier tells 3 classes apart, the images are of 2",
        ),
        (
            ["--weights", "deeper.safetensors", *scored_by],
            "deeper.safetensors does not fit this network",
        ),
    ):
        assert evaluate.main([*arguments, "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err


def test_an_ensemble_of_other_classes_names_the_files_that_differ(
    photo_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, config, classes = load_classifier(photo_weights)
    torch.save({"state_dict": load_file(photo_weights)}, "bare.pth")
    renamed = ClassMap(("day", "night"), classes.source_ids)
    save_classifier(Path("renamed.safetensors"), model, config, renamed, step=30)
    given = [
        "--weights",
        "bare.pth",
        str(photo_weights),
        "renamed.safetensors",
        "--cfg",
        "runs/photos/config.yaml",
        "--data",
        "photos",
    ]
    assert evaluate.main([*given, "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert f"{photo_weights} (2): " in message
    assert "renamed.safetensors (2): " in message
    assert "bare.pth" not in message


def test_predict_names_the_likeliest_classes(
    photo_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["--weights", str(photo_weights), "--device", "cpu"]
    assert (
        predict.main([*weights, "photos/val/dark", "photos/val/bright/1.jpg", "--out", "named"])
        == 0
    )
    named = json.loads(Path("named/predictions.json").read_text())
    assert [record["image"] for record in named] == [
        *(f"photos/val/dark/{n}.jpg" for n in range(4)),
        "photos/val/bright/1.jpg",
    ]
    assert evaluate.main([*weights, "--save-scores", "scores.npz"]) == 0
    scores = np.load("scores.npz")  # in the order of the folders: bright, dark
    wanted = scores["probabilities"][[4, 5, 6, 7, 1]]
    found = [[record["classes"][name] for name in ("bright", "dark")] for record in named]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert all(
        list(record["classes"].values()) == sorted(record["classes"].values(), reverse=True)
        for record in named
    )
    out = capsys.readouterr().out
    first = named[0]["classes"]
    assert (
        "photos/val/dark/0.jpg: "
        f"{', '.join(f'{name} {value:.2f}' for name, value in first.items())} (decode " in out
    )
    assert re.search(r"(?m)^an image: decode \d+ ms, model \d+ ms, total \d+ ms \(median of 5", out)
    assert "predictions.json (5 images) in named" in out

    Path("photos/val/dark/0.jpg").write_bytes(b"no image")
    Path("clip.mp4").write_bytes(b"not opened")
    for arguments, message in (
        (["clip.mp4", "--out", "none"], "clip.mp4 is a video, which a detector takes"),
        (["photos/val/dark", "--tile", "99"], "--tile goes with a detector's boxes"),
        (["photos/val/dark", "--out", "named"], "--out named already holds predictions.json"),
        (["photos/val/dark", "--score", "0.3"], "--score goes with a detector's boxes"),
        (["photos/val/dark/0.jpg", "--out", "none"], "none of 1 images could be read"),
        (
            ["photos/val/dark", "--out", "three"],
            "1 of 4 images could not be read and are not in three",
        ),
    ):
        assert predict.main([*weights, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert len(json.loads(Path("three/predictions.json").read_text())) == 3


@pytest.mark.parametrize("mean", ["pixel", "network"])
def test_predict_sees_an_image_of_another_size_as_those_in_memory(cifar: Path, mean: str) -> None:
    few = [*SMALL, "train.steps=1", "train.milestones=[]", f"model.mean={mean}"]
    assert train("--cfg", "configs/cifar10_resnet20.yaml", "--data", str(cifar), "--set", *few) == 0
    cv2.imwrite("large.png", np.full((64, 96, 3), 99, np.uint8))
    cv2.imwrite("small.png", np.full((32, 32, 3), 99, np.uint8))
    assert (
        predict.main(
            [
                "large.png",
                "small.png",
                "--weights",
                "runs/cifar10_resnet20/weights.safetensors",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    large, small = (
        record["classes"] for record in json.loads(Path("predictions/predictions.json").read_text())
    )
    assert large == small
    assert len(large) == 5


def test_scoring_that_makes_no_sense(cifar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        train(
            "--cfg",
            "configs/cifar10_resnet20.yaml",
            "--data",
            str(cifar),
            "--set",
            *SMALL,
            "train.steps=1",
            "train.milestones=[]",
        )
        == 0
    )
    weights = "runs/cifar10_resnet20/weights.safetensors"
    capsys.readouterr()
    for arguments, message in (
        (["--weights", weights, "--iou", "0.5"], "--iou goes with detectors"),
        (
            ["--weights", weights, "--set", "eval.view=dense"],
            "unknown key 'eval.view'; did you mean 'eval.views'",
        ),
        (["--weights", "nowhere.safetensors", weights], "no weights file at nowhere.safetensors"),
        (
            ["--weights", weights, "--set", "model.network.name=resnet56"],
            "only data.*, eval.* say how weights are evaluated",
        ),
        (
            ["--weights", "torchvision/resnet50.v1"],
            "is published: say how and on what to evaluate it with --cfg",
        ),
        (["--weights", weights, "--data", "nowhere"], "data folder nowhere does not exist"),
    ):
        assert evaluate.main([*arguments, "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err
