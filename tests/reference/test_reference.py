"""The reference against pencil and paper, published values and second formulas."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from swm.plan import Window
from tests.reference import cka, planners, scoring
from tests.reference.families import FAMILIES, random_tokens, tiny_model
from tests.reference.lora import folded_copy
from tests.reference.merging import (
    MERGED_VALUE,
    find_layers,
    linear_map_parameters,
    mean,
    merged_copy,
    rdsc,
    without_layers,
)
from tests.reference.search import (
    Step,
    Windows,
    mean_cosine,
    model_similarity,
    plan_by_search,
    plans_at,
    similarity,
    sliding_window_search,
    threshold_steps,
)

TOKENS = random_tokens(texts=2, length=9)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


class Script:
    """Similarities written down beforehand; remembers what was asked, in order."""

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table
        self.asked: list[str] = []

    def __call__(self, windows: Windows) -> float:
        self.asked.append(",".join(map(str, windows)))
        return self.table[self.asked[-1]]


# ---- search -------------------------------------------------------------------------------------------------------


def test_window_pending_at_the_bottom_is_committed():
    # Five layers, the last one protected: high = 3. Always accepted, so one window of layers 0 to 3.
    script = Script({"2-3": 1.0, "1-3": 1.0, "0-3": 1.0})
    assert sliding_window_search(5, script, 0.9) == (Window(0, 3),)
    assert script.asked == ["2-3", "1-3", "0-3"]


def test_layer_that_failed_starts_the_next_window():
    # 3-4 is accepted, 2-4 is not: 3-4 is committed and layer 2 is the next window's top. It grows down to 0.
    script = Script({"3-4": 0.95, "2-4": 0.80, "1-2,3-4": 0.92, "0-2,3-4": 0.91})
    assert sliding_window_search(6, script, 0.9) == (Window(0, 2), Window(3, 4))
    assert script.asked == ["3-4", "2-4", "1-2,3-4", "0-2,3-4"]


def test_top_moves_down_by_one_when_nothing_was_accepted():
    # 3-4 fails at once: layer 4 stays single. 2-3 is accepted and committed when 1-3 fails. 0-1 equals the threshold.
    script = Script({"3-4": 0.5, "2-3": 0.95, "1-3": 0.89, "0-1,2-3": 0.9})
    assert sliding_window_search(6, script, 0.9) == (Window(0, 1), Window(2, 3))
    assert script.asked == ["3-4", "2-3", "1-3", "0-1,2-3"]


def test_layer_0_that_failed_is_left_alone():
    # 1-2 is accepted and 0-2 is not: layer 0 would start a window, but nothing is below it.
    script = Script({"1-2": 0.95, "0-2": 0.1})
    assert sliding_window_search(4, script, 0.9) == (Window(1, 2),)


def test_search_that_accepts_nothing_tries_each_pair_once():
    script = Script({"2-3": 0.0, "1-2": 0.0, "0-1": 0.0})
    assert sliding_window_search(5, script, 0.9) == ()
    assert script.asked == ["2-3", "1-2", "0-1"]


@pytest.mark.parametrize(("protect_last", "top"), [(0, 3), (1, 2), (2, 1), (3, None), (4, None)])
def test_protected_layers_are_in_no_window(protect_last, top):
    windows = sliding_window_search(4, lambda _: 1.0, 0.9, protect_last)
    assert windows == (() if top is None else (Window(0, top),))


def test_nan_names_the_layer():
    with pytest.raises(ValueError, match="layer 1 was tried"):
        sliding_window_search(4, lambda _: math.nan, 0.9)


def test_steps_of_a_small_table():
    # T > .9: nothing. T > .8: 1-2 fails, 0-1 passes. T > .6: 1-2 passes, 0-2 fails, layer 0 is left. Below: 0-2.
    script = Script({"1-2": 0.8, "0-1": 0.9, "0-2": 0.6})
    assert threshold_steps(4, script, lowest=0.5) == [
        Step(0.9, 1.0, ()),
        Step(0.8, 0.9, (Window(0, 1),)),
        Step(0.6, 0.8, (Window(1, 2),)),
        Step(-math.inf, 0.6, (Window(0, 2),)),
    ]
    assert len(script.asked) == 3


def test_steps_hold_what_a_search_finds_anywhere_between():
    generator = np.random.default_rng(0)
    table: dict[Windows, float] = {}

    def random_similarity(windows: Windows) -> float:
        return table.setdefault(windows, float(generator.uniform(0.5, 1)))

    steps = threshold_steps(9, random_similarity, lowest=0.5)
    assert len({step.windows for step in steps}) > 5
    assert all(step.above == following.upto for step, following in itertools.pairwise(steps))
    for threshold, windows in plans_at(9, random_similarity, np.linspace(0.5, 1, 301).tolist()).items():
        assert [step.windows for step in steps if step.above < threshold <= step.upto] == [windows]


# ---- similarity ---------------------------------------------------------------------------------------------------


def test_mean_cosine_takes_each_text_as_one_vector():
    # Text 1: (1,0,0,1) and (1,0,1,0) have cosine 1/2. Text 2: the same, 1. Per token it would be (1 + 0 + 2) / 4.
    first = torch.tensor([[[1.0, 0], [0, 1]], [[2, 0], [0, 3]]])
    second = torch.tensor([[[1.0, 0], [1, 0]], [[2, 0], [0, 3]]])
    assert mean_cosine(first, second) == pytest.approx(0.75)


def test_model_is_alike_to_itself():
    assert similarity(tiny_model("llama", 4), TOKENS, (), "rdsc") == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_thresholds_decide_something(family):
    steps = threshold_steps(5, model_similarity(tiny_model(family, 5), TOKENS, "rdsc"), lowest=0.5)
    assert len({step.windows for step in steps}) >= 3


def test_plan_of_a_model_follows_its_similarities():
    model = tiny_model("llama", 4)
    top = similarity(model, TOKENS, [Window(1, 2)], "mean")
    both = similarity(model, TOKENS, [Window(0, 2)], "mean")
    assert both < top
    assert plan_by_search(model, TOKENS, top, "mean").windows == (Window(1, 2),)
    assert plan_by_search(model, TOKENS, both, "mean").windows == (Window(0, 2),)


# ---- merging ------------------------------------------------------------------------------------------------------


def test_formulas_on_single_weights():
    # 1 + (3 - 1) + (6 - 1) = 8, and (1 + 3 + 6) / 3.
    weights = [torch.tensor([value]) for value in (1.0, 3.0, 6.0)]
    assert float(rdsc(weights)) == 8
    assert float(mean(weights)) == pytest.approx(10 / 3)


def test_linear_maps_are_all_but_norms_and_loose_vectors():
    class OddNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm, self.layer_norm = nn.Linear(2, 2), OddNorm(), nn.LayerNorm(2)
            self.scale = nn.Parameter(torch.ones(1))

    assert [name for name, _ in linear_map_parameters(Layer())] == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("phi3", "qkv_proj o_proj gate_up_proj down_proj"),
        ("gpt2", "c_attn c_proj c_fc c_proj"),
        ("mixtral", "q_proj k_proj v_proj o_proj gate gate_up_proj down_proj"),
    ],
)
def test_linear_maps_of_a_family(family, names):
    parameters = linear_map_parameters(find_layers(tiny_model(family, 2))[0])
    endings = [name.removesuffix(".weight").split(".")[-1] for name, _ in parameters if not name.endswith("bias")]
    assert sorted(endings) == sorted(names.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_identities_of_the_rules(family):
    model = tiny_model(family, 4)
    before = logits(model)
    two = [logits(merged_copy(model, [Window(1, 2)], rule)) for rule in ("rdsc", "replace")]
    three = {rule: logits(merged_copy(model, [Window(0, 2)], rule)) for rule in MERGED_VALUE}

    assert torch.equal(logits(merged_copy(model, (), "rdsc")), before)
    torch.testing.assert_close(two[0], two[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(three["keep_first"], logits(without_layers(model, {1, 2})))
    assert torch.equal(three["keep_last"], logits(without_layers(model, {0, 1})))
    assert all(not torch.allclose(*pair, atol=1e-3) for pair in itertools.combinations(three.values(), 2))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_merged_weights_element_by_element(family):
    model = tiny_model(family, 5)
    layers = [dict(layer.named_parameters()) for layer in find_layers(model)]
    merged = merged_copy(model, [Window(1, 3)], "rdsc")
    linear = {name for name, _ in linear_map_parameters(find_layers(model)[0])}
    for name, value in find_layers(merged)[1].named_parameters():
        formula = layers[2][name] + layers[3][name] - layers[1][name]  # W1 + (W2 - W1) + (W3 - W1)
        torch.testing.assert_close(value, formula if name in linear else layers[1][name])
    for position, layer in ((0, 0), (2, 4)):
        for name, value in find_layers(merged)[position].named_parameters():
            assert torch.equal(value, layers[layer][name])


@pytest.mark.parametrize(("rule", "kept"), [("rdsc", [0, 1, 4, 5]), ("keep_last", [0, 3, 4, 5])])
def test_attention_type_goes_with_the_base_layer(rule, kept):
    # Layers 2 and 5 see the whole text, the others four tokens; windows 1-3 becomes layer 1 or, for keep_last, 3.
    model = tiny_model("gemma3_text", 6)
    merged = merged_copy(model, [Window(1, 3)], rule)
    types = ["full_attention" if layer in (2, 5) else "sliding_attention" for layer in kept]
    assert merged.config.layer_types == types
    assert [layer.self_attn.is_sliding for layer in find_layers(merged)] == [kind[0] == "s" for kind in types]
    assert [layer.self_attn.layer_idx for layer in find_layers(merged)] == [0, 1, 2, 3]
    assert merged.config.num_hidden_layers == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_model_reloads_and_runs_with_a_cache(family, tmp_path):
    merged = merged_copy(tiny_model(family, 5), [Window(1, 3)], "mean")
    expected = logits(merged)
    merged.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(reloaded), expected, rtol=1e-5, atol=1e-5)
    ids = TOKENS[:1]
    for _ in range(4):
        ids = torch.cat([ids, merged(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    generated = merged.generate(TOKENS[:1], max_new_tokens=4, eos_token_id=-1, do_sample=False)
    assert torch.equal(generated, ids)


# ---- similarity of layers -----------------------------------------------------------------------------------------


def kornblith_data() -> tuple[np.ndarray, np.ndarray]:
    """The data of Kornblith's notebook: x of 100 samples by 10, y = noise of the same size + x."""
    generator = np.random.RandomState(1337)
    x = generator.randn(100, 10)
    return x, generator.randn(100, 10) + x


