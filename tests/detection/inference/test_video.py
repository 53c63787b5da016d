"""Videos, written and read by OpenCV itself."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.detection.inference.pictures import PictureError
from detres.detection.inference.video import Video, is_video, open_video, writing_video

FRAMES, RATE = 30, 12.5


def frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Red on the left, and on the right a grey that rises with the number."""
    image = np.full((height, width, 3), 8 * number, np.uint8)
    image[:, : width // 2] = (200, 0, 0)
    return image


def write(path: Path, code: str = "mp4v", frames: int = FRAMES) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), RATE, (64, 48))
    for number in range(frames):
        writer.write(frame(number)[:, :, ::-1])
    writer.release()
    return path


KINDS = [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.webm", "VP80")]


@pytest.mark.parametrize(("name", "code"), KINDS)
def test_frames_are_rgb_in_their_order(name: str, code: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, code)
    assert is_video(path)
    with open_video(path) as video:
        assert (video.rate, video.stated) == (RATE, FRAMES)
        for number, image in enumerate(video):
            assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)
            assert image.flags["C_CONTIGUOUS"]
            assert np.abs(image[:, 4:28].astype(int) - (200, 0, 0)).mean() < 12
            assert abs(int(image[:, 36:60].mean()) - 8 * number) < 8
        assert number == FRAMES - 1
        assert video.shortfall is None


@pytest.mark.parametrize(("name", "code"), KINDS[1:])
def test_a_video_that_ends_early_gives_what_it_has_and_says_so(
    name: str, code: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, code)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_video(path) as video:
        count = len(list(video))
    assert 0 < count < FRAMES
    assert video.shortfall == (
        f"video {path} ends early: {count} of the {FRAMES} frames that it says it has can be read; "
        "the file is cut or damaged"
    )


def test_a_video_whose_index_is_cut_off_cannot_be_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("a.mp4", "text.mp4", "empty.mp4"):
        with (
            pytest.raises(ValueError, match=rf"video \S*{name} cannot be opened: it is no video"),
            open_video(tmp_path / name),
        ):
            pass


def test_a_video_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for name, message in (("gone.mp4", "no video"), ("folder.mp4", "is a folder")):
        with pytest.raises(FileNotFoundError, match=message), open_video(tmp_path / name):
            pass


def test_a_video_without_frames_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", "MJPG", frames=1)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"movi") + 4])
    with (
        pytest.raises(ValueError, match=r"a\.avi(: no frame of it can be read| cannot be opened)"),
        open_video(path) as video,
    ):
        list(video)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63), (47, 64)])
def test_what_is_written_is_read_back(height: int, width: int, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "b.mp4"
    with writing_video(path, RATE) as add:
        for number in range(5):
            add(frame(number, height, width))
        assert not path.exists()
    assert [each.name for each in path.parent.iterdir()] == ["b.mp4"]
    with open_video(path) as video:
        assert video.rate == RATE
        images = list(video)
    assert len(images) == 5
    assert images[0].shape == (height // 2 * 2, width // 2 * 2, 3)
    assert np.abs(images[3][:40, 4:28].astype(int) - (200, 0, 0)).mean() < 12


def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "b.mp4"
    path.write_bytes(b"before")
    with writing_video(tmp_path / "c.mp4", RATE) as add:
        add(frame(0))
        with pytest.raises(PictureError, match=r"a frame of 30x20 px in a video of 64x48 px"):
            add(frame(1, 20, 30))

    def stop_half_way() -> None:
        with writing_video(path, RATE) as add:
            add(frame(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert path.read_bytes() == b"before"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["b.mp4", "c.mp4"]


def test_no_frame_makes_no_file(tmp_path: Path) -> None:
    with writing_video(tmp_path / "deep" / "b.mp4", RATE):
        pass
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("name", "expected"), [("a.MP4", True), ("a.avi", True), ("a.gif", False), ("mp4", False)]
)
def test_a_video_is_told_by_its_suffix(name: str, expected: bool) -> None:
    assert is_video(Path(name)) is expected


@pytest.mark.parametrize(
    ("stated", "rate"), [(0.5, 0.5), (1.0, 1.0), (0.0, 25.0), (-1.0, 25.0), (math.nan, 25.0)]
)
def test_a_rate_is_what_the_file_says_where_that_can_be(stated: float, rate: float) -> None:
    class Capture:
        def get(self, what: int) -> float:
            return stated if what == cv2.CAP_PROP_FPS else 3.0

    assert Video(Path("a.avi"), Capture()).rate == rate
