"""Who gets in and what stays out: logins, secrets, pickles and code in models, names, links, other people's markup."""

import json
import os
import pickle
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pages.shared.frame import plain
from swm.cli.main import main
from swm.errors import SwmError
from swm.models.load import load_model
from swm.settings import ExperimentSettings
from swm.stages.create import create_experiment
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.state import State
from tests.pages.test_pages import PAGES, opened, texts

ROOT = Path(__file__).parents[2]
AUTH = {"auth": {"client_id": "swm", "cookie_secret": "x" * 32, "server_metadata_url": "https://id.example.org"}}
EVIL = "![pixel](https://evil.example/x.png) [click](javascript:alert(1)) <script>alert(1)</script> :red[x] $y$"
EVIL += " https://evil.example www.evil.example eve@evil.example"


@pytest.fixture
def study(model_folder, text_file):
    return create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 3, 32))


def visited(page, secrets, user, **query):
    from streamlit.testing.v1 import AppTest

    test = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    for name, value in secrets.items():
        test.secrets[name] = value
    test.user = user
    test.run()
    if page != "app.py":
        test.switch_page(page)
        test.run()
    assert not test.exception, test.exception
    return test


@pytest.mark.parametrize("page", ["app.py", *PAGES])
def test_with_a_login_nobody_sees_a_page_before_it(page, study):
    test = visited(page, AUTH, {"is_logged_in": False})
    assert [button.label for button in test.button] == ["Log in"]
    assert not test.selectbox
    assert "study" not in texts(test)


def test_only_those_allowed_get_in(study):
    secrets = {**AUTH, "swm": {"allowed": ["ann@example.org"]}}
    ann = {"is_logged_in": True, "email": "ann@example.org", "email_verified": True}
    assert "Sliding-Window Merging Studio" in texts(visited("app.py", secrets, ann))
    assert visited("app.py", secrets, ann).selectbox
    for user in (
        {**ann, "email": "eve@example.org"},
        {**ann, "email": None},
        {**ann, "email_verified": False},
        {"is_logged_in": True},
    ):
        test = visited("app.py", secrets, user)
        assert "may not use this server" in texts(test)
        assert not test.selectbox
    odd = {**AUTH, "swm": {"allowed": "ann@example.org, bob@example.org"}}
    assert "may not use" in texts(visited("app.py", odd, ann)).replace("\u2060", "")  # no list: nobody
    assert visited("app.py", AUTH, {**ann, "email": "eve@example.org"}).selectbox  # no list: whoever can log in


def test_a_damaged_secrets_file_lets_nobody_in(study, tmp_path, monkeypatch):
    (tmp_path / ".streamlit").mkdir()
    file = tmp_path / ".streamlit" / "secrets.toml"
    file.write_text("[auth\nclient_id = ")
    script = (
        "from streamlit.testing.v1 import AppTest\n"
        f"test = AppTest.from_file({str(ROOT / 'app.py')!r}, default_timeout=30).run()\n"
        "print([e.value for e in test.error], len(test.selectbox), len(test.exception))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "Cannot read the login settings" in done.stdout, done.stderr[-2000:]
    assert done.stdout.strip().endswith("] 0 0")


def test_the_app_listens_on_this_machine_only():
    text = (ROOT / ".streamlit" / "config.toml").read_text()
    assert re.search(r'^address = "127.0.0.1"$', text, re.MULTILINE)


def test_tokens_of_the_environment_are_never_written(study, home, monkeypatch, capsys):
    secret = "hf_" + "S3cret" * 6
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    from swm.jobs.child import start
    from tests.jobs.test_child import wait_for

    start(study, "measure", ["measure", "study"])
    assert wait_for(lambda: not study.state().active)
    start(study, "search", ["search", "study", "--rule", "chess"])
    assert wait_for(lambda: not study.state().active)
    for arguments in (
        ["merge", "study", "first", "--windows", "1-2"],
        ["report", "study", "--output", str(home / "r.html")],
    ):
        main(arguments)
    with pytest.raises(SystemExit):
        main(["create", "other", "--model", "org/missing"])
    told = capsys.readouterr()
    assert secret not in told.out + told.err
    files = [file for file in home.rglob("*") if file.is_file()]
    assert len(files) > 8
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


def test_a_pickle_and_the_code_beside_it_do_nothing(model_folder, tmp_path):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return open, (str(ran), "w")

    for name in ("pytorch_model.bin", "tokenizer.bin", "optimizer.pt"):
        (model_folder / name).write_bytes(pickle.dumps(Bomb()))
    code = f"open({str(ran)!r}, 'w')\n"
    for name in ("wild.py", "tokenization_wild.py", "modeling_wild.py"):
        (model_folder / name).write_text(code)
    file = model_folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings |= {
        "auto_map": {"AutoTokenizer": ["tokenization_wild.Wild", None]},
        "chat_template": "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    }
    file.write_text(json.dumps(settings))
    load_model(str(model_folder))
    settings["tokenizer_class"] = "Wild"
    file.write_text(json.dumps(settings))
    with suppress(SwmError):  # it may be refused or taken for a plain tokenizer
        load_model(str(model_folder))
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(SwmError, match="pickle"):
        load_model(str(model_folder))
    assert not ran.exists()


BAD_NAMES = [
    "../x",
    "..",
    ".",
    "/etc",
    "a/b",
    "a\\b",
    "A",
    "ä",
    "e\u0301",
    "x" * 65,
    "-x",
    "",
    " ",
    "x\n",
    "x\0",
    "a.b",
    "．．",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leaves_the_home(name, study, home, capsys):
    before = sorted(home.rglob("*"))
    with pytest.raises(SwmError):
        Experiment.open(name)
    with pytest.raises(SwmError):
        study.run(name)
    for arguments in (
        ["create", name, "--model", study.settings.model],
        ["merge", "study", name, "--windows", "1-2"],
        ["delete", name],
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code in (1, 2)
    assert [path for path in sorted(home.rglob("*")) if path not in before and ".lock" not in path.name] == []
    capsys.readouterr()


def test_a_link_in_the_place_of_a_run_is_not_followed_when_it_is_deleted(study, home, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "run.json").write_text(
        json.dumps({"schema": 1, "plan": {"layer_count": 4, "windows": [[0, 1]], "rule": "mean"}})
    )
    (outside / "precious").write_text("x")
    (study.folder / "runs").mkdir(exist_ok=True)
    (study.folder / "runs" / "linked").symlink_to(outside)
    main(["delete", "study", "linked"])
    assert (outside / "precious").exists()
    assert not (study.folder / "runs" / "linked").exists()
    capsys.readouterr()


def test_what_others_wrote_is_shown_as_they_wrote_it(study):
    shown = plain(EVIL)
    assert re.sub(r"\\(.)", r"\1", shown).replace("\u2060", "") == EVIL
    assert not re.search(r"://\w|www\.|@\w", shown)
    assert not re.search(r"(?<!\\)[\[\]<$`*]", shown)
    study.write_state(State("measure", "failed", error=EVIL))
    (study.folder.parent / "broken").mkdir()
    (study.folder.parent / "broken" / "experiment.json").write_text(
        json.dumps({"schema": 1, EVIL: EVIL, "settings": EVIL})
    )
    test = opened("app.py", experiment="study")
    assert list_experiments()[1]
    for element in (*test.warning, *test.error):
        assert not re.search(r"(?<!\\)(<script|\[click\]|!\[pixel\])", element.value), element.value
