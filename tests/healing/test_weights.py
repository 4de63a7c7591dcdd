"""Training some layers' weights themselves."""

import dataclasses
from itertools import combinations

import pytest
import torch
from safetensors.torch import load_file

from swm.errors import Cancelled, SettingsError
from swm.healing.lora import recover
from swm.healing.quantized import check_quantizes
from swm.settings import preset_settings
from swm.workspace.experiments import Experiment
from tests.conftest import tiny_model
from tests.healing.lora_cases import SMALL

LAST = dataclasses.replace(SMALL, train="weights", adapt="last", learning_rate=1e-2)


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def changed(before, model):
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("tied", [False, True])
def test_the_last_three_layers_and_a_head_of_its_own_change_and_nothing_else(tied, tokenizer, examples, tmp_path):
    model = tiny_model(layers=5, tie_word_embeddings=tied)
    before = weights_of(model)
    healed, summary = recover(model, tokenizer, examples, LAST, tmp_path, layers=[2, 3, 4])
    expected = {name for name in before if name.startswith(("model.layers.2", "model.layers.3", "model.layers.4"))}
    expected |= set() if tied else {"lm_head.weight"}
    assert changed(before, healed) == expected
    assert summary["trained_parameters"] == sum(before[name].numel() for name in expected)
    assert [name for name, _ in healed.named_parameters()] == list(before)
    assert {str(weight.dtype) for weight in healed.parameters()} == {"torch.float32"}
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.removeprefix("base_model.model.") for name in stored} == expected
    for name in expected:
        assert torch.equal(stored[f"base_model.model.{name}"], healed.state_dict()[name])


def test_one_step_is_that_of_plain_torch(tokenizer, examples, tmp_path, monkeypatch):
    """The first step of AdamW moves each weight by the learning rate against the sign of its gradient."""
    from swm.healing import trainer
    from swm.healing.rows import training_rows

    monkeypatch.setattr(trainer, "bfloat16_is_faster", lambda device: False)
    settings = dataclasses.replace(LAST, steps=1, warmup_steps=0, schedule="constant", learning_rate=1e-3)
    model = tiny_model(layers=3)
    before, rows = weights_of(model), training_rows(tokenizer, examples, settings)[settings.held_out :]
    healed, _ = recover(model, tokenizer, examples, settings, tmp_path, layers=[1, 2])
    name = "model.layers.1.mlp.up_proj.weight"
    plain, moved = tiny_model(layers=3), healed.state_dict()[name] - before[name]

    def fits(pair):
        """Whether the step is that of this batch: the Trainer shuffled the rows."""
        ids = torch.tensor([row["input_ids"] for row in pair])
        plain.zero_grad()
        plain(ids, labels=ids).loss.backward()
        gradient = plain.get_parameter(name).grad
        clear = gradient.abs() > 1e-4
        return torch.allclose(moved[clear], -1e-3 * gradient.sign()[clear], rtol=0.02)

    assert any(map(fits, combinations(rows, 2)))


@pytest.mark.parametrize("faster", [True, False])
def test_a_model_of_two_bytes_learns_in_four_and_keeps_two(faster, tokenizer, examples, tmp_path, monkeypatch):
    """Steps of 1e-3 are lost in bfloat16 on weights near 1; added up in float32 they show."""
    from swm.healing import trainer

    monkeypatch.setattr(trainer, "bfloat16_is_faster", lambda device: faster)
    settings = dataclasses.replace(LAST, steps=40, warmup_steps=0, schedule="constant", learning_rate=1e-3)
    model = tiny_model(layers=3).bfloat16()
    before = weights_of(model)
    healed, _ = recover(model, tokenizer, examples, settings, tmp_path, layers=[0, 1, 2])
    assert {weight.dtype for weight in healed.parameters()} == {torch.bfloat16}
    name = "model.layers.1.input_layernorm.weight"
    assert (healed.state_dict()[name] != before[name]).float().mean() > 0.3


def test_cancelled_it_goes_on_with_the_same_weights(tokenizer, examples, tmp_path):
    whole, _ = recover(tiny_model(), tokenizer, examples, LAST, tmp_path / "whole", layers=[1, 2, 3])

    def stop(step, steps, numbers):
        if step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        recover(tiny_model(), tokenizer, examples, LAST, tmp_path / "cut", stop, layers=[1, 2, 3])
    rest, _ = recover(tiny_model(), tokenizer, examples, LAST, tmp_path / "cut", layers=[1, 2, 3])
    for (name, one), (_, two) in zip(whole.named_parameters(), rest.named_parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5, msg=name)


MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(("kind", "changes"), [("mixtral", MIXTRAL), ("mamba", {"state_size": 4, "head_dim": 8})])
def test_every_number_of_a_layer_is_trained_experts_and_mixers_as_well(kind, changes, tokenizer, examples, tmp_path):
    model = tiny_model(kind, layers=3, **changes)
    before = weights_of(model)
    layers = "model.layers." if kind == "mixtral" else "backbone.layers."
    settings = dataclasses.replace(LAST, adapt="all", steps=4)
    healed, summary = recover(model, tokenizer, examples, settings, tmp_path, layers=[1, 2])
    inside = {name for name in before if name.startswith((f"{layers}1.", f"{layers}2."))}
    assert summary["trained_parameters"] == sum(before[name].numel() for name in inside)
    assert changed(before, healed) <= inside
    assert len(changed(before, healed)) > 0.7 * len(inside)  # a router or an unused expert may stay as it is
    assert [name for name, _ in healed.named_parameters()] == list(before)


def test_weights_of_four_bits_cannot_be_trained():
    with pytest.raises(SettingsError, match="--train weights does not work with --quantization nf4"):
        check_quantizes(preset_settings("qlora", train="weights"))


def test_what_was_trained_is_named_wherever_the_model_is(swm, model_folder, text_file, tmp_path):
    made = swm("create", "mine", "--model", model_folder, "--texts", text_file, "--count", 3, "--length", 32)
    assert made[0] == 0
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    small = ("--steps", 2, "--batch", 2, "--length", 32, "--held-out", 2, "--texts", text_file)
    code, told, _ = swm("recover", "mine", "a", "--train", "weights", "--adapt", "last", *small)
    assert code == 0
    summary = Experiment.open("mine").run("a").settings["recovery"]
    before, after = summary["held_out_losses"]
    assert f"held-out loss {after:.3f} ({before:.3f} before)" in told
    assert "a (merged + training)" in swm("compare", "mine")[1]
    assert swm("export", "mine", "a", tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Healed by training the weights of the last three layers: 2 steps of 2 x 32 tokens" in card
    assert "rank" not in card


def test_a_run_healed_before_there_were_these_settings_is_healed_otherwise_when_asked(swm, model_folder, text_file):
    made = swm("create", "mine", "--model", model_folder, "--texts", text_file, "--count", 3, "--length", 32)
    assert made[0] == 0
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    small = ("--steps", 2, "--batch", 2, "--length", 32, "--held-out", 2, "--texts", text_file)
    assert swm("recover", "mine", "a", *small)[0] == 0
    run = Experiment.open("mine").run("a")
    run.remember(recovery={key: value for key, value in run.settings["recovery"].items() if key != "train"})
    code, _, told = swm("recover", "mine", "a", "--train", "weights", *small)
    assert (code, "train: adapters (requested: weights)" in told) == (1, True), told
    assert "nothing to do" in swm("recover", "mine", "a", *small)[1]
    assert swm("recover", "mine", "a", "--train", "weights", "--again", *small)[0] == 0
    assert Experiment.open("mine").run("a").settings["recovery"]["trained_parameters"] > 10_000
