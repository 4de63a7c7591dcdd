"""What the models of an experiment's plans write after the sample prompts, on disk beside the threshold path."""

from __future__ import annotations

from dataclasses import dataclass, field

from swm.plan import Window, pairs
from swm.registry import MERGE_RULES
from swm.settings import SAMPLE_PROMPTS, SAMPLE_TOKENS
from swm.workspace.experiments import Experiment


@dataclass
class KeptAnswers:
    """Greedy continuations of `prompts` by up to `tokens` tokens, with one rule.

    Attributes:
        of: windows of a plan -> one continuation for each prompt, none if its model cannot generate; the
            original's under ().
    """

    rule: str
    prompts: tuple[str, ...] = SAMPLE_PROMPTS
    tokens: int = SAMPLE_TOKENS
    of: dict[tuple[Window, ...], list[str]] = field(default_factory=dict)


def kept_answers(experiment: Experiment, rule: str) -> KeptAnswers:
    """The answers kept so far; none from other prompts or, for a rule that needs text, from another text."""
    MERGE_RULES.check(rule)
    kept = KeptAnswers(rule)
    data = experiment.read(f"answers/{rule}.json")
    if not data or (tuple(data["prompts"]), data["tokens"]) != (kept.prompts, kept.tokens):
        return kept
    if MERGE_RULES[rule].needs_text and data.get("text_hash", "") != experiment.text_hash:
        return kept
    kept.of = {tuple(Window(*pair) for pair in plan["windows"]): plan["answers"] for plan in data["plans"]}
    return kept


def original_answers(experiment: Experiment) -> list[str]:
    """What the original was found to write, with whichever rule; empty if that is not known."""
    found = (kept_answers(experiment, rule).of.get((), []) for rule in MERGE_RULES)
    return next((answers for answers in found if answers), [])


def save_answers(experiment: Experiment, kept: KeptAnswers) -> None:
    """Write the answers to answers/<rule>.json."""
    plans = [{"windows": pairs(windows), "answers": answers} for windows, answers in kept.of.items()]
    data = {"prompts": list(kept.prompts), "tokens": kept.tokens, "text_hash": experiment.text_hash, "plans": plans}
    experiment.write(f"answers/{kept.rule}.json", data)
