"""Preview page: choose layers by a threshold or for a target, and see what the smaller model would be."""

from typing import Any

import streamlit as st

from pages.shared.choices import named_choice, titles_of
from pages.shared.frame import (
    command_line,
    job_panel,
    require_experiment,
    shown_errors,
    start_button,
    start_page,
)
from pages.shared.known import offer_smaller, show_known_plans, windows_of
from pages.shared.live import hand_key, live_preview, path_and_view, remember_shown
from pages.shared.navigation import next_step, number_from_address, set_address
from pages.shared.tables import trace_table
from pages.shared.target import DOORS, Found, forget_edits, plan_notes, target_plan
from swm.plan import DEFAULT_RULE, MergePlan, parse_windows
from swm.registry import MERGE_RULES
from swm.reporting.charts import trace_chart
from swm.reporting.commands import windows_arguments
from swm.reporting.heatmaps import similarity_heatmap
from swm.reporting.names import text_name
from swm.reporting.preview import plan_view
from swm.search.kept_path import kept_answers, outdated_path
from swm.search.threshold_path import PlanAt, ThresholdPath, known_similarity
from swm.settings import LEAST_THRESHOLD, SAMPLE_PROMPTS, SAMPLE_TOKENS
from swm.workspace.estimate import about, path_seconds
from swm.workspace.experiments import Experiment

ANY = "any"


def take_threshold() -> None:
    """Make the slider's threshold the page's, in place of a chosen depth or windows set by hand."""
    chosen = st.session_state["preview_live"]["threshold"]
    if chosen is not None:
        st.session_state.update(preview_threshold=chosen, preview_depth=ANY)
        st.session_state.pop(hand_key(experiment), None)


def take_windows() -> None:
    """Keep the windows set by hand; None returns to the threshold."""
    chosen = st.session_state["preview_live"]["windows"]
    if chosen is not None:
        st.session_state[hand_key(experiment)] = chosen["by_hand"]


def answers_controls(experiment: Experiment) -> list[str]:
    """Whether a search also asks each plan, and what that costs; gives the search's arguments for it."""
    cost = experiment.cost()
    seconds = cost and len(SAMPLE_PROMPTS) * SAMPLE_TOKENS * (cost["layers_ms"] + cost["rest_ms"]) / 1000
    time = f", {about(seconds)} for each plan" if seconds else ""
    asked = st.checkbox(
        f"Let every plan continue {len(SAMPLE_PROMPTS)} prompts{time}",
        True,
        key="preview_answers",
        help="Comes last, when all plans are found. You can cancel it and keep what is there.",
    )
    return [] if asked else ["--no-answers"]


def search_controls(experiment: Experiment, rule: str, low: float, threshold: float, path: ThresholdPath) -> list[str]:
    """How much of the path and of its plans' answers is there, and the button to compute more; returns its command."""
    arguments = ["search", experiment.name, "--rule", rule, "--from", f"{low:g}", "--focus", str(threshold)]
    covered = path.covered()
    if not experiment.state().active:
        if covered == 0:
            if doubt := outdated_path(experiment, rule):
                st.warning(f"The saved path for this rule is not shown because {doubt}. The next search recomputes it.")
            seconds = path_seconds(experiment.model_facts, experiment.cost(), experiment.settings.token_count)
            st.info(
                "This rule has not been searched yet. One search finds the plan for every threshold, starting with "
                "this one." + (f" The search takes {about(seconds)}." if seconds else "")
            )
        elif covered < 0.999:
            st.info(f"{covered:.0%} of the thresholds from {path.low:g} up are computed. The shaded ones are not.")
        elif not all(step.perplexity for step in path.intervals()):
            st.info("Not every plan of this path has a perplexity yet.")
        else:
            st.info("Some plans of this path have no sample answers yet.")
        if not experiment.read_only:
            arguments += answers_controls(experiment)
        start_button("Search", experiment, "search", arguments, "preview_search")
    files = (f"path/{rule}.json", f"answers/{rule}.json")
    job_panel(experiment, version=lambda: sum(map(experiment.changed, files)))
    return arguments


def plan_shown(experiment: Experiment, found: Found) -> dict[str, Any]:
    """A plan that no threshold of the path stands for, ready to draw."""
    answers, facts = kept_answers(experiment, found.plan.rule), experiment.model_facts
    return plan_view(found.plan, facts, experiment.cost(), found.perplexities, found.similarity, answers)


def threshold_door(experiment: Experiment, place: Any) -> tuple[str, ThresholdPath, dict[str, Any], float]:
    """The controls of the path, in a container: rule, its path and view, and the threshold."""
    searched = experiment.rules_searched() if experiment.read_only else ()  # there the others are a dead end
    rule = named_choice(
        place.selectbox,
        "Merge rule",
        {name: title for name, title in titles_of(MERGE_RULES).items() if not searched or name in searched},
        "rule",
        width=250,
        help="How the layers of a window become one layer.",
    )
    path, view = path_and_view(experiment, rule)
    depths = sorted({plan["left"] for plan in view["plans"]}, reverse=True)
    if path.covered() < 0.999:
        depths = [depth for depth in depths if path.knows_all_with(depth)]
    depth = place.selectbox(
        "Layers",
        [ANY, *depths],
        width=110,
        key="preview_depth",
        on_change=forget_edits,
        args=(experiment,),
        help="Instead of a threshold. Of all plans with this many layers, shows the one with the lowest perplexity.",
    )
    if depth in depths:
        st.session_state["preview_threshold"] = path.plan_with_layers(depth).inside
    usual = view["opening"]
    threshold = st.session_state.get("preview_threshold")
    if threshold is None and (threshold := number_from_address("threshold", usual, LEAST_THRESHOLD, 1.0)) != usual:
        st.session_state["preview_threshold"] = threshold
    set_address(threshold="" if threshold == usual else str(threshold))  # not rounded: an interval can end anywhere
    return rule, path, view, threshold


