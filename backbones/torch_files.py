"""Reading what torch.save wrote, as a zip archive or in the form before it, without running
anything it names.

torch.load(weights_only=True) refuses a whole file for a number of numpy or a parser's Namespace
beside the weights, which are in most training checkpoints. Here objects of other classes become
records of their names; a function is called by none.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, ClassVar

import torch
from torch import Tensor

from backbones.files import check_archive
from backbones.restricted_pickle import (
    ArrayUnpickler,
    ForbiddenPickleError,
    Pending,
    Record,
    Room,
    StandIn,
    to_plain,
)

EARLIER_FORM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch.save begins that is no zip archive: a pickled number."""


def load_archive(path: Path) -> object:
    """Return the content of a zip archive of torch.save: tensors on the CPU, containers as they
    are, objects of other classes as Record.

    Raises DamagedFileError when a byte is not as it was written, ForbiddenPickleError for a call of
    a function, ValueError for another archive.
    """
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (pickled,) = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names:
            _require_little_endian(archive.read(f"{folder}byteorder") == b"little")

        def data_of(key: str) -> bytearray:
            member = archive.getinfo(f"{folder}data/{key}")
            data = bytearray(member.file_size)
            with archive.open(member) as file:
                file.readinto(data)
            return data

        stream = archive.read(pickled)
        return _unpickled(io.BytesIO(stream), Room(len(stream)), data_of)


def load_earlier_form(path: Path) -> object:
    """Return the content of a file of torch.save that is no zip archive, which has no checksums:
    raises as `load_archive` does, as far as it can be known.
    """
    with path.open("rb") as file:
        room = Room(path.stat().st_size)
        _magic, _version, system = (ArrayUnpickler(file, room).load() for _ in range(3))
        _require_little_endian(system["little_endian"])
        storages: dict[str, bytearray] = {}

        def read_storages(unpickler: _TorchUnpickler) -> None:
            for key in ArrayUnpickler(file, room).load():
                number = file.read(8)
                size = int.from_bytes(number, "little") * unpickler.dtypes[key].itemsize
                storages[key] = bytearray(file.read(size))
                if len(number) != 8 or len(storages[key]) != size:
                    raise ValueError("it ends before its last tensor")
            if file.read(1):
                raise ValueError("it goes on behind its last tensor")

        return _unpickled(file, room, storages.__getitem__, read_storages)


def _require_little_endian(little: bool) -> None:
    if not little:
        raise ValueError("it was written on a big-endian machine; save it anew on another one")


def _unpickled(
    file: BinaryIO,
    room: Room,
    data_of: Callable[[str], bytearray],
    then: Callable[[_TorchUnpickler], None] = lambda _: None,
) -> object:
    """What a stream holds; data_of: key of a storage -> its bytes, asked for once; then: what is
    done before the first is.
    """
    unpickler = _TorchUnpickler(file, room, cache(data_of))
    content = unpickler.load()
    then(unpickler)
    return to_plain(content, room)


