"""Replay against the model's own forward pass; scores against a merged model that is really built and run."""

import random

import pytest
import torch

from swm.errors import ExperimentError, ModelError, TextError
from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder
from swm.models.layer_outputs import layer_outputs
from swm.models.replay import Replay
from swm.plan import MergePlan, Window
from swm.search.find import Batches, extended, find_plan, threshold_path
from swm.search.threshold_path import ThresholdPath
from swm.search.window_score import WindowScorer, text_cosines
from tests.conftest import WEIGHT_RULES, tiny_model


@torch.inference_mode()
def final_state(model, tokens):
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


@pytest.mark.parametrize("keep_every", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_replay_from_any_layer_equals_the_models_own_forward(model, tokens, keep_every, start):
    replay = Replay(model, tokens, keep_every)
    hidden = replay.input_of(start)
    for layer in range(start, 4):
        hidden = replay.run(hidden, layer)
    assert torch.equal(replay.finish(hidden), final_state(model, tokens))
    assert torch.equal(replay.reference, final_state(model, tokens))


@pytest.mark.parametrize("rule", WEIGHT_RULES)
def test_score_equals_that_of_a_model_built_by_apply_plan(tokens, rule):
    model = tiny_model(layers=7)
    scorer = WindowScorer(model, tokens, rule)
    cases = [((), Window(4, 5)), ((), Window(3, 5)), ((Window(4, 5),), Window(1, 2)), ((Window(4, 5),), Window(0, 2))]
    for above, window in cases:
        small = apply_plan(model, MergePlan(7, tuple(sorted((*above, window))), rule))
        x, y = (final_state(m, tokens).flatten(1).double() for m in (small, model))
        expected = torch.nn.functional.cosine_similarity(x, y).mean()
        assert scorer.score(above, window) == pytest.approx(float(expected), abs=1e-6)


def test_scores_do_not_depend_on_the_order_they_are_asked_in(tokens):
    model = tiny_model(layers=6)
    cases = [((), Window(3, 4)), ((), Window(2, 4)), ((), Window(1, 4)), ((Window(3, 4),), Window(1, 2))]
    forward = {case: WindowScorer(model, tokens).score(*case) for case in cases}
    scorer = WindowScorer(model, tokens)
    assert {case: scorer.score(*case) for case in reversed(cases)} == forward


def test_scoring_starts_at_the_window_and_counts_its_layer_runs(tokens):
    model = tiny_model(layers=8)
    scorer = WindowScorer(model, tokens, keep_every=1)
    before = scorer.layer_runs
    scorer.score((), Window(5, 6))  # the merged layer and layer 7
    assert scorer.layer_runs - before == 2
    scorer.score((Window(5, 6),), Window(3, 4))  # two merged layers and layer 7
    assert scorer.layer_runs - before == 5


def test_search_on_identical_layers_accepts_all_the_way_down(tokens):
    # Layers that add nothing: any merge leaves the output as it is.
    model = tiny_model(layers=5)
    for layer in find_decoder(model).layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    plan = find_plan(5, WindowScorer(model, tokens).score, 1 - 1e-6)
    assert plan.windows == (Window(0, 3),)


def test_fast_scores_are_near_the_exact_ones(tokens):
    model = tiny_model(layers=6)
    fast, exact = WindowScorer(model, tokens, fast=True), WindowScorer(model, tokens)
    for above, window in (((), Window(3, 4)), ((), Window(1, 4)), ((Window(3, 4),), Window(0, 2))):
        found = fast.score(above, window)
        assert found == pytest.approx(exact.score(above, window), abs=5e-3)
        assert found != exact.score(above, window)
    assert model.dtype == torch.float32


def test_cosine_is_taken_over_each_text_as_a_whole():
    states = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])
    reference = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    # First text: (1,0,0,2).(1,0,0,0) / (sqrt 5 * 1); second text: 1.
    assert text_cosines(states, reference).tolist() == pytest.approx([5**-0.5, 1])


