"""GGUF files run in llama.cpp itself: the same tokens, the same words, the same probabilities as in transformers."""

import json
import math
import shutil

import gguf
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from swm.errors import ExperimentError, ModelError, SettingsError
from swm.llama_cpp.families import FAMILIES
from swm.llama_cpp.vocabulary import vocabulary_of
from swm.llama_cpp.write import export_gguf
from swm.merging.apply import apply_plan
from swm.models.load import load_model
from swm.models.locate import model_folder
from swm.plan import dropped_plan
from swm.settings import GGUF_TYPES
from tests.conftest import tiny_model
from tests.llama_cpp.conftest import HARD, SPLITS, byte_level_tokenizer, fallback_tokenizer

LAYERS = 6
SHAPES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "smollm3": {"no_rope_layer_interval": 4},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 32,
        "norm_topk_prob": True,
    },
    "phi3": {},
    "gemma2": {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 20},
    "gemma3_text": {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 20},
    "olmo2": {},
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "stablelm": {},
    "gpt2": {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


def folder_of(family, tokenizer, folder, **changes):
    settings = {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "initializer_range": 0.3,
        **SHAPES[family],
        **changes,
    }
    model = tiny_model(family, layers=LAYERS, **settings)
    with torch.no_grad():  # norms and biases of a fresh model are ones and zeros, which say nothing
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@torch.inference_mode()
def logprobs(model, ids):
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def test_the_families_that_are_written_are_these():
    assert set(SHAPES) == set(FAMILIES)


@pytest.mark.parametrize("family", SHAPES)
def test_llama_cpp_computes_what_transformers_does(family, tmp_path, client):
    tokenizer = byte_level_tokenizer()
    model = folder_of(family, tokenizer, tmp_path / "model")
    texts = [tokenizer(text)["input_ids"][:60] for text in HARD if text]
    prompt = texts[0]
    with torch.inference_mode():
        expected = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "F32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")  # Qwen2's class splits text in its own way
    answer = client.ask(
        tmp_path / "model.gguf", exact=True, tokenize=HARD, generate={"tokens": prompt, "count": 12}, logprobs=texts
    )
    assert answer["tokens"] == [tokenizer(text)["input_ids"] for text in HARD]
    for ids, found in zip(texts, answer["logprobs"], strict=True):
        assert found == pytest.approx(logprobs(model, ids), abs=0.02)
    assert answer["generated"] == expected


def perplexity(values):
    numbers = [value for text in values for value in text]
    return math.exp(-sum(numbers) / len(numbers))


@pytest.mark.parametrize("split", [*SPLITS, "fallback", "fallback without space"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(split, tmp_path, client):
    tokenizer = byte_level_tokenizer(split) if split in SPLITS else fallback_tokenizer(split == "fallback")
    folder_of("llama", tokenizer, tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert client.ask(tmp_path / "model.gguf", tokenize=HARD)["tokens"] == [
        tokenizer(text)["input_ids"] for text in HARD
    ]


def phi3_tokenizer():
    """Letters with bytes for the rest; as Phi-3's, most special tokens take in the space after them."""
    tokenizer = fallback_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    names = ["<|endoftext|>", "</s>", "<|user|>", "<|end|>", "<|assistant|>"]
    content["added_tokens"] = [{**token, "content": token["content"]} for token in content["added_tokens"]]
    for token in content["added_tokens"]:  # <end> of the plain tokenizer is a special token like any other here
        token["rstrip"] = token["content"] not in ("<unk>", "<s>")
    first = max(content["model"]["vocab"].values()) + 1
    content["added_tokens"] += [
        {**ADDED, "id": first + n, "content": name, "rstrip": name != "<|endoftext|>"} for n, name in enumerate(names)
    ]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
    )


CHAT = [
    "<|user|>\nHow old is the house?<|end|>\n<|assistant|>\n It is  old.<|end|>",
    "<|user|>   spaces <|end|>\t\n x<|endoftext|> y <s> z",
]


def test_special_tokens_of_phi_3_take_in_the_space_after_them(tmp_path, client):
    """llama.cpp knows this by the model's name alone; a model of that name whose tokens do not is named otherwise."""
    tokenizer = phi3_tokenizer()
    folder_of("phi3", tokenizer, tmp_path / "phi")
    folder_of("llama", fallback_tokenizer(), tmp_path / "other")
    for folder, name in (("phi", "my-model"), ("other", "phi3-distilled")):
        file = tmp_path / f"{folder}.gguf"
        export_gguf(tmp_path / folder, file, entries={"general.name": name})
        texts, expected = [*HARD, *CHAT], AutoTokenizer.from_pretrained(tmp_path / folder)
        assert client.ask(file, tokenize=texts)["tokens"] == [expected(text)["input_ids"] for text in texts]
    assert "<|user|>" in tokenizer.convert_ids_to_tokens(tokenizer(CHAT[0])["input_ids"])


@pytest.mark.parametrize(("original", "length", "share"), [(1000, 60, 1.0), (64, 120, 1.0), (64, 120, 0.75)])
def test_positions_of_phi_3_are_stretched_in_long_contexts(original, length, share, tmp_path, client):
    """The client's context is at most 512 tokens: it is stretched only where the original's is shorter."""
    tokenizer = byte_level_tokenizer()
    generator = torch.Generator().manual_seed(1)
    factors = {name: (1 + 3 * torch.rand(int(8 * share), generator=generator)).tolist() for name in ("short", "long")}
    model = folder_of(
        "phi3", tokenizer, tmp_path / "model",
        max_position_embeddings=4096, original_max_position_embeddings=original,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": original,
            "partial_rotary_factor": share,
            **{f"{name}_factor": values for name, values in factors.items()},
        },
    )  # fmt: skip
    ids = (tokenizer(" ".join(HARD))["input_ids"] * 3)[:length]
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "F32")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["phi3.context_length"].contents() == original
    assert fields["phi3.rope.scaling.attn_factor"].contents() == pytest.approx(
        math.sqrt(1 + math.log(4096 / original) / math.log(original))
    )
    (found,) = client.ask(tmp_path / "model.gguf", exact=True, logprobs=[ids])["logprobs"]
    assert found == pytest.approx(logprobs(model, ids), abs=0.02)