def measure_by_hand(experiment: Experiment, plan: MergePlan, path: ThresholdPath) -> list[str]:
    """The button that measures windows set by hand, if the search did not try them; gives the command that does."""
    arguments = ["plan", experiment.name, *windows_arguments(windows_of(plan)), "--rule", plan.rule]
    if known_similarity(path, plan) is None or plan.windows not in path.perplexities:
        st.caption("The similarity or the perplexity of these windows is not known yet for this rule.")
        if not experiment.state().active:
            start_button("Measure these windows", experiment, "plan", arguments, "preview_measure", primary=False)
        job_panel(experiment)
    return arguments


def show_search(experiment: Experiment, step: PlanAt, path: ThresholdPath) -> None:
    """How the search came to the plan."""
    with st.expander("How the search decided"):
        left, right = st.columns(2, gap="large")
        with left:
            st.plotly_chart(trace_chart(step), key="preview_trace")
            st.caption("A window grows downward as long as its similarity stays on or above the line.")
        with right:
            st.dataframe(
                trace_table(step),
                hide_index=True,
                height=320,
                column_config={"similarity": st.column_config.NumberColumn(format="%.4f")},
            )
        if path.scoring != "exact":
            st.caption(
                f"Similarities were computed in {path.scoring}; where checked, they are off by up to "
                f"{path.difference:.1g}."
            )
        if metrics := experiment.metrics_measured():
            matrix = experiment.similarity(metrics[0])["matrix"]
            st.plotly_chart(similarity_heatmap(matrix, metrics[0], step.plan.windows), key="preview_map")
    st.caption(
        "A lower threshold does not always leave fewer layers, because windows can then grow differently. And "
        "similarity of the final hidden states is a weak guide to quality: a plan with a high similarity can still "
        "have a poor perplexity. Evaluate a run before you trust its plan."
    )


experiment = require_experiment(
    start_page("Preview", "Choose which layers merge, and see at once what the smaller model would be and say.")
)
places = st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="preview_choices")
door = named_choice(
    places.segmented_control,
    "How should layers be chosen?",
    DOORS,
    "preview_door",
    required=True,
    on_change=forget_edits,
    args=(experiment,),
)
with shown_errors():
    by_hand, step, found = st.session_state.get(hand_key(experiment)), None, None
    arguments: list[str] = []
    searching: list[str] = []
    if door == "target":
        found, arguments = target_plan(experiment)
        rule = found.plan.rule if found else DEFAULT_RULE
        (path, view), threshold = path_and_view(experiment, rule), 1.0
    else:
        rule, path, view, threshold = threshold_door(experiment, places)
        step = path.plan_at(threshold)
        arguments = ["plan", experiment.name, "--threshold", str(threshold), "--rule", rule, "--json"]
    if by_hand is not None and (found or door == "threshold"):
        plan = MergePlan(experiment.layer_count, parse_windows(by_hand), rule)
        found = Found(plan, known_similarity(path, plan), path.perplexities)
    empty = plan_view(MergePlan(experiment.layer_count, (), rule), experiment.model_facts, experiment.cost())
    view = {**view, "name": f"{experiment.name} {rule}", "threshold": threshold, "empty": empty}
    view = {**view, "text": text_name(experiment.settings.texts)}
    view = {**view, "fixed": door == "target", "edited": by_hand is not None}
    remember_shown(experiment, found or step)
    if door == "threshold" or found:
        hand = plan_shown(experiment, found) if found else None
        live_preview({**view, "hand": hand}, "preview_live", take_threshold, take_windows)
    if door == "threshold" and by_hand is None:
        offer_smaller(experiment, view)
    if found:
        plan_notes(experiment, found.plan)
        if by_hand is not None:
            arguments = measure_by_hand(experiment, found.plan, path)
        if found.plan.windows and not found.plan.lost(experiment.needed_layers):
            merge_by = {"windows": windows_of(found.plan), "merge_by": found.plan.rule}
            next_step("pages/run.py", "Merge these windows", run="new run", **merge_by)
    elif door == "threshold":
        unasked = any(plan["answers"] is None for plan in view["plans"])
        if path.covered() < 0.999 or step is None or (unasked and not experiment.read_only):
            searching = search_controls(experiment, rule, min(path.low, threshold), threshold, path)
        if step and step.plan.windows and step.perplexity is None and not experiment.read_only:
            measure = ["plan", experiment.name, *windows_arguments(windows_of(step.plan)), "--rule", rule]
            if not experiment.state().active:
                start_button("Measure this plan", experiment, "plan", measure, "preview_measure_this", primary=False)
        if step and not step.plan.windows:
            st.info("No neighbouring layers are this similar. Lower the threshold to merge some.")
        if step and step.plan.windows:
            plan_notes(experiment, step.plan)
            next_step("pages/run.py", "Merge these layers", run="new run", merge_at=str(threshold), merge_by=rule)
    show_known_plans(experiment)
    if step and not found:
        show_search(experiment, step, path)
    if arguments:
        command_line(*arguments, before=searching)
