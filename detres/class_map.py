"""The classes of a data set: index, name, and the id its own files use."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


class ClassMismatchError(ValueError):
    """Two class lists that had to be the same are not."""


GAP = "N/A "
"""How the name of a class begins, before a number, that is none: an output that a detector has for
an id that nothing has, as torchvision's have for those that COCO leaves out.
"""

LISTED_CLASSES = 20
"""Of longer class lists a message names what differs."""


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set: index k, 0..K-1, has name `names[k]` and source id
    `source_ids[k]`.

    Built from the data and carried by every checkpoint and predictions file. `source_ids` are what
    the data set's own files use (COCO: sparse category ids; where they use names, 1..K). A
    classifier's labels are these indices; a detector, whose label 0 is background, has its own
    (detres.detection.structures.label_of). Raises ValueError on duplicates or unequal lengths.
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.source_ids):
            raise ValueError(
                f"ClassMap: {len(self.names)} names but {len(self.source_ids)} source ids"
            )
        for what, values in (("name", self.names), ("source id", self.source_ids)):
            repeated = sorted(str(v) for v, count in Counter(values).items() if count > 1)
            if repeated:
                raise ValueError(
                    f"ClassMap: {what} {', '.join(repeated[:LISTED_CLASSES])} is given to more "
                    "than one class"
                )

    def __repr__(self) -> str:
        return f"ClassMap({len(self)}: {reprlib.repr(self.names)})"

    @classmethod
    def of_names(cls, names: Sequence[str]) -> ClassMap:
        """Return the map of classes whose files use their names: source ids are 1..K."""
        return cls(tuple(names), tuple(range(1, len(names) + 1)))

    def __len__(self) -> int:
        return len(self.names)

    def name_of(self, index: int) -> str:
        """Return the name of class `index`; raises IndexError outside 0..K-1."""
        return self.names[self._checked(index)]

    def source_id_of(self, index: int) -> int:
        """Return the data set's own id of class `index`; raises IndexError outside 0..K-1."""
        return self.source_ids[self._checked(index)]

    def index_of_name(self, name: str) -> int:
        """Return the index of a class name; raises KeyError naming the known classes."""
        if name not in self._indices:
            more = ", ..." if len(self) > LISTED_CLASSES else ""
            known = ", ".join(self.names[:LISTED_CLASSES]) + more
            raise KeyError(f"unknown class '{name}', expected one of: {known}")
        return self._indices[name]

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def gaps(self) -> tuple[int, ...]:
        """The indices of classes that are none, see GAP: no data have them."""
        return tuple(
            index
            for index, name in enumerate(self.names)
            if name.startswith(GAP) and name.removeprefix(GAP).isdecimal()
        )

    def require_same(self, other: ClassMap, mine: str, theirs: str) -> None:
        """Raise ClassMismatchError printing both lists unless `other` is equal; `mine` and `theirs`
        say where each is from.
        """
        if self != other:
            raise ClassMismatchError(
                "the class lists differ: complete the one that lacks a class, or choose among them "
                f"(classes); a trained model keeps its own:\n  {mine} ({len(self)}): "
                f"{self._listing(other)}\n  {theirs} ({len(other)}): {other._listing(self)}"
            )

    def to_dict(self) -> dict[str, list]:
        """Return plain lists for JSON, YAML and checkpoints."""
        return {"names": list(self.names), "source_ids": list(self.source_ids)}

    @classmethod
    def from_dict(cls, value: dict[str, list]) -> ClassMap:
        """Rebuild from `to_dict`; raises KeyError when a key is missing."""
        return cls(tuple(value["names"]), tuple(value["source_ids"]))

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.names):
            raise IndexError(f"class index {index} is outside 0..{len(self.names) - 1}")
        return index

    def _listing(self, other: ClassMap) -> str:
        """All classes with their ids; of many, those that `other` does not have, or has under other
        ids.
        """
        own = dict(zip(self.names, self.source_ids, strict=True))
        there = dict(zip(other.names, other.source_ids, strict=True))
        if len(own) <= LISTED_CLASSES:
            return ", ".join(f"{i}={name}" for name, i in own.items())
        if own.keys() == there.keys():
            what, differing = (
                "the same names, with other ids:",
                [name for name, i in own.items() if there[name] != i],
            )
        else:
            what, differing = "only here:", [name for name in own if name not in there]
        shown = ", ".join(f"{own[name]}={name}" for name in differing[:LISTED_CLASSES])
        more = (
            f" and {len(differing) - LISTED_CLASSES} more"
            if len(differing) > LISTED_CLASSES
            else ""
        )
        return f"{what} {shown or 'none'}{more}"
