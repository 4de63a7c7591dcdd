"""What a package adds from outside is there: in the command line's choices, in the pages' lists, and it works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swm.errors import SettingsError
from swm.plan import MergePlan, Window
from swm.registry import EXPORT_FORMATS, MERGE_RULES, METRICS, PLANNERS, TEXTS, MergeRule, Planner, Registry
from tests.conftest import tiny_model

ROOT = Path(__file__).parents[1]
PLUGIN = """
from pathlib import Path
from swm.plan import MergePlan, Window
from swm.registry import EXPORT_FORMATS, MERGE_RULES, METRICS, PLANNERS, TEXTS
from swm.registry import ExportFormat, MergeRule, Metric, Planner, TextSource
from swm.texts.example import Example

MERGE_RULES.register(MergeRule("sumall", "Sum of all", "adds the layers up", lambda weights: sum(weights)))
PLANNERS.register(
    Planner("lowest", "Lowest", "merges the lowest layers", "nobody",
            lambda request: MergePlan(request.layer_count, (Window(0, request.drop),), "sumall"))
)
METRICS.register(
    Metric("ones", "Ones", "finds all layers equal", lambda: lambda states: states.new_ones([len(states)] * 2).double())
)
TEXTS.register(
    TextSource("counting", "Counting", "one two three", frozenset({"calibration"}),
               lambda purpose: [Example("", f"one two three {n} " * 40) for n in range(20)])
)
EXPORT_FORMATS.register(
    ExportFormat("depth", "Depth", "how many layers are left", ".depth", lambda run: str(run.plan.layers_left))
)
"""
LISTS = """
import json, sys
from streamlit.testing.v1 import AppTest

def options(page, key, **query):
    test = AppTest.from_file("app.py", default_timeout=60)
    test.query_params["experiment"] = "mine"
    test.run().switch_page(page)
    for name, value in query.items():
        test.query_params[name] = value
    test.run()
    assert not test.exception, test.exception
    return test.selectbox(key=key).options

print(json.dumps({
    "rule": options("pages/preview.py", "rule"),
    "planner": options("pages/preview.py", "target_method", preview_door="target"),
    "metric": options("pages/redundancy.py", "redundancy_metric"),
    "text": options("pages/experiment.py", "experiment_texts"),
}))
"""


@pytest.fixture
def outside(tmp_path, home):
    """Runs Python with a package installed beside ours that adds one of each kind."""
    site = tmp_path / "site"
    (site / "more_of_each-1.0.dist-info").mkdir(parents=True)
    (site / "more_of_each.py").write_text(PLUGIN)
    (site / "more_of_each-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: more-of-each\nVersion: 1.0\n"
    )
    (site / "more_of_each-1.0.dist-info" / "entry_points.txt").write_text("[swm.plugins]\nmine = more_of_each\n")
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "SWM_HOME": str(home)}

    def run(*arguments):
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


COMMANDS = """
import json, sys
from swm.cli.main import main
from swm.cli.options import build_parser

