"""Every key with what it takes, its default and its meaning, read from the Sections."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from detres.classification.config import ClassificationConfig
from detres.config import Section
from detres.detection.config import DetectionConfig
from detres.detection.localisation.config import LocalisationConfig
from detres.settings_table import Setting, settings_of


class Inner(Section):
    """Inside."""

    kind: Literal["one", "two"] | None = "one"
    # px, of which
    # one is drawn
    sides: tuple[Annotated[int, Field(ge=1, le=2**40)], ...] = (3, 4)  # empty: none


class Outer(Section):
    """Outside."""

    renamed: ClassVar[dict[str, str]] = {"old": "rate"}

    # about something else

    rate: Annotated[float, Field(gt=0, le=2.5)] = 1 / 3  # "#" is no comment here: '#'
    pair: tuple[float, bool]
    inner: Inner = Inner()
    both: bool | Literal["auto"] = "auto"


class Narrower(Outer):
    """Another default, and another meaning of one key."""

    rate: Annotated[float, Field(ge=0, lt=1)] = 0.5  # halves
    pair: tuple[float, bool] = (1.0, True)


def test_each_key_has_its_values_default_and_the_comments_above_and_beside_it() -> None:
    assert settings_of(Outer, "at.") == [
        Setting("at.rate", "number > 0, <= 2.5", "0.3333", "\"#\" is no comment here: '#'"),
        Setting("at.pair", "[number, true | false]", None, ""),
        Setting("at.inner.kind", "one | two | null", "one", ""),
        Setting(
            "at.inner.sides",
            "list of integer >= 1",
            "[3, 4]",
            "px, of which one is drawn; empty: none",
        ),
        Setting("at.both", "true | false | auto", "auto", ""),
    ]


def test_a_section_made_of_another_has_its_meanings_but_where_it_has_its_own() -> None:
    rate, pair, *_ = settings_of(Narrower)
    assert [setting.required for setting in settings_of(Outer)[:2]] == [False, True]
    assert rate == Setting("rate", "number >= 0, < 1", "0.5", "halves")
    assert pair == Setting("pair", "[number, true | false]", "[1, true]", "")


@pytest.mark.parametrize("kind", [DetectionConfig, ClassificationConfig, LocalisationConfig])
def test_every_setting_of_the_toolkit_says_what_it_means(kind: type[Section]) -> None:
    settings = settings_of(kind)
    assert [setting.key for setting in settings if not setting.meaning] == []
    assert len({setting.key for setting in settings}) == len(settings) > 30
