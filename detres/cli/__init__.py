"""The commands' arguments, a file each, read before any library is imported; what is done with them
is in detres.commands. Installed, they are the subcommands of `detres`.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from detres import __version__
from detres.console import accept_any_text, one_line, shortened, write_line

COMMANDS = {
    "train-cls": "train a classifier, or pretrain a backbone",
    "train-det": "train a Faster R-CNN; for short: detres train DATA",
    "train-loc": "train a localiser: a per-class RPN, or R-CNN on its proposals",
    "eval": "evaluate weights or a detections file",
    "check-data": "look for what is wrong with annotated data, before training on them",
    "predict": "detect in images and draw what was found",
    "convert-data": "write annotated images of any format as COCO JSON",
    "convert": "make our weights of a detector of torchvision or detectron2",
    "settings": "list the settings: values, defaults, meaning",
    "reproduce": "list the paper's tables, what was measured of them here, and how it is",
    "replay": "say which image, box or layer is at fault where a training failed",
    "plot": "draw error curves and layer responses",
    "benchmark": "time parts of the toolkit against other libraries",
    "compare-torchvision": "train the detector and one made of torchvision's parts by the same "
    "loop",
}

SHORT = {"train": "train-det"}
"""Short for a command -> it."""

_OTHER_NAMES = {
    "train": "fit finetune fine-tune resume",
    "eval": "val valid validate evaluate test score",
    "predict": "detect infer inference demo classify",
    "benchmark": "bench time",
}
"""Command -> what other tools call it."""


def main() -> int:
    """Run `detres COMMAND ...` as tools/COMMAND.py would be."""
    if sys.argv[1:] == ["--version"]:
        write_line(f"detres {__version__}")
        return 0
    if sys.argv[1:] == ["--list"]:
        return importlib.import_module("detres.cli.listing").main()
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS | SHORT:
        asked_for_help = sys.argv[1:] in ([], ["-h"], ["--help"])
        if not asked_for_help:
            accept_any_text()
            near = _nearest(sys.argv[1])
            write_line(
                f"unknown command '{shortened(one_line(sys.argv[1]))}'"
                + (f", did you mean {near}?" if near else ""),
                sys.stderr,
            )
        width = max(map(len, COMMANDS))
        write_line(
            "usage: detres COMMAND [ARGUMENTS]\n       detres --version\n       detres --list\n"
        )
        for name, what in COMMANDS.items():
            write_line(f"  {name:<{width}}  {what}")
        return 0 if asked_for_help else 2
    name = sys.argv.pop(1)
    sys.argv[0] = f"detres {name}"
    module = SHORT.get(name, name).replace("-", "_")
    return importlib.import_module(f"detres.cli.{module}").main()


def _nearest(given: str) -> str | None:
    """The command that is spelt most like `given`, or that other tools call so."""
    names = {name: name for name in (*COMMANDS, *SHORT)}
    names |= {other: name for name, others in _OTHER_NAMES.items() for other in others.split()}
    near = difflib.get_close_matches(given, names, n=1)
    return names[near[0]] if near else None
