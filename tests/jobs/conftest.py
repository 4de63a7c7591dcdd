"""Fixtures that several test files of jobs use."""

import pytest

from swm.settings import ExperimentSettings


@pytest.fixture
def experiment(model_folder, text_file):
    from swm.stages.create import create_experiment

    return create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 3, 32))


@pytest.fixture
def grid(model_folder, text_file):
    healing = {"steps": 2, "batch": 2, "length": 16, "held_out": 2, "rank": 2, "save_every": 2, "repair": "none"}
    return {
        "name": "small",
        "models": str(model_folder),
        "texts": str(text_file),
        "count": 3,
        "length": 32,
        "plans": [{"planner": "random", "ratio": [0.25, 0.5]}, {"rule": "keep_first", "layers": 3}],
        "recovery": ["none", {"preset": "quick", "texts": str(text_file), **healing}],
        "limit": 1,
    }
