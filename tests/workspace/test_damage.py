"""Files of ours that are cut, flipped or of wrong types: a message or a right result, never another exception."""

import json
import random
import shutil
from dataclasses import asdict

import pytest

from swm.errors import SwmError
from swm.evaluation.paired import flipped, paired
from swm.plan import MergePlan, Window
from swm.reporting.commands import commands
from swm.reporting.compare import compare, documents_of, flat_rows
from swm.reporting.figures import csv_text, table
from swm.reporting.formats.card import model_card
from swm.reporting.preview import path_view
from swm.reporting.report import report_html
from swm.search.find import threshold_path
from swm.search.kept_path import KeptAnswers, kept_answers, kept_path, save_answers, save_path
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.estimate import training_speed
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.recipe import recipe_of
from tests.reporting.test_compare import FACTS, scores

ODD = (None, True, -1, 0, 1e300, "", "x", "9" * 400, [], {}, [[]], {"": None}, [None], "\ud800", 2**80)


@pytest.fixture
def study():
    """Every kind of file that an experiment has."""
    study = Experiment.create("study", ExperimentSettings("some-model"), {**FACTS, "width": 8, "dtype": "float32"})
    conditions = {"dtype": "float32", "device": "cpu", "seconds": 1.0, "versions": {"lm_eval": "0", "torch": "2"}}
    matrix = [[1.0 if i == j else 0.9 for j in range(6)] for i in range(6)]
    lists = {"block_influence": [0.1] * 6, "norm": [5.0] * 6}
    study.save_similarity("cka", {"matrix": matrix, **lists, "tokens": 99, "conditions": conditions})
    save_path(study, threshold_path(6, lambda above, window: 1 - 0.1 * len(window), 0.5))
    kept = KeptAnswers("rdsc", of={(): ["a", "b", "c"], (Window(1, 3),): ["d", "e", "f"]})
    save_answers(study, kept)
    study.save_cost({"layers_ms": 3.0, "rest_ms": 1.0})
    run = study.create_run("first", MergePlan(6, (Window(1, 3),)), 0.7)
    recovery = {**asdict(preset_settings("quick")), "trained_parameters": 9, "seconds": 2.0}
    run.remember(merge={"parameters": 800, "size_bytes": 3200}, recovery=recovery)
    answers = [{"id": str(i), "correct": i % 2, "question": "q", "right": "a", "picked": "b"} for i in range(4)]
    speed = {"tokens_per_second": 9.0, "latency_ms": 5.0, "peak_memory_bytes": 5, "throughput": {"4": 20.0}}
    for each in (run, study.run("baseline")):
        each.save("scores", {**scores(20.0, 0.6, 0.8), "conditions": conditions, "samples": []})
        each.save("documents", {"tasks": {"boolq": answers, "piqa": answers[::-1]}})
        each.save("timing", {**speed, "speedup": {"value": 1.1, "low": 1.0, "high": 1.2}, "baseline": speed})
    run.save("scores-merged", scores(50.0, 0.5, 0.6))
    run.add_event(stage="recover", step=1, steps=3, loss=2.0, learning_rate=1e-3)
    run.add_event(stage="recover", step=2, steps=3, loss=1.9, learning_rate=1e-3)
    study.write_state(study.state())
    return study


def read_all(name):
    """Everything that pages and commands read; gives what has been refused, by message."""
    refused = list(list_experiments()[1])

    def tried(read):
        try:
            return read()
        except SwmError as error:
            refused.append(str(error))
            return None

    study = tried(lambda: Experiment.open(name))
    if study is None:
        return refused
    study.state().seconds  # noqa: B018
    tried(lambda: study.similarity("cka"))
    if path := tried(lambda: kept_path(study, "rdsc")):
        answers = tried(lambda: kept_answers(study, "rdsc"))
        tried(lambda: path_view(path, study.model_facts, study.cost(), answers))
        tried(lambda: path.plan_with_layers(4))
    refused += study.readable_runs()[1]
    for run in study.runs():
        run.state().seconds  # noqa: B018
        for read in (recipe_of, model_card):
            tried(lambda read=read, run=run: read(run))
        training_speed(run.events(), tried(lambda run=run: run.settings.get("recovery")) or {})
    rows = tried(lambda: compare(study))
    if rows:
        flat = flat_rows(rows)
        assert table(rows)
        assert csv_text(rows)
        both = tried(lambda: (documents_of(flat[0]), documents_of(flat[-1])))
        if both:
            paired(*both)
            flipped(*both)
    tried(lambda: commands(study))
    return refused


def test_a_whole_experiment_is_read_without_a_word(study):
    assert read_all("study") == []
    assert "first" in report_html(study)


def changed(text, rng):
    """A file cut, with a byte flipped, or with one value replaced by one of another kind."""
    how = rng.randrange(4)
    if how == 0:
        return text[: rng.randrange(len(text))]
    if how == 1:
        at = rng.randrange(len(text))
        return text[:at] + (text[at] ^ (1 << rng.randrange(8))).to_bytes(1, "big") + text[at + 1 :]
    lines = text.splitlines() if text.count(b"\n{") else [text]
    data = json.loads(lines[0])
    place = data
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = rng.choice(list(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    if how == 2 and isinstance(place, dict):
        del place[key]
    else:
        place[key] = rng.choice(ODD)
    return "\n".join([json.dumps(data), *(line.decode() for line in lines[1:])]).encode("utf-8", "surrogatepass")


def test_damaged_files_never_break_what_reads_them(study, tmp_path, often):
    cases = often(300, 4000)
    rng, whole = random.Random(5), tmp_path / "whole"
    shutil.copytree(study.folder, whole)
    files = [file.relative_to(whole) for file in sorted(whole.rglob("*.json*"))]
    assert len(files) > 10
    refused = 0
    for case in range(cases):
        name = rng.choice(files)
        (study.folder / name).write_bytes(changed((whole / name).read_bytes(), rng))
        try:
            refused += bool(read_all("study"))
        except Exception as error:
            raise AssertionError(f"case {case}: {name}: {(study.folder / name).read_bytes()[:400]!r}") from error
        shutil.copyfile(whole / name, study.folder / name)
    assert refused > cases / 4


def test_a_newer_file_is_told_of(study):
    for file in study.folder.rglob("*.json"):
        before = file.read_text()
        file.write_text(json.dumps({**json.loads(before), "schema": 99}))
        assert any("Update the program" in message for message in read_all("study")) or file.name == "state.json"
        file.write_text(before)
