"""Sweeps: files, a local queue, and a Ray cluster of two nodes of which one is killed; each run once."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from swm.cli.main import main
from swm.errors import Cancelled, SettingsError
from swm.jobs.sweep import Sweep, sweep_rows, sweeps
from swm.jobs.sweep_file import load_grid
from swm.jobs.tracking import tracked
from swm.jobs.workers import run_sweep
from swm.workspace.experiments import Experiment
from tests.conftest import need, tiny_model
from tests.jobs.sweep_cases import ROOT, quiet
from tests.jobs.test_child import wait_for


def written(grid, tmp_path, **changes):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**grid, **changes}))
    return path


@pytest.mark.data
def test_a_sweep_is_cancelled_gone_on_with_and_does_nothing_twice(grid, tmp_path, home, capsys):
    need("olmo_eval")
    file = written(grid, tmp_path, plans={"planner": "random", "ratio": 0.5})
    sweep = Sweep.create(load_grid(file))
    cells = sweep.file.cells

    def impatient(done, total, text):
        if done >= 1 and "left" in text:
            raise Cancelled

    with pytest.raises(Cancelled), tracked(sweep, "sweep", device=False) as progress:
        run_sweep(sweep, lambda *told: (progress(*told), impatient(*told)), workers=1)
    assert sweep.state().status == "cancelled"
    states = [cell.state() for cell in cells]
    assert states.count("done") >= 1
    assert "running" not in states
    first = next(cell for cell in cells if cell.state() == "done")
    scores = home / "experiments" / first.experiment / "runs" / first.run / "scores.json"
    before = scores.stat().st_mtime_ns
    main(["sweep", str(file), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["cells"].values()) == {"done"}
    assert scores.stat().st_mtime_ns == before
    start = time.monotonic()
    main(["sweep", str(file), "--json"])
    assert time.monotonic() - start < 5  # nothing is left
    assert sweeps()[0][0].name == "small"
    experiment = Experiment.open(first.experiment)
    assert {run.name for run in experiment.runs()} == {"baseline", *(cell.run for cell in cells)}
    assert {run.stage for run in experiment.runs()} == {"original", "merged", "recovered"}


@pytest.mark.long
@pytest.mark.data
def test_runs_of_one_experiment_at_once_plan_in_turn_and_what_fails_is_told(grid, home):
    need("olmo_eval")
    grid["plans"] = [{"planner": "sleb", "ratio": [0.25, 0.5]}, {"planner": "laco", "layers": 1}]
    sweep = Sweep.create({**grid, "recovery": "none"})
    main(sweep.file.cells[0].create_command)
    states = run_sweep(sweep, quiet, workers=3)
    assert sorted(states.values()) == ["done", "done", "failed"]
    ((name, reason),) = sweep.failures().items()
    assert "laco" in name
    assert len(reason) > 20
    assert sweep_rows(sweep)[-1].state == "failed"


def test_another_grid_under_the_same_name_is_refused(grid):
    Sweep.create(grid)
    Sweep.create(dict(grid))
    with pytest.raises(SettingsError, match="another grid"):
        Sweep.create({**grid, "limit": 2})


def test_a_run_ends_with_the_process_that_started_it(home):
    home.mkdir()
    note = home / "pid"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = "import swm.jobs.cells as s, sys; s.swm_command = lambda c: [sys.executable, '-c', c[0]]\n"
    code += f"s.run_cell([{child!r}], 'e', 'r', 0, {{}})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    assert wait_for(lambda: note.exists() and note.read_text())
    parent.kill()
    parent.wait()

    def gone():
        try:
            return Path(f"/proc/{note.read_text()}/stat").read_text().split()[2] == "Z"
        except OSError:
            return True

    assert wait_for(gone, 10)


RAY = """
import os, sys, time, json, threading
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from swm.jobs.sweep import Sweep
from swm.jobs.sweep_file import load_grid
from swm.jobs.workers import run_sweep
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
sweep = Sweep.create(load_grid(Path(sys.argv[1])))
killed = []
def told(done, total, text):
    if not killed and "left" in text and any(cell.state() == "running" for cell in sweep.file.cells):
        cluster.remove_node(other, allow_graceful=False)
        killed.append(done)
states = run_sweep(sweep, told, "ray")
print(json.dumps({"states": states, "killed_after": killed}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_ray_cluster_loses_a_node_and_the_sweep_completes(grid, tmp_path, home):
    need("olmo_eval")
    file = written(grid, tmp_path, recovery="none", plans={"planner": "random", "ratio": [0.25, 0.5]})
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", RAY, str(file)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"states"')))
    assert found["killed_after"], (found, done.stderr[-3000:])
    assert set(found["states"].values()) == {"done"}
    assert len(found["states"]) == 2


LLAMA3 = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.long
@pytest.mark.data
def test_a_row_of_the_paper_runs_on_a_tiny_model_of_the_same_kind(tokenizer, text_file, tmp_path, home):
    need("olmo_eval")
    tiny = tiny_model("llama", layers=5, **LLAMA3)
    tiny.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    grid = load_grid(ROOT / "assets" / "sweeps" / "llama3-8b-20.yaml")
    small = {
        "steps": 2,
        "batch": 2,
        "accumulate": 1,
        "length": 16,
        "held_out": 2,
        "save_every": 2,
        "texts": str(text_file),
    }
    grid |= {"models": str(tmp_path / "tiny"), "texts": str(text_file), "count": 3, "length": 32, "dtype": "float32"}
    grid |= {"limit": 1, "gpus": 0, "plans": grid["plans"][:1], "recovery": [{"preset": "paper", **small}]}
    sweep = Sweep.create(grid)
    (cell,) = sweep.file.cells
    main(cell.create_command)
    main(cell.run_command)
    assert list(sweep.states().values()) == ["done"]
    (cell,) = sweep_rows(sweep)
    assert (cell.row.layers, cell.row.stage) == (4, "recovered")
    assert cell.row.average is not None


def test_the_page_shows_where_each_run_stands(grid):
    from tests.pages.test_pages import opened, texts

    assert "There are no sweeps yet" in texts(opened("pages/sweeps.py"))
    Sweep.create({**grid, "recovery": "none"})
    test = opened("pages/sweeps.py")
    assert [metric.value for metric in test.metric] == ["0 of 3", "–", "–"]
    assert list(test.dataframe[0].value["state"]) == ["waiting"] * 3
    assert "Resume this sweep" in [button.label for button in test.button]
    assert "random-25pc" in " ".join(code.value for code in test.code)
