"""A layer of a merged model: the original's layer that it starts from, and what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from swm.models.replay import Replay

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Divided:
    """What happens to a parameter so that what the layer adds to the hidden state is divided.

    Attributes:
        by: the divisor.
        offset: what the layer adds to the parameter before it multiplies by it: 1 for Gemma's norms.
    """

    by: float
    offset: float = 0.0

    def of(self, value: Tensor) -> Tensor:
        """The new parameter, computed in float32."""
        return ((value.detach().float() + self.offset) / self.by - self.offset).to(value.dtype)


@dataclass(frozen=True)
class MergedLayer:
    """One layer made from a window: its base layer, and the parameters that differ from it.

    Attributes:
        factor: multiplies the state after the layer; see `swm.merging.scale.folded`.
        divided: divisors of parameters by name, applied after `parameters`.
    """

    base: int
    parameters: Parameters = field(default_factory=dict)
    factor: float = 1.0
    divided: Mapping[str, Divided] = field(default_factory=dict)

    def run(self, replay: Replay, hidden: Tensor) -> Tensor:
        """The state after the layer for `hidden`, shape (rows, length, width); of a layer that is not folded."""
        after = replay.run(hidden, self.base, self.parameters)
        return after if self.factor == 1 else after * self.factor

    def differs(self) -> set[str]:
        """Names of the parameters that differ from the base layer's."""
        return {*self.parameters, *self.divided}

    def parameter(self, name: str, own: Callable[[], Tensor]) -> Tensor:
        """One of these parameters; `own` gives the base layer's where it is needed."""
        value = self.parameters[name] if name in self.parameters else own()
        return self.divided[name].of(value) if name in self.divided else value
