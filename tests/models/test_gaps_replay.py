"""What a replay promises beside its scores: other texts, logits, refusals, and how often layers are run."""

import copy

import pytest
import torch

from swm.errors import ModelError, TextError
from swm.models.layer_outputs import check_tokens, hidden_of, layer_outputs, split_call
from swm.models.replay import Replay
from tests.conftest import tiny_model


def texts_of(texts, length, seed=3):
    return torch.randint(1, 300, (texts, length), generator=torch.Generator().manual_seed(seed))


FAMILIES = {
    "llama": {},
    "gpt2": {"n_layer": 3},
    "gemma3_text": {"head_dim": 8},
    "falcon": {},  # layers give a tuple
    "openai-gpt": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},  # a list
    "xglm": {"num_layers": 3, "attention_heads": 4, "d_model": 32, "ffn_dim": 64},  # are called with the mask by place
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("texts", [2, 5])
def test_other_texts_run_from_their_embedding_end_in_the_models_own_logits(kind, texts):
    model = tiny_model(kind, layers=3, **FAMILIES[kind])
    replay, others = Replay(model, texts_of(3, 8)), texts_of(texts, 8, seed=9)
    hidden = replay.embedded(others)
    for layer in range(3):
        hidden = replay.run(hidden, layer)
    with torch.inference_mode():
        whole = model(others, use_cache=False)
    torch.testing.assert_close(replay.logits(hidden), whole.logits, rtol=1e-4, atol=1e-5)
    if kind == "llama":
        assert torch.equal(replay.embedded(others), model.model.embed_tokens(others))


def test_a_model_that_leaves_a_layer_out_is_refused(monkeypatch):
    model = tiny_model(layers=4)
    monkeypatch.setattr(model.model, "config", copy.deepcopy(model.config))
    model.model.config.num_hidden_layers = 3  # what its forward goes by
    with pytest.raises(ModelError, match="called layers 3 times but has 4: it skips or repeats some"):
        Replay(model, texts_of(2, 8))


def test_a_model_that_changes_the_state_between_layers_is_refused_with_both_numbers():
    model = tiny_model(layers=4)
    model.model.layers[2].register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    with pytest.raises(ModelError, match="it changes the hidden state between layers 1 and 2."):
        Replay(model, texts_of(2, 8))


@pytest.mark.parametrize(
    ("dtype", "fast", "change", "refused"),
    [
        (torch.float32, False, 1.005, True),
        (torch.float32, False, 1.0005, False),
        (torch.float32, True, 1.005, False),
        (torch.float32, True, 1.05, True),
        (torch.bfloat16, False, 1.005, False),
        (torch.bfloat16, False, 1.05, True),
    ],
)
def test_a_last_layer_that_gives_another_result_is_refused_beyond_what_rounding_does(dtype, fast, change, refused):
    # The final norm would take a factor away, so half of the width is changed.
    model, calls = tiny_model(layers=3).to(dtype), []

    def grow(module, args, result):
        calls.append(1)
        scale = torch.ones(32, dtype=dtype)
        scale[:16] = change if len(calls) > 1 else 1
        return result * scale

    model.model.layers[-1].register_forward_hook(grow)
    if refused:
        with pytest.raises(
            ModelError, match="Re-running the last layer on its recorded input gives a different result"
        ):
            Replay(model, texts_of(2, 8), fast=fast)
    else:
        Replay(model, texts_of(2, 8), fast=fast)
    assert len(calls) == 2


@pytest.mark.parametrize(("keep_every", "layer", "again"), [(1, 5, 0), (4, 4, 0), (4, 6, 2), (4, 3, 3), (3, 5, 2)])
def test_a_state_between_those_that_are_kept_is_computed_once_and_only_from_the_one_below(keep_every, layer, again):
    # 10 layers: of every 4th, 0, 4 and 8 are kept, and 9, where a search begins; those between two at once.
    replay = Replay(tiny_model(layers=10), texts_of(3, 8), keep_every)
    before = replay.layer_runs
    assert before == pytest.approx(11)  # each layer, and the last one again
    assert replay.input_of(9, torch.tensor([2])).shape == (1, 8, 32)
    assert replay.layer_runs == before
    replay.input_of(layer)
    computed = replay.layer_runs - before
    assert computed == pytest.approx(keep_every - 1 if again else 0)
    replay.input_of(layer)
    replay.input_of(layer - again)
    assert replay.layer_runs - before == pytest.approx(computed)


