"""What train-det and train-cls share: their flags, and a run folder while it is trained in."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from backbones import LoadReport
from detres.build import with_data_root
from detres.cls_config import ClassificationConfig
from detres.config import Config, check, load_config, to_yaml, what_differs, with_overrides
from detres.engine.checkpoint import load_state, save_state, write_text
from detres.engine.log import RunLog, write_environment
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.engine.train import Interrupted, Metrics, NonFiniteLossError, fit
from detres.structures import ClassMap
from detres.tools.command_line import add_config_flags, add_seed_flag, config_path, newest_run

STATE_KEYS = ("config", "classes", "num_images", "progress", "model", "optimizer")
MAY_CHANGE = ("data.workers", "data.damaged", "train.lr", "train.clip_grad_norm")
"""Settings that a resumed run may have otherwise: where and how data are read, and what helps where
the loss became infinite.
"""


def add_training_flags(parser: argparse.ArgumentParser, default: Path) -> None:
    """Add the flags of a configuration, --seed, --out and --resume."""
    add_config_flags(parser, default)
    add_seed_flag(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="run folder (default: runs/NAME, else the next free runs/NAME-2, ...)",
    )
    parser.add_argument(
        "--resume",
        metavar="DIR",
        nargs="?",
        const="",
        help="continue a run (default: the newest of runs/NAME, -2, ...)",
    )


def require_resumable(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, *more: str
) -> None:
    """End with a usage error where flags of a new run are given to a resumed one; `more`: such
    flags beside --seed and --out.
    """
    flags = [
        flag
        for flag in ("--seed", "--out", *more)
        if getattr(arguments, flag[2:].replace("-", "_")) is not None
    ]
    flags += [
        f"--set {setting}"
        for setting in arguments.set
        if setting.partition("=")[0] not in MAY_CHANGE
    ]
    if flags:
        parser.error(
            f"--resume continues with the run's own settings, all but {', '.join(MAY_CHANGE)}; "
            f"{', '.join(flags)} starts a new run"
        )
    if arguments.resume and arguments.cfg:
        parser.error(
            "--resume DIR continues with the run's own settings; --cfg goes with --resume alone, "
            "to say which run's name"
        )


def read_run(
    arguments: argparse.Namespace,
    kind: type[Config] | type[ClassificationConfig],
    default: Path,
    *more: str,
) -> tuple[Path, dict, Config | ClassificationConfig]:
    """Return the folder of --resume, what its last.pt holds, and the configuration in it, with
    --data where given.

    more: keys that last.pt must have beside STATE_KEYS.
    """
    folder = (
        Path(arguments.resume)
        if arguments.resume
        else newest_run(load_config(config_path(arguments.cfg, default), kind=kind).name)
    )
    state = load_state(folder / "last.pt", (*STATE_KEYS, *more))
    config = check(kind, json.loads(state["config"]), str(folder / "last.pt"))
    if arguments.set:
        config = with_overrides(config, arguments.set, str(folder / "last.pt"))
    if arguments.data:
        config = config.model_copy(update={"data": with_data_root(config.data, arguments.data)})
    return folder, state, config


class TrainingRun:
    """A run folder while it is trained in; to be used in a `with` statement, which closes its log
    and says how to go on after a stop.

    state: what the last.pt of a resumed run holds; model and optimizer are then where it left them.
    num_images: of the training set. extra: what else to keep in last.pt.

    Raises ValueError when a resumed run had another number of training images: its schedule and its
    order would change.
    """

    def __init__(
        self,
        folder: Path,
        *,
        command: str,
        config: Config | ClassificationConfig,
        class_map: ClassMap,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        device: torch.device,
        state: dict | None,
        num_images: int,
        extra: dict | None = None,
    ) -> None:
        if state is not None and state["num_images"] != num_images:
            raise ValueError(
                f"{folder / 'last.pt'} is of a run on {state['num_images']} training images, "
                f"there are {num_images} now: "
                "put the data back as they were, or start a new run from its weights"
            )
        self.folder, self.command, self.device = folder, command, device
        self.num_images = num_images
        self.config, self.class_map, self.extra = config, class_map, extra or {}
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.progress = Progress()
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            self._write_changes(state["config"])
        self.started = time.monotonic()
        write_environment(folder, device, start_step=self.progress.step)
        self.log = RunLog(
            folder,
            console=sys.stdout,
            steps=schedule.steps,
            start_step=self.progress.step,
            scored=self.progress.scores,
        )

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        resume = f"continue with: python tools/{self.command}.py --resume {self.folder}"
        if isinstance(error, Interrupted):
            self.log.line(f"stopped after step {error.step}; {resume}")
        elif kind is not None and (self.folder / "last.pt").is_file():
            if isinstance(error, NonFiniteLossError):
                resume += f" --set train.lr={self.config.train.lr / 10:g}"
            self.log.line(f"stopped; {resume}")
        self.log.close()

    def _write_changes(self, earlier: str) -> None:
        """Write config.yaml anew where the configuration is not the `earlier` one (JSON), which is
        kept beside it.
        """
        if self.config.model_dump_json() == earlier:
            return
        path, kept = (
            self.folder / "config.yaml",
            self.folder / f"config-until-step-{self.progress.step}.yaml",
        )
        if path.is_file() and not kept.exists():
            path.rename(kept)
        write_text(path, to_yaml(self.config))

    def announce(self, data: str, loaded: LoadReport | None) -> None:
        """Print the settings, the data in words, what was loaded into the backbone, and what is
        about to be done.
        """
        settings, step, steps = self.config.train, self.progress.step, self.schedule.steps
        epochs = steps / -(-self.num_images // settings.batch_size)
        self.log.line(
            f"{what_differs(self.config)}every setting, defaults included: "
            f"{self.folder / 'config.yaml'}"
        )
        self.log.line(data)
        if loaded is not None:
            self.log.line(f"from  {loaded}")
        self.log.line(
            f"{self.folder}: steps {step}..{steps} ({epochs:.4g} epochs), lr "
            f"{settings.effective_lr:g} at batch "
            f"{settings.batch_size} (lr {settings.lr:g} for {settings.reference_batch}), "
            f"device {self.device}, {torch.get_num_threads()} threads"
        )

    def fit(
        self,
        batches: Iterable,
        *,
        evaluate: Callable[[], Metrics],
        best_metric: str,
        save_best: Callable[[Progress], None],
    ) -> Metrics:
        """Train to the configured end; returns the last evaluation's metrics."""
        settings = self.config.train
        return fit(
            model=self.model,
            optimizer=self.optimizer,
            batches=self._saved_before_an_error(batches),
            progress=self.progress,
            schedule=self.schedule,
            evaluate=evaluate,
            best_metric=best_metric,
            save_last=self.save_last,
            save_best=save_best,
            log=self.log,
            device=self.device,
            seed=self.config.seed,
            log_every=settings.log_every,
            eval_every=settings.eval_every,
            save_every=settings.save_every,
            clip_grad_norm=settings.clip_grad_norm,
            precision=settings.precision,
        )

    def _saved_before_an_error(self, batches: Iterable) -> Iterator:
        """Pass the batches on; where one cannot be made, keep what was learnt so far."""
        try:
            yield from batches
        except Exception:
            if self.progress.step > 0:
                self.save_last(self.progress)
            raise

    def save_last(self, progress: Progress) -> None:
        """Write last.pt, from which the run goes on."""
        state = {
            "config": self.config.model_dump_json(),
            "classes": self.class_map.to_dict(),
            "num_images": self.num_images,
            "progress": progress.to_dict(),
            "model": {
                name: tensor.contiguous() for name, tensor in self.model.state_dict().items()
            },
            "optimizer": self.optimizer.state_dict(),
            **self.extra,
        }
        save_state(self.folder / "last.pt", state)

    def duration(self) -> str:
        """Return the time since the start in words."""
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        return f"{minutes} min {seconds} s"
