"""What can be chosen by name: merge rules, planners, similarity metrics, texts, abilities, export formats.

Each entry is one file in its registry's package and registers itself there. An installed package adds its own through
the entry point group `swm.plugins`: each entry point names a module that registers on import. Files that register
import nothing heavy at module level, so that pages and the command line can list the choices quickly.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from swm.errors import UnknownNameError, first_line

if TYPE_CHECKING:
    from torch import Tensor

    from swm.plan import MergePlan
    from swm.planners.request import PlanRequest
    from swm.progress import Progress
    from swm.texts.example import Example
    from swm.texts.requests import Request
    from swm.workspace.runs import Run

PLUGINS = "swm.plugins"

log = logging.getLogger(__name__)


class Entry(Protocol):
    """What every registered entry declares: the name to type, a title for pages, one line of help."""

    @property
    def name(self) -> str:
        """The name to type."""

    @property
    def title(self) -> str:
        """The title that pages show."""

    @property
    def help(self) -> str:
        """One line of help: lower case, no full stop."""


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E], Generic[E]):
    """All entries of one kind by name: the `first` one, then the others alphabetically, then those of plugins.

    Its files are imported at first use, which may be in several threads at once: all of them wait until it is whole. No
    module may therefore read a registry while it is imported, except a plugin.
    """

    def __init__(self, kind: str, folder: str, first: str = "") -> None:
        self.kind, self._folder, self._first = kind, folder, first
        self._entries: dict[str, E] = {}  # replaced, never changed: others may be iterating over it
        self._plugin_of: dict[str, str] = {}  # the plugin that added an entry
        self._whole, self._writing = False, threading.Lock()

    def register(self, entry: E) -> E:
        """The entry itself, now registered under its name.

        Raises:
            ValueError: if another entry has that name.
        """
        with self._writing:
            if self._entries.get(entry.name, entry) != entry:
                raise ValueError(f"Two entries are named {entry.name} ({self.kind}). Rename one.")
            if entry.name not in self._entries and (plugin := _plugins.of_this_thread()):
                self._plugin_of[entry.name] = plugin
            self._entries = {**self._entries, entry.name: entry}
        return entry

    def check(self, name: str) -> E:
        """The entry of that name; raises UnknownNameError, listing the choices, if there is none."""
        if name not in self:
            raise UnknownNameError(f"'{name}' is not a {self.kind}. Choose one of: {', '.join(self)}.")
        return self[name]

    def help_text(self) -> str:
        """Every name with its line of help, for the command line."""
        return "; ".join(f"{name}: {entry.help}" for name, entry in self.items())

    def __getitem__(self, name: str) -> E:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, E]:
        if not self._whole:
            with _plugins.lock:
                if not self._whole:
                    self._import_built_in()
                    _plugins.load()
                    with self._writing:
                        self._entries = {name: self._entries[name] for name in sorted(self._entries, key=self._place)}
                    self._whole = _plugins.loaded
        return self._entries

    def _import_built_in(self) -> None:
        reader, _plugins.loading = _plugins.loading, ""  # a plugin may be reading: these entries are not its own
        try:
            package = importlib.import_module(self._folder)
            for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
                importlib.import_module(f"{self._folder}.{module}")
        finally:
            _plugins.loading = reader

    def _place(self, name: str) -> tuple[bool, bool, str]:
        added = name in self._plugin_of
        return added, name != self._first, "" if added else name  # those of plugins as they come

    def forget_plugin(self, plugin: str) -> None:
        """Remove what a plugin registered."""
        with self._writing:
            added = {name for name, source in self._plugin_of.items() if source == plugin}
            self._entries = {name: entry for name, entry in self._entries.items() if name not in added}
            self._plugin_of = {name: source for name, source in self._plugin_of.items() if name not in added}


class _Plugins:
    """What installed packages add, loaded once in a process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # one for all registries: loading a plugin fills several
        self.loaded, self.loading, self._thread = False, "", 0

    def of_this_thread(self) -> str:
        """The plugin that this thread is loading; empty if it is none, or another thread does."""
        return self.loading if self._thread == threading.get_ident() else ""

    def load(self) -> None:
        """Load each plugin; one that fails is left out whole, with one line in the log. Only with the lock."""
        if self.loaded or self.loading:  # a plugin may read the registries
            return
        for plugin in entry_points(group=PLUGINS):
            self.loading, self._thread = plugin.name, threading.get_ident()
            try:
                plugin.load()
            except Exception as error:  # somebody else's code, which must not take this program down
                for registry in (MERGE_RULES, PLANNERS, METRICS, TEXTS, ABILITIES, EXPORT_FORMATS):
                    registry.forget_plugin(plugin.name)
                log.warning(
                    "Plugin %s (%s) was left out, because it failed: %s: %s Update or uninstall it.",
                    plugin.name, plugin.value, type(error).__name__, first_line(error),
                )  # fmt: skip
            finally:
                self.loading = ""
        self.loaded = True


_plugins = _Plugins()


def as_sentence(help_text: str) -> str:
    """A line of help as a sentence, for pages."""
    return f"{help_text[0].upper()}{help_text[1:]}."


