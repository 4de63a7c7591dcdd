"""One self-contained HTML page for stakeholders."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from swm import __version__
from swm.disk.files import disk_errors, replace_file
from swm.errors import ExperimentError, printable
from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB, Paired, paired
from swm.reporting.abilities import Rise, is_clear, lost_words, profile_of
from swm.reporting.commands import commands
from swm.reporting.compare import compare, documents_of, flat_rows
from swm.reporting.figures import cost_lines, lines
from swm.reporting.glossary import TERMS, TITLES
from swm.reporting.headline import headline
from swm.reporting.html import template_environment
from swm.reporting.judged import judged_over_seeds
from swm.reporting.key_figures import key_figures, timed_in
from swm.reporting.names import row_name, stage_of
from swm.reporting.numbers import MISSING
from swm.reporting.pictures import Interval, intervals_picture, loss_picture, map_picture
from swm.reporting.preview import plan_view
from swm.reporting.row import Row
from swm.reporting.seeds import SEED
from swm.reporting.verdict import in_short
from swm.similarity.measure import in_words
from swm.texts.requests import ability_title
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run
from swm.workspace.units import gib

MOST_COLUMNS = 8  # more models than this are the lines of the table, not its columns


def write_report(experiment: Experiment, file: Path) -> None:
    """Write the report, which opens offline.

    Raises:
        ExperimentError: if the file cannot be written.
    """
    with disk_errors(file, 0):
        file = file.absolute().resolve()
        special = file.exists() and not file.is_file()
    if special:
        raise ExperimentError(
            f"{file} exists and is not a regular file, so it is not overwritten. Name a file, such as report.html."
        )
    replace_file(file, report_html(experiment).encode())


def report_html(experiment: Experiment) -> str:
    """The report as HTML: the result in one scroll, then tables, pictures, caveats and commands as an appendix."""
    flat = judged_over_seeds(experiment, {row.key for row in flat_rows(compare(experiment))})
    runs = [run for run in experiment.runs() if not run.is_baseline]
    return (
        template_environment()
        .get_template("report.html")
        .render(
            experiment=experiment,
            settings=experiment.settings,
            facts=experiment.model_facts,
            slide=_slide(experiment, flat),
            verdicts=[(row_name(row), str(row.verdict)) for row in flat if row.stage != "original"],
            costs_of_merging=cost_lines(flat),
            terms=[(TITLES[name], text) for name, text in TERMS.items()],
            names=[row_name(row) for row in flat],
            lines=[(label, cells) for label, cells in lines(flat) if {*cells} != {MISSING}],
            many=len(flat) > MOST_COLUMNS,
            plans=[
                (run.name, run.source, plan_view(run.plan, experiment.model_facts))
                for run in runs
                if not run.merges_nothing and SEED not in run.name
            ],
            pictures=list(_pictures(experiment, flat)),
            costs=[(run.name, cost) for run in runs if (cost := _cost(run))],
            samples=[(row_name(row), row.samples) for row in flat if row.samples],
            conditions=next((c for run in experiment.runs() if (c := (run.scores() or {}).get("conditions"))), None),
            commands=commands(experiment),
            version=__version__,
            date=time.strftime("%Y-%m-%d"),
        )
    )


def _pictures(experiment: Experiment, flat: list[Row]) -> Iterator[tuple[str, list[Markup], str]]:
    """The similarity map, and of the run on the first screen its differences and losses: title, pictures, command."""
    listed = commands(experiment)

    def command(stage: str, run: str = "") -> str:
        found = (line for line in listed if f" {stage} " in line and f" {run}" in line)
        return next(found, "")

    row = flat[headline(flat)] if len(flat) > 1 else None
    if metric := next(iter(experiment.metrics_measured()), None):
        windows = row.windows if row else ()
        outlined = f", windows of {row.run} outlined" if row and windows else ""
        title = f"Similarity of all layer pairs ({in_words(metric)}), 0 dark to 1 bright{outlined}"
        matrix = (experiment.similarity(metric) or {})["matrix"]
        yield title, [map_picture(matrix, windows)], command("measure")
    reference = next((other for other in flat if row and _is_reference(row, other)), None)
    if row and reference and row.scores and reference.scores and len(row.seeds) < 2:
        answers = documents_of(reference), documents_of(row)
        forms = ((ACCURACY, 100.0, "points"), (CHOICE_LOGPROB, 1.0, "nats"))
        found = [
            intervals_picture([_of_task(each, scale) for each in results], unit)
            for score, scale, unit in forms
            if (results := paired(*answers, score))
        ]
        title = f"{row_name(row)} compared with {row_name(reference)}: accuracy and choice log-probability"
        yield title, found, command("compare")
    if row and (rises := profile_of(row)):
        picture = intervals_picture([_of_ability(*each) for each in rises.items()], "%")
        title = f"What {row_name(row)} keeps and loses: rise in bits per byte of the right answer against the original"
        yield title, [picture], command("abilities", row.run)
    if row and row.stage == "recovered" and (picture := loss_picture(experiment.run(row.run).events())):
        title = f"Loss while healing {row.run}: training (line), held out (dots)"
        yield title, [picture], command("recover", row.run)


def _of_task(result: Paired, scale: float) -> Interval:
    value, low, high = scale * result.difference, scale * result.low, scale * result.high
    return Interval(result.task, value, low, high, result.verdict)


def _of_ability(name: str, rise: Rise) -> Interval:
    """The rise of an ability's bits, in percent."""
    value, low, high = (100 * rise[end] for end in ("value", "low", "high"))
    verdict = "" if not is_clear(rise) else "worse" if value > 0 else "better"
    return Interval(ability_title(name), value, low, high, verdict)


