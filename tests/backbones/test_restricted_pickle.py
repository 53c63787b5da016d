from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.restricted_pickle import ForbiddenPickleError, load_arrays

DTYPES = ("f2", "f4", "f8", "b1", "u1", "i1", "i2", "i4", "i8")


def written(tmp_path: Path, content: object, protocol: int = 2) -> Path:
    path = tmp_path / "file.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_type_and_protocol(dtype, protocol, tmp_path):
    array = (np.random.default_rng(0).normal(size=(2, 3, 4)) * 50).astype(dtype)
    content = {
        "a": array,
        "nested": {"list": [array[0], (array[1].T,)]},
        "big endian": array.astype(f">{dtype}"),
    }
    found = load_arrays(written(tmp_path, content, protocol))
    assert found["a"].dtype == torch.from_numpy(array).dtype
    np.testing.assert_array_equal(found["a"].numpy(), array)
    np.testing.assert_array_equal(found["nested"]["list"][0].numpy(), array[0])
    np.testing.assert_array_equal(found["nested"]["list"][1][0].numpy(), array[1].T)
    np.testing.assert_array_equal(found["big endian"].numpy(), array)


@pytest.mark.parametrize("protocol", [2, 5])
def test_fortran_order_scalars_empty_arrays_and_containers(protocol, tmp_path):
    array = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    content = OrderedDict(
        a=array,
        s=np.float32(1.5),
        e=np.zeros((0, 3), np.int64),
        z=np.array(7.0),
        n=None,
        t=True,
        w="text",
        i=3,
        b=b"\xff",
    )
    found = load_arrays(written(tmp_path, content, protocol))
    np.testing.assert_array_equal(found["a"].numpy(), array)
    assert found["a"].is_contiguous()
    assert (found["s"], found["n"], found["t"], found["w"], found["i"], found["b"]) == (
        1.5,
        None,
        True,
        "text",
        3,
        b"\xff",
    )
    assert found["e"].shape == (0, 3)
    assert found["z"].item() == 7.0


def test_a_pickle_of_python_2(tmp_path):
    """Its strings are bytes, and its numpy has another home: what Detectron's files look like."""
    data = struct.pack("<2f", 1.5, -2.0)
    stream = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + data
        + b"tbs."
    )
    assert load_arrays(written(tmp_path, stream))["w"].tolist() == [1.5, -2.0]


class _Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_is_refused_by_name_and_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    path = written(tmp_path, {"weights": np.zeros(2), "more": _Trap(sprung)})
    with pytest.raises(ForbiddenPickleError, match=r"\w+\.mkdir") as caught:
        load_arrays(path)
    assert caught.value.name.endswith(".mkdir")
    assert not sprung.exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert sprung.exists()


@pytest.mark.parametrize(
    ("stream", "name"),
    [
        (b"cbuiltins\neval\n(S'1+1'\ntR.", "builtins.eval"),
        (b"c__builtin__\ngetattr\n.", "__builtin__.getattr"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"ccollections\nnamedtuple\n.", "collections.namedtuple"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", "os.system"),
        (b"Pstored elsewhere\n.", "a persistent id, a str"),
        (b"cnumpy\ndtype\n.", "a function or type where data belong"),
        (pickle.dumps(np.array([{1: 2}, None], dtype=object)), "numpy type O8"),
        (pickle.dumps(np.zeros(2, dtype=[("a", "f4")])), "numpy type V4"),
        (pickle.dumps(1 + 2j), "builtins.complex"),
        (pickle.dumps(Path), "pathlib"),
    ],
)
def test_every_other_name_is_refused(stream, name, tmp_path):
    with pytest.raises(
        ForbiddenPickleError, match="neither an array nor a plain container"
    ) as caught:
        load_arrays(written(tmp_path, stream))
    assert name in caught.value.name


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"hello",
        b"\x80\x02}",
        pickle.dumps({"a": np.zeros(100)})[:-50],
        b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR}S'code'\nS'f8'\nsb.",  # a state that is no tuple
        b"cnumpy\ndtype\nN}S'_make'\nNs\x86b.",  # a state for the stand-in itself
        b"(lp0\ng0\na.",  # a list that holds itself
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x0412345678tb.",
    ],
)
def test_damaged_and_hostile_streams(stream, tmp_path):
    with pytest.raises(ValueError, match="damaged or not a pickle"):
        load_arrays(written(tmp_path, stream))
    assert load_arrays(written(tmp_path, {"a": np.ones(1, np.float32)}))["a"].tolist() == [
        1.0
    ]  # the reader itself is as it was


def test_a_filled_array_takes_no_second_state(tmp_path):
    """A tensor's own __setstate__ would make views of memory that is not its own: it must be out of
    the stream's reach.
    """
    stream = pickle.dumps(np.ones(4, np.float32), 5)
    for state in (b"N", b"(I1\nI2\nI3\nI4\nt", b"}"):
        with pytest.raises(ValueError, match="damaged or not a pickle"):
            load_arrays(written(tmp_path, stream[:-1] + state + b"b."))


def test_small_files_that_ask_for_much(tmp_path):
    """A memo of 2^27 places, and lists that hold the one before twice, sixty deep: neither takes
    memory or time.
    """
    assert load_arrays(written(tmp_path, b"\x80\x02Nr" + struct.pack("<I", 1 << 27) + b".")) is None
    doubling = b"".join(b"(lp%d\ng%d\nag%d\na" % (n + 1, n, n) for n in range(60))
    found = load_arrays(written(tmp_path, b"(lp0\n0" + doubling + b"."))
    assert found[0] is found[1]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "absent.pkl")
