"""Files are written to a temporary name, flushed and renamed: a crash leaves the old one. What is
read is checked for damage first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block succeeds, flush it to disk and rename it
    over `path`.

    A crash or an error inside the block leaves the old file as it was. The folder is made when it
    is not there. Raises OSError naming `path` when the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # a full disk shows in a write, which knows no name; else it is the temporary one
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


DIGEST = "sha256"
"""The key of a .safetensors file's metadata whose value covers all of the file but itself."""


class DamagedFileError(ValueError):
    """A file whose content is not what was written; the message names it and says what to do.

    damage: what is not as it was, where that is known.
    """

    def __init__(self, message: str, damage: str = "") -> None:
        super().__init__(message)
        self.damage = damage


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write `tensors` of any shape (...,), device and memory format, and string metadata, in one
    step; a digest of both goes into the metadata.

    All become contiguous: the format knows no channels_last.
    """
    plain = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    empty = "0" * 64
    # safetensors' own save_file would make it unreadable for others
    content = save(plain, metadata={**metadata, DIGEST: empty})
    begin = 8 + int.from_bytes(content[:8], "little")
    data = memoryview(content)[begin:]
    digest = _digest(json.loads(content[8:begin]), [data])
    # quotes inside a value are escaped: this is the key itself
    header = content[:begin].replace(
        f'"{DIGEST}":"{empty}"'.encode(), f'"{DIGEST}":"{digest}"'.encode(), 1
    )
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        file.write(data)


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file, empty when it has none, without its tensors, so
    that their digest is not checked.

    Raises as `read_safetensors` does.
    """
    require_regular_file(path)
    with open(path, "rb") as file:
        header = _read_header(file, path)
    with _opened(path):  # which checks that the tensors fit the file
        return _metadata_of(header, path)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a .safetensors file and its metadata, empty when it has none.

    Files of `write_safetensors` have DIGEST among them, and it is checked; others load without.
    Raises DamagedFileError when the file is damaged or another kind of file, and what
    `require_regular_file` raises.
    """
    require_regular_file(path)
    with open(path, "rb") as file:
        header = _read_header(file, path)
        metadata = _metadata_of(header, path)
        blocks = iter(lambda: file.read(1 << 20), b"")
        if DIGEST in metadata and _digest(header, blocks) != metadata[DIGEST]:
            raise DamagedFileError(
                f"{path} is damaged: its content is not what its {DIGEST} was made of. Fetch or "
                "copy it again, or use another copy"
            )
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def require_digest(metadata: Mapping[str, str], path: str | Path) -> None:
    """Raise DamagedFileError when the metadata of a file of ours, which were written with a digest,
    have lost it.
    """
    if DIGEST not in metadata:
        raise DamagedFileError(
            f"{path} is damaged or was edited: files of its format carry a {DIGEST}, this one has "
            "none. Fetch or copy it again, or use another copy"
        )


_LONGEST_HEADER = 32 << 20


def _read_header(file: BinaryIO, path: str | Path) -> dict:
    """The parsed header of a .safetensors file, which is open at its begin; of the size the file
    says, but no more than a file of weights can need.
    """
    size, left = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size - 8
    try:
        if size > left or size > _LONGEST_HEADER:
            raise ValueError(f"its header would be {size} bytes long")
        header = json.loads(file.read(size), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path, error) from None
    if not isinstance(header, dict):
        raise _no_safetensors(path, ValueError("its header is no mapping"))
    return header


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _metadata_of(header: dict, path: str | Path) -> dict[str, str]:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _no_safetensors(path, ValueError("its metadata are no mapping of names to text"))
    return metadata


def _digest(header: dict, blocks: Iterable[bytes]) -> str:
    """SHA-256 of what a .safetensors file says: names, types, shapes, places and metadata, without
    the digest itself, in the order of their names; then the bytes of the tensors.
    """
    metadata = header.get("__metadata__", {})
    others = {key: value for key, value in metadata.items() if key != DIGEST}
    said = json.dumps({**header, "__metadata__": others}, sort_keys=True)
    digest = hashlib.sha256(said.encode())
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise _no_safetensors(path, error) from None


def _no_safetensors(path: str | Path, error: Exception) -> DamagedFileError:
    said = (str(error) or type(error).__name__).splitlines()[0]
    return DamagedFileError(
        f"{path} is damaged or no .safetensors file ({said:.200}): fetch or copy it again"
    )


def require_regular_file(path: str | Path) -> None:
    """Raise FileNotFoundError for a path that is not there, OSError for a folder, a pipe or a
    device, which reading would never end; nothing is opened.
    """
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        what = next((word for word, is_kind in _KINDS if is_kind(kind)), "something else")
        raise OSError(f"{path} is not a regular file but {what}")


_KINDS = (
    ("a folder", stat.S_ISDIR),
    ("a pipe", stat.S_ISFIFO),
    ("a device", stat.S_ISCHR),
    ("a device", stat.S_ISBLK),
    ("a socket", stat.S_ISSOCK),
)


def check_archive(path: str | Path) -> None:
    """Raise DamagedFileError unless the zip archive at `path`, as torch.save writes them, is whole.

    torch.load does not look at the checksums the archive has. Here every byte counts: those of a
    member by its CRC-32, those between by what a zip must have there; a member may be neither
    compressed nor overlap another, so that nothing grows beyond the file. Raises what
    `require_regular_file` raises.
    """
    require_regular_file(path)
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            if not members or len({member.filename for member in members}) < len(members):
                raise _Difference("its list of contents")
            if members[0].header_offset != 0:
                raise _Difference("its begin")
            ends = [*(member.header_offset for member in members[1:]), archive.start_dir]
            for member, end in zip(members, ends, strict=True):
                _check_member(file, member, end)
            _check_directory(file, archive)
    except OSError:
        raise
    except Exception as error:  # what damage makes zipfile raise has no bounds
        raise DamagedFileError(
            f"{path} is damaged ({error}): fetch or copy it again, or use another copy", str(error)
        ) from None


class _Difference(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not as it was written")


def _check_member(file: BinaryIO, member: zipfile.ZipInfo, end: int) -> None:
    """Check the bytes of one member, all up to where the next thing begins."""
    where = f"the part {member.filename!r}"
    if member.compress_type != zipfile.ZIP_STORED:
        raise _Difference(where)
    file.seek(member.header_offset)
    header = struct.unpack("<4s5H3L2H", file.read(30))
    name, extra = file.read(header[9]), file.read(header[10])
    sizes = (member.CRC, member.compress_size, member.file_size)
    if member.flag_bits & _SIZES_BEHIND:
        expected = ((0, 0, 0), (0, _ZIP32, _ZIP32), sizes)
    else:
        expected = (sizes, (member.CRC, _ZIP32, _ZIP32))
    encoded = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437")
    same = (
        header[0] == b"PK\3\4"
        and header[1:4] == (member.extract_version, member.flag_bits, member.compress_type)
        and (header[4:6] == _dos_time(member))
        and header[6:9] in expected
        and name == encoded
        and member.file_size == member.compress_size
        and _is_padding(extra)
    )
    if not same:
        raise _Difference(where)
    if _crc_of(file, member.file_size) != member.CRC:
        raise _Difference(where)
    behind = file.read(max(end - file.tell(), 0))
    forms = (
        ("<4s3L", "<4sL2Q") if max(sizes) <= _ZIP32 else ("<4sL2Q",)
    )  # of large files the second
    expected = [struct.pack(form, b"PK\7\x08", *sizes) for form in forms]
    if file.tell() != end or behind not in (
        expected if member.flag_bits & _SIZES_BEHIND else [b""]
    ):
        raise _Difference(where)


_SIZES_BEHIND, _UTF8, _ZIP32 = 0x8, 0x800, 0xFFFFFFFF


def _dos_time(member: zipfile.ZipInfo) -> tuple[int, int]:
    year, month, day, hour, minute, second = member.date_time
    return (
        hour << 11 | minute << 5 | second // 2,
        (year - 1980) << 9 | month << 5 | day,
    )


def _is_padding(extra: bytes) -> bool:
    """Whether a header's extra fields are those of a large file, and Z up to a multiple of 64
    bytes, as torch.save has it.
    """
    while extra:
        kind, length = struct.unpack("<HH", extra[:4])
        value, extra = extra[4 : 4 + length], extra[4 + length :]
        if len(value) != length or kind not in (1, _PADDING):
            return False
        if kind == _PADDING and value != b"Z" * length:
            return False
    return True


_PADDING = int.from_bytes(b"FB", "little")


def _crc_of(file: BinaryIO, size: int) -> int:
    crc = 0
    while size:
        block = file.read(min(size, 1 << 20))
        if not block:
            raise _Difference("its end")
        crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def _check_directory(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Check what stands behind the members: the list of contents, and where it begins."""
    members, start = archive.infolist(), archive.start_dir
    file.seek(start)
    rest, size = file.read(), 0
    for member in members:
        name = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437")
        lengths = (len(name), len(member.extra), len(member.comment))
        # zipfile takes what is there where the last of them is too long
        if struct.unpack("<3H", rest[size + 28 : size + 34]) != lengths:
            raise _Difference("its list of contents")
        size += 46 + sum(lengths)
    fixed = {
        (m.create_version, m.create_system, m.reserved, m.volume, m.internal_attr, m.external_attr)
        for m in members
    }
    ends = _possible_ends(len(members), size, start, len(archive.comment))
    if len(fixed) > 1 or rest[size:] not in [end + archive.comment for end in ends]:
        raise _Difference("its list of contents")


def _possible_ends(number: int, size: int, start: int, comment: int) -> list[bytes]:
    """The records that may end an archive whose list of contents is `size` bytes and begins at
    `start`: the one of small archives, and those of large ones, as torch.save writes and as others
    do.
    """

    def last(number: int, start: int) -> bytes:
        return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, size, start, comment)

    capped = last(min(number, 0xFFFF), min(start, _ZIP32))
    place = struct.pack("<4sLQL", b"PK\6\7", 0, start + size, 1)
    large = [
        struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, by, 45, 0, 0, number, number, size, start)
        for by in (0x031E, 45)
    ]
    return [capped, *(record + place + capped for record in large)]
