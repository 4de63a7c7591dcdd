"""What is written, when it appears, and how far a reloaded model may be from the one in memory."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging as transformers_logging

from swm.errors import ModelError
from swm.models.save import check_complete, check_reload, generation_config, quiet_transformers, save_model
from tests.conftest import tiny_model


def test_a_temperature_without_sampling_is_saved_as_sampling_and_the_given_config_is_not_changed():
    given = GenerationConfig(temperature=0.6, top_p=0.9)
    given.do_sample = False
    found = generation_config(given)
    assert (found.do_sample, found.temperature, found.top_p) == (True, 0.6, 0.9)
    assert given.do_sample is False
    plain = GenerationConfig(max_length=7)
    assert generation_config(plain).to_dict() == plain.to_dict()
    assert generation_config(plain) is not plain


def test_a_model_that_ships_a_temperature_without_sampling_can_be_saved(model, tokenizer, tmp_path):
    model.generation_config.temperature = 0.6
    model.generation_config.do_sample = False
    save_model(model, tokenizer, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (written["do_sample"], written["temperature"]) == (True, 0.6)


def test_the_finished_folder_is_shown_before_it_takes_its_place(model, tokenizer, tokens, tmp_path):
    folder, seen = tmp_path / "saved", []
    folder.mkdir()
    (folder / "old").write_text("old")

    def look(new):
        seen.append(new)
        assert (folder / "old").exists()
        assert torch.equal(AutoModelForCausalLM.from_pretrained(new)(tokens).logits, model(tokens).logits)
        (new / "more").write_text("more")

    save_model(model, tokenizer, str(folder), tokens, look)
    assert len(seen) == 1
    assert seen[0] != folder
    assert (folder / "more").read_text() == "more"
    assert not (folder / "old").exists()
    assert {"tokenizer.json", "config.json", "model.safetensors"} <= {file.name for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("dtype", "change", "refused"),
    [
        # The head grows by this share, and so do all logits.
        (torch.float32, 0.5e-4, False),
        (torch.float32, 2e-4, True),
        (torch.bfloat16, 2**-6, False),  # 0.016
        (torch.bfloat16, 2**-5, True),  # 0.031
    ],
)
def test_logits_may_differ_by_rounding_of_the_models_format_and_no_more(
    dtype, change, refused, tokenizer, tokens, tmp_path
):
    model, folder = tiny_model(layers=2).to(dtype), tmp_path / "saved"
    model.lm_head.weight.data.copy_(model.lm_head.weight.abs().clamp(min=0.1).sign() * 0.5)
    save_model(model, tokenizer, folder, tokens)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = (weights["lm_head.weight"].float() * (1 + change)).to(dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if refused:
        with pytest.raises(ModelError, match=r"LlamaForCausalLM gives different logits .*relative difference 0\.0"):
            check_reload(folder, model, tokens)
    else:
        assert check_reload(folder, model, tokens) == pytest.approx(change, rel=0.3)


def test_the_first_text_alone_is_compared(model, model_folder, tokens):
    unknown = torch.full((1, tokens.shape[1]), 10**6)
    assert check_reload(model_folder, model, torch.cat([tokens[:1], unknown])) == 0
    with pytest.raises(IndexError):
        check_reload(model_folder, model, torch.cat([unknown, tokens[:1]]))


def test_weights_that_lack_or_are_left_over_are_named_with_how_many_more(model_folder):
    file = model_folder / "model.safetensors"
    weights = load_file(file)
    check_complete(model_folder)
    save_file({**weights, "model.extra": torch.zeros(1), "model.more": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"The saved LlamaForCausalLM .*model.extra is not in the model, and 1 more"):
        check_complete(model_folder)
    for name in [name for name in weights if "layers.2.mlp" in name]:
        del weights[name]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match="is not in the files, and"):
        check_complete(model_folder)


def fail_quietly():
    with quiet_transformers():
        assert transformers_logging.get_verbosity() == transformers_logging.ERROR
        assert not transformers_logging.is_progress_bar_enabled()
        raise KeyError


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_reports_are_as_before_even_after_an_error(bars):
    verbosity, were = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.set_verbosity(17)
        (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
        with pytest.raises(KeyError):
            fail_quietly()
        assert transformers_logging.get_verbosity() == 17
        assert transformers_logging.is_progress_bar_enabled() == bars
    finally:
        transformers_logging.set_verbosity(verbosity)
        (transformers_logging.enable_progress_bar if were else transformers_logging.disable_progress_bar)()


def test_weights_can_be_read_by_whom_the_umask_lets(model, tokenizer, tmp_path):
    before = os.umask(0o027)
    try:
        save_model(model, tokenizer, tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "saved").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o640}
