"""What a training that fails leaves, and what reading it says where it is not as it was written."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detres.config import check
from detres.engine.distributed import Group, LostProcessError
from detres.engine.flight_recorder import FlightRecorder, NonFiniteLossError
from detres.engine.step import GradientStep
from detres.files import CheckpointError
from detres.runs.bundle import Bundle, write_bundle
from tests.engine.regression import Regression, batches, same_tensors
from tests.processes import together
from tests.runs.test_run import Config, Fitting

CPU = torch.device("cpu")
CONFIG = check(Config, {"train": {"steps": 10, "batch_size": 8, "lr": 0.05}}, "test")


def recorded(steps: int = 3, *, done: bool = False) -> tuple[FlightRecorder, Fitting]:
    """A training in its last step, the gradients of which are there; `done`: after it."""
    training, recorder = Fitting(), FlightRecorder()
    for step, batch in enumerate(batches(0, steps)):
        recorder.begin(step, [batch], lr=0.5, seed=step, data_s=0.1)
        recorder.computed({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(math.inf)})
        if done or step < steps - 1:
            recorder.end(0.2)
    return recorder, training


def written(
    folder: Path,
    error: Exception,
    *,
    done: bool = False,
    group: Group | None = None,
    weight: float | None = None,
) -> Path | None:
    recorder, training = recorded(done=done)
    if weight is not None:
        torch.nn.init.constant_(training.model.linear.weight, weight)
    model = training.model
    return write_bundle(
        folder,
        error,
        training,
        CONFIG,
        recorder=recorder,
        gradients=GradientStep(model, model, group or Group(), CPU, "fp32"),
        step=2,
    )


def nonfinite(model: Regression | None = None) -> NonFiniteLossError:
    terms = {"loss_fit": torch.tensor(math.nan)}
    return NonFiniteLossError(model or Regression(), terms, list(batches(2, 3)), step=2, lr=0.5)


def test_a_bundle_has_the_step_its_weights_and_its_layers(tmp_path: Path):
    place = written(tmp_path, nonfinite(), weight=math.inf)
    assert place == tmp_path / "bundle-step-3"
    names = {path.name for path in place.iterdir()}
    assert names == {"bundle.json", "config.yaml", "env.json", "layers.json", "step.pt"}
    bundle = Bundle.read(place)
    assert (bundle.kind, bundle.step, bundle.rank, bundle.size) == ("non-finite", 2, 0, 1)
    assert bundle.message.startswith("non-finite loss in step 3: loss_fit = nan; images 2-0, ")
    assert [record["step"] for record in bundle.records] == [0, 1, 2]
    assert bundle.records[-1]["files"][7] == "2-7.jpg"
    assert bundle.records[-1]["values"] == {"loss": 1.0, "grad_norm": None}
    assert bundle.config(Config) == CONFIG
    (images, targets), wanted = bundle.state["parts"][0], next(batches(2, 3))
    assert torch.equal(images["values"], wanted[0].values)
    assert torch.equal(torch.stack(targets), torch.stack(wanted[1]))
    assert bundle.state["seed"] == 2
    assert bundle.state["model"]["linear.weight"].isinf().all()
    layers = json.loads((place / "layers.json").read_text())
    assert [each["name"] for each in layers["outputs"]] == ["linear", "model", "model"]
    assert layers["outputs"][0]["nonfinite"] == 4  # of half of 8 images


def test_a_later_bundle_of_the_same_step_is_another(tmp_path: Path):
    first = written(tmp_path, ValueError("one"))
    second = written(tmp_path, ValueError("two"))
    assert (first.name, second.name) == ("bundle-step-3", "bundle-step-3-2")
    assert [Bundle.read(place).message for place in (first, second)] == ["one", "two"]


@pytest.mark.parametrize(
    ("error", "done", "has_batch"),
    [
        (ValueError("in a step"), False, True),
        (torch.OutOfMemoryError("in a step"), False, True),
        (ValueError("of the data"), True, False),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), False, False),
        (LostProcessError("process 1", told_here=True), False, False),
    ],
)
def test_a_batch_is_kept_where_it_may_be_at_fault(
    error: Exception, done: bool, has_batch: bool, tmp_path: Path
):
    place = written(tmp_path, error, done=done)
    assert (place / "step.pt").exists() == has_batch
    assert not (place / "layers.json").exists()
    assert (Bundle.read(place).state is not None) == has_batch


def test_a_lost_process_is_told_of_once(tmp_path: Path):
    assert written(tmp_path, LostProcessError("process 1", told_here=False)) is None
    assert list(tmp_path.iterdir()) == []


def faulty_on(group: Group, folder: str, rank: int) -> str | None:
    """Write of a step whose loss is infinite on one process."""
    weight = math.inf if group.rank == rank else None
    place = written(Path(folder), nonfinite(), group=group, weight=weight)
    return None if place is None else place.name


@pytest.mark.slow
def test_of_several_processes_the_first_writes_and_each_that_has_the_fault(tmp_path: Path):
    assert together(3, faulty_on, str(tmp_path), 2) == [
        "bundle-step-3",
        None,
        "bundle-step-3-rank-2",
    ]
    assert Bundle.read(tmp_path / "bundle-step-3-rank-2").rank == 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("run"), nonfinite())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "bundle.json").unlink(), "is no bundle, for it has no bundle.json"),
        (lambda path: (path / "bundle.json").write_text('{"a'), "is damaged"),
        (lambda path: (path / "bundle.json").write_text("[]"), "has the format None"),
        (lambda path: edited(path, format="detres-bundle-9"), "has the format 'detres-bundle-9'"),
        (lambda path: edited(path, records=3), "is damaged: it lacks records"),
        (lambda path: (path / "step.pt").unlink(), "step.pt"),
        (lambda path: cut(path / "step.pt"), "step.pt"),
        (lambda path: torch.save({"parts": Path()}, path / "step.pt"), "which may be code"),
        (lambda path: torch.save({"parts": []}, path / "step.pt"), "it lacks model"),
    ],
)
def test_a_bundle_that_is_not_as_it_was_written(
    damage: Callable[[Path], object], message: str, whole: Path, tmp_path: Path
):
    path = tmp_path / "bundle"
    shutil.copytree(whole, path)
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        Bundle.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def edited(path: Path, **values: object) -> None:
    file = path / "bundle.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def test_in_the_place_of_a_bundle_the_newest_of_a_run_is_named(tmp_path: Path):
    place = written(tmp_path, ValueError("x"))
    with pytest.raises(CheckpointError, match=f"give {place}"):
        Bundle.read(tmp_path)


def test_weights_that_are_not_finite_are_read_bit_for_bit(tmp_path: Path):
    recorder, training = recorded()
    model = training.model
    with torch.no_grad():
        model.linear.weight[0, 0] = math.nan
    place = write_bundle(
        tmp_path,
        nonfinite(),
        training,
        CONFIG,
        recorder=recorder,
        gradients=GradientStep(model, model, Group(), CPU, "fp32"),
        step=2,
    )
    found: dict[str, Tensor] = Bundle.read(place).state["model"]
    bits = {name: each.view(torch.int32) for name, each in found.items()}
    wanted = {name: each.view(torch.int32) for name, each in model.state_dict().items()}
    assert same_tensors(bits, wanted)
