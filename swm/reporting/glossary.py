"""What each number means, in one sentence: the same on every page, in the report and in the documentation."""

from __future__ import annotations

from swm.plan import WIDTH_METHODS
from swm.registry import MERGE_RULES, PLANNERS, Entry
from swm.workspace.origin import BY_HAND

TERMS = {
    "accuracy": "Share of questions for which the model rates the right choice most likely; each task has a chance "
    "level, the score of random guessing.",
    "choice_logprob": "Logarithm of the probability that the model gives the right choice among the choices, in nats; "
    "0 is certain. It shows smaller changes than accuracy does. “8 % less sure” means that this probability is 8 % "
    "lower, as a geometric mean over questions.",
    "bits_per_byte": "Bits that the model needs for each byte of the right answer's text; lower is better. It measures "
    "how well the model predicts the answer's words, not which answer it picks.",
    "perplexity": "The number of tokens that the model is undecided between, on average, at each token of held-out "
    "text; lower is better, and comparable only on the same text.",
    "similarity": "How much two layers' outputs agree, or a merged model's last hidden state with the original's: 1 is "
    "the same, for CKA up to rotation and scale; a high value does not mean that a layer can go.",
    "block_influence": "How much a layer changes the direction of its input: 1 minus the cosine of input and output; "
    "0 means that it changes nothing.",
    "control": "The original model after the same training on the same text and seed. Training teaches any model "
    "the form of its text, so a healed model is compared with this one.",
}
TITLES = {
    "accuracy": "Accuracy",
    "choice_logprob": "Choice log-probability",
    "bits_per_byte": "Bits per byte",
    "perplexity": "Perplexity",
    "similarity": "Similarity",
    "block_influence": "Block influence",
    "control": "Control",
}
FORMS = {"accuracy": (100, 1), "choice_logprob": (1, 2), "bits_per_byte": (1, 3)}  # factor to the unit, decimals
UNITS = {"accuracy": "points", "choice_logprob": "nats", "bits_per_byte": "bits per byte"}


def method_name(method: str) -> str:
    """Display name of a method, with its name on the command line in brackets where the two differ.

    Args:
        method: a planner, a merge rule (of the sliding-window search) or BY_HAND, perhaps followed by a width cut as
            in "best + flap". Any other word stays as it is.
    """
    chosen, _, width = method.partition(" + ")
    if width in WIDTH_METHODS:
        return f"{method_name(chosen)} + {width}"
    if method in PLANNERS:
        return title_of(PLANNERS[method])
    if method == BY_HAND:
        return "Windows by hand"
    return f"Sliding window ({method})" if method in MERGE_RULES else method


def title_of(entry: Entry) -> str:
    """An entry's title, with its name on the command line in brackets where the title lacks it."""
    return entry.title if entry.name in entry.title.lower() else f"{entry.title} ({entry.name})"


def help_for(*names: str) -> str:
    """The help of a choice between several numbers: what each means."""
    return " ".join(f"**{TITLES[name]}**: {TERMS[name]}" for name in names)
