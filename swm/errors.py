"""Errors that the user can fix. Each message says what happened (with the values), why, and what to do.

SwmError
├── SettingsError     an unknown task, or a number out of range
│   └── UnknownNameError  a rule, planner, metric, text or format that is not installed
├── PlanError         a window that does not fit the model
├── ModelError        a model that cannot be loaded, understood, merged or saved
│   ├── NoCacheError  a model without a key-value cache: its generation cannot be timed
│   ├── NoFitError    layers that end in nothing that rule `fit` can solve
│   └── NoScaleError  layers whose states rule `scale` cannot rescale
├── TextError         a text that is missing, empty or too short
├── ExperimentError   a name, folder or file of an experiment or run
│   └── MissingError      there is none, perhaps because another process deleted it just now
└── JobError          a job that cannot start or continue

Bugs, such as a wrong call between our own functions, raise ValueError instead.
"""


class SwmError(Exception):
    """Base class of all errors meant for the user; printed without a traceback."""


class SettingsError(SwmError):
    """A setting outside its range, or an unknown name."""


class UnknownNameError(SettingsError):
    """A name that no installed merge rule, planner, metric, text or export format has."""


class PlanError(SwmError):
    """A plan that does not fit the model."""


class ModelError(SwmError):
    """A model that cannot be loaded, understood, merged or saved."""


class NotFiniteError(ModelError):
    """Numbers of a model that overflow."""


class NoCacheError(ModelError):
    """A model without a key-value cache, so its generation cannot be timed."""


class NoFitError(ModelError):
    """Layers that end in nothing that rule `fit` can solve."""


class NoScaleError(ModelError):
    """Layers whose states rule `scale` cannot rescale."""


class TextError(SwmError):
    """A text that is missing, empty or too short."""


class ExperimentError(SwmError):
    """An experiment or run that cannot be found, read or written."""


class MissingError(ExperimentError):
    """An experiment or file that does not exist, perhaps because another process deleted it just now."""


class JobError(SwmError):
    """A job that cannot start or continue."""


class Cancelled(BaseException):
    """The user cancelled the job; finished work is kept."""


def printable(text: str) -> str:
    """The text with control characters escaped: untrusted names and paths can contain terminal escape codes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error message, as a sentence; without a message, the name of the error's type."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line[:300] + ("" if line.endswith(".") else ".")
