"""Videos: files to frames, (H, W, 3) uint8 RGB as images are, and frames to a file."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from detres.detection.choices import VIDEO_SUFFIXES
from detres.detection.inference.pictures import PictureError
from detres.files import replacing
from detres.user_files import require_file

_USUAL_RATE = 25.0
"""Frames a second of a video that does not say."""

_EARLY = 0.02
"""Of the frames that a file says it has: so many may be missing from one that is whole, for some
formats state a length from which the number is guessed.
"""


class VideoError(ValueError):
    """A video that cannot be read, or ends early; the message names it."""


def is_video(path: Path) -> bool:
    """Return whether a path is a video's, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class Video:
    """A video file that is open: `rate`, frames a second, `stated`, how many frames it says it has
    (0: it does not say), and its frames, once; after them `shortfall` says how many of these there
    were where they are fewer, else it is None.
    """

    def __init__(self, path: Path, capture: cv2.VideoCapture) -> None:
        self.path, self._capture = path, capture
        rate, stated = (capture.get(each) for each in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if math.isfinite(rate) and rate > 0 else _USUAL_RATE
        self.stated = max(0, round(stated)) if math.isfinite(stated) else 0
        self.shortfall: str | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield its frames, (H, W, 3) uint8 RGB, turned as the file says; raises VideoError when
        there are none.
        """
        number = 0
        while True:
            there, frame = self._capture.read()
            if not there:
                break
            yield np.ascontiguousarray(frame[:, :, ::-1])
            number += 1
        if number == 0:
            raise VideoError(f"video {self.path}: no frame of it can be read: it is damaged")
        if number < self.stated * (1 - _EARLY) - 1:
            self.shortfall = (
                f"video {self.path} ends early: {number} of the {self.stated} frames that it says "
                "it has can be read; the file is cut or damaged"
            )


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Give a video file, open; raises FileNotFoundError where there is none, VideoError for a file
    that is no video, or damaged at its beginning, or of a format that OpenCV does not read.
    """
    require_file(path, "video")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # else it writes to stderr by itself
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise VideoError(
                f"video {path} cannot be opened: it is no video, or cut (an .mp4 that was not "
                "finished has its index, at the end, missing), or of a format that OpenCV lacks"
            )
        yield Video(path, capture)
    finally:
        capture.release()


@contextlib.contextmanager
def writing_video(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Give what adds a frame, (H, W, 3) uint8 RGB, to an .mp4 file of `rate` frames a second; when
    the block succeeds, it is put in its place in one step.

    The first frame gives the size, but for the last row and column where they are odd in number.
    Without a frame no file is made. Raises PictureError for a frame of another size, and where
    OpenCV cannot write such a file.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    writer, size = None, None
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")  # the suffix is the format

    def add(frame: np.ndarray) -> None:
        nonlocal writer, size
        if writer is None:
            size = frame.shape[:2]
            path.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(temporary), code, rate, (size[1], size[0]))
            if not writer.isOpened():
                raise PictureError(
                    f"{path}: OpenCV cannot write it (MPEG-4, {size[1]}x{size[0]} px)"
                )
        if frame.shape[:2] != size:
            raise PictureError(
                f"{path}: a frame of {frame.shape[1]}x{frame.shape[0]} px in a video of "
                f"{size[1]}x{size[0]} px"
            )
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))

    try:
        yield add
        if writer is not None:
            writer.release()
            with replacing(path) as last:
                os.replace(temporary, last)
    finally:
        if writer is not None:
            writer.release()
        temporary.unlink(missing_ok=True)
