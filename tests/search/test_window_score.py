"""How many texts the scorer runs, in what order and at once; scores against whole merged models of tests/reference."""

import math

import pytest
import torch

from swm.plan import Window
from swm.search.window_score import WindowScorer, text_cosines
from tests.conftest import tiny_model
from tests.reference import search


def texts_of(texts, length, seed=3):
    return torch.randint(1, 300, (texts, length), generator=torch.Generator().manual_seed(seed))


def rows_run(model):
    """A list that takes down with how many texts each layer of the model is called."""
    found = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: found.append(len(args[0] if args else kwargs["hidden_states"])),
            with_kwargs=True,
        )
    return found


@pytest.mark.parametrize(
    ("length", "fast", "little", "most"),
    [
        (200, False, False, 1),  # 384 tokens at once: one text of 200
        (500, False, False, 1),  # a text is never cut
        (100, False, False, 3),
        (100, True, False, 7),  # twice as many tokens in bfloat16
        (40, False, True, 2),  # a quarter where memory is short
        (100, True, True, 1),
    ],
)
def test_as_many_texts_run_together_as_there_is_room_for(length, fast, little, most, monkeypatch):
    if little:
        monkeypatch.setattr("swm.search.window_score.free_bytes_on", lambda device: 0)
    model = tiny_model(layers=3)
    rows = rows_run(model)
    WindowScorer(model, texts_of(9, length), fast=fast).score((), Window(0, 1))
    assert max(rows) == most


def test_windows_are_scored_one_at_a_time_on_a_processor():
    assert WindowScorer(tiny_model(layers=3), texts_of(2, 8)).at_once == 1


@pytest.mark.parametrize(("tokens", "at_once"), [((2, 8), 4), ((4, 8), 3), ((6, 16), 1), ((20, 16), 1)])
def test_so_many_windows_are_scored_together_as_their_tokens_have_room(tokens, at_once, monkeypatch):
    monkeypatch.setattr("swm.search.window_score.TOGETHER", {"cpu": 4})
    monkeypatch.setattr("swm.search.window_score.PART_TOKENS", {"cpu": 96})
    assert WindowScorer(tiny_model(layers=3), texts_of(*tokens)).at_once == at_once


@pytest.mark.parametrize(("layers_of_room", "kept"), [(0.5, 1), (4, 1), (8, 2), (13, 3)])
def test_a_quarter_of_the_free_memory_holds_merged_layers_but_one_at_least(layers_of_room, kept, monkeypatch):
    model = tiny_model(layers=3)
    size = 4 * sum(parameter.numel() for parameter in model.model.layers[0].parameters())  # bytes of float32
    monkeypatch.setattr("swm.search.window_score.free_bytes_on", lambda device: int(layers_of_room * size))
    assert WindowScorer(model, texts_of(2, 8)).kept_layers == kept


def test_merged_layers_used_last_are_those_that_are_kept(monkeypatch):
    model, made = tiny_model(layers=8), []
    scorer = WindowScorer(model, texts_of(2, 8))
    scorer.kept_layers = 2
    from swm.merging.apply import merge_window

    scorer._make = lambda window: made.append(str(window)) or merge_window(model.model.layers, window, "rdsc")
    above = (Window(4, 5), Window(6, 7))
    scorer.score(above, Window(2, 3))
    assert made == ["2-3", "4-5", "6-7"]  # each is made as the run comes to it
    assert [str(window) for window in scorer._made] == ["4-5", "6-7"]
    scorer.score(above[1:], Window(4, 5))  # both are there
    assert made == ["2-3", "4-5", "6-7"]
    scorer.score((), Window(3, 5))
    assert [str(window) for window in scorer._made] == ["3-5"]  # those that the search has left are let go


@pytest.mark.parametrize("windows", [[(1, 5), (2, 3)], [(2, 3), (1, 5), (0, 4)], [(0, 1)], [(4, 5), (0, 6)], []])
@pytest.mark.parametrize("above", [(), (Window(7, 8),)])
def test_windows_inside_one_another_score_together_as_whole_models_do(windows, above):
    model, tokens = tiny_model(layers=10), texts_of(3, 8)
    windows = [Window(*window) for window in windows]
    truth = search.model_similarity(model, tokens, "rdsc")
    found = WindowScorer(model, tokens).score_together(above, windows)
    assert found == pytest.approx([truth((window, *above)) for window in windows], abs=1e-5)


