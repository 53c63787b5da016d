"""predict --shard: every image once, whatever dies, and nothing that is there overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

import detres
from detres.cli import eval, predict
from tests.cli.conftest import VAL_IMAGES, FinishedRun, read_json, snapshot

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def photos(finished: FinishedRun) -> Path:
    """A folder `photos`, relative to the working directory: the held-out images under names whose
    order is not that of their numbers, another in a format that is left out, a text file.
    """
    Path("photos").mkdir()
    for source in sorted((finished.data / "val").iterdir()):
        for copy in range(3):
            shutil.copy(source, f"photos/{copy}{source.stem}{'.JPG' if copy else '.jpg'}")
    Path("photos/notes.txt").write_text("no image")
    Path("photos/.hidden.jpg").write_text("no image")
    return Path("photos")


NUM = 3 * VAL_IMAGES

Shard = Callable[..., int]


@pytest.fixture
def shard(finished: FinishedRun) -> Shard:
    """Return a function: a shard and further arguments -> the exit status of looking at photos."""

    def call(of: str, *arguments: str, images: str = "photos", out: str = "out") -> int:
        flags = ["--weights", str(finished.weights), "--device", "cpu", "--out", out]
        return predict.main([images, *flags, "--shard", of, *arguments])

    return call


def name_of(number: int, of: int) -> str:
    return f"shard-{number:05d}-of-{of:05d}.jsonl"


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def said_of(result: pytest.CaptureFixture[str]) -> list[str]:
    return result.readouterr().out.splitlines()


@pytest.mark.parametrize("of", [1, 3, 14])
def test_every_image_is_in_one_shard_with_the_numbers_of_the_detector(
    of: int,
    photos: Path,
    finished: FinishedRun,
    shard: Shard,
    capsys: pytest.CaptureFixture[str],
) -> None:
    numbers = [*range(1, of + 1)]
    for number in [*numbers[1::2], *numbers[::2]]:  # in any order
        assert shard(f"{number}/{of}") == 0
    assert said_of(capsys)[-1] == (
        f"all {of} shard{'s'[: of - 1]} in out: {NUM} images, 0 of them unreadable"
    )
    names = sorted(str(path) for path in photos.glob("[0-9]*"))
    assert len(names) == NUM
    rows = []
    for number in numbers:
        own = lines_of(Path("out") / name_of(number, of))
        assert [row["path"] for row in own] == names[number - 1 :: of]
        rows += own
    by_name = {row["path"]: row for row in rows}
    assert sorted(row["path"] for row in rows) == names
    for results in detres.load(finished.weights).predict(names):
        row = by_name[str(results.image)]
        assert row["boxes"] == results.boxes.tolist()
        assert row["scores"] == results.scores.tolist()
        assert row["names"] == results.names
        assert (row["height"], row["width"], row["error"]) == (*results.size, "")
    assert sum(len(row["boxes"]) for row in rows) > 0


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("of", "missing"),
    [(9, "2, 3, 4, 5, 6, 7, 8, 9"), (10, "2, 3, 4, 5, 6, 7, 8, 9, ...")],
)
def test_up_to_eight_missing_shards_are_named(
    shard: Shard, capsys: pytest.CaptureFixture[str], of: int, missing: str
) -> None:
    assert shard(f"1/{of}") == 0
    assert said_of(capsys)[-1] == f"1 of {of} shards in out; still missing: {missing}"


def test_a_finished_shard_is_passed_over_and_what_is_missing_is_said(
    photos: Path, shard: Shard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shard("2/3") == 0
    assert said_of(capsys) == [
        f"out/{name_of(2, 3)}: {NUM // 3} images",
        "1 of 3 shards in out; still missing: 1, 3",
    ]
    before = snapshot(Path("out"))
    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert shard("2/3") == 0
    assert said_of(capsys) == [
        f"out/{name_of(2, 3)}: passed over, it is there, whole and made of the same",
        "1 of 3 shards in out; still missing: 1, 3",
    ]
    assert snapshot(Path("out")) == before
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == times
    entry = read_json(Path("out/_manifest/shard-00002-of-00003.json"))
    assert entry["images_in_all"] == NUM == 3 * entry["images"]
    assert entry["detres"] == detres.__version__
    assert entry["output"]["sha256"] == before[name_of(2, 3)]
    assert photos.is_dir()


def test_the_order_in_which_a_machine_lists_a_folder_does_not_matter(
    photos: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shard("2/3") == 0
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listing(self), reverse=True))
    assert shard("2/3", out="other") == 0
    assert snapshot(Path("other")) == snapshot(Path("out"))
    assert photos.is_dir()


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("fault", ["changed", "cut", "gone", "no entry", "no JSON", "not finished"])
def test_a_damaged_shard_is_made_anew_and_this_said(
    fault: str, shard: Shard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shard("1/2") == shard("2/2") == 0
    whole = snapshot(Path("out"))
    capsys.readouterr()
    output, entry = Path("out") / name_of(1, 2), Path("out/_manifest/shard-00001-of-00002.json")
    content = output.read_bytes()
    if fault == "changed":
        output.write_bytes(content.replace(b"0.", b"1.", 1))
    elif fault == "cut":
        output.write_bytes(content[:-9])
    elif fault == "gone":
        output.unlink()
    elif fault == "no entry":
        entry.unlink()
    elif fault == "no JSON":
        entry.write_bytes(entry.read_bytes()[:-9])
    else:
        entry.write_text(json.dumps({**read_json(entry), "output": None}))
    assert shard("1/2") == 0
    said = said_of(capsys)
    assert said[0].startswith(f"{output}: made anew, it")
    assert said[1:] == [
        f"{output}: {NUM // 2} images",
        f"all 2 shards in out: {NUM} images, 0 of them unreadable",
    ]
    assert snapshot(Path("out")) == whole


@pytest.mark.parametrize(
    ("of", "arguments", "change", "said"),
    [
        ("1/2", ["--score", "0.5"], None, "was made with score 0.0, not 0.5"),
        ("2/2", ["--score", "0.5"], None, "was made with score 0.0, not 0.5"),
        ("1/2", ["--tile", "64"], None, "was made with tile None, not 64"),
        (
            "2/2",
            ["--precision", "bf16"],
            None,
            "was made with precision of the weights, not bf16",
        ),
        ("1/2", [], "more", f"is of {NUM} images in all, which are {NUM + 1} now"),
        ("2/2", [], "more", f"is of {NUM} images in all, which are {NUM + 1} now"),
        ("1/2", [], "renamed", f"is of {NUM} images in all, which have other names now"),
        ("1/2", [], "longer", "was made of images that had other sizes in bytes"),
        ("2/2", [], "weights", "was made with other weights, sha256 "),
        ("1/3", [], None, "out holds shard 1 of 2, and this is shard 1 of 3"),
    ],
)
def test_shards_that_were_made_otherwise_are_left_as_they_are(
    of: str,
    arguments: list[str],
    change: str | None,
    said: str,
    photos: Path,
    finished: FinishedRun,
    shard: Shard,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert shard("1/2") == 0
    before = snapshot(Path("out"))
    first = min(photos.glob("0*.jpg"))
    if change == "more":
        shutil.copy(first, photos / "new.jpg")
    elif change == "renamed":
        first.rename(photos / "0.jpg")
    elif change == "longer":
        first.write_bytes(first.read_bytes() + b"\0")
    elif change == "weights":
        arguments = ["--weights", str(finished.folder / "last.pt")]
    capsys.readouterr()
    assert shard(of, *arguments) == 2
    (line,) = (
        capsys.readouterr()
        .err.removeprefix(
            f"note: {finished.folder / 'last.pt'} is the state of a run after step 4\n"
        )
        .splitlines()
    )
    where = "" if said.startswith("out holds") else f"out/{name_of(1, 2)} "
    assert line.startswith(f"error: {where}{said}")
    assert line.endswith(": give another folder with --out")
    assert snapshot(Path("out")) == before


def test_a_changed_image_of_another_shard_does_not_matter_to_this_one(
    photos: Path, shard: Shard
) -> None:
    """So a shard with a damaged image that was repaired can be made anew alone."""
    assert shard("2/2") == 0
    first = min(photos.glob("0*.jpg"))
    first.write_bytes(first.read_bytes() + b"\0")
    assert shard("1/2") == shard("2/2") == 0


def test_a_damaged_image_has_a_line_of_its_own_and_is_counted(
    photos: Path, shard: Shard, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(photos.glob("[0-9]*"))
    files[2].write_bytes(files[2].read_bytes()[:500])
    files[4].write_bytes(b"")
    assert shard("1/2") == shard("2/2") == 0
    said = said_of(capsys)
    assert said[1].startswith("2 of them cannot be read, which their lines say: image file photos/")
    assert said[-1] == f"all 2 shards in out: {NUM} images, 2 of them unreadable"
    rows = lines_of(Path("out") / name_of(1, 2))
    assert [bool(row["error"]) for row in rows] == [False, True, True, False, False, False]
    assert [row["path"] for row in rows] == [str(path) for path in files[::2]]
    assert rows[2]["error"] == f"image file {files[4]} cannot be read: the file is empty"
    assert rows[2]["boxes"] == []


def test_an_image_that_cannot_be_fetched_stops_the_shard(
    photos: Path, shard: Shard, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a disk or a network does not give now may be there at the next try: no line says that
    it is damaged.
    """
    file = max(photos.glob("[0-9]*"))
    content = file.read_bytes()
    file.unlink()
    file.symlink_to("nowhere")
    assert shard("1/1") == 2
    assert str(file) in capsys.readouterr().err
    assert not list(Path("out").glob("*.jsonl"))
    file.unlink()
    file.write_bytes(content)
    assert shard("1/1") == 0
    assert len(lines_of(Path("out") / name_of(1, 1))) == NUM