def test_layer_outputs_are_before_the_final_norm(model, tokens):
    first, outputs = layer_outputs(model, tokens)
    with torch.inference_mode():
        assert torch.equal(first, model.model.embed_tokens(tokens))
        assert torch.equal(model.model.norm(outputs[-1]), final_state(model, tokens))
        states = model(tokens, output_hidden_states=True).hidden_states
    assert all(torch.equal(own, theirs) for own, theirs in zip(outputs[:-1], states[1:-1], strict=True))


def test_weights_that_overflow_are_told_with_the_layers_number(model, tokens):
    find_decoder(model).layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    for run in (layer_outputs, Replay):
        with pytest.raises(ModelError, match="The output of layer 2 is not finite .NaN or infinity. in float32"):
            run(model, tokens)


def test_window_across_layers_of_different_shape_scores_zero(model, tokens):
    layers = find_decoder(model).layers
    layers[1].mlp = type(layers[1].mlp)(type(model.config)(hidden_size=32, intermediate_size=48))
    assert WindowScorer(model, tokens).score((), Window(1, 2)) == 0.0


def test_texts_run_in_parts_score_as_all_at_once(tokens, monkeypatch):
    model = tiny_model(layers=6)
    cases = [((), Window(3, 4)), ((Window(3, 4),), Window(0, 2))]
    whole = [WindowScorer(model, tokens).score(*case) for case in cases]
    monkeypatch.setattr("swm.search.window_score.PART_TOKENS", {"cpu": 16})
    scorer = WindowScorer(model, tokens)
    assert [scorer.score(*case) for case in cases] == pytest.approx(whole, abs=1e-6)
    assert scorer.layer_runs < 6 + 2 * 7


def test_windows_scored_together_score_as_one_by_one(tokens):
    model = tiny_model(layers=8)
    scorer = WindowScorer(model, tokens)
    for above, windows in (
        ((), [Window(5, 6), Window(2, 4), Window(1, 4), Window(3, 5)]),
        ((Window(5, 6),), [Window(0, 1), Window(3, 4)]),
    ):
        alone = [WindowScorer(model, tokens).score(above, window) for window in windows]
        assert scorer.score_together(above, windows) == pytest.approx(alone, abs=1e-6)
    layer = find_decoder(model).layers[1]
    layer.mlp = type(layer.mlp)(type(model.config)(hidden_size=32, intermediate_size=48))
    odd = WindowScorer(model, tokens).score_together((), [Window(1, 2), Window(5, 6)])
    assert odd[0] == 0.0 < odd[1]


def test_a_path_of_a_real_model_is_the_same_in_batches(tokens):
    model = tiny_model(layers=7)
    single, batched = WindowScorer(model, tokens), WindowScorer(model, tokens)
    one = threshold_path(7, single.score, 0.2)
    many = extended(ThresholdPath(7, low=0.2), batched.score, batches=Batches(3, batched.score_together))
    assert [step.plan for step in many.intervals()] == [step.plan for step in one.intervals()]
    for key, similarity in one.similarities.items():
        assert many.similarities[key] == pytest.approx(similarity, abs=1e-6)


def test_any_rows_in_any_number_run_as_they_were_recorded(tokens):
    model = tiny_model(layers=4)
    replay = Replay(model, tokens, keep_every=3, part=2)
    for rows in ([2], [2, 0], [1, 0, 2, 0, 1]):
        hidden = replay.input_of(2, torch.tensor(rows))
        for layer in (2, 3):
            hidden = replay.run(hidden, layer)
        assert torch.allclose(replay.finish(hidden), final_state(model, tokens)[rows], atol=1e-6)
    assert "forward" not in vars(replay.layers[0])  # asking for other numbers of rows has left nothing behind


def test_layers_called_by_what_the_text_says_are_refused(tokens, monkeypatch):
    model = tiny_model(layers=3)
    last = find_decoder(model).layers[2]
    plain = last.forward
    monkeypatch.setattr(last, "forward", lambda hidden, *args, extra, **kwargs: plain(hidden, *args, **kwargs) + extra)

    def with_text(module, args, kwargs):
        # As Gemma 3n does: each layer is given something of the tokens themselves.
        return args, {"extra": seen[0][..., None].float()} | kwargs

    seen = []
    model.model.register_forward_pre_hook(lambda m, a, k: seen.insert(0, k["input_ids"]), with_kwargs=True)
    last.register_forward_pre_hook(with_text, with_kwargs=True, prepend=True)
    with pytest.raises(ModelError, match="calls its layers differently for each text"):
        Replay(model, tokens, part=1)


