from __future__ import annotations

import json

import pytest

from detres.reproduction.measured import Record, merged, read_measured, write_measured
from detres.reproduction.tables import Training


def record(**changes) -> Record:
    fields = {
        "run": "r",
        "config": "c",
        "seed": 3,
        "steps": 10,
        "machine": "m",
        "results": {"metrics": {"top1_error": 0.25}},
    }
    return Record(**{**fields, **changes})


def test_records_survive_the_file(tmp_path):
    records = (record(), record(seed=4, settings=("a=[1,2]",), digest="0f", commit="c0"))
    write_measured(tmp_path / "m.json", records)
    assert read_measured(tmp_path / "m.json") == records


def test_without_a_file_nothing_was_measured(tmp_path):
    assert read_measured(tmp_path / "m.json") == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "m.json is not JSON"),
        ("[]", 'm.json: expected {"records": [...]}, got a list'),
        ({"records": [{}]}, "m.json: records.0.config: Field required"),
        ({"record": []}, "m.json: unknown key 'record'; did you mean 'records'?"),
        ({"records": 3}, "m.json: records: "),
        ("percent", "m.json: records.0.results.metrics.top1_error: "),
        ("seed", "m.json: records.0.seed: "),
        ("infinite", "m.json: records.0.results.metrics.top1_error: "),
    ],
)
def test_a_damaged_file_is_named_with_the_record(tmp_path, content, message):
    tree = json.loads(record().model_dump_json())
    broken = {"percent": 8.49, "infinite": float("nan")}
    if content in ("percent", "infinite"):
        tree["results"]["metrics"]["top1_error"] = broken[content]
        content = {"records": [tree]}
    elif content == "seed":
        content = {"records": [{**tree, "seed": "three"}]}
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError) as error:
        read_measured(tmp_path / "m.json")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


def test_what_is_found_again_is_added_to_its_run_and_others_stay():
    early, other = record(), record(seed=4)
    later = record(results={"metrics": {"top1_error": 0.2}, "dense": {"top1_error": 0.1}})
    assert merged((early, other), [later]) == (
        record(results={"metrics": {"top1_error": 0.2}, "dense": {"top1_error": 0.1}}),
        other,
    )
    more = record(results={"dense": {"top5_error": 0.0}})
    (kept,) = merged((later,), [more])
    assert kept.results["dense"] == {"top1_error": 0.1, "top5_error": 0.0}
    assert merged((), []) == ()


@pytest.mark.parametrize("change", ["run", "config", "digest", "commit", "machine"])
def test_runs_are_told_apart_by_all_that_is_known_of_them(change):
    assert len(merged((record(),), [record(**{change: "other"})])) == 2


def test_the_words_of_a_training():
    training = Training("train-cls", "c", None, settings=("a=1", "b=2", "seed=9", "name=x"))
    assert record(settings=("b=2", "a=1")).is_of(training)
    assert not record(settings=("a=1",)).is_of(training)
    assert not record(config="d", settings=("a=1", "b=2")).is_of(training)
