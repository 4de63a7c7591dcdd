"""What is measured: a metric, a part of the layers, the samples, a text. No torch."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from swm.errors import SettingsError
from swm.registry import METRICS

PARTS = {
    "output": "the state after the layer (residual stream), which layers share by construction",
    "update": "what the layer adds to it: output minus input",
}


SAMPLES = {"tokens": "each token is a sample", "texts": "each text is one: the mean of its tokens' states"}


@dataclass(frozen=True)
class Measure:
    """Metric, and of what: part of the layer, samples, how many first tokens of a text are left out, which text.

    Attributes:
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
            (self.part, PARTS, "part of a layer"),
            (self.samples, SAMPLES, "kind of sample"),
        ):
            if value not in choices:
                raise SettingsError(f"'{value}' is not a {title}. Choose one of: {', '.join(choices)}.")
        if not 0 <= self.skip_tokens <= 131_071:
            raise SettingsError(f"--skip {self.skip_tokens} is out of range. Choose 0 or a few first tokens.")

    @property
    def name(self) -> str:
        """Name of its file: the metric, then what differs from the defaults, as in cka_update_skip4."""
        parts = [self.metric]
        parts += [self.part] if self.part != "output" else []
        parts += ["by-text"] if self.samples == "texts" else []
        parts += [f"skip{self.skip_tokens}"] if self.skip_tokens else []
        plain = re.sub(r"[^a-z0-9]+", "-", self.texts.lower()).strip("-")
        if self.texts and (len(plain) > 40 or not self.texts.isascii()):
            plain = f"{plain[-30:].strip('-')}-{hashlib.sha256(self.texts.encode('utf-8', 'replace')).hexdigest()[:8]}"
        parts += [plain] if self.texts else []
        return "_".join(parts)
