"""Rows of a comparison that tests write by hand."""

from swm.plan import WHOLE_WIDTH
from swm.reporting.row import Row

NOTHING = {
    "experiment": "e", "run": "first", "stage": "merged", "layers": 24, "parameters": 100, "size_bytes": 400,
    "healed_by": None, "control": False, "control_run": None, "windows": (), "fitted_first": False, "rule": None,
    "threshold": None, "width": WHOLE_WIDTH, "method": None, "chosen_by": "original", "perplexity": None,
    "perplexities": {}, "perplexity_text": None, "seed": None, "recovery_text": None, "shared_texts": {}, "scores": {},
    "samples": [], "average": None, "average_stderr": None, "average_choice_logprob": None, "averages": {},
    "tokens_per_second": None, "latency_ms": None, "peak_memory_bytes": None, "speedup": None, "throughput": {},
    "llama_cpp": None, "conditions": {}, "created": 0.0, "timed_with": {}, "timed_as": None, "timed_on": {},
    "dtype": None, "deltas": {},
}  # fmt: skip


def a_row(**known):
    """A row of which this is known, and nothing else."""
    return Row(**{**NOTHING, **known})


def ability_answers(**bits):
    """What a run's abilities.json holds when its model needed these bits per byte for three requests of each."""
    entries = {name: {"ids": ["a", "b", "c"], "scores": {"model": {"bits": each}}} for name, each in bits.items()}
    conditions = {"dtype": "float32", "device": "cpu", "versions": {}}
    return {"version": 1, "precision": "exact", "conditions": conditions, "abilities": entries}
