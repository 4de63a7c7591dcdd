"""The memory that commands are placed by, against the estimate of their stages."""

import pytest

from swm.errors import JobError
from swm.jobs.needs import check_room, needed_bytes, recovery_in
from swm.jobs.sweep import Sweep
from swm.plan import MergePlan, WidthCut, Window
from swm.settings import preset_settings
from swm.workspace.estimate import stage_needs


def needs_of(experiment, plan, recovery):
    needs = stage_needs(experiment.model_facts, None, plan, recovery, None, experiment.settings.token_count)
    return {need.stage: need.memory_bytes for need in needs}


def test_a_command_needs_what_its_stage_does(experiment):
    run = experiment.create_run("a", MergePlan(4, (Window(1, 3),)))
    quick = needs_of(experiment, run.plan, preset_settings("quick"))
    assert needed_bytes(experiment, ["measure", "study"]) == quick["measure"]
    assert needed_bytes(run, ["merge", "study", "a"]) == quick["merge"]
    assert needed_bytes(run, ["recover", "study", "a"]) == quick["recover"]
    whole = ("merge", "recover", "evaluate")
    assert needed_bytes(run, ["run", "study", "a"]) == max(quick[stage] for stage in whole)
    assert needed_bytes(run, ["run", "study", "a", "--no-recovery"]) == max(quick["merge"], quick["evaluate"])
    assert needed_bytes(run, ["export", "study", "a", "a.gguf"]) == quick["merge"]
    assert needed_bytes(experiment, ["plan", "study"]) == quick["search, whole path"] >= quick["search, one threshold"]
    assert needed_bytes(run, ["control", "study", "a"]) == max(quick.values())
    options = ["--preset", "paper", "--batch", "512", "--train", "weights", "--adapt", "last", "--length", "256"]
    asked = preset_settings("paper", batch=512, train="weights", adapt="last", length=256)
    assert recovery_in(["recover", "study", "a", *options]) == asked
    found = needed_bytes(run, ["recover", "study", "a", *options])
    assert found == needs_of(experiment, run.plan, asked)["recover"] > 2 * quick["recover"]


def test_what_reads_layers_from_disk_asks_for_no_more_than_the_largest_node_has(experiment):
    experiment.model_facts |= {"size_bytes": 2**40}
    run = experiment.create_run("a", MergePlan(4, (Window(1, 3),)))
    room = 2.0**34
    for command in (
        ["measure", "study"],
        ["search", "study"],
        ["plan", "study", "--planner", "sleb"],
        ["merge", "study", "a"],
        ["evaluate", "study", "a"],
        ["run", "study", "a", "--no-recovery"],
    ):
        assert needed_bytes(run, command, room) == room
        assert needed_bytes(run, command) >= 2**40
    for command in (
        ["plan", "study", "--planner", "best"],
        ["recover", "study", "a"],
        ["run", "study", "a"],
        ["export", "study", "a", "there"],
        ["merge", "study", "a", "--width", "0.2"],
    ):
        assert needed_bytes(run, command, room) == needed_bytes(run, command) >= 2**40
    narrow = experiment.create_run("b", MergePlan(4, (Window(1, 3),), width=WidthCut(0.2)))
    assert needed_bytes(narrow, ["merge", "study", "b"], room) >= 2**40
    experiment.model_facts |= {"size_bytes": 2**34}
    assert needed_bytes(run, ["measure", "study"], 2.0**40) == needed_bytes(run, ["measure", "study"]) < 2**40


def test_four_bits_need_a_part_of_the_weights(experiment):
    run = experiment.create_run("a", MergePlan(4, (Window(1, 3),)))
    experiment.model_facts |= {"size_bytes": 2**36, "parameters": 2**35, "parameters_per_layer": 2**33 - 2**20}
    found = needed_bytes(run, ["recover", "study", "a", "--preset", "qlora"], 2.0**40)
    assert 2 * 2**33 / 2 < found < 0.6 * 2**34  # the two layers that are left, a half byte each, and some more
    assert found < needed_bytes(run, ["recover", "study", "a"], 2.0**40) / 10


def test_a_command_of_the_terminal_is_found_by_its_experiment(experiment, home):
    guess = needs_of(experiment, MergePlan(4, (Window(0, 1),)), preset_settings("quick"))
    assert needed_bytes(None, ["measure", "study", "--json"]) == guess["measure"]
    for nothing in (["measure", "none"], ["repeat", "/tmp/recipe.json"], ["demo"], ["measure"]):
        assert needed_bytes(None, nothing) == 0
    assert needed_bytes(Sweep("grid"), ["sweep", "grid.yaml"]) == 0


@pytest.mark.parametrize("wrong", [("--batch", "many"), ("--batch", "0"), ("--preset", "none"), ("--adapt", "some")])
def test_wrong_options_are_left_to_the_command(wrong):
    assert recovery_in(["recover", "study", "a", *wrong]) == preset_settings("quick")


def test_what_no_node_holds_is_refused_with_both_numbers():
    check_room(2**30, 2**30)
    check_room(2**40, 0)  # a cluster that does not tell
    with pytest.raises(JobError, match=r"needs about 3.0 GiB of memory.*largest node offers 2.0 GiB"):
        check_room(3 * 2**30, 2.0 * 2**30)