def test_values_of_kornbliths_notebook():
    x, y = kornblith_data()
    assert cka.linear_cka(x, y) == pytest.approx(0.55761, abs=5e-6)
    assert cka.debiased_cka(x, y) == pytest.approx(0.51346, abs=5e-6)
    # The notebook's median counts the zero distance of each sample to itself; ours leaves it out and gives 0.65401.
    grams = [cka.rbf_gram(data, 0.5 * float(np.median(cka.distances(data)))) for data in (x, y)]
    assert cka.biased_cka(*grams) == pytest.approx(0.65483, abs=5e-6)
    assert cka.rbf_cka(x, y) == pytest.approx(0.65401, abs=5e-6)


def test_one_feature_equals_squared_correlation():
    # (1, 2, 3) and (1, 3, 2) correlate by 1/2, and for one feature CKA is the correlation squared.
    assert cka.linear_cka([[1], [2], [3]], [[1], [3], [2]]) == pytest.approx(0.25)


def test_biased_hsic_is_the_centred_product():
    x, y = kornblith_data()
    k, l = cka.linear_gram(x[:7]), cka.linear_gram(y[:7])  # noqa: E741
    h = np.eye(7) - 1 / 7
    assert cka.biased_hsic(k, l) == pytest.approx(np.trace(h @ k @ h @ l))


