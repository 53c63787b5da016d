"""A bundle: what is kept of a training that failed, in a folder of its own below the run's."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from detres.config import Section, load_config, to_yaml
from detres.engine.distributed import LostProcessError
from detres.engine.flight_recorder import FlightRecorder, Kind, kind_of, message_of
from detres.engine.layers import gradient_statistics, watched
from detres.engine.log import without_nan
from detres.engine.step import GradientStep
from detres.files import CheckpointError, first_line, write_text, writing_folder
from detres.runs import folder as names
from detres.runs.environment import write_environment
from detres.runs.state import load_state, save_state
from detres.user_files import JsonError, TextError, read_json

AnySection = TypeVar("AnySection", bound=Section)

FORMAT = "detres-bundle-1"
"""What bundle.json calls itself."""

FACTS, STEP, LAYERS = "bundle.json", "step.pt", "layers.json"
"""The last steps and the error; the batches and weights of the step at fault, where there is one;
what its layers put out and which gradients they got, where these were not finite.
"""

_KEYS = ("wing", "kind", "error", "message", "doing", "step", "rank", "size", "records", "batch")
_STEP_KEYS = ("parts", "model", "training", "seed", "precision")


@dataclass(frozen=True)
class Bundle:
    """What bundle.json and step.pt hold.

    path: of the folder. kind: of the error; error: the name of its class; doing: what the process
    was about; step: the steps done before. records: of the last steps, oldest first, as
    StepRecord.to_dict has them, with None for what is not finite, and "files", those of the images.
    state: parts, the (images, targets) of the step at fault as plain values; model, its weights;
    training, what the run's last.pt holds of the classes; seed, precision. None where the fault is
    not one of a step.
    """

    path: Path
    wing: str
    kind: Kind
    error: str
    message: str
    doing: str
    step: int
    rank: int
    size: int
    records: list[dict]
    state: dict | None

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read the bundle in a folder; raises CheckpointError naming the file for one that is
        damaged, of another version, or none.
        """
        facts = path / FACTS
        if not facts.is_file():
            there = sorted(path.glob("bundle-step-*")) if path.is_dir() else []
            newest = max(there, key=lambda each: each.stat().st_mtime, default=None)
            advice = (
                f"give {newest}"
                if newest is not None
                else "a training that fails writes one, runs/NAME/bundle-step-N"
            )
            raise CheckpointError(f"{path} is no bundle, for it has no {FACTS}: {advice}")
        try:
            found = read_json(facts, "bundle")
        except (JsonError, TextError) as error:
            raise CheckpointError(f"{error}: the bundle is damaged") from None
        written = found.get("format") if isinstance(found, dict) else None
        if written != FORMAT:
            raise CheckpointError(
                f"{facts} has the format {written!r:.60}, and this detres reads {FORMAT}: replay "
                "it with the version that wrote it"
            )
        missing = [key for key in _KEYS if key not in found]
        if missing or not isinstance(found["records"], list):
            raise CheckpointError(f"{facts} is damaged: it lacks {(missing or ['records'])[0]}")
        state = load_state(path / STEP, _STEP_KEYS, finite=False) if found["batch"] else None
        return cls(path, *(found[key] for key in _KEYS[:-1]), state)

    def config(self, kind: type[AnySection]) -> AnySection:
        """Return the configuration of the run, which is of a `kind`; raises ConfigError."""
        return load_config(self.path / names.CONFIG, kind)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what the block raises for a value that is not what was written into a
        CheckpointError.
        """
        try:
            yield
        except CheckpointError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.path} is not what a training writes: {first_line(error):.200}"
            ) from None


class Failed(Protocol):
    """What a bundle asks of the training that failed: detres.runs.run.Training."""

    wing: str

    def state(self) -> dict:
        """Return what last.pt holds of the classes."""

    def file_of(self, image_id: int | str) -> str:
        """Return the file that an image of a batch is from, or where else it is."""


def write_bundle(
    folder: Path,
    error: Exception,
    training: Failed,
    config: Section,
    *,
    recorder: FlightRecorder,
    gradients: GradientStep,
    step: int,
) -> Path | None:
    """Write what is known of an error that ends a training into a folder of its own in the run's,
    `folder`, and return it; None where another process does.

    gradients: of the steps, by the model itself and not as the group wraps it. step: the steps
    done. Of several processes the first writes, and each that has the fault; those that a lost one
    leaves behind leave it to one of them. Of a step that is not finite all processes must call
    this: it is computed once more, with an eye on every layer. Raises OSError naming the folder.
    """
    group, kind = gradients.group, kind_of(error)
    if isinstance(error, LostProcessError) and not error.told_here:
        return None
    layers, is_ours = None, True
    if kind == "non-finite":
        layers, is_ours = _layers(gradients, recorder)
    if kind == "non-finite" and not (is_ours or group.is_first):
        return None
    has_batch = recorder.parts is not None and kind in ("non-finite", "memory", "error")
    facts = {
        "format": FORMAT,
        "wing": training.wing,
        "kind": kind,
        "error": type(error).__name__,
        "message": message_of(error),
        "doing": group.now,
        "step": step,
        "rank": group.rank,
        "size": group.size,
        "batch": has_batch,
        "records": [
            {**each.to_dict(), "files": [training.file_of(image_id) for image_id in each.ids]}
            for each in recorder.records
        ],
    }
    place = _free(folder, step, "" if group.is_first else f"-rank-{group.rank}")
    with writing_folder(place) as temporary:
        write_text(temporary / names.CONFIG, to_yaml(config))
        write_environment(temporary / names.ENVIRONMENT, gradients.device, start_step=step)
        if layers is not None:
            write_text(temporary / LAYERS, _as_json(layers))
        if has_batch:
            state = {
                "parts": [[_plain(images), _plain(targets)] for images, targets in recorder.parts],
                "model": dict(gradients.model.state_dict()),
                "training": training.state(),
                "seed": recorder.records[-1].seed,
                "precision": gradients.precision,
            }
            save_state(temporary / STEP, state)
        write_text(temporary / FACTS, _as_json(facts))
    return place


def _free(folder: Path, step: int, process: str) -> Path:
    """Of the bundle of the step after `step` others; one of an earlier try stays."""
    first = folder / f"bundle-step-{step + 1}{process}"
    further = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([first], further) if not place.exists())


def _layers(gradients: GradientStep, recorder: FlightRecorder) -> tuple[dict, bool]:
    """The statistics of the step, computed once more, and whether this process's part of it is not
    finite.
    """
    found = gradient_statistics(gradients.model)
    is_finite, said = True, None
    with watched(gradients.model) as outputs, torch.no_grad():
        try:
            with torch.compiler.set_stance("force_eager"):
                for number, part in enumerate(recorder.parts):
                    total = gradients.forward(part, number, recorder.records[-1].seed).total()
                    is_finite = is_finite and bool(total.isfinite())
        except Exception as error:  # the statistics until then are worth having
            said = first_line(error)
    layers = {"outputs": [asdict(each) for each in outputs]}
    layers["gradients"] = [asdict(each) for each in found]
    return {**layers, "stopped": said}, not is_finite


def _plain(value: object) -> object:
    """Dataclasses as mappings, numbers of numpy as Python's; tensors on the CPU."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value.cpu().clone() if isinstance(value, torch.Tensor) else value


def _as_json(value: object) -> str:
    return json.dumps(without_nan(_plain(value)), indent=1) + "\n"
