"""Estimates against pencil; what cannot fit is told with both numbers."""

import json
from dataclasses import replace

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from swm.cli.main import main
from swm.models.load import config_facts
from swm.plan import MergePlan, Window
from swm.planners.plan_with import plan_with
from swm.registry import PLANNERS
from swm.search.plan_loss import PlanLoss
from swm.search.vocabulary import sample_for
from swm.settings import PLAN_BUDGET, PRESETS, ExperimentSettings, preset_settings
from swm.workspace.estimate import (
    PROCESS_BYTES,
    Estimate,
    estimate_run,
    evaluated_tokens,
    planner_seconds,
    recent_rates,
    stage_needs,
    training_speed,
    with_rate,
)
from swm.workspace.experiments import Experiment
from tests.conftest import tiny_model

FACTS = {"layers": 10, "width": 100, "parameters": 2_000_000, "parameters_per_layer": 100_000, "size_bytes": 8_000_000}


COST = {"layers_ms": 8.0, "rest_ms": 2.0, "forward_tokens_per_second": 1000.0, "training_tokens_per_second": 3000.0}


PLAN = MergePlan(10, (Window(2, 4),))


LEFT = (8 * 100_000 + 1_000_000) / 2_000_000  # of reading with all predictions: 8 of 10 layers, and the whole head


def test_seconds_follow_from_the_tokens_and_the_rates(tmp_path):
    recovery = preset_settings("quick", steps=30, batch=4, length=100, save_every=30, held_out=3)
    found = estimate_run(FACTS, COST, PLAN, recovery, 10, tmp_path)
    # 30 x 4 x 100 tokens, four forward passes each at 3000 a second, and two held-out passes of 3 x 100 forward only;
    # both models read 24,576 tokens at 3000 a second for the repair
    assert found.seconds["heal"] == pytest.approx(10 + (LEFT * (4 * 12_000 + 600) + 2 * 24_576) / 3000)
    without = estimate_run(FACTS, COST, PLAN, replace(recovery, repair="none"), 10, tmp_path)
    assert without.seconds["heal"] == pytest.approx(10 + LEFT * (4 * 12_000 + 600) / 3000)
    fitted = estimate_run(FACTS, COST, replace(PLAN, rule="fit"), recovery, 10, tmp_path)
    assert fitted.seconds["heal"] == found.seconds["heal"]  # fitted once more, on the text that it learns from
    assert fitted.seconds["merge"] == pytest.approx(found.seconds["merge"] + 2 * 24_576 / 3000)
    # 2 x 32 x 256 tokens of perplexity and ten documents of each task, of which the head sees only the answers: by the
    # original, then twice by the smaller model; each time loading, and 3 answers of 32 tokens at 10 ms
    documents = 10 * (165 + 60 + 81 + 26 + 46 + 58 + 26)
    read = 16_384 * (1 + 2 * LEFT) + documents * (0.5 + 2 * 0.4)
    beside = 3 * (5 + 8_000_000 / (400 * 2**20) + 0.96)
    assert found.seconds["evaluate"] == pytest.approx(beside + read / 1000)
    assert found.total_seconds == sum(found.seconds.values())
    twice = estimate_run(FACTS, COST, PLAN, preset_settings("quick", steps=60), 10, tmp_path)
    assert twice.seconds["heal"] > found.seconds["heal"]


def test_documents_of_a_task_are_no_more_than_there_are(tmp_path):
    def read(*tasks, limit):
        seconds = estimate_run(FACTS, COST, MergePlan(10), None, limit, tmp_path, tasks, evaluations=1).seconds
        return (
            seconds["evaluate"] - estimate_run(FACTS, COST, MergePlan(10), None, 1, tmp_path, (), 1).seconds["evaluate"]
        )

    assert read("winogrande", limit=300) == pytest.approx(300 * 26 / 2 / 1000)
    assert read("winogrande", limit=None) == read("winogrande", limit=9999) == pytest.approx(1267 * 26 / 2 / 1000)
    assert read("boolq", "piqa", limit=10) == pytest.approx(10 * (165 + 60) / 2 / 1000)


