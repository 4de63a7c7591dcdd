"""One layer of a replayed model, with its weights in memory and some of them replaced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swm.models.offload import bare, weights_of
from swm.models.replay import Replay


class OneLayer:
    """A layer that is run as in its place in the model, but whose weights are in memory and can be replaced.

    Args:
        replay: of the model, which is not changed; its weights may be spread over devices or disk.
        index: of the layer.
        device: where it runs.
        parameters: by name, instead of the layer's own.

    Memory: what is replaced, and the weights that are on another device or on disk.
    """

    def __init__(
        self, replay: Replay, index: int, device: torch.device, parameters: dict[str, Tensor] | None = None
    ) -> None:
        own = weights_of(replay.layers[index])
        self.index, self.module = index, bare(replay.layers[index])
        self._replay, self._device = replay, device
        given = parameters or {}
        self.replace({name: given[name] if name in given else own[name] for name in own})
        self.module.to(device)  # buffers

    def replace(self, parameters: dict[str, Tensor]) -> None:
        """Put other weights in place of the layer's own."""
        for name, tensor in parameters.items():
            path, _, attribute = name.rpartition(".")
            weight = nn.Parameter(tensor.detach().to(self._device), requires_grad=False)
            setattr(self.module.get_submodule(path), attribute, weight)

    def run(self, hidden: Tensor) -> Tensor:
        """Output of the layer for `hidden`, shape (rows, length, width)."""
        return self._replay.run(hidden, self.index, module=self.module)
