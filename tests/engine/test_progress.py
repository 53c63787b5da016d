"""What a run remembers: its best, which evaluations are due, its training error, and what earlier
versions have saved of it.
"""

from __future__ import annotations

import math

import pytest

from detres.engine.progress import Progress


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
    progress = Progress(step, dict.fromkeys(evaluated, 0.5))
    assert progress.evaluation_is_due(every, 10) is due


def test_it_comes_back_from_plain_values():
    progress = Progress(7, {3: 0.25, 6: None}, 0.5, True)
    plain = progress.to_dict()
    assert plain == {
        "step": 7,
        "evaluations": {3: 0.25, 6: None},
        "training_error": 0.5,
        "warmed_up": True,
    }
    assert Progress.from_dict(plain) == progress


def test_the_scores_of_earlier_versions_are_its_evaluations():
    saved = {"step": 7, "scores": {3: 0.25, 6: None}, "training_error": 0.5, "warmed_up": False}
    assert Progress.from_dict(saved) == Progress(7, {3: 0.25, 6: None}, 0.5, False)
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
    assert Progress.from_dict({"step": 3, "scores": {2: 0.5}}) == Progress(3, {2: 0.5})


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
