"""One document of a text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A document in two parts; recovery can train on the response alone. Plain text has no prompt."""

    prompt: str
    response: str

    @property
    def text(self) -> str:
        """The whole document."""
        return self.prompt + self.response
