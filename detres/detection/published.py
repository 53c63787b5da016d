"""Detectors that others have published, by name: what they are, and where they lie once they were
downloaded. Light: no network is built here.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

COCO_AP = "AP, COCO val2017"
VOC_AP50 = "AP50 of 11 points, VOC 2007 test"


@dataclass(frozen=True)
class PublishedDetector:
    """One published Faster R-CNN; its file's name ends in the first hex digits of its `digest`.

    folder: of its file in torch's hub cache, below checkpoints. layout, backbone: as model.layout
    and model.backbone.name are. metric: what `score`, in percent, is of, as published. size_mib:
    of 2^20 bytes; None: it is not published.
    """

    url: str
    folder: str
    layout: Literal["c4", "fpn"]
    backbone: str
    score: float
    metric: str
    digest: Literal["md5", "sha256"]
    licence: str
    size_mib: float | None = None

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.url.rpartition("/")[2]

    @property
    def digest_prefix(self) -> str:
        """The first hex digits of its digest."""
        return self.file.partition(".")[0].replace("-", "_").rpartition("_")[2]

    def path(self, hub: Path) -> Path:
        """Return where its file lies in torch's hub cache `hub`, or would be downloaded to."""
        return hub / "checkpoints" / self.folder / self.file

    def converted_path(self, hub: Path) -> Path:
        """Return where our weights of it lie, beside its file, or would be written."""
        return self.path(hub).with_suffix(CONVERTED)


CONVERTED = ".detres-1.safetensors"
"""What our weights of a published file are called; the number rises when import_weights makes
others of it.
"""

_TORCHVISION = "https://download.pytorch.org/models/"
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"


def _of_torchvision(file: str, score: float, size_mib: float) -> PublishedDetector:
    """torchvision/models/detection/faster_rcnn.py has URL, AP and size; torch.hub checks names."""
    return PublishedDetector(
        _TORCHVISION + file, "", "fpn", "resnet50", score, COCO_AP, "sha256",
        "BSD 3-Clause; terms of its data may apply", size_mib,
    )  # fmt: skip


def _of_detectron2(
    config: str, file: str, score: float, metric: str = COCO_AP, folder: str = ""
) -> PublishedDetector:
    """MODEL_ZOO.md of detectron2 has all of it; the digits in a name, it says, are of the md5."""
    return PublishedDetector(
        f"{_DETECTRON2}{config}/{file}",
        f"detectron2/{folder or config.rpartition('/')[2]}",
        "fpn" if "FPN" in config else "c4",
        "resnet101" if "R_101" in config else "resnet50",
        score,
        metric,
        "md5",
        "CC BY-SA 3.0",
    )


_COCO = "COCO-Detection/faster_rcnn_"

PUBLISHED_DETECTORS = {
    "torchvision/fasterrcnn_resnet50_fpn.coco": _of_torchvision(
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 37.0, 159.743
    ),
    "torchvision/fasterrcnn_resnet50_fpn_v2.coco": _of_torchvision(
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth", 46.7, 167.104
    ),
    "detectron2/faster_rcnn_R_50_C4_1x": _of_detectron2(
        f"{_COCO}R_50_C4_1x", "137257644/model_final_721ade.pkl", 35.7
    ),
    "detectron2/faster_rcnn_R_50_C4_3x": _of_detectron2(
        f"{_COCO}R_50_C4_3x", "137849393/model_final_f97cb7.pkl", 38.4
    ),
    "detectron2/faster_rcnn_R_101_C4_3x": _of_detectron2(
        f"{_COCO}R_101_C4_3x", "138204752/model_final_298dad.pkl", 41.1
    ),
    "detectron2/faster_rcnn_R_50_FPN_1x": _of_detectron2(
        f"{_COCO}R_50_FPN_1x", "137257794/model_final_b275ba.pkl", 37.9
    ),
    "detectron2/faster_rcnn_R_50_FPN_3x": _of_detectron2(
        f"{_COCO}R_50_FPN_3x", "137849458/model_final_280758.pkl", 40.2
    ),
    "detectron2/faster_rcnn_R_101_FPN_3x": _of_detectron2(
        f"{_COCO}R_101_FPN_3x", "137851257/model_final_f6e8b1.pkl", 42.0
    ),
    "detectron2/faster_rcnn_R_50_C4_voc": _of_detectron2(
        "PascalVOC-Detection/faster_rcnn_R_50_C4",
        "142202221/model_final_b1acc2.pkl",
        80.3,
        VOC_AP50,
        "faster_rcnn_R_50_C4_voc",
    ),
}
"""By name: those that import_weights reads."""

_FAMILIES = ("detectron2/", "torchvision/fasterrcnn")


def hub_folder() -> Path:
    """Return torch's hub cache, as torch.hub.get_dir does where nothing was set in the process."""
    cache = os.path.join(os.getenv("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(os.path.expanduser(os.getenv("TORCH_HOME", cache))) / "hub"


def fault_of_name(name: str) -> str | None:
    """Return what to say of what looks like the name of a published detector and is none, with the
    nearest ones; None: it is one, or may be something else.
    """
    if name in PUBLISHED_DETECTORS or not name.startswith(_FAMILIES) or Path(name).parent.exists():
        return None
    near = difflib.get_close_matches(name, PUBLISHED_DETECTORS, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"no published detector is called {name}; {hint}`detres --list` names all"
