"""Models with several kinds of layers: planned, merged, healed; or refused when the experiment is created."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import swm.models.layer_facts as layer_facts
from swm.errors import ModelError, PlanError
from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder
from swm.models.layer_facts import check_removable, facts_for, fixed_kinds
from swm.models.replay import Replay
from swm.models.save import save_model
from swm.planners.best import NEAR
from swm.planners.plan_with import plan_with
from swm.registry import PLANNERS
from tests.conftest import in_pairs, tiny_model

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
JAMBA = {"num_experts": 2, "attn_layer_period": 4, "attn_layer_offset": 2, "use_mamba_kernels": False}
HYBRIDS = {
    "bamba": {**MAMBA, "attn_layer_indices": [1, 4, 6]},
    "gpt_neo": {"num_layers": 8, "num_heads": 4, "attention_types": [[["global", "local"], 4]], "window_size": 4},
    "gpt_oss": {**EXPERTS, "head_dim": 8, "sliding_window": 8},
    "jamba": JAMBA,
    "lfm2": {"full_attn_idxs": [1, 4, 6], "block_ff_dim": 64, "conv_L_cache": 3},
    "llama4_text": {**EXPERTS, "interleave_moe_layer_step": 2, "head_dim": 8, "intermediate_size_mlp": 64,
                    "attention_chunk_size": 8},
}  # fmt: skip
LAYERS = 8
METHODS = [planner for planner in PLANNERS if planner != "laco"]  # LaCo merges no layers of random models


def made(kind, layers=LAYERS):
    return tiny_model(kind, layers=layers, **HYBRIDS[kind])


def text_of(count, length, seed=0):
    return torch.randint(0, 300, (count, length), generator=torch.Generator().manual_seed(seed))


@in_pairs(("kind", "planner"), HYBRIDS, METHODS)
def test_every_planners_plan_loads_again_with_the_layers_it_kept(kind, planner, tokenizer, tmp_path):
    """Held against transformers: the saved model has the kept layers' modules and gives the same logits."""
    model, tokens = made(kind), text_of(2, 12)

    def plan_of(planner):
        return plan_with(planner, model, tokens, 6, budget=16, fit_tokens=lambda count: text_of(12, 12, 3))

    if (kind, planner) == ("jamba", "taylor"):  # it keeps the first four layers and the last two
        with pytest.raises(PlanError, match="of the kind its place had"):
            plan_of(planner)
        return
    plan = plan_of(planner)
    small = apply_plan(model, replace(plan, rule="keep_first") if plan.rule in ("fit", "scale") else plan)
    save_model(small, tokenizer, tmp_path / "small", tokens)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not info["missing_keys"]
    for own, old in enumerate(plan.base_layers()):
        kept, original = (find_decoder(each).layers[at] for each, at in ((again, own), (model, old)))
        assert [type(one) for one in kept.modules()] == [type(one) for one in original.modules()]
        torch.testing.assert_close(kept.state_dict(), original.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, small(tokens).logits)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_no_model_is_built_twice_to_find_a_config(kind, monkeypatch):
    model, seen, usual = made(kind), [], layer_facts._layers_of

    def built(build, facts):
        seen.append({**vars(build.config.get_text_config()), **facts})
        return usual(build, facts)

    monkeypatch.setattr(layer_facts, "_layers_of", built)
    layer_facts._facts_found.cache_clear()
    layer_facts._original_layers.cache_clear()
    for _ in range(2):
        with suppress(PlanError):  # it builds the best attempt once more to say what is wrong
            facts_for(model, [0, 1, 2, 4, 5, 6, 7])
    assert len(seen) > 1
    tried = seen[1:] if seen[-1] not in seen[:-1] else seen[1:-1]
    assert all(facts not in tried[:place] for place, facts in enumerate(tried))


@pytest.mark.parametrize("kind", HYBRIDS)
def test_the_layers_run_one_by_one_as_in_the_model(kind):
    model, tokens = made(kind), text_of(2, 12)
    replay = Replay(model, tokens)
    hidden = replay.input_of(0)
    for layer in range(LAYERS):
        hidden = replay.run(hidden, layer)
    with torch.inference_mode():
        torch.testing.assert_close(replay.logits(hidden), model(tokens).logits)