def test_unbiased_hsic_is_the_mean_over_four_different_samples():
    # Song 2012: HSIC = E[K_ij L_ij] + E[K_ij L_qr] - 2 E[K_ij L_iq], each mean over different indices.
    x, y = kornblith_data()
    k, l = cka.linear_gram(x[:6]), cka.linear_gram(y[:6])  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(6), 4)]
    assert cka.unbiased_hsic(k, l) == pytest.approx(np.mean(terms))


def test_few_samples_of_many_features_look_alike_to_biased_cka_only():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 16, 65_536), dtype=np.float32)
    assert cka.linear_cka(x, y) > 0.999
    assert abs(cka.debiased_cka(x, y)) < 0.2


def test_minibatches_add_up_before_the_division():
    x, y = kornblith_data()
    assert cka.minibatch_debiased_cka([x], [y]) == pytest.approx(cka.debiased_cka(x, y))
    # The second batch is the first with y ten times as large: cross 1 + 10, self 2 and 1 + 100 times the first's.
    both = cka.minibatch_debiased_cka([x, x], [y, y * math.sqrt(10)])
    assert both == pytest.approx(cka.debiased_cka(x, y) * 11 / math.sqrt(2 * 101))


def test_rbf_kernel_of_three_points():
    # Points 0, 1, 3 lie 1, 2 and 3 apart: the median is 2, and half of it is a sigma of 1.
    points = [[0.0], [1.0], [3.0]]
    assert cka.median_distance(points) == 2
    near, middle, far = math.exp(-0.5), math.exp(-2), math.exp(-4.5)
    expected = [[1, near, far], [near, 1, middle], [far, middle, 1]]
    np.testing.assert_allclose(cka.rbf_gram(points, 0.5 * cka.median_distance(points)), expected)


