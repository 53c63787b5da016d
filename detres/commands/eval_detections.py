"""The part of `eval` that judges results: `eval --detections FILE --annotations FILE`."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from detres.cli.flags import notice, say
from detres.commands.configured import require_free
from detres.console import one_line
from detres.detection.annotations import Annotations
from detres.detection.choices import CocoBackend
from detres.detection.data.coco import read_coco
from detres.detection.data.ilsvrc import read_ilsvrc
from detres.detection.data.voc import read_voc
from detres.detection.evaluation.coco_backends import require_backend
from detres.detection.evaluation.protocol import DetectionEvaluation, evaluate
from detres.detection.evaluation.result_files import read_coco_results, read_voc_results
from detres.detection.evaluation_files import NUMBER_FILES, write_evaluation
from detres.files import write_text
from detres.runs.folder import PICTURE


def evaluate_detections(arguments: argparse.Namespace) -> None:
    """Evaluate a results file or folder against annotations; no image is needed."""
    annotations, detections = Path(arguments.annotations), Path(arguments.detections)
    require_room(arguments.out)
    wants_images = arguments.out is not None
    truth, usual_protocol, split = read_truth(annotations, arguments.split, images=wants_images)
    others = {path.stem for path in (annotations / "Annotations").glob("[!.]*.[xX][mM][lL]")}
    protocol = arguments.protocol or usual_protocol
    iou_thresh = own_iou(protocol, arguments.iou)
    backend = own_backend(protocol, arguments.backend, "auto")
    if detections.is_dir():
        predictions, notes, of_split = read_voc_results(detections, truth, others=others)
        if of_split != split:
            notes.append(
                f"the results are named after the split {of_split}, and are evaluated on "
                f"{split or annotations}"
            )
    else:
        predictions, notes = read_coco_results(detections, truth, others=others)
    for note in notes:
        say(f"note: {note}")
    result = evaluate(protocol, truth, predictions, iou_thresh=iou_thresh, backend=backend)
    report(truth, result, arguments.json)
    show(result, arguments.out)


def read_truth(
    path: Path, split: str | None, *, images: bool = False
) -> tuple[Annotations, str, str | None]:
    """Read ground truth as it stands; return it with the protocol that goes with it, and the split
    of a VOC or an ILSVRC folder.

    images: whether the files of the images of such a folder are looked for. Raises ValueError for a
    split of a file, and what the readers raise.
    """
    if not path.is_dir():
        if split:
            raise ValueError(
                "--split goes with a VOC folder or an ILSVRC one; a COCO JSON file is a split"
            )
        return read_coco(path, None, box_policy="keep"), "coco", None
    if (path / "ImageSets" / "DET").is_dir():
        split = split or "val"
        read = partial(read_ilsvrc, path, [f"DET/{split}"], box_policy="keep")
        return _with_images(read, images), "imagenet_det", split
    lists = {file.stem for file in (path / "ImageSets" / "Main").glob("[!.]*.txt")}
    usual = "test" if "test" in lists else "val"
    split = split or (min(lists) if len(lists) == 1 else usual)
    year = re.search(r"(19|20)\d\d$", path.resolve().name)
    protocol = "voc12" if year and int(year[0]) >= 2010 else "voc07"
    read = partial(read_voc, path, [split], box_policy="keep")
    return _with_images(read, images), protocol, split


def _with_images(read: Callable[..., Annotations], wanted: bool) -> Annotations:
    """Annotations with the files of their images where these are wanted and all there."""
    with contextlib.suppress(FileNotFoundError):
        if wanted:
            return read(check_images=True)
    return read(check_images=False)


def own_iou(protocol: str, given: float | None) -> float:
    """Return the IoU threshold of a VOC protocol; raises ValueError for one that is given where the
    protocol fixes its own, and for one that no overlap can be asked for.
    """
    fixed = {
        "coco": "COCO averages over .50:.05:.95 and gives AP50 and AP75 beside it",
        "imagenet_det": "ImageNet DET has one for each object, by its size",
    }
    if protocol in fixed and given is not None:
        raise ValueError(f"--iou goes with --protocol voc07 or voc12: {fixed[protocol]}")
    if given is not None and not 0 < given <= 1:
        raise ValueError(f"--iou {given:g}: expected a number above 0, and at most 1")
    return 0.5 if given is None else given


def own_backend(protocol: str, given: CocoBackend | None, usual: CocoBackend) -> CocoBackend:
    """Return who counts COCO's numbers, `usual` unless it is given; raises ValueError for one that
    is given with another protocol, BackendError for one that is not installed.
    """
    if given is not None and protocol != "coco":
        raise ValueError(f"--backend goes with --protocol coco, not with {protocol}")
    backend = given or usual
    if protocol == "coco":
        require_backend(backend)
    return backend


def require_room(out: str | None) -> None:
    """Raise ValueError where --out has no room for what `show` writes, see require_free."""
    if out is not None:
        require_free(Path(out), (*NUMBER_FILES, PICTURE))


def show(evaluation: DetectionEvaluation, out: str | None) -> None:
    """Write what shows how good detections are into --out, where it is given; without the sheet
    where the images are not at hand.
    """
    if out is None:
        return
    missing = [file for file in evaluation.truth.image_files.tolist() if not Path(file).is_file()]
    write_evaluation(Path(out), evaluation, pictures=not missing)
    if missing:
        notice(f"no sheet of pictures: the images are not at hand ({one_line(missing[0])})")
    made = [*NUMBER_FILES, *([] if missing else [PICTURE])]
    say(f"in {out}: {', '.join(made)}")


def report(
    truth: Annotations,
    result: DetectionEvaluation,
    out: str | None,
    *,
    how: str = "",
    of: dict | None = None,
) -> None:
    """Print the table, AP of each class and what explains a low number; write JSON when asked.

    how: what the detections were made with beyond one plain detector, in words. of: the weights and
    settings that were evaluated, as `evaluated` has them.
    """
    made = f" by {how}" if how else ""
    say(f"{truth.describe()}\n{len(result.predictions)} detections{made}\n{result.table()}")
    if out:
        numbers = {**result.result.to_dict(), **({"detected_by": how} if how else {})}
        numbers |= {} if of is None else {"evaluated": of}
        write_text(Path(out), json.dumps(numbers, indent=2) + "\n")
