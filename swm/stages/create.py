"""Creates an experiment after checking its model and text."""

from __future__ import annotations

from dataclasses import replace

from swm.errors import ExperimentError, ModelError, SettingsError, TextError
from swm.models.decoder import check_length, check_vocabulary
from swm.models.known import BUNDLED
from swm.models.layer_facts import check_removable
from swm.models.load import check_dtype, check_loadable, config_facts, load_tokenizer
from swm.models.locate import load_config, skeleton
from swm.registry import TEXTS
from swm.settings import ExperimentSettings
from swm.texts.calibration import calibration_tokens
from swm.texts.documents import text_hash
from swm.workspace.experiments import Experiment
from swm.workspace.files import demo_experiment, whole_path
from swm.workspace.names import check_new, read_only_message


def create_experiment(name: str, settings: ExperimentSettings) -> Experiment:
    """A new experiment; its model, dtype and text are checked first."""
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
    check_loadable(settings.model)
    facts = config_facts(settings.model, settings.dtype)
    if facts["layers"] < 2:
        raise ModelError(f"{settings.model} has a single layer: there is nothing to merge. Choose another model.")
    config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
    check_removable(skeleton(config, settings.model))
    check_length(config, settings.length)
    tokens = calibration_tokens(tokenizer, settings.texts, settings.count, settings.length, settings.seed)
    check_vocabulary(config, tokens)
    return Experiment.create(name, settings, facts, text_hash(settings.texts))
