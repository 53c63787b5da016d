"""ILSVRC folders -> Annotations: coordinates, lists, synsets, and what bad files get."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from detres.config import check
from detres.detection.config import DataConfig
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.ilsvrc import (
    image_numbers,
    lists_overlap,
    read_ilsvrc,
    require_class_numbers,
)
from detres.detection.data.read import read_split
from detres.detection.structures import names_of
from detres.images.locate import OutsideFolderError
from tests.detection.data.test_voc import thing, xml

ACCORDION, DOG, KIT_FOX = "n02672831", "n02084071", "n02119789"
MAP = f"{ACCORDION} 1 accordion\n{DOG} 58 dog\n{KIT_FOX} 70 kit fox\n"
POSITIVE, NEGATIVE = "ILSVRC2013_train/n02084071/n02084071_7", "ILSVRC2013_train_extra0/x_1"
VAL = "ILSVRC2012_val_00000001"


def write(
    root: Path,
    task: str,
    files: dict[str, str | None],
    lists: dict[str, str],
    synset_map: str | None = MAP,
) -> Path:
    """Write a folder as it is downloaded: "part/image" -> XML (None: it has none), list -> text."""
    for name, text in files.items():
        for below, suffix, content in (("Annotations", "xml", text), ("Data", "JPEG", "")):
            path = root / below / task / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                path.write_text(content)
    (root / "ImageSets" / task).mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (root / "ImageSets" / task / f"{name}.txt").write_text(text)
    if synset_map is not None:
        (root / "devkit" / "data").mkdir(parents=True, exist_ok=True)
        (root / "devkit" / "data" / "map_det.txt").write_text(synset_map)
    return root


def det(tmp_path: Path, **more: object) -> Path:
    files = {
        f"train/{POSITIVE}": xml(thing(DOG, (0, 0, 99, 79)), thing(ACCORDION, (10, 20, 29, 59))),
        f"train/{NEGATIVE}": None,
        f"val/{VAL}": xml(thing(DOG, (5, 6, 14, 25), "")),
    }
    lists = {
        "train_1": f"{NEGATIVE} -1\n{POSITIVE} 1\n",
        "train_2": f"{POSITIVE} 0\n\n",
        "val": f"{VAL} 1\n",
    }
    return write(tmp_path / "ILSVRC", "DET", files, lists, **more)


def test_boxes_are_inclusive_and_count_from_zero(tmp_path: Path) -> None:
    result = read_ilsvrc(det(tmp_path), ["DET/train_1"])
    np.testing.assert_array_equal(result.boxes, [[0, 0, 100, 80], [10, 20, 30, 60]])
    assert result.areas.tolist() == [8000, 800]
    assert names_of(result.class_map, result.labels) == ["dog", "accordion"]
    assert result.image_ids.tolist() == [POSITIVE]
    assert result.image_files.tolist() == [
        str(tmp_path / "ILSVRC" / "Data" / "DET" / "train" / f"{POSITIVE}.JPEG")
    ]
    assert result.image_sizes.tolist() == [[80, 100]]
    assert "1 lines are of images known to lack the class of the list (-1)" in result.notes[0]


def test_classes_have_the_names_the_order_and_the_numbers_of_the_map(tmp_path: Path) -> None:
    train = read_ilsvrc(det(tmp_path), ["DET/train_1"])
    val = read_ilsvrc(tmp_path / "ILSVRC", ["DET/val"])
    assert train.class_map.names == ("accordion", "dog", "kit fox")
    assert train.class_map.source_ids == (1, 58, 70)
    assert val.class_map == train.class_map
    some = read_ilsvrc(tmp_path / "ILSVRC", ["DET/train_1"], classes=["kit fox", "dog"])
    assert (some.class_map.names, some.class_map.source_ids) == (("kit fox", "dog"), (70, 58))
    assert some.labels.tolist() == [2]
    assert some.dropped == {"other class": 1}


@pytest.mark.parametrize("place", ["devkit/data", ".", ".."])
@pytest.mark.parametrize(
    ("text", "names", "ids"),
    [
        (f"{DOG}  3  dog\n\n{KIT_FOX}\t9 kit_fox\n", ("dog", "kit_fox"), (3, 9)),
        (f"{DOG} 1 crane\n{KIT_FOX} 2 crane\n", (f"crane ({DOG})", f"crane ({KIT_FOX})"), (1, 2)),
    ],
)
def test_the_map_is_found_and_read(
    tmp_path: Path, place: str, text: str, names: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    root = det(tmp_path, synset_map=None)
    (root / place).mkdir(parents=True, exist_ok=True)
    (root / place / "map_det.txt").write_text(text)
    found = read_ilsvrc(root, ["DET/val"]).class_map
    assert (found.names, found.source_ids) == (names, ids)


def test_without_a_map_classes_are_the_synsets_of_all_xml_files(tmp_path: Path) -> None:
    found = read_ilsvrc(det(tmp_path, synset_map=None), ["DET/val"])
    assert found.class_map.names == (DOG, ACCORDION)
    assert names_of(found.class_map, found.labels) == [DOG]


def test_lists_are_named_by_a_pattern_and_an_image_counts_once(tmp_path: Path) -> None:
    root = det(tmp_path)
    several = read_ilsvrc(root, ["DET/train_*", "DET/val"])
    assert several.image_ids.tolist() == [POSITIVE, VAL]
    assert several.offsets.tolist() == [0, 2, 3]


def test_an_image_without_a_file_has_no_objects(tmp_path: Path) -> None:
    root = det(tmp_path)
    (root / "ImageSets" / "DET" / "train.txt").write_text(f"{NEGATIVE} 1\n{POSITIVE} 2\n")
    result = read_ilsvrc(root, ["DET/train"])
    assert result.offsets.tolist() == [0, 0, 2]
    assert "1 of 2 images have no annotation file" in result.notes[0]
    (root / "ImageSets" / "DET" / "train_none.txt").write_text(NEGATIVE)
    with pytest.raises(FileNotFoundError, match="none of its images has an annotation file"):
        read_ilsvrc(root, ["DET/train_none"])


def test_the_test_images_have_no_files_at_all(tmp_path: Path) -> None:
    image = "ILSVRC2012_test_00000001"
    root = write(tmp_path, "DET", {f"test/{image}": None}, {"test": f"{image} 1"})
    result = read_ilsvrc(root, ["DET/test"])
    assert (len(result), result.num_objects, len(result.class_map)) == (1, 0, 3)
    assert result.without_truth == "no image of a test list has an annotation file"
    assert result.notes == ()
    assert read_ilsvrc(det(tmp_path / "other"), ["DET/val"]).without_truth is None


def test_the_localisation_task(tmp_path: Path) -> None:
    names = ["ILSVRC2012_val_00000007", "ILSVRC2012_val_00000036", "ILSVRC2012_val_00000360"]
    files = {f"val/{name}": xml(thing(KIT_FOX, (1, 2, 3, 4))) for name in names}
    files[f"train/{KIT_FOX}/{KIT_FOX}_36"] = xml(thing(KIT_FOX, (1, 2, 3, 4)))
    lists = {
        "val": "\n".join(f"{name} {n}" for n, name in enumerate(names, start=1)),
        "train_loc": f"{KIT_FOX}/{KIT_FOX}_36 1\n",
    }
    root = write(tmp_path, "CLS-LOC", files, lists, synset_map=None)
    (root / "LOC_synset_mapping.txt").write_text(
        f"{DOG} dog, domestic dog\n{KIT_FOX} kit fox, Vulpes macrotis\n"
    )
    result = read_ilsvrc(root, ["CLS-LOC/val"])
    assert result.class_map.names == (DOG, KIT_FOX)  # as the folders of ImageNet classification
    assert result.labels.tolist() == [2, 2, 2]
    (root / "devkit" / "data").mkdir(parents=True)
    blacklist = root / "devkit" / "data" / "ILSVRC2015_clsloc_validation_blacklist.txt"
    blacklist.write_text("36\n99\n")
    assert read_ilsvrc(root, ["CLS-LOC/val"]).image_ids.tolist() == [names[0], names[2]]
    assert "1 images are on the blacklist" in read_ilsvrc(root, ["CLS-LOC/val"]).notes[0]
    assert len(read_ilsvrc(root, ["CLS-LOC/train_loc"])) == 1
    blacklist.write_text("36 x\n")
    with pytest.raises(AnnotationError, match="blacklist"):
        read_ilsvrc(root, ["CLS-LOC/val"])


def test_a_box_that_ends_beyond_its_image_is_cut_for_training_only(tmp_path: Path) -> None:
    files = {"val/a": xml(thing(DOG, (90, 70, 100, 80))), "train/a": xml(thing(DOG, (1, 5, 0, 5)))}
    root = write(tmp_path, "DET", files, {"val": "a 1", "train": "a 1"})
    assert read_ilsvrc(root, ["DET/val"]).boxes.tolist() == [[90, 70, 100, 80]]
    kept = read_ilsvrc(root, ["DET/val"], box_policy="keep")
    assert kept.boxes.tolist() == [[90, 70, 101, 81]]
    assert read_ilsvrc(root, ["DET/train"]).dropped == {"box without area": 1}


def test_the_image_files_are_looked_for(tmp_path: Path) -> None:
    root = det(tmp_path)
    file = root / "Data" / "DET" / "val" / f"{VAL}.JPEG"
    file.rename(file.with_suffix(".jpeg"))
    found = read_ilsvrc(root, ["DET/val"])
    assert found.image_files.tolist() == [str(file.with_suffix(".jpeg"))]
    assert "spelt otherwise" in found.notes[0]
    file.with_suffix(".jpeg").unlink()
    with pytest.raises(FileNotFoundError, match=VAL):
        read_ilsvrc(root, ["DET/val"])
    assert read_ilsvrc(root, ["DET/val"], check_images=False).image_files.tolist() == [VAL]
    (root / "ImageSets" / "DET" / "val.txt").write_text("../../x 1")
    (root / "Annotations" / "DET" / "x.xml").write_text("no XML, and not looked at")
    with pytest.raises(OutsideFolderError, match="lies outside the image folder"):
        read_ilsvrc(root, ["DET/val"])


@pytest.mark.parametrize(
    ("splits", "error", "message"),
    [
        ([], AnnotationError, "TASK/LIST, such as DET/val or CLS-LOC/train_loc; given is none"),
        (["val"], AnnotationError, "given is 'val'"),
        (["DET"], AnnotationError, "given is 'DET'"),
        (["VID/val"], AnnotationError, "given is 'VID/val'"),
        (["DET/val", "CLS-LOC/val"], AnnotationError, "those of one task"),
        (["CLS-LOC/val"], FileNotFoundError, "no folder .*ImageSets/CLS-LOC"),
        (["DET/vla"], FileNotFoundError, r"no file .*vla\.txt; there are: train_1, train_2, val"),
        (["DET/fold"], AnnotationError, r"fold\.txt: a list is named after the folder"),
    ],
)
def test_splits_that_are_none(
    tmp_path: Path, splits: list[str], error: type[Exception], message: str
) -> None:
    root = det(tmp_path)
    if "fold" in str(splits):
        (root / "ImageSets" / "DET" / "fold.txt").write_text(VAL)
    with pytest.raises(error, match=message):
        read_ilsvrc(root, splits)


def test_a_folder_around_the_data_is_told(tmp_path: Path) -> None:
    det(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ILSVRC has one: give it as the data folder"):
        read_ilsvrc(tmp_path, ["DET/val"])


@pytest.mark.parametrize(
    ("line", "where"), [("a b c", "val.txt:2"), ("a one", "val.txt:2"), ("a 1.5", "val.txt:2")]
)
def test_a_list_that_is_none(tmp_path: Path, line: str, where: str) -> None:
    root = det(tmp_path)
    (root / "ImageSets" / "DET" / "val.txt").write_text(f"{VAL} 1\n{line}\n")
    with pytest.raises(AnnotationError, match=f"{where}: .*expected an image and"):
        read_ilsvrc(root, ["DET/val"])


def test_a_list_without_images(tmp_path: Path) -> None:
    root = det(tmp_path)
    (root / "ImageSets" / "DET" / "val.txt").write_text(f"{VAL} -1\n")
    with pytest.raises(AnnotationError, match="DET/val list no image"):
        read_ilsvrc(root, ["DET/val"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog 1 dog\n", r"map_det\.txt:1: .*expected a synset"),
        (f"{DOG}\n", r"map_det\.txt:1: .*expected a synset"),
        (f"{DOG} 1 dog\n{DOG} 2 dog\n", f"{DOG} is in it more than once"),
        (f"{DOG} 1 dog\n{KIT_FOX} 1 fox\n", "1 is in it more than once"),
    ],
)
def test_a_map_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_ilsvrc(det(tmp_path, synset_map=text), ["DET/val"])


def test_an_unknown_class_and_a_broken_file_are_named(tmp_path: Path) -> None:
    root = det(tmp_path)
    with pytest.raises(AnnotationError, match="has no class 'dogg'; did you mean 'dog'"):
        read_ilsvrc(root, ["DET/val"], classes=["dogg"])
    (root / "Annotations" / "DET" / "val" / f"{VAL}.xml").write_text("<annotation>")
    with pytest.raises(AnnotationError, match=f"{VAL}.xml is not well-formed XML"):
        read_ilsvrc(root, ["DET/val"])


def test_it_is_read_by_its_format(tmp_path: Path) -> None:
    tree = {"format": "ilsvrc", "root": str(det(tmp_path)), "train": ["DET/train_*"]}
    data = check(DataConfig, {**tree, "val": ["DET/val"]}, "test")
    assert read_split(data, "train").image_ids.tolist() == [POSITIVE]
    assert read_split(data, "val").image_ids.tolist() == [VAL]
    with pytest.raises(ValueError, match="format ilsvrc needs at least one entry"):
        check(DataConfig, tree, "test")
    with pytest.raises(ValueError, match=r"val_images does not apply to format ilsvrc.*Data"):
        check(DataConfig, {**tree, "val": ["DET/val"], "val_images": ["Data"]}, "test")


def test_images_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    files = {f"{part}/a": xml(thing(DOG, (0, 0, 9, 9))) for part in ("train", "val")}
    root = write(tmp_path, "DET", files, {"val": "a 1", "train": "a 1"})
    both = read_ilsvrc(root, ["DET/train", "DET/val"])
    assert both.image_ids.tolist() == ["train/a", "val/a"]
    assert both.told_apart
    assert "told apart by their folder" in both.notes[-1]
    assert not read_ilsvrc(root, ["DET/val"]).told_apart


def listed(tmp_path: Path, text: str, name: str = "test") -> Path:
    (tmp_path / "ImageSets" / "DET").mkdir(parents=True, exist_ok=True)
    (tmp_path / "ImageSets" / "DET" / f"{name}.txt").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "numbers"),
    [
        ("test", "b 1\na 2\n\nc 3\n", {"b": 1, "a": 2, "c": 3}),
        ("test", "b\n\na\n", {"b": 1, "a": 2}),
        ("val2", "x/b 7\nx/a 3\n", {"x/b": 7, "x/a": 3}),  # a part keeps the numbers of its whole
        ("val2", "b\na\n", {"b": 1, "a": 2}),
        ("val", "", {}),
    ],
)
def test_the_numbers_of_images(
    tmp_path: Path, name: str, text: str, numbers: dict[str, int]
) -> None:
    found = image_numbers(listed(tmp_path, text, name), f"DET/{name}")
    assert found == numbers
    assert list(found) == list(numbers)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("test", "a 1\nb\nc 3\n", r"test\.txt:2: 'b' has no number, and results refer to an image"),
        ("test", "a\n\nb 2\n", r"test\.txt:1: 'a' has no number"),
        ("test", "a 1\nb -1\n", r"test\.txt:2: 'b' has the number -1, and results refer"),
        ("test", "a 0\nb 1\n", r"test\.txt:1: 'a' has the number 0"),
        ("test", "a 1\nb 3\n", r"test\.txt:2: 'b' has the number 3, expected 2: the images of a"),
        ("val", "b 2\na 1\n", r"val\.txt:1: 'b' has the number 2, expected 1"),
        ("test", "a 1\n\nb 1\n", r"test\.txt:3: 'b' has the number 1, as 'a'"),
        ("val2", "a 5\nb 5\n", r"val2\.txt:2: 'b' has the number 5, as 'a'"),
        ("test", "a 1\na 2\n", r"test\.txt:2: 'a' is in it more than once"),
        ("test", "a\na\n", r"test\.txt:2: 'a' is in it more than once"),
        ("test", "a 1\nb two\n", r"test\.txt:2: 'b two', expected an image and"),
        ("test", f"a 1\nb {'9' * 5000}\n", r"test\.txt:2: .*expected an image and"),
    ],
)
def test_numbers_that_results_could_not_refer_to(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        image_numbers(listed(tmp_path, text, name), f"DET/{name}")
    assert len(str(caught.value)) < 500


def test_the_numbers_of_no_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"DET/tst\.txt"):
        image_numbers(listed(tmp_path, "a 1"), "DET/tst")


@pytest.mark.parametrize(
    ("task", "file", "text", "message"),
    [
        ("DET", "map_det.txt", MAP, None),
        ("DET", "map_det.txt", f"{DOG} 200 dog\n", None),
        ("CLS-LOC", "map_clsloc.txt", f"{DOG} 201 dog\n{KIT_FOX} 1000 kit_fox\n", None),
        ("DET", "map_det.txt", f"{DOG} 201 dog\n", "the number 201, expected the devkit's 1..200"),
        ("DET", "map_det.txt", f"{DOG} 0 dog\n", "n02084071 the number 0, expected the devkit's"),
        ("CLS-LOC", "map_clsloc.txt", f"{DOG} 1001 dog", "the number 1001, expected .* 1..1000"),
        ("DET", "map_det.txt", f"{DOG} 1 dog\n{KIT_FOX} fox\n", "knows classes by the numbers of"),
        (
            "CLS-LOC",
            "map_det.txt",
            MAP,
            "by the numbers of map_clsloc.txt, which is not there: put",
        ),
        # Kaggle's is in another order than the server's, and has no numbers
        (
            "CLS-LOC",
            "LOC_synset_mapping.txt",
            f"{DOG} dog, domestic dog",
            "of the devkit into .*data",
        ),
        ("DET", None, "", "by the numbers of map_det.txt, which is not there"),
    ],
)
def test_classes_have_the_servers_numbers_or_are_refused(
    tmp_path: Path, task: str, file: str | None, text: str, message: str | None
) -> None:
    root = tmp_path / "ILSVRC"
    (root / "devkit" / "data").mkdir(parents=True)
    if file:
        (root / "devkit" / "data" / file).write_text(text)
    if message is None:
        require_class_numbers(root, task)
        return
    with pytest.raises(AnnotationError, match=message):
        require_class_numbers(root, task)


def test_two_patterns_overlap_exactly_where_a_name_fits_both() -> None:
    words = ["".join(letters) for size in range(5) for letters in product("ab", repeat=size)]
    patterns = ["".join(letters) for size in range(1, 4) for letters in product("ab*", repeat=size)]
    for one, other in product(patterns, repeat=2):
        both = any(fnmatchcase(word, one) and fnmatchcase(word, other) for word in words)
        assert lists_overlap(f"DET/{one}", f"DET/{other}") == both, (one, other)
