"""Requests as batches of tokens, in which a common beginning is computed once.

The requests of an ability mostly begin with the same solved examples. A pack that shares them is one row: that
beginning, then what each request adds, as a tree of tokens (see `token_tree`). Attention keeps the requests apart; no
other part of a layer looks at more than one token. Where a model's attention cannot be replaced, packs are plain rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import repeat_kv

from swm.errors import TextError
from swm.evaluation.token_tree import TokenTree, ancestors
from swm.models.decoder import context_length
from swm.texts.requests import Request
from swm.texts.tokens import end_token, leading_tokens, token_ids, whole_characters

PACK_TOKENS = 4096
LEAST_SHARED = 16  # tokens of a beginning that are worth sharing
IMPLEMENTATION = "swm_shared_beginning"
GROUP_PADDING = 1.3  # most that padding may add to the requests that attend together


@dataclass(frozen=True)
class Encoded:
    """A request in tokens.

    Attributes:
        request: its index among those of the caller.
        texts: for each choice, all tokens but the last.
        answers: for each choice, its own tokens, which the last ones of `texts` predict.
    """

    request: int
    texts: list[list[int]]
    answers: list[list[int]]

    @property
    def question(self) -> int:
        """Number of tokens before the answers, the same for all choices."""
        return min(len(text) + 1 - len(answer) for text, answer in zip(self.texts, self.answers, strict=True))

    @property
    def size(self) -> int:
        """Number of tokens of all choices."""
        return sum(map(len, self.texts))


def encoded(tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], model: PreTrainedModel) -> list[Encoded]:
    """The requests in tokens; those longer than the model's context lose the beginning of their prompt.

    Prompt and choice are encoded together, and blanks at the prompt's end belong to the choice, as in lm-eval.

    Raises:
        TextError: if an answer is longer than the context.
    """
    lead, longest = leading_tokens(tokenizer), min(context_length(model.config), 2**20)
    found = []
    for number, request in enumerate(requests):
        prompt = whole_characters(request.prompt)
        bare = prompt.rstrip()
        blanks = prompt[len(bare) :]
        (before,) = token_ids(tokenizer, [bare])
        wholes = token_ids(tokenizer, [bare + blanks + whole_characters(choice) for choice in request.choices])
        answers = [whole[len(before) :] for whole in wholes]
        if not all(answers) or max(map(len, answers)) >= longest:
            cause = "has no tokens" if not all(answers) else f"is longer than the model's context of {longest} tokens"
            raise TextError(f"An answer of request {request.id} {cause}: '{request.answer[:40]}'. Leave it out.")
        start = lead or ([] if before else [end_token(tokenizer)])  # something has to predict the first token
        texts = [(start + whole)[-longest - 1 : -1] for whole in wholes]
        found.append(Encoded(number, texts, answers))
    return found


@dataclass(frozen=True)
class Pack:
    """Requests that are run together.

    Attributes:
        tokens: shape (rows, length).
        places: for each request and choice (`scored`), where its answer is predicted, in the flattened tokens.
        scored: index of the request, index of the choice, tokens of the choice.
        shared: number of tokens of the common beginning; None for plain rows.
        trees: of what each request adds, if the beginning is shared; else empty.
    """

    tokens: Tensor
    places: list[list[int]]
    scored: list[tuple[int, int, list[int]]]
    shared: int | None = None
    trees: tuple[TokenTree, ...] = ()

    @property
    def positions(self) -> Tensor | None:
        """Of the tokens in their texts, if the beginning is shared."""
        if self.shared is None:
            return None
        own = [self.shared + depth for tree in self.trees for depth in tree.depths]
        return torch.tensor([[*range(self.shared), *own]])

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The requests in groups of similar size, for attention; one pack is run without each layer."""
        return list(_groups(self))


