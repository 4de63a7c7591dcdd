"""The engine against tests/reference, which shares no code with it, over models, texts and settings drawn by chance.

Every figure that the engine computes quickly is computed here slowly as well: whole models, one text or choice after
another, sums over indices. `make test-all` draws many times more.
"""

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swm.evaluation.perplexity import perplexity
from swm.evaluation.shared_context import BATCH_TOKENS, SharedContextLM
from swm.healing.lora import recover
from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder
from swm.plan import MergePlan, Window
from swm.planners.plan_with import plan_with
from swm.registry import METRICS
from swm.search.find import Batches, confirmed_plan, extended, find_plan
from swm.search.kept_path import path_data, path_from
from swm.search.threshold_path import ThresholdPath
from swm.search.window_score import PART_TOKENS, TOGETHER, WindowScorer
from swm.settings import RecoverySettings
from swm.similarity.layers import block_influence, measure_similarity
from swm.similarity.measure import Measure
from swm.texts.example import Example
from tests.conftest import WEIGHT_RULES, WORDS
from tests.reference import cka, lora, merging, planners, scoring, search
from tests.reference.families import FAMILIES, random_tokens, tiny_model

ROUNDING = 2e-5  # float32, summed in another order
IN_BFLOAT16 = 0.05


@dataclass(frozen=True)
class Case:
    """A model, its texts, and how the engine goes about them."""

    family: str
    layers: int
    seed: int
    texts: int
    length: int
    rule: str
    part: int  # texts run together; 0 as on a GPU, where all are
    keep_every: int
    fast: bool
    lean: bool

    def made(self):
        return tiny_model(self.family, self.layers, self.seed), random_tokens(self.texts, self.length, self.seed)

    def scorer(self, model, tokens, **changes):
        """As the engine would make it on a machine of that kind."""
        settings = {"keep_every": self.keep_every, "fast": self.fast, **changes}
        with pytest.MonkeyPatch.context() as patch:
            kind = "gpu" if not self.part else "cpu"
            most = PART_TOKENS["gpu"] if not self.part else self.part * self.length
            patch.setattr("swm.search.window_score.PART_TOKENS", {"cpu": most})
            patch.setattr("swm.search.window_score.TOGETHER", {"cpu": TOGETHER[kind]})
            if self.lean:  # hidden states go to a file, merged layers are recomputed
                patch.setattr("swm.search.window_score.free_bytes_on", lambda device: 0)
            return WindowScorer(model, tokens, self.rule, **settings)


CASES = st.builds(
    Case,
    family=st.sampled_from(FAMILIES),
    layers=st.integers(2, 14),
    seed=st.integers(0, 2**16),
    texts=st.integers(1, 12),
    length=st.integers(4, 64),
    rule=st.sampled_from(WEIGHT_RULES),
    part=st.sampled_from([0, 0, 1, 2, 3, 5]),
    keep_every=st.integers(1, 6),
    fast=st.booleans(),
    lean=st.sampled_from([False, False, False, True]),
)


