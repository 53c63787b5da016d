"""How a command ends: its exit status, and what is said of an error."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator

import torch

from detres.cli.flags import LONGEST_MESSAGE
from detres.console import accept_any_text, shortened, write_line
from detres.detection.annotations import NoTruthError
from detres.detection.data.read import NoSplitError
from detres.engine.determinism import DeterminismError
from detres.engine.distributed import ElsewhereError, LostProcessError, own_name
from detres.engine.flight_recorder import NonFiniteLossError, kind_of, message_of
from detres.engine.memory import StepMemoryError
from detres.engine.stop import Interrupted
from detres.files import TakenFolderError
from detres.images.locate import OutsideFolderError
from detres.network import NetworkWeightsError
from detres.runs.fingerprint import DataChangedError
from detres.runs.folder import NoRunError, RunFolderError
from detres.runs.settings import DataRootError, ShapesRootError

_FLAG = re.compile(r"--[a-z-]+")

_LESS_MEMORY = (
    "a smaller train.batch_size (eval.batch_size where it evaluates), smaller images or fewer "
    "data.workers need less"
)
_FULL = "free some space, or give another folder"
_BY_ERRNO = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "the file system or a limit allows no larger file: give another folder",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give one that this user may use, or its rights",
    errno.EPERM: "give one that this user may use, or its rights",
    errno.EIO: "the disk, or the network behind it, does not answer",
    errno.ESTALE: "the disk, or the network behind it, does not answer",
    errno.EMFILE: "more files are open than `ulimit -n` allows: raise it, or data.workers=0",
    errno.ENOMEM: _LESS_MEMORY,
}
"""What can be done about what the system says of a file."""

HINTS = {
    RunFolderError: (
        "give another folder with --out; --resume DIR continues a run",
        "give another folder with --out",
    ),
    NoRunError: ("give the folder, --resume DIR",),
    DataChangedError: (
        "put them back as they were, or give --resume DIR --accept-data-change to go on with them "
        "as they are now",
    ),
    DeterminismError: (
        "leave --deterministic out (--resume DIR: --no-deterministic), or choose other settings "
        "(model.roi.pool, train.precision), or --device cpu",
    ),
    StepMemoryError: (
        "a smaller train.batch_size with train.accumulate for the rest, smaller images "
        "(model.input.short_side, data.crop_side), train.precision=bf16 or "
        "train.checkpoint_activations=true need less",
    ),
    MemoryError: (_LESS_MEMORY,),
    torch.OutOfMemoryError: (_LESS_MEMORY,),
    DataRootError: (
        "give --data FOLDER, or data.root in the configuration, or the environment variable "
        "DETRES_DATA",
    ),
    ShapesRootError: (
        "leave --data out, or name a configuration of your data with --cfg",
        "leave --data out",
    ),
    NoTruthError: (
        "with --weights, --split test --submission DIR writes what its test server takes",
    ),
    NoSplitError: ("a configuration that says where it is goes with --cfg, or --set",),
    TakenFolderError: (
        "give another folder with --submission",
        "give another folder with --out or --fix",
        "give another folder with --out",
    ),
    OutsideFolderError: (
        "--set data.outside=allow reads such files all the same",
        "data.outside=allow in the configuration reads such files all the same",
    ),
    NonFiniteLossError: (
        "a smaller train.lr or train.clip_grad_norm, both of which --resume --set takes, or a "
        "longer train.warmup_steps usually cures it",
        "a smaller train.lr, a train.clip_grad_norm or a longer train.warmup_steps usually cures "
        "it",
    ),
}
"""What flags can do about an error of the library, which knows none; the first hint whose flags the
command has.
"""


def carried_out(
    work: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
) -> int:
    """Do the work of a command on the device of --device; returns the exit status, the work's own
    where it has one.

    A device that there is not ends with a usage error.
    """
    with ending(parser) as end:
        if getattr(arguments, "device", None) is not None:
            try:
                arguments.device = usable_device(arguments.device)
            except ValueError as error:
                parser.error(f"argument --device: {error}")
        end.status = work(arguments) or 0
    return end.status


def usable_device(name: str) -> torch.device:
    """Return the device, of "auto" the GPU where there is one; raises ValueError where there is
    none of that name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        there_are = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        there_are += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"{name} cannot be used: no device of that name; here are {', '.join(there_are)}"
        ) from None
    try:
        torch.zeros(1, device=device).item()  # "meta" makes tensors, without values
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ValueError(f"{name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


_PIPE_CLOSED = 128 + 13
"""The exit status of a process that SIGPIPE ends."""


class Ending:
    """How a command ended; status: its exit status."""

    status = 0


@contextlib.contextmanager
def ending(parser: argparse.ArgumentParser) -> Iterator[Ending]:
    """Turn how the block ends into an exit status, and an error into a line on stderr.

    parser: of the command; hints name no flag that it does not have. Status 0, 2 after bad input, 1
    after a non-finite loss, the end of the memory or of a worker, 130 after Ctrl-C, 141 where
    nobody reads any more what is said. Any other error is a fault of ours and goes on, after a
    line that asks for a report.
    """
    end = Ending()
    accept_any_text()
    try:
        yield end
    except Interrupted:  # what to do next was printed where the run folder is known
        end.status = 130
    except KeyboardInterrupt:
        write_line("\nstopped", sys.stderr)
        end.status = 130
    except BrokenPipeError as error:
        if error.filename is not None:
            raise
        # who read what is said, as `head` does, is gone; Python flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        end.status = _PIPE_CLOSED
    except ElsewhereError:  # another process says what
        end.status = 1
    except LostProcessError as error:
        if error.told_here:
            write_line(f"error: {error}", sys.stderr)
        end.status = 1
    except (ValueError, OSError) as error:
        write_line(f"error: {own_name()}{_message(error, parser)}", sys.stderr)
        end.status = 2
    except (NonFiniteLossError, MemoryError, torch.OutOfMemoryError) as error:
        write_line(f"error: {own_name()}{_message(error, parser)}", sys.stderr)
        end.status = 1
    except RuntimeError as error:
        kind = kind_of(error)
        if kind == "worker":
            write_line(
                f"error: {error}. Too little memory is the usual cause: try a smaller data.workers",
                sys.stderr,
            )
        elif kind == "memory":
            write_line(f"error: {_message(MemoryError(_asked_for(error)), parser)}", sys.stderr)
        else:
            write_line(_REPORT, sys.stderr)
            raise
        end.status = 1
    except Exception:
        write_line(_REPORT, sys.stderr)
        raise


_REPORT = (
    "This is a fault of detres, not of what it was given: please report it with the lines below."
)


def _asked_for(error: RuntimeError) -> str:
    """How much memory PyTorch's allocator did not get."""
    asked = re.search(r"allocate (\d+) bytes", str(error))
    return f"{int(asked[1]) / 2**30:.1f} GiB were asked for" if asked else ""


def _message(error: Exception, parser: argparse.ArgumentParser) -> str:
    """The message, with what flags can do about it."""
    text = message_of(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        said = next(iter(text.splitlines()), "")
        text = "the memory is used up" + (f" ({said.rstrip('.')})" if said else "")
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    text = "\n".join(shortened(line, LONGEST_MESSAGE) for line in text.splitlines())
    hints = next((HINTS[kind] for kind in type(error).__mro__ if kind in HINTS), ())
    if isinstance(error, OSError) and not hints and error.errno in _BY_ERRNO:
        hints = (_BY_ERRNO[error.errno],)
    flags = set(_FLAG.findall(parser.format_help()))
    if isinstance(error, NetworkWeightsError) and "--set" in flags:
        settings = " ".join(f"{key}={value}" for key, value in error.keys.items())
        return f"{text.removesuffix('.')}. Give --set {settings}"
    hint = next((hint for hint in hints if flags >= set(_FLAG.findall(hint))), None)
    return f"{text}: {hint}" if hint else text