def _is_reference(row: Row, other: Row) -> bool:
    """Whether a row is what another one is compared with."""
    return bool(row.compared_with and row.compared_with.reference == row_name(replace(other, seeds=())))


def _spoken(row: Row, flat: list[Row]) -> dict[str, Any] | None:
    """How the original, the merged and the healed model continue a prompt, the first that merging changed."""
    before = next((other for other in flat if other.run == row.run and other.stage == "merged" != row.stage), None)
    models = [("original", flat[0]), *([("merged", before)] if before else []), (stage_of(row), row)]
    said = [(title, {sample["prompt"]: sample["answer"] for sample in model.samples}) for title, model in models]
    prompts = [prompt for prompt in said[0][1] if all(prompt in answers for _, answers in said)]
    changed = [prompt for prompt in prompts if said[0][1][prompt] != said[1][1][prompt]]
    for prompt in (*changed, *prompts):
        lines = [(title, re.sub(r"\s*\n\s*", "\n", answers[prompt].strip())) for title, answers in said]
        return {"prompt": prompt, "answers": [(title, text or "(ends here)") for title, text in lines]}
    return None


def _slide(experiment: Experiment, flat: list[Row]) -> dict[str, Any] | None:
    """The first screen: the headline run's verdict, layers, three numbers and their limits; None without a run."""
    if len(flat) < 2:
        return None
    row = flat[headline(flat)]
    shown = key_figures(row)
    figures = [shown[name] for name in ("speed", "perplexity", CHOICE_LOGPROB)]
    plan = plan_view(experiment.run(row.run).plan, experiment.model_facts)
    gained, cost = row.verdict or ("", "")
    return {
        "name": row_name(row),
        "gained": gained,
        "short": in_short(row),
        "cost": cost,
        "lost": lost_words(row),
        "plan": plan,
        "figures": figures,
        "spoken": _spoken(row, flat),
        "limits": _limits(experiment, row),
    }


def _limits(experiment: Experiment, row: Row) -> list[str]:
    """What the numbers of a row hold for."""
    against, documents = row.compared_with, [entry["documents"] for entry in row.scores.values()]
    limits = [f"Measured on one model, {printable(Path(experiment.settings.model).name)}, at one depth"]
    if documents:
        counts = f"{min(documents):,}" if min(documents) == max(documents) else f"{min(documents):,}–{max(documents):,}"
        limits.append(f"{len(documents)} zero-shot tasks with {counts} documents each, with 95 % intervals over them")
    if row.seed is not None:
        limits.append(f"healed once, with training seed {row.seed}, on {row.recovery_text}")
    limits.append(f"compared with {against.reference}" if against else "compared with nothing")
    if row.speedup and (timed := timed_in(row)):
        limits.append(f"speed {timed}, against the original's")
    return limits


def _cost(run: Run) -> list[str]:
    """What the run took: time for healing and evaluation, disk space."""
    recovery, scores = run.settings.get("recovery", {}), run.scores() or {}
    costs = []
    if "seconds" in recovery:
        tokens = recovery["steps"] * recovery["batch"] * recovery["accumulate"] * recovery["length"]
        costs.append(f"healing {recovery['seconds'] / 60:,.1f} min ({tokens:,} tokens)")
    if seconds := scores.get("conditions", {}).get("seconds"):
        costs.append(f"evaluation {seconds:,.0f} s")
    if size := run.settings.get("merge", {}).get("size_bytes"):
        costs.append(f"{gib(size)} on disk")
    return costs
