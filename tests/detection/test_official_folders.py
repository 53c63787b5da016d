"""The paper's configurations on folders laid out as PASCAL VOC and COCO are downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest

from detres.class_map import ClassMap
from detres.config import load_config
from detres.detection.annotations import Annotations, NoTruthError
from detres.detection.config import DataConfig, DetectionConfig
from detres.detection.data.read import read_split, read_to_detect
from detres.detection.data.voc import VOC_CLASSES
from detres.detection.evaluation.protocol import evaluate
from tests.detection.evaluation.scenes import predictions_of
from tests.detection.official import COCO_CLASSES, VOC_LISTS, write_coco, write_voc

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VOC = ClassMap.of_names(VOC_CLASSES)
COCO = ClassMap(tuple(COCO_CLASSES.values()), tuple(COCO_CLASSES))


def data_of(config: str, root: Path, *settings: str) -> DataConfig:
    config = load_config(CONFIGS / f"{config}.yaml", DetectionConfig, settings)
    return config.data.model_copy(update={"root": str(root)})


def require_sizes_of_the_files(annotations: Annotations) -> None:
    read = [cv2.imread(file).shape[:2] for file in annotations.image_files.tolist()]
    assert annotations.image_sizes.tolist() == [list(size) for size in read]


@pytest.mark.parametrize("config", ["voc0712_vgg16", "voc0712_r50", "voc0712_r101"])
def test_voc_2007_and_2012_train_together_and_2007_test_is_held_out(
    config: str, tmp_path: Path
) -> None:
    data = data_of(config, write_voc(tmp_path / "VOCdevkit"))
    train, val = read_split(data, "train"), read_split(data, "val")
    assert train.image_ids.tolist() == ["000001", "000005", "2008_000001", "2008_000003"]
    assert val.image_ids.tolist() == list(VOC_LISTS["VOC2007"]["test"])
    assert train.class_map == val.class_map == VOC
    assert (train.num_objects, val.num_objects, train.told_apart) == (4, 3, False)
    assert train.num_shared_files(val) == 0


@pytest.mark.parametrize("config", ["voc0712plus_vgg16", "voc0712plus_r50", "voc0712plus_r101"])
def test_what_2012_test_is_trained_for_holds_images_out(config: str, tmp_path: Path) -> None:
    data = data_of(config, write_voc(tmp_path / "VOCdevkit"), "data.hold_out=2")
    train, val = read_split(data, "train"), read_split(data, "val")
    listed = [*VOC_LISTS["VOC2007"]["trainval"], *VOC_LISTS["VOC2007"]["test"]]
    listed += VOC_LISTS["VOC2012"]["trainval"]
    assert sorted([*train.image_ids, *val.image_ids]) == sorted(listed)
    assert (len(train), len(val)) == (5, 2)
    assert (train.num_objects, val.num_objects) == (5, 2)
    assert train.num_shared_files(val) == 0
    again = read_to_detect(data, "val", VOC)
    assert again.image_ids.tolist() == val.image_ids.tolist()


def test_2012_test_is_read_without_its_annotations(tmp_path: Path) -> None:
    devkit = write_voc(tmp_path / "VOCdevkit")
    data = data_of("voc0712plus_r101", devkit)
    test = read_to_detect(data, "test", VOC)
    assert test.image_ids.tolist() == ["2008_000002", "2008_000005"]
    assert [Path(file).name for file in test.image_files] == ["2008_000002.jpg", "2008_000005.jpg"]
    require_sizes_of_the_files(test)
    assert (test.class_map, test.num_objects) == (VOC, 0)  # a person's layout is no truth
    assert test.without_truth == ("1 of 2 have no XML file in Annotations, such as 2008_000002")
    shutil.rmtree(devkit / "VOC2012" / "Annotations")  # unpacked alone, the archive has even less
    test = read_to_detect(data, "test", VOC)
    assert (test.class_map, len(test)) == (VOC, 2)
    with pytest.raises(NoTruthError, match="the objects in its images are not known: 2 of 2 have"):
        evaluate("voc12", test, predictions_of([], VOC))


@pytest.mark.parametrize("config", ["coco_vgg16", "coco_r50", "coco_r101"])
def test_coco_2014_is_read_as_downloaded_and_test_dev_without_annotations(
    config: str, tmp_path: Path
) -> None:
    data = data_of(config, write_coco(tmp_path / "coco"))
    train, val, test = (read_to_detect(data, split, COCO) for split in ("train", "val", "test"))
    assert [part.image_ids.tolist() for part in (train, val, test)] == [
        [9, 25, 30],
        [42, 73],
        [1, 14, 27],
    ]
    assert {part.class_map for part in (train, val, test)} == {COCO}
    assert (train.num_objects, val.num_objects, test.num_objects) == (3, 2, 0)
    assert test.without_truth == "image_info_test-dev2015.json has no annotations"
    require_sizes_of_the_files(test)
    with pytest.raises(NoTruthError, match="image_info_test-dev2015"):
        evaluate("coco", test, predictions_of([], COCO))


def test_the_splits_of_2017_as_the_config_says_them(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco")
    for year, later in (("train2014", "train2017"), ("val2014", "val2017"), ("test2015",) * 2):
        (root / year).rename(root / later.replace("test2015", "test2017"))
    for name in (root / "annotations").glob("*.json"):
        name.rename(name.with_name(name.name.replace("2014", "2017").replace("2015", "2017")))
    text = (CONFIGS / "coco_r101.yaml").read_text().replace("\n# ", " ")
    said = text.partition("For the splits of 2017: --set ")[2].partition("\n")[0]
    settings = [setting.replace("'", "") for setting in said.split()]
    data = data_of("coco_r101", root, *settings)
    assert [len(read_to_detect(data, split, COCO)) for split in ("train", "val", "test")] == [
        3,
        2,
        3,
    ]


def test_a_test_list_that_names_an_image_which_is_not_there(tmp_path: Path) -> None:
    devkit = write_voc(tmp_path / "VOCdevkit")
    (devkit / "VOC2012" / "JPEGImages" / "2008_000005.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 image file missing: .*2008_000005"):
        read_to_detect(data_of("voc0712plus_r101", devkit), "test", VOC)
    root = write_coco(tmp_path / "coco")
    (root / "test2015" / "COCO_test2015_000000000014.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images .* are not in .*000000000014"):
        read_to_detect(data_of("coco_r101", root), "test", COCO)


def test_a_test_image_that_is_none_is_named_before_any_is_detected_in(tmp_path: Path) -> None:
    devkit = write_voc(tmp_path / "VOCdevkit")
    (devkit / "VOC2012" / "JPEGImages" / "2008_000005.jpg").write_bytes(b"")
    with pytest.raises(OSError, match=r"2008_000005\.jpg cannot be read: the file is empty"):
        read_to_detect(data_of("voc0712plus_r101", devkit), "test", VOC)


def test_test_images_are_not_trained_or_evaluated_on_as_if_they_had_no_object(
    tmp_path: Path,
) -> None:
    data = data_of("coco_r101", write_coco(tmp_path / "coco"))
    for split in ("train", "val"):
        moved = {split: data.test, f"{split}_images": data.test_images}
        with pytest.raises(NoTruthError, match="neither trained nor evaluated on"):
            read_split(data.model_copy(update=moved), split)
    devkit = write_voc(tmp_path / "VOCdevkit")
    data = data_of("voc0712plus_r101", devkit, "data.hold_out=0", "data.val=[2012/test]")
    with pytest.raises(FileNotFoundError, match="1 annotation file missing"):
        read_split(data, "val")
