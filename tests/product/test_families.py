"""Every family of decoder-only models that we say works, as a tiny random model, through the whole engine."""

import functools
import json
import subprocess
import sys

import pytest
import torch

from swm.errors import PlanError
from swm.healing.lora import recover
from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder
from swm.models.known import TESTED_FAMILIES
from swm.models.load import load_model, save_model
from swm.models.replay import Replay
from swm.plan import MergePlan, Window
from swm.search.find import find_plan, threshold_path
from swm.search.window_score import WindowScorer
from swm.settings import ExperimentSettings, RecoverySettings
from swm.similarity.layers import layer_similarity
from swm.stages.create import create_experiment
from swm.stages.measure_plan import measure_plan
from swm.texts.example import Example
from tests.conftest import WEIGHT_RULES, WORDS, in_pairs, tiny_model

LAYERS = 6
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 3},
    "phi3": {},
    "olmo2": {},
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "stablelm": {},
    "granite": {},
    "smollm3": {"no_rope_layer_interval": 3},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
UNLIKE_FAMILIES = ("llama", "gemma2", "gpt2", "falcon", "qwen3_moe")  # where one of a kind is enough


def made(family):
    return tiny_model(family, layers=LAYERS, **FAMILIES[family])


def test_the_families_that_are_listed_are_these():
    assert list(FAMILIES) == list(TESTED_FAMILIES)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@torch.inference_mode()
def logits(model, tokens):
    return model(tokens, use_cache=False).logits


def test_replay_equals_the_models_own_forward(family, tokens):
    model = made(family)
    for keep_every in (1, 2):
        replay = Replay(model, tokens, keep_every)
        with torch.inference_mode():
            expected = model.base_model(input_ids=tokens, use_cache=False)[0]
        for start in (0, 3, LAYERS - 1):
            hidden = replay.input_of(start)
            for layer in range(start, LAYERS):
                hidden = replay.run(hidden, layer)
            assert torch.equal(replay.finish(hidden), expected)


def test_empty_plan_changes_no_logit(family, tokens):
    model = made(family)
    assert torch.equal(logits(apply_plan(model, MergePlan(LAYERS)), tokens), logits(model, tokens))


@in_pairs(("family", "rule"), FAMILIES, WEIGHT_RULES)
def test_score_equals_that_of_a_model_really_built(family, rule, tokens):
    model = made(family)
    scorer = WindowScorer(model, tokens, rule)
    for above, window in (((), Window(3, 4)), ((), Window(2, 4)), ((Window(3, 4),), Window(0, 2))):
        small = apply_plan(model, MergePlan(LAYERS, tuple(sorted((*above, window))), rule))
        with torch.inference_mode():
            x, y = (m.base_model(input_ids=tokens, use_cache=False)[0].flatten(1).double() for m in (small, model))
        expected = torch.nn.functional.cosine_similarity(x, y).mean()
        assert scorer.score(above, window) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("rule", WEIGHT_RULES)
@pytest.mark.parametrize(("family", "seed"), [("llama", 1), ("llama", 2), ("gemma3_text", 1), ("gpt2", 1)])
def test_path_gives_the_plain_search_at_200_random_thresholds(family, seed, rule, tokens):
    model = tiny_model(family, layers=LAYERS, seed=seed, **FAMILIES[family])
    scorer = WindowScorer(model, tokens, rule)
    path = threshold_path(LAYERS, scorer.score, 0.02, rule=rule)
    fresh = functools.cache(WindowScorer(model, tokens, rule).score)
    for threshold in torch.rand(200, generator=torch.Generator().manual_seed(seed)).mul(0.98).add(0.02).tolist():
        assert path.plan_at(threshold).plan == find_plan(LAYERS, fresh, threshold, rule=rule)


def test_merged_model_generates_with_cache_as_without(family, tokens):
    for rule, windows in (("rdsc", (Window(2, 4),)), ("keep_last", (Window(0, 1), Window(3, 4)))):
        small = apply_plan(made(family), MergePlan(LAYERS, windows, rule))
        arguments = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
        cached, plain = (small.generate(tokens[:1], use_cache=cache, **arguments) for cache in (True, False))
        assert torch.equal(cached, plain)


def test_similarity_of_all_layers(family, tokens):
    matrix = layer_similarity(made(family), tokens)
    assert matrix.shape == (LAYERS, LAYERS)
    assert torch.isfinite(matrix).all()


def test_recovery_with_lora(family, tokenizer, tmp_path, tokens):
    small = apply_plan(made(family), MergePlan(LAYERS, (Window(2, 4),)))
    before = logits(small, tokens).clone()
    settings = RecoverySettings(
        steps=2, batch=2, length=16, rank=2, alpha=4, held_out=2, save_every=2, warmup_steps=0, target="text"
    )
    examples = [Example("", WORDS) for _ in range(4)]
    healed, _ = recover(small, tokenizer, examples, settings, tmp_path)
    assert not torch.equal(logits(healed, tokens), before)
    assert torch.isfinite(logits(healed, tokens)).all()
    save_model(healed, tokenizer, tmp_path / "healed")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "healed"))[0], tokens), logits(healed, tokens))


FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids = torch.tensor(json.loads(sys.argv[1]))
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        found[folder] = model(ids, use_cache=False).logits[0, -1].tolist()
print(json.dumps(found))
"""


@pytest.mark.cold
def test_every_merged_model_reloads_in_a_fresh_process_with_equal_logits(tokenizer, tokens, tmp_path, often):
    expected = {}
    for family in FAMILIES:
        both = (("rdsc", (Window(0, 1), Window(3, 4))), ("keep_last", (Window(1, 4),)))
        for rule, windows in both if often(0, 1) else both[len(expected) % 2 :][:1]:
            small = apply_plan(made(family), MergePlan(LAYERS, windows, rule))
            folder = str(tmp_path / f"{family}-{rule}")
            save_model(small, tokenizer, folder)
            expected[folder] = logits(small, tokens)[0, -1].tolist()
    arguments = [sys.executable, "-c", FRESH, json.dumps(tokens.tolist()), *expected]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed.splitlines()[-1])
    for folder, values in expected.items():
        assert found[folder] == pytest.approx(values, rel=1e-4, abs=1e-5), folder


def test_tied_embeddings_stay_tied(tokenizer, tmp_path, tokens):
    model = tiny_model(layers=4, tie_word_embeddings=True)
    small = apply_plan(model, MergePlan(4, (Window(1, 2),)))
    assert small.lm_head.weight is small.model.embed_tokens.weight
    save_model(small, tokenizer, tmp_path / "tied")
    assert torch.equal(logits(load_model(str(tmp_path / "tied"))[0], tokens), logits(small, tokens))


def test_model_of_two_layers_keeps_its_last_and_merges_nothing(tokens):
    model = tiny_model(layers=2)
    path = threshold_path(2, WindowScorer(model, tokens).score, 0.01)
    assert [step.plan.windows for step in path.intervals()] == [()]
    assert layer_similarity(model, tokens).shape == (2, 2)


def test_texts_that_are_all_the_same_are_no_obstacle():
    tokens = torch.randint(0, 300, (1, 32), generator=torch.Generator().manual_seed(4)).repeat(5, 1)
    model = tiny_model(layers=5)
    assert torch.isfinite(layer_similarity(model, tokens)).all()
    one, five = (threshold_path(5, WindowScorer(model, t).score, 0.05).similarities for t in (tokens[:1], tokens))
    assert {key: five[key] for key in one} == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("rule", WEIGHT_RULES)
def test_weights_in_mixed_number_formats_keep_theirs(tokens, rule):
    model = tiny_model(layers=4)
    for layer in find_decoder(model).layers:
        layer.mlp.to(torch.bfloat16)
        layer.mlp.register_forward_pre_hook(lambda module, args: (args[0].to(torch.bfloat16),))
        layer.mlp.register_forward_hook(lambda module, args, result: result.float())
    small = apply_plan(model, MergePlan(4, (Window(0, 2),), rule))
    merged = find_decoder(small).layers[0]
    assert merged.mlp.up_proj.weight.dtype == torch.bfloat16
    assert merged.self_attn.q_proj.weight.dtype == torch.float32
    assert torch.isfinite(logits(small, tokens)).all()
    assert abs(WindowScorer(model, tokens, rule).score((), Window(0, 2))) < 1


def test_a_plan_across_the_border_is_refused_when_it_is_measured(tmp_path, tokenizer, text_file, home):
    model = tiny_model("qwen3_moe", layers=4, **{**FAMILIES["qwen3_moe"], "mlp_only_layers": [0, 1]})
    model.save_pretrained(tmp_path / "hybrid")
    tokenizer.save_pretrained(tmp_path / "hybrid")
    study = create_experiment("study", ExperimentSettings(str(tmp_path / "hybrid"), str(text_file), 3, 32))
    with pytest.raises(PlanError, match="Cannot merge window 1-2: layers"):
        measure_plan(study, MergePlan(4, (Window(1, 2),)))
    assert measure_plan(study, MergePlan(4, (Window(2, 3),)))["perplexity"] > 1


def test_hybrid_model_refuses_windows_across_the_border_by_name(tokens):
    model = tiny_model("qwen3_moe", layers=4, **{**FAMILIES["qwen3_moe"], "mlp_only_layers": [0, 1]})
    kinds = [type(layer.mlp).__name__ for layer in find_decoder(model).layers]
    assert kinds[0] != kinds[2]
    assert WindowScorer(model, tokens).score((), Window(1, 2)) == 0.0
    small = apply_plan(model, MergePlan(4, (Window(0, 1),)))
    assert small.config.mlp_only_layers == [0]
    assert torch.isfinite(logits(small, tokens)).all()
