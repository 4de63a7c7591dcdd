"""Fixtures that several test files of studies use."""

import pytest

from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from tests.studies.run_cases import SMALL


@pytest.fixture
def experiment(model_folder, text_file, home):
    SMALL["recovery"]["texts"] = str(text_file)
    return create_experiment("e", ExperimentSettings(str(model_folder), str(text_file), 4, 32))
