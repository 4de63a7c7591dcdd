"""What to measure: metric, layer output or update, kind of sample, text. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from swm.errors import SettingsError
from swm.registry import METRICS

PARTS = {
    "output": "the hidden state after the layer (residual stream), which all layers share by construction",
    "update": "what the layer adds to the hidden state: output minus input",
}
SAMPLES = {"tokens": "each token is a sample", "texts": "each text is a sample: the mean of its tokens' states"}


@dataclass(frozen=True)
class Measure:
    """What to measure: metric, layer output or update, kind of sample, and text.

    Attributes:
        skip_tokens: number of first tokens of each text to skip.
        texts: empty for the experiment's calibration text, else the name of a text, such as "task:boolq".
    """

    metric: str = "cka"
    part: str = "output"
    samples: str = "tokens"
    skip_tokens: int = 0
    texts: str = ""

    def __post_init__(self) -> None:
        for value, choices, title in (
            (self.metric, METRICS, "similarity metric"),
            (self.part, PARTS, "layer part"),
            (self.samples, SAMPLES, "kind of sample"),
        ):
            if value not in choices:
                raise SettingsError(f"Unknown {title} '{value}'. Choose one of: {', '.join(choices)}.")
        if not 0 <= self.skip_tokens <= 131_071:
            raise SettingsError(f"--skip {self.skip_tokens} is out of range: use 0 or a small number of tokens.")

    @property
    def name(self) -> str:
        """Name of the result file: the metric, then every setting that differs from its default: cka_update_skip4."""
        parts = [self.metric]
        parts += [self.part] if self.part != "output" else []
        parts += ["by-text"] if self.samples == "texts" else []
        parts += [f"skip{self.skip_tokens}"] if self.skip_tokens else []
        plain = re.sub(r"[^a-z0-9]+", "-", self.texts.lower()).strip("-")
        if self.texts and (len(plain) > 40 or not self.texts.isascii()):
            plain = f"{plain[-30:].strip('-')}-{hashlib.sha256(self.texts.encode('utf-8', 'replace')).hexdigest()[:8]}"
        parts += [plain] if self.texts else []
        return "_".join(parts)


def in_words(name: str) -> str:
    """The name of a result file as words: "CKA, updates, prompts of boolq, without the first 4 tokens"."""
    metric = max((each for each in METRICS if f"{name}_".startswith(f"{each}_")), key=len, default="")
    words, last = [METRICS[metric].title if metric else name], ""
    for part in name.removeprefix(metric).split("_")[1:] if metric else []:
        if part == "update":
            words.append("updates")
        elif part == "by-text":
            words.append("by text")
        elif part.removeprefix("skip").isdecimal():
            last = f"without the first {part.removeprefix('skip')} tokens"
        else:
            words.append(f"prompts of {part.removeprefix('task-')}" if part.startswith("task-") else part)
    return ", ".join([*words, last] if last else words)
