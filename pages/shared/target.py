"""Preview's second door: a plan for a target, found by any method."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from pages.shared.choices import named_choice, titles_of
from pages.shared.fields import number
from pages.shared.frame import job_panel, start_button
from pages.shared.live import hand_key
from pages.shared.plain import plain
from swm.errors import PlanError
from swm.plan import MergePlan
from swm.registry import ABILITIES, MERGE_RULES, PLANNERS, as_sentence
from swm.reporting.abilities import GROUP_TITLES, kept_sentence
from swm.reporting.finalists import finalists_sentence, halves_sentence, text_matters
from swm.reporting.names import text_name
from swm.reporting.preview import WITHIN
from swm.search.known_target import Found, Known, planned_with, planned_within, walk_with, walk_within
from swm.settings import CACHE_TOKENS, FIT_TOKENS, KEPT_REQUESTS
from swm.texts.ability_names import whole_keep
from swm.texts.requests import kept_requests
from swm.workspace.estimate import ability_tokens, about, path_seconds, planner_seconds
from swm.workspace.experiments import Experiment
from swm.workspace.targets import (
    LAYERS,
    LEAST_LAYERS,
    LOSS,
    MEMORY,
    PARAMETERS,
    SPEED,
    cache_bytes,
    meets,
    most_layers,
    weights_bytes,
)

KINDS = {
    LAYERS: "number of layers",
    MEMORY: "memory, MiB",
    PARAMETERS: "parameters, millions",
    SPEED: "speed, times the original's",
    LOSS: "perplexity, times the original's",
}
OPTIONS = {  # of the command line, and the unit there
    LAYERS: ("--layers", ""),
    MEMORY: ("--memory", "MiB"),
    PARAMETERS: ("--parameters", "M"),
    SPEED: ("--speedup", ""),
    LOSS: ("--within", ""),
}
UNITS = {MEMORY: 2.0**20, PARAMETERS: 1e6}
WALK = "walk"
KEEP = "Only plans that llama.cpp can run"
DOORS = {"threshold": "by a similarity threshold", "target": "for a target"}


def target_plan(experiment: Experiment) -> tuple[Found | None, list[str]]:
    """The controls of the target, its plan (None while it has not been found), and the command that finds it."""
    inputs = st.columns([2.2, 1.3, 2.6], gap="large", vertical_alignment="bottom")
    kind = named_choice(
        inputs[0].selectbox,
        "The smaller model's target",
        KINDS,
        "target_kind",
        on_change=forget_edits,
        args=(experiment,),
        help=f"Perplexity is of the calibration text ({text_name(experiment.settings.texts)}), before healing.",
    )
    value = _value(inputs[1], experiment, kind)
    titles = {**titles_of(PLANNERS), WALK: "Sliding windows (the paper's search)"}
    method = named_choice(
        inputs[2].selectbox,
        "Method that chooses the layers",
        {name: f"{title}{_short_time(experiment, name)}" for name, title in titles.items()},
        "target_method",
        on_change=forget_edits,
        args=(experiment,),
    )
    st.caption(as_sentence(PLANNERS[method].help) if method in PLANNERS else "Merges where the output changes least.")
    kinds = experiment.model_facts.get("layer_kinds")
    keep = bool(kinds) and method in PLANNERS and kind != LOSS and _keeps_period(experiment)
    abilities = _kept(experiment) if method in PLANNERS and PLANNERS[method].keeps else []
    layers = None if kind == LOSS else layers_for(experiment, kind, value)
    if kind != LOSS and layers is None:
        st.warning(_cannot(experiment, kind))
        return None, []
    if layers == experiment.layer_count:
        st.info("The original already meets this target: nothing to merge.")
        return None, []
    if layers and kind != LAYERS:
        fits = _fits(experiment, layers, value) if kind == MEMORY else ""
        st.caption(f"At most {layers} of {experiment.layer_count} layers meet this target.{fits}")
    arguments = ["plan", experiment.name, *(["--planner", method] if method in PLANNERS else [])]
    arguments += [OPTIONS[kind][0], f"{value:.10g}{OPTIONS[kind][1]}", *(["--keep-period"] if keep else [])]
    arguments += ["--keep", ",".join(abilities)] if abilities else []
    found, missing = _known(experiment, kind, method, value, layers, arguments)
    _say_missing(experiment, method, layers, arguments, found, missing)
    return found, arguments


def _say_missing(
    experiment: Experiment, method: str, layers: int | None, arguments: list[str], found: Found | None, missing: str
) -> None:
    """What is not known of the target's plan, the button that searches it, and the job that does."""
    state = experiment.state()
    if not missing and found is None:
        st.info("This method finds no such plan. Choose another target or method.")
    if found and layers and found.plan.layers_left < layers:
        st.caption(f"This method has no plan with more than {found.plan.layers_left} layers that meets the target.")
    if missing and not state.active:
        st.info(missing)
        kept = whole_keep(arguments[-1]).count("=") if "--keep" in arguments else 0
        st.caption(_time(experiment, method, layers, kept))
        start_button("Find the plan", experiment, "plan", arguments, "target_find")
    elif missing and state.stage != "plan":
        st.caption("Another job of this experiment runs. The search can start when it has ended.")
    if state.active or missing:
        job_panel(experiment, version=lambda: len(experiment.plans_found()))


