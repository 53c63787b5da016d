from __future__ import annotations

import json

import cv2
import pytest
import torch

from detres.runs.environment import write_environment


def test_the_environment_is_recorded(tmp_path):
    path = tmp_path / "env.json"
    write_environment(path, torch.device("cpu"))
    (facts,) = json.loads(path.read_text())
    assert (facts["torch"], facts["opencv"]) == (torch.__version__, cv2.__version__)
    assert facts["cpu_count"] >= 1
    if facts["git_commit"] is None:  # installed, not a checkout
        assert facts["git_changed_files"] is None
    else:
        assert len(facts["git_commit"]) == 40
        assert isinstance(facts["git_changed_files"], list)
    write_environment(path, torch.device("cpu"), start_step=7)
    first, second = json.loads(path.read_text())
    assert first == facts | {"start_step": 0}
    assert second == facts | {"start_step": 7}


def test_the_one_mapping_of_earlier_versions_becomes_the_first_of_the_list(tmp_path):
    path = tmp_path / "env.json"
    path.write_text('{"torch": "2.0"}')
    write_environment(path, torch.device("cpu"), start_step=3)
    first, second = json.loads(path.read_text())
    assert first == {"torch": "2.0"}
    assert second["start_step"] == 3


def test_a_file_that_is_no_json_is_an_error_and_stays(tmp_path):
    path = tmp_path / "env.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"^{path} is damaged \(.*\): move it away"):
        write_environment(path, torch.device("cpu"))
    assert path.read_text() == "{"
