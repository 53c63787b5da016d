"""Make our weights of a detector that others trained: `convert model_final.pkl --out FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detres.cli.flags import notice, say
from detres.console import plural
from detres.detection.import_weights import import_detector
from detres.detection.named_weights import published_file
from detres.detection.published import PUBLISHED_DETECTORS
from detres.detection.weights_file import save_detector

NAMED = 10
"""Of more classes the first are said."""


def convert(arguments: argparse.Namespace) -> None:
    """Read the detector, of a file or a published name, say what it is, and write it; raises what
    published_file and import_detector raise, ValueError for an --out that is there.
    """
    out = Path(arguments.out)
    if out.exists():
        raise ValueError(f"--out {out} is there and is left as it is; give another file")
    source = Path(arguments.source)
    if arguments.source in PUBLISHED_DETECTORS and not source.exists():
        source = published_file(arguments.source, offline=arguments.offline)
    imported = import_detector(source, arguments.classes)
    for note in imported.notes:
        notice(note)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_detector(out, imported.detector, imported.config, imported.class_map, step=0)
    model, names = imported.config.model, imported.class_map.names
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    say(
        f"{model.backbone.name}, layout {model.layout}, {plural(len(names), 'class', 'classes')}: "
        f"{', '.join(names[:NAMED])}{more}"
    )
    say(f"written: {out}; predict with it, or train it further: --init-from {out}")
