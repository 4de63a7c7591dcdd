"""The wheel, installed into a folder of its own: commands work there, and the app opens with its pages and examples."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.running import wait_for_answer

pytestmark = pytest.mark.apart
ROOT = Path(__file__).parents[2]
OPEN_PAGES = """
from pathlib import Path
from streamlit.testing.v1 import AppTest
import os, swm

folder = Path(swm.__file__).parent / "app_files"
os.chdir(folder)
pages = sorted(page.relative_to(folder) for page in folder.glob("pages/*.py"))
test = AppTest.from_file("app.py", default_timeout=60).run()
for page in pages:
    test.switch_page(str(page)).run()
    assert not test.exception, (page, test.exception)
print(len(pages))
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder with nothing but what the wheel installs."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*cache*", ".venv", ".git", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)  # building writes beside the sources
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for step in (
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)],
        [
            *pip,
            "install",
            "--no-deps",
            "--target",
            str(folder / "site"),
            "--no-index",
            "--find-links",
            str(folder),
            "swm-studio",
        ],
    ):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder / "site"


@pytest.fixture
def run(installed, home, tmp_path):
    """Runs Python in an empty folder with the installed package in place of ours."""
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "SWM_HOME": str(home),
        "STREAMLIT_SERVER_HEADLESS": "true",
    }

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=empty,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_the_command_line_finds_the_examples_that_ship(run, installed):
    done = run("-m", "swm", "list")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert "example-demo" in out
    assert (installed / "swm" / "app_files" / "pages" / "preview.py").is_file()
    assert (installed / "swm" / "reporting" / "templates" / "report.html").is_file()
    assert not list(installed.rglob("tests"))


def test_every_page_opens(run):
    done = run("-c", OPEN_PAGES)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err[-2000:]
    assert int(out.splitlines()[-1]) == len(list((ROOT / "pages").glob("*.py")))


def test_the_app_answers(run, free_port):
    app = run("-m", "swm", "app", "--port", str(free_port))
    try:
        wait_for_answer(f"http://127.0.0.1:{free_port}/_stcore/health")
        assert app.poll() is None
    finally:
        app.terminate()
        app.communicate(timeout=20)
