"""Healing on a Ray cluster of two nodes, cancelled and resumed from its page in a real browser."""

import importlib.util

import pytest

from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from tests.conftest import need
from tools.cluster import Nodes
from tools.running import running_app

pytestmark = [
    pytest.mark.browser,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("aiohttp_cors") is None, reason="ray[default] is not installed"),
]
WAIT = {"timeout": 180_000}  # milliseconds; two nodes, a browser and an app on a few cores


@pytest.fixture
def app(monkeypatch):
    """Address of an app that sends its jobs to a cluster."""
    nodes = Nodes()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        with running_app(SWM_EXECUTOR=nodes.address) as (address, _):
            yield address
    finally:
        nodes.end()


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
