"""Tests of swm.disk.names."""

import pytest

from swm.errors import ExperimentError
from swm.plan import MergePlan
from swm.workspace.housekeeping import delete


def test_shipped_experiments_are_read_only(experiment, monkeypatch):
    monkeypatch.setattr("swm.disk.names.SHIPPED", experiment.folder.parent)
    for change in (
        lambda: experiment.save_similarity("cka", {}),
        lambda: experiment.create_run("a", MergePlan(6)),
        lambda: experiment.run("baseline").save("scores", {}),
        lambda: delete(experiment),
    ):
        with pytest.raises(ExperimentError, match="cannot be changed"):
            change()
