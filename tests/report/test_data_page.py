"""The page of a look at a data set."""

from __future__ import annotations

from pathlib import Path

from detres.detection.data.audit import audit
from detres.report.data_page import data_page
from tests.detection.data.planted import MODEL, parts, picture, write_split
from tests.report.test_html import HOSTILE, Tags

BOX = (10.0, 10.0, 60.0, 60.0)


def test_every_finding_is_there_with_pictures(tmp_path: Path) -> None:
    """And what is the user's, names of files and classes, is text."""
    name = "<img src=x onerror=alert(1)>.png"
    files = {name: picture(0), "cut.png": b"", "b.png": picture(1)}
    objects = [(name, HOSTILE, BOX), (name, HOSTILE, BOX), ("b.png", HOSTILE, (30, 10, 30, 60))]
    train = write_split(tmp_path, "train", files, objects, classes=[HOSTILE])
    val = write_split(
        tmp_path, "val", {"leak.png": picture(0)}, [("leak.png", HOSTILE, BOX)], classes=[HOSTILE]
    )
    found = audit(parts(train=train, val=val), MODEL)
    tags = Tags(data_page(found))
    assert "script" not in [tag for tag, _ in tags.tags]
    images = [each for tag, each in tags.tags if tag == "img"]
    # one of the duplicate and of the flat box, two of the leak; and all that can be read
    assert len(images) == 4 + 3
    assert all(each["src"].startswith("data:image/jpeg;base64,") for each in images)
    assert not any("onerror" in each for each in images)
    for finding in found.findings:
        assert finding.title in tags.text
        assert finding.advice in tags.text
        assert str(finding.examples[0]) in tags.text
    assert "Data check: 4 errors, 0 warnings, 2 notes" in tags.text


def test_of_many_the_first_are_drawn_and_the_others_listed(tmp_path: Path) -> None:
    files = {f"{number}.png": picture(number) for number in range(9)}
    train = write_split(tmp_path, "train", files)
    found = audit(parts(train=train), MODEL)
    tags = Tags(data_page(found))
    assert len([tag for tag, _ in tags.tags if tag == "img"]) == 6 + 6
    assert "3 more in a list" in tags.text
    assert "train 8.png" in tags.text


def test_an_image_that_is_gone_by_now_is_left_out(tmp_path: Path) -> None:
    train = write_split(tmp_path, "train", {"a.png": picture(0)})
    found = audit(parts(train=train), MODEL)
    (tmp_path / "train" / "a.png").unlink()
    assert "img" not in [tag for tag, _ in Tags(data_page(found)).tags]


def test_findings_without_pictures_are_written_in_a_paragraph(tmp_path: Path) -> None:
    classes = [f"class {number:02d}" for number in range(25)]
    objects = [("a.png", name, BOX) for name in classes]
    train = write_split(tmp_path, "train", {"a.png": picture(0)}, objects, classes=classes)
    found = audit(parts(train=train), MODEL)
    text = Tags(data_page(found)).text
    seldom = "; ".join(f"{name}: 1 in train" for name in classes[:20])
    assert seldom in text
    assert "5 more in a list" in text
    assert "class 24: 1 in train" in text
