"""Detect in images and videos and draw what was found, or classify images:
`predict --weights FILE IMAGE_OR_FOLDER... --out DIR`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from detres.classification.classifier import Classifier
from detres.classification.weights_file import is_classifier
from detres.cli.flags import notice, say
from detres.commands.configured import require_free, weights_of
from detres.commands.predict_shard import predict_shard
from detres.console import one_line, plural
from detres.detection.choices import DRAWN_SCORE
from detres.detection.detector import Detector
from detres.detection.inference.pictures import PictureError, write_jpeg
from detres.detection.inference.results import Results
from detres.detection.inference.tiles import Tiling
from detres.detection.inference.video import (
    Video,
    VideoError,
    is_video,
    open_video,
    writing_video,
)
from detres.engine.allocator import keep_pages
from detres.files import replacing, write_text
from detres.images.ahead import read_ahead
from detres.images.decode import ImageReadError, read_image
from detres.images.given import find_images, left_out
from detres.predictors import load
from detres.runs.folder import PREDICTIONS
from detres.waiting import counted

LISTED = 5
"""Of files that are left out, so many are named in a line."""

Images = Iterator[tuple[Path, np.ndarray | None, float]]
"""Files with their pixels (H, W, 3) uint8 RGB, and the seconds that decoding took; videos without.
"""


def predict(arguments: argparse.Namespace) -> None:
    """Detect or classify, by what the weights are of, in every image and video named, or detect in
    a shard of the images.

    Raises ImageReadError at the end when some could not be read, or end early; the others, and what
    there is of these, are written by then.
    """
    keep_pages()
    if arguments.shard is not None:
        predict_shard(arguments)
        return
    named = [Path(item) for item in arguments.images]
    if others := left_out(named):
        listed = ", ".join(one_line(file.name) for file in others[:LISTED])
        notice(
            f"{len(others)} image files of other formats are left out: {listed}"
            f"{', ...' if len(others) > LISTED else ''}; convert them to JPEG or PNG"
        )
    files = find_images(named)
    out = Path(arguments.out)
    require_free(out, [])
    names = picture_names(files)
    tiling = tiling_of(arguments)
    weights = arguments.weights = weights_of(arguments.weights, offline=arguments.offline)
    classifies = is_classifier(Path(weights))
    if classifies:
        require_a_detectors(arguments, files)
    require_free(out, [*([] if classifies else names.values()), PREDICTIONS])
    predictor = load(weights, notice).to(arguments.device)
    if arguments.precision is not None and not classifies:
        predictor.precision = arguments.precision
    work = Work(len(files))
    if classifies:
        name_classes(predictor, out, files, work)
    else:
        lowest = lowest_score(predictor, arguments.score)
        Drawing(predictor, lowest, tiling, out, names, work).write(files)
    work.report(out)


def lowest_score(detector: Detector, given: float | None) -> float | tuple[float, ...]:
    """Return the lowest score that is drawn: the one that is `given`, else those of the classes in
    the weights, which is said, else DRAWN_SCORE.
    """
    if given is not None or detector.score_thresholds is None:
        return DRAWN_SCORE if given is None else given
    pairs = zip(detector.class_map.names, detector.score_thresholds, strict=True)
    listed = [one_line(f"{name} {score:.2f}") for name, score in pairs]
    say(
        f"drawn from the score on that was best on held-out images: {', '.join(listed[:LISTED])}"
        f"{', ...' if len(listed) > LISTED else ''}; --score S draws from S on"
    )
    return detector.score_thresholds


def tiling_of(arguments: argparse.Namespace) -> Tiling | None:
    """Return how --tile and what goes with it say to look at large images; None without."""
    if arguments.tile is None:
        return None
    overlap = Tiling.overlap if arguments.overlap is None else arguments.overlap
    return Tiling(arguments.tile, overlap, whole=not arguments.tiles_only)


def require_a_detectors(arguments: argparse.Namespace, files: list[Path]) -> None:
    """Raise ValueError for what a classifier cannot do: flags of boxes, and videos."""
    given_flags = {
        "--score": arguments.score,
        "--tile": arguments.tile,
        "--precision": arguments.precision,
    }
    for flag, given in given_flags.items():
        if given is not None:
            raise ValueError(
                f"{flag} goes with a detector's boxes; {arguments.weights} is a classifier"
            )
    if videos := [file for file in files if is_video(file)]:
        raise ValueError(
            f"{videos[0]} is a video, which a detector takes; {arguments.weights} is a classifier"
        )


class Work:
    """What is done of a number of images and videos, what of it failed, and how long it took."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.unread: list[str] = []
        self.cut: list[str] = []
        self.seconds: list[tuple[float, float, float]] = []

    def readable(self, files: list[Path]) -> Images:
        """Yield images, the next of which is decoded meanwhile, and videos; an image that cannot be
        read is passed over and noted.
        """
        for file, reading in read_ahead(files, _read):
            try:
                image, seconds = reading.result()
            except ImageReadError as error:
                self.pass_over(file, error)
            else:
                yield file, image, seconds

    def pass_over(self, file: Path, error: Exception) -> None:
        """Note that a file cannot be read; raises ImageReadError when that is so of all."""
        self.unread.append(str(error))
        say(f"{one_line(str(file))}: passed over, it cannot be read")
        if len(self.unread) == self.number:
            raise ImageReadError(f"none of {self.number} images could be read: {self.unread[0]}")

    def report(self, out: Path) -> None:
        """Say how long an image took; raises ImageReadError where something could not be read."""
        if self.seconds:
            times = in_ms(np.median(np.array(self.seconds), axis=0))
            of = f" (median of {len(self.seconds)})" if len(self.seconds) > 1 else ""
            say(f"an image: {times}{of}")
        if self.unread:
            raise ImageReadError(
                f"{len(self.unread)} of {self.number} images could not be read and are not in "
                f"{out}: {self.unread[0]}"
            )
        if self.cut:
            raise VideoError(self.cut[0])


