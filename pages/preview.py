"""Preview page: choose a threshold and see which layers would merge."""

from typing import Any

import streamlit as st

from pages.shared.frame import (
    caption,
    command_line,
    job_panel,
    next_step,
    number_from_address,
    require_experiment,
    shown_errors,
    start_page,
)
from pages.shared.live import DEFAULT_THRESHOLD, hand_key, live_preview, path_and_view
from pages.shared.tables import trace_table
from swm.jobs.child import start
from swm.plan import MergePlan, parse_windows
from swm.registry import MERGE_RULES, PLANNERS, as_sentence
from swm.reporting.arguments import windows_arguments
from swm.reporting.charts import trace_chart
from swm.reporting.heatmaps import similarity_heatmap
from swm.reporting.preview import plan_view
from swm.search.kept_answers import kept_answers
from swm.search.kept_path import outdated_path
from swm.search.threshold_path import ThresholdPath, known_similarity
from swm.settings import SAMPLE_PROMPTS, SAMPLE_TOKENS
from swm.workspace.experiments import Experiment
from swm.workspace.units import duration

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


def take_depth() -> None:
    """Drop windows set by hand, so that the chosen depth counts."""
    st.session_state.pop(hand_key(experiment), None)


def answers_controls(experiment: Experiment) -> list[str]:
    """Whether a search also asks each plan, and what that costs; gives the search's arguments for it."""
    cost = experiment.cost()
    seconds = cost and len(SAMPLE_PROMPTS) * SAMPLE_TOKENS * (cost["layers_ms"] + cost["rest_ms"]) / 1000
    time = f", about {duration(max(1, seconds))} for each plan" if seconds else ""
    asked = st.checkbox(
        f"Let every plan continue {len(SAMPLE_PROMPTS)} prompts{time}",
        True,
        key="preview_answers",
        help="Comes last, when all plans are found. You can cancel it and keep what is there.",
    )
    return [] if asked else ["--no-answers"]


def search_controls(experiment: Experiment, rule: str, low: float, threshold: float, path: ThresholdPath) -> None:
    """How much of the path and of its plans' answers is there, and the button to compute more."""
    arguments = ["search", experiment.name, "--rule", rule, "--from", f"{low:g}", "--focus", str(threshold)]
    covered = path.covered()
    if not experiment.state().active and covered == 0:
        if doubt := outdated_path(experiment, rule):
            st.warning(f"The saved path for this rule is not shown because {doubt}. The next search recomputes it.")
        st.info(
            "This rule has not been searched yet. One search finds the plan for every threshold, starting with this "
            "one. With 30 layers and 10 × 128 tokens it takes a few minutes on a CPU."
        )
    elif not experiment.state().active and covered < 0.999:
        st.info(f"{covered:.0%} of the thresholds from {path.low:g} up are computed. The shaded ones are not.")
    elif not experiment.state().active:
        st.info("Not every plan of this path has been asked yet to continue the prompts.")
    if not experiment.state().active:
        arguments += answers_controls(experiment)
    if not experiment.state().active and st.button(
        "Search", type="primary", disabled=experiment.read_only, key="preview_search"
    ):
        start(experiment, "search", arguments)
        st.rerun()
    if not by_planner(experiment):
        files = (f"path/{rule}.json", f"answers/{rule}.json")
        job_panel(experiment, version=lambda: sum(map(experiment.changed, files)))
    command_line(*arguments)


def by_planner(experiment: Experiment) -> bool:
    """Whether the experiment's job is, or was, another method's search."""
    return "--planner" in experiment.state().command


def show_planned(data: dict[str, Any]) -> None:
    """A planner's windows and rule in place of the threshold's."""
    st.session_state[hand_key(experiment)] = ",".join(f"{first}-{last}" for first, last in data["windows"])
    st.session_state["rule"] = data["rule"]


def other_methods(experiment: Experiment) -> None:
    """Another method's choice of layers: computed in a job, shown like windows set by hand."""
    with st.expander("Let another method choose the layers", expanded=by_planner(experiment)):
        inputs = st.columns([2, 1, 3], gap="large", vertical_alignment="bottom")
        planner = inputs[0].selectbox(
            "Method",
            list(PLANNERS),
            format_func=lambda name: PLANNERS[name].title,
            key="preview_planner",
            help="Each method finds a plan with the number of layers you choose.",
        )
        most = experiment.layer_count
        layers = inputs[1].number_input("Layers left", 2, most, max(2, round(0.8 * most)), key="preview_planner_layers")
        st.caption(as_sentence(PLANNERS[planner].help))
        arguments = ["plan", experiment.name, "--planner", planner, "--layers", str(layers)]
        planned = experiment.planned(planner, layers)
        if planned:
            windows = ", ".join(f"{first}-{last}" for first, last in planned["windows"])
            st.markdown(
                f"Windows {windows or 'none'} with rule {MERGE_RULES[planned['rule']].title}: perplexity "
                f"{planned['perplexity']:,.1f} on the calibration text; the original has "
                f"{planned['perplexity_original']:,.1f}."
            )
            if MERGE_RULES[planned["rule"]].needs_text:
                st.caption(
                    "Perplexity of a quick fit, for comparing plans. The merged model is fitted on more text and "
                    "scores better."
                )
            st.button("Show these windows", on_click=show_planned, args=(planned,), key="preview_show_planned")
        elif not experiment.state().active and st.button(
            "Find a plan", disabled=experiment.read_only, key="preview_find_planned"
        ):
            start(experiment, "plan", arguments)
            st.rerun()
        if by_planner(experiment):
            job_panel(experiment)
        command_line(*arguments)


