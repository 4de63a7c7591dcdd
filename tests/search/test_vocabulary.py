"""Losses estimated from a sample of the vocabulary, held against the losses over all of it."""

import math

import pytest
import torch
from torch.nn import functional as F

import swm.search.vocabulary as vocabulary
from swm.models.replay import Replay
from swm.plan import MergePlan, dropped_plan
from swm.planners.plan_with import plan_with
from swm.search.plan_loss import PlanLoss
from swm.search.vocabulary import VocabularySample, sample_for
from tests.conftest import tiny_model
from tests.product.test_families import FAMILIES, made

VOCABULARY = 5000


def text_of(count, length, size, seed=0):
    return torch.randint(0, size, (count, length), generator=torch.Generator().manual_seed(seed))


def shares_of(logits):
    return logits.softmax(1).mean(0)


def peaked_logits(seed, tokens=400):
    """Logits as a language model gives them: a few likely tokens of every position, and a long tail."""
    random = torch.Generator().manual_seed(seed + 100)  # not the numbers that order the vocabulary
    usual = torch.randn(VOCABULARY, generator=random) * 2
    return usual + torch.randn(tokens, VOCABULARY, generator=random)


@pytest.mark.parametrize("seed", range(5))
def test_the_estimate_is_near_the_loss_over_all_tokens(seed):
    logits, text = peaked_logits(seed), text_of(1, 400, VOCABULARY, seed)[0]
    sample = VocabularySample.of(shares_of(logits), text, likely=1000, drawn=1000)
    assert len(sample.tokens) == 2000 == len(set(sample.tokens.tolist()))
    exact = F.cross_entropy(logits, text, reduction="none")
    estimated = sample.losses(logits[:, sample.tokens], text)
    assert float((estimated - exact).mean().abs()) < 0.02
    # another model on the same text: as good, although the sample was not drawn for it
    other = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed + 50))
    change = sample.losses(other[:, sample.tokens], text).mean() - F.cross_entropy(other, text)
    assert abs(float(change)) < 0.02


@pytest.mark.parametrize(("likely", "drawn"), [(VOCABULARY, 10), (1000, VOCABULARY), (10**6, 10**6)])
def test_a_sample_of_everything_is_exact(likely, drawn):
    logits, text = peaked_logits(7), text_of(1, 400, VOCABULARY)[0]
    sample = VocabularySample.of(shares_of(logits), text, likely, drawn)
    assert sorted(sample.tokens.tolist()) == list(range(VOCABULARY))
    torch.testing.assert_close(
        sample.losses(logits[:, sample.tokens], text), F.cross_entropy(logits, text, reduction="none")
    )


def test_the_weights_count_every_token_of_the_vocabulary():
    text = text_of(3, 50, VOCABULARY)
    sample = VocabularySample.of(torch.rand(VOCABULARY), text, likely=20, drawn=300)
    assert set(text.flatten().tolist()) <= set(sample.tokens.tolist())  # more than the 20
    assert float(sample.log_weight.exp().sum()) == pytest.approx(VOCABULARY, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_some_tokens_are_those_of_the_whole_head(family):
    model = made(family)
    size = model.config.get_text_config().vocab_size
    head, weight = model.get_output_embeddings(), model.get_output_embeddings().weight
    tokens, some = text_of(2, 9, size), torch.tensor([5, 0, size - 1, 17])
    replay = Replay(model, tokens)
    hidden = replay.run(replay.input_of(len(replay.layers) - 1), len(replay.layers) - 1)
    whole = replay.logits(hidden)
    torch.testing.assert_close(whole, model(tokens).logits)
    torch.testing.assert_close(replay.logits(hidden, some), whole[..., some])
    torch.testing.assert_close(replay.logits(hidden, some.flip(0)), whole[..., some.flip(0)])
    assert model.get_output_embeddings() is head
    assert head.weight is weight
    torch.testing.assert_close(replay.logits(hidden), whole)


def test_the_head_is_whole_again_after_an_error():
    model = tiny_model()
    replay = Replay(model, text_of(2, 9, 300))
    weight = model.lm_head.weight
    with pytest.raises((RuntimeError, IndexError)):
        replay.logits(torch.zeros(2, 9, 7), torch.tensor([1, 2]))
    assert model.lm_head.weight is weight


@pytest.fixture
def small_samples(monkeypatch):
    """Samples as if 200 tokens were a large vocabulary."""
    plain = VocabularySample.of
    monkeypatch.setattr(vocabulary, "LARGE_VOCABULARY", 200)
    monkeypatch.setattr(VocabularySample, "of", lambda shares, text: plain(shares, text, likely=150, drawn=60))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "granite"])
def test_losses_of_plans_are_near_those_over_all_tokens(family, small_samples):
    model, tokens = made(family), text_of(20, 12, 300, 4)
    exact, sampled = PlanLoss(model, tokens), PlanLoss(model, tokens, sample=sample_for(model, tokens))
    count = len(Replay(model, tokens).layers)
    plans = [MergePlan(count), dropped_plan(count, {2}), dropped_plan(count, {1, 3})]
    values = [(exact(plan), sampled(plan)) for plan in plans]
    assert all(abs(one - other) < 0.02 for one, other in values), values
    assert any(one != other for one, other in values)  # it did estimate


def test_a_small_vocabulary_is_never_sampled():
    model, tokens = tiny_model(), text_of(4, 12, 300)
    assert sample_for(model, tokens) is None


def test_best_samples_a_large_vocabulary_and_keeps_such_losses_apart(small_samples):
    losses = {}
    model, tokens = tiny_model(layers=6), text_of(4, 24, 300)
    plan = plan_with(
        "best", model, tokens, 4, budget=12, fit_tokens=lambda count: text_of(60, 24, 300, 3), losses=losses
    )
    assert plan.layers_left == 4
    assert set(losses) == {"fit, 210 tokens of the vocabulary", "dropped, 210 tokens of the vocabulary"}
    plan_with("sleb", model, tokens, 4, losses=losses)
    assert losses["dropped"]  # as published: over all tokens
    assert all(map(math.isfinite, losses["dropped"].values()))


def test_rounding_changes_few_tokens_of_a_sample():
    text, shares = text_of(1, 50, VOCABULARY), torch.rand(VOCABULARY)
    one = VocabularySample.of(shares, text, likely=500, drawn=500)
    other = VocabularySample.of(shares * (1 + 1e-4 * torch.randn(VOCABULARY)), text, likely=500, drawn=500)
    assert len({*one.tokens.tolist()} & {*other.tokens.tolist()}) > 0.97 * 1000
