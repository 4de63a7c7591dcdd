"""Tests of swm.stages.abilities, and of planners that judge by abilities, on a tiny model and requests made here."""

import json

import pytest

from swm.errors import Cancelled
from swm.evaluation import ability_scores
from swm.models.load import load_model
from swm.plan import MergePlan
from swm.stages.abilities import map_abilities
from swm.texts.requests import read_requests
from swm.workspace.experiments import Experiment
from tests.reference import scoring

WORDS = ("river", "house", "light", "night", "children", "parents", "evening", "years")


@pytest.fixture
def mine(tmp_path):
    """Forty requests that begin alike, every second one with choices."""
    rows = []
    for number in range(40):
        answer, other = f" {WORDS[number % 8]}", f" {WORDS[(number + 3) % 8]}"
        row = {"prompt": f"one evening two of them went to look . {number} near the", "answer": answer}
        rows.append({**row, "choices": [other, answer]} if number % 2 else row)
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def experiment(swm, model_folder, text_file):
    arguments = ("--model", model_folder, "--texts", text_file, "--count", 4, "--length", 16)
    assert swm("create", "e", *arguments)[0] == 0
    return Experiment.open("e")


def plain_bits(model, tokenizer, request):
    """Bits per byte of the right answer, by one forward pass."""
    context, answer = request.prompt.rstrip(), request.choices[request.right]
    before, whole = tokenizer([context]).input_ids[0], tokenizer([context + answer]).input_ids[0]
    nats = -scoring.continuation_log_likelihood(model, before, whole[len(before) :])
    return nats / 0.6931471805599453 / len(answer.encode())


def test_the_map_holds_what_plain_forward_passes_give(swm, experiment, mine):
    code, out, _ = swm("abilities", "e", "--abilities", mine, "--requests", 12, "--precision", "exact", "--json")
    assert code == 0
    said = json.loads(out)
    (rises,) = said["rises"].values()
    (entry,) = experiment.read("abilities.json")["abilities"].values()
    requests = {each.id: each for each in read_requests(mine)}
    asked = [requests[key.split(":")[0]] for key in entry["ids"]]
    assert len(asked) == 12
    model, tokenizer = load_model(experiment.settings.model)
    before = [plain_bits(model, tokenizer, each) for each in asked]
    assert entry["scores"]["original"]["bits"] == pytest.approx(before, abs=2e-4)
    for layer in range(4):
        whole = model.model.layers[layer].forward
        model.model.layers[layer].forward = lambda hidden, **more: hidden
        after = [plain_bits(model, tokenizer, each) for each in asked]
        model.model.layers[layer].forward = whole
        assert entry["scores"][f"{layer}"]["bits"] == pytest.approx(after, abs=2e-4)
        assert rises[layer]["value"] == pytest.approx(sum(after) / sum(before) - 1, abs=1e-3)
        assert rises[layer]["low"] < rises[layer]["value"] < rises[layer]["high"]


def test_what_was_measured_is_not_measured_again(experiment, mine, monkeypatch):
    """After a cancellation, for a larger number, and with the attention apart; a changed file begins anew."""
    monkeypatch.setattr("swm.evaluation.packs.PACK_TOKENS", 60)
    monkeypatch.setattr("swm.evaluation.ability_scores.packs.__defaults__", (60,))
    ran, name = [], str(mine)
    without = ability_scores.PackReplay.without
    monkeypatch.setattr(
        ability_scores.PackReplay,
        "without",
        lambda self, layer, part="layer": ran.extend(self.pack.scored) or without(self, layer, part),
    )

    def stop_late(done, total, text):
        if done > total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        map_abilities(experiment, [name], 8, stop_late, precision="exact")
    kept = experiment.read("abilities.json")["abilities"][name]["ids"]
    assert 0 < len(kept) < 8
    map_abilities(experiment, [name], 8, precision="exact")
    whole = experiment.read("abilities.json")["abilities"][name]
    assert len(whole["ids"]) == 8
    assert whole["ids"][: len(kept)] == kept
    ran.clear()
    map_abilities(experiment, [name], 8, precision="exact")
    assert ran == []
    map_abilities(experiment, [name], 10, precision="exact")
    assert len({number for number, *_ in ran}) == 2
    map_abilities(experiment, [name], 10, precision="exact", parts=True)
    assert {"2 attention", "2 mlp"} <= set(experiment.read("abilities.json")["abilities"][name]["scores"])
    mine.write_text(mine.read_text().replace("near the", "far from the"))
    ran.clear()
    map_abilities(experiment, [name], 10, precision="exact")
    assert len({number for number, *_ in ran}) == 10


