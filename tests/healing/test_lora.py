"""LoRA on tiny models: it learns, resumes on the same track, and stops well."""

import dataclasses
import math

import pytest
import torch

from swm.errors import Cancelled, ModelError, SettingsError, TextError
from swm.healing.lora import recover, teacher_of
from swm.healing.rows import training_rows
from swm.models.decoder import find_decoder
from swm.settings import PRESETS, preset_settings
from swm.texts.example import Example
from tests.conftest import WORDS, tiny_model
from tests.healing.lora_cases import SMALL


def losses_of(model, tokenizer, examples, settings, folder, stop_at=None):
    """Loss by step of one recovery; cancelled at a step if asked."""
    losses = {}

    def on_step(step, steps, numbers):
        if "loss" in numbers:
            losses[step] = numbers["loss"]
        if stop_at == step:
            raise Cancelled

    recover(model, tokenizer, examples, settings, folder, on_step)
    return losses


def test_training_lowers_the_held_out_loss_and_leaves_a_plain_model(model, tokenizer, examples, tmp_path):
    settings = dataclasses.replace(SMALL, steps=30, learning_rate=2e-2, save_every=10)
    names = [name for name, _ in model.named_parameters()]
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    healed, summary = recover(model, tokenizer, examples, settings, tmp_path)
    assert summary["held_out_losses"][-1] < summary["held_out_losses"][0] - 0.1
    assert [name for name, _ in healed.named_parameters()] == names
    assert not torch.equal(healed.model.layers[0].mlp.up_proj.weight, before)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    # rank * (in + out) of q, k, v, o, gate, up, down in 4 layers of width 32, keys and values 16, hidden 64
    assert summary["trained_parameters"] == 4 * 4 * (64 + 48 + 48 + 64 + 96 + 96 + 96)


def test_the_first_held_out_loss_is_that_of_the_model_before_training(model, tokenizer, examples, tmp_path):
    rows = training_rows(tokenizer, examples, SMALL)[: SMALL.held_out]
    with torch.inference_mode():
        logits = model(torch.tensor([row["input_ids"] for row in rows])).logits.double()
    labels = torch.tensor([row["labels"] for row in rows])
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    seen = []

    def on_step(step, steps, numbers):
        seen.extend((step, value) for name, value in numbers.items() if name == "held_out_loss")
        if step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        recover(model, tokenizer, examples, SMALL, tmp_path, on_step)
    assert seen[0] == (0, pytest.approx(float(expected), rel=1e-3))  # trained in bfloat16 where that is faster
    losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path)
    recover(tiny_model(), tokenizer, examples, SMALL, tmp_path, on_step)
    assert [step for step, _ in seen].count(0) == 1  # a resumed recovery does not begin again


def test_folded_adapters_give_the_logits_of_base_and_adapter(tokenizer, examples, tmp_path, tokens):
    from peft import PeftModel

    settings = dataclasses.replace(SMALL, learning_rate=2e-2)
    healed, _ = recover(tiny_model(), tokenizer, examples, settings, tmp_path)
    adapted = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
    torch.testing.assert_close(healed(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-4)


def test_cancelled_recovery_goes_on_with_the_same_losses(tokenizer, examples, tmp_path):
    whole = losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path / "whole")
    with pytest.raises(Cancelled):
        losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path / "cut", stop_at=3)
    assert (tmp_path / "cut" / "checkpoint-3").is_dir()
    rest = losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path / "cut")
    assert sorted(rest) == [4, 5, 6]
    assert all(rest[step] == pytest.approx(whole[step], abs=1e-5) for step in rest)


def test_recovery_that_ended_before_the_folding_trains_no_step_more(tokenizer, examples, tmp_path, tokens):
    healed, _ = recover(tiny_model(), tokenizer, examples, SMALL, tmp_path)
    losses = []
    again, _ = recover(
        tiny_model(), tokenizer, examples, SMALL, tmp_path, lambda step, steps, numbers: losses.append(step)
    )
    assert losses == []
    torch.testing.assert_close(again(tokens).logits, healed(tokens).logits)


@pytest.mark.parametrize("left", [[], ["README.md"], ["trainer_state.json"]])
def test_checkpoint_that_a_kill_left_half_written_is_passed_over(tokenizer, examples, tmp_path, left):
    whole = losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path / "whole")
    with pytest.raises(Cancelled):
        losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path / "cut", stop_at=3)
    (tmp_path / "cut" / "checkpoint-4").mkdir()
    for name in left:
        (tmp_path / "cut" / "checkpoint-4" / name).write_text("")
    rest = losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path / "cut")
    assert sorted(rest) == [4, 5, 6]
    assert all(rest[step] == pytest.approx(whole[step], abs=1e-5) for step in rest)


def test_adapters_of_another_model_are_told(tokenizer, examples, tmp_path):
    with pytest.raises(Cancelled):
        losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path, stop_at=2)
    with pytest.raises(ModelError, match="belongs to another model or other settings"):
        losses_of(tiny_model(hidden_size=64), tokenizer, examples, SMALL, tmp_path)


def test_a_recovery_begun_by_processes_that_share_the_weights_is_gone_on_with_by_such(tokenizer, examples, tmp_path):
    with pytest.raises(Cancelled):
        losses_of(tiny_model(), tokenizer, examples, SMALL, tmp_path, stop_at=3)
    (tmp_path / "checkpoint-3" / "pytorch_model_fsdp.bin").touch()
    with pytest.raises(SettingsError, match="was started with sharded weights"):
        recover(tiny_model(), tokenizer, examples, SMALL, tmp_path)