@pytest.mark.parametrize(
    ("done", "needed", "part", "rows"),
    [
        # Expected losses 0.4, 0.3, 0.2, 0.1, then 0: of 8 texts a mean of 0.9 may lose 0.8 in all, which the first
        # three exceed; a mean of 0.95 may lose 0.4, which two exceed; 0.5 is never missed.
        (0, 0.9, 8, 3),
        (0, 0.95, 8, 2),
        (0, 0.5, 8, 8),
        (0, -1.0, 8, 8),
        (0, 0.9, 2, 2),  # 3 in parts of at most 2: 2 and 1
        (0, 0.5, 5, 4),  # 8 in parts of at most 5: 4 and 4
        (0, 0.5, 3, 3),
        # Two are run and lost what was expected, 0.7: the next one exceeds 0.8.
        (2, 0.9, 8, 1),
        (2, -1.0, 8, 6),
        (6, 0.5, 8, 2),
    ],
)
def test_as_few_texts_are_run_next_as_will_likely_settle_the_matter(done, needed, part, rows):
    scorer = WindowScorer(tiny_model(layers=3), texts_of(8, 4))
    scorer._part = part
    scorer._lost = torch.tensor([0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0], dtype=torch.float64)
    lost = scorer._lost.clone()
    lost[done:] = 0
    assert scorer._next_part(torch.arange(8), lost, done, needed) == rows


def test_a_text_not_run_is_expected_to_lose_as_before_in_the_proportion_of_those_that_were():
    scorer = WindowScorer(tiny_model(layers=3), texts_of(4, 4))
    order, lost = torch.tensor([2, 0, 1, 3]), torch.tensor([0.01, 0, 0.03, 0], dtype=torch.float64)
    # Before nothing is known of any, each counts as 1: (0.01 + 0.03) / 2 for the others.
    assert scorer._expected(order, lost, 2).tolist() == pytest.approx([0.01, 0.02, 0.03, 0.02])
    scorer._lost = torch.tensor([0.02, 0.1, 0.06, 0.2], dtype=torch.float64)
    # Half of what those two lost before: half of the others' 0.1 and 0.2.
    assert scorer._expected(order, lost, 2).tolist() == pytest.approx([0.01, 0.05, 0.03, 0.1])
    scorer._lost = torch.zeros(4, dtype=torch.float64)
    assert scorer._expected(order, lost, 2).tolist() == pytest.approx([0.01, 0, 0.03, 0])


def test_texts_that_lost_most_are_run_first_and_the_rest_not_once_the_verdict_is_clear(monkeypatch):
    monkeypatch.setattr("swm.search.window_score.PART_TOKENS", {"cpu": 8})  # one text at a time
    model, tokens = tiny_model(layers=5), texts_of(6, 8)
    merged = WindowScorer(model, tokens, "mean")
    exact = merged.score((), Window(1, 3))
    lost = 1 - torch.tensor([search.similarity(model, text[None], [Window(1, 3)], "mean") for text in tokens])
    asked, replay = [], merged._replay
    input_of = replay.input_of
    monkeypatch.setattr(replay, "input_of", lambda layer, rows: asked.extend(rows.tolist()) or input_of(layer, rows))
    order = lost.argsort(descending=True).tolist()
    sums = lost[order].cumsum(0)
    needed = 1 - float(sums[2] + sums[3]) / 2 / 6  # the mean falls below with the fourth text
    bound = merged.score((), Window(1, 3), needed)
    assert asked == order[:4] != sorted(order)[:4]
    assert bound == pytest.approx(1 - float(sums[3]) / 6, abs=1e-5)
    assert exact == pytest.approx(1 - float(lost.mean()), abs=1e-5)
    asked.clear()
    merged.score((), Window(1, 3))  # nothing is needed: all, in their own order
    assert asked == list(range(6))


def test_layer_runs_are_given_to_a_tenth():
    model, tokens = tiny_model(layers=3), texts_of(3, 200)
    scorer = WindowScorer(model, tokens)
    assert scorer.layer_runs == pytest.approx(3 + 1 / 3, abs=0.05)  # and the last layer once more, for one of 3 texts
    assert scorer.layer_runs == 3.3


def test_a_cosine_is_at_most_one_and_no_less_than_it_is():
    x = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[1.0, 2.0]]])
    y = torch.tensor([[[6.0, 8.0]], [[0.0, 5.0]], [[-2.0, -4.0]]])
    found = text_cosines(x, y)
    assert found.tolist() == pytest.approx([1, 0, -1])
    assert found.dtype == torch.float64
    assert text_cosines(x.bfloat16(), y.bfloat16()).tolist() == pytest.approx([1, 0, -1])
    assert not math.isnan(float(found.sum()))


@pytest.mark.parametrize("needed", [1.0, 0.999999])
def test_a_threshold_of_one_is_not_met_before_any_text_has_been_run(needed):
    model, tokens = tiny_model(layers=4), texts_of(3, 8)
    exact = search.similarity(model, tokens, [Window(1, 2)], "rdsc")
    assert exact < 0.999
    assert exact - 1e-6 <= WindowScorer(model, tokens).score((), Window(1, 2), needed) < needed
