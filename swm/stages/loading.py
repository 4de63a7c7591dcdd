"""What several stages share: loading an experiment's models and texts, and the conditions of a measurement."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import ExperimentError, TextError
from swm.evaluation.generation import check_reads
from swm.models.decoder import layer_count
from swm.models.load import load_model
from swm.models.offload import is_offloaded
from swm.models.processes import world_size
from swm.settings import FIT_TOKENS
from swm.texts.calibration import calibration_tokens, fit_tokens
from swm.texts.documents import text_hash
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run


def digest(*parts: object) -> str:
    """Hash of any plain values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def fit_tokens_of(experiment: Experiment, tokenizer: PreTrainedTokenizerBase, tokens: int = FIT_TOKENS) -> Tensor:
    """Token ids to fit merged layers on: the experiment's kind of text, but none that its windows are scored on."""
    settings = experiment.settings
    check_text(experiment)
    return fit_tokens(tokenizer, settings.texts, settings.length, settings.seed, tokens, settings.count)


def load_original(
    experiment: Experiment, device: str = "auto", offload: bool = False, spare: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The experiment's model and tokenizer.

    Args:
        device, offload, spare: as for `load_model`.

    Raises:
        ExperimentError: if its number of layers has changed. ModelError: if it cannot be loaded, or its code fails.
    """
    model, tokenizer = load_model(experiment.settings.model, experiment.settings.dtype, device, offload, spare)
    if (layers := layer_count(model)) != experiment.layer_count:
        raise ExperimentError(
            f"{experiment.settings.model} now has {layers} layers, but had {experiment.layer_count} when "
            f"{experiment.name} was created. Create a new experiment."
        )
    if not is_offloaded(model):  # its weights would all be read from disk
        check_reads(model)
    return model, tokenizer


def load_run(run: Run, offload: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The run's model and tokenizer: the original for the baseline, otherwise from the run's folder."""
    if run.is_baseline:
        return load_original(run.experiment, offload=offload)
    if not run.has_model:
        raise ExperimentError(
            f"Run {run.name} has no model. Merge it first: python -m swm merge {run.experiment.name} {run.name} ..."
        )
    return load_model(str(run.model_folder), run.experiment.settings.dtype, offload=offload)


def calibration_of(experiment: Experiment, tokenizer: PreTrainedTokenizerBase, texts: str = "") -> Any:
    """The experiment's calibration tokens, or as many tokens of another text."""
    settings = experiment.settings
    if not texts:
        check_text(experiment)
    return calibration_tokens(tokenizer, texts or settings.texts, settings.count, settings.length, settings.seed)


def check_text(experiment: Experiment) -> None:
    """Raise TextError if the calibration text has changed since the experiment was created."""
    if experiment.text_hash and text_hash(experiment.settings.texts) != experiment.text_hash:
        raise TextError(
            f"The calibration text {experiment.settings.texts} has changed since {experiment.name} was created: new "
            "results would not match the old ones. Restore the text, or create a new experiment."
        )


def conditions_for(experiment: Experiment, model: PreTrainedModel, start: float) -> dict[str, Any]:
    """The conditions of a measurement: settings, dtype, device, duration, versions."""
    packages = ("torch", "transformers", "peft", "lm_eval")
    return {
        **asdict(experiment.settings),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "seconds": round(time.time() - start, 1),
        **({"processes": world_size()} if world_size() > 1 else {}),
        "versions": {"swm": version_of_swm(), "python": sys.version.split()[0], **{p: version(p) for p in packages}},
    }


def version_of_swm() -> str:
    """The release of this program."""
    from swm import __version__

    return __version__
