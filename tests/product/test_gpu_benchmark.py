"""The comparison of a GPU with the CPU: run here with the CPU on both sides, where all numbers must be the same."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import need

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.data
@pytest.mark.apart
def test_the_cpu_is_the_same_as_itself_and_every_gain_is_measured(
    monkeypatch, model_folder, text_file, tmp_path, capsys
):
    need("olmo_eval")
    small = ("--count", 3, "--length", 32, "--limit", 2, "--steps", 4, "--no-compile", "--processes", 2)
    texts = ("--texts", text_file, "--recovery", text_file)
    run(monkeypatch, "--model", model_folder, "--device", "cpu", *texts, *small, "--output", tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["same"]) == 8
    assert all(row["difference"] == 0 and row["ok"] for row in found["same"])
    gained = {row["what"]: row for row in found["gained"]}
    assert len(gained) >= 6
    for name, row in gained.items():
        if not name.startswith("attention"):  # kinds that are not installed have no numbers
            assert row["before"] > 0
            assert row["times"] > 0
    assert "attention, eager and sdpa" in gained
    assert "search by 1 and 2 processes: the same path" in gained
    printed = capsys.readouterr().out
    assert printed.count("cpu beside the CPU") == 1  # one table
    assert printed.count("as it should") == 8


def test_other_weights_on_the_device_are_noticed(monkeypatch, model_folder, text_file, tmp_path, capsys):
    from swm.models import load

    usual, loaded = load.load_model, []

    def load_model(*arguments, **named):
        model, tokenizer = usual(*arguments, **named)
        loaded.append(model)
        if len(loaded) == 2:  # the device's
            with torch.no_grad():
                model.model.layers[1].mlp.down_proj.weight *= 1.3
        return model, tokenizer

    monkeypatch.setattr(load, "load_model", load_model)
    small = ("--count", 3, "--length", 32, "--limit", 0, "--steps", 4, "--no-compile")
    texts = ("--texts", text_file, "--recovery", text_file)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--model", model_folder, "--device", "cpu", *texts, *small, "--output", tmp_path / "gpu.json")
    assert end.value.code == 1
    assert "NO" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_well(monkeypatch, capsys):
    run(monkeypatch)
    assert capsys.readouterr().out.startswith("There is no GPU that torch")
