"""Broken weights, configs, tokenizers, GGUF and text files: a clear message or a right result, and an end in time."""

import json
import math
import os
import shutil
import signal
import struct
from contextlib import contextmanager

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from swm.errors import SwmError
from swm.models.load import config_facts, load_model
from swm.texts.calibration import calibration_tokens
from swm.texts.documents import recovery_examples

pytestmark = pytest.mark.filterwarnings("ignore")  # odd configs make torch and transformers warn of much
SECONDS = 30  # for a case; they take tens of milliseconds
ODD = (None, True, -1, 0, 1, 2, 1e300, 0.5, "", "x", "../../etc/passwd", [], {}, [1], 2**31, 2**63, "llama", "auto")


class TooLate(BaseException):
    """No handler of errors may swallow it."""


@contextmanager
def in_time():
    """Fail rather than hang."""

    def late(number, frame):
        raise TooLate(f"It took more than {SECONDS} seconds.")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def many(often, few, most):
    """Hypothesis settings with a seed of its own; the same cases in every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=often(few, most), deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )


def tried(action):
    """Whether it was refused with a message of ours; any other exception fails the test."""
    with in_time():
        try:
            action()
            return False
        except SwmError as error:
            message = str(error)
    assert len(message) > 20
    assert message.endswith("."), message
    return True


def loads_and_answers(folder):
    """The model loads, and gives numbers or is refused."""
    model, tokenizer = load_model(str(folder), device="cpu")
    with torch.inference_mode():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape[:2] == (1, 3)
    tokenizer("some text")


def copied(folder, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return target


# ---- weights --------------------------------------------------------------------------------------------------------


@st.composite
def broken_safetensors(draw, content):
    """The file cut, with bytes changed, with another header length, or with a header that says otherwise."""
    how = draw(st.sampled_from(["cut", "flip", "length", "header", "grown"]))
    (size,) = struct.unpack("<Q", content[:8])
    if how == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if how == "grown":
        return content + b"\0" * draw(st.integers(1, 64))
    if how == "flip":
        at = draw(st.integers(0, min(len(content), size + 64) - 1))
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if how == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + content[8:]
    header = json.loads(content[8 : 8 + size])
    name = draw(st.sampled_from([key for key in header if key != "__metadata__"]))
    change = draw(st.sampled_from(["drop", "rename", "dtype", "shape", "offsets", "odd"]))
    if change == "drop":
        del header[name]
    elif change == "rename":
        header["x." + name] = header.pop(name)
    elif change == "dtype":
        header[name]["dtype"] = draw(st.sampled_from(["F64", "F16", "I8", "BOOL", "X", "", "F8_E4M3"]))
    elif change == "shape":
        header[name]["shape"] = draw(st.lists(st.integers(-1, 2**40), max_size=4))
    elif change == "offsets":
        header[name]["data_offsets"] = draw(st.lists(st.integers(0, 2**40), min_size=2, max_size=2))
    else:
        header[name] = draw(st.sampled_from(ODD))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def test_broken_safetensors(model_folder, tmp_path, often):
    content = (model_folder / "model.safetensors").read_bytes()
    folder, counts = copied(model_folder, tmp_path / "broken"), [0, 0]

    @many(often, 150, 1000)
    @given(broken_safetensors(content))
    def check(broken):
        (folder / "model.safetensors").write_bytes(broken)
        counts[tried(lambda: loads_and_answers(folder))] += 1

    check()
    assert counts[1] > counts[0]
    often.figure("bad inputs tried", sum(counts))


def test_a_missing_shard_and_a_broken_index(model, tokenizer, tmp_path, often):
    folder = tmp_path / "sharded"
    model.save_pretrained(folder, max_shard_size="30KB")
    tokenizer.save_pretrained(folder)
    loads_and_answers(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        broken = copied(folder, tmp_path / "broken")
        (broken / shard.name).unlink()
        assert tried(lambda broken=broken: loads_and_answers(broken))
    text = (folder / "model.safetensors.index.json").read_text()
    names = [shard.name for shard in shards]
    index = folder / "model.safetensors.index.json"
    counts = [0, 0]

    @many(often, 60, 300)
    @given(st.data())
    def check(data):
        how = data.draw(st.sampled_from(["cut", "map", "name"]))
        if how == "cut":
            index.write_text(text[: data.draw(st.integers(0, len(text) - 1))])
        else:
            changed = json.loads(text)
            if how == "map":
                changed["weight_map"] = data.draw(st.sampled_from(ODD))
            else:
                key = data.draw(st.sampled_from(sorted(changed["weight_map"])))
                changed["weight_map"][key] = data.draw(st.sampled_from([*ODD, *names, "/etc/passwd"]))
            index.write_text(json.dumps(changed))
        counts[tried(lambda: loads_and_answers(folder))] += 1

    check()
    assert counts[1] > counts[0]
    often.figure("bad inputs tried", sum(counts) + len(shards))


def test_broken_configs(model_folder, tmp_path, often):
    folder, counts = copied(model_folder, tmp_path / "broken"), [0, 0]
    config = json.loads((model_folder / "config.json").read_text())

    @many(often, 120, 800)
    @given(st.dictionaries(st.sampled_from(sorted(config)), st.sampled_from(ODD), min_size=1, max_size=2))
    def check(changes):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        counts[tried(lambda: config_facts(str(folder)))] += 1
        tried(lambda: loads_and_answers(folder))

    check()
    assert min(counts) > 0
    often.figure("bad inputs tried", sum(counts))


def test_broken_tokenizers(model_folder, tmp_path, often):
    folder, counts = copied(model_folder, tmp_path / "broken"), [0, 0]
    names = ["tokenizer.json", "tokenizer_config.json"]
    whole = {name: (model_folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    assert tried(lambda: loads_and_answers(folder))

    @many(often, 100, 400)
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(names))
        content = whole[name]
        at = data.draw(st.integers(0, len(content) - 1))
        flipped = content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
        for each in names:
            (folder / each).write_bytes(whole[each])
        (folder / name).write_bytes(data.draw(st.sampled_from([content[:at], flipped])))
        counts[tried(lambda: loads_and_answers(folder))] += 1

    check()
    assert min(counts) > 0
    often.figure("bad inputs tried", sum(counts))


def write_gguf(file):
    """A small Llama in GGUF, as llama.cpp writes it."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(260)
    writer.add_tokenizer_model("gpt2")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_token_list(["<end>", *letters, "\u0120t", "he", "in"])
    writer.add_token_merges(["\u0120 t", "h e", "i n"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (260, 32), "output_norm.weight": (32,), "output.weight": (260, 32)}
    for n in range(2):
        block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
        block |= {"attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
        shapes |= {f"blk.{n}.{name}.weight": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_broken_gguf(tmp_path, home, often):
    whole = tmp_path / "whole.gguf"
    write_gguf(whole)
    loads_and_answers(whole)
    content, file, counts = whole.read_bytes(), tmp_path / "broken.gguf", [0, 0]
    header = content.index(b"output_norm")  # names and settings come before the weights

    @many(often, 60, 400)
    @given(st.data())
    def check(data):
        if data.draw(st.booleans()):
            broken = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            at = data.draw(st.integers(0, header))
            broken = content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
        file.write_bytes(broken)
        os.utime(file, (len(broken), sum(broken[:header])))  # else it is taken for the one converted before
        counts[tried(lambda: loads_and_answers(file))] += 1
        shutil.rmtree(home / "models", ignore_errors=True)

    check()
    assert counts[1] > counts[0]
    often.figure("bad inputs tried", sum(counts))


# ---- texts ----------------------------------------------------------------------------------------------------------


def test_broken_texts(tokenizer, tmp_path, often):
    counts = [0, 0]

    @many(often, 150, 1000)
    @given(st.data())
    def check(data):
        file = tmp_path / f"text{data.draw(st.sampled_from(['.txt', '.jsonl', '.json', '']))}"
        good = st.sampled_from([b"word " * 50, b"\n\n", b'{"text": "' + b"word " * 40 + b'"}\n'])
        bad = st.one_of(st.sampled_from([b"\0", b"\xff\xfe", b'{"text": 1}\n', b"[]\n"]), st.binary(max_size=30))
        parts = data.draw(st.lists(data.draw(st.sampled_from([good, st.one_of(good, bad)])), max_size=12))
        file.write_bytes(b"".join(parts))

        def read():
            tokens = calibration_tokens(tokenizer, str(file), 2, 16)
            assert tokens.shape == (2, 16)
            assert tokens.min() >= 0

        counts[tried(read)] += 1
        tried(lambda: recovery_examples(str(file)))

    check()
    assert min(counts) > 0
    often.figure("bad inputs tried", sum(counts))


@pytest.mark.parametrize("name", ["big.txt", "big.jsonl"])
def test_a_line_of_a_gigabyte_is_read_in_part_or_refused(tokenizer, tmp_path, often, name):
    """Sparse: it needs no disk. NUL bytes, as in a file that a crash left."""
    file = tmp_path / name
    size = often(2**26, 2**30)
    with file.open("wb") as big:
        big.truncate(size)
    before = os.times().user
    tried(lambda: calibration_tokens(tokenizer, str(file), 2, 16))
    assert os.times().user - before < SECONDS
    with file.open("wb") as big:
        big.write(b"a word " * (size // 7))
    if name.endswith("txt"):
        tokens = calibration_tokens(tokenizer, str(file), 2, 16)
        assert tokens.shape == (2, 16)
    else:
        assert tried(lambda: calibration_tokens(tokenizer, str(file), 2, 16))


def test_weights_that_are_no_numbers_are_told(model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    from swm.settings import ExperimentSettings
    from swm.stages.create import create_experiment
    from swm.stages.measure import measure_experiment

    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{n} plain words and more of them " * 12 for n in range(12)))
    file = model_folder / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.2.mlp.up_proj.weight"][:] = math.nan
    save_file(weights, file, {"format": "pt"})
    experiment = create_experiment("nan", ExperimentSettings(str(model_folder), str(text), 3, 32))
    with pytest.raises(SwmError, match="not a number|not finite|NaN"):
        measure_experiment(experiment)
