"""A Ray cluster of two nodes works for the pages of a real browser: heals, is cancelled, goes on, answers."""

import importlib.util
import json
import re
import urllib.request

import pytest

from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from tests.conftest import need
from tests.product.plain_words import greedy, letters
from tools.cluster import Nodes
from tools.running import running_app

pytestmark = [
    pytest.mark.browser,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("aiohttp_cors") is None, reason="ray[default] is not installed"),
]
WAIT = {"timeout": 180_000}  # milliseconds; two nodes, a browser and an app on a few cores


@pytest.fixture
def nodes(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nodes = Nodes()
    yield nodes
    nodes.end()


@pytest.fixture
def app(nodes):
    """Address of an app that sends its jobs to a cluster."""
    with running_app(SWM_EXECUTOR=nodes.address) as (address, _):
        yield address


def test_a_run_on_the_cluster_is_cancelled_and_resumed_from_its_page(app, chromium, model_folder, text_file):
    need("olmo_eval")
    experiment = create_experiment("mine", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(f"{app}/run?experiment=mine&run=new+run&windows=1-2")
    page.wait_for_selector("h1", **WAIT)
    for label, value in (("Steps", "3000"), ("Documents per task", "2")):
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_label(label, exact=True).press("Enter")
        page.wait_for_timeout(3000)
    page.get_by_role("button", name="Merge, heal and evaluate").click()
    page.wait_for_selector("text=Held-out loss", **WAIT)
    run = experiment.run("run-1")
    first = run.state()
    assert first.cluster_job.startswith("swm-")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("text=was cancelled. Finished work is kept", **WAIT)
    assert (run.state().status, run.stage) == ("cancelled", "merged")
    done = run.checkpoint_step()
    page.get_by_role("button", name="Resume healing").click()
    progressed = "n => document.body.innerText.match(/([\\d,]+) of 3,000/)?.[1].replace(',', '') > n"
    page.wait_for_function(progressed, arg=done, **WAIT)
    second = run.state()
    assert second.cluster_job.startswith("swm-")
    assert second.cluster_job != first.cluster_job
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("text=was cancelled. Finished work is kept", **WAIT)
    steps = [event["step"] for event in run.events() if "loss" in event]
    assert steps == list(range(1, max(steps) + 1))  # nothing was trained twice, nothing left out
    assert max(steps) > done
    page.context.close()


def test_the_playground_asks_models_on_the_cluster(app, nodes, chromium, model_folder, text_file):
    """Two of them, on whichever nodes; each continues the prompt as transformers lets it here."""
    experiment = create_experiment("mine", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    run = experiment.create_run("small", MergePlan(4, (Window(1, 2),)))
    merge_run(run)
    prompt, tokens = "The three most", 24
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(f"{app}/playground?experiment=mine&playground_tokens={tokens}")
    idle = "!!document.querySelector('h1') && !document.querySelector('[data-testid=stStatusWidget]')"
    page.wait_for_function(idle, **WAIT)
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(1000)
    page.wait_for_function(idle, **WAIT)
    assert page.get_by_role("textbox", name="Prompt").input_value() == prompt
    page.get_by_role("button", name="Answer", exact=True).click()
    page.wait_for_function("document.body.innerText.split('the first after').length === 3", **WAIT)
    shown = page.locator("[data-testid=stMain]").inner_text()
    shown = re.sub(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}", "", shown)  # control characters arrive spelled out
    for folder in (model_folder, run.model_folder):
        assert letters(greedy(folder, prompt, tokens)) in letters(shown)
    with urllib.request.urlopen(f"{nodes.address}/api/jobs/", timeout=30) as jobs:
        asked = [job["entrypoint"] for job in json.load(jobs) if " answer " in job["entrypoint"]]
    assert len(asked) == 2
    page.context.close()
