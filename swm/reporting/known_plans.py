"""Every plan of an experiment whose perplexity is known, for one chart: what its size and speed cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from swm.errors import PlanError
from swm.plan import DEFAULT_RULE, MergePlan, Window, dropped_plan
from swm.registry import MERGE_RULES
from swm.reporting.charts import LINE, log_axis, plain_axes
from swm.reporting.glossary import method_name
from swm.reporting.names import text_name
from swm.reporting.palette import method_colour
from swm.reporting.preview import expected_speedup
from swm.search.kept_path import kept_path
from swm.search.tried import RISE, SAMPLED, TriedPlans
from swm.workspace.experiments import Experiment
from swm.workspace.targets import weights_of

ORIGINAL = "original"
MOST_LOSS = 50.0  # nats: more is as bad
BY_MEMORY, BY_SPEED = "weights, MiB", "expected speed, times the original's"


@dataclass(frozen=True)
class KnownPlan:
    """A plan whose perplexity on the calibration text is known.

    Attributes:
        method: the planner, the merge rule of a search, or ORIGINAL.
        memory: of the weights, bytes. speed: expected, relative to the original; None if not timed.
        perplexity: before healing. estimated: from a sample of the vocabulary.
        best: whether no other plan is at least as good in both numbers of the chart and better in one.
    """

    method: str
    plan: MergePlan
    memory: float
    speed: float | None
    perplexity: float
    estimated: bool = False
    best: bool = False


def known_plans(experiment: Experiment) -> list[KnownPlan]:
    """The original, every plan that a planner found, and every plan on the paths, each once.

    A search by `best` for few layers passes through all depths above: the best plan it tried at each is there as well.
    """
    facts, cost = experiment.model_facts, experiment.cost()
    found: dict[tuple[str, tuple[Window, ...]], KnownPlan] = {}

    def add(method: str, plan: MergePlan, perplexity: float, estimated: bool = False) -> None:
        memory = weights_of(facts, plan)
        key = (plan.rule if plan.windows else "", plan.windows)
        method = method if plan.windows else ORIGINAL  # a study's cells may leave all layers
        found.setdefault(key, KnownPlan(method, plan, memory, expected_speedup(plan, cost), perplexity, estimated))

    for data in experiment.plans_found():
        add(data["planner"], MergePlan.from_dict(data), data["perplexity"])
    for rule in experiment.rules_searched():
        if path := kept_path(experiment, rule):
            for windows, perplexity in path.perplexities.items():
                plan = MergePlan(path.layer_count, windows, rule)
                add(rule if windows else ORIGINAL, plan, perplexity)
    for plan, loss, estimated in best_tried(experiment):
        add("best", plan, math.exp(min(loss, MOST_LOSS)), estimated)
    return list(found.values())


def chosen_sentence(experiment: Experiment, plan: MergePlan) -> str:
    """What chose a plan's layers, beside the paper's search with as many; empty if one of them was not measured."""
    plans = known_plans(experiment)
    original = next((each.perplexity for each in plans if each.method == ORIGINAL), None)
    own = next((each for each in plans if (each.plan.windows, each.plan.rule) == (plan.windows, plan.rule)), None)
    path, paper = kept_path(experiment, DEFAULT_RULE), None
    with suppress(PlanError):
        paper = path.plan_with_layers(plan.layers_left).perplexity if path else None
    if not (original and own and plan.windows):
        return ""
    lost = f"{own.perplexity / original:,.2f}"
    text = f"on the calibration text ({text_name(experiment.settings.texts)})"
    if own.method == DEFAULT_RULE:
        return f"Layers chosen and merged as in the paper. Before healing: {lost} times the perplexity {text}."
    beside = f"; the paper's search and formula, with as many layers: {paper / original:,.2f} times" if paper else ""
    return (
        f"Layers chosen by {method_name(own.method)}, not by the paper's search. Before healing: {lost} times the "
        f"perplexity {text}{beside}."
    )


def best_tried(experiment: Experiment) -> list[tuple[MergePlan, float, bool]]:
    """For each number of layers, the fitted plan of lowest loss that was tried, its loss, and whether it is estimated.

    Estimated losses count only where nothing else is known of that number of layers.
    """
    found: dict[int, tuple[bool, float, list[int], str]] = {}
    for kind, losses in TriedPlans(experiment).losses.items():
        rule = kind.split(" ")[0].rstrip(",")
        for layers, loss in losses.items() if rule in MERGE_RULES and RISE not in kind else ():
            if layers <= {*range(1, experiment.layer_count)}:
                one = (SAMPLED in kind, loss, sorted(layers), rule)
                found[len(layers)] = min(found.get(len(layers), one), one)
    return [
        (replace(dropped_plan(experiment.layer_count, layers), rule=rule), loss, estimated)
        for estimated, loss, layers, rule in found.values()
    ]


def with_front(plans: Sequence[KnownPlan], by: str) -> list[KnownPlan]:
    """The plans that the chart can show, with those marked that no other beats; smallest or fastest first."""
    shown = [plan for plan in plans if by == BY_MEMORY or plan.speed]
    ordered = sorted(shown, key=lambda plan: (_x(plan, by) * (1 if by == BY_MEMORY else -1), plan.perplexity))
    marked, lowest = [], float("inf")
    for plan in ordered:
        marked.append(replace(plan, best=plan.perplexity < lowest))
        lowest = min(lowest, plan.perplexity)
    return marked


def _x(plan: KnownPlan, by: str) -> float:
    return plan.memory / 2**20 if by == BY_MEMORY else float(plan.speed or 0.0)


def plans_chart(plans: Sequence[KnownPlan], by: str, within: float, text: str) -> go.Figure:
    """Perplexity (logarithmic) against memory or speed: a point for each plan, a line through those no other beats.

    Args:
        plans: as from `with_front`. within: factor of the original's perplexity at which a line is drawn.
    """
    figure = go.Figure()
    front = [plan for plan in plans if plan.best]
    figure.add_scatter(
        x=[_x(plan, by) for plan in front],
        y=[plan.perplexity for plan in front],
        mode="lines",
        line={"color": LINE, "dash": "dot"},
        name="no plan is better in both",
        hoverinfo="skip",
    )
    for method in sorted({plan.method for plan in plans}, key=lambda name: (name != ORIGINAL, name)):
        _add_points(figure, method, [plan for plan in plans if plan.method == method], by)
    if original := next((plan for plan in plans if plan.method == ORIGINAL), None):
        allowed = within * original.perplexity
        figure.add_hline(y=allowed, line={"color": LINE, "width": 1, "dash": "dash"})
        place = {"x": 0.0, "xref": "paper", "xanchor": "left", "y": math.log10(allowed), "yanchor": "bottom"}
        figure.add_annotation(text=f"× {within:g}", showarrow=False, **place)  # a logarithmic axis wants the logarithm
    plain_axes(figure, by, f"perplexity, {text}, before healing", 420, legend=True)
    log_axis(figure, min((plan.perplexity for plan in plans), default=None))
    return figure.update_layout(clickmode="event+select", dragmode=False)


def _add_points(figure: go.Figure, method: str, plans: Sequence[KnownPlan], by: str) -> None:
    """A point for each of a method's plans."""
    figure.add_scatter(
        x=[_x(plan, by) for plan in plans],
        y=[plan.perplexity for plan in plans],
        mode="markers",
        name=method_name(method),
        marker={
            "color": method_colour(method),
            "size": [11 if plan.best else 7 for plan in plans],
            "opacity": [1 if plan.best else 0.45 for plan in plans],
            "symbol": "diamond" if method == ORIGINAL else "circle",
        },
        customdata=[
            (
                ",".join(map(str, plan.plan.windows)),
                plan.plan.rule,
                plan.plan.layers_left,
                "about " if plan.estimated else "",
            )
            for plan in plans
        ],
        hovertemplate="%{customdata[2]} layers: perplexity %{customdata[3]}%{y:,.1f}<br>windows %{customdata[0]}"
        f"<extra>{method_name(method)}</extra>",
    )
