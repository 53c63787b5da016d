"""Reading arrays out of foreign pickles (Detectron's and detectron2's .pkl weights) without running
anything they name.

A pickle may call any function it can name. This reader knows the handful of names that arrays and
plain containers need, and puts stand-ins of its own in their place: numpy itself is neither called
nor imported. Every other name is refused.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, ClassVar

import torch
from torch import Tensor

_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "b1": torch.bool,
    "u1": torch.uint8,
    "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64,
}  # fmt: skip


class ForbiddenPickleError(ValueError):
    """A pickle names something other than arrays and plain containers; `name` says what. Nothing of
    it was run.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it names {name}, which is neither an array nor a plain container")
        self.name = name


def load_arrays(path: Path) -> object:
    """Return the content of a pickle, protocol 0 to 5, of Python 2 or 3: arrays as torch tensors,
    containers as they are.

    Arrays may be of bool, integer or float type in either byte order. Raises ForbiddenPickleError
    for any other object, ValueError for a file that is damaged or no pickle, OSError when it cannot
    be opened.
    """
    with Path(path).open("rb") as file:
        try:
            room = Room(Path(path).stat().st_size)
            return to_plain(ArrayUnpickler(file, room).load(), room)
        except ForbiddenPickleError:
            raise
        except EOFError:
            raise ValueError("damaged or not a pickle: it ends too early") from None
        except (
            Exception
        ) as error:  # what a damaged or hostile stream makes the unpickler raise has no bounds
            raise ValueError(f"damaged or not a pickle ({type(error).__name__}: {error})") from None


class Room:
    """The bytes that a pickle of `size` bytes may still make: a few could name the same large array
    many times over.
    """

    def __init__(self, size: int) -> None:
        self.left = 4 * size + (1 << 20)

    def take(self, size: int) -> None:
        """Raise ValueError when `size` more bytes are too many."""
        self.left -= size
        if self.left < 0:
            raise ValueError("it would grow far beyond its size")


class ArrayUnpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C makes room for whatever number of objects a stream of a
    few bytes names.
    """

    def __init__(self, file: BinaryIO, room: Room) -> None:
        super().__init__(file, encoding="latin1")
        self.room = room

    def find_class(self, module: str, name: str) -> object:
        """Return what stands in for a name of arrays or containers; raises ForbiddenPickleError for
        any other.
        """
        home = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if (home, name) == ("_codecs", "encode"):
            return StandIn(self._latin1)
        standing_in = _STAND_INS.get((home, name))
        if standing_in is None:
            raise ForbiddenPickleError(f"{module}.{name}")
        return standing_in

    def persistent_load(self, pid: object) -> object:
        """Raise ForbiddenPickleError: arrays are in the stream itself."""
        raise ForbiddenPickleError(f"a persistent id, a {type(pid).__name__}")

    def _latin1(self, text: str, _encoding: str) -> bytes:
        self.room.take(len(text))
        return text.encode("latin1")

    def _load_bytearray8(self) -> None:
        """Unlike pickle's, no room is made before the bytes are there."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch: ClassVar[dict] = {**pickle._Unpickler.dispatch}
    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8


