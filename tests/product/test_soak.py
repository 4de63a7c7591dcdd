"""Jobs one after another, sliders moving in three browsers: the app's memory and handles stay, no process is left."""

import random
import statistics
import time

import psutil
import pytest

from swm.jobs.child import start
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from tests.jobs.test_child import wait_for
from tests.product.test_browser import ready
from tools.running import running_app

BROWSERS = 3
JOBS = (["measure", "study"], ["search", "study", "--from", "0.2"], ["measure", "study", "--metric", "cosine"])

pytestmark = [pytest.mark.browser, pytest.mark.long]


def move(page, share):
    """Drag the slider to a share of its width and let go: the server redraws the page."""
    slider = page.locator("input.slider")
    slider.wait_for(timeout=30_000)
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.5 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + share * box["width"], y, steps=4)
    page.mouse.up()


def children_of_jobs(home):
    """Processes of ours that work on this home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if "swm" in (process.info["cmdline"] or []) and process.environ().get("SWM_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_the_app_stays_as_small_as_it_was(chromium, model_folder, text_file, home, tmp_path, often):
    seconds, rng = often(60, 3600), random.Random(1)
    study = create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    start(study, "search", ["search", "study", "--from", "0.2"])
    while study.state().active:
        time.sleep(0.2)
    assert study.state().status == "done", study.state()
    seen, jobs, moves, troubles = [], 0, 0, []
    with (tmp_path / "app.log").open("wb") as log, running_app(log) as (address, pid):
        process = psutil.Process(pid)
        pages = [chromium.new_context(viewport={"width": 1280, "height": 900}).new_page() for _ in range(BROWSERS)]
        for page in pages:
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.goto(f"{address}/preview?experiment=study")
            ready(page)
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if not study.state().active:
                assert study.state().status == "done", study.state()
                start(study, JOBS[jobs % len(JOBS)][0], JOBS[jobs % len(JOBS)])
                jobs += 1
            for page in pages:
                move(page, rng.uniform(0.1, 0.95))
                moves += 1
                page.wait_for_timeout(150)
            seen.append((time.monotonic() - begin, process.memory_info().rss, process.num_fds()))
        for page in pages:
            troubles += page.locator("[data-testid=stException]").all_inner_texts()
        while study.state().active:
            time.sleep(0.2)
        assert process.children() == []
    assert troubles == []
    assert "Traceback" not in (tmp_path / "app.log").read_text()
    assert wait_for(lambda: children_of_jobs(home) == [], 20)
    warm, end = (part_of(seen, *part) for part in ((1 / 6, 2 / 6), (5 / 6, 1)))
    growth = end[0] / warm[0] - 1
    assert growth < 0.1, (warm, end)
    assert end[1] <= warm[1] + 5, (warm, end)
    often.figure("soak, seconds", seconds)
    often.figure("soak, jobs", jobs)
    often.figure("soak, slider moves", moves)
    often.figure("soak, growth of the app's memory in thousandths", round(1000 * growth))


def part_of(seen, first, last):
    """Median memory and open files in a part of the time."""
    end = seen[-1][0]
    rows = [row for row in seen if first * end <= row[0] <= last * end]
    return statistics.median(row[1] for row in rows), statistics.median(row[2] for row in rows)
