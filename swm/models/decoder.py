"""A model's layers, found by structure; its parameter count and size; checks of its text length and vocabulary.

The decoder is found by structure, not by name: it is the module list with one entry for each layer in the config. So
any decoder-only model that transformers supports can be tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import ModelError, TextError


@dataclass(frozen=True)
class Decoder:
    """The layers of a model and the module that runs them one after another."""

    parent: nn.Module
    attribute: str

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The decoder's layers, lowest first."""
        return cast(Sequence[nn.Module], getattr(self.parent, self.attribute))


def find_decoder(model: PreTrainedModel) -> Decoder:
    """The model's decoder: the outermost module list with one entry for each layer in the config.

    Raises:
        ModelError: if there is no such list.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    fitting = [path for path, m in lists if len(m) == count]
    if not fitting:
        sizes = ", ".join(f"{path} ({len(m)})" for path, m in lists[:5]) or "none"
        raise ModelError(
            f"Cannot find the layers of {type(model).__name__}: the config says {count} layers, the module lists are: "
            f"{sizes}. This architecture is not supported."
        )
    parent, _, attribute = min(fitting, key=lambda path: path.count(".")).rpartition(".")
    return Decoder(model.get_submodule(parent), attribute)


def layer_count(model: PreTrainedModel) -> int:
    """Number of decoder layers in the model."""
    return len(find_decoder(model).layers)


def parameter_count(model: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_bytes(model: nn.Module) -> int:
    """Size of the weights in memory, in bytes; shared ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def renumber_layers(model: PreTrainedModel) -> None:
    """Update the layer index in every module that stores one (for the KV cache)."""
    for index, layer in enumerate(find_decoder(model).layers):
        for module in layer.modules():
            for attribute in ("layer_idx", "layer_id", "layer_number"):
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, index)


def context_length(config: Any) -> int:
    """Maximum number of tokens the model accepts; 2**31 if its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31


def check_length(config: Any, length: int) -> None:
    """Raise TextError if texts are longer than the model's context."""
    if length > context_length(config):
        raise TextError(
            f"Texts of {length} tokens are too long: the model's context is {context_length(config)} tokens. "
            "Lower --length."
        )


def check_vocabulary(config: Any, tokens: Tensor) -> None:
    """Raise ModelError if the tokenizer produces ids that the model has no embedding for."""
    size, highest = config.get_text_config().vocab_size, int(tokens.max())
    if highest >= size:
        raise ModelError(
            f"The tokenizer does not match the model: it produces token id {highest}, but the vocabulary has {size:,} "
            "entries. Put the model's own tokenizer into its folder."
        )
