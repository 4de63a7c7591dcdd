"""The running app in a real browser; skipped where there is no Chromium."""

import os
import re
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from swm.jobs.child import active_targets
from swm.jobs.sweep import Sweep
from swm.plan import MergePlan, Window
from swm.reporting.report import report_html, write_report
from swm.search.kept_path import kept_answers, kept_path
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from swm.workspace.experiments import Experiment, list_experiments
from tests.conftest import need, tiny_model
from tests.product.plain_words import greedy, letters
from tools.running import running_app

ROOT = Path(__file__).parents[2]
PAGES = ["", *sorted(page.stem for page in (ROOT / "pages").glob("*.py"))]
# A cold deep link asks for its health below the page first; streamlit then finds the right address by itself.
# Parallel coordinates read back from WebGL, of which a browser without a GPU says that it is slow.
HARMLESS = re.compile(
    r"404 \(Not Found\)|Unrecognized feature|allow-scripts and allow-same-origin|GPU stall due to ReadPixels"
)

FORGET = """
if (location.protocol === 'http:' && !sessionStorage.begun) {  // once for each tab
  localStorage.clear();
  sessionStorage.begun = 1;
}"""

GRAVE = ("serious", "critical")
FOLDED = {"redundancy": "Text and marks"}  # what opens a page's further controls

pytestmark = pytest.mark.browser


@contextmanager
def quiet_app(folder):
    """Address of an app that says nothing while it runs."""
    try:
        with (folder / "app.log").open("wb") as log, running_app(log) as (address, _):
            yield address
    finally:
        said = (folder / "app.log").read_text()
        print(said)
    assert "Traceback" not in said
    assert "Warning" not in said


@pytest.fixture
def app(tmp_path):
    """Address of an app of the test's own."""
    with quiet_app(tmp_path) as address:
        yield address


@pytest.fixture(scope="session")
def shown(tmp_path_factory):
    """Address of an app in whose home nothing is written: for tests that look at what ships."""
    folder = tmp_path_factory.mktemp("shown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWM_HOME", str(folder / "home"))
        with quiet_app(folder) as address:
            yield address


@pytest.fixture(scope="session")
def profile(chromium):
    """A browser that keeps what it has loaded, as a user's does."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(profile):
    """A page of a browser that remembers nothing of earlier tests; what it complains about fails the test."""
    page = profile.new_page()
    page.add_init_script(FORGET)
    complaints = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    said = [text for text in complaints if not HARMLESS.search(text)]
    page.close()
    assert said == []


@pytest.fixture
def no_job_left():
    """Ends what a test that failed left running."""
    yield
    for _, state in active_targets(list_experiments()[0]):
        if state.pid != os.getpid():
            os.kill(state.pid, signal.SIGKILL)


def ready(page):
    page.wait_for_selector("h1", timeout=20_000)
    page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')", timeout=20_000)


def until(page, condition, seconds=10):
    """Wait until a condition holds, while the page goes on."""
    for _ in range(10 * seconds):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"It did not happen within {seconds} seconds.")


def settled_box(page, selector):
    """Box of an element that has stayed in its place for half a second: what stands above it has been loaded."""
    locator, seen = page.locator(selector).first, []

    def still():
        seen.append(locator.bounding_box())
        return len(seen) > 5 and seen[-6:] == 6 * seen[-1:]

    until(page, still)
    return seen[-1]


def grab(page, share):
    """Press the mouse's button at a share of the slider's width; gives a function that drags to another share."""
    box = settled_box(page, "input.slider")

    def drag(share):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2, steps=3)

    def felt():
        drag(share)
        return page.locator("input.slider:hover").count() == 1

    until(page, felt)
    page.mouse.down()
    return drag


PICTURES = {  # of each page; whole in the first screen
    "": ".st-key-home_layers",
    "redundancy": ".st-key-redundancy_map",
    "preview": ".said",  # the last of slider, numbers, ribbon and words
    "run": ".st-key-run_layers",
    "compare": ".st-key-compare_pareto",
    "studies": ".st-key-studies_chart",
}


@pytest.mark.parametrize(("experiment", "scheme"), [("demo", "light"), ("example-study", "dark")])
def test_every_page_opens_shows_its_picture_first_and_can_be_read_by_everyone(experiment, scheme, shown, page):
    """At the smallest size of a notebook; axe-core (deque.com) knows what people with weak eyes cannot read."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.set_viewport_size({"width": 1024, "height": 768})
    page.emulate_media(color_scheme=scheme)
    wide = """() => {
        const main = document.querySelector('[data-testid=stMain]');
        return [main.scrollWidth - main.clientWidth, document.documentElement.scrollWidth - innerWidth];
    }"""
    for name in PAGES:
        page.goto(f"{shown}/{name}?experiment={experiment}")
        ready(page)
        assert page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count() == 0, name
        assert max(page.evaluate(wide)) <= 0, name
        if name in PICTURES and (experiment == "demo") == (name != "studies"):
            box = settled_box(page, PICTURES[name])
            assert box["y"] + box["height"] <= 768, name
        ours = {"exclude": [["[data-testid=stHeader]"]]}  # Streamlit's own, which says while a page runs that it does
        found = axe.run(page, ours, {"resultTypes": ["violations"]}).response["violations"]
        serious = [
            (each["id"], [node["html"][:80] for node in each["nodes"]]) for each in found if each["impact"] in GRAVE
        ]
        assert serious == [], name


