"""The command-line parser: commands, their arguments and help texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swm import __version__
from swm.checked import choices
from swm.disk.names import EXAMPLE
from swm.errors import SettingsError
from swm.plan import DEFAULT_RULE, WIDTH_METHODS
from swm.registry import ABILITIES, ABILITY_GROUPS, EXPORT_FORMATS, MERGE_RULES, METRICS, PLANNERS, TEXTS
from swm.settings import (
    CACHE_TOKENS,
    DEFAULT_THRESHOLD,
    GGUF_TYPES,
    PRECISIONS,
    PRESET_HELP,
    SETTINGS,
    SKIPPED_TOKENS,
    RecoverySettings,
    changed_setting,
)
from swm.similarity.measure import PARTS, SAMPLES
from swm.studies.grids import KINDS

Add = Callable[..., argparse.ArgumentParser]  # adds a command: name, help, names of its arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="python -m swm",
        description="See which layers of a language model are redundant, merge them, heal the smaller model.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help_text: str, *names: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        for argument in names:
            command.add_argument(argument.lower(), metavar=argument)
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        return command

    _add_exploring(add)
    _add_running(add)
    _add_showing(add)
    return parser


def _add_exploring(add: Add) -> None:
    add("models", "List the models that load offline, and say how to name others.")
    add("list", "List experiments and their runs.")
    command = add("create", "Create an experiment from a model and a calibration text.", "EXP")
    _add_experiment(command)
    command.add_argument("--measure", action="store_true", help="then measure the similarity of its layers")
    command = add("measure", "Measure the similarity of all layer pairs.", "EXP")
    command.add_argument("--metric", default="cka", help=METRICS.help_text())
    command.add_argument("--part", default="output", help="; ".join(f"{name}: {text}" for name, text in PARTS.items()))
    samples = "; ".join(f"{name}: {text}" for name, text in SAMPLES.items())
    command.add_argument("--samples", default="tokens", help=samples)
    both = f"({SKIPPED_TOKENS}, then 0 to compare with)"
    command.add_argument("--skip", type=int, help=f"tokens to leave out at the start of each text {both}")
    command.add_argument(
        "--texts",
        default="",
        help="text to use instead of the experiment's, or the prompts of a task, as in task:boolq",
    )
    command = add("abilities", "Show what each layer does: how much worse the model answers without it.", "EXP")
    command.add_argument("run", nargs="?", metavar="RUN", help="show what this run's model lost instead")
    _add_abilities(command)
    command.add_argument(
        "--parts", action="store_true", help="also without each layer's attention and MLP: thrice as long"
    )
    _add_precision(command)
    command = add("search", "Find the plan for every threshold; resumes where it stopped.", "EXP")
    command.add_argument("--rule", default=DEFAULT_RULE, help=MERGE_RULES.help_text())
    command.add_argument("--from", dest="low", type=float, default=0.5, help="lowest threshold of interest (0.5)")
    _add_precision(command)
    command.add_argument(
        "--exact", action="store_const", dest="precision", const="exact", help="short for --precision exact"
    )
    command.add_argument("--focus", type=float, default=DEFAULT_THRESHOLD, help="threshold to compute first (0.9)")
    command.add_argument(
        "--no-answers",
        dest="answers",
        action="store_false",
        help="do not let each plan's model continue a few prompts, which runs last and takes a few seconds per plan",
    )
    _add_plan(
        add("plan", "Show which windows merge at a threshold or for a layer count, and how good a plan is.", "EXP")
    )


def _add_running(add: Add) -> None:
    command = add("merge", "Merge the windows of a plan into a smaller model.", "EXP", "RUN")
    _add_plan(command)
    _add_width(command)
    stream = "merge from disk to disk, without the model in memory; automatic when it does not fit there"
    command.add_argument("--stream", action="store_true", help=stream)
    _add_again(command)
    command = add("recover", "Heal a merged model with LoRA.", "EXP", "RUN")
    _add_recovery(command)
    _add_again(command)
    command = add("evaluate", "Measure the perplexity and zero-shot scores of a run.", "EXP", "RUN")
    command.add_argument("--tasks", default="all", help="all (the paper's seven), comma-separated names, or none")
    texts = (
        "comma-separated texts for perplexity: lambada, squad, wikitext, ptb, a file or a hub dataset (lambada,squad)"
    )
    command.add_argument("--texts", default="lambada,squad", help=texts)
    _add_limit(command, 100)
    command = add("time", "Measure latency, speed and memory of a run, in turn with the original.", "EXP", "RUN")
    command.add_argument("--tokens", type=int, default=32, help="tokens to generate (32)")
    client = "what runs the models: transformers, or llama.cpp on the CPU with GGUF files (see docs/export.md)"
    command.add_argument("--client", choices=("transformers", "llama.cpp"), default="transformers", help=client)
    command.add_argument(
        "--type", metavar="TYPE", help=f"type of both GGUF files, for llama.cpp (Q8_0): {', '.join(GGUF_TYPES)}"
    )
    command = add(
        "run", "Take a run from plan to scores: merge, evaluate, recover, evaluate again, time.", "EXP", "RUN"
    )
    _add_plan(command, required=False)
    _add_width(command)
    _add_recovery(command)
    _add_limit(command, 100)
    command.add_argument("--no-recovery", action="store_true", help="do not heal")
    _add_again(command)
    add(
        "control", "Heal the original model in the same way as a run, and evaluate it: the run's control.", "EXP", "RUN"
    )


def _add_showing(add: Add) -> None:
    kinds = " ".join(f"{kind}: {text}" for kind, text in KINDS.items())
    command = add("study", f"Run every method at several depths; resumes where it stopped. {kinds}", "EXP", "KIND")
    grid = "an edited copy of assets/studies.yaml (default: the study's last grid)"
    command.add_argument("--grid", type=Path, metavar="FILE", help=grid)
    against = "method to compare averages with, over the same documents (default: best, if it is in the study)"
    command.add_argument("--against", metavar="METHOD", help=against)
    command = add("sweep", "Run many runs from one file; finished ones are skipped. See assets/sweeps.", "FILE")
    executors = "local: one process per GPU, or one without; ray: one task per run on a Ray cluster (pip install ray)"
    command.add_argument("--executor", choices=("local", "ray"), default="local", help=executors)
    command.add_argument(
        "--workers", type=int, default=0, help="processes at once with --executor local (0: automatic)"
    )
    command.add_argument("--address", default="", help="address of the Ray cluster, as in auto or ray://head:10001")
    command.add_argument("--status", action="store_true", help="only show the state of each run")
    command = add(
        "estimate", "Estimate the memory, disk space and time of each stage, from the model's config alone.", "M"
    )
    command.add_argument("--ratio", type=float, default=0.2, help="share of the layers to remove (0.2)")
    command.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16 or float16")
    command.add_argument("--count", type=int, default=10, help="calibration texts (10)")
    command.add_argument("--length-of-texts", type=int, default=128, help="tokens per text (128)")
    command.add_argument(
        "--untimed", action="store_true", help="skip timing a layer of this shape on this machine; gives no times"
    )
    _add_recovery(command)
    _add_limit(command, 100)
    command = add("compare", "Show all runs side by side.", "EXP")
    command.add_argument("--csv", action="store_true", help="print comma-separated values")
    command = add("report", "Write the report: one self-contained HTML page.", "EXP")
    command.add_argument("--output", required=True, type=Path, metavar="FILE")
    _add_export(add)
    command = add("repeat", "Repeat a run from its recipe.json, in a new experiment.", "FILE")
    command.add_argument("--name", help="name of the new experiment (default: the recipe's)")
    command = add("answer", "Continue a prompt with a run's model.", "EXP", "RUN")
    command.add_argument("more", nargs="*", metavar="RUN", help="runs that answer next, with the original loaded once")
    command.add_argument("--prompt", required=True, help="text to continue")
    command.add_argument("--tokens", type=int, default=64, help="maximum number of tokens to generate (64)")
    for name, help_text in (("cancel", "Cancel the job"), ("delete", "Delete all files")):
        command = add(name, f"{help_text} of an experiment, or of one of its runs.", "EXP")
        command.add_argument("run", nargs="?", metavar="RUN")
    command = add("rename", "Rename an experiment, or one of its runs.", "EXP")
    command.add_argument("run", nargs="?", metavar="RUN")
    command.add_argument("--to", required=True, metavar="NAME", help="new name: lower-case letters, digits, hyphens")
    command = add("app", "Open the app in a browser.")
    command.add_argument("--port", type=int, help="port of the app (8501)")
    command.add_argument(
        "--demo", nargs="?", const=f"{EXAMPLE}demo", metavar="EXP", help="show one experiment, read-only (example-demo)"
    )
    command = add("demo", "Run every stage on the bundled model with small settings.")
    command.add_argument("--name", default="demo", help="name of the experiment (demo)")
    _add_limit(command, 30)
    command.add_argument("--steps", type=int, default=5, help="recovery steps (5)")


def _add_export(add: Add) -> None:
    command = add("export", "Export a run to a new folder or file.", "EXP", "RUN", "FOLDER")
    formats = f"default: by the suffix of the path, else transformers; {EXPORT_FORMATS.help_text()}"
    command.add_argument("--format", choices=list(EXPORT_FORMATS), metavar="FORMAT", help=formats)
    command.add_argument(
        "--type",
        metavar="TYPE",
        help=f"number format of a GGUF file: {', '.join(GGUF_TYPES)} (default: blocks that did not change are copied "
        f"from the GGUF file which the model came from, others are Q8_0; without such a file {GGUF_TYPES[0]})",
    )
    command.add_argument(
        "--without-attention",
        type=int,
        metavar="N",
        help="leave out the attention of the N layers that need it least, which then keep no keys and values (GGUF "
        "files of Llama and Mistral models)",
    )


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="bundled name, Hugging Face folder, .gguf file or hub id")
    texts = ", ".join(name for name, text in TEXTS.items() if "calibration" in text.purposes)
    command.add_argument("--texts", default="lambada", help=f"{texts}, a .txt or .jsonl file, or a hub dataset")
    command.add_argument("--count", type=int, default=10, help="calibration texts (10)")
    command.add_argument("--length", type=int, default=128, help="tokens per text (128)")
    command.add_argument("--seed", type=int, default=1234, help="determines which texts are drawn (1234)")
    command.add_argument("--dtype", default="auto", help="auto (the checkpoint's), float32, bfloat16 or float16")


def _add_plan(command: argparse.ArgumentParser, required: bool = True) -> None:
    group = command.add_mutually_exclusive_group(required=required)
    group.add_argument("--threshold", type=float, help="merge while similarity is at least this; above 0, at most 1")
    group.add_argument("--layers", type=int, help="layers to keep; takes the plan with the lowest perplexity")
    group.add_argument("--ratio", type=float, help="share of the layers to remove, as in 0.2")
    within = "smallest plan with at most this many times the original's perplexity, before healing, as in 1.2"
    group.add_argument("--within", type=float, help=within)
    group.add_argument("--loss", metavar="SHARE", help="the same as a share: 5%% is --within 1.05")
    group.add_argument("--memory", metavar="SIZE", help="most memory for weights and cache, as in 6GiB")
    group.add_argument("--speedup", type=float, help="least expected speed relative to the original, as in 1.3")
    group.add_argument("--parameters", metavar="NUMBER", help="most parameters, as in 5.5B or 120M")
    windows = "windows to merge, first and last layer included, as in 27-28,25-26; -1-0 drops layer 0"
    group.add_argument("--windows", help=windows)
    cached = f"tokens whose keys and values --memory counts: length times batch ({CACHE_TOKENS:,})"
    command.add_argument("--cache-tokens", type=int, help=cached)
    command.add_argument(
        "--planner",
        choices=list(PLANNERS),
        metavar="PLANNER",
        help=f"needs a target: all of these but --threshold and --windows; {PLANNERS.help_text()}",
    )
    command.add_argument("--budget", type=int, help="maximum number of plans that --planner best tries (400)")
    minutes = "about how long --planner best searches, in place of --budget; the plan then depends on the machine"
    command.add_argument("--minutes", type=float, help=minutes)
    period = (
        "let --planner remove only what keeps the order of kinds of layers that llama.cpp expects (Gemma 2 and 3, "
        "SmolLM3; no effect on others)"
    )
    command.add_argument("--keep-period", action="store_true", help=period)
    keep = (
        "let --planner judge plans by abilities instead of by perplexity, as in code,reading or code=2,reading=1; see "
        "swm abilities --help"
    )
    command.add_argument("--keep", metavar="ABILITIES", help=keep)
    rules = f"{', '.join(MERGE_RULES)} (default: {DEFAULT_RULE}, or the planner's own)"
    command.add_argument("--rule", help=rules)
    _add_precision(command)


def _add_abilities(command: argparse.ArgumentParser) -> None:
    names = ", ".join(f"{name}: {ability.help}" for name, ability in ABILITIES.items())
    groups = ", ".join(ABILITY_GROUPS[:-1])
    help_text = (
        f"quick (six of them), all, or comma-separated: groups ({groups}), abilities ({names}), or a .jsonl file of "
        "your own with prompt and answer in each line (quick)"
    )
    command.add_argument("--abilities", default="quick", help=help_text)
    command.add_argument("--requests", type=int, help="requests for each ability (quick: 10, others: 40)")


def _add_precision(command: argparse.ArgumentParser) -> None:
    help_text = (
        "precision of similarities: auto (bfloat16 if faster, saved with the path), exact (the model's) or bfloat16"
    )
    command.add_argument("--precision", choices=PRECISIONS, default="auto", help=help_text)


def _add_width(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--width", type=float, default=0.0, help="share of the remaining layers' weights to prune by width (0)"
    )
    methods = "; ".join(f"{name}: {text}" for name, text in WIDTH_METHODS.items())
    command.add_argument("--width-by", help=f"how to prune width (default: flap); {methods}")


def _add_limit(command: argparse.ArgumentParser, limit: int) -> None:
    help_text = f"documents per task ({limit}), or none for all"
    command.add_argument("--limit", type=_number_or_none, default=limit, help=help_text)


def _add_again(command: argparse.ArgumentParser) -> None:
    command.add_argument("--again", action="store_true", help="start over, replacing the run's model and results")


def _number_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def _add_recovery(command: argparse.ArgumentParser) -> None:
    """Add the settings of healing; all but the first are given to --set, or as options of their own."""
    presets = "; ".join(f"{name}: {text}" for name, text in PRESET_HELP.items())
    command.add_argument("--preset", default="quick", help=presets)
    command.add_argument("--steps", type=int, help=f"training steps (quick: {RecoverySettings().steps})")
    allowed = {name: choices(RecoverySettings, name) for name in SETTINGS if name != "steps"}
    values = {name: "|".join(found) or getattr(RecoverySettings(), name) for name, found in allowed.items()}
    names = ", ".join(f"{name}={value}" for name, value in values.items())
    command.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help=f"another setting, also as --name value; can be repeated; with what quick has: {names}",
    )
    assert isinstance(command, Parser)
    command.heals = True


class Parser(argparse.ArgumentParser):
    """A parser that takes a setting of healing as an option of its own, too: `--rank 8` is `--set rank=8`."""

    heals = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, after rewriting settings of healing."""
        return super().parse_known_args(self._as_settings(args) if self.heals else args, namespace)

    def _as_settings(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with each `--rank 8`, `--rank=8` or `--ran 8` of a setting of healing as `--set rank=8`."""
        own = [name for name in self._option_string_actions if name.startswith("--")]
        settings = {f"--{name.replace('_', '-')}": name for name in SETTINGS if name != "steps"}
        given: list[str] = []
        words = list(arguments)
        while words:
            option, found, value = words[0].partition("=")
            fitting = [name for name in (*settings, *own) if name.startswith(option)] if len(option) > 2 else []
            fitting = [option] if option in fitting else fitting
            if not option.startswith("--") or not {*fitting} & {*settings}:
                given.append(words.pop(0))
                continue
            if len(fitting) > 1:
                self.error(f"ambiguous option: {option} could match {', '.join(fitting)}")
            words.pop(0)
            if not found and (not words or words[0].startswith("--")):
                self.error(f"argument {fitting[0]}: expected one argument")
            given += ["--set", f"{settings[fitting[0]]}={value if found else words.pop(0)}"]
        return given


def _setting(text: str) -> tuple[str, Any]:
    try:
        return changed_setting(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
