"""QLoRA: what is trained over, what it is folded into, and that it learns as LoRA does."""

import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from swm.errors import ModelError, SettingsError
from swm.healing import quantized
from swm.healing.lora import check_adapts, linear_maps, recover, recover_in_four_bits
from swm.healing.quantized import check_quantizes, fold_adapter, four_bit_bytes, in_four_bits
from swm.settings import preset_settings
from swm.texts.example import Example
from tests.conftest import tiny_model

bitsandbytes = pytest.importorskip("bitsandbytes")
ROOT = Path(__file__).parents[2]
# The sixteen levels of NF4, from the paper's appendix E
LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def nearest_levels(weight, block=64):
    """Each block of 64 numbers, divided by its largest size, rounded to the nearest level."""
    blocks = weight.reshape(-1, block)
    scale = blocks.abs().amax(1, keepdim=True)
    level = (blocks[..., None] / scale[..., None] - LEVELS).abs().argmin(-1)
    return (LEVELS[level] * scale).reshape(weight.shape)


def dequantized(module):
    """The weights that a quantized map computes with."""
    return bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)


def model_of(**changes):
    return tiny_model(hidden_size=64, intermediate_size=128, **changes)


EXAMPLES = [Example("", f"the number {n} follows the number {n - 1} as it always did and will " * 3) for n in range(80)]
SETTINGS = preset_settings("qlora", steps=4, batch=4, length=32, rank=4, held_out=4, save_every=2)


def quantized_copy(model, folder):
    """The model, saved and read in four bits."""
    model.save_pretrained(folder)
    return in_four_bits(folder, linear_maps(model, None), torch.device("cpu"))


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_the_frozen_weights_are_the_nearest_levels_of_nf4(changes, tmp_path):
    model = model_of(**changes)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    names = linear_maps(model, None)
    small = quantized_copy(model, tmp_path)
    for name in names:
        expected = nearest_levels(before[f"{name}.weight"])
        assert torch.allclose(dequantized(small.get_submodule(name)), expected, rtol=0.02, atol=1e-3)
    for name, weight in small.named_parameters():
        if name.removesuffix(".weight") not in names:
            assert torch.equal(weight, before[name])
    numbers = sum(before[f"{name}.weight"].numel() for name in names)
    rest = sum(4 * weight.numel() for weight in model.parameters()) - 4 * numbers
    assert four_bit_bytes(small) == pytest.approx(rest + numbers * (0.5 + 1 / 64), rel=0.03)
    assert not any(isinstance(small.get_submodule(name), nn.Linear) and small.get_submodule(name).weight.dtype
                   == torch.float32 for name in names)  # fmt: skip


def test_a_quantized_map_computes_with_those_weights(tmp_path):
    small = quantized_copy(model_of(), tmp_path)
    name = "model.layers.1.mlp.up_proj"
    module, states = small.get_submodule(name), torch.randn(5, 64)
    assert torch.allclose(module(states), F.linear(states, dequantized(module)), atol=1e-4)


def test_gradients_pass_through_it_after_a_look_at_held_out_text(tmp_path):
    """With AVX-512 BF16, bitsandbytes repacks weights for evaluation, and no gradient passes through those."""
    small = quantized_copy(model_of(), tmp_path)
    module, states = small.get_submodule("model.layers.1.mlp.up_proj"), torch.randn(5, 64)
    with torch.inference_mode():
        evaluated = module.eval()(states)
    states.requires_grad_()
    trained = module.train()(states)
    trained.sum().backward()
    assert torch.allclose(trained, evaluated, atol=1e-4)
    assert torch.allclose(states.grad, dequantized(module).sum(0).expand(5, -1), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapters_are_folded_into_the_weights_with_all_their_digits(dtype, tokenizer, tmp_path):
    model, base, out = model_of().to(dtype), tmp_path / "base", tmp_path / "out"
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.save_pretrained(base, max_shard_size="100KB")
    assert len(list(base.glob("*.safetensors"))) > 3
    out.mkdir()
    adapted, summary = recover_in_four_bits(base, tokenizer, EXAMPLES, SETTINGS, tmp_path, device=torch.device("cpu"))
    fold_adapter(base, adapted, out)
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in base.iterdir())
    healed = AutoModelForCausalLM.from_pretrained(out, dtype=dtype)
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    peft_folded = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    close, tolerance = (1e-6, 0) if dtype == torch.float32 else (4e-3, 8e-3)
    changed = 0
    for name, weight in healed.state_dict().items():
        assert weight.dtype == dtype
        assert torch.allclose(weight, peft_folded[name], atol=close, rtol=tolerance)
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_B.weight" in adapter:
            delta = 2 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]  # alpha 32 / rank 16
            delta = delta * (SETTINGS.alpha / SETTINGS.rank / 2)
            assert torch.allclose(weight, (before[name].float() + delta).to(dtype), atol=close, rtol=tolerance)
            changed += not torch.equal(weight, before[name])
        else:
            assert torch.equal(weight, before[name])
    assert changed == len(linear_maps(model_of(), None))
    assert summary["quantized_bytes"] < sum(4 * weight.numel() for weight in model.parameters())


def test_it_learns_as_lora_does(tokenizer, tmp_path):
    steps = {"steps": 30, "save_every": 10}
    losses = {}
    for quantization in ("none", "nf4"):
        settings = preset_settings("qlora", batch=4, length=32, rank=4, held_out=4, quantization=quantization, **steps)
        model, folder = model_of(seed=3), tmp_path / quantization
        if quantization == "none":
            _, summary = recover(model, tokenizer, EXAMPLES, settings, folder)
        else:
            model.save_pretrained(tmp_path / "base")
            device = torch.device("cpu")
            _, summary = recover_in_four_bits(tmp_path / "base", tokenizer, EXAMPLES, settings, folder, device=device)
        losses[quantization] = summary["held_out_losses"]
    assert losses["nf4"][-1] < losses["nf4"][0] - 0.5
    assert losses["nf4"][-1] == pytest.approx(losses["none"][-1], abs=0.2)


def test_what_cannot_be_quantized_is_refused(monkeypatch, tokenizer, tmp_path):
    for changes, said in (({"target": "original"}, "does not work with --quantization"),):
        with pytest.raises(SettingsError, match=said):
            check_quantizes(preset_settings("qlora", **changes))
    with pytest.raises(ModelError, match="not a plain linear map"):
        check_adapts(tiny_model("gpt2", n_embd=64, n_head=4), SETTINGS)  # before anything is merged
    tiny_model("gpt2", n_embd=64, n_head=4).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not a plain linear map"):
        recover_in_four_bits(tmp_path, tokenizer, EXAMPLES, SETTINGS, tmp_path, device=torch.device("cpu"))
    monkeypatch.setattr(quantized, "is_sharded", lambda: True)
    with pytest.raises(SettingsError, match="FSDP"):
        check_quantizes(SETTINGS)
    monkeypatch.setattr(quantized, "is_sharded", lambda: False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install bitsandbytes"):
        check_quantizes(SETTINGS)
    check_quantizes(preset_settings("quick"))  # needs nothing
