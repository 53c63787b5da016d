"""predict: pictures and predictions of files and folders, of every kind of pixel, and
nothing overwritten.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres import cli
from detres.cli import eval, predict
from detres.commands.predict import picture_names
from detres.detection.data.shapes import SHAPES_CLASSES
from detres.detection.detector import Detector
from detres.images.decode import read_image
from tests.cli.conftest import SPARSE_IDS, VAL_IMAGES, FinishedRun, read_json, snapshot


@pytest.fixture(autouse=True)
def _fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(finished: FinishedRun) -> Path:
    """A folder `photos` with the held-out images and a text file, relative to the working
    directory.
    """
    shutil.copytree(finished.data / "val", "photos")
    Path("photos/notes.txt").write_text("no image")
    return Path("photos")


def run(finished: FinishedRun, *arguments: str | Path) -> int:
    return predict.main(
        [*map(str, arguments), "--weights", str(finished.weights), "--device", "cpu"]
    )


def found_in(out: Path) -> dict[str, list[dict]]:
    """Detections by image, in the order written."""
    by_image: dict[str, list[dict]] = {}
    for record in read_json(out / "predictions.json"):
        by_image.setdefault(record["image_id"], []).append(
            {key: record[key] for key in ("category_id", "bbox", "score")}
        )
    return by_image


def test_a_folder_gives_the_runs_own_detections_and_a_picture_an_image(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(finished, photos, "--out", "out") == 0
    assert set(snapshot(Path("out"))) == {
        "predictions.json",
        *(f"{number:06d}.jpg" for number in range(1, VAL_IMAGES + 1)),
    }
    found = found_in(Path("out"))
    in_run = read_json(finished.folder / "predictions.json")
    assert {record["category_id"] for records in found.values() for record in records} <= set(
        SPARSE_IDS
    )
    for number in range(1, VAL_IMAGES + 1):
        wanted = [
            {key: record[key] for key in ("category_id", "bbox", "score")}
            for record in in_run
            if record["image_id"] == number
        ]
        assert found[f"photos/{number:06d}.jpg"] == wanted
    assert (
        f"4 pictures and predictions.json ({len(in_run)} detections) in out"
        in capsys.readouterr().out
    )


def test_the_file_evaluates_as_the_run_did_though_names_repeat_in_folders(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_json(finished.val_json)
    for n, image in enumerate(content["images"]):
        file = photos / f"cam{n % 2 + 1}" / f"2019.01.{n // 2}.jpg"
        file.parent.mkdir(exist_ok=True)
        (photos / image["file_name"]).rename(file)
        image["file_name"] = str(file.relative_to(photos))
    Path("truth.json").write_text(json.dumps(content))
    assert run(finished, "photos/cam1", "photos/cam2", "--out", "out") == 0
    flags = ["--detections", "out/predictions.json", "--json", "numbers.json", "--annotations"]
    assert eval.main([*flags, "truth.json"]) == 0
    assert "detections are told by the ends of their paths" in capsys.readouterr().out
    numbers = read_json(Path("numbers.json"))
    for name in ("AP", "AP50", "AR100"):
        assert numbers[name] == pytest.approx(finished.numbers()[name], abs=1e-9)
    for image in content["images"]:  # what told them apart is gone
        image["file_name"] = f"c/{image['file_name'][:3]}/{image['id']}/{image['file_name'][5:]}"
    Path("truth.json").write_text(json.dumps(content))
    assert eval.main([*flags, "truth.json"]) == 2
    assert "file names repeat" in capsys.readouterr().err


def test_only_detections_above_the_score_are_drawn(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = photos / "000001.jpg"
    assert run(finished, file, "--out", "none", "--score", "1") == 0
    assert f"{file}: nothing" in capsys.readouterr().out
    assert run(finished, file, "--out", "all", "--score", "0") == 0
    assert re.search(
        rf"{file}: (circle|square|triangle|star|cross|ring) 0\.\d\d", capsys.readouterr().out
    )
    assert found_in(Path("none")) == found_in(Path("all"))
    image = read_image(file).astype(int)
    changed = {
        out: np.abs(read_image(Path(out) / "000001.jpg").astype(int) - image).max()
        for out in ("none", "all")
    }
    assert changed["none"] < 60 < changed["all"]  # JPEG's own loss, and lines of full colour


def test_every_class_is_drawn_from_its_own_best_score_on_unless_told_otherwise(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = read_json(finished.folder / "pr.json")["classes"]
    lowest = {name: of["score_threshold"] for name, of in classes.items()}
    ids = dict(zip(SPARSE_IDS, classes, strict=True))
    assert run(finished, photos, "--out", "own") == 0
    said = capsys.readouterr().out
    first, score = next(iter(lowest.items()))
    assert said.startswith(f"drawn from the score on that was best on held-out images: {first} ")
    assert f"{first} {score:.2f}, " in said
    assert ", ...; --score S draws from S on" in said  # six classes, of which five are listed
    counts = dict(re.findall(r"^(photos/\S+): (.*) \(decode .*\)$", said, re.MULTILINE))
    for image, records in found_in(Path("own")).items():
        names = [ids[each["category_id"]] for each in records]
        wanted = [
            f"{name} {each['score']:.2f}"
            for name, each in zip(names, records, strict=True)
            if each["score"] >= lowest[name]
        ]
        assert counts[image] == (", ".join(wanted) or "nothing")
    assert run(finished, photos, "--out", "half", "--score", "0.5") == 0
    assert "drawn from" not in capsys.readouterr().out


def test_files_and_folders_mix_and_equal_stems_get_numbers(
    finished: FinishedRun, photos: Path
) -> None:
    Path("more").mkdir()
    shutil.copy(photos / "000002.jpg", "more/000001.jpg")
    cv2.imwrite("more/000001.png", cv2.imread(str(photos / "000003.jpg")))
    assert (
        run(
            finished,
            photos / "000001.jpg",
            "more",
            photos / "000004.jpg",
            photos / "000001.jpg",
            "--out",
            "deep/out",
        )
        == 0
    )
    assert set(snapshot(Path("deep/out"))) == {
        "000001.jpg",
        "000001-2.jpg",
        "000001-3.jpg",
        "000004.jpg",
        "predictions.json",
    }
    assert list(found_in(Path("deep/out"))) == [
        "photos/000001.jpg",
        "more/000001.jpg",
        "more/000001.png",
        "photos/000004.jpg",
    ]
    sizes = [
        read_image(Path("deep/out") / name).shape
        for name in ("000001.jpg", "000001-2.jpg", "000001-3.jpg")
    ]
    assert sizes == [read_image(photos / f"00000{number}.jpg").shape for number in (1, 2, 3)]


def test_grey_alpha_and_sixteen_bits_give_the_detections_of_the_same_picture(
    finished: FinishedRun, photos: Path
) -> None:
    grey = cv2.imread(str(photos / "000001.jpg"), cv2.IMREAD_GRAYSCALE)
    colour = cv2.imread(str(photos / "000002.jpg"))
    alpha = np.dstack((colour, np.full(colour.shape[:2], 128, np.uint8)))
    same = {
        "grey": {
            "grey_as_rgb": np.dstack([grey] * 3),
            "grey": grey,
            "grey_16_bit": grey.astype(np.uint16) * 257,
        },
        "colour": {
            "colour": colour,
            "colour_and_alpha": alpha,
            "colour_16_bit": colour.astype(np.uint16) * 257,
        },
    }
    Path("kinds").mkdir()
    for pictures in same.values():
        for name, pixels in pictures.items():
            cv2.imwrite(f"kinds/{name}.png", pixels)
    assert run(finished, "kinds", "--out", "out") == 0
    found = found_in(Path("out"))
    for pictures in same.values():
        first, *others = (found[f"kinds/{name}.png"] for name in pictures)
        assert first
        assert all(other == first for other in others)
    assert found["kinds/grey.png"] != found["kinds/colour.png"]


def test_an_output_folder_that_holds_predictions_is_left_as_it_is(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(finished, photos / "000001.jpg", "--out", "out") == 0
    before = snapshot(Path("out"))
    for again in ("000001.jpg", "000002.jpg"):
        capsys.readouterr()
        assert run(finished, photos / again, "--out", "out") == 2
        assert "nothing is overwritten" in capsys.readouterr().err
    assert snapshot(Path("out")) == before


def test_the_pictures_given_are_never_written_over(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(photos)
    assert run(finished, photos, "--out", photos) == 2
    assert "error: --out photos already holds 000001.jpg" in capsys.readouterr().err
    assert snapshot(photos) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "photos/gone.jpg"), "error: no image or folder photos/gone.jpg"),
        (("empty",), "in folder empty"),
        (
            ("photos/notes.txt",),
            "error: photos/notes.txt: line 1: no image 'no image' in photos or in the working",
        ),
        (
            ("photos/cut.jpg",),
            "error: none of 1 images could be read: image file photos/cut.jpg cannot be read",
        ),
        (("photos/empty.txt",), "error: the list of images photos/empty.txt names none"),
        (
            ("photos/text.mp4",),
            "error: none of 1 images could be read: video photos/text.mp4 cannot be opened",
        ),
        (
            ("photos/000001.jpg", "--tile", "16"),
            "error: a tile of 16 px, expected 32 or more",
        ),
        (
            ("photos/000001.jpg", "--tile", "64", "--overlap", "20"),
            "error: tiles overlap by 20 of their side, expected above 0",
        ),
        (
            ("photos/000001.jpg", "--out", "photos/notes.txt"),
            "error: --out photos/notes.txt is a file",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    arguments: tuple[str, ...],
    message: str,
    finished: FinishedRun,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("empty").mkdir()
    Path("photos/cut.jpg").write_bytes((photos / "000001.jpg").read_bytes()[:2000])
    Path("photos/empty.txt").write_bytes(b"")
    Path("photos/text.mp4").write_text("no video")
    out = () if "--out" in arguments else ("--out", "out")
    assert run(finished, *arguments, *out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_one_image_that_cannot_be_read_does_not_cost_the_others(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "000002.jpg").write_bytes((photos / "000001.jpg").read_bytes()[:2000])
    assert run(finished, photos, "--out", "out") == 2
    error = capsys.readouterr().err
    assert (
        f"error: 1 of {VAL_IMAGES} images could not be read and are not in out: image file "
        "photos/000002.jpg" in error
    )
    assert set(found_in(Path("out"))) <= {
        f"photos/{number:06d}.jpg" for number in range(1, VAL_IMAGES + 1) if number != 2
    }
    assert set(snapshot(Path("out"))) == {
        "predictions.json",
        *(f"{n:06d}.jpg" for n in range(1, VAL_IMAGES + 1) if n != 2),
    }


def test_the_installed_command_is_the_script(
    finished: FinishedRun,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [
        str(photos / "000001.jpg"),
        "--weights",
        str(finished.weights),
        "--out",
        "out",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr("sys.argv", ["detres", "predict", *arguments])
    assert cli.main() == 0
    assert list(found_in(Path("out"))) == ["photos/000001.jpg"]


def test_a_picture_that_jpeg_cannot_hold_costs_nothing_else(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite("photos/000000.png", np.full((4, 66_000, 3), 128, np.uint8))
    assert run(finished, photos, "--out", "out", "--score", "0") == 0
    shown = capsys.readouterr()
    assert "note: photos/000000.png: no picture of it, out/000000.jpg: 66000x4 px" in shown.err
    assert f"{VAL_IMAGES} pictures and predictions.json" in shown.out
    assert not Path("out/000000.jpg").exists()
    assert "photos/000001.jpg" in found_in(Path("out"))
    assert "photos/000000.png" in found_in(Path("out"))


def test_image_files_that_are_left_out_are_counted_and_named(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.heic", "b.AVIF", "._000001.jpg", ".DS_Store"):
        (photos / name).write_bytes(b"\0\5\26\7")
    (photos / "folder.jpg").mkdir()
    assert run(finished, photos, "--out", "out") == 0
    shown = capsys.readouterr()
    assert "note: 2 image files of other formats are left out: a.heic, b.AVIF;" in shown.err
    assert "passed over" not in shown.out


def test_links_and_fifos_are_passed_over_by_name(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "link.jpg").symlink_to("gone.jpg")
    os.mkfifo(photos / "x.jpg")
    assert run(finished, photos, "--out", "out") == 2
    shown = capsys.readouterr()
    assert "photos/link.jpg: passed over" in shown.out
    assert "photos/x.jpg: passed over" in shown.out
    assert "photos/link.jpg is a link to gone.jpg, which is not there" in shown.err
    assert len(found_in(Path("out"))) == VAL_IMAGES
    assert run(finished, photos / "x.jpg", "--out", "again") == 2
    assert "image photos/x.jpg is a FIFO, expected a file" in capsys.readouterr().err


def test_a_name_does_not_steer_the_console(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "000001.jpg").rename(photos / "a\x1b[2J\nb.jpg")
    assert run(finished, photos, "--out", "out") == 0
    shown = capsys.readouterr().out
    assert "photos/a\\x1b[2J b.jpg: " in shown
    assert "\x1b" not in shown


# ---- names, lists, times ----


def test_a_list_of_files_and_a_run_by_its_folder(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is named by a list is what is named by hand; records have the name of their class."""
    Path("some.txt").write_text("photos/000003.jpg\nphotos/000001.jpg\n")
    flags = ["--weights", str(finished.folder), "--device", "cpu", "--out"]
    assert predict.main(["some.txt", "photos/000001.jpg", *flags, "out"]) == 0
    shown = capsys.readouterr().out
    times = r"decode \d+ ms, model \d+ ms, total \d+ ms"
    for number in (1, 3):
        assert re.search(rf"(?m)^photos/00000{number}\.jpg: .* \({times}\)$", shown)
    assert re.search(rf"(?m)^an image: {times} \(median of 2\)$", shown)
    assert set(snapshot(Path("out"))) == {"predictions.json", "000001.jpg", "000003.jpg"}
    assert run(finished, photos / "000003.jpg", photos / "000001.jpg", "--out", "by_hand") == 0
    records = read_json(Path("out/predictions.json"))
    assert records == read_json(Path("by_hand/predictions.json"))
    name_of = dict(zip(SPARSE_IDS, SHAPES_CLASSES, strict=True))
    assert records
    assert all(name_of[each["category_id"]] == each["category_name"] for each in records)
    in_python = Detector.load(finished.weights).predict("some.txt")
    assert [record for each in in_python for record in each.to_coco()] == records


