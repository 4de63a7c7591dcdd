"""Creates an experiment after checking its model and text."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from swm.disk.files import demo_experiment, whole_path
from swm.disk.machine import is_out_of_memory
from swm.disk.names import check_new, read_only_message
from swm.errors import ExperimentError, ModelError, NotFiniteError, SettingsError, TextError, first_line
from swm.evaluation.generation import OF_MODELS, check_reads, generation_error
from swm.models.decoder import check_length, check_vocabulary, parameter_count
from swm.models.known import BUNDLED
from swm.models.layer_facts import check_removable
from swm.models.load import check_dtype, check_loadable, config_facts, load_tokenizer
from swm.models.locate import load_config, skeleton
from swm.models.replay import Replay
from swm.models.trial import trial_model
from swm.planners.needed import needed_layers
from swm.progress import Progress, no_progress
from swm.registry import TEXTS
from swm.settings import ExperimentSettings
from swm.texts.calibration import calibration_tokens
from swm.texts.documents import text_hash
from swm.workspace.experiments import Experiment

log = logging.getLogger(__name__)
TRIAL_TEXTS = [[1, 2, 3, 4], [9, 8, 7, 6], [5, 2, 9, 3]]  # ids; layers called differently for each text stand out
LARGE = 1_000_000_000  # parameters from which on trying takes some seconds and more


def create_experiment(name: str, settings: ExperimentSettings, progress: Progress = no_progress) -> Experiment:
    """A new experiment; its model, dtype and text are checked first, and a GGUF file is converted."""
    check_new(name)
    if demo_experiment():  # checked before a model is converted in vain
        raise ExperimentError(read_only_message(name))
    if not 0 <= settings.seed < 2**63:
        raise SettingsError(f"--seed {settings.seed} is out of range. Choose 0 to {2**63 - 1}.")
    check_dtype(settings.dtype)
    if settings.texts.startswith("task:"):
        raise TextError("Prompts of a task cannot calibrate: its scores would not be zero-shot. Choose another text.")
    settings = replace(
        settings,
        model=settings.model if settings.model in BUNDLED else whole_path(settings.model),
        texts=settings.texts if settings.texts in TEXTS else whole_path(settings.texts),
    )
    check_loadable(settings.model, settings.dtype, progress)
    progress(0, 0, "checking model and text")
    facts = config_facts(settings.model, settings.dtype)
    if facts["layers"] < 2:
        raise ModelError(f"{settings.model} has a single layer: there is nothing to merge. Choose another model.")
    config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
    shell = skeleton(config, settings.model)
    check_removable(shell)
    check_length(config, settings.length)
    tokens = calibration_tokens(tokenizer, settings.texts, settings.count, settings.length, settings.seed)
    check_vocabulary(config, tokens)
    facts |= tried_out(shell)
    return Experiment.create(name, settings, facts, text_hash(settings.texts))


def tried_out(model: PreTrainedModel) -> dict[str, Any]:
    """The fact `needed_layers`, see `planners.needed`; empty if no trial of the model can be made.

    Raises:
        ModelError: if the model's code cannot read or write text, or its layers cannot be run one by one.
    """
    if parameter_count(model) > LARGE:
        log.info("Trying out how %s is built, without its weights", type(model).__name__)
    try:
        trial = trial_model(model)
    except (ModelError, *OF_MODELS):  # what the config describes can be built, but not so
        return {}
    try:
        _check_works(trial[0])
        return {"needed_layers": [sorted(group) for group in needed_layers(model, trial)]}
    except NotFiniteError:  # made-up numbers can overflow
        return {}
    except RuntimeError as error:
        if is_out_of_memory(error):  # for one of its matrices
            return {}
        raise


def _check_works(trial: PreTrainedModel) -> None:
    """Raise ModelError unless the model reads and writes text, and its layers can be run one by one."""
    name, tokens = type(trial).__name__, torch.tensor(TRIAL_TEXTS) % int(trial.config.get_text_config().vocab_size)
    check_reads(trial)
    try:
        Replay(trial, tokens)
    except OF_MODELS as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"The layers of {name} cannot be run one by one: {first_line(error)} This architecture is not supported."
        ) from None
    if reason := generation_error(trial, tokens[:1]):
        raise ModelError(
            f"{name} cannot generate text: {reason} Check the model's config.json, or choose another model."
        )