@pytest.mark.parametrize(
    ("name", "label", "value", "more"),
    [
        ("compare", "From", "best-24 (merged)", "compare_first=best-24+(merged)"),
        ("compare", "To", "walk-28 (merged)", "compare_second=walk-28+(merged)"),
        ("redundancy", "Mark blocks from", "0.950", "redundancy_level=0.95"),
        ("run", "Steps", "77", "run=new+run&windows=22-23&run_steps_quick=77"),
        ("run", "Prune width by, %", "20.0", "run=new+run&windows=22-23&run_width=20.0"),
        ("sweeps", "Documents per task", "7", "sweep_limit=7"),
        ("experiment", "Tokens per text", "64", "experiment_effort=own&experiment_length=64"),
        ("preview", "At most", "21", "preview_door=target&target_kind=layers&target_layers_example-demo=21"),
    ],
)
def test_a_control_comes_back_from_the_address(name, label, value, more, shown, page):
    page.goto(f"{shown}/{name}?experiment=example-demo&{more}")
    ready(page)
    if folded := FOLDED.get(name):
        page.get_by_role("button", name=folded).click()
    field = page.locator("[data-testid=stSelectbox], [data-testid=stNumberInput]").filter(
        has=page.get_by_text(label, exact=True)
    )
    until(page, lambda: value in (field.inner_text().split("\n")[-1], field.locator("input").input_value()))
    assert page.locator("[data-testid=stException]").count() == 0


def test_the_playground_of_an_example_answers_from_what_was_kept(shown, page):
    page.goto(f"{shown}/playground?experiment=example-demo")
    ready(page)
    run = Experiment.open("example-demo").run("best-24")
    samples = run.scores()["samples"]
    assert len(samples) > 1
    for sample in samples[:2]:
        page.locator("[data-testid=stButtonGroup] button", has_text=sample["prompt"]).click()
        words = sample["answer"].split()[:3]
        until(
            page, lambda words=words: all(word in page.locator("[data-testid=stMain]").inner_text() for word in words)
        )
    assert page.get_by_role("button", name="Answer", exact=True).count() == 0  # there is no model to ask


def test_the_live_playground_streams_and_colours(app, page, model_folder, text_file):
    """Two models answer on the page as transformers lets them; the smaller one's words are marked where they differ."""
    experiment = create_experiment("mine", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    run = experiment.create_run("small", MergePlan(4, (Window(1, 2),)))
    merge_run(run)
    prompt, tokens = "The three most", 24
    folders = {"original": model_folder, "small": run.model_folder}
    expected = {name: greedy(folder, prompt, tokens) for name, folder in folders.items()}
    assert letters(expected["original"]) != letters(expected["small"])
    page.goto(f"{app}/playground?experiment=mine&playground_tokens={tokens}")
    ready(page)
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    ready(page)
    page.get_by_role("button", name="Answer", exact=True).click()
    until(page, lambda: page.get_by_text("the first after").count() == 2, 90)  # both have ended: each with its speed
    cards = page.locator("[data-testid=stVerticalBlock]").filter(has_text="the first after")
    said = {name: cards.filter(has_text=f"{name}: ").last.inner_text() for name in expected}
    assert "4 of 4 layers" in said["original"]
    assert "3 of 4 layers, not healed" in said["small"]
    for name, text in expected.items():
        assert letters(text) in letters(said[name]), name
    marks = "[style*='background-color']"
    assert cards.filter(has_text="small: ").last.locator(marks).count() >= 1
    assert cards.filter(has_text="original: ").last.locator(marks).count() == 0


def test_dragging_the_slider_changes_strip_numbers_and_address(shown, page):
    page.goto(f"{shown}/preview?experiment=demo&threshold=0.99")
    ready(page)
    number = page.locator(".number .value").first
    page.wait_for_selector("text=30 of 30")
    drag = grab(page, 0.97)
    seen = []
    for share in (0.9, 0.8, 0.7):
        drag(share)
        page.wait_for_timeout(80)
        left = int(number.inner_text().split()[0])
        # one bar for each layer before, one for each after, while the button is still down
        assert page.locator(".layer").count() == 30 + left
        seen.append(left)
    assert len(set(seen)) > 1  # the picture follows before the button is let go
    assert max(seen) < 30
    assert "threshold=0.99" in page.url
    page.mouse.up()
    page.wait_for_url(re.compile(r"threshold=0\.8"))


def test_a_held_slider_stays_where_it_is_when_the_page_has_news(app, page, home):
    """As it has while a search runs; here the answers are taken away and the page is asked to look again."""
    folder = home / "experiments" / "mine"
    shutil.copytree(ROOT / "assets" / "experiments" / "example-demo", folder)
    page.goto(f"{app}/preview?experiment=mine&threshold=0.99")
    ready(page)
    page.wait_for_selector("text=30 of 30")
    drag = grab(page, 0.9)
    drag(0.6)
    before = page.locator(".number .value").first.inner_text()
    assert before != "30 of 30"
    assert page.locator(".answer.original").count() == 3
    (folder / "answers" / "rdsc.json").unlink()
    page.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'r', code: 'KeyR', bubbles: true}))")
    until(page, lambda: page.locator(".answer.original").count() == 0)
    assert page.locator(".number .value").first.inner_text() == before
    page.mouse.up()
    page.wait_for_url(re.compile(r"threshold=0\.8"))


