"""What a folder is taken for, and the one answer where that cannot be told. No image is opened, so
image files here are empty.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from detres.config import with_overrides
from detres.detection.config import DataConfig
from detres.detection.data.recognise import UnrecognisedDataError, recognise

XML = "<annotation><object/></annotation>"
LABEL = "0 0.5 0.5 0.2 0.2\n"
LABELME = json.dumps({"version": "5", "shapes": [], "imagePath": "a.jpg", "imageData": None})
CSV = "filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,4\n"


def coco(*names: str) -> str:
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]})


def tree(root: Path, files: dict[str, str] | list[str]) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name] if isinstance(files, dict) else "")
    return root


CASES = {
    "VOC's folder": (
        {"ImageSets/Main/train.txt": "a", "ImageSets/Main/val.txt": "b", "Annotations/a.xml": XML},
        {"format": "voc", "train": ["train"], "val": ["val"]},
    ),
    "VOC's own parts are one, its test set stays one": (
        {"V/ImageSets/Main/trainval.txt": "a", "V/ImageSets/Main/test.txt": "b"},
        {"format": "voc", "train": ["V/trainval"], "test": ["V/test"], "val_share": 0.2},
    ),
    "trainval is not needed where it is divided": (
        {f"ImageSets/Main/{name}.txt": "a" for name in ("train", "val", "trainval", "dog_train")},
        {"format": "voc", "train": ["train"], "val": ["val"]},
    ),
    "an empty list is none": (
        {"ImageSets/Main/train.txt": "a", "ImageSets/Main/val.txt": ""},
        {"format": "voc", "train": ["train"], "val_share": 0.2},
    ),
    "years of a devkit together": (
        {
            f"VOC{y}/ImageSets/Main/{name}.txt": "a"
            for y in (2007, 2012)
            for name in ("train", "val")
        },
        {
            "format": "voc",
            "train": ["VOC2007/train", "VOC2012/train"],
            "val": ["VOC2007/val", "VOC2012/val"],
        },
    ),
    "the only list, whatever its name": (
        {"ImageSets/Main/default.txt": "a"},
        {"format": "voc", "train": ["default"], "val_share": 0.2},
    ),
    "XML beside images": (
        {"a.jpg": "", "a.xml": XML, "b.jpg": ""},
        {"format": "xml", "train": ["."], "val_share": 0.2},
    ),
    "XML in a folder a split": (
        {
            f"{split}/{name}": XML
            for split in ("train", "valid", "test")
            for name in ("a.jpg", "a.xml")
        },
        {"format": "xml", "train": ["train"], "val": ["valid"], "test": ["test"]},
    ),
    "XML and images in trees of their own": (
        {
            "labels/train/x/a.xml": XML,
            "labels/train/y/b.xml": XML,
            "labels/val/c.xml": XML,
            "photos/train/x/a.jpg": "",
            "photos/train/y/b.jpg": "",
            "photos/val/c.jpg": "",
        },
        {
            "format": "xml",
            "train": ["labels/train"],
            "train_images": ["photos/train"],
            "val": ["labels/val"],
            "val_images": ["photos/val"],
        },
    ),
    "the folder of the same split, where stems repeat": (
        {f"{kind}/{split}/a.{kind}": XML for kind in ("xml", "jpg") for split in ("train", "val")},
        {
            "format": "xml",
            "train": ["xml/train"],
            "train_images": ["jpg/train"],
            "val": ["xml/val"],
            "val_images": ["jpg/val"],
        },
    ),
    "XML that names its images": (
        {
            "notes/1.xml": "<annotation><filename>IMG 7.jpg</filename></annotation>",
            "all/IMG 7.jpg": "",
        },
        {"format": "xml", "train": ["notes"], "train_images": ["all"], "val_share": 0.2},
    ),
    "one COCO file": (
        {"labels.json": coco("a.jpg"), "photos/a.jpg": ""},
        {"format": "coco", "train": ["labels.json"], "train_images": ["photos"], "val_share": 0.2},
    ),
    "COCO's own folder": (
        {
            "annotations/instances_train2017.json": coco("1.jpg"),
            "annotations/instances_val2017.json": coco("1.jpg"),
            "annotations/person_keypoints_train2017.json": coco("1.jpg"),
            "annotations/captions_val2017.json": json.dumps({"images": [], "annotations": []}),
            "train2017/1.jpg": "",
            "val2017/1.jpg": "",
        },
        {
            "format": "coco",
            "train": ["annotations/instances_train2017.json"],
            "train_images": ["train2017"],
            "val": ["annotations/instances_val2017.json"],
            "val_images": ["val2017"],
        },
    ),
    "file names with folders": (
        {"train.json": coco("images/a.jpg"), "val.json": coco("images/b.jpg")}
        | {"images/a.jpg": "", "images/b.jpg": ""},
        {
            "format": "coco",
            "train": ["train.json"],
            "train_images": ["."],
            "val": ["val.json"],
            "val_images": ["."],
        },
    ),
    "Roboflow's COCO": (
        {
            f"{split}/{name}": coco("a.jpg")
            for split in ("train", "valid", "test")
            for name in ("_annotations.coco.json", "a.jpg")
        },
        {
            "format": "coco",
            "train": ["train/_annotations.coco.json"],
            "train_images": ["train"],
            "val": ["valid/_annotations.coco.json"],
            "val_images": ["valid"],
            "test": ["test/_annotations.coco.json"],
            "test_images": ["test"],
        },
    ),
    "val alone is learned from": (
        {"val.json": coco("a.jpg"), "a.jpg": ""},
        {"format": "coco", "train": ["val.json"], "train_images": ["."], "val_share": 0.2},
    ),
    "YOLO as Roboflow exports it": (
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
            "names: [a]"
        }
        | {f"{split}/images/a.jpg": "" for split in ("train", "valid")}
        | {f"{split}/labels/a.txt": LABEL for split in ("train", "valid")},
        {
            "format": "yolo",
            "train": ["train/images"],
            "val": ["valid/images"],
            "class_names": "data.yaml",
        },
    ),
    "YOLO with a path, several folders and a list": (
        {"my.yaml": "path: .\ntrain: [images/a, images/b]\nval: val.txt\nnames:\n  0: a\n  1: b\n"}
        | {"val.txt": "images/c/x.jpg", "images/a/x.jpg": "", "images/b/x.jpg": ""},
        {
            "format": "yolo",
            "train": ["images/a", "images/b"],
            "val": ["val.txt"],
            "class_names": "my.yaml",
        },
    ),
    "YOLO of another machine": (
        {"data.yaml": "train: /content/set-1/train/images\nval: C:\\sets\\val\\images\nnames: [a]"}
        | {"train/images/a.jpg": "", "val/images/a.jpg": ""},
        {
            "format": "yolo",
            "train": ["train/images"],
            "val": ["val/images"],
            "class_names": "data.yaml",
        },
    ),
    "YOLO's path that is nowhere": (
        {
            "data.yaml": "path: ../datasets/mine\ntrain: images\nval: images\nnames: [a]",
            "images/a.jpg": "",
        },
        {"format": "yolo", "train": ["images"], "val": ["images"], "class_names": "data.yaml"},
    ),
    "YOLO without data.yaml": (
        {"classes.txt": "cat\n", "images/train/a.jpg": "", "labels/train/a.txt": LABEL}
        | {"images/val/b.jpg": "", "labels/val/b.txt": LABEL},
        {
            "format": "yolo",
            "train": ["labels/train"],
            "train_images": ["images/train"],
            "val": ["labels/val"],
            "val_images": ["images/val"],
            "class_names": "classes.txt",
        },
    ),
    "YOLO beside images, as labelImg writes it": (
        {"a.jpg": "", "a.txt": LABEL, "b.jpg": "", "b.txt": "", "classes.txt": "cat\n"},
        {"format": "yolo", "train": ["."], "val_share": 0.2, "class_names": "classes.txt"},
    ),
    "YOLO whose YAML has names alone": (
        {"names.yaml": "names: [cat]", "img/a.jpg": "", "txt/a.txt": LABEL},
        {
            "format": "yolo",
            "train": ["txt"],
            "train_images": ["img"],
            "val_share": 0.2,
            "class_names": "names.yaml",
        },
    ),
    "LabelMe beside images": (
        {"a.jpg": "", "a.json": LABELME, "package.json": "{}"},
        {"format": "labelme", "train": ["."], "val_share": 0.2},
    ),
    "CSV": (
        {"boxes.csv": CSV, "photos/a.jpg": "", "other.csv": "epoch,loss\n1,2\n"},
        {"format": "csv", "train": ["boxes.csv"], "train_images": ["photos"], "val_share": 0.2},
    ),
    "CSV, Roboflow's folders": (
        {
            f"{split}/{name}": CSV
            for split in ("train", "valid")
            for name in ("_annotations.csv", "a.jpg")
        },
        {
            "format": "csv",
            "train": ["train/_annotations.csv"],
            "train_images": ["train"],
            "val": ["valid/_annotations.csv"],
            "val_images": ["valid"],
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_recognised(tmp_path: Path, name: str) -> None:
    files, expected = CASES[name]
    found = recognise(tree(tmp_path, files))
    given = found.data.model_dump(mode="json", exclude_defaults=True)
    assert given == {"root": str(tmp_path), **expected}


@pytest.mark.parametrize("name", CASES)
def test_the_settings_say_the_same(tmp_path: Path, name: str) -> None:
    found = recognise(tree(tmp_path / "it's mine, all", CASES[name][0]))
    other = DataConfig(format="voc", train=("x",), val=("y",))
    settings = [line.removeprefix("data.") for line in found.settings()]
    assert with_overrides(other.model_copy(update={"train": (), "val": ()}), settings, "t") == (
        found.data
    )


def test_it_says_what_told_and_what_the_splits_are(tmp_path: Path) -> None:
    found = recognise(tree(tmp_path, CASES["Roboflow's COCO"][0]))
    assert found.kind == "COCO JSON, Roboflow's folders"
    assert found.reason == (
        "told by test/_annotations.coco.json, train/_annotations.coco.json, "
        "valid/_annotations.coco.json; train train/_annotations.coco.json; val "
        "valid/_annotations.coco.json; test test/_annotations.coco.json"
    )
    found = recognise(tree(tmp_path / "xml", {"a.jpg": "", "a.xml": XML}))
    assert found.kind == "images with VOC's XML files"
    assert found.reason.endswith("nothing says which images are val, so 0.2 of train are")


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    files = {"a.jpg": "", "a.xml": XML, "._a.xml": "", ".cache/b.json": coco("a.jpg")}
    assert recognise(tree(tmp_path, files)).data.format == "xml"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    tree(tmp_path, {"a.jpg": "", "a.xml": XML})
    for suffix in ("json", "csv", "txt", "yaml", "xml"):
        os.mkfifo(tmp_path / f"A.{suffix}")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").symlink_to(tmp_path / "nowhere")
    assert recognise(tmp_path).data.format == "xml"


def test_a_link_to_a_folder_is_followed_and_one_upwards_is_not(tmp_path: Path) -> None:
    tree(tmp_path / "far", {"a.jpg": "", "a.xml": XML})
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "here").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "up").symlink_to(tmp_path / "near")
    assert recognise(tmp_path / "near").data.train == ("here",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is empty"),
        ({"README.md": ""}, r"has 1 files, such as README.md, but neither images nor annotations"),
        (
            {"a.jpg": "", "b/c.png": ""},
            "has 2 images but no annotations of them; what is read: VOC",
        ),
        ({"a.jpg": "", "a.txt": "a photo of a cat in the sun"}, "has 1 images but no annotations"),
        ({"a.jpg": "", "data.csv": "a,b\n1,2\n"}, "has 1 images but no annotations"),
        (
            {"train/a.jpg": "", "train/a.xml": XML, "train/_annotations.coco.json": coco("a.jpg")},
            r"in 2 formats: images with VOC's XML files \(train/a.xml\) and COCO JSON \(train/_a.*"
            "Say which to read, data.format=xml or data.format=coco, or give",
        ),
        (
            {"a.jpg": "", "a.txt": LABEL, "classes.txt": "x", "a.csv": CSV, "a.json": LABELME},
            r"in 3 formats: YOLO \(a.txt\) and LabelMe JSON \(a.json\) and CSV",
        ),
        (
            {"x.json": coco("b.jpg"), "a.jpg": ""},
            r"x.json is of other images.*'b.jpg'.*1 image files, such as a.jpg",
        ),
        ({"x.json": coco(), "a.jpg": ""}, "x.json is of other images: .*it lists none"),
        (
            {"x.json": coco("/content/photos/a.jpg"), "i/a.jpg": ""},
            r"such as '/content/photos/a.jpg', but i/a.jpg is: correct its file names",
        ),
        ({"l/b.xml": XML, "i/a.jpg": ""}, r"l/b.xml is of other images.*such as 'b'"),
        ({"l/b.txt": LABEL, "i/a.jpg": "", "classes.txt": "x"}, "l/b.txt is of other images"),
        ({"x.csv": CSV, "b.jpg": ""}, "x.csv is of other images"),
        ({"a.jpg": "", "a.txt": LABEL}, "nothing names their classes: put a classes.txt there"),
        (
            {"a.jpg": "", "a.txt": LABEL, "classes.txt": "x", "l/classes.txt": "y"},
            "classes.txt and l/classes.txt name other classes",
        ),
        (
            {"a.json": coco("a.jpg"), "b.json": coco("a.jpg"), "a.jpg": ""},
            "has 2 COCO files, and the name of a.json tells no split",
        ),
        (
            {"ImageSets/Main/one.txt": "a", "ImageSets/Main/two.txt": "b"},
            "has the lists one, two, and none is called train",
        ),
        ({"ImageSets/DET/val.txt": "a", "a.xml": XML, "a.jpg": ""}, "has ImageNet's layout"),
        (
            {"a/data.yaml": "train: i\nnames: [a]", "b/data.yaml": "train: i\nnames: [a]"},
            "has 2 data.yaml: a/data.yaml, b/data.yaml; give the one to read",
        ),
        ({"data.yaml": "train:\nval:\nnames: [a]"}, "data.yaml names no images: give train"),
        (
            {"x/a.xml": XML, "x/val/b.xml": XML, "x/a.jpg": "", "x/val/b.jpg": ""},
            "the annotations in x/val lie in a folder of those of another split, x",
        ),
    ],
)
def test_one_clear_answer_where_it_cannot_be_told(
    tmp_path: Path, files: dict, message: str
) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UnrecognisedDataError, match=message) as caught:
        recognise(tree(tmp_path / "data", files))
    assert str(caught.value).startswith(str(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def test_a_data_yaml_that_points_outside_is_followed_only_as_a_file(tmp_path: Path) -> None:
    tree(tmp_path, {"other/train/images/a.jpg": "", "other/val/images/a.jpg": ""})
    text = "path: ../other\ntrain: train/images\nval: val/images\nnames: [a]"
    mine = tree(tmp_path / "mine", {"data.yaml": text, "images/a.jpg": ""})
    with pytest.raises(
        UnrecognisedDataError, match=r"points outside of .*mine, its train to /.*give"
    ):
        recognise(mine)
    data = recognise(mine / "data.yaml").data
    assert data.root == str(mine)
    assert data.train == (str(tmp_path / "other" / "train" / "images"),)
    assert data.class_names == "data.yaml"


def test_a_data_yaml_that_leads_nowhere_says_where_it_looked(tmp_path: Path) -> None:
    text = "path: here\ntrain: train/images\nval: away/images\nnames: [a]"
    mine = tree(tmp_path, {"data.yaml": text, "here/train/images/a.jpg": ""})
    for given in (mine, mine / "data.yaml"):
        with pytest.raises(FileNotFoundError, match="val is 'away/images'") as caught:
            recognise(given)
        assert f"looked at {mine}/here/away/images and {mine}/away/images" in str(caught.value)


def test_two_splits_of_another_machine_are_not_both_the_one_folder_there_is(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .1 .1")
    data = tmp_path / "data.yaml"
    text = "names: [cat]\ntrain: /content/ds/train/images\nval: /content/ds/valid/images\n"
    data.write_text(text)
    said = r"train is '/content/ds/train/images' and val is '/content/ds/valid/images', and of both"
    with pytest.raises(FileNotFoundError, match=said):
        recognise(tmp_path)
    data.write_text("names: [cat]\ntrain: images\nval: images\n")  # said so: their choice
    assert recognise(tmp_path).data.val == recognise(tmp_path).data.train


def test_empty_label_files_first_do_not_hide_the_format(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    for number in range(60):
        (tmp_path / f"{number:03d}.jpg").touch()
        (tmp_path / f"{number:03d}.txt").write_text("" if number < 52 else "0 .5 .5 .1 .1\n")
    assert recognise(tmp_path).data.format == "yolo"


def test_what_lies_inside_comes_before_what_lies_above(tmp_path: Path) -> None:
    """Roboflow's ../train/images is of its own folder, also where the folder above has one."""
    tree(tmp_path, {"train/images/z.jpg": "", "valid/images/z.jpg": ""})
    mine = tree(tmp_path / "mine", CASES["YOLO as Roboflow exports it"][0])
    assert recognise(mine).data.train == ("train/images",)