# ---- videos ----


def video_of(path: Path, photos: Path, code: str = "mp4v") -> np.ndarray:
    """Write the photographs of a folder, cut to 96x96 px, as the frames of a video, each twice."""
    images = [cv2.imread(str(file))[:96, :96] for file in sorted(photos.glob("*.jpg"))] * 2
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 5, (96, 96))
    for image in images:
        writer.write(image)
    writer.release()
    return np.stack(images)


def test_a_video_becomes_a_video_and_its_frames_are_counted(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = video_of(Path("clip.avi"), photos, "MJPG")
    image = photos / "000001.jpg"
    assert run(finished, "clip.avi", image, "--out", "out", "--score", "0.06") == 0
    shown = capsys.readouterr().out
    assert set(snapshot(Path("out"))) == {"clip.mp4", "000001.jpg", "predictions.json"}
    assert "1 video, 1 picture and predictions.json" in shown
    assert f"clip.avi: {len(frames)} frames, " in shown
    records = read_json(Path("out/predictions.json"))
    of_frames = [record for record in records if "frame" in record]
    of_image = [record for record in records if "frame" not in record]
    assert {record["image_id"] for record in of_image} == {str(image)}
    assert {record["frame"] for record in of_frames} == set(range(len(frames)))
    for record in of_frames:
        assert record["video"] == "clip.avi"
        assert record["image_id"] == f"clip.avi/{record['frame']:06d}"
    capture = cv2.VideoCapture("clip.avi")
    decoded = [capture.read()[1][:, :, ::-1] for _ in frames]
    in_python = Detector.load(finished.weights).predict(decoded)
    assert [record["score"] for record in of_frames] == [
        score for each in in_python for score in each.scores.tolist()
    ]
    written = cv2.VideoCapture("out/clip.mp4")
    assert written.get(cv2.CAP_PROP_FPS) == 5
    drawn = [written.read()[1].astype(int)[:, :, ::-1] for _ in frames]
    assert not written.read()[0]
    for mine, its, found in zip(drawn, decoded, in_python, strict=True):
        wanted = found.above(0.06).draw()
        assert np.abs(mine - wanted).mean() <= np.abs(mine - its).mean()


def test_a_video_that_ends_early_gives_what_it_has_and_an_answer(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that cannot be opened costs the others nothing."""
    frames = video_of(Path("cut.avi"), photos, "MJPG")
    data = Path("cut.avi").read_bytes()
    Path("cut.avi").write_bytes(data[: len(data) * 2 // 3])
    video_of(Path("bad.mp4"), photos)
    Path("bad.mp4").write_bytes(Path("bad.mp4").read_bytes()[:3000])
    assert run(finished, "cut.avi", "--out", "out") == 2
    shown = capsys.readouterr()
    message = re.search(r"error: video cut\.avi ends early: (\d+) of the (\d+) frames", shown.err)
    count = int(message[1])
    assert 0 < count < int(message[2]) == len(frames)
    assert "what there is of it is in out" in shown.err
    assert shown.err.count("error") == 1
    numbers = {record["frame"] for record in read_json(Path("out/predictions.json"))}
    assert numbers == set(range(count))
    assert run(finished, "bad.mp4", photos / "000001.jpg", "--out", "both") == 2
    shown = capsys.readouterr()
    assert "bad.mp4: passed over, it cannot be read" in shown.out
    assert "error: 1 of 2 images could not be read and are not in both: video bad.mp4" in shown.err
    assert set(snapshot(Path("both"))) == {"000001.jpg", "predictions.json"}


def test_a_video_is_never_written_over(
    finished: FinishedRun, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video_of(Path("photos/clip.mp4"), photos)
    before = snapshot(photos)
    assert run(finished, "photos/clip.mp4", "--out", "photos") == 2
    assert "error: --out photos already holds clip.mp4" in capsys.readouterr().err
    assert snapshot(photos) == before


# ---- tiles ----


@pytest.mark.parametrize("score", ["50", "nan", "-0.1", "inf", "high"])
def test_a_score_that_is_none_is_a_usage_error(score, capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main(["a.jpg", "--weights", "w", f"--score={score}"])
    assert ended.value.code == 2
    assert f"{score!r} is no score: give a number from 0 to 1" in capsys.readouterr().err


def test_tiles_find_in_a_large_picture_what_they_find_alone(
    finished: FinishedRun, photos: Path
) -> None:
    """Two photographs side by side: by tiles the detections are those of Python's tiles, with the
    whole picture beside them unless told otherwise.
    """
    images = [cv2.imread(str(photos / f"00000{number}.jpg"))[:96, :96] for number in (1, 2)]
    cv2.imwrite("wide.png", np.concatenate(images * 2, axis=1))
    detector = Detector.load(finished.weights)
    for flags, told in (
        (["--tile", "96"], {"tile": 96}),
        (["--tile", "128", "--overlap", "0.5"], {"tile": 128, "overlap": 0.5}),
        (["--tile", "96", "--tiles-only"], {"tile": 96, "whole": False}),
    ):
        out = "".join(flags).strip("-")
        assert run(finished, "wide.png", *flags, "--out", out) == 0
        found = read_json(Path(out) / "predictions.json")
        assert found == detector.predict("wide.png", **told).to_coco()
        assert found
    assert len({Path(out).read_text() for out in Path().glob("*/predictions.json")}) == 3


@pytest.mark.parametrize("flags", [("--overlap", "0.3"), ("--tiles-only",)])
def test_flags_of_tiles_alone_are_a_usage_error(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict.main(["a.jpg", "--weights", "x", *flags])
    assert stopped.value.code == 2
    assert "--overlap and --tiles-only go with --tile" in capsys.readouterr().err


def test_pictures_are_named_in_linear_time() -> None:
    """So many that looking through all names for each would never end."""
    files = [Path(f"{n}/a.jpg") for n in range(200_000)] + [Path("a-3.jpg"), Path("b.jpg")]
    names = picture_names(files)
    assert len(set(names.values())) == len(files)
    assert [names[file] for file in files[:3]] == ["a.jpg", "a-2.jpg", "a-3.jpg"]
    assert names[Path("b.jpg")] == "b.jpg"


def test_pictures_and_videos_of_one_name_have_names_of_their_own() -> None:
    files = [Path("a.avi"), Path("a.jpg"), Path("x/a.MP4"), Path("a.png"), Path("a-2.mp4")]
    names = picture_names(files)
    assert list(names.values()) == ["a.mp4", "a.jpg", "a-2.mp4", "a-2.jpg", "a-2-2.mp4"]
