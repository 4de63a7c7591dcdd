"""The input of every planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from swm.plan import Needed
from swm.planners.drops import DropLoss
from swm.planners.needed import describable
from swm.progress import Progress, no_progress
from swm.search.tried import RISE, SAMPLED, Losses
from swm.settings import PLAN_BUDGET

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from swm.evaluation.kept_abilities import KeptAbilities
    from swm.merging.merged_layer import MergedLayer
    from swm.plan import MergePlan, Window
    from swm.search.vocabulary import VocabularySample


class PlanOptions(TypedDict, total=False):
    """How to search a plan.

    Attributes:
        fast: similarities and losses may be computed in bfloat16, which changes a similarity by up to 0.001.
        budget: maximum number of plans to try, for planners that take a budget.
        seconds: about how long they may search, in place of the budget.
        fit_tokens: given a number of tokens, returns about that much text to fit merged layers on, shaped like the
            calibration text.
        needed: sets of layers of which one at least must stay, so that the model can generate: see `planners.needed`.
        losses: of sets of dropped layers, found before with the same model and text, by kind (see `PlanRequest.loss`);
            those found are added. So a search that was interrupted goes on where it stopped, and one for another number
            of layers starts with what it can use.
        finalists: filled by planners that compare their last plans on more text: `texts`, their number, and for each
            other plan `windows`, `rule` and its perplexity against the chosen one's, `ratio` with its 95 % interval
            `low` and `high` over these texts; `perplexity`, the chosen plan's on the calibration text; and `left_out`,
            the planners whose plans would have been tried with more time.
        kept: abilities that plans are judged by, instead of by perplexity, for planners that try plans; and `keep`, how
            losses by them are called.
        progress: called with the plans tried so far; may raise to stop.
    """

    fast: bool
    budget: int
    seconds: float | None
    fit_tokens: Callable[[int], Tensor]
    needed: Needed | None
    losses: Losses
    finalists: dict[str, Any]
    kept: KeptAbilities | None
    keep: str
    progress: Progress


@dataclass(frozen=True)
class PlanRequest:
    """A model, text, the number of layers to leave, and how to search: `PlanOptions`.

    Attributes:
        model: causal LM in eval mode; must not be changed.
        tokens: calibration text, ids of shape (texts, length), int64, no padding.
        layer_count, layers: number of layers in the model, and how many to leave.
        seed: for random draws.
        kinds: of each layer, if those left must be of the kinds that the places had, as llama.cpp needs for some
            families; else empty.
        sample: of the vocabulary, to estimate losses from: see `search.vocabulary`.
        fragile: whether no config may describe the model without some layers, see `planners.needed`.
    """

    model: PreTrainedModel
    tokens: Tensor
    layer_count: int
    layers: int
    seed: int
    fit_tokens: Callable[[int], Tensor]
    fast: bool = False
    budget: int = PLAN_BUDGET
    kinds: Sequence[str] = ()
    needed: Needed = ()
    losses: Losses = field(default_factory=dict)
    sample: VocabularySample | None = None
    seconds: float | None = None
    finalists: dict[str, Any] = field(default_factory=dict)
    kept: KeptAbilities | None = None
    keep: str = ""
    progress: Progress = no_progress
    fragile: bool = False

    @property
    def drop(self) -> int:
        """Number of layers to drop."""
        return self.layer_count - self.layers

    def loss(self, kind: str, make: Callable[[Window], MergedLayer] | None = None) -> DropLoss:
        """The loss on the calibration text, or the rise of kept abilities, of the model without some layers.

        Those that are known already are not computed again.

        Args:
            kind: `dropped`, or the rule that `make` makes merged layers by, `fit` or `scale`: in bfloat16, if `fast`.
        """
        from swm.search.plan_loss import PlanLoss

        fast = self.fast and kind != "dropped"
        conditions = f"{kind} in bfloat16" if fast else kind
        if self.sample:
            conditions += f", {len(self.sample.tokens)} {SAMPLED}"
        if self.kept:
            conditions = f"{conditions.partition(',')[0]}, {RISE} {self.keep}"
            compute = self.kept.loss(self.model, make, fast)
        else:
            compute = PlanLoss(self.model, self.tokens, make, fast, self.sample)
        rule = None if kind == "dropped" else kind
        return DropLoss(compute, self.layer_count, rule, self.losses.setdefault(conditions, {}), self.possible)

    def possible(self, plan: MergePlan) -> bool:
        """Whether the plan's model can generate, and, in families where that is in doubt, be described by a config."""
        return not plan.lost(self.needed) and (not self.fragile or self.describable(plan))

    def describable(self, plan: MergePlan) -> bool:
        """Whether a config can describe the plan's model."""
        return describable(self.model, plan)

    def tried(self, done: int, total: int) -> None:
        """Report how many plans have been tried; `total` is 0 if unknown."""
        self.progress(done, total, f"{done} plans tried")
