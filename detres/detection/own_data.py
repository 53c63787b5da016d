"""From a folder of annotated images, and nothing else, to the configuration of a run."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from backbones import PUBLISHED
from backbones.vgg import FC_GRID
from detres.config import by_key, check, config_of, given_settings, nested
from detres.detection.annotations import Annotations
from detres.detection.chosen_settings import Choice, Machine, Start, Trained, choose, quoted
from detres.detection.config import FPN_LEVELS, SPLITS, VGGS, DataConfig, DetectionConfig
from detres.detection.data.box_policy import require_objects
from detres.detection.data.found_files import FoundFiles
from detres.detection.data.layouts import FORMATS
from detres.detection.data.read import read_split
from detres.detection.data.recognise import Recognised, UnrecognisedDataError, recognise
from detres.detection.pretrained import FOLDER, find_pretrained, given_weights
from detres.detection.weights_file import load_detector
from detres.runs.settings import holds_shapes, with_data_root

WHERE_KEYS = (
    *("format", "root", "train", "train_images", "val", "val_images", "test", "test_images"),
    *("hold_out", "val_share", "split_seed", "split", "class_names"),
)
"""Settings of DataConfig that say where the data are; the others say what becomes of them."""

_OF_VOC = ("voc", "xml")
"""Formats whose data are known by VOC's numbers; the others by COCO's."""

_ADVISED = "torchvision/resnet50.v1"

_SPECIES = ("name", "shortcut", "stride_placement", "width", "pool1")
"""Settings of a backbone by which one that is at hand may be told to fit."""


@dataclass(frozen=True)
class OwnData:
    """Data that no configuration describes, read, and what a run on them starts from.

    recognised: None where the user said what they are. given: the user's settings, by whole key,
    checked. notes: what else is to be said, a line each.
    """

    name: str
    recognised: Recognised | None
    data: DataConfig
    train: Annotations
    val: Annotations
    machine: Machine
    start: Start
    given: dict[str, object]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        path: str | Path | None,
        overrides: Sequence[str],
        *,
        device: torch.device,
        init_from: str | Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> OwnData:
        """Recognise and read what is at `path`; None: the embedded shapes.

        say: called with lines on what the data are taken for, before they are read.

        overrides: settings KEY=VALUE of the user, which come before what is recognised and chosen.
        init_from: weights file of a trained detector to start from.

        Raises what `recognise` and the readers raise, ConfigError for settings that do not fit,
        CheckpointError for a file that holds no detector.
        """
        given = given_settings(DetectionConfig, overrides)
        recognised = None
        if path is None:
            tree: dict = {"format": "shapes"}
        elif given.get("data.format") == "shapes" or {"data.format", "data.train"} <= given.keys():
            tree = {"root": str(path)}
        else:
            recognised = recognise(path, given.get("data.format"))
            for line in described(recognised):
                say(line)
            tree = recognised.data.model_dump(mode="json", exclude_defaults=True)
        alone = _checked_alone(tree, overrides, given, f"data {path or 'shapes'}")
        alone.train.require_possible(device)
        settings = by_key(alone.model_dump(mode="json"))
        given = {key: settings.get(key) for key in given}
        data = with_data_root(alone.data, None)
        train = read_split(data, "train")
        require_objects(train, "to learn from")
        val = read_split(data, "val")
        machine = Machine.of(device)
        start, notes = _start_of(given, machine, init_from)
        return cls(
            name_of(path),
            recognised,
            data,
            train,
            val,
            machine,
            start,
            given,
            notes,
        )

    def configured(self, steps: int | None = None) -> tuple[DetectionConfig, list[Choice]]:
        """Return the configuration of a run, and what of it was chosen; steps: how many, where a
        time says so. Raises ConfigError when settings of the user do not go with each other.
        """
        protocol = "voc07" if self.data.format in _OF_VOC else "coco"
        choices = choose(
            self.train,
            len(self.val),
            machine=self.machine,
            start=self.start,
            protocol=protocol,
            given=self.given,
            steps=steps,
        )
        data = self.data.model_dump(mode="json", exclude_defaults=True)
        chosen = [(choice.key, choice.value) for choice in choices]
        told = [(key, value) for key, value in self.given.items() if not key.startswith("data.")]
        tree = nested([("name", self.name), ("data", data), *chosen, *told])
        return check(DetectionConfig, tree, f"the settings for {self.data.root}"), choices

    def lines(self, choices: Sequence[Choice]) -> list[str]:
        """Return what was chosen, and what else is to be said, a line each."""
        chosen = [f"  {choice.line()}" for choice in choices]
        notes = [f"note: {note}" for note in self.notes]
        return ["chosen, each to be overridden with --set:", *chosen, *notes]


def described(recognised: Recognised) -> list[str]:
    """Return what data were taken for and why, and the settings that say the same, a line each."""
    settings = " ".join(quoted(setting) for setting in recognised.settings())
    return [
        f"data {recognised.data.root}: {recognised.kind}; {recognised.reason}",
        f"the same by hand: --set {settings}",
    ]


def name_of(path: str | Path | None) -> str:
    """Return the name of a run on the data at `path`, that of the folder in letters that a run's
    name may have; of a file, that of the folder it is in.
    """
    if path is None:
        return "shapes"
    path = Path(path).absolute()
    folder = path.parent if path.is_file() else path
    plain = unicodedata.normalize("NFKD", folder.name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.") or "own_data"


def _checked_alone(
    data: dict, overrides: Sequence[str], given: dict[str, object], source: str
) -> DetectionConfig:
    """The data and the user's settings, all else as it is by default: what is wrong with them is
    said before anything is read.
    """
    model: dict = {
        "backbone": {"weights": "any", "norm": "batch", "freeze_at": 0},
        "input": {"short_side": 1, "max_side": 2**31},
    }
    if given.get("model.backbone.name") in VGGS:
        model["roi"] = {"pool_size": FC_GRID}
    if given.get("model.layout") == "fpn":
        model["anchors"] = {"sizes": list(range(1, FPN_LEVELS + 1)), "style": "detectron2"}
    train = {"steps": 2**62, "eval_every": 1}
    tree = {"name": "own", "data": data, "model": model, "train": train}
    return config_of(tree, DetectionConfig, overrides, source)


def _start_of(
    given: dict[str, object], machine: Machine, init_from: str | Path | None
) -> tuple[Start, tuple[str, ...]]:
    """What the weights start from, and what is to be said of it."""
    if init_from is not None:
        path = Path(init_from).absolute()
        return Trained(path, load_detector(path)[1].model), ()
    told = "model.backbone.weights" in given
    if told and given["model.backbone.weights"] is None:
        return None, ()
    if told:
        return given_weights(str(given["model.backbone.weights"])), ()
    wanted = {key: given.get(f"model.backbone.{key}") for key in _SPECIES}
    search = find_pretrained(machine.device, wanted)
    if search.best is not None:
        return search.best, search.notes
    advice = (
        "from random weights: no pretrained backbone is at hand, with which it learns more from "
        f"few images: name a folder with one, such as {PUBLISHED[_ADVISED].file}, in {FOLDER}, or "
        f"let model.backbone.weights={_ADVISED} download one"
    )
    return None, (*search.notes, advice)


def replaced_data(
    config: DetectionConfig, path: str | Path, given: Sequence[str]
) -> tuple[DetectionConfig, Recognised] | None:
    """Return `config` for the data at `path` where these are not what its data section describes,
    and what they are; None where it is to be used as it is: some of its entries are there, the user
    says himself where they are, or nothing is recognised.

    given: the user's settings by whole key.
    """
    if says_where(given):
        return None
    if _is_there(config.data, Path(path)):
        return None
    try:
        found = recognise(path)
    except (UnrecognisedDataError, FileNotFoundError):
        return None
    kept = config.data.model_dump(mode="json", exclude=set(WHERE_KEYS) | {"classes"})
    of_data = found.data.model_dump(mode="json", include=set(WHERE_KEYS))
    tree = {**config.model_dump(mode="json"), "data": {**kept, **of_data}}
    return check(DetectionConfig, tree, str(path)), found


def data_to_evaluate(
    config: DetectionConfig,
    path: str | Path | None,
    given: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> DetectionConfig:
    """Return `config` for the data to evaluate on: those at `path`, recognised where they are not
    as it describes (see replaced_data), which is then said; None: its own, where they were.

    given: the user's settings by whole key. Raises what `with_data_root` raises.
    """
    replaced = None if path is None else replaced_data(config, path, given)
    if replaced is None:
        return config.model_copy(update={"data": with_data_root(config.data, path)})
    for line in described(replaced[1]):
        say(line)
    return replaced[0]


def says_where(given: Sequence[str]) -> bool:
    """Whether some of the user's settings, by whole key, says where the data are."""
    return any(key.removeprefix("data.") in WHERE_KEYS for key in given if key.startswith("data."))


def _is_there(data: DataConfig, root: Path) -> bool:
    """Whether some entry of a configuration is in the folder `root`, and what names its classes; of
    shapes: whether it is one they are drawn into; of folders of annotations: whether some of that
    format are there.
    """
    if data.format == "shapes":
        return root.is_dir() and (not any(root.iterdir()) or holds_shapes(root))
    if data.class_names is not None and not (root / data.class_names).is_file():
        return False
    entries = [entry for split in SPLITS for entry in getattr(data, split)]
    files = [path for entry in entries for path in _files_of(data.format, root, entry)]
    there = [path for path in files if path.exists()]
    if not any(path.is_dir() for path in there):
        return bool(there)
    return bool(FORMATS[data.format].evidence(FoundFiles.below(root)))


def _files_of(form: str, root: Path, entry: str) -> list[Path]:
    """Where the list or the annotations of an entry may be."""
    year, _, name = entry.rpartition("/")
    if form == "voc":
        folders = [root / year, root / f"VOC{year}"] if year else [root]
        return [folder / "ImageSets" / "Main" / f"{name}.txt" for folder in folders]
    if form == "ilsvrc":
        return sorted((root / "ImageSets" / year).glob(f"{name}.txt"))
    return [root / entry]