def test_the_models_words_follow_the_slider(shown, page):
    """The words are those of the shipped file, change before the button is let go, and lose nothing of an answer."""
    page.goto(f"{shown}/preview?experiment=demo&threshold=0.99")
    ready(page)
    page.wait_for_selector("text=30 of 30")
    assert page.locator(".answer.original").count() == 3
    kept = kept_answers(Experiment.open("example-demo"), "rdsc")
    by_depth = {}
    for windows, answers in kept.of.items():
        by_depth.setdefault(30 - sum(len(window) - 1 for window in windows), []).append(answers)
    drag = grab(page, 0.97)
    seen = set()
    for share in (0.85, 0.6, 0.3):
        drag(share)
        page.wait_for_timeout(80)
        left = int(page.locator(".number .value").first.inner_text().split()[0])
        written = tuple(page.locator(".answer.current .words").all_text_contents())
        assert any(written == tuple(map(as_shown, answers)) for answers in by_depth[left])
        seen.add(written)
    assert len(seen) == 3
    page.mouse.up()
    for card in page.locator(".said .card").all():
        original, own = card.locator(".original .words").text_content(), card.locator(".current .words")
        mark = own.locator("mark").text_content()
        before = own.text_content().split(mark)[0].split()
        assert original.split()[: len(before)] == before
        assert original.split()[len(before) : len(before) + 1] != [mark]


def as_shown(answer):
    """An answer without blank lines."""
    return re.sub(r"\s*\n\s*", "\n", answer.strip()) or "ends here"


def test_a_threshold_that_is_none_is_told_and_changes_nothing(shown, page):
    page.goto(f"{shown}/preview?experiment=demo&threshold=0.9")
    ready(page)
    field = page.get_by_label("Threshold", exact=True)
    page.wait_for_selector("text=28 of 30")
    for odd in ("1.7", "-1", ""):
        field.fill(odd)
        field.press("Enter")
        page.wait_for_selector("text=A threshold is a number from 0.5 to 1")
        assert field.input_value() == "0.9"
        assert page.locator(".number .value").first.inner_text() == "28 of 30"
    field.fill("0.97")
    field.press("Enter")
    page.wait_for_url(re.compile(r"threshold=0\.97"))
    assert page.locator(".hint").inner_text() == ""


def test_a_flag_marks_the_smallest_plan_within_the_loss(shown, page):
    page.goto(f"{shown}/preview?experiment=demo&threshold=0.7")
    ready(page)
    page.get_by_role("button", name="smallest within × 1.2").click()
    page.wait_for_url(re.compile(r"threshold=0\.9"))
    ratio = float(page.locator(".number .more").nth(1).inner_text().split()[1])
    assert 1.0 < ratio <= 1.2
    path = kept_path(Experiment.open("example-demo"), "rdsc")
    within = [plan for plan in path.intervals() if plan.plan.windows and plan.perplexity <= 1.2 * path.perplexities[()]]
    fewest = min(plan.plan.layers_left for plan in within)
    assert page.locator(".number .value").first.inner_text() == f"{fewest} of 30"


RINGS = """(what) => {
  const inside = root => [...root.querySelectorAll('*')]
    .flatMap(n => [n, ...(n.shadowRoot ? inside(n.shadowRoot) : [])]);
  return inside(document).filter(n => n.style?.boxShadow.includes('7px'))
    .map(n => what === 'box' ? [n.getBoundingClientRect().top, n.getBoundingClientRect().bottom] : n.className);
}"""


