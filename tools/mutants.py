"""Mutation tests: change one small thing in an engine module at a time, and see whether the fast tests fail.

    pip install --no-deps mutmut==3.8.1 libcst setproctitle     # for its operators; not a requirement of the project
    python tools/mutants.py search/walk [search/find ...] [--sample 60]      # the package may be omitted: walk

Works on a copy of the project. Prints every mutant that survives, and one line per module. The operators are mutmut's,
also applied to decorated functions, plus negated conditions. Error messages are not mutated. A mutant takes about 10 s.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The fast tests of each module: swm/<module>.py, tests/<test>.py.
TESTS = {
    "evaluation/paired": ("evaluation/test_paired", "evaluation/test_continuous", "reporting/test_differences"),
    "merging/apply": ("merging/test_gaps_merge", "merging/test_apply", "models/test_layer_facts"),
    "models/layer_facts": ("models/test_gaps_layer_facts", "models/test_layer_facts"),
    "models/replay": ("models/test_gaps_replay", "models/test_replay", "product/test_differential"),
    "models/save": ("models/test_save", "models/test_load", "models/test_layer_facts"),
    "plan": ("test_gaps_plan", "test_plan", "search/test_find"),
    "search/find": ("search/test_gaps_search", "search/test_find", "search/test_apart", "product/test_differential"),
    "search/threshold_path": ("search/test_threshold_path", "search/test_find", "product/test_differential"),
    "search/walk": ("search/test_walk", "search/test_find"),
    "search/window_score": ("search/test_window_score", "models/test_replay", "product/test_differential"),
    "similarity/layers": ("similarity/test_gaps_similarity", "similarity/test_layers", "product/test_differential"),
    "workspace/changes": ("workspace/test_changes", "product/test_refusals"),
    "workspace/records": ("workspace/test_records",),
}
LEFT_OUT = "not (bundled or apart)"
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__", "docs", ".*_cache")


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        for module in options.modules:
            file = ROOT / "swm" / f"{module}.py"
            if not survives(copy, module, file.read_text(encoding="utf-8")):  # else every mutant would seem killed
                sys.exit(f"The tests of {module} fail without any change. Run them: {' '.join(tests_of(module))}")
            mutants = list(mutants_of(file))
            sample = random.Random(f"swm {module}").sample(mutants, min(options.sample, len(mutants)))
            survivors = [code for code in sample if survives(copy, module, code)]
            for code in survivors:
                print(difference(module, code))
            killed = len(sample) - len(survivors)
            print(f"{module}: {killed} of {len(sample)} mutants killed (sampled from {len(mutants)})", flush=True)


def mutants_of(file: Path) -> Iterator[str]:
    """The file's code with one change, for every possible change."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
    from mutmut.mutation.file_mutation import MutationVisitor, OuterFunctionProvider
    from mutmut.mutation.mutators import mutation_operators
    from mutmut.mutation.pragma_handling import IgnoredCode

    class Visitor(MutationVisitor):  # type: ignore[misc]
        METADATA_DEPENDENCIES = (PositionProvider, OuterFunctionProvider, ParentNodeProvider)

        def _skip_node_and_children(self, node: Any) -> bool:
            if isinstance(node, cst.FunctionDef) and node.decorators:
                return False
            return isinstance(node, cst.Raise) or bool(super()._skip_node_and_children(node))

    def negated(node: Any) -> Iterator[Any]:
        test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))

    code = file.read_text(encoding="utf-8")
    visitor = Visitor([*mutation_operators, (cst.If, negated), (cst.While, negated)], IgnoredCode(set(), set(), set()))
    module = MetadataWrapper(cst.parse_module(code)).visit(visitor)
    for mutation in visitor.mutations:
        changed = module.deep_replace(mutation.original_node, mutation.mutated_node).code
        if changed != code:
            yield changed


def tests_of(module: str) -> list[str]:
    """The module's test files, as paths in the project."""
    return [f"tests/{name}.py" for name in TESTS[module]]


def survives(copy: Path, module: str, code: str) -> bool:
    """Whether the module's tests pass with the changed code."""
    target = copy / "swm" / f"{module}.py"
    original = target.read_text(encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", LEFT_OUT]
    environment = {**os.environ, "SWM_TESTS": "mutants", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    target.write_text(code, encoding="utf-8")
    try:
        done = subprocess.run(
            [*command, *tests_of(module)], cwd=copy, env=environment, capture_output=True, timeout=180
        )
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        target.write_text(original, encoding="utf-8")


def difference(module: str, code: str) -> str:
    from difflib import unified_diff

    original = (ROOT / "swm" / f"{module}.py").read_text(encoding="utf-8")
    lines = unified_diff(original.splitlines(), code.splitlines(), module, "survived", lineterm="", n=1)
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", type=module_named, metavar="MODULE", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--sample", type=int, default=60, help="mutants per module")
    return parser.parse_args()


def module_named(name: str) -> str:
    """The module of that name, with or without its package."""
    for module in TESTS:
        if name in (module, module.rpartition("/")[2]):
            return module
    raise argparse.ArgumentTypeError(f"unknown module '{name}' (choose from {', '.join(TESTS)})")


if __name__ == "__main__":
    main()