def packs(requests: Sequence[Encoded], share: bool, tokens: int = PACK_TOKENS) -> Iterator[Pack]:
    """All requests in packs of about `tokens` tokens, the largest first.

    Args:
        share: whether common beginnings are computed once.
    """
    found = list(_shared_packs(requests, tokens) if share else _plain_packs(requests, tokens))
    yield from sorted(found, key=lambda pack: -pack.tokens.numel())


def _plain_packs(requests: Sequence[Encoded], tokens: int) -> Iterator[Pack]:
    rows = sorted(
        ((each, choice) for each in requests for choice in range(len(each.texts))),
        key=lambda row: -len(row[0].texts[row[1]]),
    )
    while rows:
        longest = len(rows[0][0].texts[rows[0][1]])
        part, rows = rows[: max(1, tokens // longest)], rows[max(1, tokens // longest) :]
        texts = [each.texts[choice] for each, choice in part]
        ends = [row * longest + len(text) for row, text in enumerate(texts)]
        answers = [each.answers[choice] for each, choice in part]
        yield Pack(
            torch.tensor([text + [0] * (longest - len(text)) for text in texts]),
            [list(range(end - len(answer), end)) for end, answer in zip(ends, answers, strict=True)],
            [(each.request, choice, each.answers[choice]) for each, choice in part],
        )


def _shared_packs(requests: Sequence[Encoded], tokens: int) -> Iterator[Pack]:
    for run, shared in _runs(sorted(requests, key=lambda each: each.texts[0])):
        part, size = list[Encoded](), shared
        for each in sorted(run, key=lambda each: -each.size):
            own = each.size - len(each.texts) * shared
            if part and size + own > tokens:
                yield _shared_pack(part, shared)
                part, size = [], shared
            part.append(each)
            size += own
        yield _shared_pack(part, shared)


def _runs(ordered: Sequence[Encoded]) -> Iterator[tuple[list[Encoded], int]]:
    """Requests with a common beginning, and its length; those without one together, with 0."""
    alone, run, shared = list[Encoded](), list[Encoded](), 0
    for each in ordered:
        common = min(_common(run[-1].texts[0], each.texts[0]), each.question - 1, run[-1].question - 1) if run else 0
        if run and common >= LEAST_SHARED and (len(run) == 1 or 2 * common >= shared):
            shared = common if len(run) == 1 else min(shared, common)
            run.append(each)
            continue
        if len(run) > 1:
            yield run, shared
        else:
            alone += run
        run, shared = [each], 0
    if len(run) > 1:
        yield run, shared
    else:
        alone += run
    if alone:
        yield alone, 0


def _common(one: list[int], other: list[int]) -> int:
    """Number of first tokens that are equal."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _shared_pack(part: Sequence[Encoded], shared: int) -> Pack:
    trees, places, scored = [], [], []
    ids = part[0].texts[0][:shared]
    for each in sorted(part, key=lambda each: -each.size):
        tree = TokenTree("")
        for choice, (text, answer) in enumerate(zip(each.texts, each.answers, strict=True)):
            tree.add(choice, text[shared:], answer)
        for choice, nodes, answer in tree.scored:
            places.append([len(ids) + node for node in nodes])
            scored.append((each.request, choice, answer))
        ids = ids + tree.tokens
        trees.append(tree)
    return Pack(torch.tensor([ids]), places, scored, shared, tuple(trees))


@contextmanager
def attending(model: PreTrainedModel, pack: Pack) -> Iterator[None]:
    """Keeps the requests of a pack with a shared beginning apart; changes nothing for plain rows.

    Raises:
        TypeError: in a forward pass, if the model's attention does more than this one can.
    """
    if pack.shared is None:
        yield
        return
    configs: dict[int, Any] = {
        id(c): c for module in model.modules() if hasattr(c := getattr(module, "config", None), "to_dict")
    }
    usual = [(config, config._attn_implementation) for config in configs.values()]
    AttentionInterface.register(IMPLEMENTATION, _attention(pack))
    try:
        for config, _ in usual:
            config._attn_implementation = IMPLEMENTATION
        yield
    finally:
        for config, name in usual:
            config._attn_implementation = name


def _attention(pack: Pack) -> Callable[..., tuple[Tensor, None]]:
    """Attention of a pack: the beginning attends to itself, each request to the beginning and to its own ancestors."""
    shared, groups = pack.shared or 0, pack.groups

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None = None, **more: Any
    ) -> tuple[Tensor, None]:
        if unknown := [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]:
            raise TypeError(f"its attention uses {unknown[0]}")
        if query.shape[:3:2] != (1, pack.tokens.shape[1]) or query.shape[2] != key.shape[2]:
            raise TypeError("its attention sees other tokens")
        repeats, window = query.shape[1] // key.shape[1], more.get("sliding_window") or math.inf
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
        result = torch.empty((1, *query.shape[1:3], value.shape[3]), dtype=query.dtype, device=query.device)
        if shared:
            first_query, first_key, first_value = (state[:, :, :shared] for state in (query, key, value))
            near = None if shared <= window else _near(torch.arange(shared), torch.arange(shared), window).tril()
            result[:, :, :shared] = F.scaled_dot_product_attention(
                first_query, first_key, first_value, _on(near, query), is_causal=near is None, scale=scaling
            )
        for places, depths, sees in groups:
            own_query, own_key, own_value = (
                state[0, :, places.to(query.device)].transpose(0, 1) for state in (query, key, value)
            )
            rows = len(places)
            keys, values = (
                torch.cat([state[:, :, :shared].expand(rows, -1, -1, -1), own], 2)
                for state, own in ((key, own_key), (value, own_value))
            )
            seen = sees
            if depths.max() >= window:
                before = torch.arange(shared).expand(rows, -1)
                seen = sees & _near(depths, torch.cat([before, depths], 1), window)
            found = F.scaled_dot_product_attention(
                own_query, keys, values, attn_mask=_on(seen[:, None], query), scale=scaling
            )
            # of padding, which repeats a request's last token, the same is written again
            result[0, :, places.to(query.device)] = found.transpose(0, 1).to(result.dtype)
        return result.transpose(1, 2).contiguous(), None

    return attend


def _on(mask: Tensor | None, query: Tensor) -> Tensor | None:
    return None if mask is None else mask.to(query.device)


def _near(queries: Tensor, keys: Tensor, window: float) -> Tensor:
    """Whether a key is less than `window` positions below the query."""
    return queries[..., :, None] - keys[..., None, :] < window


def _groups(pack: Pack) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Requests of similar size: places of their tokens (rows, longest), depths, and what each token attends to
    (rows, longest, shared + longest)."""
    shared, start = pack.shared or 0, pack.shared or 0
    starts = []
    for tree in pack.trees:
        starts.append(start)
        start += len(tree.tokens)
    rows = sorted(zip(pack.trees, starts, strict=True), key=lambda row: -len(row[0].tokens))
    while rows:
        longest = len(rows[0][0].tokens)
        fit = next(
            (
                n
                for n in range(1, len(rows))
                if (shared + longest) * longest > GROUP_PADDING**2 * _area(rows[n], shared)
            ),
            len(rows),
        )
        part, rows = rows[:fit], rows[fit:]
        trees = [tree for tree, _ in part]
        places = [[begin + min(n, len(tree.tokens) - 1) for n in range(longest)] for tree, begin in part]
        depths = [[shared + tree.depths[min(n, len(tree.tokens) - 1)] for n in range(longest)] for tree in trees]
        sees = ancestors(trees, longest)
        for row, tree in zip(sees, trees, strict=True):
            row[len(tree.tokens) :] = row[len(tree.tokens) - 1]  # padding repeats the last token
        yield (
            torch.tensor(places),
            torch.tensor(depths),
            torch.cat([torch.ones(*sees.shape[:2], shared, dtype=torch.bool), sees], 2),
        )


def _area(row: tuple[TokenTree, int], shared: int) -> int:
    return len(row[0].tokens) * (shared + len(row[0].tokens))
