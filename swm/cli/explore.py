"""Commands that inspect models and experiments: models, list, create, measure, search, plan, estimate."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

from swm.cli.plans import Result, chosen_plan, measured_plan, own_experiment, recovery_settings, windows_text
from swm.cli.watched import progress_bar, watched
from swm.disk.names import check_new, is_shipped
from swm.plan import MergePlan, Window, layers_at
from swm.progress import share_of
from swm.registry import MERGE_RULES
from swm.settings import QUICK_REQUESTS, SKIPPED_TOKENS, USUAL_REQUESTS, ExperimentSettings
from swm.similarity.measure import Measure
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.runs import BASELINE


def run_models(options: argparse.Namespace) -> Result:
    """Result of `swm models`: the bundled models and the tested families."""
    from swm.models.known import BUNDLED, TESTED_FAMILIES

    rows = {name: {"title": model.title, "licence": model.licence} for name, model in BUNDLED.items()}
    lines = [f"{name}  {model.title} ({model.licence})" for name, model in BUNDLED.items()]
    others = (
        "Also: a Hugging Face folder (config.json and .safetensors), a .gguf file, or a hub id such as "
        "meta-llama/Llama-2-7b-hf, which is downloaded the first time."
    )
    families = [f"  {name:12} {title}" for name, title in TESTED_FAMILIES.items()]
    table = ["Tested families (model_type in config.json); others may work if their structure is similar:", *families]
    return {"bundled": rows, "families": TESTED_FAMILIES}, "\n".join([*lines, others, *table])


def run_list(options: argparse.Namespace) -> Result:
    """Result of `swm list`: the experiments and their runs."""
    experiments, broken = list_experiments()
    rows: list[dict[str, Any]] = [
        {
            "experiment": e.name,
            "model": e.settings.model,
            "shipped": is_shipped(e.folder),
            "runs": [r.name for r in e.runs()],
        }
        for e in experiments
    ]
    lines = [f"{row['experiment']}  {row['model']}  runs: {', '.join(row['runs'])}" for row in rows]
    return {"experiments": rows, "broken": broken}, "\n".join([*lines, *broken])


def run_create(options: argparse.Namespace) -> Result:
    """Result of `swm create`: the new experiment."""
    check_new(options.exp)
    settings = ExperimentSettings(
        options.model, options.texts, options.count, options.length, options.seed, options.dtype
    )
    from swm.stages.create import create_experiment  # heavy: only once the name is known to be good

    with progress_bar("create") as progress:
        experiment = create_experiment(options.exp, settings, progress)
    if options.measure:
        from swm.stages.first_look import first_look

        with watched(experiment, "measure") as progress:
            first_look(experiment, _measures(Measure()), progress)
    facts = experiment.model_facts
    text = (
        f"Created {experiment.name}: {facts['architecture']}, {facts['layers']} layers, "
        f"{facts['parameters'] / 1e6:,.1f} M parameters.\nNext: python -m swm "
        + (f"search {experiment.name}" if options.measure else f"measure {experiment.name}")
    )
    return {"experiment": experiment.name, "folder": str(experiment.folder), "model": facts}, text


def run_measure(options: argparse.Namespace) -> Result:
    """Result of `swm measure`: the similarity of all layer pairs; as text, that of neighbours."""
    how = Measure(options.metric, options.part, options.samples, options.skip or 0, options.texts)
    data = _measured(own_experiment(options.exp), _measures(how) if options.skip is None else [how])
    matrix = data["matrix"]
    lines = [f"{data['metric']} similarity of neighbouring layers, {data['tokens']} tokens"]
    lines += [f"{i:3d} - {i + 1:<3d} {matrix[i][i + 1]:.4f}" for i in range(len(matrix) - 1)]
    return data, "\n".join([*lines, *filter(None, [data["warning"]])])


def _measures(how: Measure) -> list[Measure]:
    """Without the first tokens, then with them to compare."""
    return [replace(how, skip_tokens=SKIPPED_TOKENS), how]


def _measured(experiment: Experiment, measures: list[Measure]) -> dict[str, Any]:
    """What the first measure gives, after all of them were measured."""
    from swm.stages.loading import load_original
    from swm.stages.measure import measure_experiment

    with watched(experiment, "measure") as progress:
        progress(0, 0, "loading the model")
        loaded = load_original(experiment, offload=True)
        first, *_ = [measure_experiment(experiment, measure, progress, loaded) for measure in measures]
        return first


def run_abilities(options: argparse.Namespace) -> Result:
    """Result of `swm abilities`: what each layer does, or what a run lost against the original."""
    from swm.reporting.abilities import ability_map, conclusion, is_clear, percent, profile, verdict
    from swm.stages.abilities import map_abilities, profile_run
    from swm.texts.ability_names import chosen_abilities
    from swm.texts.requests import ability_title

    experiment = own_experiment(options.exp)
    names = chosen_abilities(options.abilities)
    usual = QUICK_REQUESTS if options.abilities == "quick" else USUAL_REQUESTS
    count = usual if options.requests is None else options.requests
    if options.run:
        run, original = experiment.run(options.run), experiment.run(BASELINE)
        with watched(run, "abilities") as progress:
            before = profile_run(original, names, count, share_of(progress, 0, 0.5))
            after = profile_run(run, names, count, share_of(progress, 0.5, 1))
        rises = profile(before, after)
        lines = [f"{ability_title(name):20} {percent(rise)}" for name, rise in rises.items()]
        lines.append("Rise in bits per byte of the right answer against the original, with 95 % intervals.")
        return {"run": run.name, "rises": rises}, "\n".join([*lines, *filter(None, [verdict(rises)])])
    with watched(experiment, "abilities") as progress:
        data = map_abilities(experiment, names, count, progress, parts=options.parts, precision=options.precision)
    found = ability_map(data, experiment.layer_count)
    lines = [f"{'without layer':20} " + " ".join(f"{layer:>4}" for layer in range(found.layers))]
    for name in found.abilities:
        values = (f"{100 * rise['value']:+.0f}" if is_clear(rise) else "·" for rise in found.rises[name])
        lines.append(f"{ability_title(name):20} " + " ".join(f"{value:>4}" for value in values))
    lines.append("Rise in bits per byte of the right answer, in %; a dot where the 95 % interval contains 0.")
    result = {"rises": found.rises, "requests": found.requests, "conclusion": conclusion(found)}
    return result, "\n".join([*lines, *filter(None, [conclusion(found)])])


def run_search(options: argparse.Namespace) -> Result:
    """Result of `swm search`: the plan for every interval of thresholds."""
    from swm.stages.search import search_path

    experiment = own_experiment(options.exp)
    with watched(experiment, "search") as progress:
        path = search_path(
            experiment, options.rule, options.low, options.focus, progress, options.precision, answers=options.answers
        )
    steps = path.intervals()
    lines = ["threshold above   up to     layers  similarity  windows"]
    lines += [
        f"{s.low:15.4f} {s.high:7.4f} {s.plan.layers_left:10d} {s.similarity:11.4f}  {windows_text(s.plan)}"
        for s in steps
    ]
    lines.append(f"{len(path.similarities)} windows tried, with {path.layer_runs:,.0f} layer runs")
    if path.layer_count <= 2:
        lines.append(
            "The last layer is never merged, so two layers leave no window to try. Merge by hand: --windows 0-1."
        )
    if path.scoring != "exact":
        lines.append(f"similarities computed in {path.scoring}; where checked, off by up to {path.difference:.1g}")
    data = {
        "rule": path.rule,
        "windows_tried": len(path.similarities),
        "layer_runs": round(path.layer_runs, 1),
        "scoring": path.scoring,
        "difference": path.difference,
        "plans": [step.to_dict() for step in steps],
    }
    return data, "\n".join(lines)


def run_plan(options: argparse.Namespace) -> Result:
    """Result of `swm plan`: a plan, and its similarity and perplexity where known."""
    experiment = Experiment.open(options.exp)
    if options.windows is not None or options.planner:
        data = measured_plan(experiment, options)
        from swm.reporting.abilities import kept_sentence
        from swm.reporting.finalists import finalists_sentence, halves_sentence

        plan = MergePlan.from_dict(data)
        text = (
            f"{plan.layers_left} of {plan.layer_count} layers; windows {windows_text(plan)}; rule {plan.rule}; "
            f"similarity {data['similarity']:.4f}; perplexity {data['perplexity']:,.1f} on the calibration text "
            f"(original: {data['perplexity_original']:,.1f})."
        )
        if MERGE_RULES[plan.rule].needs_text and plan.windows and not data.get("fitted_in_full"):
            text += " Layers are fitted quickly for that; merging fits them on more text, so its model differs."
        said = (finalists_sentence(data.get("finalists")), halves_sentence(data), kept_sentence(data))
        return data, " ".join(filter(None, [text, *said]))
    step = chosen_plan(experiment, options)
    text = (
        f"{step.plan.layers_left} of {step.plan.layer_count} layers; windows {windows_text(step.plan)}; similarity "
        f"{step.similarity:.4f}; valid for thresholds above {step.low:.4f} and up to {step.high:.4f}"
    )
    if step.perplexity is not None:
        text += f"; perplexity {step.perplexity:,.1f} on the calibration text"
    return step.to_dict(), text


def run_estimate(options: argparse.Namespace) -> Result:
    """Result of `swm estimate`: memory, disk space and time of each stage."""
    from swm.disk.machine import free_memory_bytes
    from swm.evaluation.cost import config_cost
    from swm.models.load import config_facts
    from swm.workspace.estimate import about, stage_needs
    from swm.workspace.units import gib

    facts = config_facts(options.m, options.dtype)
    dropped = facts["layers"] - layers_at(options.ratio, facts["layers"])
    plan = MergePlan(facts["layers"], (Window(0, dropped),) if dropped else ())
    cost = None if options.untimed else config_cost(options.m, options.dtype)
    tokens = options.count * options.length_of_texts
    needs = stage_needs(facts, cost, plan, recovery_settings(options), options.limit, tokens)
    lines = [
        f"{facts['architecture']}: {facts['layers']} layers, {facts['parameters'] / 1e9:,.3f} billion parameters, "
        f"{gib(facts['size_bytes'])} in {facts['dtype']}. This machine has {gib(free_memory_bytes())} of free memory.",
        f"{'stage':22} {'memory':>10} {'disk':>10} {'time here':>14}",
    ]
    for need in needs:
        time = "–" if need.seconds is None else about(need.seconds)
        lines.append(f"{need.stage:22} {gib(need.memory_bytes):>10} {gib(need.disk_bytes):>10} {time:>14}")
    lines.append("Add 0.7 GiB of memory for the program. Times assume that the model fits into memory.")
    return {"model": facts, "cost": cost, "stages": [asdict(need) for need in needs]}, "\n".join(lines)
