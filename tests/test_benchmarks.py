"""Benchmarks and tools are run by hand and seldom: what they import from the project has to be there."""

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_script_imports_is_there(script):
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("swm", "pages", "tests"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}"), (
                    f"{node.module}.{name.name}"
                )


def test_modules_and_tests_of_the_mutation_tool_are_there(pytestconfig):
    from tools import mutants

    files = [ROOT / "swm" / f"{module}.py" for module in mutants.TESTS]
    files += [ROOT / test for module in mutants.TESTS for test in mutants.tests_of(module)]
    assert [file for file in files if not file.is_file()] == []
    left_out = set(mutants.LEFT_OUT.replace("(", " ").replace(")", " ").split()) - {"not", "or"}
    assert left_out <= {line.partition(":")[0] for line in pytestconfig.getini("markers")}
