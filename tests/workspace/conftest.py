"""Fixtures that several test files of workspace use."""

import pytest

from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment
from tests.reporting.test_compare import FACTS


@pytest.fixture
def experiment():
    return Experiment.create("study", ExperimentSettings("some-model"), FACTS)
