"""Copy an experiment's results to assets/experiments, the examples that ship; without weights, logs and job states.

swm demo --limit 300 --steps 120             # on an otherwise idle machine
python -m swm search demo --from 0.5         # the rest of the path
python tools/ship.py demo

Files are rewritten in today's form: a bundled example's own name rewrites that example.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

KEPT = (
    "experiment.json",
    "cost.json",
    "abilities.json",
    "similarity/*.json",
    "path/*.json",
    "answers/*.json",
    "plans/*.json",
    "studies/*.json",
    "runs/*/run.json",
    "runs/*/events.jsonl",
)
RESULTS = ("scores.json", "scores-merged.json", "timing.json", "timing-merged.json", "llama_cpp.json", "abilities.json")
ANSWERS = ("documents.json", "documents-merged.json")


def main() -> None:
    from swm.disk.names import EXAMPLE, SHIPPED, experiments_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    options = parser.parse_args()
    target = SHIPPED / f"{EXAMPLE}{options.experiment.removeprefix(EXAMPLE)}"
    source = experiments_folder() / options.experiment
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "experiment"
        copy(source if source.is_dir() else SHIPPED / options.experiment, copied)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(copied, target)
    forget_unused(SHIPPED)
    for folder in (target, SHIPPED / "questions"):
        compact(folder)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 2**20:.2f} MiB")


def shorter(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What pages show of events: the learning rate where it is highest, all else of each step."""
    rates = [event.get("learning_rate", 0.0) for event in events]
    highest = rates.index(max(rates)) if rates else 0
    return [
        short({name: value for name, value in event.items() if name != "learning_rate" or place == highest})
        for place, event in enumerate(events)
    ]


def short(event: dict[str, Any]) -> dict[str, Any]:
    """An event with five digits of each number and its time to a hundredth of a second."""
    digits = {name: round(value, 2) if name == "time" else float(f"{value:.5g}")
              for name, value in event.items() if isinstance(value, float)}  # fmt: skip
    return {name: digits.get(name, value) for name, value in event.items() if name != "grad_norm"}


def copy(source: Path, target: Path) -> None:
    """Copy the results of an experiment, each file as it is written today; questions go to the examples' folder."""
    from swm.disk.files import read_json, write_json
    from swm.disk.names import SHIPPED

    questions = SHIPPED / "questions"
    for file in sorted((source / "questions").glob("*.json")):
        write_json(questions / file.name, read_json(file))

    for pattern in (*KEPT, *(f"runs/*/{name}" for name in RESULTS)):
        for file in sorted(source.glob(pattern)):
            place = target / file.relative_to(source)
            if file.suffix == ".json":
                write_json(place, read_json(file))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                events = shorter([json.loads(line) for line in file.read_text().splitlines()])
                place.write_text("".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events))
    for name in ANSWERS:
        for file in sorted(source.glob(f"runs/*/{name}")):
            # before healing, the runs of all seeds are the same model: the first one's answers are enough
            if name == ANSWERS[0] or "-seed-" not in file.parent.name:
                place = target / file.relative_to(source)
                write_json(place, {"tasks": columns(read_json(file)["tasks"], questions)})


def six_digits(number: str) -> float:
    """What a map or a mean of a thousand tokens can say, and more."""
    return float(f"{float(number):.6g}")


def rounded_up(number: str) -> float:
    """Eight decimals, so that what reached a threshold still does."""
    rounded = round(float(number), 8)
    return rounded if rounded >= float(number) else round(rounded + 1e-8, 8)


DIGITS = {"similarity": six_digits, "path": rounded_up, "abilities.json": lambda number: round(float(number), 3)}


def compact(folder: Path) -> None:
    """Write every JSON file without line breaks, which nobody reads by eye, and maps and paths with fewer digits."""
    for file in folder.rglob("*.json"):
        digits = DIGITS.get(file.name) or DIGITS.get(file.parent.name)
        content = json.loads(file.read_text(encoding="utf-8"), parse_float=digits)
        file.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")


def forget_unused(examples: Path) -> None:
    """Delete the questions that no answers of any example are to."""
    from swm.disk.files import read_json

    used = {
        entry["questions"]
        for file in examples.glob("*/runs/*/documents*.json")
        for entry in read_json(file)["tasks"].values()
    }
    for file in (examples / "questions").glob("*.json"):
        if file.stem not in used:
            file.unlink()


def columns(tasks: dict[str, Any], questions: Path) -> dict[str, Any]:
    """Each task's answers as columns; the questions of earlier releases' files are written to the folder.

    Log-likelihoods get three decimals: over some hundred documents a mean changes in the fifth.
    """
    from swm.workspace.task_answers import save_answers

    found = {
        task: save_answers(questions, task, entry) if isinstance(entry, list) else entry
        for task, entry in tasks.items()
    }
    for entry in found.values():
        if known := entry.get("log_likelihoods"):
            entry["log_likelihoods"] = [choices and [round(value, 3) for value in choices] for choices in known]
    return found


if __name__ == "__main__":
    main()
