from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backbones.file_kinds import NotWeightsError, weights_kind


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return content.getvalue()


def tarred(name: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>403</html>", "a web page"),
        (b"\n\xef\xbb\xbf <HTML lang=en>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "an XML document"),
        (b"<Error><Code>NoSuchKey</Code></Error>", "an XML document"),
        (gzip.compress(b"abc", mtime=0), "compressed: unpack it"),
        (b"\xfd7zXZ\0abc", "compressed: unpack it"),
        (b"\x89HDF\r\n\x1a\nabc", "an HDF5 file"),
        (array(), "a single numpy array"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "an ONNX model"),
        (b'model_checkpoint_path: "model.ckpt-1"\n', "the index of checkpoints of TensorFlow"),
        (b"\x1c\0\0\0TFL3abc", "a TFLite model"),
        (b"\x89PNG\r\n\x1a\nabc", "a picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a picture"),
        (b"%PDF-1.4\n", "a PDF document"),
        (b"\x7fELF\x02", "a program"),
        (b"hello, world\n", "a text file that begins with 'hello, world'"),
        ("  \nÄpfel\n".encode(), "a text file that begins with 'Äpfel'"),
        (json.dumps({"message": "not found"}).encode(), "a text file that begins with '{"),
        (zipped(a_dot_txt=b"x", b_dot_txt=b"y"), r"a zip archive that holds a\.txt, b\.txt"),
        (zipped(a_dot_npy=b"x"), "an archive of numpy arrays"),
        (zipped(m__data_dot_pkl=b"x", m__constants_dot_pkl=b"x"), "a TorchScript archive"),
        (tarred("weights.pth"), "a tar archive: unpack it"),
        (tarred("storages"), r"a tar archive of torch\.save before version 0\.1\.10"),
        (b"\x01\x02\x03\x04", "no known kind begins with 01 02 03 04"),
    ],
)
def test_other_files_are_called_what_they_are(content, what, tmp_path):
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        if content[:1] == b"\x01" and name == "w.safetensors":
            continue  # its reader says that it is damaged
        with pytest.raises(NotWeightsError, match=what) as caught:
            weights_kind(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.ckpt.index", "a part of a model of TensorFlow"),
        ("model.ckpt.data-00000-of-00001", "a part of a model of TensorFlow"),
        ("saved_model.pb", "a part of a model of TensorFlow"),
        ("ResNet-50-deploy.prototxt", "the layers of a network of Caffe"),
    ],
)
def test_some_are_known_by_their_names(name, what, tmp_path):
    (tmp_path / name).write_bytes(b"\x0a\x01\x02\x03")
    with pytest.raises(NotWeightsError, match=what):
        weights_kind(tmp_path / name)


def test_weights_are_known_by_their_content_whatever_they_are_called(tmp_path: Path):
    tensors = {"w": torch.zeros(2)}
    writers = {
        "safetensors": lambda path: save_file(tensors, path),
        "torch archive": lambda path: torch.save(tensors, path),
        "earlier torch file": lambda path: torch.save(
            tensors, path, _use_new_zipfile_serialization=False
        ),
        "pickle": lambda path: path.write_bytes(pickle.dumps({"w": [1]}, 2)),
    }
    for kind, write in writers.items():
        for name in ("w.pth", "w.safetensors", "w.pkl", "w.bin", "w"):
            write(tmp_path / name)
            assert weights_kind(tmp_path / name) == kind
    for first, third in ((0x80, 0), (0x08, 0x12)):  # as a pickle, an ONNX model begins
        length = first + (0x04 << 8) + (third << 16)
        (tmp_path / "cut.pth").write_bytes(length.to_bytes(8, "little") + b'{"w":{"dtype":"F32",')
        assert weights_kind(tmp_path / "cut.pth") == "safetensors"  # to be called damaged
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"w": [1]}, 0))
    assert weights_kind(tmp_path / "old.pkl") == "pickle"
    (tmp_path / "w.safetensors").write_bytes(bytes(20))
    assert weights_kind(tmp_path / "w.safetensors") == "safetensors"  # to be called damaged
    (tmp_path / "w.pth").write_bytes(b"PK\3\4 cut")
    assert weights_kind(tmp_path / "w.pth") == "torch archive"
    with pytest.raises(FileNotFoundError):
        weights_kind(tmp_path / "gone.pth")
