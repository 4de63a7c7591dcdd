"""What configs say of single layers, after some are gone: expected values by hand, and the reloaded model's logits."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from swm.errors import ModelError, PlanError
from swm.merging.apply import apply_plan
from swm.merging.stream import stream_merge
from swm.models.decoder import find_decoder
from swm.models.layer_facts import facts_for
from swm.models.load import save_model
from swm.models.save import check_complete
from swm.plan import MergePlan, Window
from tests.conftest import tiny_model

GRIFFIN = {"lru_width": 32, "attention_window_size": 16}  # RecurrentGemma: two recurrent layers, then attention
DEEPSEEK = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1}
QWEN_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
JAMBA = {"num_experts": 2, "attn_layer_period": 4, "attn_layer_offset": 2, "use_mamba_kernels": False}


def test_an_entry_for_each_layer_keeps_the_kept_layers():
    model = tiny_model("gemma3_text", layers=4, head_dim=8)
    kinds = model.config.layer_types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    assert facts_for(model, [0, 3]) == {"layer_types": [kinds[0], kinds[3]], "num_hidden_layers": 2}


def test_a_list_as_long_as_the_layers_by_chance_is_left_alone():
    # Falcon-H1 has five multipliers for the five parts of its state space; here it has five layers, too.
    model = tiny_model("falcon_h1", layers=5, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8)
    assert facts_for(model, [0, 1, 4])["ssm_multipliers"] == model.config.ssm_multipliers


CASES = {
    "a pattern that repeats": (
        "recurrent_gemma", GRIFFIN, (Window(0, 1),), "keep_first",
        ("block_types", ["recurrent", "attention", "recurrent", "recurrent", "attention"]),
    ),
    "the first so many": (
        "deepseek_v3", {**DEEPSEEK, "first_k_dense_replace": 3}, (Window(1, 2),), "mean", ("first_k_dense_replace", 2),
    ),
    "where they begin and end": (
        "ernie4_5_moe", {**ERNIE, "moe_layer_start_index": 2, "moe_layer_end_index": 4}, (Window(0, 1), Window(3, 4)),
        "keep_first", ("moe_layer_end_index", 2),
    ),
    "indexes of layers": (
        "qwen3_moe", {**QWEN_MOE, "mlp_only_layers": [0, 4]}, (Window(1, 2),), "keep_last", ("mlp_only_layers", [0, 3]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_facts_of_any_kind_go_along_with_their_layers(case, tokens, tokenizer, tmp_path):
    kind, settings, windows, rule, (name, expected) = CASES[case]
    layers = 6
    model = tiny_model(kind, layers=layers, **settings)
    small = apply_plan(model, MergePlan(layers, windows, rule))
    assert getattr(small.config, name) == expected
    save_model(small, tokenizer, tmp_path / "small", tokens)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not info["missing_keys"]
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, small(tokens).logits)
    # The layers that stay are those of the original, kind by kind.
    bases = [w.last if rule == "keep_last" else w.first for w in MergePlan(layers, windows, rule).kept_layers()]
    for own, old in enumerate(bases):
        a, b = ([type(m) for m in find_decoder(x).layers[i].modules()] for x, i in ((again, own), (model, old)))
        assert a == b


def test_layers_of_another_shape_can_be_dropped_beside_one_another(tokens):
    model = tiny_model("qwen3_moe", layers=4, **QWEN_MOE, mlp_only_layers=[1])
    small = apply_plan(model, MergePlan(4, (Window(0, 1),), "keep_first"))
    assert small.config.mlp_only_layers == []
    with pytest.raises(PlanError, match="layers 0 and 1 differ in shape"):
        apply_plan(model, MergePlan(4, (Window(0, 1),), "mean"))


def test_a_plan_that_no_config_can_say_is_refused_when_it_is_made():
    # Jamba's config has a period and an offset: attention at 2, 6, 10 cannot become 1, 5, 9 and stay 10, 14.
    model = tiny_model("jamba", layers=12, **JAMBA)
    with pytest.raises(
        PlanError, match="Cannot save this plan: the config of JambaForCausalLM cannot describe the layers"
    ):
        apply_plan(model, MergePlan(12, (Window(4, 5),), "keep_first"))
    assert apply_plan(model, MergePlan(12, (Window(10, 11),), "keep_first")).config.num_hidden_layers == 11


def test_streamed_models_are_whole_too(tokens, tokenizer, tmp_path):
    model = tiny_model("recurrent_gemma", layers=6, **GRIFFIN)
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    plan = MergePlan(6, (Window(0, 1),), "keep_first")
    stream_merge(str(tmp_path / "source"), plan, tmp_path / "streamed")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed", output_loading_info=True)
    assert not info["missing_keys"]
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, apply_plan(model, plan)(tokens).logits)


def test_files_that_do_not_hold_what_the_config_says_are_refused(model, tokenizer, tmp_path, capfd):
    save_model(model, tokenizer, tmp_path / "saved")
    capfd.readouterr()
    config = (tmp_path / "saved" / "config.json").read_text()
    for changed, message in (
        (config.replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'), "layers.4.* is not in the files"),
        (config.replace('"num_hidden_layers": 4', '"num_hidden_layers": 3'), "layers.3.* is not in the model"),
        (
            config.replace('"intermediate_size": 64', '"intermediate_size": 48'),
            "a weight's shape does not match the config",
        ),
    ):
        (tmp_path / "saved" / "config.json").write_text(changed)
        with pytest.raises(ModelError, match=message), warnings.catch_warnings():
            check_complete(tmp_path / "saved")
    assert capfd.readouterr().err == ""  # transformers' own report of the load stays away
