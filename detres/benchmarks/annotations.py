"""Reading the annotations of COCO's whole training set, time and memory, against pycocotools."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from detres.benchmarks.process_cost import cost_of, require_memory_told
from detres.benchmarks.timing import Timing
from detres.detection.data.coco_classes import COCO_CLASSES

IMAGES, BOXES = 118_287, 860_000
"""Of COCO 2017 train; with the polygons drawn here the file is 289 MB."""

_CROWD_SHARE = 0.012

_READERS = {
    "ours": ("from detres.detection.data.coco import read_coco", "read_coco({path!r}, None)"),
    "pycocotools": ("from pycocotools.coco import COCO", "COCO({path!r})"),
}


def benchmark_annotations(timing: Timing) -> None:
    """Print the seconds of one core that reading a drawn file of COCO's size takes, without looking
    up its images, and the most memory of the process that does, for either reader, in turns.

    Raises ValueError where the system does not tell the memory of a process.
    """
    require_memory_told("annotations")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances_train.json"
        write_annotations(path)
        size = path.stat().st_size
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in _READERS}
        for _ in range(timing.repeats):
            for name, (imports, call) in _READERS.items():
                found[name].append(cost_of(imports, call.format(path=str(path))))
    rows = {name: np.median(each, axis=0).tolist() for name, each in found.items()}
    shown = "  ".join(
        f"{name} {seconds:.2f} s, {most / 2**30:.2f} GiB" for name, (seconds, most) in rows.items()
    )
    faster = rows["pycocotools"][0] / rows["ours"][0]
    job = f"reading annotations, {size / 1e6:.0f} MB of JSON, {BOXES:,} boxes"
    (mine, my_most), (theirs, their_most) = rows["ours"], rows["pycocotools"]
    row = {"job": job, "way": "ours", "cpu_s": mine, "bytes": my_most, "peer": "pycocotools"}
    row |= {"peer_cpu_s": theirs, "peer_bytes": their_most, "ratio": faster}
    timing.add(row, f"{job:<58}  {shown}  {faster:.2f} times as fast")


def write_annotations(
    path: Path, num_images: int = IMAGES, num_boxes: int = BOXES, seed: int = 0
) -> None:
    """Write a COCO file as COCO's own are: every field, polygons, and crowds as run lengths, the
    classes COCO's; drawn, the same for the same seed.
    """
    rng = np.random.default_rng(seed)
    heights, widths = rng.integers(300, 641, (2, num_images)).tolist()
    owners = rng.integers(0, num_images, num_boxes)
    crowd = (rng.random(num_boxes) < _CROWD_SHARE).tolist()
    places = np.round(rng.random((num_boxes, 2)) * 150, 2)
    sides = np.round(1 + rng.random((num_boxes, 2)) * 149, 2)
    points = rng.integers(6, 16, num_boxes).tolist()
    categories = [
        {"supercategory": "thing", "id": number, "name": name}
        for number, name in zip(COCO_CLASSES.source_ids, COCO_CLASSES.names, strict=True)
    ]
    labels = rng.choice(COCO_CLASSES.source_ids, num_boxes).tolist()
    with path.open("w", encoding="ascii") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for number, (height, width) in enumerate(zip(heights, widths, strict=True)):
            file.write(", " * bool(number) + json.dumps(_image(number + 1, height, width)))
        file.write('], "annotations": [')
        for row, owner in enumerate(owners.tolist()):
            (x, y), (width, height) = places[row].tolist(), sides[row].tolist()
            if crowd[row]:
                counts = rng.integers(1, 2000, 40).tolist()
                outline: object = {"counts": counts, "size": [heights[owner], widths[owner]]}
            else:
                drawn = places[row] + rng.random((points[row], 2)) * sides[row]
                outline = [np.round(drawn, 2).ravel().tolist()]
            record = {
                "segmentation": outline,
                "area": round(width * height * 0.7, 3),
                "iscrowd": int(crowd[row]),
                "image_id": owner + 1,
                "bbox": [x, y, width, height],
                "category_id": labels[row],
                "id": row + 1,
            }
            file.write(", " * bool(row) + json.dumps(record))
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _image(number: int, height: int, width: int) -> dict:
    name = f"{number:012d}.jpg"
    return {
        "license": 3,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://farm9.staticflickr.com/8186/{number:010d}_cbe706728c_z.jpg",
        "id": number,
    }
