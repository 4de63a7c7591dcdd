"""The report opens offline and runs nothing that the user typed; the card and commands say how to repeat it."""

import os
import re
import shlex
from dataclasses import asdict

import pytest

from swm.cli.options import build_parser
from swm.errors import ExperimentError
from swm.plan import MergePlan, Window
from swm.reporting.commands import commands
from swm.reporting.export import export_run
from swm.reporting.formats.card import model_card
from swm.reporting.report import report_html, write_report
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.experiments import Experiment
from tests.reporting.test_compare import FACTS, scores

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def experiment():
    facts = {**FACTS, "architecture": "LlamaForCausalLM"}
    experiment = Experiment.create("study", ExperimentSettings(f"models/{EVIL}", f"{EVIL}.txt"), facts)
    matrix = [[1.0 if i == j else 0.9 for j in range(6)] for i in range(6)]
    lists = {"block_influence": [0.1] * 6, "norm": [1.0] * 6, "tokens": 9}
    conditions = {"dtype": "float32", "seconds": 1.0}
    experiment.save_similarity("cka", {"metric": "cka", "matrix": matrix, **lists, "conditions": conditions})
    experiment.create_run("first", MergePlan(6, (Window(1, 3),), "mean"), 0.9).save("scores", scores(50.0, 0.5, 0.6))
    return experiment


def test_report_needs_no_network(experiment):
    html = report_html(experiment)
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//", html)
    assert html.count("Plotly.newPlot") == 2
    assert html.count("data-plan=") == 1


def test_what_the_user_typed_is_escaped(experiment):
    html = report_html(experiment)
    assert EVIL not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_report_of_an_empty_experiment_says_so():
    Experiment.create("empty", ExperimentSettings("m"), {**FACTS, "architecture": "X"})
    assert "No run has been evaluated yet" in report_html(Experiment.open("empty"))


def test_commands_are_ones_that_the_command_line_takes(experiment):
    experiment.run("first").remember(merge={"parameters": 800}, recovery=asdict(preset_settings("quick", steps=80)))
    lines = commands(experiment)
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "swm"]
        build_parser().parse_args(words[3:])
    assert "python -m swm merge study first --windows 1-3 --rule mean" in lines


def test_every_changed_recovery_setting_is_in_the_command(experiment):
    from dataclasses import asdict

    from swm.settings import preset_settings

    settings = preset_settings("quick", steps=7, rank=3, learning_rate=0.001, loss_on="response")
    experiment.run("first").remember(recovery=asdict(settings))
    line = next(line for line in commands(experiment) if " recover " in line)
    options = build_parser().parse_args(shlex.split(line)[3:])
    from swm.cli.make import recovery_settings

    assert recovery_settings(options) == settings


def test_model_card_says_what_was_merged(experiment):
    card = model_card(experiment.run("first"))
    assert "4 of 6 layers" in card
    assert "counted from 0): 1-3." in card
    assert "| boolq, % (acc, 40 documents) | – | 50.0 ± 3.0 |" in card
    assert "python -m swm create study" in card


def test_report_where_nothing_can_be_written_is_told(experiment, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="cannot be written"):
        write_report(experiment, tmp_path / "file" / "r.html")


def test_report_is_never_written_over_what_is_no_file_and_follows_links(experiment, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ExperimentError, match="exists and is not a regular file, so it is not overwritten"):
            write_report(experiment, target)
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    write_report(experiment, tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text().startswith("<!doctype html>")
    with pytest.raises(ExperimentError, match="cannot be written"):
        write_report(experiment, tmp_path / ("a" * 300))


def test_export_refuses_a_folder_that_exists(experiment, tmp_path):
    run = experiment.run("first")
    run.model_folder.mkdir()
    (run.model_folder / "config.json").write_text("{}")
    with pytest.raises(ExperimentError, match="already exists"):
        export_run(run, tmp_path)