def test_layers_and_head_count_as_the_multiplications_that_pytorch_counts():
    model = tiny_model(layers=10, vocab_size=3000)
    per_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    facts = {"layers": 10, "width": 32, "vocabulary": 3000, "parameters_per_layer": per_layer, "parameters": 1}
    smaller = tiny_model(layers=8, vocab_size=3000)
    flops = []
    for each, kept in ((model, 0), (smaller, 0), (smaller, 1)):  # the head sees all tokens, or one
        with FlopCounterMode(display=False) as counter:
            each(torch.zeros(1, 200, dtype=torch.long), use_cache=False, logits_to_keep=kept)
        flops.append(counter.get_total_flops())
    scored = evaluated_tokens(facts, PLAN, 200, 0) / 200
    assert scored == pytest.approx(flops[1] / flops[0], rel=0.05)  # attention itself is not counted
    assert evaluated_tokens(facts, PLAN, 0, 200) / 200 == pytest.approx(flops[2] / flops[0], rel=0.35)
    assert evaluated_tokens(facts, MergePlan(10), 200, 0) == 200


def test_rates_are_the_median_of_the_last_jobs_on_the_same_device_in_the_same_precision(monkeypatch):
    cost = COST
    for speed in (9000.0, 100.0, 500.0, 700.0, 600.0, 650.0):  # the lucky first one is forgotten, the busy one outvoted
        cost = with_rate(cost, "forward", "cpu", "float32", speed)
    assert recent_rates(cost) == {"forward_tokens_per_second": 600.0}
    on_gpu = with_rate(cost, "forward", "cuda", "float32", 90_000.0)
    assert recent_rates(on_gpu) == {"forward_tokens_per_second": 90_000.0}
    assert recent_rates(with_rate(on_gpu, "training", "cpu", "float32", 300.0)) == {
        "forward_tokens_per_second": 600.0,
        "training_tokens_per_second": 300.0,
    }
    half = with_rate(cost, "forward", "cpu", "bfloat16", 1200.0)
    assert recent_rates(half) == {"forward_tokens_per_second": 1200.0}
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert recent_rates(half) == {}  # here nothing ran yet
    assert len(half["observed"]) == 6


def test_rates_count_once_the_time_of_a_token_was_measured(home):
    experiment = Experiment.create("study", ExperimentSettings("m"), {**FACTS, "architecture": "x", "dtype": "float32"})
    experiment.keep_rate("forward", "cpu", "float32", 800.0)
    assert experiment.cost() is None
    experiment.save_cost({**COST, "forward_tokens_per_second": 7000.0})  # as an earlier release may have raised it
    experiment.keep_rate("forward", "cpu", "float32", 800.0)
    shown = experiment.cost()
    assert {name: shown[name] for name in COST} == {**COST, "forward_tokens_per_second": 800.0}


def test_without_rates_there_are_no_times(tmp_path):
    assert estimate_run(FACTS, None, PLAN, None, 10, tmp_path).seconds == {}


def test_memory_grows_with_the_batch_and_disk_with_the_model(tmp_path):
    small, large = (
        estimate_run(FACTS, COST, PLAN, preset_settings("quick", batch=batch), 10, tmp_path) for batch in (8, 800)
    )
    assert PROCESS_BYTES < small.memory_bytes < large.memory_bytes
    plain = estimate_run(FACTS, COST, PLAN, None, 10, tmp_path)
    assert plain.disk_bytes == 7_200_000  # two of ten layers of 400,000 bytes go
    assert small.free_memory_bytes == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_what_cannot_fit_is_told_with_both_numbers():
    problems = Estimate({}, 8 * 2**30, 4 * 2**30, 2**30, 2**29).problems()
    assert "Not enough memory: about 8.0 GiB needed, 1.0 GiB free" in problems[0]
    assert "Not enough disk space: about 4.0 GiB needed, 512 MiB free" in problems[1]
    assert Estimate({}, 1, 1, 1, 1).problems() == []


def test_speed_of_training_is_that_of_the_last_steps():
    events = [{"time": 10.0 + 2 * step, "step": step, "steps": 40, "loss": 1.0} for step in range(1, 31)]
    events.insert(3, {"time": 0.0, "step": 3, "steps": 40, "held_out_loss": 1.0})
    settings = {"batch": 4, "accumulate": 2, "length": 100}
    assert training_speed(events, settings) == 400.0
    assert training_speed(events[:1], settings) is None
    assert training_speed([], {}) is None


def test_standard_trains_longer_than_quick():
    assert PRESETS["standard"].steps > PRESETS["quick"].steps