def test_all_chat_templates_are_written(tmp_path):
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = {"default": "{{ one }}", "tools": "{{ two }}"}
    entries = vocabulary_of(tokenizer, 600).entries
    assert entries["tokenizer.chat_template"].value == "{{ one }}"
    assert entries["tokenizer.chat_template.tools"].value == "{{ two }}"


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_each_type_is_written_as_llama_cpp_reads_it(kind, tmp_path, client):
    """Held against the same weights rounded by hand: block by block, as the format is described."""
    tokenizer = byte_level_tokenizer()
    model = folder_of("llama", tokenizer, tmp_path / "model", initializer_range=0.1)
    ids = tokenizer(HARD[0] + HARD[4])["input_ids"]
    written = export_gguf(tmp_path / "model", tmp_path / "model.gguf", kind)
    assert kind in written.kinds
    found = client.logprobs(tmp_path / "model.gguf", [ids])
    rough = {"F32": 1e-3, "F16": 2e-3, "BF16": 0.02, "Q8_0": 0.02, "Q5_1": 0.1, "Q5_0": 0.1, "Q4_1": 0.2, "Q4_0": 0.2}
    assert perplexity(found) == pytest.approx(perplexity([logprobs(model, ids)]), rel=rough[kind])
    read = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    steps = {
        "Q8_0": 1 / 127,
        "Q5_0": 1 / 16,
        "Q5_1": 1 / 31,
        "Q4_0": 1 / 8,
        "Q4_1": 1 / 15,
        "BF16": 2**-8,
        "F16": 2**-11,
    }
    for name, weight in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
        stored = read[f"blk.3.{name}.weight"]
        decoded = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy())
        exact = model.get_submodule(f"model.layers.3.{weight}").weight
        spread = exact.reshape(-1, 32)
        span = (spread.amax(1) - spread.amin(1)) if kind.endswith("1") else spread.abs().amax(1)
        error = (decoded - exact).abs().reshape(-1, 32).amax(1)
        assert (error <= span * steps.get(kind, 0) * (0.6 if kind == "Q8_0" else 1.05) + 1e-7).all()


def drop_layers(source, folder, kept):
    """A folder with only these layers, made by hand."""
    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.layers = torch.nn.ModuleList([model.model.layers[layer] for layer in kept])
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(kept)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return model


def test_blocks_that_did_not_change_are_copied_from_the_source(tmp_path, client):
    tokenizer = byte_level_tokenizer()
    folder_of("llama", tokenizer, tmp_path / "model", initializer_range=0.1)
    export_gguf(tmp_path / "model", tmp_path / "source.gguf", "Q4_0", entries={"general.name": "source"})
    decoded = tmp_path / "decoded"
    shutil.copytree(model_folder(str(tmp_path / "source.gguf")), decoded)
    kept = [0, 2, 3, 5]
    small = drop_layers(decoded, tmp_path / "small", kept)
    written = export_gguf(tmp_path / "small", tmp_path / "small.gguf", source=tmp_path / "source.gguf", layers=kept)
    before, after = ({t.name: t for t in GGUFReader(tmp_path / f"{n}.gguf").tensors} for n in ("source", "small"))
    assert written.copied == len(after) == 3 + 9 * len(kept)
    for place, layer in enumerate(kept):
        for name in ("attn_q", "ffn_up", "attn_norm"):
            old, new = before[f"blk.{layer}.{name}.weight"], after[f"blk.{place}.{name}.weight"]
            assert (old.tensor_type, old.data.tobytes()) == (new.tensor_type, new.data.tobytes())
    ids = tokenizer(HARD[4])["input_ids"]
    assert perplexity(client.logprobs(tmp_path / "small.gguf", [ids])) == pytest.approx(
        perplexity([logprobs(small, ids)]), rel=0.02
    )
    with torch.no_grad():
        small.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    small.save_pretrained(tmp_path / "changed")
    tokenizer.save_pretrained(tmp_path / "changed")
    written = export_gguf(tmp_path / "changed", tmp_path / "c.gguf", source=tmp_path / "source.gguf", layers=kept)
    changed = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "c.gguf").tensors}
    assert written.copied == len(after) - 1
    assert changed["blk.1.ffn_up.weight"] == "Q8_0"
    assert changed["blk.1.ffn_down.weight"] == "Q4_0"


