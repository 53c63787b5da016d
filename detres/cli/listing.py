"""`detres --list`: the published detectors that are known by name."""

from __future__ import annotations

from pathlib import Path

from detres.console import write_line
from detres.detection.published import PUBLISHED_DETECTORS, PublishedDetector, hub_folder

TITLES = ("name", "network", "as published", "size", "here", "licence")


def main() -> int:
    """Write a line for each; returns the exit status."""
    hub = hub_folder()
    rows = [TITLES, *(row_of(name, each, hub) for name, each in PUBLISHED_DETECTORS.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        write_line("  ".join(cells).rstrip())
    write_line(
        "\nconvert, predict and eval --weights, train-det --init-from and detres.load take a name, "
        f"and download its file once,\ninto {hub / 'checkpoints'}"
    )
    return 0


def row_of(name: str, entry: PublishedDetector, hub: Path) -> tuple[str, ...]:
    """Return what is said of a detector, under TITLES; hub: torch's hub cache."""
    size = "not published" if entry.size_mib is None else f"{entry.size_mib:.1f} MiB"
    published = f"{entry.score:.1f} {entry.metric}"
    return (
        name, f"{entry.backbone} {entry.layout}", published, size, _here(entry, hub), entry.licence
    )  # fmt: skip


def _here(entry: PublishedDetector, hub: Path) -> str:
    """Whether the file is in the cache, or what was made of it."""
    path = entry.path(hub)
    if path.is_file() or entry.converted_path(hub).is_file():
        return "yes"
    return "in part" if path.with_name(f"{path.name}.part").is_file() else "no"
