from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.csv_boxes import csv_names, is_boxes_csv, read_csv_boxes, read_csv_file

CLASSES = ClassMap.of_names(["cat", "dog"])
TENSORFLOW = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def write(root: Path, text: str, *images: str) -> Path:
    for name in images:
        cv2.imwrite(str(root / name), np.zeros((50, 80, 3), np.uint8))
    path = root / "boxes.csv"
    path.write_text(text)
    return path


def test_boxes_by_hand(tmp_path: Path) -> None:
    lines = "b.png,80,50,dog,1,2,30.5,40\na.png,80,50,,,,,\nb.png,80,50,owl,1,1,2,2\n"
    write(tmp_path, f"{TENSORFLOW}{lines}\nb.png,80,50,cat,0,0,80,50\n", "a.png", "b.png", "c.png")
    data = read_csv_boxes(tmp_path, ["boxes.csv"], ["."], CLASSES)
    assert data.image_ids.tolist() == ["b", "a"]
    assert data.image_sizes.tolist() == [[50, 80], [50, 80]]
    assert data.offsets.tolist() == [0, 2, 2]
    assert data.labels.tolist() == [2, 1]
    assert data.boxes.tolist() == [[1, 2, 30.5, 40], [0, 0, 80, 50]]
    assert data.dropped == {"other class": 1}
    assert data.notes == (
        f"{tmp_path}/boxes.csv: 1 images in {tmp_path} are in no line and are left out",
    )
    assert csv_names(tmp_path, ["boxes.csv"]) == {"cat", "dog", "owl"}


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,80,50,cat,1,2,31,42"),
        ("filename,class,xmin,ymin,xmax,ymax", "a.png,cat,1,2,31,42"),
        ("image_path,x1,y1,x2,y2,label", "a.png,1,2,31,42,cat"),
        ("Image,Label,X_Min,Y_Min,X_Max,Y_Max", "a.png,cat,1,2,31,42"),
        ("image;left;top;right;bottom;category", "a.png;1;2;31;42;cat"),
        ("file_name\tx\ty\tw\th\tclass_name", "a.png\t1\t2\t30\t40\tcat"),
        ("image,x,y,width,height,label", "a.png,1,2,30,40,cat"),
        ("img,bbox_x,bbox_y,bbox_width,bbox_height,name", "a.png,1,2,30,40,cat"),
        (
            "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height",
            "cat,1,2,30,40,a.png,80,50",
        ),
        ("file,w,h,class,xmin,ymin,xmax,ymax,split", "a.png,80,50,cat,1,2,31,42,x"),
        ('"filename","class","xmin","ymin","xmax","ymax"', '"a.png","cat","1","2","31","42"'),
    ],
)
def test_columns_go_by_their_usual_names(tmp_path: Path, header: str, line: str) -> None:
    path = write(tmp_path, f"{header}\n{line}\n", "a.png")
    assert is_boxes_csv(path)
    data = read_csv_boxes(tmp_path, ["boxes.csv"], ["."], CLASSES)
    assert data.boxes.tolist() == [[1, 2, 31, 42]]
    assert data.labels.tolist() == [1]
    assert data.image_sizes.tolist() == [[50, 80]]


def test_a_byte_order_mark_and_quotes_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    text = 'filename,class,xmin,ymin,xmax,ymax\r\n"a, b.png","my ""cat""",1,2,3,4\r\n'
    path.write_bytes(text.encode("utf-8-sig"))
    assert is_boxes_csv(path)
    (line,) = read_csv_file(path)
    assert (line.file_name, line.name, line.line) == ("a, b.png", 'my "cat"', 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "boxes.csv is empty; expected the columns filename, class"),
        (TENSORFLOW, "has no line but the names of its columns"),
        ("filename,xmin,ymin,xmax,ymax\n", "boxes.csv:1: no column for class among"),
        ("filename,class,x,y,w\n", "boxes.csv:1: no column for h among"),
        ("a.png,1,2,3,4,cat\n", "boxes.csv:1: no column for file, class, xmin"),
        (f"{TENSORFLOW}a.png,80,50,cat,1,2,3\n", "boxes.csv:2: 7 columns, the first line has 8"),
        (f"{TENSORFLOW}\na.png,80,50,cat,1,x,3,4\n", "boxes.csv:3: ymin is 'x', expected a number"),
        (f"{TENSORFLOW}a.png,80,50,cat,1,,3,4\n", "boxes.csv:2: ymin is '', expected a number"),
        (f"{TENSORFLOW}a.png,80,50,,1,2,3,4\n", "boxes.csv:2: a box without class"),
        (f"{TENSORFLOW},80,50,cat,1,2,3,4\n", "boxes.csv:2: no image file"),
        (f"{TENSORFLOW}a.png,-8,50,cat,1,2,3,4\n", "boxes.csv:2: width of the image is '-8'"),
        (f"{TENSORFLOW}a.png,8.5,50,cat,1,2,3,4\n", "boxes.csv:2: width of the image is '8.5'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_csv_file(write(tmp_path, text))


def test_two_sizes_of_one_image_are_refused(tmp_path: Path) -> None:
    lines = "a.png,80,50,cat,1,2,3,4\na.png,80,51,cat,1,2,3,4\n"
    write(tmp_path, TENSORFLOW + lines, "a.png")
    with pytest.raises(
        AnnotationError, match=r"csv:3: image a.png is 80x51 px, and 80x50 in line 2"
    ):
        read_csv_boxes(tmp_path, ["boxes.csv"], ["."], CLASSES)


def test_a_missing_image_and_a_bad_box_are_named(tmp_path: Path) -> None:
    write(tmp_path, f"{TENSORFLOW}a.png,80,50,cat,3,2,3,4\n", "a.png")
    with pytest.raises(AnnotationError, match=r"boxes.csv:2: box .* box without area"):
        read_csv_boxes(tmp_path, ["boxes.csv"], ["."], CLASSES, box_policy="error")
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images of .*boxes.csv are not in"):
        read_csv_boxes(tmp_path, ["boxes.csv"], ["."], CLASSES)


def test_a_csv_of_something_else_is_none(tmp_path: Path) -> None:
    assert not is_boxes_csv(write(tmp_path, "epoch,loss\n1,2\n"))
    assert not is_boxes_csv(write(tmp_path, ""))
