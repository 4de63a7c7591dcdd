import pytest
import torch

from swm.errors import ModelError, SettingsError
from swm.merging.width import coupled_structures, prune_width
from swm.models.decoder import find_decoder, parameter_count
from swm.models.load import load_model, save_model
from swm.plan import WidthCut
from tests.conftest import tiny_model
from tests.product.test_families import FAMILIES, made

CUT = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "stablelm", "granite", "smollm3")


@torch.no_grad()
def logits(model, tokens):
    return model(tokens, use_cache=False).logits


@pytest.mark.parametrize("method", ["flap", "taylor"])
@pytest.mark.parametrize("kind", CUT)
def test_a_narrower_model_loads_with_plain_from_pretrained(kind, method, tokens, tokenizer, tmp_path):
    model = made(kind)
    before = logits(model, tokens)
    small = prune_width(model, WidthCut(0.5, method), tokens)
    save_model(small, tokenizer, tmp_path / "small", tokens)  # reloads it and compares the logits
    again, _ = load_model(str(tmp_path / "small"))
    assert torch.allclose(logits(again, tokens), logits(small, tokens), atol=1e-5)
    fixed = kind == "stablelm"  # its config says no size of a head, so all heads stay
    assert (again.config.num_key_value_heads, again.config.intermediate_size) == ((2, 16) if fixed else (1, 32))
    assert torch.equal(logits(model, tokens), before)
    with torch.no_grad():  # generation uses the cache, which has a width of its own
        assert again.generate(tokens[:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - set(CUT)))
def test_families_that_cannot_be_cut_are_told_of(kind, tokens):
    with pytest.raises(ModelError, match="Cannot prune the width of"):
        prune_width(made(kind), WidthCut(0.5), tokens)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_the_share_of_the_layers_weights_is_removed(ratio, tokens):
    model = tiny_model(hidden_size=64, intermediate_size=256, num_attention_heads=8, num_key_value_heads=8)
    small = prune_width(model, WidthCut(ratio, "taylor"), tokens)
    whole, left = (
        sum(p.numel() for layer in find_decoder(m).layers for p in layer.parameters() if p.ndim == 2)
        for m in (model, small)
    )
    assert 1 - left / whole == pytest.approx(ratio, abs=0.03)
    assert small.config.intermediate_size % 8 == 0


def silenced(model, head_group, channels):
    """A group of heads and channels whose output nothing reads."""
    for layer in model.model.layers:
        with torch.no_grad():
            layer.self_attn.o_proj.weight[:, 16 * head_group : 16 * (head_group + 1)] = 0
            layer.mlp.down_proj.weight[:, channels] = 0
    return model


@pytest.mark.parametrize("method", ["flap", "taylor"])
def test_what_nothing_reads_goes_first_and_changes_nothing(method, tokens):
    channels = torch.arange(0, 64, 2)
    model = silenced(tiny_model(), 1, channels)
    small = prune_width(model, WidthCut(0.5, method), tokens)
    assert torch.allclose(logits(small, tokens), logits(model, tokens), atol=1e-5)
    for layer, cut in zip(model.model.layers, small.model.layers, strict=True):
        assert torch.equal(cut.mlp.up_proj.weight, layer.mlp.up_proj.weight[1::2])
        assert torch.equal(cut.self_attn.q_proj.weight, layer.self_attn.q_proj.weight[:16])


def test_the_mean_of_what_goes_becomes_a_bias(tokens):
    # By hand: a channel that is always 3 is as well a bias of 3 times the weights that read it.
    model = tiny_model(layers=2)
    layer = model.model.layers[1]
    seen = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    logits(model, tokens)
    handle.remove()
    given = seen[0].flatten(0, 1).double()
    small = prune_width(model, WidthCut(0.5, "flap"), tokens)
    kept = (small.model.layers[1].mlp.up_proj.weight[:, None] == layer.mlp.up_proj.weight[None]).all(-1).any(0)
    expected = layer.mlp.down_proj.weight.double()[:, ~kept] @ given.mean(0)[~kept]
    assert torch.allclose(small.model.layers[1].mlp.down_proj.bias.double(), expected, atol=1e-6)
    spread = given.var(0, unbiased=False) * layer.mlp.down_proj.weight.double().square().sum(0)
    assert set(spread.topk(32).indices.tolist()) == set(kept.nonzero().flatten().tolist())
    assert prune_width(made("mistral"), WidthCut(0.5), tokens).model.layers[0].mlp.down_proj.bias is None


def test_taylor_is_weight_times_gradient_over_all_coupled_maps(tokens):
    model = tiny_model(layers=2)
    heads, channels = coupled_structures(model)
    assert (heads.count, channels.count) == (2, 64)
    small = prune_width(model, WidthCut(0.5, "taylor"), tokens)
    model.requires_grad_(True)
    model(input_ids=tokens, labels=tokens).loss.backward()
    mlp = model.model.layers[0].mlp
    matter = [(m.weight * m.weight.grad).abs().detach() for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    scores = matter[0].sum(1) + matter[1].sum(1) + matter[2].sum(0)
    kept = scores.topk(32).indices.sort().values
    assert torch.equal(small.model.layers[0].mlp.gate_proj.weight, mlp.gate_proj.weight[kept])


def test_a_cut_that_cannot_be_is_refused():
    with pytest.raises(SettingsError, match="--width 1 is out of range"):
        WidthCut(1)
    with pytest.raises(SettingsError, match="'chess' is not a width pruning method. Choose flap or taylor"):
        WidthCut(0.1, "chess")


def test_no_cut_changes_no_logit(model, tokens):
    assert torch.equal(logits(prune_width(model, WidthCut(0.0), tokens), tokens), logits(model, tokens))
    assert parameter_count(prune_width(model, WidthCut(0.0, "taylor"), tokens)) == parameter_count(model)
