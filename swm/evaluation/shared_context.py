"""An lm-eval model that computes the shared context of a question's choices once. Its log-likelihoods equal HFLM's.

lm-eval's own class HFLM runs context and choice together, once for each choice, and computes logits at every position.
Here the choices of a question form a tree of tokens in which each token attends only to its ancestors (tree attention
of SpecInfer, arXiv:2305.09781, section 4.2), and logits are computed only where a token is scored. Only tasks.py uses
this module.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import torch
from lm_eval.models.huggingface import HFLM
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.evaluation.token_tree import TokenTree, only_at, tree_mask
from swm.models.processes import gathered, own_part

Request = tuple[tuple[str, str], list[int], list[int]]
Result = tuple[float, bool]
BATCH_TOKENS = {"cpu": 512, "cuda": 4096}  # with padding; logits of 4096 tokens over 150,000 words take 2.5 GB
TREE_TOKENS = 4096  # larger questions go to lm-eval's own class: the mask grows quadratically
logger = logging.getLogger(__name__)


class SharedContextLM(HFLM):
    """HFLM that computes the shared part of neighbouring requests once.

    Falls back to HFLM's own method if the model does not support tree attention (checked on the longest question that
    branches), or if a question is too long.

    Several processes (see `swm.models.processes`) score a part each, and every process gets all results.

    Attributes:
        on_progress: called with (requests done, total requests).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=16, device=str(model.device))  # type: ignore[arg-type]
        self.on_progress: Callable[[int, int], None] = lambda done, total: None
        # An attention window shorter than the question would need a separate mask for each layer.
        self._longest = min(TREE_TOKENS, getattr(self.model.config, "sliding_window", None) or TREE_TOKENS)
        self._tried = (False, 0)  # hardness of the hardest question on which both methods agreed

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Result]:
        return gathered(self._log_likelihoods(own_part(requests), disable_tqdm, override_bs))

    @torch.inference_mode()
    def _log_likelihoods(self, requests: list[Request], disable_tqdm: bool, override_bs: int | None) -> list[Result]:
        questions = sorted(self._questions(requests), key=lambda question: -len(question.tokens))
        trees = [question for question in questions if len(question.tokens) <= self._longest]
        hardest = max(trees, key=lambda question: question.hardness, default=None)
        if hardest and hardest.hardness > self._tried and not self._takes_trees(hardest, requests):
            trees = []
        results: dict[int, Result] = {}
        for batch in _batches(trees, BATCH_TOKENS.get(self.device.type, 4096)):
            results.update(self._scored(batch))
            self.on_progress(len(results), len(requests))
        for (strings, _, _), result in ((requests[index], result) for index, result in results.items()):
            self.cache_hook.add_partial("loglikelihood", strings, result)
        left = [index for index in range(len(requests)) if index not in results]
        if left:
            plain = super()._loglikelihood_tokens([requests[index] for index in left], disable_tqdm, override_bs)
            results.update(zip(left, plain, strict=True))
            self.on_progress(len(requests), len(requests))
        return [results[index] for index in range(len(requests))]

    def _questions(self, requests: list[Request]) -> Iterator[TokenTree]:
        question: TokenTree | None = None
        for index, ((text, _), context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                continue
            # Truncate from the left, as HFLM does.
            tokens = (context + continuation)[-(self.max_length + 1) :][:-1]
            if question is None or not question.takes(text, tokens):
                if question:
                    yield question
                question = TokenTree(text)
            question.add(index, tokens, continuation)
        if question:
            yield question

    def _takes_trees(self, question: TokenTree, requests: list[Request]) -> bool:
        """Whether the choice that branches off last scores the same as on its own; logs the reason once if not."""
        index, _, _ = max(question.scored, key=lambda choice: choice[1][-1])
        expected, _ = super()._loglikelihood_tokens([requests[index]], disable_tqdm=True)[0]
        allowed = 1e-4 if self.model.dtype == torch.float32 else 0.02
        reason = "its attention does not support token trees"
        try:
            likelihood, _ = dict(self._scored([question]))[index]
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            reason, likelihood = str(error).partition("\n")[0][:200], math.nan
        if abs(likelihood - expected) <= allowed * max(1.0, abs(expected)):
            self._tried = question.hardness
            return True
        logger.info("Scoring one choice at a time: this model does not support the fast method (%s).", reason)
        self._longest = 0
        return False

    def _scored(self, batch: list[TokenTree]) -> Iterator[tuple[int, Result]]:
        longest = max(len(question.tokens) for question in batch)
        ids, positions = (
            torch.tensor([values + [0] * (longest - len(values)) for values in rows], device=self.device)
            for rows in ([q.tokens for q in batch], [q.depths for q in batch])
        )
        scored = [(row, *choice) for row, question in enumerate(batch) for choice in question.scored]
        places = torch.tensor([row * longest + node for row, _, nodes, _ in scored for node in nodes])
        with only_at(self.model.get_output_embeddings(), places):
            mask = tree_mask(batch, longest).to(self.device, self.model.dtype)
            logits = self.model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).logits[0]
        parts = logits.split([len(nodes) for _, _, nodes, _ in scored])
        for (_, index, _, continuation), part in zip(scored, parts, strict=True):
            target = torch.tensor(continuation, device=part.device)
            log_probabilities = F.log_softmax(part, dim=-1, dtype=self.softmax_dtype)
            greedy = bool((log_probabilities.argmax(-1) == target).all())
            yield index, (float(log_probabilities.gather(1, target[:, None]).sum()), greedy)


def _batches(questions: list[TokenTree], tokens: int) -> Iterator[list[TokenTree]]:
    """Batches of questions of similar size, longest first, with at most `tokens` tokens each, padding included."""
    while questions:
        fit = max(1, tokens // len(questions[0].tokens))
        yield questions[:fit]
        questions = questions[fit:]
