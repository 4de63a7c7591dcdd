"""Fixtures that several test files of planners use."""

import pytest

from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment


@pytest.fixture
def experiment(model_folder, text_file, home):
    return create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 4, 32))
