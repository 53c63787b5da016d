"""Reading Caffe's .caffemodel: the networks of the paper, and VGG, as their authors published them.

The file is one protocol buffer (caffe.proto): a NetParameter with layers, each with its name and
its blobs. Only these are read, the rest is passed over; nothing is executed.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from pathlib import Path

import torch
from torch import Tensor

from backbones.files import DamagedFileError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types of a protocol buffer."""

_LAYER, _LAYER_V1 = 100, 2
"""Fields of a NetParameter."""

_NAME_AND_BLOBS = {_LAYER: (1, 7), _LAYER_V1: (4, 6)}
"""Fields of a LayerParameter, and of the earlier V1LayerParameter that VGG's file has."""

_LEGACY_SHAPE, _DATA, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8
"""Fields of a BlobProto; num, channels, height and width are what shapes were before."""


def load_caffe_model(path: Path) -> dict[str, Tensor]:
    """Return the blobs of every layer as "LAYER.N": float32 tensors of the shapes in the file,
    of the earlier form (num, channels, height, width).

    Raises DamagedFileError, naming the file, for one that ends early, is no protocol buffer of
    Caffe's, or holds a blob whose values do not fill its shape.
    """
    content = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        file.readinto(content)
    view = memoryview(content)
    found: dict[str, Tensor] = {}
    try:
        for number, layer in _messages(view, _NAME_AND_BLOBS):
            of_name, of_blobs = _NAME_AND_BLOBS[number]
            parts = list(_messages(layer, (of_name, of_blobs)))
            name = next((bytes(part).decode() for kind, part in parts if kind == of_name), "")
            blobs = [part for kind, part in parts if kind == of_blobs]
            for index, blob in enumerate(blobs):
                found[f"{name}.{index}"] = _tensor(blob, f"{name}.{index}")
    except (ValueError, IndexError) as error:
        raise DamagedFileError(
            f"{path} is damaged or no .caffemodel file ({error}): fetch it again"
        ) from None
    if not found:
        raise DamagedFileError(
            f"{path} holds no layer with weights: give the .caffemodel, not the .prototxt"
        )
    return found


def _fields(view: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Give (field, wire type, value) of a message; the value of a varint is a number."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(view, at)
            yield field, kind, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _BYTES:
            size, at = _varint(view, at)
        if size is None or field == 0:
            raise ValueError(f"a field {field} of type {kind}")
        if at + size > len(view):
            raise ValueError("it ends early")
        yield field, kind, view[at : at + size]
        at += size


def _messages(view: memoryview, wanted: Container[int]) -> Iterator[tuple[int, memoryview]]:
    """Give (field, content) of the fields with a length whose number is among `wanted`."""
    for field, kind, value in _fields(view):
        if field in wanted and kind == _BYTES:
            yield field, value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends; raises IndexError beyond the
    view.
    """
    value, shift = 0, 0
    while True:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift >= 70:
            raise ValueError("a number without an end")


def _tensor(blob: memoryview, name: str) -> Tensor:
    legacy, shape, values = [0, 0, 0, 0], None, []
    for field, kind, value in _fields(blob):
        if field in _LEGACY_SHAPE and kind == _VARINT:
            legacy[field - 1] = value
        elif field == _SHAPE and kind == _BYTES:
            shape = list(_dimensions(value))
        elif field in (_DATA, _DOUBLES) and kind == _BYTES:
            dtype = torch.float32 if field == _DATA else torch.float64
            if len(value) % dtype.itemsize:
                raise ValueError(f"{name} holds {len(value)} bytes of values")
            if len(value):
                values.append(torch.frombuffer(value, dtype=dtype).float())
    data = torch.cat(values) if values else torch.empty(0)
    shape = legacy if shape is None else shape
    if math.prod(shape) != len(data):
        raise ValueError(f"{name} holds {len(data)} values for a shape of {shape}")
    return data.view(shape)


def _dimensions(shape: memoryview) -> Iterator[int]:
    """Give the sides in a BlobShape, packed or not."""
    for field, kind, value in _fields(shape):
        if field == 1 and kind == _VARINT:
            yield value
        elif field == 1 and kind == _BYTES:
            at = 0
            while at < len(value):
                side, at = _varint(value, at)
                yield side
