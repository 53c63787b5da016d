"""Reading many files or records: all that is wrong with them is said at once, not the first of it
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from detres.detection.data.box_policy import FaultyFilesError
from detres.waiting import counted

LISTED = 10
"""Of what cannot be read, so much is named, a line each."""

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_each(
    items: Sequence[Item], read: Callable[[Item], Read], unit: str = "annotation files"
) -> list[Read]:
    """Return what `read` makes of each of the items; how far it is is shown where it takes long.

    unit: what the items are, in the plural, for messages. Where `read` raises
    ValueError or OSError for one item, that is raised once the others are read; for several,
    FaultyFilesError, which says how many and gives the messages of the first LISTED.
    """
    done, faults = [], []
    for item in counted(items, f"reading {unit}", unit):
        try:
            done.append(read(item))
        except (ValueError, OSError) as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        listed = [f"  {fault}" for fault in faults[:LISTED]]
        if len(faults) > LISTED:
            listed.append(f"  and {len(faults) - LISTED} more")
        head = f"{len(faults)} of {len(items)} {unit} cannot be used:"
        raise FaultyFilesError("\n".join([head, *listed]), [str(fault) for fault in faults])
    return done
