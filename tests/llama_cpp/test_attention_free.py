"""Files whose layers lack attention, held against transformers with that attention's output set to zero."""

import itertools
import json
import math

import pytest
import torch
from gguf import GGUFReader

from swm.errors import ModelError, SettingsError
from swm.evaluation.perplexity import perplexity
from swm.llama_cpp.write import export_gguf
from swm.models.load import load_model
from swm.stages.without_attention import least_needed_attention
from swm.texts.calibration import perplexity_tokens
from swm.workspace.experiments import Experiment
from tests.conftest import tiny_model
from tests.llama_cpp.conftest import HARD, byte_level_tokenizer
from tests.llama_cpp.test_write import folder_of, logprobs

ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def silence(model, layers):
    with torch.no_grad():
        for layer in layers:
            for parameter in model.model.layers[layer].self_attn.o_proj.parameters():
                parameter.zero_()
    return model


@pytest.mark.parametrize(
    ("family", "gone", "changes"),
    [
        ("llama", (1, 3, 5), {}),
        ("llama", (2, 3), {"tie_word_embeddings": True, "head_dim": 32, "rope_parameters": ROPE}),
        ("mistral", (1, 2, 3, 4, 5), {}),
    ],
)
def test_llama_cpp_computes_what_transformers_does_without_that_attention(family, gone, changes, tmp_path, client):
    tokenizer = byte_level_tokenizer()
    model = folder_of(family, tokenizer, tmp_path / "model", **changes)
    texts = [tokenizer(text)["input_ids"][:60] for text in HARD if text]
    whole = [logprobs(model, ids) for ids in texts]
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "F32", without_attention=gone)
    silence(model, gone)
    with torch.inference_mode():
        expected = model.generate(
            torch.tensor([texts[0]]), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=-1,
            pad_token_id=0,
        )[0, len(texts[0]) :].tolist()  # fmt: skip
    answer = client.ask(tmp_path / "model.gguf", exact=True, logprobs=texts, generate={"tokens": texts[0], "count": 12})
    for ids, found, before in zip(texts, answer["logprobs"], whole, strict=True):
        assert found == pytest.approx(logprobs(model, ids), abs=0.02)
        assert found != pytest.approx(before, abs=0.02)  # it was not idle before
    assert answer["generated"] == expected
    read = GGUFReader(tmp_path / "model.gguf")
    assert read.fields["general.architecture"].contents() == "deci"
    assert [n for n, heads in enumerate(read.fields["deci.attention.head_count_kv"].contents()) if not heads] == [*gone]
    names = {tensor.name for tensor in read.tensors}
    assert not any(f"blk.{layer}.attn_q.weight" in names for layer in gone)
    assert "blk.0.attn_q.weight" in names


@pytest.mark.parametrize(
    ("family", "gone", "error", "message"),
    [
        ("llama", (0, 2), SettingsError, "Layer 0 cannot lose its attention"),
        ("llama", (6,), SettingsError, "Choose among 1 to 5"),
        ("qwen2", (1,), ModelError, "only in those of type llama or mistral"),
        ("mixtral", (1,), ModelError, "only in those of type llama or mistral"),
    ],
)
def test_what_has_no_such_form_is_refused(family, gone, error, message, tmp_path):
    folder_of(family, byte_level_tokenizer(), tmp_path / "model")
    with pytest.raises(error, match=message):
        export_gguf(tmp_path / "model", tmp_path / "out.gguf", without_attention=gone)
    assert not (tmp_path / "out.gguf").exists()


@torch.inference_mode()
def loss_without(model, gone, tokens):
    """The plain way: set weights to zero and run the whole model."""
    kept = {layer: model.model.layers[layer].self_attn.o_proj.weight.clone() for layer in gone}
    silence(model, gone)
    logits = model(tokens, use_cache=False).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    for layer, weight in kept.items():
        model.model.layers[layer].self_attn.o_proj.weight.copy_(weight)
    return float(loss)


@pytest.mark.parametrize("seed", range(4))
def test_the_attention_that_is_left_out_is_the_least_needed(seed):
    model = tiny_model(layers=5, seed=seed, initializer_range=0.3)
    tokens = torch.randint(0, 300, (4, 24), generator=torch.Generator().manual_seed(seed))
    gone, losses = least_needed_attention(model, tokens, 3)
    for count in range(4):
        assert losses[count] == pytest.approx(loss_without(model, gone[:count], tokens), abs=1e-4)
    alone = {layer: loss_without(model, [layer], tokens) for layer in range(1, 5)}
    assert gone[0] == min(alone, key=alone.get)
    best = min(itertools.combinations(range(1, 5), 3), key=lambda three: loss_without(model, three, tokens))
    assert losses[3] >= loss_without(model, best, tokens) - 1e-4
    assert len({*gone}) == 3
    assert math.isfinite(losses[3])


def test_the_command_says_what_leaving_out_attention_costs(model_folder, text_file, tmp_path, swm, client):
    """Run on a tiny model, and read in llama.cpp."""
    assert swm("create", "mine", "--model", model_folder, "--texts", text_file, "--count", 2, "--length", 16)[0] == 0
    assert swm("merge", "mine", "a", "--windows", "1-2")[0] == 0
    code, out, _ = swm("export", "mine", "a", tmp_path / "a.gguf", "--type", "F32", "--without-attention", 1, "--json")
    assert code == 0
    result = json.loads(out)
    (gone,) = result["without_attention"]
    model, tokenizer = load_model(str(Experiment.open("mine").run("a").model_folder))
    tokens = perplexity_tokens(tokenizer, "lambada")
    before = perplexity(model, tokens)["value"]
    after = perplexity(silence(model, [gone]), tokens)["value"]
    assert result["perplexity"]["before"]["lambada"]["value"] == pytest.approx(before, rel=1e-5)
    assert result["perplexity"]["after"]["lambada"]["value"] == pytest.approx(after, rel=1e-5)
    ids = tokens[0, :40].tolist()
    (found,) = client.ask(tmp_path / "a.gguf", exact=True, logprobs=[ids])["logprobs"]
    assert found == pytest.approx(logprobs(model, ids), abs=0.02)
    card = (tmp_path / "a.md").read_text()
    assert f"Without attention in layers {gone} of 3, keys and values take 33 % less memory." in card
    for arguments, said in (
        ((tmp_path / "b.gguf", "--without-attention", 3), "Choose 1 to 2"),
        ((tmp_path / "b.gguf", "--without-attention", 0), "Choose 1 to 2"),
        ((tmp_path / "b", "--without-attention", 1), "is for GGUF files"),
        ((tmp_path / "a.gguf", "--without-attention", 1), "already exists"),
        ((tmp_path / "b.gguf", "--without-attention", 1, "--type", "Q9"), "Q9"),
    ):
        code, _, error = swm("export", "mine", "a", *arguments)
        assert code == 1
        assert said in error
    assert sorted(file.name for file in tmp_path.glob("[ab].*")) == ["a.Modelfile", "a.gguf", "a.md"]
