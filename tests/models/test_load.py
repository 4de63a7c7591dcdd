"""Loading, refusing, saving: on folders made here, and the bundled model."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from swm.errors import ExperimentError, ModelError, SettingsError
from swm.models.decoder import find_decoder
from swm.models.load import config_facts, load_model, load_tokenizer, pick_device, save_model
from swm.models.locate import model_folder as model_folder_of
from swm.models.save import check_reload
from tests.conftest import tiny_model


def test_folder_loads_in_eval_mode_with_equal_logits(model, model_folder, tokens):
    loaded, tokenizer = load_model(str(model_folder))
    assert not loaded.training
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert tokenizer.decode(tokenizer("the old house").input_ids) == "the old house"


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_dtype_auto_is_what_the_checkpoint_says(model, model_folder, dtype, expected):
    model.to(torch.bfloat16).save_pretrained(model_folder)
    assert load_model(str(model_folder), dtype)[0].dtype == expected


def test_gguf_file_that_is_damaged_is_refused_and_leaves_nothing(tmp_path, home):
    file = tmp_path / "cut.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"Cannot read .*cut.gguf"):
        load_model(str(file))
    assert not [p for p in (home / "models").iterdir() if p.is_dir()]


def test_missing_gguf_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="No file .*no.gguf"):
        load_model(str(tmp_path / "no.gguf"))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt"])
def test_pickle_is_refused_with_the_way_out(model_folder, file):
    (model_folder / "model.safetensors").rename(model_folder / file)
    with pytest.raises(ModelError, match=rf"{file}, a pickle file.* convert it to safetensors"):
        load_model(str(model_folder))


def test_folder_without_weights_is_refused(model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights: no .safetensors"):
        load_model(str(model_folder))


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config.json"):
        load_model(str(tmp_path))


def test_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="is a file"):
        load_model(str(tmp_path / "notes.txt"))


def test_encoder_is_refused(tmp_path):
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"\(BertForMaskedLM\) is not a decoder-only language model"):
        load_model(str(tmp_path / "bert"))


@pytest.mark.parametrize("cut", [0, 4, 100, 5000, 50_000])
def test_safetensors_cut_short_is_refused(model_folder, cut):
    file = model_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match="Cannot load the weights|is damaged or belongs to another model"):
        load_model(str(model_folder))


def test_missing_tensor_is_refused_by_name(model, model_folder, tokenizer):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model_folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, model_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete: the safetensors files lack model.layers.2.mlp.up_proj.weight"):
        load_model(str(model_folder))


def test_code_that_comes_with_a_model_is_never_run(model_folder, tmp_path):
    config = json.loads((model_folder / "config.json").read_text())
    config |= {"model_type": "wild", "auto_map": {"AutoConfig": "wild.WildConfig", "AutoModelForCausalLM": "wild.W"}}
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / "wild.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="code that comes with a model is never run"):
        load_model(str(model_folder))
    assert not (tmp_path / "ran").exists()


WRONG = [
    {"num_hidden_layers": "4"},
    {"num_hidden_layers": 10**6},
    {"hidden_size": "x"},
    {"hidden_size": 33},
    {"hidden_size": -32},
    {"num_attention_heads": 0},
    {"hidden_act": "nosuch"},
    {"vocab_size": -1},
    {"rope_parameters": "x"},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_config_with_values_that_cannot_be_gets_a_message(model_folder, change):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match="(The|Cannot use the) config of"):
        config_facts(str(model_folder))


@pytest.mark.parametrize("change", [{"architectures": 5}, {"architectures": [None]}, {"pad_token_id": 9999}], ids=str)
def test_odd_config_entries_are_survived_or_told(model_folder, change):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, **change}))
    with contextlib.suppress(ModelError):
        assert load_model(str(model_folder))[0].config.num_hidden_layers == 4


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a" * 300, "日本", "\0", " "])
def test_names_that_cannot_be_paths_are_refused(name):
    with pytest.raises(ModelError):
        load_model(name)


def test_tokenizer_that_is_missing_is_told(model_folder):
    for file in model_folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="Cannot load the tokenizer of"):
        load_tokenizer(str(model_folder))


def test_hub_id_without_a_network_is_told_with_what_works():
    with pytest.raises(ModelError, match=r"Cannot download org/model from the hub .*smollm2-135m"):
        load_model("org/model")


@pytest.mark.parametrize("name", ["../../etc", "a b", "no/such/folder/here", "", "-x/../y"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError):
        load_model(name)


def test_unknown_dtype_and_device_are_refused(model_folder):
    with pytest.raises(SettingsError, match="Unknown precision .dtype. 'int3'"):
        load_model(str(model_folder), "int3")
    for device in ("abacus", "cuda:77"):
        with pytest.raises(SettingsError, match=f"Cannot use device '{device}'"):
            pick_device(device)


def test_model_whose_layers_cannot_be_found_is_refused(model):
    model.config.num_hidden_layers = 9
    with pytest.raises(ModelError, match=r"the config says 9 layers, the module lists are: model.layers \(4\)"):
        find_decoder(model)


def test_config_facts_equal_the_loaded_model(model, model_folder):
    facts = config_facts(str(model_folder))
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["parameters_per_layer"] == sum(p.numel() for p in model.model.layers[0].parameters())
    assert (facts["layers"], facts["width"], facts["dtype"]) == (4, 32, "float32")
    assert facts["vocabulary"] == model.get_output_embeddings().out_features
    assert config_facts(str(model_folder), "bfloat16")["size_bytes"] == 2 * facts["parameters"]


def test_saved_model_that_gives_other_logits_is_refused(model, model_folder, tokens):
    assert check_reload(model_folder, model, tokens) == 0
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
    with pytest.raises(ModelError, match="gives different logits than the model in memory"):
        check_reload(model_folder, model, tokens)


def test_model_that_does_not_reload_well_never_takes_the_place_of_a_good_one(model, tokenizer, tokens, tmp_path):
    folder = tmp_path / "saved"
    save_model(model, tokenizer, folder, tokens)
    good = (folder / "model.safetensors").read_bytes()
    model.model.layers[1].register_forward_hook(lambda module, args, result: result * 1.5)  # what no config says
    with pytest.raises(ModelError, match="gives different logits"):
        save_model(model, tokenizer, folder, tokens)
    assert (folder / "model.safetensors").read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_saving_takes_the_place_of_the_old_folder(model, tokenizer, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "old").write_text("old")
    save_model(model, tokenizer, folder)
    assert not (folder / "old").exists()
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 4
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_full_disk_while_saving_leaves_the_old_folder_and_says_how_much_is_needed(small_disk, tokenizer, monkeypatch):
    model = tiny_model(hidden_size=64, intermediate_size=512, layers=4)  # 2 MiB
    folder = small_disk / "saved"
    folder.mkdir()
    (folder / "old").write_text("old")
    for free in (None, 2**40):  # found beforehand; and while writing, when the space is taken meanwhile
        if free:
            monkeypatch.setattr("swm.models.save.check_space", lambda folder, needed: None)
        with pytest.raises(ExperimentError, match=r"No space left for .*/saved: \d\.\d MiB needed, [01]\.\d MiB free"):
            save_model(model, tokenizer, folder)
        assert [p.name for p in small_disk.iterdir()] == ["saved"]
        assert (folder / "old").read_text() == "old"


def test_each_of_several_processes_takes_the_gpu_of_its_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert pick_device("auto") == torch.device("cuda")
    for rank in ("0", "3"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert pick_device("auto") == torch.device(f"cuda:{rank}")
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


def test_weights_of_a_gguf_file_are_stored_in_the_precision_that_is_needed(model_folder, tmp_path, home):
    import swm

    gguf = tmp_path / "tiny.gguf"
    swm.export_gguf(model_folder, gguf, "F16")
    reported = []
    half = model_folder_of(str(gguf), "bfloat16", lambda done, total, text: reported.append((done, total, text)))
    assert list(home.glob("models/[!.]*")) == [half]
    tensors = load_file(half / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert model_folder_of(str(gguf)) == half  # config and tokenizer are the same
    assert load_model(str(gguf), "bfloat16")[0].dtype == torch.bfloat16
    counts = [(done, total) for done, total, text in reported if text == "converting tiny.gguf"]
    assert counts == [(n, counts[-1][1]) for n in range(counts[-1][1])]
    whole = model_folder_of(str(gguf), "auto")
    assert whole != half
    exact = load_file(whole / "model.safetensors")
    assert {tensor.dtype for tensor in exact.values()} == {torch.float32}
    for name, tensor in exact.items():
        assert torch.equal(tensor.bfloat16(), tensors[name]), name
    assert model_folder_of(str(gguf), "float16") == whole  # which serves every precision


def test_create_in_bfloat16_stores_no_float32_and_its_log_has_no_bars(swm, model_folder, tmp_path, home, text_file):
    import swm as face

    gguf = tmp_path / "tiny.gguf"
    face.export_gguf(model_folder, gguf, "F16")
    size = ["--texts", text_file, "--count", 2, "--length", 16]
    code, _, said = swm("create", "half", "--model", gguf, "--dtype", "bfloat16", *size)
    assert code == 0, said
    assert "it/s" not in said
    [folder] = home.glob("models/[!.]*")
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    for command in (["measure", "half"], ["merge", "half", "a", "--windows", "1-2"]):
        assert swm(*command)[0] == 0
    assert list(home.glob("models/[!.]*")) == [folder]
