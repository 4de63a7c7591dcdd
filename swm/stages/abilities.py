"""What each layer does: how much worse a model answers requests without it. And what a run's model lost."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import SettingsError
from swm.evaluation.ability_scores import PackReplay, Scores, parts_of, sharing_packs
from swm.evaluation.kept_abilities import KeptAbilities
from swm.evaluation.packs import Encoded, Pack, encoded
from swm.evaluation.paired import bits_per_byte, choice_logprob
from swm.merging.apply import apply_plan
from swm.merging.fit import apply_fitted_plan
from swm.models.decoder import find_decoder
from swm.models.load import fast_format
from swm.plan import MergePlan
from swm.progress import Progress, no_progress, share_of
from swm.registry import ABILITIES, MERGE_RULES
from swm.reporting.abilities import BEFORE_HEALING, FILE, profile
from swm.settings import KEPT_REQUESTS, USUAL_REQUESTS
from swm.stages.loading import conditions_for, fit_tokens_of, load_original, load_run
from swm.texts.ability_names import weights_in
from swm.texts.requests import MOST, Purpose, Request, ability_title, request_key, requests_of
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE, Run

VERSION = 1  # raised when requests or their scores change
MODEL = "model"  # the variant of a run's profile; of a map, "original", then "0", "0 attention", "0 mlp", "1", ...
ORIGINAL = "original"
DIGITS = 4
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def check_count(count: int) -> None:
    """Raise SettingsError unless that many requests of an ability can be asked."""
    if not 2 <= count <= MOST:
        raise SettingsError(f"--requests {count} is out of range. Choose 2 to {MOST:,} requests for each ability.")


def map_abilities(
    experiment: Experiment,
    abilities: Sequence[str],
    count: int = 40,
    progress: Progress = no_progress,
    *,
    parts: bool = False,
    precision: str = "auto",
) -> dict[str, Any]:
    """How well the model answers requests without each layer, written to abilities.json; what is known is kept.

    Args:
        abilities: as from `chosen_abilities`.
        count: requests of each, those for choosing.
        parts: also without each layer's attention and without its MLP.

    Returns:
        What the file holds: under `abilities`, by ability, `ids` of the requests and `scores`: by what was left out
        (see ORIGINAL), for each request `bits` per byte of the right answer, and where it has choices `choice`, the
        log-probability of the right one, and the index of the one `picked`.
    """
    check_count(count)
    progress(0, 0, "loading the model")
    model, tokenizer = load_original(experiment, offload=True)
    fast, start = fast_format(model, precision), time.time()
    model = model.bfloat16() if fast else model
    layers = find_decoder(model).layers
    kinds = parts_of(model, layers) if parts else ("layer",)
    variants = [ORIGINAL, *(_variant(n, kind) for n in range(len(layers)) for kind in kinds)]
    data = _kept(experiment.read(FILE), fast) or {"version": VERSION, "precision": _precision(fast), "abilities": {}}
    lacking = _lacking(data, abilities, "choosing", count, variants)
    work, done = list(_work(model, tokenizer, lacking)), 0.0
    total = sum(pack.tokens.numel() for *_, pack in work) * _passes(len(layers), kinds)

    def save() -> None:
        data["conditions"] = conditions_for(experiment, model, start)
        if not experiment.read_only:
            experiment.write(FILE, data)

    for ability, requests, pack in work:
        answers = {}
        for variant, passes, scores in _without_each(PackReplay(model, pack), len(layers), kinds):
            done += passes * pack.tokens.numel()
            progress(int(100 * done / total * 100), 10_000, f"{ability_title(ability)}: {_words(variant)}")
            answers[variant] = scores
        _add(data["abilities"], ability, requests, answers)
        save()
    return data


def profile_run(
    run: Run, abilities: Sequence[str], count: int = 40, progress: Progress = no_progress, loaded: Loaded | None = None
) -> dict[str, Any]:
    """How well a run's model answers requests, written to the run's abilities.json; what is known is kept.

    The requests are those for reporting: no plan was chosen by them. Returns what the file holds, as `map_abilities`.
    """
    check_count(count)
    progress(0, 0, "loading the model")
    model, tokenizer = loaded or load_run(run, offload=True)
    fast, start = fast_format(model), time.time()
    data = _kept(run.read(FILE), fast) or {"version": VERSION, "precision": _precision(fast), "abilities": {}}
    lacking = _lacking(data, abilities, "reporting", count, [MODEL])
    for ability, requests, scores in scores_of_model(model, tokenizer, lacking, fast, progress):
        _add(data["abilities"], ability, requests, {MODEL: scores})
    data["conditions"] = conditions_for(run.experiment, model, start)
    if not run.experiment.read_only:
        run.save("abilities", data)
    return data


def has_profile(run: Run, abilities: Sequence[str], count: int, before_healing: bool = False) -> bool:
    """Whether a run's model answered these requests, in the same precision as the original.

    Args:
        before_healing: asks about the merged model of a healed run.
    """
    data, original = run.read(BEFORE_HEALING if before_healing else FILE), run.experiment.run(BASELINE).read(FILE)
    if not data or not original or data["version"] != VERSION or data["precision"] != original["precision"]:
        return False
    return not _lacking(copy.deepcopy(data), abilities, "reporting", count, [MODEL])


def scores_of_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: dict[str, list[Request]],
    fast: bool,
    progress: Progress = no_progress,
) -> Iterator[tuple[str, list[Request], Scores]]:
    """A model's scores of requests, pack by pack: ability, all its requests, and the scores of some."""
    work = list(_work(model, tokenizer, requests, fast))
    total, done = sum(pack.tokens.numel() for *_, pack in work), 0
    for ability, asked, pack in work:
        progress(done, total, ability_title(ability))
        yield ability, asked, PackReplay(model, pack, fast).original()
        done += pack.tokens.numel()


