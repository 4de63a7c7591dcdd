"""Which windows of neighbouring layers become one layer each. Plain data, no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from swm.errors import PlanError, SettingsError
from swm.registry import MERGE_RULES

DEFAULT_RULE = "rdsc"
FEW_LAYERS = 6  # that a message names

Needed = Sequence[Collection[int]]  # sets of layers of which one at least must stay

WIDTH_METHODS = {
    "flap": "Removes what varies least, times the weights that read it; a bias keeps its mean if possible (FLAP).",
    "taylor": "Removes what the loss depends on least: weight times gradient (LLM-Pruner).",
}


@dataclass(frozen=True)
class WidthCut:
    """Share of every layer's weights to remove by width pruning, and the method that chooses them."""

    ratio: float = 0.0
    method: str = "flap"

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 0.9:
            raise SettingsError(f"--width {self.ratio} is out of range. Choose 0 to 0.9.")
        if self.method not in WIDTH_METHODS:
            raise SettingsError(f"'{self.method}' is not a width pruning method. Choose {' or '.join(WIDTH_METHODS)}.")

    def after(self, method: str) -> str:
        """Display name of a method followed by this width cut."""
        return f"{method} + {self.method}" if self.ratio else method


WHOLE_WIDTH = WidthCut()
LAST = 3  # layers that `trained_layers` calls last, as in arXiv:2411.15558


@dataclass(frozen=True, order=True)
class Window:
    """Neighbouring layers that become one; both ends included, counted from 0.

    With rule `keep_first`, a window that starts at -1 (the embedding) drops all its layers: the lowest of the model.
    """

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True)
class MergePlan:
    """The windows to merge in a model of `layer_count` layers, lowest first, none overlapping; then a width cut."""

    layer_count: int
    windows: tuple[Window, ...] = ()
    rule: str = DEFAULT_RULE
    width: WidthCut = WHOLE_WIDTH

    def __post_init__(self) -> None:
        MERGE_RULES.check(self.rule)
        free = -1 if self.rule == "keep_first" else 0
        for window, below in zip(self.windows, (None, *self.windows), strict=False):
            if below and below.first <= window.first <= below.last:
                raise PlanError(
                    f"Windows {below} and {window} share layer {window.first}: a layer can be merged only once. "
                    "Shorten one of them, or join them."
                )
            if not free <= window.first < window.last < self.layer_count:
                if self.layer_count < 2:
                    raise PlanError("The model has a single layer: there is nothing to merge. Choose another model.")
                if window.first > window.last:
                    raise PlanError(f"Window {window} ends before it begins. Write {window.last}-{window.first}.")
                raise PlanError(
                    f"Window {window} does not fit: it needs two or more of the layers "
                    f"{max(free, 0)}-{self.layer_count - 1}. Edit the window or choose another model."
                )
            free = window.last + 1
        if self.layers_left < 1:
            raise PlanError("The plan leaves no layer. Keep at least one.")

    def __str__(self) -> str:
        return f"windows {', '.join(map(str, self.windows)) or 'none'}, rule {self.rule}"

    @property
    def layers_left(self) -> int:
        """Number of layers in the merged model."""
        return self.layer_count - sum(len(window) - 1 for window in self.windows)

    @property
    def worth_layers(self) -> float:
        """The remaining layers' weights, counted in whole layers of the original."""
        return self.layers_left * (1 - self.width.ratio)

    def kept_layers(self) -> tuple[Window, ...]:
        """The window behind each layer of the merged model, lowest first; an unmerged layer is a window of one."""
        by_first = {window.first: window for window in self.windows}
        kept: list[Window] = []
        layer = by_first[-1].last + 1 if -1 in by_first else 0
        while layer < self.layer_count:
            window = by_first.get(layer, Window(layer, layer))
            kept.append(window)
            layer = window.last + 1
        return tuple(kept)

    def base_layers(self) -> tuple[int, ...]:
        """The original layer that supplies each merged model layer's norms and attributes, lowest first."""
        return tuple(base_layer(window, self.rule) for window in self.kept_layers())

    def out_of_place(self, kinds: Sequence[str]) -> list[int]:
        """Layers of the merged model that are of another kind than the original's layers there; none without kinds.

        Args:
            kinds: of each layer of the original, or empty.
        """
        kept = [kinds[layer] for layer in self.base_layers()] if kinds else []
        return [layer for layer, kind in enumerate(kept) if kind != kinds[layer]]

    def lost(self, needed: Needed) -> Collection[int]:
        """The first of some sets of layers of which the plan leaves none; empty if there is no such set."""
        left = set(self.base_layers())
        return next((group for group in needed if not left.intersection(group)), ())

    def check_keeps(self, needed: Needed, model: str) -> None:
        """Raise PlanError if the plan leaves none of the layers of which one is needed.

        Args:
            needed: as from `planners.needed.needed_layers`.
            model: what to call the model.
        """
        if lost := self.lost(needed):
            few = sorted(lost)[:FEW_LAYERS]
            some = f"one of the layers {', '.join(map(str, few))}" if len(few) > 1 else f"layer {few[0]}"
            raise PlanError(
                f"The smaller model could not be used: {model} needs {some}{', …' * (len(lost) > len(few))} to write "
                f"text, and the plan {'keeps none of them' if len(few) > 1 else 'does not keep it'}. Take "
                f"{'one of them' if len(few) > 1 else 'it'} out of the windows."
            )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON: `layer_count`, `layers_left`, `windows` as [first, last], `rule`, `width` if it is cut."""
        return {
            "layer_count": self.layer_count,
            "layers_left": self.layers_left,
            "windows": pairs(self.windows),
            "rule": self.rule,
            **({"width": asdict(self.width)} if self.width.ratio else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MergePlan:
        """The plan that `to_dict` wrote; raises PlanError or SettingsError if the data are invalid."""
        width = WidthCut(**data["width"]) if "width" in data else WHOLE_WIDTH
        return cls(int(data["layer_count"]), windows_from(data["windows"]), str(data["rule"]), width)


def base_layer(window: Window, rule: str) -> int:
    """The layer of a window that supplies the merged layer's norms, attention type and other attributes."""
    return window.last if MERGE_RULES[rule].base == "last" else window.first