model, exported = sys.argv[1:]
commands = build_parser()._subparsers._group_actions[0].choices
print(json.dumps({name: command.format_help() for name, command in commands.items()}))
main(["create", "mine", "--model", model, "--texts", "counting", "--count", "3", "--length", "16", "--json"])
main(["measure", "mine", "--metric", "ones", "--json"])
main(["merge", "mine", "a", "--planner", "lowest", "--layers", "3", "--json"])
main(["export", "mine", "a", exported, "--json"])
"""


@pytest.mark.apart
def test_one_of_each_kind_from_outside_is_chosen_by_name(outside, model_folder, tmp_path):
    said = outside("-c", COMMANDS, str(model_folder), str(tmp_path / "a.depth")).splitlines()
    helps, _, similarity, merged, _ = map(json.loads, said)
    for command, added in (("plan", "lowest"), ("plan", "sumall"), ("measure", "ones"), ("export", "depth")):
        assert added in helps[command]
    assert "counting" in helps["create"]
    assert similarity["matrix"] == [[1.0] * 4] * 4
    assert (merged["windows"], merged["rule"], merged["layers_left"]) == ([[0, 1]], "sumall", 3)
    assert (tmp_path / "a.depth").read_text() == "3"
    lists = json.loads(outside("-c", LISTS).splitlines()[-1])
    assert "Sum of all (sumall)" in lists["rule"]
    assert "Lowest" in lists["planner"]
    assert "Ones" in lists["metric"]
    assert "counting" in lists["text"]


def test_a_rule_added_here_merges_as_it_says(monkeypatch):
    from swm.merging.apply import apply_plan

    rule = MergeRule("halves", "Halves", "half of each end", lambda weights: (weights[0] + weights[-1]) / 2)
    monkeypatch.setitem(MERGE_RULES._all(), "halves", rule)
    model = tiny_model()
    small = apply_plan(model, MergePlan(4, (Window(1, 3),), "halves"))
    first, last = (model.model.layers[i].mlp.up_proj.weight for i in (1, 3))
    torch.testing.assert_close(small.model.layers[1].mlp.up_proj.weight, (first + last) / 2)


def test_every_entry_says_what_it_is_and_two_of_one_name_are_refused():
    for registry in (MERGE_RULES, PLANNERS, METRICS, TEXTS, EXPORT_FORMATS):
        assert len(registry) >= 4
        assert all(entry.name == name and entry.title and entry.help for name, entry in registry.items())
        with pytest.raises(SettingsError, match=rf"'chess' is not a {registry.kind}. Choose one of: "):
            registry.check("chess")
    with pytest.raises(ValueError, match="Two entries are named mean"):
        MERGE_RULES.register(MergeRule("mean", "Mean", "another", None))


def test_a_registry_reads_its_folder_once_and_lists_the_first_one_first():
    registry = Registry("merge rule", "swm.merging.rules", first="mean")
    assert registry._whole is False
    assert list(registry) == []  # the files register with the product's own registry
    assert registry._whole is True
    assert next(iter(MERGE_RULES)) == "rdsc"


def test_a_planner_that_leaves_another_number_of_layers_breaks_its_promise(monkeypatch, tokens):
    from swm.planners.plan_with import plan_with

    wrong = Planner("wrong", "Wrong", "leaves all layers", "nobody", lambda request: MergePlan(request.layer_count))
    monkeypatch.setitem(PLANNERS._all(), "wrong", wrong)
    with pytest.raises(ValueError, match="Planner wrong left 4 layers instead of 3"):
        plan_with("wrong", tiny_model(), tokens, 3)


TOGETHER = """
import json, sys, threading
sys.setswitchinterval(1e-6)
turns, threads, failures, seen = int(sys.argv[1]), 8, [], []
start = threading.Barrier(threads)

def rules():
    from swm.plan import MergePlan
    return MergePlan(6)

def registries():
    import swm.registry as r
    return [list(each) for each in (r.EXPORT_FORMATS, r.MERGE_RULES, r.PLANNERS, r.METRICS, r.TEXTS)]

def experiments():
    from swm.workspace.experiments import list_experiments
    readable, broken = list_experiments()
    return [(each.name, [run.name for run in each.runs()]) for each in readable], broken

def rows():
    from swm.reporting.compare import compare
    from swm.workspace.experiments import Experiment
    return [row.run for row in compare(Experiment.open("example-demo"))]

def text():
    from swm.texts.documents import documents
    return len(documents("lambada", "calibration"))

def face():
    import swm
    return [getattr(swm, name) for name in swm.__all__]

USES = [rules, registries, experiments, rows, text, face]

def work(number):
    start.wait()
    first = number * turns % len(USES)
    for use in USES[first:] + USES[:first]:
        try:
            seen.append(f"{use.__name__} {use()}")
        except Exception as error:
            failures.append(f"{use.__name__} {type(error).__name__}: {error}")

workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join(120)
print(json.dumps([failures, sum(worker.is_alive() for worker in workers), len(set(seen)), len(USES)]))
"""


@pytest.mark.apart
@pytest.mark.parametrize(
    "turns",
    [pytest.param(0, id="all begin with the rules", marks=pytest.mark.long), pytest.param(1, id="each with another")],
)
def test_threads_that_start_together_all_see_everything_that_is_filled_at_first_use(outside, turns):
    failures, hanging, answers, uses = json.loads(outside("-c", TOGETHER, str(turns)).splitlines()[-1])
    assert (failures, hanging, answers) == ([], 0, uses)


BROKEN = (
    "from swm.registry import MERGE_RULES, MergeRule\n"
    "MERGE_RULES.register(MergeRule('half', 'Half', 'is half registered', None))\n"
    "MERGE_RULES['mean']\n1 / 0\n"
)


def test_a_plugin_that_fails_takes_only_itself_out(outside, tmp_path):
    (tmp_path / "site" / "broken.py").write_text(BROKEN)
    points = tmp_path / "site" / "more_of_each-1.0.dist-info" / "entry_points.txt"
    points.write_text("[swm.plugins]\nbroken = broken\nmine = more_of_each\n")
    look = (
        "import logging, sys; logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "from swm.registry import MERGE_RULES, PLANNERS\n"
        "print(list(PLANNERS)[-1], *MERGE_RULES)"
    )
    warning, found = outside("-c", look).splitlines()
    assert warning.startswith("Plugin broken (broken) was left out, because it failed: ZeroDivisionError: division")
    assert found == f"lowest {' '.join(MERGE_RULES)} sumall"  # the rules that it read while it was loaded stay
