"""Tests of swm.jobs.sweep_file."""

import hashlib

import pytest

from swm.cli.options import build_parser
from swm.errors import SettingsError
from swm.jobs.sweep_file import load_grid, read_sweep
from tests.jobs.sweep_cases import ROOT

ROWS = sorted((ROOT / "assets" / "sweeps").glob("*.yaml"))


def test_a_file_gives_every_run_as_the_command_a_user_would_type(grid):
    cells = read_sweep(grid).cells
    assert len(cells) == 6
    assert len({cell.experiment for cell in cells}) == 1
    assert len({cell.run for cell in cells}) == 6
    assert cells[0].run == "random-25pc-merged"
    expected = ["run", cells[0].experiment, cells[0].run, "--planner", "random", "--ratio", "0.25", "--no-recovery"]
    assert cells[0].run_command == [*expected, "--limit", "1"]
    assert cells[1].run_command[7:9] == ["--preset", "quick"]
    assert f"texts={grid['texts']}" in cells[1].run_command
    assert "--steps" in cells[1].run_command
    assert read_sweep({**grid, "seeds": [1, 2], "models": ["a", "b"]}).cells[-1].settings.model == "b"
    assert len(read_sweep({**grid, "seeds": [1, 2], "models": ["a", "b"]}).cells) == 24
    assert len({c.experiment for c in read_sweep({**grid, "models": ["x/a", "y/a"]}).cells}) == 2


def test_plans_can_be_for_targets(grid):
    plans = [
        {"planner": "best", "memory": ["6GiB", "900 MiB"]},
        {"rule": "mean", "parameters": "5.5B"},
        {"planner": "sleb", "loss": "5%"},
        {"rule": "rdsc", "speedup": [1.3, 2]},
    ]
    cells = read_sweep({**grid, "plans": plans, "recovery": "none"}).cells
    assert [cell.run for cell in cells] == [
        "best-memory-6gib-merged",
        "best-memory-900-mib-merged",
        "mean-parameters-5-5b-merged",
        "sleb-loss-5-merged",
        "rdsc-speedup-1-3-merged",
        "rdsc-speedup-2-0-merged",
    ]
    for cell in cells:
        build_parser().parse_args(cell.run_command)
    assert cells[1].run_command[3:7] == ["--planner", "best", "--memory", "900 MiB"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": [{"planner": "chess", "ratio": 0.2}]}, "chess"),
        ({"plans": [{"rule": "chess", "ratio": 0.2}]}, "chess"),
        ({"plans": [{"planner": "sleb"}]}, "needs planner or rule, and one of"),
        ({"plans": [{"planner": "sleb", "ratio": 0.2, "layers": 3}]}, "needs planner or rule"),
        ({"plans": [{"planner": "sleb", "memory": "6GiB", "loss": "5%"}]}, "one of ratio, layers, threshold, speedup"),
        ({"plans": [{"planner": "sleb", "memory": "lots"}]}, "'lots' is not a size"),
        ({"plans": [{"planner": "sleb", "loss": 5}]}, "'5' is not a loss"),
        ({"plans": [{"planner": "sleb", "speedup": 1.0}]}, "speedup.0 is out of range|Cannot read the sweep"),
        ({"plans": []}, "plans has no entry"),
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
