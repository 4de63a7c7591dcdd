"""Hooks are there in the block and nowhere after it, however it ends."""

import pytest
import torch

from swm.models.hooks import hooked


def test_hooks_end_with_the_block_also_when_it_fails():
    layer, seen = torch.nn.Linear(2, 2), []
    register = lambda: layer.register_forward_hook(lambda *_: seen.append(1))  # noqa: E731
    with hooked(register() for _ in range(3)):
        layer(torch.zeros(2))
    layer(torch.zeros(2))
    assert seen == [1, 1, 1]
    with pytest.raises(KeyError), hooked([register()]):
        raise KeyError
    layer(torch.zeros(2))
    assert len(seen) == 3
