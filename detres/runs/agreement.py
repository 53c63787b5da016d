"""What the processes of one training must have alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from detres.config import Section, by_key
from detres.engine.distributed import Group
from detres.runs.fingerprint import Fingerprint


def require_same_everywhere(group: Group, config: Section, data: Mapping[str, Fingerprint]) -> None:
    """Raise ValueError in the first process of the group, ElsewhereError in the others, where they
    have another `config` than the first, but for data.root, or other `data`, by split.
    """
    settings = by_key(config.model_dump(mode="json"))
    settings.pop("data.root", None)
    records = {name: found.records for name, found in data.items()}
    with group.together():
        others = enumerate(group.gather((settings, records)))
        if not group.is_first:
            return
        for rank, (other, other_records) in others:
            keys = sorted(key for key in settings if settings[key] != other.get(key))
            if keys:
                raise ValueError(
                    f"process {rank} has {keys[0]} {other.get(keys[0])}, the first one "
                    f"{settings[keys[0]]}: start all with the same settings"
                )
            for name, own in records.items():
                if not torch.equal(own, other_records[name]):
                    raise ValueError(
                        f"process {rank} reads other data as {name} than the first one: give all "
                        "the same"
                    )