def test_the_format_wanted_is_taken_of_two(tmp_path: Path) -> None:
    files = {"train/a.jpg": "", "train/a.xml": XML, "train/_annotations.coco.json": coco("a.jpg")}
    tree(tmp_path, files)
    assert recognise(tmp_path, "xml").data.format == "xml"
    assert recognise(tmp_path, "coco").data.format == "coco"
    with pytest.raises(UnrecognisedDataError, match="has no annotations of format yolo"):
        recognise(tmp_path, "yolo")


def test_a_file_is_taken_alone(tmp_path: Path) -> None:
    tree(tmp_path, CASES["COCO's own folder"][0])
    found = recognise(tmp_path / "annotations" / "instances_val2017.json")
    assert found.data.root == str(tmp_path)
    assert found.data.train == ("annotations/instances_val2017.json",)
    assert found.data.val_share == 0.2
    tree(tmp_path / "c", {"boxes.csv": CSV, "photos/a.jpg": ""})
    assert recognise(tmp_path / "c" / "boxes.csv").data.train_images == ("photos",)
    tree(tmp_path / "d" / "x", {"labels.json": coco("nowhere.jpg")})
    with pytest.raises(UnrecognisedDataError, match=r"\('nowhere.jpg'\) are neither in"):
        recognise(tmp_path / "d" / "x" / "labels.json")


@pytest.mark.parametrize("name", ["a.jpg", "a.zip", "b.yaml", "c.json", "d.csv"])
def test_a_file_that_is_no_data_is_named(tmp_path: Path, name: str) -> None:
    tree(tmp_path, {"a.jpg": "", "a.zip": "", "b.yaml": "name: x", "c.json": "[]", "d.csv": "a,b"})
    with pytest.raises(UnrecognisedDataError, match=f"{name} is no data that can be read: give"):
        recognise(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        recognise(tmp_path / "nowhere")


def test_keys_in_the_middle_of_a_large_json_are_found(tmp_path: Path) -> None:
    """Annotations first, images in the middle, and room before and after them."""
    content = json.loads(coco("a.jpg"))
    annotations = [{"note": "x" * 90} for _ in range(2000)]
    text = json.dumps(
        {"notes": annotations, "images": content["images"], "annotations": annotations}
        | {"categories": content["categories"], "more": annotations}
    )
    tree(tmp_path, {"all.json": text, "a.jpg": ""})
    data = recognise(tmp_path).data
    assert (data.format, data.train_images) == ("coco", (".",))
