"""Images with VOC's XML files, in folders of any names -> Annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.data.box_policy import BoxPolicy
from detres.detection.data.label_files import LabelledFiles, image_ids, match_labels
from detres.detection.data.read_each import read_each
from detres.detection.data.voc import VOC_CORNER
from detres.detection.data.voc_xml import XmlImages, annotations_of, read_xml

SUFFIX = ".xml"


def read_plain_xml(
    root: str | Path,
    entries: Sequence[str],
    folders: Sequence[str],
    class_map: ClassMap,
    *,
    box_policy: BoxPolicy = "drop",
) -> Annotations:
    """Read images that have VOC's XML files beside them or in another folder; image ids are file
    stems, see label_files.image_ids.

    entries, folders: of XML files, and of their images, see label_files.match_labels. Images
    without XML file are left out and counted. class_map: the classes; objects of others are left
    out and counted. Coordinates are 1-based, as VOC's own. Raises what `match_labels`, `read_xml`
    and `apply_box_policy` raise.
    """
    root = Path(root)
    matched = _matched(root, entries, folders)
    images = XmlImages(
        source=f"{root}: {' + '.join(entries)}",
        ids=image_ids(matched.images),
        files=matched.images,
        paths=matched.labels,
        records=read_each(matched.labels, read_xml),
    )
    index_of_name = {name: index for index, name in enumerate(class_map.names)}
    return annotations_of(
        images,
        class_map,
        index_of_name,
        corner=VOC_CORNER,
        box_policy=box_policy,
        notes=matched.notes,
    )


def xml_names(root: Path, entries: Sequence[str], folders: Sequence[str]) -> set[str]:
    """Return the names of all objects in the XML files that `read_plain_xml` reads; raises what
    `match_labels` and `read_xml` raise.
    """
    records = read_each(_matched(root, entries, folders).labels, read_xml)
    return {item.name for record in records for item in record.objects}


def _matched(root: Path, entries: Sequence[str], folders: Sequence[str]) -> LabelledFiles:
    return match_labels(
        root, entries, folders, suffix=SUFFIX, image_named_in=lambda path: read_xml(path).file_name
    )
