"""What can be refused without a model is refused at once: nothing heavy is imported for it."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from swm.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, sorted({"torch", "transformers", "peft", "lm_eval"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("plan example-demo --threshold 2", "Threshold 2.0 is out of range"),
        ("search example-demo --rule chess", "'chess' is not a merge rule"),
        ("measure example-demo --metric chess", "'chess' is not a similarity metric"),
        ("create É --model x", "is not a valid name"),
        ("answer nope baseline --prompt x", "There is no experiment nope"),
        ("evaluate nope baseline", "There is no experiment nope"),
        ("time nope baseline", "There is no experiment nope"),
        (
            "plan example-demo --threshold 0.9 --planner best",
            "--planner chooses the layers itself",
        ),
        ("plan example-demo --planner best --layers 9 --minutes 1e9", "--minutes 1e+09 is out of range"),
        ("plan example-demo --windows -1-0,4-5 --rule keep_first --precision exact", "--windows needs none"),
        ("models --json", ""),
    ],
)
@pytest.mark.cold
def test_it_takes_no_torch_to_say_so(command, message, home):
    environment = {**os.environ, "SWM_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command.split()], capture_output=True, text=True, env=environment
    )
    assert message in done.stderr
    if message:
        assert done.stdout.strip() == "1 []"
    assert "Traceback" not in done.stderr
