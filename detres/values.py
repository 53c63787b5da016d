"""Values of annotations as exporters write them: one rule for flags, integers and numbers, whatever
the format of the file.

Each function returns None for a value it cannot read without guessing; the caller, who knows the
record, says so.
"""

from __future__ import annotations

import math
import re

FLAG = "0, 1, true or false"
INTEGER = "an integer of 64 bits"
NUMBER = "a number"
"""What was expected, for messages."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}(\.0*)?", re.ASCII)
_NUMBER = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|inf|infinity)",
    re.ASCII | re.IGNORECASE,
)
_WORDS = {"true": True, "false": False, "": False, "unspecified": False}
_EXACT = 2**53
"""Up to here every whole float stands for one integer."""


def flag_of(value: object) -> bool | None:
    """Return a flag such as COCO's iscrowd and VOC's difficult.

    Set: 1, 1.0, true, and the same as text ("1", " true "). Not set: 0, 0.0, false, the same as
    text, and what is missing: null, no text, and "Unspecified", which VOC 2007 and tools after it
    write for what nobody looked at. Anything else, 2 too, is no flag: pycocotools and
    py-faster-rcnn would take it as set, but what was meant is not known.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    number = number_of(value)
    return bool(number) if number in (0, 1) else None


def integer_of(value: object) -> int | None:
    """Return an integer of 64 bits: 12, 12.0, "12", " 12.0 "; a boolean, a float beyond 2^53, which
    stands for several integers, and text of another form are none.
    """
    if type(value) is str and _INTEGER.fullmatch(value.strip()):
        value = int(value.strip().partition(".")[0])
    if type(value) is float and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def number_of(value: object) -> float | None:
    """Return a number as a float: 1.5, 12, "1.5", " -2e3 "; "nan" and "inf" are numbers, and an
    integer beyond every float is infinite; a boolean is none.
    """
    if type(value) is str and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if type(value) not in (int, float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