@dataclass(frozen=True)
class MergeRule:
    """How a window of layers becomes one.

    Attributes:
        combine: computes one parameter of the merged layer from that parameter of each layer in the window, lowest
            first, in float32. It gets a block of rows at a time, so it must work row by row, and it must not change its
            inputs: they may be the model's own weights. None: nothing is combined, the base layer stays unchanged.
        base: "first" or "last": the layer of the window that supplies the merged layer's norms and other attributes.
        needs_text: the merged layer is computed from the layers' outputs on text, not from the weights alone.
    """

    name: str
    title: str
    help: str
    combine: Callable[[Sequence[Tensor]], Tensor] | None = None
    base: str = "first"
    needs_text: bool = False


@dataclass(frozen=True)
class Planner:
    """A method that chooses which layers to remove.

    Attributes:
        source: the method with its publication, as exported models cite it; a word such as "chance" without one.
        find: the plan for a request, with exactly `request.layers` layers left; raises PlanError if there is none.
        whole_model: needs the whole model on one device, for gradients or to fit layers.
        least_budget: fewest plans it must try, given (layers of the model, layers left); None if it takes no budget.
        tokens_read: how many tokens the whole model reads at most, given (layers of the model, layers left, budget,
            tokens of the calibration text), from which the time is estimated; None if that depends on the model.
        samples: its losses are estimated from a sample of a large vocabulary, see `search.vocabulary`.
        keeps: tries plans, which it can judge by abilities instead of by perplexity.
        halves: so quick that it also chooses on each half of the text, which shows how much depends on the text.
    """

    name: str
    title: str
    help: str
    source: str
    find: Callable[[PlanRequest], MergePlan]
    whole_model: bool = False
    least_budget: Callable[[int, int], int] | None = None
    tokens_read: Callable[[int, int, int, int], float] | None = None
    samples: bool = False
    keeps: bool = False
    halves: bool = False


@dataclass(frozen=True)
class Metric:
    """A measure of how similar layers are.

    Attributes:
        products: called once per measurement; gives a function from a block of states (layers, samples, width; of any
            float dtype) to a matrix (layers, layers), float64. The matrices of all blocks are added, divided as `mean`
            says, made symmetric, and get ones on the diagonal.
        mean: divide the sums by the number of samples; otherwise by the square root of both layers' own sums, as in
            CKA.
        warning: what is wrong with a measurement of (samples in a block, blocks, width); empty if nothing is.
        first_block_counts: `products` depends on the first block that it gets.
    """

    name: str
    title: str
    help: str
    products: Callable[[], Callable[[Tensor], Tensor]]
    mean: bool = False
    warning: Callable[[float, int, int], str] = lambda samples, blocks, width: ""
    first_block_counts: bool = False


@dataclass(frozen=True)
class TextSource:
    """A text that can be chosen by name.

    Attributes:
        purposes: those of "calibration", "perplexity" and "recovery" that it serves; for others the name is looked up
            on the hub.
        examples: its documents for a purpose; no document may serve two purposes.
        mix_with: another text to mix in when merged layers are fitted.
    """

    name: str
    title: str
    help: str
    purposes: frozenset[str]
    examples: Callable[[str], Iterable[Example]]
    mix_with: str = ""


@dataclass(frozen=True)
class Ability:
    """Something that a model can do, measured by requests.

    Attributes:
        group: one of ABILITY_GROUPS, with which abilities are shown together.
        requests: all of them; those of one group of documents never serve two purposes.
        quick: belongs to the quick look.
    """

    name: str
    title: str
    help: str
    group: str
    requests: Callable[[], Sequence[Request]]
    quick: bool = False


ABILITY_GROUPS = ("knowledge", "context", "reasoning", "code", "own")


@dataclass(frozen=True)
class ExportFormat:
    """A format for exporting a run: a text, which pages also offer for download, or files written to disk.

    Attributes:
        suffix: of the file, with its dot; empty for a folder. Selects the format when none is named.
        text: the content of the file for a run.
        write: writes a run, in one of `kinds` or None, to a path that does not exist yet; for formats that are more
            than one text.
        kinds: number formats that weights can be written in; None stands for `usual`.
        usual: what is written when none is chosen.
        fits: whether the format can express a run.
    """

    name: str
    title: str
    help: str
    suffix: str
    text: Callable[[Run], str] | None = None
    write: Callable[[Run, Path, str | None, Progress], None] | None = None
    kinds: tuple[str, ...] = ()
    usual: str = ""
    fits: Callable[[Run], bool] = lambda run: True


MERGE_RULES: Registry[MergeRule] = Registry("merge rule", "swm.merging.rules", first="rdsc")
PLANNERS: Registry[Planner] = Registry("planner", "swm.planners", first="best")
METRICS: Registry[Metric] = Registry("similarity metric", "swm.similarity.metrics", first="cka")
TEXTS: Registry[TextSource] = Registry("text", "swm.texts.sources", first="lambada")
ABILITIES: Registry[Ability] = Registry("ability", "swm.texts.abilities", first="facts")
EXPORT_FORMATS: Registry[ExportFormat] = Registry("export format", "swm.reporting.formats", first="transformers")
