"""Tests of swm.reporting.export."""

import pytest

from swm.errors import ExperimentError
from swm.reporting.export import export_run


def test_export_refuses_a_folder_that_exists(experiment, tmp_path):
    run = experiment.run("first")
    run.model_folder.mkdir()
    (run.model_folder / "config.json").write_text("{}")
    with pytest.raises(ExperimentError, match="already exists"):
        export_run(run, tmp_path)