def ringed(page, most=8000):
    """The parts of the page with the tour's ring, once there is one."""
    for _ in range(most // 100):
        if rings := page.evaluate(RINGS):
            return rings
        page.wait_for_timeout(100)
    return []


def test_the_tour_leads_over_five_pages_and_keeps_its_place(shown, page):
    page.goto(f"{shown}/?experiment=example-study")
    ready(page)
    page.get_by_role("button", name="Take the tour").click()
    seen = []
    for number, path in enumerate(("redundancy", "preview", "preview", "compare", "report"), 1):
        page.wait_for_selector(f"text=Tour, step {number} of 5")
        page.wait_for_url(f"**/{path}*")
        ready(page)
        page.wait_for_timeout(300)  # the last step's ring goes first
        (ring,) = ringed(page)
        seen.append(ring)
        card = page.locator(".st-key-tour").bounding_box()["y"]
        assert card < 900

        def in_view(card=card):  # or its beginning, where it is higher than what the card leaves free
            ((top, bottom),) = page.evaluate(RINGS, "box")
            return top >= 40 and (bottom <= card or (bottom - top > card - 70 and top < 90))

        until(page, in_view)
        if number == 3:
            page.reload()
            page.wait_for_selector("text=Tour, step 3 of 5")
            assert ringed(page) == [ring]
            tab = page.context.new_page()
            tab.goto(shown)
            tab.get_by_role("button", name="Go on with the tour, step 3").click()
            tab.wait_for_selector("text=Tour, step 3 of 5")
            tab.close()
        if number < 5:
            page.get_by_role("button", name="Next", exact=True).click()
    assert len(set(seen)) == 5
    page.get_by_role("button", name="Done").click()
    page.wait_for_selector("text=Take the tour")
    assert ringed(page, 500) == []
    page.goto(shown)  # nobody is asked to continue a tour that has ended
    page.wait_for_selector("text=Take the tour")
    page.wait_for_timeout(1000)
    assert page.get_by_text("Go on with the tour").count() == 0


def test_the_tour_can_be_linked_left_and_taken_up_again(shown, page):
    page.goto(f"{shown}/?tour=1")
    page.wait_for_selector("text=Many layers do nearly the same")
    page.wait_for_url("**/redundancy*")
    page.get_by_role("link", name="Report", exact=True).click()
    page.wait_for_selector("text=You have left the tour.")
    page.get_by_role("button", name="Back to the tour").click()
    page.wait_for_selector("text=Many layers do nearly the same")
    page.get_by_role("button", name="End the tour").click()
    page.wait_for_selector("text=Take the tour")
    for odd in ("6", "x"):
        page.goto(f"{shown}/?tour={odd}")
        ready(page)
        assert page.locator(".st-key-tour").count() == 0


def test_a_target_shows_its_plan_and_a_click_on_a_known_plan_shows_that_one(shown, page):
    page.goto(f"{shown}/?experiment=example-demo")
    ready(page)
    page.get_by_role("link", name="Choose a target").click()
    page.wait_for_url("**/preview*")
    page.wait_for_selector(".number >> text=24 of 30")
    assert page.locator("input.slider").is_hidden()
    assert "preview_door=target" in page.url
    assert page.locator("a[href*='merge_by=fit']:has-text('Merge these windows')").count() == 1
    chart = page.locator(".st-key-preview_plans")
    chart.scroll_into_view_if_needed()
    points = chart.locator(".scatterlayer .trace").last.locator("path.point")
    points.first.wait_for()
    frame = settled_box(page, ".st-key-preview_plans .nsewdrag")
    boxes = [point.bounding_box() for point in points.all()]
    box = next(box for box in boxes if frame["y"] < box["y"] < frame["y"] + frame["height"] - 10)  # some are too high
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.wait_for_timeout(200)
    page.mouse.down()
    page.wait_for_timeout(80)
    page.mouse.up()
    page.wait_for_selector("a[href*='merge_by=rdsc']:has-text('Merge these windows')", timeout=10_000)
    assert page.locator("input.slider").is_visible()


def test_a_click_on_the_staircase_and_a_pinned_plan(shown, page):
    page.goto(f"{shown}/preview?experiment=demo&threshold=0.99")
    ready(page)
    page.wait_for_selector("text=30 of 30")
    page.get_by_role("button", name="Pin").click()
    box = settled_box(page, ".stairs")
    page.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + 40)
    page.wait_for_url(re.compile(r"threshold=0\.8"))
    values = page.locator(".number .value")
    assert int(values.nth(0).inner_text().split()[0]) < 30
    assert values.nth(6).inner_text() == "30 of 30"


def test_layers_that_are_dropped_are_struck_out_and_flow_nowhere(shown, page):
    page.goto(f"{shown}/preview?experiment=example-study&rule=keep_first&threshold=0.9")
    ready(page)
    left = page.locator(".number .value").first.inner_text()
    plan = kept_path(Experiment.open("example-study"), "keep_first").plan_at(0.9).plan
    assert left == f"{plan.layers_left} of 30"
    gone = [layer for window in plan.windows for layer in range(window.first + 1, window.last + 1)]
    struck = [box.text_content() for box in page.locator(".layer.dropped title").all()]
    assert struck == [f"layer {layer}, dropped" for layer in gone]
    assert page.locator(".layer.merged, .ribbon.merged").count() == 0
    assert page.locator(".ribbon").count() == plan.layers_left
    page.goto(f"{shown}/preview?experiment=example-study&threshold=0.9")  # the paper's formula merges
    ready(page)
    page.locator(".ribbon.merged").first.wait_for()
    assert page.locator(".layer.dropped").count() == 0


def test_windows_edited_by_hand_go_along_to_the_run_page(shown, page):
    page.goto(f"{shown}/preview?experiment=demo&threshold=0.99")
    ready(page)
    page.get_by_role("button", name="Edit", exact=True).click()
    page.locator(".border").nth(10).click()
    page.locator(".border").nth(11).click()
    page.locator(".border").nth(20).click()
    page.wait_for_selector("a[href*='windows=10-12%2C20-21']:has-text('Merge these windows')")
    assert page.locator(".number .value").first.inner_text() == "27 of 30"
    page.get_by_role("link", name="Merge these windows").click()
    page.wait_for_url("**/run*")
    by_hand = "document.querySelector('input[placeholder=\"27-28,25-26\"]')?.value"
    page.wait_for_function(f"{by_hand} === '10-12,20-21'", timeout=20_000)


def test_the_threshold_goes_along_to_the_run_page(shown, page):
    page.goto(f"{shown}/preview?threshold=0.92&rule=rdsc")
    ready(page)
    page.get_by_role("link", name="Merge these layers").click()
    page.wait_for_url("**/run*")
    ready(page)
    assert page.get_by_label("Or the threshold of a search", exact=True).input_value() == "0.9200"
    page.get_by_role("link", name="Preview", exact=True).click()
    page.wait_for_url("**/preview*")
    page.wait_for_selector("text=The same plan holds")
    assert page.get_by_label("Threshold", exact=True).input_value() == "0.92"


