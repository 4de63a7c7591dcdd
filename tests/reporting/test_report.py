"""The report opens offline and runs nothing that the user typed; the card and commands say how to repeat it."""

import os
import re
from dataclasses import asdict
from html import unescape

import pytest

from swm.errors import ExperimentError
from swm.plan import MergePlan
from swm.reporting.abilities import profile_of
from swm.reporting.commands import commands
from swm.reporting.compare import compare, flat_rows
from swm.reporting.headline import headline
from swm.reporting.html import template_environment
from swm.reporting.judged import judged
from swm.reporting.key_figures import key_figures
from swm.reporting.report import report_html, write_report
from swm.reporting.verdict import in_short
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.experiments import Experiment
from tests.reporting.report_cases import EVIL
from tests.reporting.test_compare import FACTS, scores
from tests.rows import a_row, ability_answers

UNBROKEN = "\u00a0"


def first_screen(experiment):
    slide = re.search(r'<section class="slide">.*?</section>', report_html(experiment), re.DOTALL)[0]
    return unescape(slide).replace(UNBROKEN, " ")


def test_the_first_screen_says_in_everyday_words_what_was_lost():
    example = Experiment.open("example-demo")
    slide = first_screen(example)
    short = re.search(r'class="short">In short: of 100 questions it answers about ([\d.]+) fewer right', slide)
    rows = flat_rows(judged(compare(example)))
    row = rows[headline(rows)]
    lost = -100 * row.against_control.scores["accuracy"]["difference"]
    assert float(short[1]) == pytest.approx(lost, abs=0.05)
    assert in_short(row) in slide


def test_report_needs_no_network(experiment):
    html = report_html(experiment)
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//", html)
    assert len(html) < 1_000_000
    assert html.count("data-plan=") == 2  # on the first screen, and that of each run


def test_the_first_screen_has_the_verdict_and_its_numbers(experiment):
    rows = flat_rows(judged(compare(experiment)))
    row = rows[headline(rows)]
    slide = first_screen(experiment)
    assert all(part in slide for part in row.verdict)
    assert str(row.verdict) == " ".join(row.verdict)
    for name in ("speed", "perplexity", "choice_logprob"):
        assert key_figures(row)[name].value in slide
    assert "Measured on one model" in slide
    assert slide.count("data-plan=") == 1


def test_what_the_user_typed_is_escaped(experiment):
    html = report_html(experiment)
    assert EVIL not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_report_of_an_empty_experiment_says_so():
    Experiment.create("empty", ExperimentSettings("m"), {**FACTS, "architecture": "X"})
    assert "No run has been evaluated yet" in report_html(Experiment.open("empty"))


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


def test_the_map_outlines_the_windows_of_the_run_on_the_first_screen():
    experiment = Experiment.open("example-study")
    flat = flat_rows(judged(compare(experiment)))
    name = flat[headline(flat)].run
    first = next(run.name for run in experiment.runs() if not run.is_baseline)
    assert name != first
    assert f"windows of {name} outlined" in report_html(experiment)


@pytest.mark.parametrize("example", ["example-demo", "example-healing"])
def test_each_picture_has_a_command_that_repeats_it(example):
    experiment = Experiment.open(example)
    sections = re.findall(r'<section class="charts">.*?</section>', report_html(experiment), re.DOTALL)
    assert len(sections) >= 2
    for section in sections:
        (command,) = re.findall(r"<code>(.*?)</code>", section)
        assert command in commands(experiment)


def test_what_a_run_keeps_and_loses_is_said_against_the_original_and_its_control(experiment):
    run, control = experiment.run("first"), experiment.create_run("control", MergePlan(6))
    healed = {"merge": {"parameters": 800}, "recovery": asdict(preset_settings("quick", steps=80))}
    for each in (run, control):
        each.remember(**healed)
        each.save("scores", scores(50.0, 0.5, 0.6))
    same = [1.0, 1.1, 0.9]
    experiment.run("baseline").save("abilities", ability_answers(logic=same, reading=same))
    assert "Against the original, it" not in report_html(experiment)
    run.save("abilities", ability_answers(logic=[1.01, 1.09, 0.9], reading=[1.5, 1.7, 1.3]))
    run.save("abilities-merged", ability_answers(logic=[3.0, 3.1, 2.9], reading=[2.0, 2.1, 1.9]))
    said = r"Against the original, it keeps logic \(\+0 % \[.*?\]\), loses reading: \+50 % \[[^;]*?\] bits"
    assert re.search(rf"{said}\.</p>", first_screen(experiment))
    control.save("abilities", ability_answers(logic=[0.5, 0.6, 0.4], reading=[1.5, 1.7, 1.3]))
    against = r"; against its control, it keeps reading \(\+0 % \[.*?\]\), loses logic: \+100 % \[.*?\] bits\.</p>"
    assert re.search(said + against, first_screen(experiment))
    merged = profile_of(a_row(experiment="study", run="first", stage="merged"))
    assert merged["reading"]["value"] == pytest.approx(1.0)
    html = report_html(experiment)
    section = re.search(r'<section class="charts">\s*<h2>What first.*?</section>', html, re.DOTALL)[0]
    assert all(title in section for title in ("Logic", "Reading"))
    (command,) = re.findall(r"<code>(.*?)</code>", section)
    assert command == "python -m swm abilities study first --abilities logic,reading --requests 3"
    lines = commands(experiment)
    of_first = [line.split()[3] for line in lines if " study first" in line and " control " not in line]
    assert of_first == ["merge", "abilities", "recover", "evaluate", "abilities"]


def test_no_line_ends_within_a_figure():
    template = template_environment().from_string("{{ text | unbroken }}")
    said = template.render(text="16 % smaller, × 1.17 [1.1, -2.1], 3 fewer, none [-0.3, +0.2 %], of [2,001.2, 3,456.7]")
    expected = "16~% smaller, ×~1.17 [1.1,~-2.1], 3 fewer, none [-0.3,~+0.2~%], of [2,001.2,~3,456.7]"
    assert said == expected.replace("~", UNBROKEN)
