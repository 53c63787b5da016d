from __future__ import annotations

import pytest

from detres.class_map import ClassMap, ClassMismatchError
from tests.helpers import CLASSES


def test_class_map_goes_all_ways():
    assert [CLASSES.name_of(k) for k in (0, 1, 2)] == ["cat", "dog", "owl"]
    assert [CLASSES.source_id_of(k) for k in (0, 1, 2)] == [3, 7, 90]
    assert CLASSES.index_of_name("owl") == 2
    assert ClassMap.from_dict(CLASSES.to_dict()) == CLASSES
    assert len(CLASSES) == 3


@pytest.mark.parametrize("index", [3, -1, 99])
def test_there_is_no_name_or_source_id_beyond_the_classes(index):
    for look_up in (CLASSES.name_of, CLASSES.source_id_of):
        with pytest.raises(IndexError, match=rf"class index {index} is outside 0\.\.2"):
            look_up(index)


def test_unknown_names_list_the_known():
    with pytest.raises(KeyError, match="cat, dog, owl"):
        CLASSES.index_of_name("Cat")


def test_classes_known_by_their_names_are_numbered_from_one():
    named = ClassMap.of_names(["cat", "dog"])
    assert named == ClassMap(("cat", "dog"), (1, 2))
    with pytest.raises(ValueError, match="name cat is given to more than one class"):
        ClassMap.of_names(["cat", "dog", "cat"])


def test_only_numbers_make_gaps():
    """What begins alike is a class of somebody's own, and what is found of it is kept."""
    named = ClassMap(("cat", "N/A 5", "N/A", "N/A sign", "N/A ", "N/A 12"), (1, 5, 7, 8, 9, 13))
    assert named.gaps == (1, 5)
    assert CLASSES.gaps == ()


def test_no_classes_have_no_index():
    none = ClassMap.of_names([])
    assert len(none) == 0
    assert ClassMap.from_dict(none.to_dict()) == none
    with pytest.raises(IndexError):
        none.name_of(0)


@pytest.mark.parametrize(("names", "ids", "message"), [
    (("a", "a"), (1, 2), "name a is given"),
    (("a", "b"), (1, 1), "source id 1 is given"),
    (("a", "b"), (1,), "2 names but 1"),
])  # fmt: skip
def test_a_class_map_is_unambiguous(names, ids, message):
    with pytest.raises(ValueError, match=message):
        ClassMap(names, ids)


@pytest.mark.parametrize("key", ["names", "source_ids"])
def test_a_dict_without_a_key_is_refused(key):
    value = CLASSES.to_dict()
    del value[key]
    with pytest.raises(KeyError, match=key):
        ClassMap.from_dict(value)


def test_a_mismatch_prints_both_lists():
    other = ClassMap(("cat", "dog"), (3, 7))
    CLASSES.require_same(ClassMap.from_dict(CLASSES.to_dict()), "a", "b")
    with pytest.raises(ClassMismatchError) as caught:
        CLASSES.require_same(other, "weights.safetensors", "val.json")
    assert "weights.safetensors (3): 3=cat, 7=dog, 90=owl" in str(caught.value)
    assert "val.json (2): 3=cat, 7=dog" in str(caught.value)


def test_a_long_class_list_is_told_by_what_differs() -> None:
    names = tuple(f"c{n:02d}" for n in range(30))
    full = ClassMap(names, tuple(range(1, 31)))
    lacking = ClassMap(names[:4] + names[5:], tuple(range(1, 30)))
    with pytest.raises(ClassMismatchError) as caught:
        full.require_same(lacking, "train", "val")
    assert "train (30): only here: 5=c04\n  val (29): only here: none" in str(caught.value)
    swapped = ClassMap((names[1], names[0], *names[2:]), tuple(range(1, 31)))
    with pytest.raises(ClassMismatchError) as caught:
        full.require_same(swapped, "train", "val")
    assert "train (30): the same names, with other ids: 1=c00, 2=c01\n" in str(caught.value)
    shifted = ClassMap(names, tuple(range(2, 32)))
    with pytest.raises(ClassMismatchError, match=r"20=c19 and 10 more"):
        full.require_same(shifted, "train", "val")


def test_many_classes_are_looked_up_in_linear_time():
    """So many that looking through all names for each would never end."""
    names = [f"c{n}" for n in range(300_000)]
    many = ClassMap.of_names(names)
    assert [many.index_of_name(name) for name in names] == list(range(300_000))
    with pytest.raises(KeyError) as caught:
        many.index_of_name("other")
    assert len(str(caught.value)) < 300


def test_its_repr_is_a_line_however_many_classes_there_are():
    assert repr(CLASSES) == "ClassMap(3: ('cat', 'dog', 'owl'))"
    assert repr(ClassMap.of_names([])) == "ClassMap(0: ())"
    many = ClassMap.of_names([f"class\n{n}" * 20 for n in range(1000)])
    assert repr(many).startswith("ClassMap(1000: (")
    assert "\n" not in repr(many)
    assert len(repr(many)) < 300
