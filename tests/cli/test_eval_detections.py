"""eval --detections: the command, on real annotations."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from defusedxml.ElementTree import parse
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detres.cli.eval import main
from detres.commands.eval_detections import read_truth
from detres.detection.data.voc import read_voc
from detres.detection.evaluation.coco_ap import METRICS

COCO_FILE = "coco_mini/annotations/instances_val2017.json"
VOC_YEAR = "voc_mini/VOCdevkit/VOC2012"


@pytest.fixture
def coco_file(shared_data: Callable[[str], Path]) -> Path:
    return shared_data(COCO_FILE)


@pytest.fixture
def voc_year(shared_data: Callable[[str], Path]) -> Path:
    return shared_data(VOC_YEAR)


def score(detections: Path, annotations: Path, *flags: str) -> dict:
    """Run the command and return what it wrote with --json."""
    out = detections.parent / "out" / "numbers.json"
    assert (
        main(
            [
                "--detections",
                str(detections),
                "--annotations",
                str(annotations),
                "--json",
                str(out),
                *flags,
            ]
        )
        == 0
    )
    return json.loads(out.read_text())


def coco_results(coco_file: Path, path: Path, jitter: float = 0.0, strays: int = 0) -> Path:
    """Write detections made from the ground truth, crowds left out: in float64, with tied scores
    when jittered.
    """
    rng = np.random.default_rng(0)
    content = json.loads(coco_file.read_text())
    records = []
    for item in content["annotations"]:
        if item["iscrowd"]:
            continue
        x, y, w, h = item["bbox"]
        dx, dy, dw, dh = jitter * rng.normal(size=4)
        box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
        records.append(
            {
                "image_id": item["image_id"],
                "category_id": item["category_id"],
                "bbox": box,
                "score": round(rng.random(), 2),
            }
        )
    for _ in range(strays):
        image = content["images"][rng.integers(len(content["images"]))]
        category = content["categories"][rng.integers(len(content["categories"]))]
        box = (rng.random(4) * [image["width"], image["height"], 100, 100]).tolist()
        records.append(
            {
                "image_id": image["id"],
                "category_id": category["id"],
                "bbox": box,
                "score": round(rng.random(), 2),
            }
        )
    path.write_text(json.dumps(records))
    return path


def voc_lines(voc_year: Path, split: str) -> dict[str, list[str]]:
    """Class -> results lines of the objects that are not difficult, as their XML gives them."""
    lines: dict[str, list[str]] = {}
    for stem in (voc_year / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
        for node in parse(voc_year / "Annotations" / f"{stem}.xml").iter("object"):
            if node.findtext("difficult") != "1":
                corners = " ".join(
                    node.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
                )
                lines.setdefault(node.findtext("name"), []).append(f"{stem} 0.9 {corners}\n")
    return lines


def voc_results(voc_year: Path, folder: Path, split: str = "val") -> Path:
    folder.mkdir()
    for name, lines in voc_lines(voc_year, split).items():
        (folder / f"comp4_det_{split}_{name}.txt").write_text("".join(lines))
    return folder


def test_ground_truth_itself_scores_one(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = score(coco_results(coco_file, tmp_path / "d.json"), coco_file)
    assert list(numbers) == [*METRICS, "per_class", "protocol"]
    assert [numbers[name] for name in METRICS if name not in ("AR1", "AR10")] == pytest.approx(
        [1.0] * 10
    )
    assert numbers["per_class"]["train"] is None  # no train among the 60 photographs
    assert len(numbers["per_class"]) == 80
    out = capsys.readouterr().out
    assert "60 images" in out
    assert " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000" in out
    assert "COCO bbox" in out


@pytest.mark.parametrize("jitter", [0.05, 0.15])
def test_jittered_detections_equal_pycocotools(
    jitter: float, coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = coco_results(coco_file, tmp_path / "d.json", jitter=jitter, strays=200)
    numbers = score(file, coco_file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(coco_file))
        evaluation = COCOeval(coco, coco.loadRes(str(file)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert [numbers[name] for name in METRICS] == evaluation.stats.tolist()
    assert 0.05 < numbers["AP"] < 0.95
    assert "note:" not in capsys.readouterr().out  # though many boxes reach beyond their images


def test_voc_text_files_of_the_ground_truth_score_one(
    voc_year: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = score(voc_results(voc_year, tmp_path / "results"), voc_year, "--split", "val")
    assert list(numbers) == ["mAP", "per_class", "protocol"]
    assert numbers["mAP"] == 1.0
    assert set(numbers["per_class"].values()) == {1.0, None}
    assert len(numbers["per_class"]) == 20
    assert "2010-2012, area" in numbers["protocol"]
    assert "no results file for bicycle" in capsys.readouterr().out.replace("aeroplane, ", "")
    assert score(tmp_path / "results", voc_year, "--split", "val", "--protocol", "voc07")[
        "protocol"
    ].startswith("PASCAL VOC 2007")


def test_results_named_after_another_split_are_said_to_be(
    voc_year: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = voc_results(voc_year, tmp_path / "results")
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace("_val_", "_test_"))
    assert score(folder, voc_year, "--split", "val")["mAP"] == 1
    assert "named after the split test, and are evaluated on val" in capsys.readouterr().out


def test_json_results_score_against_a_voc_folder(voc_year: Path, tmp_path: Path) -> None:
    results = voc_results(voc_year, tmp_path / "results")
    names = list(score(results, voc_year, "--split", "val")["per_class"])
    records = []
    for name, lines in voc_lines(voc_year, "val").items():
        for line in lines:
            stem, value, *corners = line.split()
            x1, y1, x2, y2 = map(float, corners)
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            records.append(
                {
                    "image_id": stem,
                    "category_id": names.index(name) + 1,
                    "bbox": box,
                    "score": float(value),
                }
            )
    (tmp_path / "d.json").write_text(json.dumps(records))
    assert score(tmp_path / "d.json", voc_year, "--split", "val")["mAP"] == 1.0
    assert score(tmp_path / "d.json", voc_year, "--protocol", "coco")["AP"] == pytest.approx(
        1.0
    )  # val, as there is no test list


def test_detections_in_a_folder_of_images_score_against_its_voc_folder(
    voc_year: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # as predicting on JPEGImages writes them: paths of all images, those of other splits too
    year = tmp_path / "cells"
    shutil.copytree(voc_year / "Annotations", year / "Annotations")
    stems = sorted(path.stem for path in (year / "Annotations").iterdir())[:40]
    dotted = {stem: f"2019.01.{n}_cam" for n, stem in enumerate(stems)}
    for stem, name in dotted.items():
        (year / "Annotations" / f"{stem}.xml").rename(year / "Annotations" / f"{name}.xml")
    (year / "ImageSets" / "Main").mkdir(parents=True)
    (year / "ImageSets" / "Main" / "held_out.txt").write_text("\n".join([*dotted.values()][:30]))
    (year / "ImageSets" / "Main" / "._held_out.txt").write_bytes(b"\0\5\x16\7Mac OS X")
    truth = read_voc(year, ["held_out"], box_policy="keep", check_images=False)
    keep = ~truth.difficult
    owners = np.repeat(truth.image_ids, np.diff(truth.offsets))[keep].tolist()
    records = [
        {
            "image_id": f"d/cells/JPEGImages/{owner}.JPG",
            "category_id": label,
            "bbox": box,
            "score": 1,
        }
        for owner, label, box in zip(
            owners, truth.labels[keep].tolist(), truth.xywh()[keep].tolist(), strict=True
        )
    ]
    others = [
        records[0] | {"image_id": f"d/cells/JPEGImages/{name}.JPG"}
        for name in [*dotted.values()][30:]
    ]
    (tmp_path / "found.json").write_text(json.dumps([*others, *records]))
    assert score(tmp_path / "found.json", year)["mAP"] == 1.0
    out = capsys.readouterr().out
    assert f"note: the images of {len(records)} detections are told by the ends of their" in out
    assert (
        f"note: 10 of {len(records) + 10} detections are left out: their 10 images are not" in out
    )


def test_a_box_that_is_not_finite_is_refused_by_name(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(coco_file.read_text())
    found = coco_results(coco_file, tmp_path / "d.json")
    content["annotations"][3]["bbox"][2] = float("nan")
    (tmp_path / "truth.json").write_text(json.dumps(content))
    assert main(["--detections", str(found), "--annotations", str(tmp_path / "truth.json")]) == 2
    error = capsys.readouterr().err
    number = content["annotations"][3]["id"]
    assert error.startswith(f"error: {tmp_path / 'truth.json'}: annotation {number} (image ")
    assert error.count("\n") == 1


def test_corners_given_for_sides_are_told_beside_any_number(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = json.loads(coco_results(coco_file, tmp_path / "d.json").read_text())
    for record in records[::3]:  # the others are at the image's corner, where both are the same
        x, y, w, h = record["bbox"]
        record["bbox"] = [x, y, x + w, y + h]
    content = json.loads(coco_file.read_text())
    for n, item in enumerate(item for item in content["annotations"] if not item["iscrowd"]):
        if n % 3:
            item["bbox"][:2] = records[n]["bbox"][:2] = [0, 0]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "d.json").write_text(json.dumps(records))
    assert score(tmp_path / "d.json", tmp_path / "truth.json")["AP"] > 0.1
    assert "note: perhaps the boxes were written as (x1, y1, x2, y2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "lists", "split", "protocol"),
    [
        ("VOC2007", ["train", "val", "test"], "test", "voc07"),
        ("VOC2009", ["train", "val"], "val", "voc07"),
        ("VOC2010", ["train", "trainval", "val"], "val", "voc12"),
        ("VOC2012", ["trainval"], "trainval", "voc12"),
        ("VOC2012_small", ["held_out"], "held_out", "voc07"),
        ("cells", ["a", "b"], None, None),
    ],
)
def test_the_split_and_protocol_of_a_voc_folder(
    folder: str, lists: list[str], split: str | None, protocol: str | None, tmp_path: Path
) -> None:
    root = tmp_path / folder
    for name in ("Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for name in lists:
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(f"im_{name}\n")
        (root / "Annotations" / f"im_{name}.xml").write_text(
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
            "<ymax>9</ymax></bndbox></object></annotation>"
        )
    if split is None:
        with pytest.raises(FileNotFoundError, match=r"split val: no file .*there are: a, b"):
            read_truth(root, None)
        return
    truth, usual, chosen = read_truth(root, None)
    assert (truth.image_ids.tolist(), usual, chosen) == ([f"im_{split}"], protocol, split)
    assert read_truth(root, lists[0])[2] == lists[0]


def test_voc_protocol_on_coco_annotations(coco_file: Path, tmp_path: Path) -> None:
    file = coco_results(coco_file, tmp_path / "d.json", jitter=0.15)
    loose = score(file, coco_file, "--protocol", "voc12", "--iou", "0.3")
    strict = score(file, coco_file, "--protocol", "voc12")
    assert 1 > loose["mAP"] > strict["mAP"] > 0
    assert "IoU >= 0.3" in loose["protocol"]


def test_a_score_of_nothing_is_explained(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "d.json"
    file.write_text("[]")
    assert score(file, coco_file)["AP"] == 0.0
    assert "note: there are no detections at all" in capsys.readouterr().out
    corners = json.loads(coco_results(coco_file, file).read_text())
    for record in corners:
        x, y, w, h = record["bbox"]
        record["bbox"] = [x, y, x + w, y + h]
    file.write_text(json.dumps(corners))
    assert 0 < score(file, coco_file)["AP"] < 0.05  # boxes at the image corner read the same
    assert "note: perhaps the boxes were written as (x1, y1, x2, y2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--iou", "0.5"], "error: --iou goes with --protocol voc07 or voc12"),
        (
            ["--protocol", "imagenet_det", "--iou", "0.5"],
            "error: --iou goes with --protocol voc07 or voc12: ImageNet DET has one for each",
        ),
        (["--split", "val"], "error: --split goes with a VOC folder"),
        (["--protocol", "voc07", "--iou", "50"], "error: --iou 50: expected a number above"),
        (
            ["--protocol", "voc07", "--backend", "auto"],
            "error: --backend goes with --protocol coco, not with voc07",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    flags: list[str],
    message: str,
    coco_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = coco_results(coco_file, tmp_path / "d.json")
    assert main(["--detections", str(file), "--annotations", str(coco_file), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_bad_files_are_one_line_and_leave_the_old_numbers(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "numbers.json", tmp_path / "d.json"
    out.write_text("old")
    file.write_text(
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1}])
    )
    cases = {
        (str(file), str(coco_file)): f"error: {file}: record 0: image 1 is not in {coco_file}",
        (str(tmp_path / "gone.json"), str(coco_file)): "error: no detections file",
        (str(tmp_path), str(coco_file)): "error: no VOC results comp4_det_SPLIT_CLASS.txt in",
        (str(file), str(tmp_path / "gone.json")): "error: no annotation file",
        (str(file), str(file)): f"error: {file} is not COCO annotations",
        (str(file), str(tmp_path)): "error: split val: no folder",
    }
    for (found, truth), message in cases.items():
        assert main(["--detections", found, "--annotations", truth, "--json", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(message)
        assert error.count("\n") == 1
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--detections", "d.json"],
        ["--detections", "d.json", "--annotations", "a.json", "--set", "seed=1"],
        ["--detections", "d.json", "--annotations", "a.json", "--weights", "w.safetensors"],
        ["--weights", "w.safetensors", "--annotations", "a.json"],
        ["--detections", "d.json", "--annotations", "a.json", "--json", "."],
        ["--proposals", "p.safetensors", "--annotations", "a.json", "--out", "o"],
    ],
)
def test_impossible_commands_end_with_status_two(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2


def test_out_needs_no_images_and_says_so(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of detections that are the truth itself, without the pictures at hand."""
    content = json.loads(coco_file.read_text())
    rows = [{**item, "score": 0.75} for item in content["annotations"] if not item["iscrowd"]]
    found, alone, out = (tmp_path / name for name in ("found.json", "alone/truth.json", "out"))
    found.write_text(json.dumps(rows))
    alone.parent.mkdir()
    alone.write_text(coco_file.read_text())
    flags = ["--detections", str(found), "--annotations", str(alone), "--out", str(out)]
    assert main(flags) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("note: no sheet of pictures: ")
    assert f"in {out}: pr.csv, " in printed.out
    classes = json.loads((out / "pr.json").read_text())["classes"]
    measured = [of for of in classes.values() if of["num_objects"]]
    assert 10 < len(measured) <= len(classes) == 80
    assert [of["ap"] for of in measured] == pytest.approx([1] * len(measured))
    assert {of["score_threshold"] for of in measured} == {0.75}
    assert not (out / "val.jpg").exists()
    assert main(flags) == 2
    assert f"--out {out} already holds pr.csv" in capsys.readouterr().err


def test_out_has_the_pictures_of_a_voc_folder_where_they_are_there(
    voc_year: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = voc_results(voc_year, tmp_path / "found")
    bare = tmp_path / "bare"
    for name in ("Annotations", "ImageSets"):
        shutil.copytree(voc_year / name, bare / name)
    for year, pictures in ((voc_year, True), (bare, False)):
        out = tmp_path / f"out of {year.name}"
        flags = ["--detections", str(found), "--annotations", str(year), "--out", str(out)]
        assert main([*flags, "--split", "val"]) == 0
        assert (out / "val.jpg").exists() == pictures
        assert ("no sheet of pictures" in capsys.readouterr().err) != pictures
