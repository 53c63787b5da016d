"""What is taken for a writer, and the writers of docs/tracking.md, each run as it stands there
against a service that keeps what it is sent.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import detres
from detres.engine.log import RunLog
from detres.engine.progress import Progress
from detres.engine.writers import Writer, require_writers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tracking.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
CONFIG = {"seed": 3, "train": {"lr": 0.01}}


class Complete:
    def started(self, config: dict, folder: Path, step: int) -> None:
        """Does nothing."""

    def numbers(self, kind: str, step: int, record: dict) -> None:
        """Does nothing."""

    def closed(self) -> None:
        """Does nothing."""


def test_what_is_no_writer_is_named():
    require_writers([])
    require_writers([Complete()])
    with pytest.raises(TypeError, match=r"writers\[1\] is the class Complete: give an object, Co"):
        require_writers([Complete(), Complete])
    with pytest.raises(
        TypeError,
        match=r"writers\[0\], a SimpleNamespace, has no numbers\(\): a writer has started, "
        "numbers, closed",
    ):
        require_writers([SimpleNamespace(started=print, closed=print)])
    with pytest.raises(TypeError, match="has no started"):
        detres.train("nowhere", writers=["wandb"])


# ---- services, as far as the examples use them: the names and parameters are theirs ----


class WandbRun:
    """As wandb's: what is of a step before the last one is left out."""

    def __init__(self, run_id: str, name: str, config: dict) -> None:
        self.id, self.name, self.config = run_id, name, config
        self.rows: dict[int, dict] = {}
        self.open = True

    def log(self, data: dict, step: int | None = None, commit: bool | None = None) -> None:
        assert self.open
        assert commit is None
        if step >= max(self.rows, default=0):
            self.rows.setdefault(step, {}).update(data)

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        assert exit_code is quiet is None
        self.open = False


def wandb_service() -> ModuleType:
    module = ModuleType("wandb")
    module.runs = {}

    def init(
        entity: str | None = None,
        project: str | None = None,
        dir: str | None = None,
        id: str | None = None,
        name: str | None = None,
        config: dict | None = None,
        resume: str | None = None,
    ) -> WandbRun:
        assert entity is dir is None
        assert project == "blood-cells"
        assert resume == "allow"
        run_id = id or f"run{len(module.runs)}"
        run = module.runs.setdefault(run_id, WandbRun(run_id, name, config))
        run.open = True
        return run

    module.init = init
    return module


def mlflow_service() -> ModuleType:
    """As mlflow: one active run; a point of a step that is there already is kept beside it."""
    module = ModuleType("mlflow")
    module.runs, module.active = {}, []

    def start_run(
        run_id: str | None = None,
        experiment_id: str | None = None,
        run_name: str | None = None,
        nested: bool = False,
    ) -> SimpleNamespace:
        assert experiment_id is None
        assert not nested
        assert not module.active, "a run is active already"
        run_id = run_id or f"run{len(module.runs)}"
        run = module.runs.setdefault(run_id, SimpleNamespace(name=run_name, points=[], files={}))
        module.active.append(run)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_metrics(metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            assert re.fullmatch(r"[\w\-. /]+", name), f"mlflow takes no metric {name!r}"
            module.active[0].points.append((name, step, value))

    def log_dict(dictionary: dict, artifact_file: str) -> None:
        module.active[0].files[artifact_file] = dictionary

    class MlflowClient:
        def get_metric_history(self, run_id: str, key: str) -> list[SimpleNamespace]:
            points = module.runs[run_id].points
            return [SimpleNamespace(step=step) for name, step, _ in points if name == key]

    module.start_run, module.log_metrics, module.log_dict = start_run, log_metrics, log_dict
    module.end_run, module.MlflowClient = module.active.clear, MlflowClient
    return module


def example(name: str, service: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """The writers that the example of docs/tracking.md hands to detres.train."""
    (code,) = [block for block in BLOCKS if f"import {name}" in block]
    handed: list[Writer] = []
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setattr(detres, "train", lambda _, writers: handed.extend(writers))
    exec(compile(code, f"{name} in docs/tracking.md", "exec"), {})
    return handed


def a_killed_and_resumed_run(folder: Path, writers: list[Writer]) -> None:
    """To step 30, of which the state has 20, then from there to 40; evaluations at 20 and 40."""
    require_writers(writers)
    folder.mkdir()
    for start, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        log = RunLog(
            folder / "metrics.jsonl",
            folder / "tensorboard",
            console=(console := io.StringIO()),
            steps=40,
            progress=Progress(start, {20: 0.5} if start else {}),
            writers=writers,
            config=CONFIG,
        )
        for step in steps:
            log.train(step, {"loss": 1 / step, "loss_a": 0.5, "lr": 0.01})
            if step in (20, 40):
                log.evaluation(step, {"AP": step / 100, "APs": None})
        log.close()
        assert "left out" not in console.getvalue()


def recorded(folder: Path) -> list[tuple[str, int]]:
    """Every number of metrics.jsonl that is one, by name and step."""
    found = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind, step = record.pop("kind"), record.pop("step")
        found += [(f"{kind}/{name}", step) for name in record if record[name] is not None]
    return sorted(found)


def test_the_wandb_example(tmp_path, monkeypatch):
    service, folder = wandb_service(), tmp_path / "cells"
    a_killed_and_resumed_run(folder, example("wandb", service, monkeypatch))
    (run,) = service.runs.values()
    assert (run.name, run.config, run.open) == ("cells", CONFIG, False)
    assert run.rows[20] == {
        "train/loss": 1 / 20,
        "train/loss_a": 0.5,
        "train/lr": 0.01,
        "eval/AP": 0.2,
    }
    told = sorted((name, step) for step, row in run.rows.items() for name in row)
    assert told == recorded(folder)


def test_the_mlflow_example(tmp_path, monkeypatch):
    service, folder = mlflow_service(), tmp_path / "cells"
    a_killed_and_resumed_run(folder, example("mlflow", service, monkeypatch))
    (run,) = service.runs.values()
    assert (run.name, run.files, service.active) == ("cells", {"config.json": CONFIG}, [])
    assert ("eval/AP", 40, 0.4) in run.points
    assert sorted((name, step) for name, step, _ in run.points) == recorded(folder)
