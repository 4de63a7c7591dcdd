"""The rules of ARCHITECTURE.md: who may import whom, and which heavy library lives in which module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "peft", "lm_eval", "datasets", "accelerate"}
ONLY_IN = {"peft": "recover", "datasets": "texts", "lm_eval": "evaluate"}
# Left may import right, never back.
ORDER = [
    ["cli"],
    ["pipeline", "study", "workers"],
    ["sweep"],
    ["planning"],
    ["stages"],
    ["answers"],
    ["recover", "evaluate", "timing", "report", "study_rows"],
    ["recipe", "distill", "study_charts", "reruns"],
    ["scoring", "compare", "charts", "jobs", "planners", "width"],
    ["similarity", "fit", "experiments", "view"],
    ["windows"],
    ["replay", "gradients", "stream"],
    ["merge"],
    ["layer_facts"],
    ["models", "texts", "search"],
    ["path"],
    ["walk"],
    ["options"],
    ["sources"],
    ["saving"],
    ["decoder", "estimate"],
    ["grids"],
    ["names"],
    ["tracked"],
    ["schemas", "states"],
    ["presets"],
    ["placement"],
    ["machine", "parallel"],
    ["files", "plan", "metrics", "paired"],
    ["errors"],
]


def imported(file):
    """(module, only for types or inside a function) of every import in a file."""
    tree = ast.parse(file.read_text())
    return {name for node in ast.walk(tree) for name in names(node)}


def names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def tops(file):
    return {name.split(".")[0] for name in imported(file)}


def test_pages_import_nothing_heavy():
    files = [ROOT / "app.py", *(ROOT / "pages").rglob("*.py")]
    assert len(files) > 8
    assert {file.name: tops(file) & HEAVY for file in files if tops(file) & HEAVY} == {}


def test_engine_imports_no_page():
    files = list((ROOT / "swm").glob("*.py"))
    assert len(files) > 15
    assert [file.name for file in files if tops(file) & {"streamlit", "pages", "app"}] == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_heavy_library_lives_in_one_module(library):
    users = {file.stem for file in (ROOT / "swm").glob("*.py") if library in tops(file)}
    # scoring.py is a part of evaluate.py: the lm-eval model class.
    assert users - {"scoring"} == {ONLY_IN[library]}


def test_imports_point_one_way():
    level = {module: i for i, modules in enumerate(ORDER) for module in modules}
    files = [file for file in (ROOT / "swm").glob("*.py") if not file.stem.startswith("__")]
    assert {file.stem for file in files} == set(level)
    wrong = []
    for file in files:
        for name in imported(file):
            target = name.removeprefix("swm.").split(".")[0]
            if name.startswith("swm.") and target in level and target != file.stem:
                allowed = level[target] > level[file.stem] or {file.stem, target} == {"cli", "pipeline"}
                wrong += [] if allowed else [f"{file.stem} imports {target}"]
    assert sorted(set(wrong)) == []


def test_opening_every_page_loads_no_torch():
    code = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        "from pathlib import Path\n"
        "for page in sorted(Path('pages').glob('*.py')):\n"
        "    test = AppTest.from_file('app.py', default_timeout=60).run().switch_page(str(page)).run()\n"
        "    assert not test.exception, (page, test.exception)\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"
