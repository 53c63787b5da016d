"""A published name is downloaded once and converted once; what goes wrong is one clear error."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import detres
from backbones.download import part_of
from detres.detection.detector import Detector
from detres.detection.named_weights import published_file, weights_called
from detres.detection.published import PUBLISHED_DETECTORS
from detres.files import CheckpointError
from tests.detection.test_import_weights import detectron2_state, write_pkl
from tests.file_server import FileServer, serving

NAME = "detectron2/faster_rcnn_R_50_FPN_1x"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("made") / "model.pkl"
    write_pkl(detectron2_state("resnet50", pyramid=True, num_classes=20), path)
    return path.read_bytes()


def publish(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the table have NAME at `url`."""
    monkeypatch.setitem(
        PUBLISHED_DETECTORS, NAME, dataclasses.replace(PUBLISHED_DETECTORS[NAME], url=url)
    )


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; return the folder in it for NAME."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub" / "checkpoints" / NAME


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()[:6]
    with serving(content, f"model_final_{digest}.pkl") as server:
        publish(server.url, monkeypatch)
        yield server


def test_a_name_is_downloaded_and_converted_once(
    server: FileServer, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    weights = weights_called(NAME, notice=said.append)
    assert weights.parent == hub
    file = server.url.rpartition("/")[2]
    assert {each.name for each in hub.iterdir()} == {file, weights.name}
    assert [each.partition(": ")[2] for each in said] == ["a detector of detectron2, 295 tensors"]
    megabytes = f"{len(server.content) / 1e6:.1f} MB"
    assert capsys.readouterr().err.splitlines() == [f"downloading {server.url}: {megabytes}"]
    (hub / file).unlink()  # what was made of it is enough
    detector = detres.load(NAME, offline=True)
    assert isinstance(detector, Detector)
    assert detector.class_map.names[0] == "aeroplane"
    assert weights_called(NAME) == weights
    assert server.starts == [0]


def test_a_download_that_was_stopped_goes_on(
    server: FileServer, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cut = 1_000_000
    with pytest.raises(CheckpointError) as caught:
        published_file(NAME)
    path = hub / server.url.rpartition("/")[2]
    assert str(caught.value).startswith(f"{NAME}: {server.url} broke off after 1.0 of ")
    assert str(caught.value).endswith(f"By hand, put that file at {path}")
    assert part_of(path).stat().st_size == 1_000_000
    server.cut = None
    capsys.readouterr()
    assert published_file(NAME) == path
    assert path.read_bytes() == server.content
    assert server.starts == [0, 1_000_000]
    assert "MB, 1.0 of them here already\n" in capsys.readouterr().err


def test_a_file_put_there_by_hand_is_checked_and_taken(server: FileServer, hub: Path) -> None:
    path = hub / server.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(server.content)
    assert published_file(NAME, offline=True) == path
    path.write_bytes(b"another")
    with pytest.raises(CheckpointError, match=r"is not the file of .*: its md5 starts with"):
        published_file(NAME)
    assert path.read_bytes() == b"another"
    assert server.starts == []


def test_another_file_than_was_published_is_refused(server: FileServer, hub: Path) -> None:
    server.content = b"another"
    with pytest.raises(CheckpointError, match=r"is not what was published: its md5 starts with"):
        weights_called(NAME)
    assert list(hub.iterdir()) == []


def test_offline_says_where_it_would_be(server: FileServer, hub: Path) -> None:
    path = hub / server.url.rpartition("/")[2]
    for ask in (weights_called, published_file, Detector.load, detres.load):
        with pytest.raises(CheckpointError) as caught:
            ask(NAME, offline=True)
        assert f"{NAME} is not here, and offline nothing is downloaded: " in str(caught.value)
        assert f"it would be {path}; put the file of {server.url} there" in str(caught.value)
    assert server.starts == []
    assert not hub.exists()


def test_without_a_network_one_line_says_what_goes_where(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/model_final_000000.pkl"
    publish(url, monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        detres.load(NAME)
    assert str(caught.value) == (
        f"{NAME}: {url} cannot be reached: Connection refused. By hand, put that file at "
        f"{hub / 'model_final_000000.pkl'}"
    )


@pytest.mark.usefixtures("server")
def test_a_cache_that_cannot_be_written_says_what_can_be_done(hub: Path) -> None:
    """Where a folder stands in the place of our weights, which stops an administrator too."""
    path = published_file(NAME)
    PUBLISHED_DETECTORS[NAME].converted_path(hub.parents[2]).mkdir()
    with pytest.raises(CheckpointError) as caught:
        weights_called(NAME)
    said = str(caught.value)
    assert said.startswith(f"{NAME}: our weights of it cannot be kept at {path.parent}")
    assert f"`convert {NAME} --out FILE.safetensors` writes them elsewhere" in said
    assert "\n" not in said


def test_a_path_that_is_there_comes_first_and_others_are_as_they_were(
    server: FileServer,
) -> None:
    Path(NAME).parent.mkdir()
    Path(NAME).write_bytes(b"mine")
    assert weights_called(NAME) == Path(NAME)
    for given in ("gone.safetensors", "torchvision/resnet50.v1"):
        assert weights_called(given) == Path(given)
    assert server.starts == []
    with pytest.raises(
        CheckpointError, match=r"did you mean torchvision/fasterrcnn_resnet50_fpn\.c"
    ):
        weights_called("torchvision/fasterrcnn_resnet50_fpn")
