"""Change the engine in one small place at a time, and see whether the fast tests notice.

    pip install --no-deps mutmut==3.8.1 libcst setproctitle     # its operators; not a requirement of the project
    python tools/mutants.py walk search [--sample 60]

A copy of the project is changed, never the project. Prints each survivor and a line for each module. The operators are
mutmut's, for decorated functions too, and negated conditions. Texts of errors are left alone. A mutant takes some 10 s.
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
# The fast tests of each module; those of test_gaps_<module>.py are added.
TESTS = {
    "walk": ("search",), "search": ("search", "differential"), "path": ("search", "differential"),
    "windows": ("replay", "differential"), "replay": ("replay", "differential"),
    "merge": ("merge", "layer_facts"), "similarity": ("similarity", "differential"), "paired": ("paired",),
    "layer_facts": ("layer_facts",), "saving": ("models", "layer_facts"), "plan": ("plan", "search"),
    "reruns": ("refusals",), "schemas": ("schemas",),
}  # fmt: skip
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__", "docs", ".*_cache")


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        for module in options.modules:
            every = list(mutants_of(ROOT / "swm" / f"{module}.py"))
            chosen = random.Random(f"swm {module}").sample(every, min(options.sample, len(every)))
            survived = [code for code in chosen if survives(copy, module, code)]
            for code in survived:
                print(difference(module, code))
            killed = len(chosen) - len(survived)
            print(f"{module}: {killed} of {len(chosen)} killed, {len(every)} in all", flush=True)


def mutants_of(file: Path) -> Iterator[str]:
    """The file's text with one change each."""
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


def survives(copy: Path, module: str, code: str) -> bool:
    """Whether the module's tests pass on the changed code."""
    target = copy / "swm" / f"{module}.py"
    original = target.read_text(encoding="utf-8")
    files = [f"tests/test_{name}.py" for name in (f"gaps_{module}", *TESTS[module])]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not (bundled or alone)"]
    environment = {**os.environ, "SWM_TESTS": "mutants", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    target.write_text(code, encoding="utf-8")
    try:
        there = [file for file in files if (copy / file).is_file()]
        done = subprocess.run([*command, *there], cwd=copy, env=environment, capture_output=True, timeout=180)
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
    parser.add_argument("modules", nargs="+", choices=TESTS, metavar="MODULE")
    parser.add_argument("--sample", type=int, default=60)
    return parser.parse_args()


if __name__ == "__main__":
    main()
