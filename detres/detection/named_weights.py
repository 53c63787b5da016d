"""The weights of a detector by its published name: downloaded once, converted once, both kept in
torch's hub cache.
"""

from __future__ import annotations

from pathlib import Path

import torch

from backbones.download import Checksum, DownloadError, download
from detres.config import Notice
from detres.detection.import_weights import import_detector
from detres.detection.published import PUBLISHED_DETECTORS, fault_of_name
from detres.detection.weights_file import save_detector
from detres.files import CheckpointError
from detres.runs.weights import find_weights
from detres.waiting import counting_bytes


def weights_called(
    file_or_name: str | Path, *, offline: bool = False, notice: Notice = lambda _: None
) -> Path:
    """Return the weights file that is meant: of a published detector our weights of it, made when
    they are first asked for, else what find_weights finds; a path that is there comes first.

    offline: nothing is downloaded. notice: called with what is done, a line each. Raises
    CheckpointError for a name like a published one that is none, and where our weights cannot be
    written, as beside a file in a cache that is shared; and what published_file, import_detector
    and find_weights raise.
    """
    name = str(file_or_name)
    if Path(name).exists():
        return find_weights(file_or_name)
    if fault := fault_of_name(name):
        raise CheckpointError(fault)
    if name not in PUBLISHED_DETECTORS:
        return find_weights(file_or_name)
    path = PUBLISHED_DETECTORS[name].converted_path(_hub())
    if path.is_file():
        return path
    imported = import_detector(published_file(name, offline=offline))
    for note in imported.notes:
        notice(note)
    try:
        save_detector(path, imported.detector, imported.config, imported.class_map, step=0)
    except OSError as error:
        raise CheckpointError(
            f"{name}: our weights of it cannot be kept at {path} ({error.strerror}); `convert "
            f"{name} --out FILE.safetensors` writes them elsewhere, and FILE is given in its place"
        ) from None
    return path


def published_file(name: str, *, offline: bool = False) -> Path:
    """Return the file of the published detector `name` as its publisher made it, downloaded into
    torch's hub cache where it is not there; how far that is shows on standard error.

    offline: nothing is downloaded. Raises CheckpointError, with where the file can be put by hand,
    when it is not there offline, cannot be fetched or is another than was published; OSError naming
    it when it cannot be written.
    """
    entry = PUBLISHED_DETECTORS[name]
    path, checksum = entry.path(_hub()), Checksum(entry.digest, entry.digest_prefix)
    if path.is_file():
        fault = checksum.fault_of(path)
        if fault is not None:
            raise CheckpointError(
                f"{path} is not the file of {name}: {fault}. It is damaged or another one: remove "
                f"it, and it is fetched again, or put {entry.url} there"
            )
        return path
    if offline:
        raise CheckpointError(
            f"{name} is not here, and offline nothing is downloaded: it would be {path}; put the "
            f"file of {entry.url} there"
        )
    size = None if entry.size_mib is None else round(entry.size_mib * 2**20)
    try:
        with counting_bytes(f"downloading {entry.url}", size) as report:
            download(entry.url, path, checksum, report)
    except DownloadError as error:
        raise CheckpointError(f"{name}: {error}. By hand, put that file at {path}") from None
    return path


def _hub() -> Path:
    return Path(torch.hub.get_dir())