@pytest.mark.parametrize(
    ("family", "kept", "broken"),
    [
        ("gemma3_text", (0, 1, 2, 4, 5), "4"),
        ("gemma2", (0, 2, 3), "1, 2"),
        ("smollm3", (0, 1, 3, 4), "2, 3"),
    ],
)
def test_layers_that_llama_cpp_would_run_otherwise_are_named(family, kept, broken, tmp_path):
    model = apply_plan(
        tiny_model(family, layers=LAYERS, **SHAPES[family]),
        dropped_plan(LAYERS, set(range(LAYERS)) - set(kept)),
    )
    model.save_pretrained(tmp_path / "model")
    byte_level_tokenizer(size=290).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=f"would run layers {broken} of this {family} otherwise"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        (
            "opt",
            {"ffn_dim": 64, "word_embed_proj_dim": 64},
            "type opt cannot be written as GGUF here. These can: llama",
        ),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "of type yarn"),
        ("qwen3_moe", {"norm_topk_prob": False}, "experts are not normalised"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu, not silu"),
        ("gemma2", {"hidden_activation": "silu"}, "its activation is silu, not gelu"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention is scaled otherwise"),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}, "its layers slide"),
        (
            "qwen2",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "rope_theta": 500.0,
                }
            },
            "of type llama3",
        ),
        ("qwen2", {"layer_types": ["sliding_attention"] * 6, "sliding_window": 8, "use_sliding_window": True}, "slide"),
    ],
)
def test_configs_that_llama_cpp_cannot_run_are_refused(family, changes, why, tmp_path):
    settings = {**SHAPES.get(family, {}), "hidden_size": 64, "vocab_size": 300, **changes}
    tiny_model(family, layers=LAYERS, **settings).save_pretrained(tmp_path / "model")
    byte_level_tokenizer(size=290).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=why):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    tokenizer = byte_level_tokenizer(size=290)
    model = folder_of("llama", tokenizer, tmp_path / "model")
    with pytest.raises(SettingsError, match="Type Q4_K_M cannot be written: K-quants can be read, not written"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf", "Q4_K_M")
    with pytest.raises(SettingsError, match="it is not known"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf", "int4")
    odd = json.loads(tokenizer.backend_tokenizer.to_str())
    odd["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(odd))
    with pytest.raises(ModelError, match="in a way that llama.cpp is not known to have.*WhitespaceSplit"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    tokenizer.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="too large for F16. Choose type BF16 or F32"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    monkeypatch.setattr("swm.disk.files.free_bytes", lambda target: 1000)
    with pytest.raises(ExperimentError, match="No space left"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf", "F32")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_llama_3_scales_its_frequencies(tmp_path, client):
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 500.0,
    }  # fmt: skip
    tokenizer = byte_level_tokenizer("llama-bpe")
    model = folder_of("llama", tokenizer, tmp_path / "model", rope_parameters=rope)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "F32")
    ids = [number % 400 for number in range(7, 2000, 13)][:150]  # far enough that the scaling counts
    answer = client.ask(tmp_path / "model.gguf", exact=True, logprobs=[ids])
    assert answer["logprobs"][0] == pytest.approx(logprobs(model, ids), abs=0.02)


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("qwen3", {"attention_bias": True}, "no place for biases .*self_attn"),
        ("smollm3", {"mlp_bias": True}, "no place for biases"),
        ("gpt_neox", {"attention_bias": False}, "its attention has no biases"),
        ("phi3", {"head_dim": 32}, "not as wide as its hidden states"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "a part",
        ),
        ("gemma3_text", {"sliding_window": None}, "has no valid value for what llama.cpp calls gemma3.attention"),
    ],
)
def test_configs_that_llama_cpp_would_not_load_are_refused(family, changes, why, tmp_path):
    settings = {**SHAPES[family], "hidden_size": 64, "vocab_size": 300, **changes}
    tiny_model(family, layers=LAYERS, **settings).save_pretrained(tmp_path / "model")
    byte_level_tokenizer(size=290).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=why):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.layers.2.mlp.up_proj.weight"])