def test_states_of_some_texts_are_computed_for_those_alone_and_the_rest_when_asked_for():
    model, tokens = tiny_model(layers=9), texts_of(5, 8)
    replay = Replay(model, tokens, keep_every=4, part=2)
    before = replay.layer_runs
    whole = layer_outputs(model, tokens)[1]
    assert torch.allclose(replay.input_of(2, torch.tensor([3, 1])), whole[1][[3, 1]], atol=1e-6)
    assert replay.layer_runs - before == pytest.approx(3 * 2 / 5)  # layers 0 to 2, for two of five texts
    assert torch.allclose(replay.input_of(3), whole[2], atol=1e-6)
    assert replay.layer_runs - before == pytest.approx(3)
    assert torch.allclose(replay.input_of(6, torch.tensor([0])), whole[5][[0]], atol=1e-6)
    assert replay.layer_runs - before == pytest.approx(3 + 3 / 5)
    assert torch.allclose(replay.input_of(1, torch.tensor([4])), whole[0][[4]], atol=1e-6)
    assert replay.layer_runs - before == pytest.approx(3 + 6 / 5)  # what lay between 0 and 4 was let go


def test_recording_leaves_no_hook_and_no_replaced_forward_behind():
    model, tokens = tiny_model(layers=3), texts_of(3, 8)
    with torch.inference_mode():
        before = model(tokens).logits
    replay = Replay(model, tokens, part=2)
    replay.logits(replay.reference[:1])
    replay.embedded(tokens)
    layer_outputs(model, tokens)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, before)


def test_a_forward_that_somebody_put_there_is_there_again_even_after_an_error():
    model, tokens = tiny_model(layers=3), texts_of(3, 8)
    replay, last = Replay(model, tokens), model.model.layers[2]
    plain = last.forward
    own = last.forward = lambda *args, **kwargs: plain(*args, **kwargs)
    replay.embedded(texts_of(2, 8))
    assert vars(last)["forward"] is own
    with pytest.raises(IndexError):
        replay.embedded(torch.full((2, 8), 10**6))
    assert vars(last)["forward"] is own
    assert "forward" not in vars(model.model.layers[0])


def test_a_layers_own_parameters_can_be_replaced_and_stay_as_they_were():
    model, tokens = tiny_model(layers=3), texts_of(3, 8)
    replay, layer = Replay(model, tokens), model.model.layers[1]
    zero = {"mlp.down_proj.weight": torch.zeros(32, 64), "self_attn.o_proj.weight": torch.zeros(32, 32)}
    hidden = replay.input_of(1)
    assert torch.equal(replay.run(hidden, 1, zero), hidden)  # nothing is added to the residual stream
    assert layer.mlp.down_proj.weight.abs().sum() > 0
    assert not torch.equal(replay.run(hidden, 1), hidden)


def test_a_call_is_the_hidden_state_and_the_rest_by_place_or_by_name():
    given = {"mask": 3}
    assert split_call((1, 2, 4), given) == (1, ((2, 4), {"mask": 3}))
    given["hidden_states"] = 5
    assert split_call((), given) == (5, ((), {"mask": 3}))
    assert given == {"mask": 3, "hidden_states": 5}


def test_hidden_state_is_the_result_or_the_first_of_several():
    x = torch.ones(1)
    assert hidden_of(x) is hidden_of((x, None)) is hidden_of([x, x + 1]) is x


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (1, 2, 3)])
def test_texts_are_rows_of_tokens_or_refused(shape):
    with pytest.raises(TextError, match="expected one non-empty row per text"):
        check_tokens(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(TextError, match="expected one non-empty row per text"):
        layer_outputs(tiny_model(layers=1), torch.zeros(shape, dtype=torch.int64))
    check_tokens(torch.zeros(1, 1, dtype=torch.int64))


def test_layer_outputs_that_overflow_are_told_with_layer_and_format():
    model = tiny_model(layers=3).to(torch.bfloat16)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match="The output of layer 0 is not finite .NaN or infinity. in bfloat16. Check"):
        layer_outputs(model, texts_of(2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_in_a_file_are_those_of_memory_in_the_models_own_format(dtype, home):
    model, tokens = tiny_model(layers=5).to(dtype), texts_of(3, 8)
    lean, plain = (Replay(model, tokens, keep_every=2, part=2, lean=lean) for lean in (True, False))
    for layer in range(5):
        assert lean.input_of(layer).dtype == dtype
        assert torch.equal(lean.input_of(layer), plain.input_of(layer))
    assert torch.equal(lean.reference, plain.reference)
    assert list((home / "cache").iterdir()) == []
