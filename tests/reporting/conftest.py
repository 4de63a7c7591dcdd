"""Fixtures that several test files of reporting use."""

import pytest

from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment
from tests.reporting.report_cases import EVIL
from tests.reporting.test_compare import FACTS, scores


@pytest.fixture
def experiment():
    facts = {**FACTS, "architecture": "LlamaForCausalLM"}
    experiment = Experiment.create("study", ExperimentSettings(f"models/{EVIL}", f"{EVIL}.txt"), facts)
    matrix = [[1.0 if i == j else 0.9 for j in range(6)] for i in range(6)]
    lists = {"block_influence": [0.1] * 6, "norm": [1.0] * 6, "tokens": 9}
    conditions = {"dtype": "float32", "seconds": 1.0}
    experiment.save_similarity("cka", {"metric": "cka", "matrix": matrix, **lists, "conditions": conditions})
    experiment.create_run("first", MergePlan(6, (Window(1, 3),), "mean"), 0.9).save("scores", scores(50.0, 0.5, 0.6))
    return experiment