def create_mine(page, model_folder, text_file):
    """Create and measure an experiment by clicks on the Experiment page."""
    page.get_by_label("Name", exact=True).fill("mine")
    page.keyboard.press("Tab")
    for label, value in (("Or a folder", str(model_folder)), ("Or a .txt", str(text_file))):
        page.locator(f"input[aria-label*='{label}']").fill(value)
        page.locator(f"input[aria-label*='{label}']").press("Enter")
    page.wait_for_selector("text=4 layers", timeout=60_000)
    page.wait_for_selector("text=Begins: ")
    page.locator("input[aria-label*='How thoroughly']").fill("own")
    page.keyboard.press("Enter")
    for label, value in (("Tokens per text", "32"), ("Texts", "3")):
        page.get_by_label(label, exact=True).fill(value)
        page.keyboard.press("Tab")
    page.get_by_role("button", name="Command line").click()
    page.wait_for_selector("text=--count 3 --length 32")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Create and measure").click()
    page.wait_for_url("**/redundancy?experiment=mine*", timeout=90_000)
    page.wait_for_selector(".heatmaplayer", timeout=90_000)


FALSE = re.compile(
    r"damaged|is not a merge rule|Choose one of: \.|Traceback|cannot be read|does not exist|Unexpected error"
)


@pytest.mark.apart
def test_two_users_at_once_are_told_nothing_false(app, chromium, model_folder, text_file):
    """Two browsers open the app the moment it starts: one creates and measures, the other compares and deletes."""
    other = create_experiment("theirs", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    for name in ("first", "second"):
        other.create_run(name, MergePlan(4, (Window(1, 2),)))
    one, two = (chromium.new_context().new_page() for _ in range(2))
    said = []
    for page in (one, two):
        page.goto(f"{app}/experiment" if page is one else f"{app}/compare?experiment=theirs", wait_until="commit")
    ready(one)
    create = one.get_by_label("Name", exact=True)
    create.wait_for()
    ready(two)
    said.append(two.locator("body").inner_text())
    two.goto(f"{app}/run?experiment=theirs&run=first", wait_until="commit")
    create_mine(one, model_folder, text_file)
    for run in ("first", "second"):
        two.goto(f"{app}/run?experiment=theirs&run={run}")
        ready(two)
        two.get_by_role("button", name="Delete").click()
        two.get_by_role("button", name="Delete for good").click()
        two.wait_for_selector("text=Or the threshold of a search")
        said += [page.locator("body").inner_text() for page in (one, two)]
    two.goto(f"{app}/experiment?experiment=theirs")
    two.wait_for_selector("text=M parameters", timeout=60_000)
    ready(two)
    two.get_by_role("button", name="Delete").click()
    two.get_by_role("button", name="Delete for good").click()
    until(two, lambda: not other.folder.exists())
    assert_agrees(two, "mine")
    for name in PAGES:
        one.goto(f"{app}/{name}?experiment=mine")
        ready(one)
        said.append(one.locator("body").inner_text())
    said += [page.locator("body").inner_text() for page in (one, two)]
    assert [text[:400] for text in said if FALSE.search(text)] == []
    for page in (one, two):
        assert page.locator("[data-testid=stException]").count() == 0
        page.context.close()


def test_a_study_from_the_pages(app, page, model_folder, text_file, home, no_job_left):
    """Create, measure, search: started by clicks, followed on the page, found in the files."""
    page.goto(f"{app}/experiment")
    ready(page)
    page.get_by_label("Name", exact=True).fill("Not Good")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=is not a valid name")
    create_mine(page, model_folder, text_file)
    page.goto(f"{app}/preview?experiment=mine")
    ready(page)
    page.get_by_role("button", name="Search").click()
    page.wait_for_selector("text=The same plan holds", timeout=90_000)
    assert (home / "experiments" / "mine" / "path" / "rdsc.json").is_file()
    assert not Path("~/.swm/experiments/mine").expanduser().exists()


@pytest.mark.bundled
def test_a_run_is_followed_from_another_browser_cancelled_and_gone_on_with(
    app, page, chromium, model_folder, text_file, no_job_left
):
    """Started by a click; the tab is closed; found in another browser; cancelled; resumed; cancelled again."""
    need("olmo_eval")
    experiment = create_experiment("mine", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    page.goto(f"{app}/run?experiment=mine&run=new+run&windows=1-2")
    ready(page)
    page.get_by_text("Change settings").click()
    for label, value in (("Steps", "3000"), ("Documents per task", "2")):
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_label(label, exact=True).press("Enter")
        page.wait_for_timeout(1500)
    page.get_by_role("button", name="Merge, heal and evaluate").click()
    page.wait_for_selector("text=Cancel", timeout=30_000)
    page.goto("about:blank")
    other = chromium.new_context().new_page()
    other.goto(f"{app}/run?experiment=mine&run=run-1")
    other.wait_for_selector("text=Held-out loss", timeout=120_000)
    other.get_by_role("button", name="Cancel").click()
    other.wait_for_selector("text=was cancelled. Finished work is kept", timeout=60_000)
    run = experiment.run("run-1")
    assert (run.state().status, run.stage) == ("cancelled", "merged")
    other.wait_for_selector(f"text=Its last checkpoint is at step {run.checkpoint_step():,} of 3,000")
    done = run.checkpoint_step()
    other.get_by_role("button", name="Resume healing").click()
    other.wait_for_selector("text=Cancel", timeout=30_000)
    progressed = "n => document.body.innerText.match(/([\\d,]+) of 3,000/)?.[1].replace(',', '') > n"
    other.wait_for_function(progressed, arg=done, timeout=120_000)
    other.get_by_role("button", name="Cancel").click()
    other.wait_for_selector("text=was cancelled. Finished work is kept", timeout=60_000)
    steps = [event["step"] for event in run.events() if "loss" in event]
    assert steps == list(range(1, max(steps) + 1))  # nothing was trained twice, nothing left out
    assert max(steps) > done
    other.close()


def test_the_report_is_downloaded_and_opens_without_a_network(shown, page, chromium, tmp_path):
    page.goto(f"{shown}/report?experiment=demo")
    page.frame_locator("iframe").locator(".slide .verdict").wait_for(timeout=60_000)  # the page is whole
    ready(page)
    with page.expect_download(timeout=90_000) as download:
        page.get_by_role("button", name="Download the report").click()
    download.value.save_as(tmp_path / "report.html")
    offline = chromium.new_context(offline=True).new_page()
    complaints = []
    offline.on("pageerror", lambda error: complaints.append(str(error)))
    offline.goto((tmp_path / "report.html").as_uri())
    offline.wait_for_selector(".layer-view svg .layer")
    # two and six windows of two layers and one of seven, and what they became
    assert offline.locator(".layer-view svg .merged.layer").count() == 2 * 3 + 6 * 3 + 8 + 8  # the last twice: it leads
    assert offline.locator("svg.picture").count() > 2
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert complaints == []


@pytest.mark.parametrize("example", ["example-demo", "example-study"])
def test_the_report_prints_on_clean_pages_with_the_verdict_alone_on_the_first(example, chromium, tmp_path):
    write_report(Experiment.open(example), tmp_path / "report.html")
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector(".layer-view svg .layer")
    assert page.locator(".slide .verdict").bounding_box()["y"] < 500  # in view
    printed = page.pdf(prefer_css_page_size=True)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1031, "height": 703})  # A4 landscape without its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 1031
    inseparable = "[...document.querySelectorAll('tr, .charts, .layer-view')].map(part => part.offsetHeight || 0)"
    assert max(page.evaluate(inseparable)) <= 703  # each fits a page, so that none is torn
    needed = page.evaluate("document.documentElement.scrollHeight") / 703
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", printed))
    assert needed / 1.1 <= pages <= 1.25 * needed + 1  # none is nearly empty, but the end and before a large chart
    slide = page.locator(".slide").bounding_box()
    assert slide["y"] + slide["height"] <= 703
    page.close()


