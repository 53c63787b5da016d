"""A run of two processes: its moving average, its early end and its digests are one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from detres.engine.distributed import Group
from detres.runs.judgement import Judgement
from detres.runs.run import TrainingRun
from tests.engine.regression import Batch, Regression, same_tensors
from tests.processes import alone, together
from tests.runs.test_run import Evaluation, Fitting, records

CPU = torch.device("cpu")
METRICS = {2: 0.5, 4: 0.6, 6: 0.6, 8: 0.1, 10: 0.9}


class WholeBatch(Regression):
    """Learns from all of a batch, so that it can be divided."""

    def forward(self, batch: Batch, targets: list[torch.Tensor]) -> object:
        losses = super().forward(batch, targets)
        error = self.linear(batch.values).squeeze(1) - torch.stack(targets)
        losses.sums["loss_fit"] = error.square().sum()
        losses.counts["loss_fit"] = len(batch)
        return losses


class Shared(Fitting):
    """A Fitting of several processes, of which the first alone can tell the metric."""

    def __init__(self, group: Group) -> None:
        super().__init__(METRICS.get, eval_every=2, early_stopping=2, ema_decay=0.5)
        self.group = group
        self.model.__class__ = WholeBatch

    def batches(self, run: TrainingRun) -> Iterable:
        for batch, targets in super().batches(run):
            (rows,) = self.group.share.of(range(8))
            ids = tuple(batch.ids[row] for row in rows)
            yield Batch(batch.values[list(rows)], ids), [targets[row] for row in rows]

    def judge(self, *, whole: bool) -> Judgement:
        found = super().judge(whole=whole)
        mine = found if self.group.is_first else Judgement.of_all(Evaluation({"AP": 9.0}))
        return self.group.broadcast(mine)

    def begin(self, folder: Path) -> None:
        """Nothing is written."""


def trained(group: Group, folder: str) -> tuple[dict, dict, int, float | None]:
    """Weights, their moving average, the last step and the best metric, as this process has
    them.
    """
    training = Shared(group)
    with TrainingRun.start(
        training, Path(folder), device=CPU, resume_line=lambda *_: "go on"
    ) as run:
        run.train()
    weights = {name: each.clone() for name, each in training.model.state_dict().items()}
    return weights, run.average.state(), run.progress.step, run.progress.best


def test_two_processes_have_one_average_and_end_early_at_one_step(tmp_path: Path) -> None:
    first, second = together(2, trained, str(tmp_path / "two"))
    assert first[2:] == second[2:] == (8, 0.6)
    assert same_tensors(first[0], second[0])
    assert same_tensors(first[1], second[1])
    assert not same_tensors(first[0], first[1])
    single = alone(trained, str(tmp_path / "one"))
    assert single[2:] == first[2:]
    for found, wanted in zip(first[:2], single[:2], strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    orders = [
        [each["order_digest"] for each in records(tmp_path / name, "eval")]
        for name in ("one", "two")
    ]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) == 4
