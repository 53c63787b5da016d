"""What the commands share: their common flags, and how they end."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from detres.build import with_data_root
from detres.cls_config import ClassificationConfig
from detres.config import Config, load_config
from detres.engine.precision import faster_precision
from detres.engine.train import Interrupted, NonFiniteLossError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DEFAULT_CONFIG = CONFIGS / "shapes_r18.yaml"


def add_config_flags(parser: argparse.ArgumentParser, default: Path = DEFAULT_CONFIG) -> None:
    """Add --cfg, --set, --data and --device."""
    parser.add_argument(
        "--cfg", metavar="FILE", help=f"YAML configuration (default: {default.name})"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="override configuration keys, e.g. train.lr=0.01",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="data folder (default: data.root of the configuration, then $DETRES_DATA)",
    )
    add_device_flag(parser)


def add_seed_flag(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=int, help="overrides seed of the configuration")


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device",
        type=usable_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: %(default)s",
    )


def usable_device(name: str) -> torch.device:
    """Return the device; raises argparse.ArgumentTypeError where there is none of that name."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"{name} cannot be used: {str(error).splitlines()[0]}"
        ) from None
    return device


def config_path(cfg: str | None, default: Path = DEFAULT_CONFIG) -> Path:
    """Return the file of --cfg, or `default`; those that come with the toolkit are found from any
    directory.
    """
    path = Path(cfg) if cfg else default
    if not path.exists() and (CONFIGS / path.name).exists() and path.parent.name in ("", "configs"):
        return CONFIGS / path.name
    return path


def config_from(
    arguments: argparse.Namespace,
    kind: type[Config] | type[ClassificationConfig] = Config,
    default: Path = DEFAULT_CONFIG,
) -> Config | ClassificationConfig:
    """Return the checked configuration of the flags, precision and data root settled."""
    overrides = [
        *arguments.set,
        *([f"seed={arguments.seed}"] if arguments.seed is not None else []),
    ]
    config = load_config(config_path(arguments.cfg, default), overrides, kind)
    precision = config.train.precision
    if precision == "auto":
        precision = faster_precision(arguments.device)
    data = with_data_root(config.data, arguments.data)
    return config.model_copy(
        update={"data": data, "train": config.train.model_copy(update={"precision": precision})}
    )


def newest_run(name: str) -> Path:
    """Return runs/NAME or runs/NAME-2, ..., whichever has the newest last.pt; raises
    FileNotFoundError when none has one.
    """
    named = re.compile(rf"{re.escape(name)}(-\d+)?")
    states = [path for path in Path("runs").glob("*/last.pt") if named.fullmatch(path.parent.name)]
    if not states:
        raise FileNotFoundError(
            f"no run to resume: no last.pt in runs/{name}, runs/{name}-2, ...; give the folder, "
            "--resume DIR"
        )
    return max(states, key=lambda path: path.stat().st_mtime).parent


def run(command: Callable[[], None]) -> int:
    """Call `command` and return the exit status: 0, 2 after bad input (one line on stderr), 1 after
    a non-finite loss or the end of a worker, 130 after Ctrl-C.
    """
    try:
        command()
    except Interrupted:  # what to do next was printed where the run folder is known
        return 130
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130
    except NonFiniteLossError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {_message(error)}\n")
        return 2
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        sys.stderr.write(
            f"error: {error}. Too little memory is the usual cause: try a smaller data.workers\n"
        )
        return 1
    return 0


def _message(error: Exception) -> str:
    """The message; of an error in a loader's worker, whose traceback PyTorch puts into it, the
    message the worker raised.
    """
    text = str(error)
    return (
        text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
    )
