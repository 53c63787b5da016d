"""What a run remembers: its best, which evaluations are due, its training error, and what earlier
versions have saved of it.
"""

from __future__ import annotations

import math

import pytest

from detres.engine.progress import Progress, is_better


def test_the_best_is_the_highest_that_could_be_measured():
    progress, improved = Progress(), []
    for step, metric in enumerate([math.nan, None, 0.0, 0.0, 0.5, 0.4, math.nan, 0.6]):
        progress.step = step
        improved.append(progress.see_metric(metric))
    assert improved == [False, False, True, False, True, False, False, True]
    assert progress.best == 0.6
    assert list(progress.evaluations) == list(range(8))


def test_nothing_measured_has_no_best():
    assert Progress().best is None
    assert Progress(step=4, evaluations={2: None, 4: math.nan}).best is None


def test_an_evaluation_at_the_same_step_takes_the_place_of_the_earlier_one():
    progress = Progress(step=4, evaluations={2: 0.3, 4: 0.9})
    assert progress.see_metric(0.5)
    assert progress.evaluations == {2: 0.3, 4: 0.5}


@pytest.mark.parametrize(
    ("step", "every", "evaluated", "due"),
    [
        (0, 2, (), False),  # nothing is learnt yet
        (1, 2, (), False),
        (2, 2, (), True),
        (2, 2, (2,), False),
        (4, 2, (2,), True),
        (4, 0, (), False),
        (10, 0, (), True),  # the end
        (10, 4, (8,), True),
        (10, 0, (10,), False),
        (11, 0, (), True),
        (0, 0, (), False),
    ],
)
def test_an_evaluation_is_due_once_where_it_belongs(step, every, evaluated, due):
    whole = max((at for at in evaluated if at >= 10), default=None)
    progress = Progress(step, dict.fromkeys(evaluated, 0.5), whole=whole)
    assert progress.evaluation_is_due(every, 10) is due


def test_where_the_run_is_over_the_whole_is_due_though_some_images_were_looked_at():
    progress = Progress(4, {2: 0.5, 4: 0.4})
    assert not progress.evaluation_is_due(2, 10)
    assert progress.evaluation_is_due(2, 4)  # shortened to where it is
    assert progress.evaluation_is_due(2, 10, early_stopping=1)
    progress.whole = 4
    assert not progress.evaluation_is_due(2, 4)
    assert not progress.evaluation_is_due(2, 10, early_stopping=1)


@pytest.mark.parametrize(
    ("metrics", "without"),
    [
        ([], 0),
        ([0.5], 0),
        ([0.5, 0.5], 1),  # equal is not better
        ([0.5, 0.4, 0.6], 0),
        ([0.5, 0.4, 0.3, 0.45], 3),
        ([None, math.nan, None], 0),  # nothing was measured
        ([0.5, None, 0.4, math.nan], 1),
        ([0.0, 0.0, 0.0], 2),
    ],
)
def test_evaluations_without_a_better_one(metrics, without):
    evaluations = dict(enumerate(metrics, start=1))
    progress = Progress(len(metrics), dict(reversed(evaluations.items())))
    assert progress.without_better == without
    for patience in range(1, 5):
        assert progress.is_over(100, patience) is (patience <= without)
    assert not progress.is_over(100, 0)
    assert progress.is_over(len(metrics), 0)


@pytest.mark.parametrize(
    ("metric", "than", "better"),
    [
        *((0.5, 0.4, True), (0.4, 0.4, False), (0.3, 0.4, False), (0.0, None, True)),
        *((None, None, False), (None, 0.1, False), (math.nan, None, False), (0.1, math.nan, True)),
    ],
)
def test_one_metric_is_better_than_another(metric, than, better):
    assert is_better(metric, than) is better


def test_it_comes_back_from_plain_values():
    progress = Progress(7, {3: 0.25, 6: None}, 0.5, True, whole=6)
    plain = progress.to_dict()
    assert plain == {
        "step": 7,
        "evaluations": {3: 0.25, 6: None},
        "training_error": 0.5,
        "warmed_up": True,
        "whole": 6,
    }
    assert Progress.from_dict(plain) == progress


def test_the_scores_of_earlier_versions_are_its_evaluations():
    saved = {"step": 7, "scores": {3: 0.25, 6: None}, "training_error": 0.5, "warmed_up": False}
    assert Progress.from_dict(saved) == Progress(7, {3: 0.25, 6: None}, 0.5, False, whole=6)
    assert "scores" in saved  # what was read stays as it was
    assert Progress.from_dict({"step": 0, "scores": {}}) == Progress()


def test_what_is_no_progress_is_refused():
    with pytest.raises(ValueError, match="epoch"):
        Progress.from_dict({"step": 1, "epoch": 2})
    with pytest.raises(ValueError, match="epoch"):
        Progress.from_dict({**Progress().to_dict(), "epoch": 2})


@pytest.mark.parametrize("missing", ["step", "evaluations", "training_error", "warmed_up"])
def test_no_part_of_a_progress_may_be_missing(missing):
    value = Progress(3, {2: 0.5}, 0.7, True).to_dict()
    assert Progress.from_dict(value) == Progress(3, {2: 0.5}, 0.7, True)
    del value[missing]
    with pytest.raises(ValueError, match=f"expected .*'{missing}'"):
        Progress.from_dict(value)


def test_the_first_versions_had_scores_and_no_warm_up_that_waits():
    assert Progress.from_dict({"step": 3, "scores": {2: 0.5}}) == Progress(3, {2: 0.5}, whole=2)


def test_evaluations_of_earlier_versions_were_of_the_whole():
    saved = Progress(6, {3: 0.5, 6: 0.7}).to_dict()
    del saved["whole"]
    progress = Progress.from_dict(saved)
    assert progress.whole == 6
    assert not progress.evaluation_is_due(3, 6)  # a finished run stays finished


@pytest.mark.parametrize("whole", [4, "3", 3.0, -1])
def test_the_whole_must_have_been_looked_at_in_an_evaluation(whole):
    saved = {**Progress(6, {3: 0.5, 6: 0.7}).to_dict(), "whole": whole}
    with pytest.raises(ValueError, match="where was no evaluation"):
        Progress.from_dict(saved)


def test_one_lucky_batch_does_not_end_the_warm_up():
    progress = Progress()
    progress.see_error(0.0, 0.8)
    assert not progress.warmed_up


def test_the_training_error_is_a_mean_over_about_a_hundred_steps():
    progress = Progress()
    for _ in range(1000):
        progress.see_error(0.9, 0.8)
    steps = 0
    while not progress.warmed_up:
        progress.see_error(0.7, 0.8)
        steps += 1
    assert steps == math.ceil(math.log(0.5) / math.log(0.99))


@pytest.mark.parametrize("error", [math.nan, math.inf, -0.01, 1.01])
def test_a_training_error_that_is_no_fraction_is_refused(error):
    with pytest.raises(ValueError, match=r"training_error .* is no fraction"):
        Progress.from_dict({**Progress(1).to_dict(), "training_error": error})
    for fraction in (0.0, 1.0):
        value = {**Progress(1).to_dict(), "training_error": fraction}
        assert Progress.from_dict(value).training_error == fraction