def _read(file: Path) -> tuple[np.ndarray | None, float]:
    """An image and the seconds that decoding takes; of a video nothing."""
    start = time.perf_counter()
    image = None if is_video(file) else read_image(file)
    return image, time.perf_counter() - start


def in_ms(seconds: tuple[float, float, float]) -> str:
    """Return what decoding, the model, and all with drawing took."""
    decode, model, total = (1000 * each for each in seconds)
    return f"decode {decode:.0f} ms, model {model:.0f} ms, total {total:.0f} ms"


class Drawing:
    """Writes what a detector finds: a picture an image, a video a video, and predictions.json."""

    def __init__(
        self,
        detector: Detector,
        lowest: float | tuple[float, ...],
        tiling: Tiling | None,
        out: Path,
        names: dict[Path, str],
        work: Work,
    ) -> None:
        self.detector, self.lowest, self.tiling = detector, lowest, tiling
        self.out, self.names, self.work = out, names, work
        self.drawn: Counter[str] = Counter()

    def write(self, files: list[Path]) -> None:
        """Detect in all of them; predictions.json has COCO results whose image_id is the file as
        given, of a video with the number of the frame behind it. A picture that cannot be written
        is passed over, its detections are kept.
        """
        found = self._records(files)
        first = next(found)  # raises where nothing can be read, before anything is written
        number = 0
        with (
            replacing(self.out / PREDICTIONS) as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for records in itertools.chain([first], found):
                for record in records:
                    file.write(f"{',' if number else '['}\n{json.dumps(record)}")
                    number += 1
            file.write("\n]" if number else "[]")
        made = ", ".join(plural(count, what) for what, count in self.drawn.items())
        found = plural(number, "detection")
        say(f"{made or 'no pictures'} and {PREDICTIONS} ({found}) in {self.out}")

    def _records(self, files: list[Path]) -> Iterator[list[dict]]:
        """Detect in images and videos; yields the records of each image or frame."""
        for file, image, decode in self.work.readable(files):
            if image is None:
                yield from self._of_video(file)
                continue
            start = time.perf_counter()
            results = self._detect(image)
            detected = time.perf_counter()
            self._draw(file, results)
            seconds = (decode, detected - start, decode + time.perf_counter() - start)
            self.work.seconds.append(seconds)
            captions = ", ".join(results.above(self.lowest).captions()) or "nothing"
            say(f"{one_line(str(file))}: {captions} ({in_ms(seconds)})")
            yield results.to_coco(str(file))

    def _detect(self, image: np.ndarray) -> Results:
        if self.tiling is None:
            return self.detector.predict(image)
        side, overlap, whole = self.tiling.side, self.tiling.overlap, self.tiling.whole
        return self.detector.predict(image, tile=side, overlap=overlap, whole=whole)

    def _draw(self, file: Path, results: Results) -> None:
        try:
            write_jpeg(self.out / self.names[file], results.above(self.lowest).draw())
        except PictureError as error:
            notice(f"{one_line(str(file))}: no picture of it, {one_line(str(error))}")
        else:
            self.drawn["picture"] += 1

    def _of_video(self, file: Path) -> Iterator[list[dict]]:
        """Detect in the frames of a video, and write them with what was found."""
        try:
            with (
                open_video(file) as video,
                writing_video(self.out / self.names[file], video.rate) as add,
            ):
                yield from self._of_frames(file, video, add)
        except (VideoError, FileNotFoundError) as error:
            self.work.pass_over(file, error)
            return
        self.drawn["video"] += 1
        if video.shortfall is not None:
            self.work.cut.append(f"{video.shortfall}; what there is of it is in {self.out}")

    def _of_frames(
        self, file: Path, video: Video, add: Callable[[np.ndarray], None]
    ) -> Iterator[list[dict]]:
        """Detect in frames, which are counted from 0, and hand them, drawn, to `add`."""
        number = shown = 0
        name = f"{one_line(str(file))} ({video.stated or '?'} frames)"
        start = time.perf_counter()
        for number, frame in enumerate(counted(video, name, "done"), start=1):
            decoded = time.perf_counter()
            results = self._detect(frame)
            detected = time.perf_counter()
            drawn = results.above(self.lowest)
            add(drawn.draw())
            now = time.perf_counter()
            self.work.seconds.append((decoded - start, detected - decoded, now - start))
            shown += len(drawn)
            of_frame = {"video": str(file), "frame": number - 1}
            records = results.to_coco(f"{file}/{number - 1:06d}")
            yield [{**record, **of_frame} for record in records]
            start = time.perf_counter()
        say(f"{one_line(str(file))}: {plural(number, 'frame')}, {plural(shown, 'detection')} drawn")


def name_classes(classifier: Classifier, out: Path, files: list[Path], work: Work) -> None:
    """Write predictions.json: an image's file as given, and the likeliest classes of its centre
    square with their probabilities.
    """
    records = []
    for file, image, decode in work.readable(files):
        start = time.perf_counter()
        best = classifier.predict(image)
        model = time.perf_counter() - start
        work.seconds.append((decode, model, decode + model))
        records.append({"image": str(file), "classes": best})
        named = ", ".join(f"{name} {probability:.2f}" for name, probability in best.items())
        say(f"{one_line(str(file))}: {named} ({in_ms(work.seconds[-1])})")
    write_text(out / PREDICTIONS, json.dumps(records, indent=1))
    say(f"{PREDICTIONS} ({plural(len(records), 'image')}) in {out}")


def picture_names(files: list[Path]) -> dict[Path, str]:
    """Return file -> name of what is drawn of it: STEM.jpg, of a video STEM.mp4, or STEM-2.jpg and
    so on where they repeat.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    number_of: Counter[str] = Counter()
    for file in files:
        suffix = ".mp4" if is_video(file) else ".jpg"
        first = name = f"{file.stem}{suffix}"
        while name in taken:
            number_of[first] += 1
            name = f"{file.stem}-{number_of[first] + 1}{suffix}"
        taken.add(name)
        names[file] = name
    return names