def test_a_pause_and_steps_done_again_do_not_bend_the_speed():
    events = [{"time": float(step), "step": step, "steps": 100, "loss": 1.0} for step in range(1, 16)]
    events += [{"time": 9000.0 + step, "step": step, "steps": 100, "loss": 1.0} for step in range(11, 20)]
    assert training_speed(events, {"batch": 1, "accumulate": 1, "length": 10}) == 10.0


def test_saving_memory_is_counted(tmp_path):
    settings = preset_settings("quick", batch=64, length=1024)
    off, on = (
        estimate_run(FACTS, COST, PLAN, replace(settings, checkpointing=how), 10, tmp_path) for how in ("off", "on")
    )
    assert on.memory_bytes < 0.75 * off.memory_bytes


# Shapes as the models' own configs give them; parameters as their authors count them.
SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}


REAL = {
    "LLaMA-2-7B": (SEVEN, 6_738_415_616),
    "Vicuna-7B": (SEVEN, 6_738_415_616),
    "LLaMA-2-13B": (
        {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
        13_015_864_320,
    ),
    "LLaMA-3-8B": (
        {**SEVEN, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
        8_030_261_248,
    ),
    "LLaMA-2-70B": (
        {
            "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
        68_976_648_192,
    ),
}  # fmt: skip


def config_folder(folder, changes):
    folder.mkdir()
    config = AutoConfig.for_model("llama", **{"vocab_size": 32000, "num_key_value_heads": None, **changes})
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", REAL)
def test_needs_of_large_models_follow_from_their_configs(name, tmp_path):
    changes, parameters = REAL[name]
    facts = config_facts(str(config_folder(tmp_path / name, changes)))
    width, layers, inner = changes["hidden_size"], changes["num_hidden_layers"], changes["intermediate_size"]
    kv = changes.get("num_key_value_heads", changes["num_attention_heads"]) / changes["num_attention_heads"]
    layer = round((2 + 2 * kv) * width**2) + 3 * width * inner + 2 * width
    assert facts["parameters"] == parameters == layers * layer + 2 * changes.get("vocab_size", 32000) * width + width
    assert facts["parameters_per_layer"] == layer
    assert facts["size_bytes"] == 2 * parameters
    plan = MergePlan(layers, (Window(0, layers // 5),))
    needs = {need.stage: need for need in stage_needs(facts, None, plan, preset_settings("quick"), 100, 1280)}
    assert {n.stage for n in needs.values() if n.seconds is not None} == {"merge --stream"}  # by the disk alone
    # the model once, a merged layer, and states of 1,280 tokens in front of every fourth layer
    states = 4 * 1280 * width * (layers // 4 + 2)
    assert needs["search, one threshold"].memory_bytes == pytest.approx(2 * parameters + 2 * layer + states, rel=1e-6)
    assert needs["merge --stream"].memory_bytes < 0.12 * needs["merge"].memory_bytes * 32 / layers
    assert needs["merge"].disk_bytes == pytest.approx(2 * (parameters - layers // 5 * layer), rel=1e-6)
    assert needs["recover"].memory_bytes > 2 * parameters
    four = {need.stage: need for need in stage_needs(facts, None, plan, preset_settings("qlora"), 100, 1280)}
    bits = 4 + 8 / 64 + 32 / 64 / 256  # NF4 with double quantization, arXiv:2305.14314 section 3
    weights = 2 * (parameters - layers * layer) + (layers - layers // 5) * layer * bits / 8
    training = needs["recover"].memory_bytes - weights
    assert weights < four["recover"].memory_bytes < min(weights + training, 1.3 * weights + 2**32)
    assert four["recover"].disk_bytes > needs["recover"].disk_bytes + needs["merge"].disk_bytes * 0.9


def test_needs_of_the_bundled_model_hold_what_was_measured():
    """Memory beyond the model as LOG.md has it: similarity 0.70 model sizes, the search 0.137, LoRA 3.9 GiB in all."""
    facts = {
        "layers": 30, "width": 576, "parameters": 134_515_008, "parameters_per_layer": 3_540_096,
        "size_bytes": 538_060_032, "dtype": "float32",
    }  # fmt: skip
    plan = MergePlan(30, (Window(22, 23), Window(26, 27)))
    needs = {need.stage: need for need in stage_needs(facts, None, plan, preset_settings("quick"), 100, 1280)}
    measured = {"search, one threshold": 1.137, "recover": 3.9 * 2**30 / facts["size_bytes"]}
    for stage, sizes in measured.items():
        assert 0.75 < needs[stage].memory_bytes / (sizes * facts["size_bytes"]) < 1.5, stage


def test_one_layer_of_a_models_shape_tells_what_the_whole_costs(model, tokenizer, tmp_path, tokens):
    from swm.evaluation.cost import config_cost, decode_cost

    large = tiny_model(layers=12, hidden_size=256, intermediate_size=1024)
    large.save_pretrained(tmp_path / "large")
    tokenizer.save_pretrained(tmp_path / "large")
    wholes, ones = [], []
    for _ in range(8):  # in turn, because other work slows down now one, now the other: the best of each counts
        wholes.append(decode_cost(large, tokens[:1]))
        ones.append(config_cost(str(tmp_path / "large")))
        assert ones[-1]["layers"] == 12
        rates = [max(cost["forward_tokens_per_second"] for cost in costs) for costs in (ones, wholes)]
        times = [min(cost["layers_ms"] for cost in costs) for costs in (ones, wholes)]
        ratios = [rates[0] / rates[1], times[0] / times[1]]
        if all(0.4 < ratio < 2.5 for ratio in ratios):
            return
    raise AssertionError(ratios)


def test_estimate_from_the_command_line(tmp_path, capsys):
    folder = config_folder(
        tmp_path / "small", {**SEVEN, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    )
    main(["estimate", str(folder), "--ratio", "0.25", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["layers"] == 32
    assert {stage["stage"] for stage in found["stages"]} >= {
        "measure",
        "merge",
        "merge --stream",
        "recover",
        "evaluate",
    }
    assert all(stage["seconds"] > 0 for stage in found["stages"])
    main(["estimate", str(folder), "--untimed"])
    assert "billion parameters" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["estimate", str(folder), "--ratio", "1.5"])


@pytest.mark.parametrize("planner", [name for name, planner in PLANNERS.items() if planner.tokens_read])
def test_a_planner_reads_no_more_than_it_says(planner, monkeypatch):
    """Counted by hooks on the MLPs: each token that a layer reads is its share of one that the model reads."""
    count, layers = 10, 7
    model = tiny_model(layers=count).eval()
    tokens = torch.randint(0, 64, (3, 16))
    read = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: read.append(inputs[0][..., 0].numel()))
    monkeypatch.setattr("swm.planners.best.FIT_TOKENS", 96)
    plan_with(planner, model, tokens, layers, budget=40, fit_tokens=lambda wanted: tokens.repeat(2, 1))
    said = PLANNERS[planner].tokens_read(count, layers, 40, tokens.numel())
    assert sum(read) / count <= said <= 4 * sum(read) / count
    facts, cost = {"layers": count, "size_bytes": 2**20}, {"forward_tokens_per_second": 10.0}
    seconds = planner_seconds(facts, cost, tokens.numel(), planner, layers)
    assert seconds > (PLANNERS[planner].tokens_read(count, layers, PLAN_BUDGET, tokens.numel()) + tokens.numel()) / 10
    assert planner_seconds(facts, None, tokens.numel(), planner, layers) is None


def test_a_search_in_a_large_vocabulary_costs_what_its_sample_does(tmp_path):
    """Held against PyTorch's own count of multiplications, of a plan tried with the sample and with all tokens."""
    model = tiny_model(layers=10, vocab_size=70_000).eval()
    model.save_pretrained(tmp_path)
    facts, tokens = config_facts(str(tmp_path)), torch.randint(0, 300, (4, 16))
    flops = []
    for sample in (None, sample_for(model, tokens)):
        loss = PlanLoss(model, tokens, sample=sample)
        with FlopCounterMode(display=False) as counter:
            loss(MergePlan(10, (Window(0, 1),)))
        flops.append(counter.get_total_flops())
    seconds = [
        planner_seconds(facts | size, COST, tokens.numel(), "best", 7)
        - planner_seconds(facts | size, COST | {"forward_tokens_per_second": 1e12}, tokens.numel(), "best", 7)
        for size in ({"vocabulary": 0}, {})
    ]
    assert seconds[1] / seconds[0] == pytest.approx(flops[1] / flops[0], rel=0.1)
    assert flops[1] / flops[0] < 0.5
