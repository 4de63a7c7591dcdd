"""What is inside a model: its layers by structure, its size, the lists that go with its layers.

A model is found by structure, not by name: the list of as many modules as the config has layers is the decoder. So any
decoder-only model that transformers knows can be tried.
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
    """The decoder by structure: the outermost list of as many modules as the config has layers.

    Raises:
        ModelError: if there is no such list.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    fitting = [path for path, m in lists if len(m) == count]
    if not fitting:
        sizes = ", ".join(f"{path} ({len(m)})" for path, m in lists[:5]) or "none"
        raise ModelError(
            f"The layers of {type(model).__name__} cannot be found: the config says {count} layers, the lists of "
            f"modules are: {sizes}. This architecture is not supported."
        )
    parent, _, attribute = min(fitting, key=lambda path: path.count(".")).rpartition(".")
    return Decoder(model.get_submodule(parent), attribute)


def layer_count(model: PreTrainedModel) -> int:
    """How many layers the model has."""
    return len(find_decoder(model).layers)


def parameter_count(model: nn.Module) -> int:
    """Parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_bytes(model: nn.Module) -> int:
    """Bytes of the weights in memory, shared ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def renumber_layers(model: PreTrainedModel) -> None:
    """Give every module that knows its layer's number (for the KV cache) the one that its layer has now."""
    for index, layer in enumerate(find_decoder(model).layers):
        for module in layer.modules():
            for attribute in ("layer_idx", "layer_id", "layer_number"):
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, index)


def context_length(config: Any) -> int:
    """Tokens the model reads at most; very many if its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31


def check_length(config: Any, length: int) -> None:
    """Raise TextError if texts are longer than the model reads."""
    if length > context_length(config):
        raise TextError(
            f"Texts of {length} tokens do not fit: the model reads {context_length(config)}. Lower --length."
        )


def check_vocabulary(config: Any, tokens: Tensor) -> None:
    """Raise ModelError if the tokenizer gives ids that the model has no embedding for."""
    size, highest = config.get_text_config().vocab_size, int(tokens.max())
    if highest >= size:
        raise ModelError(
            f"The tokenizer gives token {highest}, the model knows {size:,}: they do not belong together. "
            "Put the model's own tokenizer into its folder."
        )
