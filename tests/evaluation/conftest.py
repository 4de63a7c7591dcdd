"""Fixtures that several test files of evaluation use."""

import pytest

from swm.models.decoder import find_decoder


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for layers: each adds 1 ms, the model's head 2 ms."""
    now = [0.0]
    for module in ("swm.evaluation.speed", "swm.evaluation.cost"):
        monkeypatch.setattr(f"{module}.time.perf_counter", lambda: now[0])

    def wound(model):
        def tick(milliseconds):
            return lambda module, args, output: now.__setitem__(0, now[0] + milliseconds / 1000)

        for layer in find_decoder(model).layers:
            layer.register_forward_hook(tick(1.0))
        model.get_output_embeddings().register_forward_hook(tick(2.0))
        return model

    wound.wait = lambda seconds: now.__setitem__(0, now[0] + seconds)
    return wound
