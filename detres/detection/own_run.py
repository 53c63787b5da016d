"""A new run: what is settled before it begins, and its beginning; `detres.train` in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import torch

from detres.config import given_settings, in_yaml
from detres.console import write_line
from detres.detection.alternating import TRAININGS, AlternatingRun
from detres.detection.annotations import Annotations
from detres.detection.chosen_settings import Choice
from detres.detection.config import DetectionConfig
from detres.detection.detector import Detector
from detres.detection.duration import LENGTHS, in_units, seconds_of
from detres.detection.named_weights import weights_called
from detres.detection.own_data import OwnData
from detres.detection.resumed_run import resume_line_with
from detres.detection.time_budget import pace_of, with_time
from detres.engine.distributed import Group
from detres.engine.writers import Writer, require_writers
from detres.network import require_downloaded
from detres.runs.run import ResumeLine, TrainingRun

Say = Callable[[str], None]
"""Called with a line for the user."""


@dataclass(frozen=True)
class NewRun:
    """What is to be trained on `device`: the checked configuration, the weights file of a detector
    to start from, and train and val where they were read to settle it.

    said: whether the settings were said when they were chosen. group: of the processes that train.
    """

    config: DetectionConfig
    device: torch.device
    init_from: str | None = None
    read: tuple[Annotations, Annotations] | None = None
    said: bool = False
    group: Group = field(default_factory=Group)

    @classmethod
    def on(
        cls,
        data: str | Path | None,
        overrides: Sequence[str],
        *,
        device: torch.device,
        init_from: str | None = None,
        seconds: int | None = None,
        offline: bool = False,
        say: Say,
    ) -> NewRun:
        """Return a run on data that no configuration describes, its settings chosen from them.

        data: where they are, None: the embedded shapes. overrides: settings KEY=VALUE of the user.
        seconds: that the run may take, None: as long as the choice says. offline: no backbone
        is downloaded. say: what was found and chosen. Raises what require_downloaded, OwnData.read
        and `within` raise.
        """
        began = monotonic()
        keys = [setting.partition("=")[0].strip() for setting in overrides]
        if seconds is not None and (given := [key for key in keys if key in LENGTHS]):
            raise ValueError(f"a time says how many steps there are, and so does {given[0]}")
        if init_from is None:
            given = given_settings(DetectionConfig, overrides)
            require_downloaded(given.get("model.backbone.weights"), offline=offline)
        own = OwnData.read(data, overrides, device=device, init_from=init_from, say=say)
        config, choices = own.configured()
        new = cls(config, device, init_from, (own.train, own.val))
        if seconds is not None:
            config = new.within(seconds, began=began, say=say).config
            choices = [_as_the_time_allows(each, config.train.steps) for each in choices]
        for line in own.lines(choices):
            say(line)
        return replace(new, config=config, said=True)

    def within(self, seconds: int, *, began: float, say: Say) -> NewRun:
        """Return the same with as many steps as fit into a time, which is measured.

        began: when the time did, by time.monotonic. Raises ShortTimeError where nothing fits, and
        ValueError for alternating training.
        """
        config, making = self.config, monotonic()
        if config.train.scheme == "alternating":
            raise ValueError(
                "a time does not go with train.scheme=alternating: give train.steps instead"
            )
        say("measuring how long a step and an evaluation take (these steps do not count)")
        training = TRAININGS[config.train.scheme].start(
            config, self.device, self.init_from, self.read
        )
        pace = pace_of(training, began=began, building=monotonic() - making)
        data = training.data
        config = with_time(config, pace, seconds, len(data.val))
        total = pace.takes(config.train, config.train.steps, len(data.val))
        say(
            f"{config.train.steps} steps of {pace.step:.2g} s and the evaluations take about "
            f"{in_units(total)}"
        )
        return replace(self, config=config, read=(data.train, data.val))

    def begin(
        self,
        out: str | Path | None,
        *,
        resume_line: ResumeLine,
        writers: Sequence[Writer] = (),
    ) -> TrainingRun | AlternatingRun:
        """Return the run, begun in a new folder: `out`, or the next free one of its name under
        runs/; writers: told its numbers. Raises what new_run_folder raises, ValueError for several
        processes and alternating training.
        """
        config, device, group = self.config, self.device, self.group
        with group.together():
            if config.train.scheme == "alternating" and group.size > 1:
                raise ValueError(
                    "train.scheme=alternating trains on one process: start it without torchrun"
                )
        if config.train.scheme == "alternating":
            return AlternatingRun.start(
                config,
                out,
                device=device,
                resume_line=resume_line,
                init_from=self.init_from,
                writers=writers,
            )
        with group.together():
            training = TRAININGS[config.train.scheme].start(
                config, device, self.init_from, self.read, group
            )
        return TrainingRun.start(
            training,
            out,
            device=device,
            resume_line=resume_line,
            settings_said=self.said,
            writers=writers,
        )


def _as_the_time_allows(choice: Choice, steps: int) -> Choice:
    """A choice of a run that a time bounds: its number of steps is another."""
    if choice.key != "train.steps":
        return choice
    return replace(choice, value=steps, reason="what the time allows")


def train(
    data: str | Path,
    *,
    settings: Mapping[str, object] | None = None,
    time: str | None = None,
    init_from: str | Path | None = None,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
    offline: bool = False,
    writers: Sequence[Writer] = (),
) -> Detector:
    """Train a detector on annotated images, as `detres train DATA` does, and return it, on the CPU.

    data: a folder, data.yaml or COCO JSON, in any format that training takes; what it is taken for
    and the settings chosen for it are printed. settings: others, such as {"train.steps": 500}.
    time: that it may take, such as "30m". init_from: a detector to start from, by its weights
    file, the folder or name of its run, or its published name. out: the run folder, by default the
    next free one under runs/. device: by default the GPU where there is one. offline: nothing is
    downloaded. writers: told the numbers beside metrics.jsonl, see engine.writers.Writer.

    Raises UnrecognisedDataError for data that are of no known format, ConfigError for settings that
    do not fit, TypeError for an object that is no writer, RunFolderError for an `out` that holds
    files, and what the readers raise; Ctrl-C saves the run and raises Interrupted.
    """
    require_writers(writers)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    overrides = [f"{key}={in_yaml(value)}" for key, value in (settings or {}).items()]
    if init_from is not None:
        init_from = str(weights_called(init_from, offline=offline, notice=write_line))
    new = NewRun.on(
        data,
        overrides,
        device=chosen,
        init_from=init_from,
        seconds=None if time is None else seconds_of(time),
        offline=offline,
        say=write_line,
    )
    with new.begin(out, resume_line=resume_line_with(writers), writers=writers) as run:
        run.train()
    return Detector.load(run.folder)
