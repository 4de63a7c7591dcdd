"""A job killed at any point of any stage: nothing half-written is read, and the same command ends as if undisturbed."""

import json
import random
import shutil
import signal
import subprocess

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from swm.disk.files import LEFTOVER
from swm.disk.files import home as home_folder
from swm.search.kept_path import path_from
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.workspace.experiments import Experiment
from swm.workspace.state import ACTIVE
from tests import warm
from tests.conftest import need
from tests.killing import run

RECOVER = ("--steps", 6, "--batch", 2, "--length", 16, "--save-every", 2, "--held-out", 2, "--rank", 2)
# stage: (what has to be there, the command)
STAGES = {
    "measure": ((), ("measure", "study")),
    "search": ((), ("search", "study", "--from", 0.01)),
    "plan": ((), ("plan", "study", "--planner", "sleb", "--layers", 2)),
    "merge": ((), ("merge", "study", "first", "--windows", "1-2")),
    "recover": (("merge", "evaluate"), ("recover", "study", "first", *RECOVER)),
    "merge again": (("merge", "recover", "evaluate"), ("merge", "study", "first", "--windows", "1-2", "--again")),
    "evaluate": (("merge",), ("evaluate", "study", "first", "--tasks", "openbookqa", "--limit", 2)),
    "time": (("merge",), ("time", "study", "first", "--tokens", 2)),
    "delete": (("merge",), ("delete", "study", "first")),
}
TIMES = ("created", "seconds", "time", "started", "heartbeat", "conditions")


@pytest.fixture
def study(model_folder, text_file, home):
    return create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 3, 32))


def without_times(data):
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in TIMES}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def rounded(data):
    """What a search that went on computes in other batches differs in the last digits."""
    return json.loads(json.dumps(data), parse_float=lambda number: round(float(number), 5))


def content(folder, skip=("state.json", "cost.json", "timing.json", "timing-merged.json")):
    """All that a stage made, without clocks: JSON as objects, weights as tensors, events as their losses."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if any(part.startswith(".") for part in file.relative_to(folder).parts) or "recovery/" in name:
            continue
        if file.parent.name == "path":
            steps = path_from(json.loads(file.read_text())).intervals()
            found[name] = [rounded(step.to_dict()) for step in steps]
        elif file.suffix == ".json" and file.name not in skip:
            found[name] = without_times(json.loads(file.read_text()))
        elif file.suffix == ".safetensors":
            found[name] = {key: value.tolist() for key, value in load_file(file).items()}
        elif file.suffix == ".jsonl":
            rows = [without_times(json.loads(line)) for line in file.read_text().splitlines()]
            found[name] = {row["step"]: row for row in rows if "loss" in row}
        elif file.name in skip[1:]:  # clocks: the same figures are there, and each was measured
            figures = json.loads(file.read_text())
            assert all(value > 0 for value in figures.values() if isinstance(value, float)), figures
            found[name] = sorted(figures)
    return found


def check_whole(folder):
    """Every file that can be seen is whole, and no job is said to live."""
    for file in folder.rglob("*"):
        inside = file.relative_to(folder).parts
        if any(LEFTOVER.fullmatch(part) for part in inside) or "checkpoint-" in str(file):
            continue
        if file.suffix == ".json":
            json.loads(file.read_text())
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                assert weights.keys()
    if (folder / "experiment.json").exists():
        experiment = Experiment.open("study")
        assert experiment.readable_runs()[1] == []
        for target in (experiment, *experiment.runs()):
            assert target.state().status not in ACTIVE
            if target is not experiment and not target.is_baseline:
                assert target.stage == "planned" or target.has_model or list(target.folder.glob(".model.*.old"))


def commands(stage, recover):
    for name in STAGES[stage][0]:
        yield recover if name == "recover" else STAGES[name][1]


@pytest.mark.data
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_change_of_the_disk_it_ends_as_if_undisturbed(
    stage, study, home, tmp_path, text_file, often, monkeypatch
):
    need("olmo_eval")
    monkeypatch.setattr(subprocess.Popen, "_execute_child", warm.start)  # else most moments are those of importing
    rng, log = random.Random(stage), tmp_path / "log"
    recover = (*STAGES["recover"][1], "--texts", text_file)
    command = recover if stage == "recover" else STAGES[stage][1]
    for each in commands(stage, recover):
        assert run(log, *each)["code"] == 0, log.read_text()[-2000:]
    before, experiments = tmp_path / "before", home / "experiments"
    shutil.copytree(experiments, before)
    whole = run(log, *command)
    assert whole["code"] == 0, log.read_text()[-2000:]
    expected = content(experiments)
    changes = range(1, whole["changes"] + 1)
    points = [{"at_change": n} for n in rng.sample(changes, min(len(changes), often(1, 24)))]
    points += [{"after_seconds": rng.uniform(0, whole["seconds"])} for _ in range(often(1, 8))]
    killed = 0
    for point in points:
        shutil.rmtree(experiments)
        shutil.copytree(before, experiments)
        ended = run(log, *command, **point)
        killed += ended["signal"] == signal.SIGKILL
        check_whole(experiments / "study")
        again = run(log, *command)
        if stage == "delete" and again["code"] == 1:  # it was gone already
            assert not (experiments / "study" / "runs" / "first").exists()
        else:
            assert again["code"] == 0, (stage, point, log.read_text()[-2000:])
        check_whole(experiments / "study")
        assert content(experiments) == expected, (stage, point)
        left = [p for p in experiments.rglob("*") if LEFTOVER.fullmatch(p.name) and not p.name.endswith(".tmp")]
        assert stage == "delete" or not left, (stage, point)
    assert killed >= len(points) // 2
    often.figure("kills survived", killed)
    assert home_folder() == home