def _work(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: dict[str, list[Request]], fast: bool = False
) -> Iterator[tuple[str, list[Request], Pack]]:
    """Every pack of every ability."""
    read: dict[str, list[Encoded]] = {name: encoded(tokenizer, asked, model) for name, asked in requests.items()}
    make = sharing_packs(model, [each for one in read.values() for each in one], fast)
    for name, asked in requests.items():
        for pack in make(read[name]):
            yield name, asked, pack


def _without_each(replay: PackReplay, layers: int, kinds: Sequence[str]) -> Iterator[tuple[str, float, Scores]]:
    """What is left out, how many layers were run for it, and the scores."""
    yield ORIGINAL, layers + 1, replay.original()
    for layer in range(layers):
        for kind in kinds:
            yield _variant(layer, kind), layers - layer, replay.without(layer, kind)


def _passes(layers: int, kinds: Sequence[str]) -> float:
    return layers + 1 + len(kinds) * layers * (layers + 1) / 2


def _variant(layer: int, kind: str) -> str:
    return f"{layer}" if kind == "layer" else f"{layer} {kind}"


def _words(variant: str) -> str:
    layer, _, part = variant.partition(" ")
    return variant if variant == ORIGINAL else f"without {f'the {part} of ' if part else ''}layer {layer}"


def _precision(fast: bool) -> str:
    return "bfloat16" if fast else "exact"


def _kept(data: dict[str, Any] | None, fast: bool) -> dict[str, Any] | None:
    """What was measured before, if it was measured in the same way."""
    alike = data and data["version"] == VERSION and data["precision"] == _precision(fast)
    return copy.deepcopy(data) if alike else None


def _lacking(
    data: dict[str, Any], abilities: Sequence[str], purpose: Purpose, count: int, variants: Sequence[str]
) -> dict[str, list[Request]]:
    """The requests of each ability that lack the score of a variant; scores of a changed file are thrown away."""
    lacking = {}
    for ability in abilities:
        whole = {request_key(each): each for each in requests_of(ability, purpose, MOST)}
        entry = data["abilities"].get(ability, {"ids": [], "scores": {}})
        if not (set(variants) <= set(entry["scores"]) and set(entry["ids"]) <= set(whole)):
            data["abilities"].pop(ability, None)
            entry = {"ids": []}
        if left := [each for key, each in list(whole.items())[:count] if key not in entry["ids"]]:
            lacking[ability] = left
    return lacking


def _add(abilities: dict[str, Any], ability: str, requests: Sequence[Request], answers: dict[str, Scores]) -> None:
    """Add the scores of some of the requests, by variant."""
    entry = abilities.setdefault(ability, {"ids": [], "scores": {}})
    numbers = sorted({number for scores in answers.values() for number, _ in scores})
    entry["ids"] += [request_key(requests[number]) for number in numbers]
    for variant, scores in answers.items():
        columns = entry["scores"].setdefault(variant, {"bits": []})
        known, rows = len(columns["bits"]), [_scored(requests[number], scores, number) for number in numbers]
        for name in ("bits", "choice", "picked"):
            if name in columns or any(row[name] is not None for row in rows):  # most abilities have no choices
                columns.setdefault(name, [None] * known).extend(row[name] for row in rows)


def _scored(request: Request, scores: Scores, number: int) -> dict[str, Any]:
    found = [scores[number, choice] for choice in range(len(request.choices))]
    size = len(request.answer.encode("utf-8", "replace"))
    several = len(found) > 1
    return {
        "bits": round(bits_per_byte(found[request.right], size), DIGITS),
        "choice": round(choice_logprob(found, request.right), DIGITS) if several else None,
        "picked": max(range(len(found)), key=found.__getitem__) if several else None,
    }


def kept_abilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keep: str, fast: bool) -> KeptAbilities:
    """The requests that plans are judged by; `keep` as from `whole_keep`."""
    weights = weights_in(keep)
    requests = {name: requests_of(name, "choosing", KEPT_REQUESTS) for name in weights}
    return KeptAbilities(model, tokenizer, requests, weights, fast)


def rises_of_plan(
    experiment: Experiment, plan: MergePlan, keep: str, loaded: Loaded, progress: Progress = no_progress
) -> dict[str, Any]:
    """By how much every ability rises with a plan's model, before healing: on requests that nothing was chosen by.

    The original's scores are kept with the experiment's baseline.
    """
    model, tokenizer = loaded
    names = list(dict.fromkeys([*weights_in(keep), *ABILITIES]))
    before = profile_run(experiment.run(BASELINE), names, USUAL_REQUESTS, share_of(progress, 0, 0.5), loaded)
    if MERGE_RULES[plan.rule].needs_text:
        rows = fit_tokens_of(experiment, tokenizer)
        smaller = apply_fitted_plan(model, plan, rows, None, fast_format(model), plan.rule)
    else:
        smaller = apply_plan(model, plan)
    requests = {name: requests_of(name, "reporting", USUAL_REQUESTS) for name in names}
    after: dict[str, Any] = {"abilities": {}}
    for name, asked, scores in scores_of_model(
        smaller, tokenizer, requests, fast_format(model), share_of(progress, 0.5, 1)
    ):
        _add(after["abilities"], name, asked, {MODEL: scores})
    return dict(profile(before, after))