def test_cosine_and_angle_of_tokens():
    # Tokens at 0 and 90 degrees to their partners; the mean tokens (1, 1/2) and (1/2, 1) have cosine 1 / (5/4).
    x, y = [[1, 0], [1, 1]], [[1, 0], [-1, 1]]
    assert cka.cosine_similarity(x, y) == pytest.approx(0.5)
    assert cka.angular_similarity(x, y) == pytest.approx(0.75)
    assert cka.block_influence(x, y) == pytest.approx(0.5)
    assert cka.mean_token_cosine([[2, 0], [0, 1]], [[0, 2], [1, 0]]) == pytest.approx(0.8)
    assert cka.mean_token_angular([[2, 0], [0, 1]], [[0, 2], [1, 0]]) == pytest.approx(1 - math.acos(0.8) / math.pi)


# ---- planners -----------------------------------------------------------------------------------------------------


def idle(model: PreTrainedModel, layers: set[int]) -> PreTrainedModel:
    """The model with layers that add nothing to the hidden state."""
    for layer in layers:
        find_layers(model)[layer].self_attn.o_proj.weight.zero_()
        find_layers(model)[layer].mlp.down_proj.weight.zero_()
    return model


def test_dropping_a_layer_is_the_same_as_idling_it():
    torch.testing.assert_close(
        logits(without_layers(tiny_model("llama", 4), {1, 2})), logits(idle(tiny_model("llama", 4), {1, 2}))
    )


def test_perplexity_planners_against_idle_layers():
    def cost(layers: set[int]) -> float:
        return scoring.perplexity(idle(tiny_model("llama", 6), layers), TOKENS)

    alone = sorted(range(6), key=lambda layer: cost({layer}))
    model = tiny_model("llama", 6)
    assert planners.one_shot_perplexity(model, TOKENS, 2) == set(alone[:2])
    inner = {1, 2, 3, 4}
    first = min(inner, key=lambda layer: cost({layer}))
    second = min(inner - {first}, key=lambda layer: cost({first, layer}))
    assert planners.sleb(model, TOKENS, 2) == {first, second}


