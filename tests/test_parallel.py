"""One stage in two processes (gloo): the numbers of one process, written once; commands that cannot share say so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swm import stages
from swm.experiments import Experiment, Settings

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "swm"]


@pytest.fixture
def study(model_folder, text_file):
    return stages.create("study", Settings(str(model_folder), str(text_file), 10, 128))


def launched(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run([*LAUNCH, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("how", [[], ["--metric", "cka-rbf", "--part", "update", "--skip", "2"]])
def test_two_processes_measure_what_one_does(how, study):
    stages_one = subprocess.run(
        [sys.executable, "-m", "swm", "measure", "study", *how, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    one = json.loads(stages_one.stdout)
    file = next((study.folder / "similarity").glob("*.json"))
    file.unlink()
    done = launched("measure", "study", *how)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(file.read_text())
    for name in ("matrix", "block_influence", "norm"):
        torch.testing.assert_close(
            torch.tensor(two[name], dtype=torch.float64),
            torch.tensor(one[name], dtype=torch.float64),
            atol=1e-10,
            rtol=1e-10,
        )
    assert two["tokens"] == one["tokens"]
    assert two["conditions"]["processes"] == 2
    assert Experiment.open("study").state().status == "done"
    assert done.stdout.count("of each layer and the next") == 1


def test_what_cannot_be_shared_is_told(study):
    done = launched("search", "study")
    assert done.returncode
    assert "search runs in one process" in done.stderr
    assert study.path("rdsc") is None