def test_images_and_shards_may_be_behind_urls(
    photos: Path, shard: Shard, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = fsspec.filesystem("memory")
    for path in photos.iterdir():
        memory.pipe(f"/bucket/photos/{path.name}", path.read_bytes())
    memory.pipe("/bucket/photos/deeper/0.jpg", b"")
    for number in (1, 2):
        assert shard(f"{number}/2") == 0
        assert shard(f"{number}/2", images="memory://bucket/photos", out="memory://bucket/out") == 0
    assert said_of(capsys)[-1].startswith("all 2 shards in memory://bucket/out: 12 images")
    for number in (1, 2):
        own = lines_of(Path("out") / name_of(number, 2))
        text = memory.cat(f"/bucket/out/{name_of(number, 2)}").decode()
        remote = [json.loads(line) for line in text.splitlines()]
        assert [{**row, "path": Path(row["path"]).name} for row in remote] == [
            {**row, "path": Path(row["path"]).name} for row in own
        ]
        assert all(row["path"].startswith("memory://") for row in remote)
    assert shard("1/2", images="memory://bucket/photos", out="memory://bucket/out") == 0
    assert "passed over" in said_of(capsys)[0]
    memory.pipe(f"/bucket/out/{name_of(1, 2)}", b"")
    assert shard("1/2", images="memory://bucket/ph*/*", out="memory://bucket/out") == 0
    assert "made anew" in said_of(capsys)[0]
    assert memory.cat(f"/bucket/out/{name_of(1, 2)}").count(b"\n") == NUM // 2
    assert shard("1/1", images="photos", out=f"file://{Path.cwd()}/local") == 0
    assert len(lines_of(Path("local") / name_of(1, 1))) == NUM


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["memory://gone"], "nothing is at memory://gone"),
        (["klingon://b"], "klingon://b cannot be opened: "),
        (["photos", "--out", "klingon://b"], "klingon://b cannot be opened: "),
        (["photos", "--out", "photos/notes.txt"], "--out photos/notes.txt is a file"),
        (["film.mp4"], "film.mp4 is a video"),
    ],
)
def test_bad_input_is_a_line(
    arguments: list[str], said: str, finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("film.mp4").write_bytes(b"x")
    weights = ["--weights", str(finished.weights), "--device", "cpu"]
    assert predict.main(["--shard", "1/2", *arguments, *weights]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert not Path("predictions").exists()


@pytest.mark.parametrize("text", ["0/8", "9/8", "-1/8"])
def test_a_shard_that_there_is_not_is_said(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict.main(["a.jpg", "--weights", "w", f"--shard={text}"])
    line = capsys.readouterr().err.splitlines()[-1]
    wanted = "is no shard: give I/N, such as 2/8" if text[0] == "-" else "they are 1/8 to 8/8"
    assert line.endswith(wanted)


PYTHON = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "at_scale.md").read_text("utf-8"), re.DOTALL
)


def test_shards_as_coco_results_are_what_predict_writes(
    finished: FinishedRun, shard: Shard
) -> None:
    """By the lines in docs/at_scale.md; and they are evaluated."""
    shutil.copytree(finished.data / "val", "photos")
    assert shard("1/2", out="found") == shard("2/2", out="found") == 0
    (code,) = [block for block in PYTHON if "predictions.json" in block]
    exec(compile(code, "docs/at_scale.md", "exec"), {})
    by_shards = read_json(Path("predictions.json"))
    weights = ["--weights", str(finished.weights), "--device", "cpu"]
    assert predict.main(["photos", *weights, "--out", "plain"]) == 0
    plain = read_json(Path("plain/predictions.json"))
    key = json.dumps
    assert sorted(by_shards, key=lambda each: key(each, sort_keys=True)) == sorted(
        ({k: v for k, v in each.items() if k != "category_name"} for each in plain),
        key=lambda each: key(each, sort_keys=True),
    )
    annotations = ["--annotations", str(finished.val_json), "--json", "numbers.json"]
    assert eval.main(["--detections", "predictions.json", *annotations]) == 0
    assert read_json(Path("numbers.json"))["AP"] == pytest.approx(finished.numbers()["AP"])


@pytest.mark.slow
def test_whatever_is_killed_the_shards_are_those_of_an_undisturbed_run(
    photos: Path, finished: FinishedRun, shard: Shard
) -> None:
    """Five processes are killed, at moments spread over the time that a shard takes."""
    assert shard("1/2", out="undisturbed") == shard("2/2", out="undisturbed") == 0
    begin = [sys.executable, str(ROOT / "tools/predict.py"), "photos", "--out", "out"]
    begin += ["--weights", str(finished.weights), "--device", "cpu", "--shard"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run([*begin[:4], "whole", *begin[5:], "1/2"], env=environment, check=True)
    takes = time.monotonic() - start
    for share in (0.3, 0.6, 0.8, 0.9, 1.0):
        process = subprocess.Popen([*begin, "1/2"], env=environment)
        time.sleep(share * takes)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert {path.name for path in Path("out").glob("*.jsonl")} <= {name_of(1, 2)}
    assert shard("1/2") == shard("2/2") == 0
    made = {name: digest for name, digest in snapshot(Path("out")).items() if name[0] != "."}
    assert made == snapshot(Path("undisturbed"))
    assert photos.is_dir()