def test_loss_that_is_not_a_number_is_told(model, tokenizer, examples, tmp_path):
    model.model.norm.register_forward_hook(lambda norm, _, states: states * math.nan if norm.training else states)
    with pytest.raises(ModelError, match=r"the loss is not finite at step 1.*--learning-rate"):
        recover(model, tokenizer, examples, SMALL, tmp_path / "diverged")
    broken = tiny_model()
    find_decoder(broken).layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match="not finite before the first step: the model is broken"):
        recover(broken, tokenizer, examples, SMALL, tmp_path / "broken")


def test_too_few_examples_are_told_with_the_numbers(model, tokenizer, tmp_path):
    with pytest.raises(TextError, match=r"gives 1 sequences of 16 tokens, but 2 are held out and a batch needs 2"):
        recover(model, tokenizer, [Example("", WORDS[:50])], SMALL, tmp_path)


def test_adapters_from_a_layer_up_leave_those_below_alone(model, tokenizer, examples, tmp_path):
    weights = [layer.mlp.up_proj.weight.clone() for layer in model.model.layers]
    healed, _ = recover(model, tokenizer, examples, SMALL, tmp_path, layers=[2, 3])
    same = [torch.equal(w, layer.mlp.up_proj.weight) for w, layer in zip(weights, healed.model.layers, strict=True)]
    assert same == [True, True, False, False]


def test_distillation_towards_the_original_itself_has_no_loss(tokenizer, examples, tmp_path):
    settings = dataclasses.replace(SMALL, target="original", steps=2)
    losses = []

    def on_step(step, steps, numbers):
        losses.extend(value for name, value in numbers.items() if name == "loss")

    model = tiny_model()
    teacher = teacher_of(model, tiny_model(), "original")
    recover(model, tokenizer, examples, settings, tmp_path, on_step, teacher=teacher)
    assert losses[0] == pytest.approx(0, abs=1e-3)


def test_distillation_loss_is_the_divergence_from_the_originals_probabilities(tokenizer, examples, tmp_path):
    settings = dataclasses.replace(SMALL, target="original", steps=1, held_out=4, save_every=1, learning_rate=1e-8)
    model, original = tiny_model(seed=1), tiny_model(seed=2)
    rows = torch.tensor([row["input_ids"] for row in training_rows(tokenizer, examples, settings)[:4]])
    with torch.inference_mode():
        own, theirs = (m(rows).logits[:, :-1].double().softmax(-1) for m in (model, original))
    expected = (theirs * (theirs.log() - own.log())).sum(-1).mean()
    _, summary = recover(
        model, tokenizer, examples, settings, tmp_path, teacher=teacher_of(model, original, "original")
    )
    assert summary["held_out_losses"][0] == pytest.approx(float(expected), rel=0.02)


def test_hidden_states_behind_merged_layers_add_their_relative_distance(tokenizer, examples, tmp_path):
    change = {"steps": 1, "held_out": 4, "save_every": 1, "learning_rate": 1e-8}
    rows = torch.tensor([row["input_ids"] for row in training_rows(tokenizer, examples, SMALL)[:4]])
    losses, states = {}, []
    for target in ("original", "hidden"):
        model, original = tiny_model(layers=3, seed=1), tiny_model(layers=4, seed=2)
        if not states:
            with torch.inference_mode():
                pair = (m(rows, output_hidden_states=True).hidden_states for m in (model, original))
                own, theirs = next(pair)[2], next(pair)[3]  # hidden_states[0] is the embedding
            states = [own.double()[:, :-1], theirs.double()[:, :-1]]
        settings = dataclasses.replace(SMALL, target=target, **change)
        folder = tmp_path / target
        teacher = teacher_of(model, original, target, [(1, 2)])
        _, summary = recover(model, tokenizer, examples, settings, folder, teacher=teacher)
        losses[target] = summary["held_out_losses"][0]
    distance = ((states[0] - states[1]) ** 2).sum(-1) / (states[1] ** 2).sum(-1)
    assert losses["hidden"] - losses["original"] == pytest.approx(float(distance.mean()), rel=0.05)


def test_paper_preset_is_the_released_one():
    paper = PRESETS["paper"]
    assert (paper.rank, paper.alpha, paper.dropout, paper.learning_rate) == (8, 16, 0.05, 1e-4)
    assert (paper.batch * paper.accumulate, paper.warmup_steps, paper.length) == (64, 100, 256)
    # 51,760 examples less those held out, two epochs
    assert paper.steps == pytest.approx(2 * 51_760 / 64, rel=0.01)
    assert (paper.texts, paper.loss_on) == ("alpaca-cleaned", "response")


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"rank": 0}, {"learning_rate": math.nan}, {"dropout": 1.5}, {"loss_on": "both"}]
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(SettingsError):
        preset_settings("quick", **change)


def test_unknown_preset_is_refused():
    with pytest.raises(SettingsError, match="'slow' is not a recovery preset"):
        preset_settings("slow")


def test_checkpointing_changes_memory_not_losses(tokenizer, examples, tmp_path):
    off, on = (
        losses_of(tiny_model(), tokenizer, examples, dataclasses.replace(SMALL, checkpointing=how), tmp_path / how)
        for how in ("off", "on")
    )
    assert on == pytest.approx(off, rel=1e-4)
