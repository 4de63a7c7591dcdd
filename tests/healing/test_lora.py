"""LoRA on tiny models: it learns, resumes on the same track, and stops well."""

import copy
import dataclasses
import math

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from swm.errors import Cancelled, ModelError, SettingsError, TextError
from swm.healing.distillation import IGNORED
from swm.healing.layers import adapted_layers
from swm.healing.lora import recover
from swm.healing.rows import training_rows
from swm.models.decoder import find_decoder
from swm.plan import MergePlan, Window
from swm.settings import PRESETS, RecoverySettings, preset_settings
from swm.texts.example import Example
from tests.conftest import WORDS, tiny_model

SMALL = RecoverySettings(steps=6, batch=2, length=16, rank=4, alpha=8, held_out=2, save_every=2, warmup_steps=1)


@pytest.fixture
def examples():
    words = WORDS.split()
    return [Example(" ".join(words[i : i + 5]), " " + " ".join(words[i + 5 : i + 12])) for i in range(30)]


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
    find_decoder(model).layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(ModelError, match=r"the loss is not finite at step 1.*--learning-rate"):
        recover(model, tokenizer, examples, SMALL, tmp_path)


def test_too_few_examples_are_told_with_the_numbers(model, tokenizer, tmp_path):
    with pytest.raises(TextError, match=r"gives 1 sequences of 16 tokens, but 2 are held out and a batch needs 2"):
        recover(model, tokenizer, [Example("", WORDS[:50])], SMALL, tmp_path)


def test_packed_rows_hold_every_token_in_order_with_an_end_between_examples(tokenizer, examples):
    rows = training_rows(tokenizer, examples, SMALL)
    stream = [token for row in rows for token in row["input_ids"]]
    text = "<end>".join(e.prompt + e.response for e in examples)
    assert text.startswith(tokenizer.decode(stream))
    assert all(row["labels"] == row["input_ids"] and len(row["input_ids"]) == 16 for row in rows)


def test_response_loss_labels_the_answer_and_the_end_only(tokenizer):
    settings = dataclasses.replace(SMALL, loss_on="response", length=40)
    row = training_rows(tokenizer, [Example("the old house", " stood")] * 4, settings)[0]
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == " stood<end>"
    assert len(row["input_ids"]) == 40
    assert sum(row["attention_mask"]) == len(tokenizer("the old house stood").input_ids) + 1
    assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


def test_example_whose_prompt_fills_the_sequence_is_left_out(tokenizer):
    settings = dataclasses.replace(SMALL, loss_on="response", length=8)
    rows = training_rows(tokenizer, [Example(WORDS, " yes"), *[Example("", " yes")] * 4], settings)
    assert len(rows) == 4


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

    recover(tiny_model(), tokenizer, examples, settings, tmp_path, on_step, original=tiny_model())
    assert losses[0] == pytest.approx(0, abs=1e-3)


def test_distillation_loss_is_the_divergence_from_the_originals_probabilities(tokenizer, examples, tmp_path):
    settings = dataclasses.replace(SMALL, target="original", steps=1, held_out=4, save_every=1, learning_rate=1e-8)
    model, original = tiny_model(seed=1), tiny_model(seed=2)
    rows = torch.tensor([row["input_ids"] for row in training_rows(tokenizer, examples, settings)[:4]])
    with torch.inference_mode():
        own, theirs = (m(rows).logits[:, :-1].double().softmax(-1) for m in (model, original))
    expected = (theirs * (theirs.log() - own.log())).sum(-1).mean()
    _, summary = recover(model, tokenizer, examples, settings, tmp_path, original=original)
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
        _, summary = recover(model, tokenizer, examples, settings, folder, original=original, behind=[(1, 2)])
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


def test_adapters_go_where_the_settings_say():
    plan = MergePlan(12, (Window(4, 6), Window(9, 10)))  # 9 layers left; merged ones are 4 and 7
    assert adapted_layers(plan, "all") == list(range(9))
    assert adapted_layers(plan, "above") == [2, 3, 4, 5, 6, 7, 8]
    assert adapted_layers(plan, "near") == [3, 4, 5, 6, 7, 8]
    assert adapted_layers(MergePlan(4), "near") == [0, 1, 2, 3]


@pytest.fixture
def bos_tokenizer(tokenizer):
    """As Llama's and Gemma's: a BOS token leads every text."""
    trained = copy.deepcopy(tokenizer.backend_tokenizer)
    trained.add_special_tokens(["<bos>"])
    bos = trained.token_to_id("<bos>")
    trained.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<end>", bos_token="<bos>")


@pytest.mark.parametrize("loss_on", ["text", "response"])
def test_recovery_text_begins_as_the_family_begins_every_text(bos_tokenizer, examples, loss_on):
    bos, end = bos_tokenizer.bos_token_id, bos_tokenizer.eos_token_id
    rows = [r["input_ids"] for r in training_rows(bos_tokenizer, examples, dataclasses.replace(SMALL, loss_on=loss_on))]
    assert all(row[0] == bos and row[1] != bos for row in rows)
    if loss_on == "text":
        # The tokenizer's own ids of each example, an end after each; the leads of rows are all that is added.
        whole = [t for e in examples for t in (*bos_tokenizer(e.prompt + e.response).input_ids, end)]
        found = [t for row in rows for t in row[1:]]
        plain = [t for t in whole if t != bos]
        assert [t for t in found if t != bos] == plain[: len([t for t in found if t != bos])]
        inner = [i for row in rows for i, t in enumerate(row) if t == bos and i]
        assert inner, "texts that begin within a row are led by it as well"
        assert all(row[i - 1] == end for row in rows for i, t in enumerate(row) if t == bos and i)
    else:
        assert (
            rows[0]
            == bos_tokenizer(examples[0].prompt).input_ids
            + (bos_tokenizer(examples[0].response, add_special_tokens=False).input_ids + [end] * 16)[
                : 16 - len(bos_tokenizer(examples[0].prompt).input_ids)
            ]
        )
