"""The rules of ARCHITECTURE.md: who may import whom, where each heavy library lives, how long things are."""

import ast
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "lm_eval", "datasets", "accelerate"}
ONLY_IN = {
    "peft": "healing",
    "datasets": "texts",
    "lm_eval": "evaluation",
    "streamlit": None,
    "ray": "jobs",
}
# Left may import right, never back; those in one row may not import each other.
ORDER = [
    ["cli"],
    ["studies"],
    ["stages"],
    ["jobs"],
    ["planners", "reporting"],
    ["healing", "evaluation", "llama_cpp"],
    ["search"],
    ["workspace"],
    ["merging", "similarity"],
    ["models", "texts"],
    ["disk"],
    ["settings"],
    ["plan"],
    ["registry", "checked"],
    ["progress"],
    ["errors"],
]
FILES = sorted((ROOT / "swm").rglob("*.py"))
SHOWN = [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]
MODULES = [file for file in FILES if not file.stem.startswith("__")]


def names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imported(file, when_it_runs=False):
    """Names of all that a file imports; with `when_it_runs` less what is imported for types alone."""
    tree = ast.parse(file.read_text())
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for node in typing for inner in ast.walk(node)} if when_it_runs else set()
    return {name for node in ast.walk(tree) if id(node) not in skipped for name in names(node)}


def tops(file):
    return {name.split(".")[0] for name in imported(file)}


def dotted(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def room(module):
    return module.split(".")[1]


def functions(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node, node.end_lineno - node.lineno + 1


def nesting(node, depth=0):
    """How many blocks stand in one another, elif counted as if."""
    deepest = depth
    for inner in ast.iter_child_nodes(node):
        elif_ = isinstance(node, ast.If) and node.orelse == [inner] and isinstance(inner, ast.If)
        block = isinstance(inner, (ast.If, ast.For, ast.While, ast.With, ast.Try)) and not elif_
        own = isinstance(inner, (ast.FunctionDef, ast.ClassDef, ast.Lambda))
        deepest = max(deepest, nesting(inner, 0 if own else depth + block))
    return deepest


def test_pages_import_nothing_heavy():
    assert len(SHOWN) > 8
    assert {file.name: tops(file) & HEAVY for file in SHOWN if tops(file) & HEAVY} == {}


def test_engine_imports_no_page():
    assert len(FILES) > 100
    assert [file.name for file in FILES if tops(file) & {"pages", "app"}] == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_lives_in_one_room(library):
    assert {room(dotted(file)) for file in FILES if library in tops(file)} == {ONLY_IN[library]} - {None}


def test_imports_point_one_way():
    level = {name: place for place, row in enumerate(ORDER) for name in row}
    assert {room(dotted(file)) for file in MODULES} == set(level)
    wrong = []
    for file in MODULES:
        own = room(dotted(file))
        for name in imported(file, when_it_runs=True):
            if (
                name.startswith("swm.")
                and room(name) in level
                and room(name) != own
                and level[room(name)] <= level[own]
            ):
                wrong.append(f"{dotted(file)} imports {name}")
    assert sorted(wrong) == []


def test_no_module_imports_itself_by_others():
    modules = {dotted(file) for file in MODULES}
    imports = {dotted(file): imported(file, when_it_runs=True) & modules for file in MODULES}
    done, rings = set(), []

    def visit(module, way):
        if module in way:
            rings.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(imports[module]):
                visit(other, [*way, module])
            done.add(module)

    for module in sorted(modules):
        visit(module, [])
    assert rings == []


def test_every_file_stands_in_a_room_that_says_what_it_is_for():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    at_top = {file.stem for file in (ROOT / "swm").glob("*.py")}
    assert len(at_top) - 1 <= 8  # besides __init__
    for file in MODULES:
        assert ast.get_docstring(ast.parse(file.read_text())), file
        if file.parent.parent.parent == ROOT / "swm":  # one entry of a registry each, which docs/ have to name
            continue
        told = (
            text
            if file.parent == ROOT / "swm"
            else ast.get_docstring(ast.parse((file.parent / "__init__.py").read_text()))
        )
        assert re.search(rf"\b{file.stem}\b", told), f"{file} is not named in its room"
        assert re.search(rf"`?\b{file.stem}\b", text), f"{file} is not named in ARCHITECTURE.md"


def test_files_functions_and_blocks_are_short():
    lengths = [length for file in [*FILES, *SHOWN] for _, length in functions(file)]
    assert {file.name: n for file in [*FILES, *SHOWN] if (n := len(file.read_text().splitlines())) > 400} == {}
    assert max(lengths) <= 60
    assert sum(length < 30 for length in lengths) / len(lengths) > 0.9
    deep = [
        f"{file.name}: {node.name}" for file in [*FILES, *SHOWN] for node, _ in functions(file) if nesting(node) > 4
    ]
    assert deep == []


def test_every_public_function_says_what_comes_out():
    silent = []
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
            public = [one for one in [node, *inside] if isinstance(one, (ast.FunctionDef, ast.ClassDef))]
            silent += [
                f"{file.name}: {one.name}" for one in public if one.name[0] != "_" and not ast.get_docstring(one)
            ]
    assert silent == []


def test_these_measures_see_what_is_wrong():
    tree = ast.parse("def f():\n for a in b:\n  if c:\n   pass\n  elif d:\n   with e:\n    while g:\n     pass\n")
    assert nesting(tree.body[0]) == 4
    assert [a for a, b in pairwise([["x"], *ORDER]) if a == b] == []


@pytest.mark.cold
def test_opening_every_page_loads_no_torch():
    code = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        "from pathlib import Path\n"
        "test = AppTest.from_file('app.py', default_timeout=60).run()\n"
        "for page in sorted(Path('pages').glob('*.py')):\n"
        "    test.switch_page(str(page)).run()\n"
        "    assert not test.exception, (page, test.exception)\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"