def test_layers_that_do_nothing_go_first():
    model = idle(tiny_model("llama", 8), {3, 4, 6})
    assert planners.block_influences(model, TOKENS)[4] == pytest.approx(0, abs=1e-12)
    assert planners.shortgpt(model, TOKENS, 3) == {3, 4, 6}
    assert planners.shortgpt(model, TOKENS, 1, candidates={3, 4}) == {4}  # the same states twice: an exact tie
    assert planners.angular(model, TOKENS, 2) == {3, 4}
    assert planners.taylor(model, TOKENS, 1) == {4}
    assert planners.taylor(model, TOKENS, 3, first_kept=2, last_kept=1) == {3, 4, 6}


def test_ties_go_as_said():
    assert planners.lowest({0: 1.0, 1: 0.0, 2: 0.0}, 1) == {1}
    assert planners.lowest({0: 1.0, 1: 0.0, 2: 0.0}, 1, tie=lambda layer: -layer) == {2}
    with pytest.raises(ValueError, match="only 1 may go"):
        planners.lowest({0: 1.0}, 2)


def test_angle_looks_at_the_last_token_only():
    # Last tokens at right angles in one text and equal in the other: a quarter of pi on average.
    before = torch.tensor([[[1.0, 0], [1, 0]], [[1, 0], [1, 1]]])
    after = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [1, 1]]])
    assert planners.mean_angle(before, after) == pytest.approx(0.25, abs=1e-7)


def test_taylor_against_small_changes_of_each_weight():
    # Layer 1 has no attention and one hidden unit: 2 x 16 weights differ from 0. GPT-2's norms stay in float64.
    model = tiny_model("gpt2", 3).double()
    layer = find_layers(model)[1]
    layer.attn.c_proj.weight.zero_()
    layer.mlp.c_fc.weight[:, 1:] = 0
    layer.mlp.c_proj.weight[1:] = 0
    total, step = 0.0, 1e-5
    for weights in (layer.mlp.c_fc.weight[:, 0], layer.mlp.c_proj.weight[0]):
        for place, value in enumerate(weights.tolist()):
            losses = []
            for sign in (1, -1):
                weights[place] = value + sign * step
                losses.append(math.log(scoring.perplexity(model, TOKENS)))
            weights[place] = value
            total += abs(value * (losses[0] - losses[1]) / (2 * step))
    assert planners.taylor_importances(model, TOKENS)[1] == pytest.approx(total, rel=1e-6)


# ---- scores -------------------------------------------------------------------------------------------------------


def test_model_that_knows_nothing():
    model = tiny_model("opt", 2)
    model.get_output_embeddings().weight.zero_()
    assert scoring.perplexity(model, TOKENS) == pytest.approx(64)
    assert scoring.continuation_log_likelihood(model, [5, 6], [7, 8, 9]) == pytest.approx(-3 * math.log(64))


def test_loss_of_a_text_is_transformers_own():
    model = tiny_model("qwen3", 3)
    losses = [float(model(input_ids=ids[None], labels=ids[None]).loss) for ids in TOKENS]
    assert [scoring.text_loss(model, ids) for ids in TOKENS] == pytest.approx(losses, rel=1e-5)
    assert scoring.perplexity(model, TOKENS) == pytest.approx(math.exp(sum(losses) / 2), rel=1e-5)


def test_log_likelihoods_of_parts_add_up():
    model = tiny_model("gpt2", 3)
    whole, first = scoring.choice_log_likelihoods(model, [3, 4], [[5, 6, 7], [5]])
    assert whole == pytest.approx(first + scoring.continuation_log_likelihood(model, [3, 4, 5], [6, 7]), rel=1e-5)