class StandIn:
    """Takes the place of a function or class a pickle names. A pickle can call it, and change
    nothing of it.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("a state for a name")

    def plain(self) -> object:
        """Raise ForbiddenPickleError unless a subclass is something where data belong."""
        raise ForbiddenPickleError("a function or type where data belong")


class _DType:
    """numpy.dtype: kind and size such as f4, and the byte order that comes with its state."""

    __slots__ = ("code", "swapped")

    def __init__(self, code: str, _align: object = False, _copy: object = False) -> None:
        self.swapped = code[:1] == ">"
        self.code = code.lstrip("<>=|")
        if self.code not in _DTYPES:
            raise ForbiddenPickleError(f"an array of numpy type {code}")

    def __setstate__(self, state: tuple) -> None:
        self.swapped = state[1] == ">"

    def tensor(self, data: bytes, shape: tuple[int, ...], fortran: bool) -> Tensor:
        dtype = _DTYPES[self.code]
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"{len(data)} bytes for an array of shape {shape} and type {self.code}"
            )
        if not data:
            return torch.zeros(shape, dtype=dtype)
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if self.swapped:
            values = values.view(-1, dtype.itemsize).flip(1).flatten()
        values = values.view(dtype)
        return (
            values.reshape(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
            if fortran
            else values.reshape(shape)
        )


class Pending:
    """A tensor to be: it is made by `to_plain`, after the unpickler is done and out of its reach.

    size: bytes that making it takes.
    """

    __slots__ = ()
    size = 0

    def tensor(self) -> Tensor:
        """Return the tensor, of any shape (...,); raises ValueError unless a subclass makes one."""
        raise ValueError("an array of no content")


class _Array(Pending):
    """numpy.ndarray: type, shape, order and bytes, once."""

    __slots__ = ("parts",)

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __setstate__(self, state: tuple) -> None:
        if self.parts:
            raise ValueError("a second state for an array")
        _version, shape, dtype, fortran, data = state
        self.parts = (dtype, shape, bool(fortran), data)

    @property
    def size(self) -> int:
        return len(self.parts[-1])

    def tensor(self) -> Tensor:
        dtype, shape, fortran, data = self.parts
        if type(dtype) is not _DType or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError("an array of no type or shape")
        return dtype.tensor(_bytes(data), tuple(shape), fortran)


def _bytes(data: object) -> bytes:
    """Python 2 pickles give text where they mean bytes, numpy gives buffers."""
    return data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))


def _from_buffer(data: object, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    return _Array(dtype, shape, order == "F", data)


def _scalar(dtype: _DType, data: object) -> int | float | bool:
    if len(data) > 2 * 8:  # in text, a byte may take two
        raise ValueError("a number of many bytes")
    return dtype.tensor(_bytes(data), (), False).item()


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): StandIn(lambda *_: _Array()),
    ("numpy.core.multiarray", "scalar"): StandIn(_scalar),
    ("numpy.core.numeric", "_frombuffer"): StandIn(_from_buffer),
    ("numpy", "ndarray"): StandIn(lambda *_: _Array()),
    ("numpy", "dtype"): StandIn(_DType),
    ("collections", "OrderedDict"): StandIn(dict),
    ("builtins", "bytes"): StandIn(lambda: b""),  # how protocol 2 writes no bytes at all
}


class Record(dict):
    """An object of a class that is neither imported nor run: its name, and what it holds as far as
    that is a mapping.
    """

    def __init__(self, name: str, content: Mapping = MappingProxyType({})) -> None:
        super().__init__(content)
        self.name = name

    __hash__ = object.__hash__

    def __setstate__(self, state: object) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)

    def append(self, _item: object) -> None:
        """Pass over what a list would keep."""

    extend = add = append


def to_plain(value: object, room: Room, done: dict[int, object] | None = None) -> object:
    """The same containers with tensors where arrays stood; what stands in several places is made
    once.

    Raises ValueError for a container that holds itself, and for arrays that have no room.
    """
    done = {} if done is None else done
    if id(value) in done:
        if done[id(value)] is _IN_WORK:
            raise ValueError("a container that holds itself")
        return done[id(value)]
    if isinstance(value, StandIn):
        return value.plain()
    if isinstance(value, _DType):
        raise ForbiddenPickleError("a type where data belong")
    if not isinstance(value, (Pending, dict, list, tuple)):
        return value
    done[id(value)] = _IN_WORK
    if isinstance(value, Pending):
        room.take(value.size)
        plain = value.tensor()
    elif isinstance(value, dict):
        plain = {key: to_plain(item, room, done) for key, item in value.items()}
        if isinstance(value, Record):
            plain = Record(value.name, plain)
    else:
        plain = [to_plain(item, room, done) for item in value]
    done[id(value)] = plain
    return plain


_IN_WORK = object()