def test_a_click_on_the_heat_map_selects_the_pair(shown, page):
    page.goto(f"{shown}/redundancy?experiment=demo")
    ready(page)
    page.locator(".heatmaplayer").first.wait_for()
    box = settled_box(page, "[data-testid=stPlotlyChart] .heatmaplayer")
    page.mouse.move(box["x"] + box["width"] * 20.5 / 30, box["y"] + box["height"] * (1 - 5.5 / 30), steps=4)
    page.wait_for_timeout(200)
    page.mouse.down()
    page.wait_for_timeout(80)
    page.mouse.up()
    page.wait_for_selector("text=Layers 5 and 20: CKA", timeout=10_000)
    assert page.locator("text=rank").count() == 1


@pytest.mark.data
def test_a_sweep_from_the_page(app, page, tokenizer, text_file, home, tmp_path, no_job_left):
    """Put together by clicks, run, and the file on disk is the one that was shown."""
    need("olmo_eval")
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    page.goto(f"{app}/sweeps")
    ready(page)

    def clear(picker, chosen):
        box = page.locator(f".st-key-sweep_{picker}")
        remove = f".st-key-sweep_{picker} button[aria-label^='Remove']"
        for left in reversed(range(chosen)):
            page.locator(remove).first.click()
            page.wait_for_function(
                "([what, left]) => document.querySelectorAll(what).length === left", arg=[remove, left]
            )
            ready(page)
        return box

    def choose(picker, value, instead_of):
        clear(picker, instead_of).locator("input").fill(str(value))
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")

    for name, value in (("models", folder), ("texts", text_file)):
        clear(name, 1)
        page.wait_for_selector(f"text={name} has no entry")
        page.get_by_role("textbox", name=f"Other {name}, one per line").fill(str(value))
        page.keyboard.press("Tab")
    choose("methods", "random", 2)
    choose("recovery", "none", 2)
    page.get_by_label("Documents per task").fill("1")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=1 runs, 0 of them healed")
    grid = page.locator(".stCode code").first
    until(page, lambda: yaml.safe_load(grid.inner_text())["limit"] == 1)
    shown = grid.inner_text()
    page.get_by_role("button", name="Start this sweep").click()
    page.wait_for_selector("text=Runs done or failed")
    page.locator("[data-testid=stMetricValue]", has_text="1 of 1").wait_for(timeout=150_000)
    saved = yaml.safe_load((home / "sweeps" / "my-sweep" / "sweep.yaml").read_text())
    assert saved == yaml.safe_load(shown)
    assert saved["models"] == [str(folder)]
    assert saved["plans"] == [{"planner": "random", "ratio": [0.2]}]
    assert set(Sweep("my-sweep").states().values()) == {"done"}, Sweep("my-sweep").failures()


