from __future__ import annotations

import math

import numpy as np
import pytest

from detres.values import flag_of, integer_of, number_of


@pytest.mark.parametrize("value", [1, 1.0, True, "1", " 1 ", "1.0", "true", "True", " TRUE "])
def test_flags_that_are_set(value):
    assert flag_of(value) is True


@pytest.mark.parametrize(
    "value",
    [0, 0.0, -0.0, False, "0", " 0\n", "0.0", "false", "False", None, "", "  ", "Unspecified"],
)
def test_flags_that_are_not_set_or_missing(value):
    assert flag_of(value) is False


@pytest.mark.parametrize(
    "value", [2, -1, 0.5, "2", "-1", "01x", "yes?", "maybe", [], [0], {}, math.nan, "nan", 10**400]
)
def test_what_is_no_flag(value):
    assert flag_of(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12, 12),
        (-3, -3),
        (12.0, 12),
        ("12", 12),
        (" 12.0 ", 12),
        ("+7", 7),
        ("-7.", -7),
        ("000000000139", 139),
        (2**63 - 1, 2**63 - 1),
        (str(2**63 - 1), 2**63 - 1),  # more digits than a float has
        (float(2**53), 2**53),
        (True, None),
        (12.5, None),
        ("12.5", None),
        ("1e3", None),
        ("1_000", None),
        ("\u0661", None),
        ("", None),
        (2**63, None),
        (10**400, None),
        ("9" * 400, None),
        (float(2**53) * 2, None),
        (math.nan, None),
        (math.inf, None),
        (None, None),
        ([1], None),
    ],
)
def test_integers(value, expected):
    assert integer_of(value) == expected
    assert type(integer_of(value)) is type(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1.5),
        (12, 12.0),
        ("1.5", 1.5),
        (" -2e3 ", -2000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("inf", math.inf),
        (10**400, math.inf),
        (-(10**400), -math.inf),
        (True, None),
        ("1,5", None),
        ("1_0", None),
        ("0x10", None),
        ("", None),
        (None, None),
        ([1.0], None),
    ],
)
def test_numbers(value, expected):
    assert number_of(value) == expected
    assert type(number_of(value)) is type(expected)


def test_nan_is_a_number_for_the_box_policy_to_judge():
    assert math.isnan(number_of(math.nan))
    assert math.isnan(number_of("NaN"))


def test_text_of_a_number_is_the_number():
    rng = np.random.default_rng(0)
    for value in (rng.normal(size=200) * 10.0 ** rng.integers(-9, 9, 200)).tolist():
        assert number_of(repr(value)) == value
    for value in rng.integers(-(2**62), 2**62, 200).tolist():
        assert integer_of(f" {value} ") == value