def test_a_folder_that_lacks_a_weight_is_refused(missing, tmp_path):
    folder_of("llama", byte_level_tokenizer(), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"{missing} is not in the files"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")


def test_a_window_that_llama_cpp_ignores_limits_the_files_context(tmp_path):
    folder_of("mistral", byte_level_tokenizer(), tmp_path / "model", sliding_window=24)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert GGUFReader(tmp_path / "model.gguf").fields["llama.context_length"].contents() == 24


def test_a_source_that_was_replaced_is_noticed(tmp_path):
    tokenizer = byte_level_tokenizer()
    folder_of("llama", tokenizer, tmp_path / "model")
    folder_of("llama", tokenizer, tmp_path / "other", initializer_range=0.2)
    export_gguf(tmp_path / "other", tmp_path / "other.gguf", "F32")
    with pytest.raises(ModelError, match="the model came from has changed since"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf", source=tmp_path / "other.gguf")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    with pytest.raises(ExperimentError, match="already exists"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")


def changed(tokenizer, change):
    """The tokenizer with its tokenizer.json changed."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    change(content)
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **special)


ADDED = {"id": 0, "content": "<end>", "single_word": False, "lstrip": False, "normalized": False, "special": True}
TOKENIZERS = {
    "takes in the space": lambda t: t.update(added_tokens=[{**ADDED, "rstrip": True}]),
    "end_of_word_suffix": lambda t: t["model"].update(end_of_word_suffix="</w>"),
    "splits text in a way": lambda t: t.update(pre_tokenizer={"type": "Whitespace"}),
    "changes text before it splits it .Lowercase": lambda t: t.update(normalizer={"type": "Lowercase"}),
    "puts other tokens around a text": lambda t: t.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<x>": {"id": "<x>", "ids": [5], "tokens": ["<x>"]}},
        }
    ),
}


@pytest.mark.parametrize("why", TOKENIZERS)
def test_tokenizers_that_llama_cpp_cannot_follow_are_refused(why):
    start = fallback_tokenizer() if why.startswith("splits") else byte_level_tokenizer()
    with pytest.raises(ModelError, match=why):
        vocabulary_of(changed(start, TOKENIZERS[why]), 600)
    assert vocabulary_of(start, 600).tokens == 600


def test_a_tokenizer_without_an_end_of_text_token_is_refused():
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no end-of-text token"):
        vocabulary_of(tokenizer, 600)


def test_a_llama_3_file_is_read_with_its_scaling(tmp_path):
    """transformers drops it; other scalings, and weights it does not read, are refused."""
    rope = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500_000.0,
    }  # fmt: skip
    tokenizer = byte_level_tokenizer("llama-bpe")
    model = folder_of("llama", tokenizer, tmp_path / "a", rope_parameters=rope)
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", "F32")
    read, _ = load_model(str(tmp_path / "a.gguf"))
    assert read.config.rope_parameters == rope
    ids = torch.randint(0, 400, (1, 400), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-3)
    folder_of("llama", tokenizer, tmp_path / "b", rope_parameters={**rope, "original_max_position_embeddings": 64})
    folder_of("llama", tokenizer, tmp_path / "c", attention_bias=True)
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    folder_of("llama", tokenizer, tmp_path / "d", rope_parameters=linear)
    for name, why in (("b", "rotary scaling .rope_freqs"), ("c", "all of its weights"), ("d", "scaling .linear")):
        export_gguf(tmp_path / name, tmp_path / f"{name}.gguf", "F32")
        with pytest.raises(ModelError, match=f"does not read .*{why}"):
            load_model(str(tmp_path / f"{name}.gguf"))


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False), ("gemma2", True), ("stablelm", False)])
def test_a_file_is_converted_to_what_transformers_reads_and_its_header_is_read_once(
    family, tied, tmp_path, monkeypatch
):
    headers, build, names = [], GGUFReader._build_fields, gguf.get_tensor_name_map
    folder_of(family, byte_level_tokenizer("llama-bpe"), tmp_path / "a", tie_word_embeddings=tied)
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", "Q8_0")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    plain_tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    monkeypatch.setattr(GGUFReader, "_build_fields", lambda *given: headers.append(1) or build(*given))
    folder = model_folder(str(tmp_path / "a.gguf"))
    assert headers == [1]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == (GGUFReader, names)
    stored, expected = load_file(folder / "model.safetensors"), dict(plain.named_parameters())  # each tied one once
    assert stored.keys() == expected.keys()
    assert ("lm_head.weight" in stored) != tied
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored.items())
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == plain_tokenizer.get_vocab()