def _known(
    experiment: Experiment, kind: str, method: str, value: float, layers: int | None, arguments: list[str]
) -> Known:
    """The target's plan as far as it is known, and what is missing; `arguments` of the command that searches it."""
    walked, keep, state = method not in PLANNERS, "--keep-period" in arguments, experiment.state()
    kept = whole_keep(arguments[arguments.index("--keep") + 1]) if "--keep" in arguments else ""
    if layers is None:
        return walk_within(experiment, value) if walked else planned_within(experiment, method, value, keep, kept)
    serves = partial(meets, experiment.model_facts, kind, value * UNITS.get(kind, 1.0))
    answered = state.status == "done" and list(state.command) == arguments  # by the search that was asked for
    fewest = LEAST_LAYERS if kind != LAYERS and (walked or answered) else layers
    counts = range(layers, fewest - 1, -1)
    return (
        walk_with(experiment, counts, serves)
        if walked
        else planned_with(experiment, method, counts, keep, serves, kept)
    )


def _time(experiment: Experiment, method: str, layers: int | None, kept: int) -> str:
    """How long the search will take; it reads the requests of `kept` abilities, if any, instead of the text."""
    facts, cost = experiment.model_facts, experiment.cost()
    tokens = ability_tokens(kept, KEPT_REQUESTS) if kept else experiment.settings.token_count
    if method not in PLANNERS:
        seconds = path_seconds(facts, cost, tokens)
        return f"The search takes {about(seconds)}." if seconds else ""
    if PLANNERS[method].tokens_read is None:
        return "How long this method searches depends on the model: minutes, or an hour for a large model on a CPU."
    seconds = planner_seconds(facts, cost, tokens, method, layers or round(0.8 * facts["layers"]))
    if not seconds:
        return ""
    tries = 2 * (facts["layers"] // 5).bit_length()
    many = f" for each number of layers that it tries, about {tries} of them" if layers is None else ""
    return f"The search takes {about(seconds)}{many}."


def _short_time(experiment: Experiment, method: str) -> str:
    """How long a method takes for a plan of four fifths of the layers, as in " · 2 to 3 min", to compare methods by."""
    facts, cost, tokens = experiment.model_facts, experiment.cost(), experiment.settings.token_count
    seconds = (
        planner_seconds(facts, cost, tokens, method, round(0.8 * facts["layers"]))
        if method in PLANNERS
        else path_seconds(facts, cost, tokens)
    )
    return f" · {about(seconds)}" if seconds else ""


def forget_edits(experiment: Experiment) -> None:
    """Drop windows set by hand, so that what is chosen above counts."""
    st.session_state.pop(hand_key(experiment), None)


def _value(place: Any, experiment: Experiment, kind: str) -> float:
    """The target's number, with a default a fifth below the original."""
    count, mib, millions = experiment.layer_count, _memory_now(experiment), experiment.model_facts["parameters"] / 1e6
    settings: dict[str, Any] = {
        LAYERS: {"low": 2, "high": count, "default": max(2, round(0.8 * count)), "step": 1},
        MEMORY: {
            "low": 1.0,
            "high": 2.0**30,
            "default": float(round(0.8 * mib)),
            "step": max(1.0, float(round(mib / 50))),
            "format": "%.0f",
        },
        PARAMETERS: {
            "low": 0.01,
            "high": 2.0**30,
            "default": float(round(0.85 * millions, 1)),
            "step": max(0.1, float(round(millions / 50, 1))),
            "format": "%.1f",
        },
        SPEED: {"low": 1.0, "high": 20.0, "default": 1.2, "step": 0.05},
        LOSS: {"low": 1.01, "high": 100.0, "default": WITHIN, "step": 0.05},
    }
    label = "At least" if kind == SPEED else "At most"
    key = f"target_{kind}_{experiment.name}"
    entered = number(
        label,
        **settings[kind],
        place=place,
        key=key,
        bind="query-params",
        persist_state="session",
        on_change=forget_edits,
        args=(experiment,),
        help=_memory_help(experiment, mib) if kind == MEMORY else None,
    )
    return float(entered)


def layers_for(experiment: Experiment, kind: str, value: float) -> int | None:
    """The most layers that meet a target; None if two layers do not, or speed was not measured."""
    return most_layers(experiment.model_facts, kind, value * UNITS.get(kind, 1.0), experiment.cost())


def _memory_help(experiment: Experiment, mib: float) -> str:
    cached = f"Weights, and the keys and values of {CACHE_TOKENS:,} tokens"
    return f"{cached if experiment.model_facts.get('cache_bytes_per_token') else 'Weights'}. Now: {mib:,.0f} MiB."


def _memory_now(experiment: Experiment) -> float:
    return _mib(experiment, experiment.layer_count)


def _mib(experiment: Experiment, layers: int) -> float:
    """Weights and cache of a model with so many layers, in MiB."""
    facts = experiment.model_facts
    return (weights_bytes(facts, layers) + cache_bytes(facts, layers, CACHE_TOKENS)) / 2**20


def _fits(experiment: Experiment, layers: int, limit: float) -> str:
    """What the memory of that many layers is made of, beside its limit in MiB."""
    weights = weights_bytes(experiment.model_facts, layers) / 2**20
    cache = _mib(experiment, layers) - weights
    cached = f", keys and values of {CACHE_TOKENS:,} tokens {cache:,.0f} MiB" if cache else ""
    return (
        f" Their weights take {weights:,.0f} MiB{cached}: {weights + cache:,.0f} of at most {limit:,.0f} MiB. "
        f"The original takes {_memory_now(experiment):,.0f} MiB. For other lengths: `swm plan --memory --cache-tokens`."
    )


def _cannot(experiment: Experiment, kind: str) -> str:
    if kind == SPEED and not experiment.cost():
        return "The original's speed is not known yet. Measure the similarity of its layers first: that times it, too."
    return f"Not even two layers meet this target. Choose a smaller model{' or a lower precision' * (kind == MEMORY)}."


def _kept(experiment: Experiment) -> list[str]:
    """Abilities that plans are judged by instead of by perplexity."""
    titles = {name: f"all of {group.lower()}" for name, group in GROUP_TITLES.items() if name != "own"}
    titles |= {name: each.title for name, each in ABILITIES.items()}
    titles |= {str(path): path.name for path in kept_requests()}
    chosen: list[str] = st.multiselect(
        "Keep",
        list(titles),
        format_func=lambda name: titles.get(name, name),
        key="target_abilities",
        placeholder="what the smaller model has to do; empty: judged by perplexity",
        on_change=forget_edits,
        args=(experiment,),
        help="The method then judges each plan by how much worse its model answers these requests. What it gives up "
        "is measured on other requests.",
    )
    return chosen


def _keeps_period(experiment: Experiment) -> bool:
    """The choice to find only plans that llama.cpp can run."""
    return st.checkbox(
        KEEP,
        key="target_keep",
        bind="query-params",
        on_change=forget_edits,
        args=(experiment,),
        help="llama.cpp takes each layer's kind of attention or positions from its place, so only some layers can go.",
    )


def lost_layers(experiment: Experiment, plan: MergePlan) -> str:
    """What a plan takes from the model that it needs to write text, as Markdown; empty if nothing."""
    try:
        experiment.check_keeps(plan)
    except PlanError as error:
        return plain(str(error))
    return ""


def plan_notes(experiment: Experiment, plan: MergePlan) -> None:
    """What to know about a plan before it is merged: where it cannot run, and how its perplexity was measured."""
    if lost := lost_layers(experiment, plan):
        st.warning(lost)
    if broken := plan.out_of_place(experiment.model_facts.get("layer_kinds") or ()):
        some = ", ".join(map(str, broken[:6])) + (", …" if len(broken) > 6 else "")
        st.caption(
            f"llama.cpp cannot run this plan: it takes a layer's kind from its place, and layers {some} of the smaller "
            f"model would be of another kind. Choose **{DOORS['target']}** and **{KEEP}** above for others."
        )
    saved = [data for data in experiment.plans_found() if MergePlan.from_dict(data) == plan]
    for data in saved:
        if said := kept_sentence(data):
            st.markdown(f"**{plain(said)}**")
        if said := finalists_sentence(data.get("finalists")):
            st.caption(said)
        if said := halves_sentence(data):
            (st.warning if text_matters(data) else st.caption)(said)
    if MERGE_RULES[plan.rule].needs_text:
        full = any(data.get("fitted_in_full") for data in saved)
        st.caption(
            f"{'Words' if full else 'Perplexity and words'} are of merged layers made from little text. The merged "
            f"model takes {FIT_TOKENS:,} tokens, so {'they' if full else 'its numbers'} differ."
        )