def drawn_windows(rng, layers):
    """Windows above, lowest first, and one below them."""
    cuts = sorted(rng.sample(range(layers), min(layers, rng.choice([2, 4, 6]))))
    pairs = [Window(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b]
    return tuple(pairs[1:]), pairs[0]


@given(case=CASES)
def test_every_score_is_exact_where_it_reaches_what_is_needed_and_else_a_true_bound(case):
    model, tokens = case.made()
    scorer, rng = case.scorer(model, tokens), random.Random(case.seed)
    truth = search.model_similarity(model, tokens, case.rule)
    near = IN_BFLOAT16 if case.fast else ROUNDING
    asked = [drawn_windows(rng, case.layers) for _ in range(5)]
    for above, window in [rng.choice(asked) for _ in range(10)]:
        exact, needed = truth((window, *above)), rng.choice([-1.0, -0.5, 0.5, 0.9, 0.99])
        found = scorer.score(above, window, needed)
        assert found >= exact - near
        assert found < needed or found == pytest.approx(exact, abs=near)
        below = [w for w in (Window(first, first + 1) for first in range(max(0, window.first - 3), window.first)) if w]
        together = scorer.score_together((window, *above), [w for w in below if w.last < window.first])
        for lower, similarity in zip([w for w in below if w.last < window.first], together, strict=True):
            assert similarity == pytest.approx(truth((lower, window, *above)), abs=near)


@given(case=CASES)
def test_the_path_has_the_plan_of_the_plain_search_at_every_threshold(case):
    case = replace(case, fast=False, layers=2 + case.layers % 8)
    model, tokens = case.made()
    rng, low = random.Random(case.seed), 0.4
    thresholds = [low + (1 - low) * rng.random() for _ in range(200)]
    truth = search.remembered(search.model_similarity(model, tokens, case.rule))
    scorer = case.scorer(model, tokens)
    path = ThresholdPath(case.layers, case.rule, low)
    path.extend_quickly(thresholds[0], scorer.score)  # one threshold first, cut short, as the app does
    if case.keep_every % 2:  # resumed from what lies on disk
        path = path_from(path_data(path))
        scorer = case.scorer(model, tokens)
    extended(path, scorer.score, focus=thresholds[1], batches=Batches(scorer.at_once, scorer.score_together))
    for threshold in thresholds:
        step = path.plan_at(threshold)
        expected = search.sliding_window_search(case.layers, truth, threshold)
        if min((abs(t.similarity - threshold) for t in step.trace), default=1) > 2 * ROUNDING:
            assert step.plan.windows == expected
            assert step.low < threshold <= step.high


@given(case=CASES, threshold=st.floats(0.3, 0.999))
def test_the_plan_asked_for_is_exact_though_the_path_is_computed_in_bfloat16(case, threshold):
    model, tokens = case.made()
    quick, sure = case.scorer(model, tokens, fast=True), case.scorer(model, tokens, fast=False)
    path = ThresholdPath(case.layers, case.rule, 0.05, scoring="bfloat16")
    step = confirmed_plan(path, threshold, quick.score, sure.score)
    truth = search.remembered(search.model_similarity(model, tokens, case.rule))
    expected = search.sliding_window_search(case.layers, truth, threshold)
    exact = ThresholdPath(case.layers, case.rule).extend(threshold, lambda above, window: truth((window, *above)))
    assert exact.plan.windows == expected
    if min((abs(t.similarity - threshold) for t in exact.trace), default=1) > 2 * ROUNDING:
        assert step.plan.windows == expected
        assert step.similarity == pytest.approx(exact.similarity, abs=ROUNDING)


@given(case=CASES, threshold=st.floats(0.3, 1.0))
def test_a_machine_that_runs_all_texts_at_once_finds_the_plan_of_one_that_does_not(case, threshold):
    model, tokens = case.made()
    plans = []
    for part in (0, 1, 3):
        scorer = replace(case, part=part, fast=False).scorer(model, tokens)
        path = ThresholdPath(case.layers, case.rule)
        step = path.extend_quickly(threshold, scorer.score)
        if min((abs(t.similarity - threshold) for t in step.trace), default=1) <= 2 * ROUNDING:
            return
        plans.append(step.plan)
    assert plans[0] == plans[1] == plans[2]


@given(case=CASES)
def test_a_merged_model_is_that_of_the_plain_rule(case):
    model, tokens = case.made()
    above, window = drawn_windows(random.Random(case.seed), case.layers)
    windows = (window, *above)
    with torch.inference_mode():
        ours = apply_plan(model, MergePlan(case.layers, windows, case.rule))(tokens).logits
        plain = merging.merged_copy(model, windows, case.rule)(tokens).logits
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


REFERENCES = {
    "cka": cka.debiased_cka,
    "cka-biased": cka.linear_cka,
    "cosine": cka.cosine_similarity,
    "angular": cka.angular_similarity,
}


def states_of(model, tokens, measure):
    """What the measure compares, shape (samples, width) for each layer, by transformers' own forward and hooks."""
    pairs = planners.layer_states(model, tokens)  # (input, output) of each layer
    found = []
    for before, after in pairs:
        part = (after - before if measure.part == "update" else after).reshape(*tokens.shape, -1)
        part = part[:, measure.skip_tokens :].double()
        found.append((part.mean(1) if measure.samples == "texts" else part.flatten(0, 1)).numpy())
    return found


@given(case=CASES, metric=st.sampled_from([*REFERENCES, "cka-rbf"]), data=st.data())
def test_similarity_is_that_of_the_sums_over_indices(case, metric, data):
    model, tokens = case.made()
    skip = data.draw(st.integers(0, case.length - 1))
    measure = Measure(metric, data.draw(st.sampled_from(["output", "update"])), "tokens", skip)
    states = states_of(model, tokens, measure)
    fewest = {"cka": 4, "cka-rbf": 4, "cka-biased": 2}.get(metric, 1)
    if len(states[0]) < fewest or len(states[0]) > 512:  # one block, as the sums have; blocks are tested below
        return
    found = measure_similarity(model, tokens, measure)
    assert found.tokens == len(states[0])
    first, second = random.Random(case.seed).sample(range(case.layers), 2)
    if metric == "cka-rbf":
        grams = [cka.rbf_gram(states[i], 0.5 * cka.median_distance(states[i])) for i in (first, second)]
        k, m = grams
        own = [cka.unbiased_hsic(g, g) for g in grams]
        expected = cka.unbiased_hsic(k, m) / math.sqrt(own[0] * own[1])
    else:
        expected = REFERENCES[metric](states[first], states[second])
    near = 2e-3 if metric.startswith("cka") else 1e-4  # debiased: differences of float32 sums, few samples
    assert float(found.matrix[first, second]) == pytest.approx(expected, abs=near)
    whole = planners.block_influences(model, tokens)
    assert block_influence(model, tokens).tolist() == pytest.approx(whole, abs=1e-5)
    if not skip:
        assert found.block_influence.tolist() == pytest.approx(whole, abs=1e-5)


LONGER = [pytest.param(texts, marks=pytest.mark.long) for texts in (2, 4, 250, 258, 259, 260, 511, 512, 515)]


@pytest.mark.parametrize("texts", [1, 3, 255, 256, 257, 513, *LONGER])
def test_means_of_texts_are_compared_however_many_there_are(texts):
    model, tokens = tiny_model("llama", 3), random_tokens(texts, 4)
    measure = Measure("cka-biased" if texts < 4 else "cka", samples="texts")
    if texts == 1:
        with pytest.raises(Exception, match="CKA needs at least 2 tokens"):
            measure_similarity(model, tokens, measure)
        return
    states = states_of(model, tokens, measure)
    found = float(measure_similarity(model, tokens, measure).matrix[0, 2])
    formula = cka.linear_cka if texts < 4 else cka.debiased_cka
    if texts <= 300:  # one block
        assert found == pytest.approx(formula(states[0], states[2]), abs=1e-3)
    else:
        assert found == pytest.approx(formula(states[0], states[2]), abs=0.1)


@given(case=CASES, planner=st.sampled_from(["sleb", "perplexity", "shortgpt", "angular", "taylor"]), data=st.data())
def test_planners_drop_the_layers_that_brute_force_drops(case, planner, data):
    layers = max(case.layers, 9 if planner == "taylor" else 4)
    model, tokens = tiny_model(case.family, layers, case.seed), random_tokens(case.texts, case.length, case.seed)
    drop = data.draw(st.integers(1, 2))
    inner = range(1, layers - 1)
    if planner == "sleb":
        expected = planners.sleb(model, tokens, drop, inner)
    elif planner == "taylor":
        expected = planners.taylor(model, tokens, drop)
    else:
        methods = {
            "perplexity": planners.one_shot_perplexity,
            "shortgpt": planners.shortgpt,
            "angular": planners.angular,
        }
        expected = methods[planner](model, tokens, drop)
    plan = plan_with(planner, model, tokens, layers - drop)
    kept = {w.last if plan.rule == "keep_last" else w.first for w in plan.kept_layers()}
    assert set(range(layers)) - kept == expected


@given(case=CASES)
def test_models_without_their_first_and_last_layer_are_scored_as_they_are(case):
    case = replace(case, layers=max(case.layers, 3))
    model, tokens = case.made()
    scorer = replace(case, rule="keep_first", fast=False).scorer(model, tokens)
    top = Window(case.layers - 2, case.layers - 1)
    expected = search.mean_cosine(
        search.final_states(merging.without_layers(model, {0, case.layers - 1}), tokens),
        search.final_states(model, tokens),
    )
    assert scorer.score((top,), Window(-1, 0)) == pytest.approx(expected, abs=ROUNDING)
    assert scorer.score_together((top,), [Window(-1, 0)]) == [pytest.approx(expected, abs=ROUNDING)]


@given(case=CASES)
def test_perplexity_is_that_of_one_text_after_the_other(case):
    model, tokens = case.made()
    found = perplexity(model, tokens, batch=random.Random(case.seed).randint(1, 5))
    assert found["value"] == pytest.approx(scoring.perplexity(model, tokens), rel=1e-4)
    if len(tokens) == 1:
        assert not {"low", "high"} & set(found)  # one text gives no interval
    else:
        assert found["low"] <= found["value"] <= found["high"]


@given(case=CASES, data=st.data())
def test_log_likelihoods_of_answers_are_those_of_one_choice_after_the_other_in_any_order(case, data, tokenizer):
    model = tiny_model(case.family, min(case.layers, 5), case.seed)
    token = st.integers(1, 63)
    contexts = data.draw(
        st.lists(st.lists(token, min_size=1, max_size=9).map(tuple), min_size=1, max_size=4, unique=True)
    )
    requests = []
    for number, context in enumerate(contexts):
        choices = data.draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=4))
        requests += [((f"question {number}", str(choice)), list(context), choice) for choice in choices]
    random.Random(case.seed).shuffle(requests)
    lm = SharedContextLM(model, tokenizer)
    with pytest.MonkeyPatch.context() as patch:  # as many tokens at once as on a GPU, or fewer than a question has
        patch.setattr(
            "swm.evaluation.shared_context.BATCH_TOKENS",
            {"cpu": random.Random(case.seed).choice([8, 512, BATCH_TOKENS["cuda"]])},
        )
        found = [value for value, _ in lm._loglikelihood_tokens(requests)]
    expected = [scoring.continuation_log_likelihood(model, context, choice) for _, context, choice in requests]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(family=st.sampled_from(["llama", "gpt2", "qwen2", "phi3"]), seed=st.integers(0, 99))
