"""Tests of swm.evaluation.ability_scores, packs, token_tree and kept_abilities."""

import random

import pytest
import torch

from swm.evaluation.ability_scores import PackReplay, parts_of, sharing_packs
from swm.evaluation.kept_abilities import KeptAbilities
from swm.evaluation.packs import Encoded, encoded, packs
from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder
from swm.plan import dropped_plan
from swm.texts.ability_names import weights_in
from swm.texts.requests import Request
from tests.conftest import quickly, tiny_model
from tests.product.test_families import UNLIKE_FAMILIES
from tests.reference import families, scoring

UNLIKE = {"gemma2", "falcon"}  # their attention caps logits, or is the family's own code: it cannot be replaced
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "block_sparse_moe")
HEADER = "one and two make three . two and two make four . three and one make "


def random_requests(seed, words=families.VOCABULARY):
    """Requests of two beginnings, and some of none; with one to four choices of one to five tokens."""
    draw = random.Random(seed)
    tokens = lambda least, most: [draw.randrange(1, words) for _ in range(draw.randint(least, most))]  # noqa: E731
    begins = [tokens(17, 24), tokens(20, 30), [], []]
    found = []
    for number in range(12):
        question = begins[number % 4] + tokens(1, 6)
        choices = [tokens(1, 5) for _ in range(draw.choice((1, 1, 3, 4)))]
        wholes = [question + choice for choice in choices]
        found.append(Encoded(number, [whole[:-1] for whole in wholes], choices))
    return found


def plain_scores(model, requests):
    """Log-likelihoods by one forward pass for each choice."""
    return {
        (each.request, choice): scoring.continuation_log_likelihood(
            model, [*text, answer[-1]][: len(text) + 1 - len(answer)], answer
        )
        for each in requests
        for choice, (text, answer) in enumerate(zip(each.texts, each.answers, strict=True))
    }


def left_out(model, layer, part):
    """Hooks that pass a layer's input on, or make one of its parts add nothing."""
    module = find_decoder(model).layers[layer]

    def passed(module, args, kwargs, result):
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *result[1:]) if isinstance(result, tuple) else hidden

    def zeros(module, args, result):
        return (torch.zeros_like(result[0]), *result[1:]) if isinstance(result, tuple) else torch.zeros_like(result)

    if part == "layer":
        return module.register_forward_hook(passed, with_kwargs=True)
    names = ATTENTION if part == "attention" else MLP
    return next(child for name, child in module.named_children() if name in names).register_forward_hook(zeros)


@quickly("family", families.FAMILIES, (*UNLIKE_FAMILIES, "gemma3_text", "opt"))
def test_scores_without_each_layer_are_those_of_plain_forward_passes(family):
    """Windows of four tokens, grouped heads, experts, positions learned or rotated: with beginnings shared or not."""
    model = families.tiny_model(family, layers=4, seed=2)
    requests = random_requests(f"{family}")
    found = list(sharing_packs(model, requests)(requests, tokens=90))
    assert all((pack.shared is None) == (family in UNLIKE) for pack in found)
    assert any(pack.shared for pack in found) != (family in UNLIKE)
    replays = [PackReplay(model, pack) for pack in found]
    kinds = parts_of(model, find_decoder(model).layers)
    own, expected = {}, plain_scores(model, requests)
    for replay in replays:
        own |= replay.original()
    assert own == pytest.approx(expected, abs=2e-4, rel=1e-4)
    for layer in range(4):
        for kind in ("layer",) if family == "opt" else kinds:
            own = {}
            for replay in replays:
                own |= replay.without(layer, kind)
            handle = left_out(model, layer, kind)
            expected = plain_scores(model, requests)
            handle.remove()
            assert own == pytest.approx(expected, abs=2e-4, rel=1e-4), (layer, kind)
    assert len(kinds) == 3


def test_each_request_is_in_one_pack_and_packs_are_not_larger_than_asked():
    requests = random_requests(7)
    for share in (False, True):
        found = list(packs(requests, share, tokens=90))
        scored = [(number, choice) for pack in found for number, choice, _ in pack.scored]
        assert sorted(scored) == [(each.request, choice) for each in requests for choice in range(len(each.texts))]
        assert all(pack.tokens.numel() <= 90 for pack in found)
    tokens = {share: sum(pack.tokens.numel() for pack in packs(requests, share, 10_000)) for share in (True, False)}
    assert tokens[True] < tokens[False] / 2


def test_a_model_whose_attention_mixes_requests_is_noticed(monkeypatch):
    """Were the trial left out, the scores would be wrong."""
    monkeypatch.setattr(
        "swm.evaluation.packs.ancestors", lambda trees, longest: torch.ones(len(trees), longest, longest) > 0
    )
    model, requests = families.tiny_model("llama", layers=3), random_requests(1)
    assert all(pack.shared is None for pack in sharing_packs(model, requests)(requests))


def test_prompt_and_choice_are_encoded_together_and_long_prompts_lose_their_beginning(tokenizer):
    model = tiny_model(max_position_embeddings=40)
    short, long = encoded(
        tokenizer, [Request("a", "the old ", ("house", "river")), Request("b", HEADER, ("five",))], model
    )
    (whole,) = tokenizer(["the old house"]).input_ids
    (before,) = tokenizer(["the old"]).input_ids
    assert [*short.texts[0], short.answers[0][-1]] == whole
    assert short.answers[0] == whole[len(before) :]
    assert len(long.texts[0]) == 40
    assert tokenizer.decode([*long.texts[0], long.answers[0][-1]]).endswith("one make five")
    with pytest.raises(Exception, match=r"An answer of request c is longer than the model's context of 40 tokens"):
        encoded(tokenizer, [Request("c", "a", ("wordless " * 50,))], model)


def test_rises_of_kept_abilities_are_those_of_the_plan_s_own_model(tokenizer):
    """The loss of a plan that drops layers, against the saved kind of model and plain forward passes."""
    model = tiny_model(layers=5, seed=4)
    requests = {
        "one": [
            Request(f"{n}", f"{HEADER}{n} and", (f" {word}",)) for n, word in enumerate(("many", "children", "old"))
        ],
        "two": [
            Request(f"{n}", f"the {word}", (" house", " river"), n % 2) for n, word in enumerate(("near", "light"))
        ],
    }
    kept = KeptAbilities(model, tokenizer, requests, {"one": 2.0, "two": 1.0})

    def bits(some):
        means = {}
        for name, asked in requests.items():
            values = []
            for each, request in zip(encoded(tokenizer, asked, some), asked, strict=True):
                text, answer = each.texts[request.right], each.answers[request.right]
                context = [*text, answer[-1]][: len(text) + 1 - len(answer)]
                nats = -scoring.continuation_log_likelihood(some, context, answer)
                values.append(nats / 0.6931471805599453 / len(request.answer.encode()))
            means[name] = sum(values) / len(values)
        return means

    original, loss = bits(model), kept.loss(model)
    for dropped in ({1}, {2, 3}, {0, 4}):
        plan = dropped_plan(5, frozenset(dropped))
        after = bits(apply_plan(model, plan))
        rises = {name: after[name] / original[name] - 1 for name in after}
        expected = (2 * rises["one"] + rises["two"]) / 3
        assert loss(plan) == pytest.approx(expected, abs=1e-4)
        assert kept.rise_of(apply_plan(model, plan)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "keep", ["code=0", "code=-1", "code=x", "code=nan", "code=inf", "code,code", "", ",", "code=1e9"]
)
def test_a_wrong_weight_is_refused(keep):
    with pytest.raises(Exception, match=r"--keep"):
        weights_in(keep)