def test_accuracy_and_acc_norm_of_two_questions():
    # Question 1: -2 beats -3; per character -2/1 loses to -3/6. Question 2: -1 beats -9 either way; a tie is the first.
    values, texts, answers = [[-2.0, -3.0], [-9.0, -1.0]], [["a", "banana"], ["no", "on"]], [1, 1]
    assert scoring.accuracy(values, answers) == 0.5
    assert scoring.accuracy_normalised(values, texts, answers) == 1.0
    assert scoring.right_answers([[-1.0, -1.0]], [0]) == [True]


def test_paired_difference_of_four_questions():
    # Differences 1, 0, 0, -1: mean 0, variance 2/3, standard error sqrt(2/3 / 4).
    difference = scoring.paired_difference([0, 1, 0, 1], [1, 1, 0, 0])
    assert difference.mean == 0
    assert difference.standard_error == pytest.approx(math.sqrt(1 / 6))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1), (3, 3, 1), (1, 5, 2 * (1 + 6) / 64), (5, 1, 2 * (1 + 6) / 64), (0, 5, 2 / 32), (2, 3, 1)],
)
def test_mcnemar_by_counting_coins(only_first, only_second, p):
    first = [True] * only_first + [False] * only_second + [True, False]
    second = [False] * only_first + [True] * only_second + [True, False]
    assert scoring.mcnemar_exact(first, second) == pytest.approx(p)


# ---- LoRA ---------------------------------------------------------------------------------------------------------


def write_adapter(folder: Path, tensors: dict[str, Tensor], **settings: object) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 1, "lora_alpha": 3, "bias": "none", **settings}))


def adapter_of(name: str, a: list[float], b: list[float]) -> dict[str, Tensor]:
    """A pair of rank 1 for one module."""
    key = f"base_model.model.{name}"
    return {f"{key}.lora_A.weight": torch.tensor([a]), f"{key}.lora_B.weight": torch.tensor(b)[:, None]}


def test_folded_linear_map_gives_what_both_paths_give(tmp_path):
    # One input feature and one output feature: W[2, 5] grows by alpha / r * b_2 * a_5 = 3 * 7 * 0.5.
    model, name = tiny_model("llama", 2), "model.layers.1.self_attn.q_proj"
    write_adapter(tmp_path, adapter_of(name, [0.5 * (i == 5) for i in range(16)], [7.0 * (i == 2) for i in range(16)]))
    change = folded_copy(model, tmp_path).get_submodule(name).weight - model.get_submodule(name).weight
    expected = torch.zeros(16, 16)
    expected[2, 5] = 10.5
    torch.testing.assert_close(change, expected)


def test_folded_conv1d_is_transposed(tmp_path):
    model, name = tiny_model("gpt2", 2), "transformer.h.0.attn.c_attn"
    a, b = torch.randn(16), torch.randn(48)
    write_adapter(tmp_path, adapter_of(name, a.tolist(), b.tolist()), fan_in_fan_out=True)
    x = torch.randn(4, 16)
    before, after = (one.get_submodule(name)(x) for one in (model, folded_copy(model, tmp_path)))
    torch.testing.assert_close(after, before + 3 * (x @ a)[:, None] * b, rtol=1e-4, atol=1e-4)


def test_adapter_that_is_not_plain_lora_is_refused(tmp_path):
    write_adapter(tmp_path, {}, use_dora=True)
    with pytest.raises(ValueError, match="use_dora"):
        folded_copy(tiny_model("llama", 2), tmp_path)
    write_adapter(tmp_path, {"base_model.model.lm_head.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="neither an A nor a B"):
        folded_copy(tiny_model("llama", 2), tmp_path)


@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn", "c_proj"])])
def test_folding_is_what_peft_merges(family, targets, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=targets, init_lora_weights=False, fan_in_fan_out=family == "gpt2"
    )
    adapted = peft.get_peft_model(tiny_model(family, 2), config).eval()
    adapted.save_pretrained(tmp_path)
    model = tiny_model(family, 2)
    folded = logits(folded_copy(model, tmp_path))
    assert not torch.allclose(folded, logits(model), atol=1e-2)
    torch.testing.assert_close(folded, logits(adapted.merge_and_unload()), rtol=1e-4, atol=1e-4)