def test_a_run_s_profile_stays_with_the_model_it_is_of(swm, experiment, mine):
    assert swm("merge", "e", "r", "--windows", "1-2")[0] == 0
    code, out, _ = swm("abilities", "e", "r", "--abilities", mine, "--json")
    assert code == 0
    run = experiment.run("r")
    (entry,) = run.read("abilities.json")["abilities"].values()
    requests = {each.id: each for each in read_requests(mine)}
    model, tokenizer = load_model(str(run.model_folder))
    expected = [plain_bits(model, tokenizer, requests[key.split(":")[0]]) for key in entry["ids"]]
    assert entry["scores"]["model"]["bits"] == pytest.approx(expected, abs=0.02)
    chosen = {key for ability in json.loads(out)["rises"] for key in [ability]}
    assert chosen == {str(mine)}
    run.discard_scores("aside")
    assert (run.read("abilities.json"), run.read("abilities-merged.json")["abilities"][str(mine)]) == (None, entry)


@pytest.mark.parametrize("planner", ["sleb", "perplexity", "best"])
def test_a_planner_judges_by_abilities_and_reports_on_other_requests(swm, experiment, mine, monkeypatch, planner):
    monkeypatch.setattr("swm.stages.abilities.ABILITIES", {})
    usual = swm("plan", "e", "--planner", planner, "--layers", 3, "--json")
    code, out, error = swm("plan", "e", "--planner", planner, "--layers", 3, "--keep", f"{mine}=2", "--json")
    assert (usual[0], code) == (0, 0), error
    data = json.loads(out)
    assert data["keep"] == f"{mine}=2"
    (rise,) = data["kept"].values()
    assert rise["low"] <= rise["value"] <= rise["high"]
    assert experiment.planned(planner, 3)["windows"] == json.loads(usual[1])["windows"]
    assert experiment.planned(planner, 3, f"{mine}=2")["kept"] == data["kept"]
    assert len([each for each in experiment.plans_found() if each["planner"] == planner]) == 2
    if planner == "perplexity":  # drops the layer without which the sum over the same requests is least
        entry = map_abilities(experiment, [str(mine)], 24, precision="exact")["abilities"][str(mine)]
        sums = [sum(entry["scores"][f"{layer}"]["bits"]) for layer in range(4)]
        assert set(MergePlan.from_dict(data).base_layers()) == set(range(4)) - {sums.index(min(sums))}


def test_a_planner_that_tries_no_plans_cannot_keep_abilities(swm, experiment, mine):
    code, _, error = swm("plan", "e", "--planner", "shortgpt", "--layers", 3, "--keep", mine)
    assert code == 1
    assert (
        error.strip()
        == "--keep needs a planner that tries plans: --planner best, perplexity, sleb. Choose one of these."
    )
    code, _, error = swm("plan", "e", "--planner", "sleb", "--layers", 3, "--keep", "kindness")
    assert code == 1
    assert "'kindness' is not an ability" in error


@pytest.mark.parametrize("count", [0, 1, 1001, -3])
def test_a_number_of_requests_out_of_range_is_refused(swm, experiment, mine, count):
    code, _, error = swm("abilities", "e", "--abilities", mine, "--requests", count)
    assert code == 1
    assert error.startswith(f"--requests {count} is out of range.")