def test_a_healed_model_is_the_merged_one_with_its_adapter_folded_in_by_hand(family, seed, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    small = {"steps": 2, "batch": 2, "length": 8, "rank": 2, "alpha": 3, "held_out": 2, "save_every": 2}
    settings = RecoverySettings(**small, warmup_steps=0, seed=seed, learning_rate=0.05)
    model = tiny_model(family, 3, seed)
    words = [Example("", " ".join(random.Random(n).choices(WORDS.split(), k=9))) for n in range(30)]
    limited = LimitedTokenizer(tokenizer)
    plain = tiny_model(family, 3, seed)
    healed, _ = recover(model, limited, words, settings, folder)
    folded = lora.folded_copy(plain, folder / "adapter")
    tokens = random_tokens(2, 8, seed)
    with torch.inference_mode():
        torch.testing.assert_close(healed(tokens).logits, folded(tokens).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(healed(tokens).logits, plain(tokens).logits, atol=1e-3)


class LimitedTokenizer:
    """Ids below the tiny vocabulary: what the text says does not matter here."""

    eos_token_id = 0
    bos_token_id = None

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, texts, **settings):
        found = self._tokenizer(texts, **settings)
        one = isinstance(texts, str)
        found["input_ids"] = (
            [i % 64 for i in found.input_ids] if one else [[i % 64 for i in ids] for ids in found.input_ids]
        )
        return found


def test_the_walk_of_the_engine_and_of_the_reference_agree_on_scripted_similarities(often):
    """Any table of similarities, ties and thresholds that equal one of them included."""
    rng = random.Random(7)
    for _ in range(often(400, 20_000)):
        layers, protected = rng.randint(1, 9), rng.choice([1, 1, 0, 2])
        table: dict = {}

        def similarity(windows, table=table, rng=rng):
            return table.setdefault(
                tuple(sorted(windows)), rng.choice([0.3, 0.5, 0.7, 0.9, round(rng.random(), 2), 1.0])
            )

        threshold = rng.choice([0.3, 0.5, 0.7, 0.9, 1.0, 0.01 + 0.98 * rng.random()])
        score = lambda above, window: similarity((window, *above))  # noqa: E731
        if layers - protected < 1:
            continue
        plan = find_plan(layers, score, threshold, protected)
        assert plan.windows == search.sliding_window_search(layers, similarity, threshold, protected), table


def test_layers_are_found_where_the_reference_finds_them():
    for family in FAMILIES:
        model = tiny_model(family, 3)
        assert list(find_decoder(model).layers) == list(merging.find_layers(model))
    assert {"cka", "cka-biased", "cosine", "angular", "cka-rbf"} == set(METRICS)