def test_a_model_is_uploaded_and_used(app, page, model_folder, home):
    page.goto(f"{app}/experiment")
    ready(page)
    page.get_by_role("button", name="Upload a model").click()
    files = [file for file in Path(model_folder).iterdir() if file.suffix in (".json", ".safetensors")]
    page.set_input_files("input[type=file]", files)
    page.get_by_role("button", name="Use this model").click()
    page.wait_for_selector("text=4 layers", timeout=60_000)
    uploaded = home / "uploads" / "uploaded-model"
    assert {file.name: file.read_bytes() for file in uploaded.iterdir()} == {f.name: f.read_bytes() for f in files}
    assert page.locator("[data-testid=stFileUploader]").count() == 0  # it has closed


@pytest.fixture
def mine(model_folder, text_file):
    """An experiment of one's own with two runs that are not merged yet."""
    experiment = create_experiment("mine", ExperimentSettings(str(model_folder), str(text_file), 3, 32))
    for name in ("first", "second"):
        experiment.create_run(name, MergePlan(4, (Window(1, 2),)))
    return experiment


@pytest.fixture
def tabs(chromium, mine):
    """Two tabs of one browser, in which nothing crashes."""
    browser = chromium.new_context()
    page, other = browser.new_page(), browser.new_page()
    yield page, other
    crashes = [tab.locator("[data-testid=stException]").count() for tab in (page, other)]
    browser.close()
    assert crashes == [0, 0]


def test_a_run_renamed_or_deleted_in_one_tab_is_gone_in_the_other(app, mine, tabs):
    experiment, (page, other) = mine, tabs
    page.goto(f"{app}/run?experiment=mine&run=first")
    other.goto(f"{app}/run?experiment=mine&run=second")
    ready(page)
    ready(other)
    assert [tab.get_by_role("combobox").nth(1).input_value() for tab in (page, other)] == ["first", "second"]
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("better")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Rename").last.click()
    until(page, lambda: [run.name for run in experiment.runs()] == ["baseline", "better", "second"])
    until(page, lambda: page.get_by_role("combobox").nth(1).input_value() == "better")
    page.get_by_label("New name").wait_for(state="hidden")
    page.goto(f"{app}/run?experiment=mine&run=second")
    ready(page)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete for good").click()
    page.wait_for_selector("text=Or the threshold of a search")
    assert [run.name for run in experiment.runs()] == ["baseline", "better"]
    other.get_by_role("button", name="Merge", exact=True).click()
    other.wait_for_selector("text=Run second was deleted or renamed elsewhere, so nothing was done.")
    ready(other)
    assert other.get_by_role("button", name="Merge", exact=True).count() == 0
    other.get_by_role("button", name="Continue").click()
    until(other, lambda: other.get_by_role("combobox").nth(1).input_value() == "better")
    assert not any(run.state().stage for run in experiment.runs())  # no run got the job of the deleted one
    assert not (experiment.folder / "runs" / "second").exists()


def test_an_experiment_renamed_or_deleted_in_one_tab_is_gone_in_the_other(app, mine, tabs):
    experiment, (page, other) = mine, tabs
    other.goto(f"{app}/run?experiment=mine&run=second")
    page.goto(f"{app}/experiment?experiment=mine")
    page.wait_for_selector("text=M parameters", timeout=60_000)  # then the page is redrawn
    ready(page)
    renamed = experiment.folder.parent / "ours"
    for _ in range(3):  # on a busy machine the page can be redrawn, or a job still end, between filling in and clicking
        if not page.get_by_label("New name").is_visible():
            page.get_by_role("button", name="Rename").first.click()
        page.get_by_label("New name").fill("ours")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Rename").last.click()
        with suppress(AssertionError):
            until(page, renamed.is_dir)
            break
    assert renamed.is_dir()
    assert not experiment.folder.exists()
    until(page, lambda: page.get_by_role("combobox").first.input_value() == "ours")
    ready(other)
    other.get_by_role("button", name="Duplicate and edit").click()  # on the page of the experiment's old name
    other.wait_for_selector("text=mine was deleted or renamed elsewhere, so nothing was done.")
    ready(other)
    assert other.get_by_role("combobox").count() == 1
    assert_agrees(other, "ours")
    other.get_by_role("button", name="Continue with ours").click()
    other.wait_for_selector("text=Duplicate and edit")
    assert_agrees(other, "ours")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete for good").click()
    until(page, lambda: not renamed.exists())
    page.wait_for_url(f"{app}/?experiment=example-demo")
    ready(page)
    assert "There is no experiment" not in page.locator("body").inner_text()
    assert_agrees(page, "example-demo")


def assert_agrees(page, experiment):
    """What the sidebar shows is what the address says."""
    until(page, lambda: page.get_by_role("combobox").first.input_value() == experiment)
    until(page, lambda: f"experiment={experiment}" in page.url)


def follow(page, link):
    """Open a page from the sidebar, whose tooltips would lie over the next link."""
    page.mouse.move(900, 600)
    page.locator("[data-testid=stSidebar]").get_by_role("link", name=link, exact=True).dispatch_event("click")
    page.wait_for_url(re.compile(rf"/{'' if link == 'Home' else link.lower()}\?"))
    ready(page)


