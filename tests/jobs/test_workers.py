"""Tests of swm.jobs.workers."""

import sys

import pytest

from swm.errors import SettingsError
from swm.jobs.sweep import Sweep
from swm.jobs.workers import run_sweep
from tests.jobs.sweep_cases import quiet


def test_without_ray_it_is_told_how_to_get_it(grid, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("swm.jobs.workers._create", lambda cell, progress: None)
    with pytest.raises(SettingsError, match="pip install ray"):
        run_sweep(Sweep.create(grid), quiet, "ray")
