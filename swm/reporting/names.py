"""How runs and their stages are called wherever they are shown."""

from __future__ import annotations

from pathlib import PurePath

from swm.registry import TEXTS
from swm.reporting.row import Row
from swm.workspace.runs import Run

ORIGINAL = "original"


def text_title(texts: str) -> str:
    """A text's title, or all of the path or name that it was given by, so that no two are called the same."""
    return TEXTS[texts].title if texts in TEXTS else texts


def text_name(texts: str) -> str:
    """Display name of a text where space is short: without its folder."""
    return PurePath(text_title(texts)).name


def row_name(row: Row) -> str:
    """Display name of a row: "original", "first (merged)", "first (merged + LoRA)"; of means, with "3 seeds"."""
    seeds = f", {len(row.seeds)} seeds" if len(row.seeds) > 1 else ""
    return ORIGINAL if row.is_original else f"{row.run} ({stage_of(row)}{seeds})"


def run_name(run: Run) -> str:
    """Display name of a run as it is now, like that of its row."""
    return ORIGINAL if run.is_baseline else f"{run.name} ({stage_name(run)})"


def stage_of(row: Row) -> str:
    """Display name of a row's stage, as in "merged + LoRA"; of a control, "original + LoRA"."""
    return stage_words(row.stage, row.control, row.healed_by)


def stage_name(run: Run) -> str:
    """Display name of a run's stage as it is now, like that of its row."""
    return stage_words(run.stage, run.is_control, healed_by(run))


def healed_by(run: Run) -> str | None:
    """What healed a run: "LoRA", or "training" of its own weights; None if it is not healed."""
    if run.stage != "recovered":
        return None
    return "training" if run.settings["recovery"].get("train") == "weights" else "LoRA"


def stage_words(stage: str, control: bool = False, healed: str | None = None) -> str:
    """Display name of a stage; of what was healed, with what healed it."""
    return f"{ORIGINAL if control else 'merged'} + {healed or 'LoRA'}" if stage == "recovered" else stage
