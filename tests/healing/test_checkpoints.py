"""How much of a healing is lost when its process is killed, and what the checkpoints cost."""

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.healing import trainer
from swm.healing.lora import recover
from swm.healing.trainer import SAVING_SHARE
from swm.texts.example import Example
from swm.workspace.tracked import CLUSTER_JOB
from tests.conftest import WORDS, tiny_model
from tests.healing.lora_cases import SMALL

SPARSE = dataclasses.replace(SMALL, steps=6, save_every=6)


class Killed(BaseException):
    """Ends training at once, as a signal does: nothing is saved."""


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_job_on_a_cluster_loses_one_step_at_most(step, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv(CLUSTER_JOB, "swm-1")
    examples, seen = [Example("", WORDS)] * 40, []

    def killed(done, steps, numbers):
        if "loss" in numbers:
            seen.append(done)
            if done == step:
                raise Killed

    with pytest.raises(Killed):
        recover(tiny_model(), tokenizer, examples, SPARSE, tmp_path, killed)
    assert (tmp_path / f"checkpoint-{step - 1}" / "trainer_state.json").is_file()
    seen.clear()
    recover(tiny_model(), tokenizer, examples, SPARSE, tmp_path, lambda done, *_: seen.append(done))
    assert min(done for done in seen if done) == step


@given(st.floats(0.01, 10), st.floats(0.001, 100), st.integers(5, 400))
def test_elsewhere_checkpoints_take_a_twentieth_of_the_time_at_most(step, save, steps):
    """Time passes only in steps of training and in saving. Between two checkpoints lies as little as that allows."""
    now, saved = [0.0], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: now[0]))
        watch = trainer._Watch(steps, None)
        for done in range(1, steps + 1):
            now[0] += step
            control = SimpleNamespace(should_save=False)
            watch.on_step_end(None, None, control)
            if control.should_save:
                now[0] += save
                watch.on_save(None, None, control)
                saved.append(done)
    spent = save * (len(saved) - 1)  # how long one takes is known after the first
    assert spent <= SAVING_SHARE * step * steps + save
    assert saved[0] == 1
    for one, other in zip(saved, saved[1:], strict=False):
        assert (other - one - 1) * step < save / SAVING_SHARE <= (other - one) * step * (1 + 1e-9)