experiment = require_experiment(
    start_page("Preview", "See which neighbouring layers merge at the similarity threshold you choose.")
)
caption(experiment)
st.session_state.setdefault("preview_threshold", number_from_address("threshold", DEFAULT_THRESHOLD, 0.0001, 1.0))
controls = st.columns([2, 1.3, 4], gap="large", vertical_alignment="bottom")
rule = controls[0].selectbox(
    "Merge rule",
    list(MERGE_RULES),
    format_func=lambda name: MERGE_RULES[name].title,
    key="rule",
    bind="query-params",
    persist_state="session",
    help="How the layers of a window become one layer.",
)

with shown_errors():
    path, view = path_and_view(experiment, rule)
    depths = sorted({plan["left"] for plan in view["plans"]}, reverse=True)
    if path.covered() < 0.999:
        depths = [depth for depth in depths if path.knows_all_with(depth)]
    depth = controls[1].selectbox(
        "Layers",
        [ANY, *depths],
        key="preview_depth",
        on_change=take_depth,
        help="Instead of a threshold. Of all plans with this many layers, shows the one with the lowest perplexity.",
    )
    if depth in depths:
        st.session_state["preview_threshold"] = path.plan_with_layers(depth).threshold
    threshold = st.session_state["preview_threshold"]
    st.query_params["threshold"] = str(threshold)  # not rounded: an interval can end anywhere
    facts, cost = experiment.model_facts, experiment.cost()
    by_hand = st.session_state.get(hand_key(experiment))
    plan, hand, similarity = MergePlan(experiment.layer_count, (), rule), None, None
    if by_hand is not None:
        plan = MergePlan(experiment.layer_count, parse_windows(by_hand), rule)
        similarity = known_similarity(path, plan)
        hand = plan_view(plan, facts, cost, path.perplexities, similarity, kept_answers(experiment, rule))
    empty = plan_view(MergePlan(experiment.layer_count, (), rule), facts, cost)
    view = {**view, "name": f"{experiment.name} {rule}", "threshold": threshold, "hand": hand, "empty": empty}
    live_preview(view, "preview_live", take_threshold, take_windows)
    covered = path.covered()
    step = path.plan_at(threshold)
    unasked = not experiment.read_only and any(plan["answers"] is None for plan in view["plans"])
    if hand is None and (covered < 0.999 or step is None or unasked):
        search_controls(experiment, rule, min(path.low, threshold), threshold, path)

with shown_errors():
    other_methods(experiment)
if hand is not None:
    arguments = ["plan", experiment.name, *windows_arguments(str(by_hand)), "--rule", rule]
    if similarity is None or plan.windows not in path.perplexities:
        with shown_errors():
            st.caption("The search did not try these windows, so their similarity or perplexity is not known yet.")
            idle = not experiment.state().active
            if idle and st.button("Measure these windows", disabled=experiment.read_only, key="preview_measure"):
                start(experiment, "plan", arguments)
                st.rerun()
            if not by_planner(experiment):
                job_panel(experiment)
    command_line(*arguments)
    if plan.windows:
        next_step("pages/run.py", "Merge these windows", run="new run", windows=str(by_hand), merge_by=rule)
    st.stop()
if step is None:
    st.stop()

plan = step.plan
if path.scoring != "exact":
    st.caption(
        f"Similarities were computed in {path.scoring}; where checked, they are off by up to {path.difference:.1g}."
    )
if not plan.windows:
    st.info("No neighbouring layers are this similar. Lower the threshold to merge some.")
left, right = st.columns(2, gap="large")
with left:
    st.subheader("Every window tried", anchor=False)
    st.plotly_chart(trace_chart(step), key="preview_trace")
    st.caption("A window grows downward as long as its similarity stays on or above the line.")
with right:
    st.subheader("The same as a table", anchor=False)
    st.dataframe(
        trace_table(step),
        hide_index=True,
        height=320,
        column_config={"similarity": st.column_config.NumberColumn(format="%.4f")},
    )
metrics = experiment.metrics_measured()
if metrics:
    with st.expander("Windows on the similarity heat map"):
        matrix = experiment.similarity(metrics[0])["matrix"]
        st.plotly_chart(similarity_heatmap(matrix, metrics[0], plan.windows), key="preview_map")
st.caption(
    "A lower threshold does not always leave fewer layers, because windows can then grow differently. And similarity "
    "of the final hidden states is a weak guide to quality: a plan with a high similarity can still have a poor "
    "perplexity. Evaluate a run before you trust its plan."
)
command_line("plan", experiment.name, "--threshold", str(threshold), "--rule", rule, "--json")
next_step("pages/run.py", "Merge these layers", run="new run", merge_at=str(threshold), merge_by=rule)