class _Foreign(StandIn):
    """The name of a class that is not imported: objects of it become records, a call of it is
    refused.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(self._refuse)
        self.name = name

    def _refuse(self, *_: object) -> object:
        raise ForbiddenPickleError(self.name)

    def plain(self) -> Record:
        """Return what it is where data belong."""
        return Record(self.name)


class _Storage:
    """One block of numbers: where its bytes are, and what they are."""

    __slots__ = ("data_of", "dtype", "key", "numbers", "part")

    def __init__(
        self,
        data_of: Callable[[str], bytearray],
        key: str,
        dtype: torch.dtype,
        part: tuple[int, int] | None,
    ) -> None:
        self.data_of, self.key, self.dtype, self.part = data_of, key, dtype, part
        self.numbers: Tensor | None = None

    def tensor(self) -> Tensor:
        """Return all its numbers, (N,)."""
        if self.numbers is None:
            data = self.data_of(self.key)
            plain = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0).byte()
            numbers = plain.view(self.dtype)
            if self.part is not None:
                offset, size = self.part
                numbers = numbers.narrow(0, offset, size)
            self.numbers = numbers
        return self.numbers


class _View(Pending):
    """A tensor of torch.save: a storage, and how its numbers lie in it."""

    __slots__ = ("parts",)

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def tensor(self) -> Tensor:
        storage, offset, shape, strides, dtype = self.parts
        numbers = (offset, *shape, *strides)
        if type(storage) is not _Storage or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor of no storage or shape")
        data = storage.tensor()
        data = data if dtype is None else data.view(dtype)
        return data.as_strided(tuple(shape), tuple(strides), offset)


class _TorchUnpickler(ArrayUnpickler):
    """Knows the names that torch.save writes beside those of arrays."""

    def __init__(self, file: BinaryIO, room: Room, data_of: Callable[[str], bytearray]) -> None:
        super().__init__(file, room)
        self.data_of = data_of
        self.storages: dict[object, _Storage] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str) -> object:
        """Return what stands in for a name; that of a class nobody knows stands for itself."""
        if module in ("torch", "torch.storage"):
            if name in _STORAGES:
                return _STORAGES[name]
            dtype = vars(torch).get(name)
            if isinstance(dtype, torch.dtype):
                return dtype
        known = _STAND_INS.get((module.replace("__builtin__", "builtins"), name))
        if known is not None:
            return known
        try:
            return super().find_class(module, name)
        except ForbiddenPickleError as error:
            return _Foreign(error.name)

    def persistent_load(self, pid: object) -> object:
        """Return the storage that is meant, or the class of a module in files of the earlier
        form.
        """
        kind, *rest = pid
        if kind == "module":
            return rest[0]
        dtype, key, _device, _number, *view = rest
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ForbiddenPickleError(f"a persistent id of kind {kind!r}")
        part = None
        if view and view[0] is not None:
            _view_key, offset, size = view[0]
            part = (offset, size)
        self.dtypes[key] = dtype
        return self.storages.setdefault(
            (key, dtype, part), _Storage(self.data_of, key, dtype, part)
        )

    def _load_newobj(self) -> None:
        _arguments, cls = self.stack.pop(), self.stack.pop()
        self.append(_record_of(cls))

    def _load_newobj_ex(self) -> None:
        self.stack.pop()
        self._load_newobj()

    dispatch: ClassVar[dict] = {**ArrayUnpickler.dispatch}
    dispatch[b"\x81"[0]] = _load_newobj
    dispatch[b"\x92"[0]] = _load_newobj_ex


class _OrderedDict(dict):
    """A state dict is one, with versions of its modules as attributes, which are passed over."""

    def __setstate__(self, state: object) -> None:
        pass


def _record_of(cls: object, *_: object) -> Record:
    if not isinstance(cls, _Foreign):
        raise ValueError("an object of no class")
    return Record(cls.name)


def _view(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_more: object) -> _View:
    return _View(storage, offset, shape, strides, None)


def _view_of_type(
    storage: _Storage, offset: int, shape: tuple, strides: tuple, *more: object
) -> _View:
    return _View(storage, offset, shape, strides, more[2])


def _first(value: object, *_: object) -> object:
    return value


def _mapping(*arguments: object) -> dict:
    """What collections.defaultdict and Counter hold at first."""
    return dict(arguments[-1]) if arguments and isinstance(arguments[-1], dict) else {}


def _of_type(make: object, _cls: object, arguments: tuple, _state: object) -> object:
    """A tensor of a subclass, as a plain one."""
    return make(*arguments) if isinstance(make, StandIn) else Record("a tensor subclass")


def _text(*parts: object) -> str:
    return "/".join(map(str, parts))


def _named(name: str) -> StandIn:
    return StandIn(lambda *_: Record(name))


ODD_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_wrapper_subclass": "a tensor subclass",
}
"""Function of torch._utils that makes them -> what a Record calls tensors that are no plain
arrays.
"""

_STORAGES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "DoubleStorage": torch.float64, "FloatStorage": torch.float32,
        "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
        "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
        "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32,
        "UntypedStorage": torch.uint8,
    }
)  # fmt: skip

_STAND_INS = {
    ("torch._utils", "_rebuild_tensor"): StandIn(_view),
    ("torch._utils", "_rebuild_tensor_v2"): StandIn(_view),
    ("torch._utils", "_rebuild_tensor_v3"): StandIn(_view_of_type),
    ("torch._utils", "_rebuild_parameter"): StandIn(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): StandIn(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): StandIn(_of_type),
    **{("torch._utils", name): _named(kind) for name, kind in ODD_TENSORS.items()},
    ("torch", "Size"): StandIn(_first),
    ("torch", "device"): StandIn(_text),
    ("torch.serialization", "_get_layout"): StandIn(_first),
    ("collections", "OrderedDict"): StandIn(_OrderedDict),
    ("collections", "Counter"): StandIn(_mapping),
    ("collections", "defaultdict"): StandIn(_mapping),
    ("builtins", "set"): StandIn(_first),
    ("builtins", "frozenset"): StandIn(_first),
    **{
        ("builtins", name): _named(f"builtins.{name}") for name in ("complex", "slice", "bytearray")
    },
    **{
        ("datetime", name): _named(f"datetime.{name}") for name in ("datetime", "date", "timedelta")
    },
    **{
        (module, name): StandIn(_text)
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    ("copy_reg", "_reconstructor"): StandIn(_record_of),
    ("copyreg", "_reconstructor"): StandIn(_record_of),
}
