"""What a model with made-up weights can do, the model itself can: held against models with weights of their own."""

from unittest.mock import Mock

import pytest
import torch
from transformers import AutoConfig

from swm.errors import ModelError, NotFiniteError, PlanError, SwmError
from swm.evaluation.generation import generation_error
from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder, parameter_count
from swm.models.layer_facts import facts_for, kinds_of
from swm.models.locate import skeleton
from swm.models.replay import Replay
from swm.models.trial import trial_layers, trial_model
from swm.plan import dropped_plan
from swm.planners.needed import needed_layers
from swm.stages.create import tried_out
from tests.conftest import tiny_model

TYPES = ["sliding_attention", "sliding_attention", "full_attention"] * 2
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "head_dim": 16, "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 512},
    "gpt_neo": {"num_layers": 6, "num_heads": 4, "attention_types": [[["global", "local"], 3]], "window_size": 4},
    "mixtral": EXPERTS,
    "bamba": {
        "mamba_chunk_size": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1, 4],
    },
    "qwen3_5_text": LINEAR,
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "head_dim": 8},
    "nemotron_h": {
        "chunk_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "head_dim": 8, "n_groups": 1,
        "layers_block_type": ["mamba", "mlp", "attention", "mlp", "mamba", "mlp"],
    },
    "gpt_neox_japanese": {},  # its last layer alone has a bias
    # Layers that read the keys of layers below, or the choice of experts: they cannot be run one by one.
    "gemma4_text": {
        "head_dim": 8, "global_head_dim": 8, "sliding_window": 8, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300, "num_kv_shared_layers": 2, "layer_types": TYPES,
    },
    "gemma3n_text": {
        "head_dim": 8, "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
        "num_kv_shared_layers": 2, "sliding_window": 8, "layer_types": TYPES, "intermediate_size": [64] * 6,
        "activation_sparsity_pattern": [0.0] * 6,
    },
    "zaya": {},
    "xlstm": {"num_heads": 4, "num_blocks": 6, "embedding_dim": 32},  # a state whose size the config contradicts
    "helium": {},  # its head_dim does not fit its width
}  # fmt: skip
FAILS = {"gemma4_text": "runs", "gemma3n_text": "runs", "zaya": "runs", "xlstm": "writes", "helium": "runs writes"}


def can(model):
    """What the model can do: run its layers one by one, write, and write without the layers of a kind."""
    kinds = kinds_of(model)
    found = {"runs": True, "writes": not generation_error(model, torch.tensor([[0, 0]]))}
    try:
        Replay(model, torch.randint(1, 60, (2, 4), generator=torch.Generator().manual_seed(1)))
    except (SwmError, RuntimeError):
        found["runs"] = False
    if len({*kinds}) > 1:
        for place, kind in enumerate(dict.fromkeys(kinds)):
            gone = {layer for layer, one in enumerate(kinds) if one == kind}
            try:
                smaller = apply_plan(model, dropped_plan(len(kinds), gone))
            except SwmError:
                continue
            found[f"writes without kind {place}"] = not generation_error(smaller, torch.tensor([[0, 0]]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_can_do_what_the_model_can(kind):
    model = tiny_model(kind, layers=6, **KINDS[kind])
    found = can(model)
    assert [name for name in ("runs", "writes") if not found[name]] == FAILS.get(kind, "").split()
    shell = skeleton(model.config, kind)
    assert can(trial_model(shell)[0]) == found


def test_a_trial_has_a_few_layers_of_each_kind():
    types = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 12
    with torch.device("meta"):
        shell = tiny_model("qwen3_5_text", layers=48, **{**LINEAR, "layer_types": types})
    layers, kinds = trial_layers(shell), kinds_of(shell)
    assert layers == [0, 1, 3, 7, 47]
    made = trial_model(shell)[0]
    assert [kinds[layer] for layer in layers] == [{0: 0, 2: 3}[kind] for kind in kinds_of(made)]


def test_where_so_few_cannot_be_described_the_lowest_serve():
    with torch.device("meta"):
        shell = tiny_model("jamba", layers=16, num_experts=2, attn_layer_period=4, attn_layer_offset=2)
    assert trial_layers(shell) == [0, 1, 2]  # Mamba, Mamba with experts, attention
    facts_for(shell, [0, 1, 2])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256}),
        ("mixtral", {"hidden_size": 6144, "intermediate_size": 16384, "num_local_experts": 64}),
        ("llama4_text", {"hidden_size": 5120, "intermediate_size": 16384, "num_local_experts": 128}),
    ],
)
def test_the_largest_models_take_the_memory_of_one_matrix(kind, settings):
    shell = skeleton(AutoConfig.for_model(kind, **settings), kind)
    made = trial_model(shell)[0]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in made.parameters()}
    largest = 4 * max(p.numel() for p in find_decoder(shell).layers[0].parameters() if p.ndim == 2)
    experts = 4 * 2 * settings["hidden_size"] * settings["intermediate_size"]  # gate and up projection of one of them
    assert sum(storages.values()) < max(largest, experts) + 0.2e9 < parameter_count(shell) / 20
    shapes = [{name: p.shape for name, p in find_decoder(one).layers[0].named_parameters()} for one in (made, shell)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("vocabulary", [3, 12, 20, 63, 65])
def test_few_tokens_are_enough(vocabulary, tmp_path):
    model = tiny_model(vocab_size=vocabulary)
    assert tried_out(skeleton(model.config, "m")) == {"needed_layers": []}


def test_what_only_a_file_of_generation_settings_can_mend_is_no_reason():
    model = tiny_model()
    model.config.penalty_alpha = 0.6  # plain transformers then needs code from the hub
    assert tried_out(skeleton(model.config, "m")) == {"needed_layers": []}


def test_a_model_of_which_no_trial_can_be_made_is_taken(monkeypatch):
    model = tiny_model("bamba", layers=6, **KINDS["bamba"])
    shell = skeleton(model.config, "m")
    assert tried_out(shell) == {"needed_layers": [[1, 4]]}
    for error in (
        NotFiniteError("inf"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 30064771072 bytes"),
    ):
        monkeypatch.setattr("swm.stages.create.Replay", Mock(side_effect=error))
        assert tried_out(shell) == {}
    monkeypatch.setattr("swm.stages.create.Replay", Mock(side_effect=RuntimeError("shape mismatch")))
    with pytest.raises(ModelError, match="cannot be run one by one: shape mismatch"):
        tried_out(shell)


def test_a_kind_without_which_no_config_describes_the_model_is_needed():
    types = ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 2
    model = tiny_model("olmo_hybrid", layers=6, **{**LINEAR, "layer_types": types})
    linear = [0, 1, 2, 4, 5]
    for layers in (linear, [3]):
        with pytest.raises(PlanError):
            facts_for(model, layers)
    assert [sorted(group) for group in needed_layers(model)] == [linear, [3]]