def test_the_experiment_of_a_link_stays_through_every_change_of_page(shown, page):
    for name, links in {"studies": ("Compare", "Home"), "preview": ("Studies",), "report": ("Redundancy",)}.items():
        page.goto(f"{shown}/{name}?experiment=example-healing")
        ready(page)
        for link in links:
            follow(page, link)
            assert_agrees(page, "example-healing")
        page.goto("about:blank")
    page.goto(f"{shown}/?experiment=example-healing")
    page.get_by_role("link", name="Open the map").click()
    page.wait_for_url(f"{shown}/redundancy?*")
    ready(page)
    assert_agrees(page, "example-healing")


def test_back_leaves_a_page_at_once_and_returns_to_the_experiment_chosen_before(shown, page):
    page.goto(f"{shown}/?experiment=example-study")
    ready(page)
    for link in ("Compare", "Preview", "Studies"):
        follow(page, link)
        page.go_back()
        page.wait_for_url(f"{shown}/?experiment=example-study")
        ready(page)
    follow(page, "Compare")
    page.get_by_role("combobox").first.click()
    page.get_by_role("option", name="example-healing").click()
    until(page, lambda: "experiment=example-healing" in page.url)
    ready(page)
    page.wait_for_timeout(1000)  # sooner, it could be a click that was sent with the address before
    page.go_back()
    until(page, lambda: "experiment=example-study" in page.url)
    ready(page)
    assert_agrees(page, "example-study")


def test_an_address_that_names_what_is_not_there_says_so(shown, page):
    for address, said in (
        ("run?experiment=example-demo&run=zzz", "The address names zzz, but there is no such run here."),
        ("compare?experiment=example-demo&runs=zzz", "The address names zzz, but there is no such run here."),
        ("preview?experiment=example-demo&threshold=7", "The address has threshold 7: use 0.0001 to 1. 0.9"),
        (
            "preview?experiment=example-demo&rule=zzz",
            "The address names zzz, but there is no such choice under “Merge rule” here.",
        ),
        (
            "run?experiment=example-demo&run=new%20run&merge_by=zzz",
            "The address names zzz, but there is no such merge rule here.",
        ),
        ("redundancy?experiment=nothing", "There is no experiment named nothing. This is example-demo."),
    ):
        page.goto(f"{shown}/{address}")
        until(page, lambda said=said: said in page.locator("body").inner_text(), 30)
        assert page.locator("h1").count() == 1
        page.goto("about:blank")


def test_the_label_of_a_disabled_button_can_be_seen(shown, page):
    page.goto(f"{shown}/run?experiment=example-demo&run=new%20run")
    ready(page)
    label = page.locator("[data-testid=stBaseButton-primary]:disabled p").first
    assert label.evaluate("each => getComputedStyle(each).color") != "rgb(255, 255, 255)"


def test_the_demo_flag_opens_one_experiment_read_only(page, tmp_path):
    with running_app(arguments=("--demo", "demo")) as (address, _):
        page.goto(f"{address}/experiment")
        ready(page)
        page.wait_for_selector("text=you can look at everything")
        assert page.get_by_role("button", name="Create and measure").count() == 0
        page.goto(f"{address}/preview")
        ready(page)
        page.wait_for_selector("text=read-only demo")


PRESSES = """
async ([source, data]) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const show = (await import(url)).default;
  const parent = document.body.appendChild(document.createElement("div"));
  parent.innerHTML = '<div class="layer-view" style="width: 900px"></div>';
  const sent = [];
  const keep = (name, value) => sent.push(value);
  const update = (threshold) => show({ data: { ...data, threshold }, parentElement: parent, setTriggerValue: keep });
  update(0.9);
  const slider = parent.querySelector("input.slider");
  const press = () => slider.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", cancelable: true }));
  const until = async (n) => {
    for (let frame = 0; sent.length < n && frame < 300; frame++) await new Promise(requestAnimationFrame);
  };
  press();
  await until(1); // the first press is sent
  press(); // the second one is not sent yet when the first is answered
  update(sent[0]);
  const shown = parent.querySelector("input.field").value;
  await until(2);
  return [sent, shown];
}
"""


def test_an_arrow_key_pressed_while_the_server_answers_is_not_lost(chromium):
    from swm.reporting.preview import HELP, TEMPLATES, path_view, plan_view

    demo = Experiment.open("example-demo")
    view = path_view(kept_path(demo, "rdsc"), demo.model_facts, demo.cost(), kept_answers(demo, "rdsc"))
    empty = plan_view(MergePlan(30, ()), demo.model_facts, demo.cost())
    data = {**view, "name": "n", "text": "LAMBADA", "hand": None, "empty": empty, "layers": 30, "help": HELP}
    page = chromium.new_page()
    sent, shown = page.evaluate(PRESSES, [(TEMPLATES / "layers.js").read_text(), data])
    page.close()
    assert (sent, shown) == ([0.901, 0.902], "0.902")


@pytest.mark.parametrize("name", ["example-demo", "example-study"])
def test_the_report_is_no_wider_than_the_window(name, chromium, tmp_path):
    (tmp_path / "report.html").write_text(report_html(Experiment.open(name)))
    page = chromium.new_page(viewport={"width": 1024, "height": 768})
    page.goto(f"file://{tmp_path / 'report.html'}")
    assert page.evaluate("document.documentElement.scrollWidth") == 1024
    page.close()