def pairs(windows: Iterable[Window]) -> list[list[int]]:
    """Windows as JSON: [first, last] each, both ends included."""
    return [[window.first, window.last] for window in windows]


def windows_from(pairs: Iterable[Iterable[int]]) -> tuple[Window, ...]:
    """Windows from (first, last) pairs, sorted from the lowest."""
    return tuple(sorted(Window(*(int(end) for end in pair)) for pair in pairs))


def parse_windows(text: str) -> tuple[Window, ...]:
    """Windows written by hand, as in "27-28,25-26"; any order, both ends included; -1 is the embedding.

    Raises:
        PlanError: if a part is not two numbers with a hyphen between them.
    """
    pairs = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(-1|\d{1,4})\s*-\s*(\d{1,4})", part)
        if not match:
            raise PlanError(
                f"'{part[:40]}' is not a window. Write first and last layer with a hyphen, both included, "
                "and commas between windows, as in 27-28,25-26."
            )
        pairs.append((int(match[1]), int(match[2])))
    return windows_from(pairs)


def dropped_plan(layer_count: int, dropped: Iterable[int]) -> MergePlan:
    """The plan that drops these layers and keeps all others unchanged.

    Raises:
        PlanError: if all layers are dropped.
    """
    removed = set(dropped)
    # A run of dropped layers forms a window with the kept layer next to it: the one below, or the one above if layer 0
    # is dropped. If the last layer is dropped as well, the lowest run's window starts at the embedding (-1).
    keeper = 1 if 0 in removed and layer_count - 1 not in removed else -1
    windows: list[Window] = []
    for layer in sorted(removed):
        window = Window(layer + min(keeper, 0), layer + max(keeper, 0))
        if windows and (layer - 1 in removed):
            window = Window(windows.pop().first, window.last)
        windows.append(window)
    return MergePlan(layer_count, tuple(windows), "keep_first" if keeper < 0 else "keep_last")


def layers_at(ratio: float, layer_count: int) -> int:
    """Layers left after removing a share of them, at least one; raises SettingsError unless 0 <= ratio < 1."""
    if not 0 <= ratio < 1:
        raise SettingsError(f"--ratio {ratio} is out of range. Choose 0 or more, and less than 1.")
    return max(1, round(layer_count * (1 - ratio)))


def check_layers(layers: int, layer_count: int) -> None:
    """Raise SettingsError unless a search can reduce a model of `layer_count` layers to `layers`."""
    if layer_count <= 2:
        raise SettingsError(
            f"--layers {layers}: the search cannot remove a layer from a {layer_count}-layer model. Merge layers by "
            "hand with --windows 0-1, or choose a larger model."
        )
    if not 2 <= layers <= layer_count:
        raise SettingsError(
            f"--layers {layers} is out of range: the model has {layer_count} layers. Choose 2 to {layer_count}."
        )


def trained_layers(plan: MergePlan, adapt: str) -> list[int]:
    """The layers of the merged model that are trained.

    Args:
        adapt: "all", "last", "above" (from two layers below the lowest merged one upward), or else merged layers and
            their neighbours.
    """
    all_layers = range(plan.layers_left)
    if adapt == "last":
        return list(all_layers[-LAST:])
    merged = [new for new, window in enumerate(plan.kept_layers()) if len(window) > 1]
    if adapt == "all" or not merged or plan.windows[0].first < 0:  # lowest layers dropped: every input changes
        return list(all_layers)
    if adapt == "above":
        return [layer for layer in all_layers if layer >= merged[0] - 2]
    return [layer for layer in all_layers if any(abs(layer - new) <= 1 for new in merged)]
