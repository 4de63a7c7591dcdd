"""The pages' tables: pandas data frames from plain rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from swm.evaluation.paired import CHOICE_LOGPROB, SCORES, Paired
from swm.jobs.sweep import SweepRow
from swm.registry import MERGE_RULES
from swm.reporting.figures import lines
from swm.reporting.glossary import FORMS, TITLES, UNITS, method_name, title_of
from swm.reporting.names import stage_name, stage_of, stage_words, text_title
from swm.reporting.numbers import MISSING, interval, number, percent, points, ratio, speedup
from swm.reporting.row import Change, Differences, Row
from swm.search.threshold_path import PlanAt
from swm.similarity.measure import in_words
from swm.studies.findings import NEAR, Decided
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run

INTERVAL = re.compile(r"× (?=\d)|\[.*?]")
WORDS = (
    "method",
    "rule",
    "stage",
    "LoRA seeds",
    "windows",
    "compared with",
    "models",
)  # columns of words, not of figures


def unbroken(table: pd.DataFrame) -> pd.DataFrame:
    """The table with intervals that do not wrap: "1.20 [1.15, 1.26]" breaks before its bracket or not at all."""
    return table.map(lambda text: INTERVAL.sub(lambda part: part[0].replace(" ", "\u00a0"), text))


def aligned(table: pd.DataFrame) -> dict[str, Any]:
    """Column settings that set figures flush right, also those that are text since they have an interval."""
    return {name: st.column_config.Column(alignment="right") for name in table if name not in WORDS}


def show_table(table: pd.DataFrame, **columns: Any) -> None:
    """Show a table without its index; `columns` are further settings of these."""
    st.dataframe(table, hide_index=True, column_config={**aligned(table), **columns})


def comparison_table(labels: list[str], flat: list[Row], only_differing: bool = False) -> pd.DataFrame:
    """One line for each number, one column for each row of `compare`, as text with errors.

    Args:
        only_differing: leave out lines whose cells are all equal.
    """
    shown = {label: cells for label, cells in lines(flat) if len({*cells}) > 1 or not only_differing}
    return pd.DataFrame.from_dict(shown, orient="index", columns=labels)


def study_table(rows: list[Row]) -> pd.DataFrame:
    """One line for each row of `study_rows`, as text with errors."""
    texts = list(dict.fromkeys(text for row in rows for text in row.perplexities))
    timed = any(row.latency_ms for row in rows)
    healed = any(row.seeds for row in rows)
    compared = any(row.against for row in rows)
    return pd.DataFrame(
        {
            "layers": row.layers,
            "method": method_name(row.method),
            "rule": title_of(MERGE_RULES[row.rule]) if row.rule and row.windows else MISSING,
            "stage": stage_of(row).replace(" + ", " + fit + ") if row.fitted_first else stage_of(row),
            **({"LoRA seeds": ", ".join(map(str, row.seeds))} if healed else {}),
            "parameters, M": f"{row.parameters / 1e6:,.1f}",
            **{f"perplexity, {text_title(text)}": interval(row.perplexities.get(text)) for text in texts},
            "average, %": percent(row.average, row.average_stderr),
            **({"difference (points)": points(row.difference)} if compared else {}),
            **{task: percent(score["value"], score["stderr"]) for task, score in row.scores.items()},
            **(_speed(row) if timed else {}),
            "windows": windows_text(row),
        }
        for row in rows
    )


def survival_table(rows: list[Row]) -> pd.DataFrame:
    """One line for each method and depth that was healed: its differences from one method before healing and after."""
    before = {(row.method, row.layers): row.against for row in rows if row.stage == "merged"}
    healed = [row for row in rows if row.stage == "recovered" and row.against]
    texts = list(dict.fromkeys(text for row in healed for text in (row.against.perplexity if row.against else ())))
    parts = (("over documents", "over_documents"), ("over seeds", "over_seeds"))
    table = pd.DataFrame(
        {
            "layers": row.layers,
            "method": method_name(row.method),
            "windows": windows_text(row),
            "LoRA seeds": len(row.seeds),
            "choice log-probability, before": points(
                _choice(before.get((row.method, row.layers))), *FORMS[CHOICE_LOGPROB]
            ),
            "after": points(_choice(row.against), *FORMS[CHOICE_LOGPROB]),
            **{f"after, {label}": _part(_choice(row.against), name) for label, name in parts},
            **{
                f"perplexity, {text_title(text)}, {when}": ratio(against.perplexity.get(text) if against else None)
                for text in texts
                for when, against in (("before", before.get((row.method, row.layers))), ("after", row.against))
            },
        }
        for row in healed
    )
    return table.loc[:, [column for column in table if {*table[column]} != {MISSING}]]


def windows_text(row: Row) -> str:
    """The windows of a row of `compare`, as in "22-23 26-27"."""
    return " ".join(map(str, row.windows))


def _choice(against: Differences | None) -> Change | None:
    return against.scores.get(CHOICE_LOGPROB) if against else None


def _part(entry: Change | None, name: str) -> str:
    """One part of an interval, as in "[-0.01, +0.02]"; over seeds, there is none for a single seed."""
    ends = entry.get(name) or ([entry["low"], entry["high"]] if name == "over_documents" else None) if entry else None
    return f"[{ends[0]:+.3f}, {ends[1]:+.3f}]" if ends else MISSING


def decided_table(decided: list[Decided]) -> pd.DataFrame:
    """One line for each stage of `pairs_decided`: how many pairs each score decides."""
    return pd.DataFrame(
        {
            "stage": stage_words(counts.stage),
            "models": f"within {NEAR:g} times the original's perplexity" if counts.near else "all",
            "pairs": counts.pairs,
            "documents per task": f"{counts.documents:,}",
            **{
                TITLES[score].lower(): f"{counts.decided[score]} of {counts.pairs}"
                + (f" ({n} against perplexity)" if (n := counts.against_perplexity[score]) else "")
                for score in SCORES
            },
        }
        for counts in decided
    )


def _speed(row: Row) -> dict[str, str]:
    return {
        "speedup": speedup(row.speedup),
        "tokens per second": number(row.tokens_per_second, 1),
        "latency, ms": number(row.latency_ms, 0),
        "peak memory, MiB": number(row.peak_memory_bytes and row.peak_memory_bytes / 2**20, 0),
    }


def sweep_table(cells: list[SweepRow]) -> pd.DataFrame:
    """One line for each run of a sweep, with a dash for what is not measured yet."""
    several = len({cell.experiment for cell in cells}) > 1
    texts = dict.fromkeys(text for cell in cells if cell.row for text in cell.row.perplexities)
    return pd.DataFrame(
        {
            "run": cell.run,
            "state": cell.state,
            "layers": str(row.layers) if row else MISSING,
            **{
                f"perplexity, {text_title(text)}": interval(row.perplexities.get(text) if row else None)
                for text in texts
            },
            "average, %": percent(row and row.average, row and row.average_stderr),
            "speedup": speedup(row and row.speedup),
            **({"experiment": cell.experiment} if several else {}),
        }
        for cell in cells
        for row in (cell.row,)
    )


def paired_table(compared: list[Paired]) -> pd.DataFrame:
    """One line for each task: the difference, its interval, and whether it is significant."""
    return pd.DataFrame(
        {
            "task": result.task,
            f"difference ({UNITS[result.score]})": "{:+.{d}f}".format(
                *_scaled(result, "difference"), d=FORMS[result.score][1]
            ),
            "95 % interval": "[{:+.{d}f}, {:+.{d}f}]".format(*_scaled(result, "low", "high"), d=FORMS[result.score][1]),
            "verdict": result.verdict,
            "p": f"{result.p_value:.3f}",
            "gained": result.gained,
            "lost": result.lost,
            "documents": result.documents,
        }
        for result in compared
    )


def _scaled(result: Paired, *names: str) -> list[float]:
    return [FORMS[result.score][0] * getattr(result, name) for name in names]


def runs_table(experiments: list[Experiment]) -> pd.DataFrame:
    """One line for each run of all experiments, without the originals."""
    runs = [run for experiment in experiments for run in experiment.runs() if not run.is_baseline]
    return pd.DataFrame([row for run in runs if (row := run.read_unless_gone(_about_run))])


def _about_run(run: Run) -> dict[str, str]:
    plan = run.plan
    return {
        "experiment": run.experiment.name,
        "run": run.name,
        "layers": f"{plan.layers_left} of {plan.layer_count}",
        "rule": title_of(MERGE_RULES[plan.rule]) if plan.windows else "–",
        "stage": stage_name(run),
        "job": run.state().status or "–",
    }


def trace_table(step: PlanAt) -> pd.DataFrame:
    """One line for each window tried, in order."""
    return pd.DataFrame(
        {
            "window": [str(trial.window) for trial in step.trace],
            "merged above": [", ".join(map(str, trial.committed)) or "–" for trial in step.trace],
            "similarity": [trial.similarity for trial in step.trace],
            "verdict": ["accepted" if trial.accepted else "rejected" for trial in step.trace],
            "value": ["upper bound" if trial.at_most else "exact" for trial in step.trace],
        }
    )


def similarity_maps(experiments: list[Experiment], layers: int) -> dict[str, Callable[[], dict[str, Any] | None]]:
    """Functions that read each similarity map of a model with this many layers, by "experiment: measure" in words."""
    return {
        f"{experiment.name}: {in_words(name)}": lambda experiment=experiment, name=name: experiment.similarity(name)
        for experiment in experiments
        if experiment.layer_count == layers
        for name in experiment.metrics_measured()
    }
