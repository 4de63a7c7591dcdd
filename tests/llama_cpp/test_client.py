"""llama.cpp as a client: what it says when something is missing, and a run timed in it."""

import json

import pytest

from swm.errors import SettingsError
from swm.llama_cpp.client import client_missing, install_command, llama_cpp
from swm.workspace.experiments import Experiment
from tests.reporting.test_gguf_format import run  # noqa: F401


def test_what_is_missing_is_said_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SWM_LLAMA_CPP", str(tmp_path / "not there"))
    assert f"npm install --prefix '{tmp_path}/not there'" in install_command()
    assert "--ignore-scripts" in install_command()
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/node")
    assert client_missing() == f"llama.cpp is not installed. Run: {install_command()}"
    with pytest.raises(SettingsError, match="is not installed. Run: npm install"), llama_cpp():
        pass
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "Node.js is not installed" in client_missing()


def test_a_file_that_is_none_is_refused_and_the_client_goes_on(client, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"llama.cpp cannot run .*x.gguf: "):
            client.ask(tmp_path / "x.gguf", tokenize=["a"])


def test_a_run_is_timed_in_turn_with_the_original(run, swm, client):  # noqa: F811
    code, out, err = swm("time", "study", "first", "--client", "llama.cpp", "--type", "F16")
    assert code == 0, err
    assert out.startswith("llama.cpp, F16, ")
    timed = Experiment.open("study").run("first").in_llama_cpp()
    original = Experiment.open("study").run("baseline").in_llama_cpp()
    assert timed["baseline"]["perplexity"] == original["perplexity"]
    for one in (timed, original):
        assert one["perplexity"] == pytest.approx(one["perplexity_exact"], rel=0.005)
        assert len(one["rates"]["generation"]) == one["turns"] == 7
    turns = zip(timed["rates"]["generation"], original["rates"]["generation"], strict=True)
    ratios = sorted(mine / its for mine, its in turns)
    assert timed["speedup"] == {"value": ratios[3], "low": ratios[0], "high": ratios[-1]}
    compared = swm("compare", "study")[1]
    assert "in llama.cpp (F16): tokens per second" in compared
    assert f"{timed['tokens_per_second']:,.1f}" in compared
    rows = json.loads(swm("compare", "study", "--json")[1])["runs"]
    assert [row["llama_cpp"]["type"] for row in rows] == ["F16", "F16"]
    swm("merge", "study", "first", "--windows", "0-1", "--again")
    assert Experiment.open("study").run("first").in_llama_cpp() is None