def test_kinds_are_fixed_where_the_config_counts_in_periods():
    with torch.device("meta"):
        kinds = fixed_kinds(made("jamba"))
    # Attention at 2 and 6; every second layer has experts. So four kinds of layers could be, and three are.
    attention, experts = [layer % 4 == 2 for layer in range(LAYERS)], [layer % 2 == 1 for layer in range(LAYERS)]
    assert len({*kinds}) == len({*zip(attention, experts, strict=True)}) == 3
    for one in range(LAYERS):
        for other in range(LAYERS):
            same = (attention[one], experts[one]) == (attention[other], experts[other])
            assert (kinds[one] == kinds[other]) == same


@pytest.mark.parametrize("kind", [kind for kind in HYBRIDS if kind != "jamba"])
def test_kinds_are_free_where_the_config_lists_them(kind):
    assert fixed_kinds(made(kind)) == []
    for removed in range(LAYERS):
        facts_for(made(kind), [layer for layer in range(LAYERS) if layer != removed])


def test_a_family_without_a_fit_gets_its_best_layers_rescaled():
    model, tokens, losses = made("gpt_oss"), text_of(4, 12), {}
    plan = plan_with("best", model, tokens, 6, budget=40, fit_tokens=lambda count: text_of(20, 12, 3), losses=losses)
    assert plan.rule == "scale"
    assert set(losses) == {"dropped", "scale"}
    for name in ("sleb", "perplexity"):
        found, rival = (
            losses["scale"][frozenset(range(LAYERS)) - {*one.base_layers()}]
            for one in (plan, plan_with(name, model, tokens, 6))
        )
        assert found <= rival + NEAR  # nearer ones are compared on other text


def test_routers_of_experts_get_no_adapter():
    from swm.healing.lora import linear_maps

    names = linear_maps(made("llama4_text"), None)
    assert names
    assert not [name for name in names if name.endswith("router")]
    falcon = tiny_model("falcon", new_decoder_architecture=True, num_kv_heads=2)  # has linear maps of its own class
    assert len(linear_maps(falcon, None)) == 4 * 4


LINEAR = {**EXPERTS, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 4}
SHARED = {"mamba_d_state": 8, "n_mamba_heads": 4, "hybrid_layer_ids": [2, 6],
          "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"] * 2}  # fmt: skip

READ_BELOW = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300,
              "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 4}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("minimax", LINEAR, "No layer of MiniMaxForCausalLM can be removed"),  # they decay by their depth
        ("zamba2", SHARED, "some of its layers share their weights"),
        ("rwkv", {}, "it rescales its layers by their place"),
        ("gemma4_text", READ_BELOW, "Re-running the last layer"),  # its last layers read the keys of lower ones
        ("xlstm", {"num_heads": 4, "num_blocks": 8, "embedding_dim": 32}, "xLSTMForCausalLM cannot generate text"),
    ],
)
def test_what_cannot_be_done_right_is_refused_when_it_is_created(
    kind, settings, reason, tokenizer, tmp_path, text_file, home, swm
):
    tiny_model(kind, layers=LAYERS, **settings).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code, _, told = swm(
        "create", "e", "--model", tmp_path / "model", "--texts", text_file, "--count", 4, "--length", 32
    )
    assert (code, reason in told) == (1, True), told
    assert not (home / "experiments" / "e").exists()


def test_a_model_whose_own_code_fails_is_told_in_one_message(tokenizer, tmp_path, text_file, home, swm, monkeypatch):
    tiny_model("helium").save_pretrained(tmp_path / "model")  # its head_dim does not fit its width
    tokenizer.save_pretrained(tmp_path / "model")
    create = ("create", "e", "--model", tmp_path / "model", "--texts", text_file, "--count", 4, "--length", 32)
    code, _, told = swm(*create)
    assert (code, "HeliumForCausalLM cannot read text" in told) == (1, True), told
    monkeypatch.setattr("swm.stages.create.tried_out", lambda model: {})  # as by an earlier release
    swm(*create)
    for command in (
        ("evaluate", "e", "baseline"),
        ("plan", "e", "--planner", "taylor", "--layers", 3),
        ("plan", "e", "--planner", "sleb", "--speedup", 1.3),
        ("measure", "e"),
        ("plan", "e", "--planner", "sleb", "--layers", 3),
        ("merge", "e", "a", "--layers", 3),
    ):
        code, _, told = swm(*command)
        assert (code, "HeliumForCausalLM cannot read text" in told) == (1, True), told
        assert "Traceback" not in told


def test_some_layer_of_every_hybrid_can_go():
    for kind in HYBRIDS:
        check_removable(made(kind))
    with pytest.raises(ModelError, match="No layer of MiniMax"):
        check_removable(
            tiny_model(
                "minimax", layers=4, **EXPERTS, head_dim=8, layer_types=["linear_attention", "full_attention"] * 2
            )
        )