def test_texts_are_left_out_once_they_cannot_change_the_verdict(monkeypatch):
    model, tokens = tiny_model(layers=6), torch.arange(128).reshape(8, 16) % 64
    monkeypatch.setattr("swm.search.window_score.PART_TOKENS", {"cpu": 16})
    exact, quick = WindowScorer(model, tokens), WindowScorer(model, tokens)
    cases = [((), Window(3, 4)), ((), Window(1, 4)), ((Window(3, 4),), Window(1, 2))]
    for case in cases:
        similarity = exact.score(*case)
        assert quick.score(*case, needed=similarity - 1e-6) == pytest.approx(similarity, abs=1e-6)
        needed = (1 + similarity) / 2
        bound = quick.score(*case, needed=needed)
        assert similarity <= bound < needed
    assert quick.layer_runs < 1.8 * exact.layer_runs  # twice as many windows
    plan = ThresholdPath(6).extend_quickly(0.9, quick.score).plan
    assert plan == find_plan(6, exact.score, 0.9)


def test_no_text_is_refused(model):
    with pytest.raises(TextError, match="one non-empty row per text"):
        Replay(model, torch.zeros(0, 16, dtype=torch.int64))


@pytest.mark.parametrize("rule", ["rdsc", "mean"])
def test_where_memory_is_short_one_merged_layer_is_kept_and_scores_are_the_same(rule, tokens, home, monkeypatch):
    model = tiny_model(layers=8)
    plenty = WindowScorer(model, tokens, rule)
    monkeypatch.setattr("swm.search.window_score.free_bytes_on", lambda device: 1000)
    little = WindowScorer(model, tokens, rule)
    above = ()
    for window in (Window(6, 7), Window(3, 5), Window(0, 2)):
        for scored in (window, Window(window.first, window.last - 1)):
            if len(scored) > 1:
                assert little.score(above, scored) == pytest.approx(plenty.score(above, scored), abs=1e-6)
        above = (window, *above)
        assert len(little._made) == 1
    assert len(plenty._made) == 3  # the window scored last and those merged above it
    assert not list((home / "cache").iterdir())  # the states' files have no name any more


def test_no_room_for_states_is_told_before_they_are_written(tokens, small_disk, monkeypatch):
    monkeypatch.setenv("SWM_HOME", str(small_disk / "home"))
    monkeypatch.setattr("swm.search.window_score.free_bytes_on", lambda device: 1000)
    WindowScorer(tiny_model(), tokens)
    (small_disk / "ballast").write_bytes(bytes(2**20 - 2**14))
    with pytest.raises(ExperimentError, match="No space left"):
        WindowScorer(tiny_model(layers=40), tokens)


@pytest.mark.parametrize("part_tokens", [16, 48, 10_000])
@pytest.mark.parametrize("keep_every", [1, 2, 4])
@pytest.mark.parametrize("fast", [False, True])
def test_scores_cut_short_are_exact_or_true_bounds_in_every_order(monkeypatch, part_tokens, keep_every, fast):
    # Asked with `needed`, texts run in the order of what they lose; states kept from such a run must stay each text's.
    monkeypatch.setattr("swm.search.window_score.PART_TOKENS", {"cpu": part_tokens})
    model, rng = tiny_model(layers=8), random.Random(part_tokens + keep_every)
    tokens = torch.randint(0, 300, (5, 12), generator=torch.Generator().manual_seed(keep_every))
    scorer = WindowScorer(model, tokens, keep_every=keep_every, fast=fast)
    whole = WindowScorer(model, tokens, keep_every=1, fast=fast)  # never cut short, so always in the texts' own order
    windows = [Window(first, last) for first in range(6) for last in range(first + 1, 7)]
    exact = {window: whole.score((), window) for window in windows}
    for _ in range(60):
        window, needed = rng.choice(windows), rng.choice([-0.9, 0.5, 0.9])
        found = scorer.score((), window, needed)
        assert found >= exact[window] - 1e-5
        assert found < needed or found == pytest.approx(exact[window], abs=1e-5)
