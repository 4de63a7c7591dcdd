"""What the user can mend. Each message says what happened (with the values), why, and what to do.

SwmError
├── SettingsError     a threshold, rule, metric, task or number that cannot be
├── PlanError         a window that does not fit the model
├── ModelError        a model that cannot be loaded, understood, merged or saved
│   └── NoCacheError  a model whose generation cannot be timed
├── TextError         a text that is missing, empty or too short
├── ExperimentError   a name, folder or file of an experiment or run
└── JobError          a job that cannot start, or that another job excludes

Broken promises between our own functions raise ValueError instead.
"""


class SwmError(Exception):
    """Base of every message meant for the user; printed without a traceback."""


class SettingsError(SwmError):
    """A setting outside its range, or an unknown name."""


class PlanError(SwmError):
    """A plan that does not fit the model."""


class ModelError(SwmError):
    """A model that cannot be loaded, understood, merged or saved."""


class NoCacheError(ModelError):
    """A model that keeps nothing of what it has read, so that its generation cannot be timed."""


class TextError(SwmError):
    """A text that is missing, empty or too short."""


class ExperimentError(SwmError):
    """An experiment or run that cannot be found, read or written."""


class JobError(SwmError):
    """A job that cannot start or go on."""


class Cancelled(BaseException):
    """The user cancelled the job; what was finished is kept."""


def printable(text: str) -> str:
    """The text as a terminal may have it: names and paths of others can hold codes that move its cursor or worse."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of what it says, as a sentence."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line[:300] + ("" if line.endswith(".") else ".")
