"""The login of a shared server with a real OpenID Connect provider, in a real browser: who gets in, and may do what."""

import importlib.util
import json
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from pages.shared import login
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import copy_experiment
from tools.running import running_app, wait_for_answer

pytestmark = [pytest.mark.browser, pytest.mark.apart]
PEOPLE = {
    "ann": {"email": "ann@example.org", "email_verified": True},
    "bob": {"email": "bob@example.org", "email_verified": True},
    "root": {"email": "root@example.org", "email_verified": True},
    "eve": {"email": "eve@example.org", "email_verified": True},
    "mallory": {"email": "ann@example.org", "email_verified": False},  # claims an address that is Ann's
}
SECRETS = """
[auth]
redirect_uri = "{app}/oauth2callback"
cookie_secret = "a long random text, of which nobody knows anything"
client_id = "studio"
client_secret = "not a secret"
server_metadata_url = "{provider}/.well-known/openid-configuration"

[swm]
allowed = ["ann@example.org", "bob@example.org", "root@example.org"]
admins = ["root@example.org"]
"""


@pytest.fixture(scope="module")
def provider():
    """Address of a provider, in a process of its own."""
    pytest.importorskip("authlib")
    if importlib.util.find_spec("oidc_provider_mock") is None:
        pytest.skip("oidc-provider-mock is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)]
    for name, claims in PEOPLE.items():
        command += ["--user-claims", json.dumps({"sub": name, **claims})]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_answer(f"{address}/.well-known/openid-configuration")
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def served(provider, tmp_path_factory):
    """Address and home of an app with a login."""
    folder = tmp_path_factory.mktemp("served")
    (folder / ".streamlit").mkdir()
    secrets = folder / ".streamlit" / "secrets.toml"
    secrets.touch()
    with running_app(HOME=str(folder), SWM_HOME=str(folder / "swm")) as (address, _):
        secrets.write_text(SECRETS.format(app=address, provider=provider))
        yield address, str(folder / "swm")


@pytest.fixture
def app(served, monkeypatch):
    """Address of the app; the test sees its home."""
    monkeypatch.setenv("SWM_HOME", served[1])
    return served[0]


@pytest.fixture
def visiting(chromium, app):
    """visiting(person): their own browser, up to the provider's page."""

    @contextmanager
    def visit(path=""):
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"{app}/{path}")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="Authorize Client").wait_for()
        yield page
        context.close()

    return visit


def let_in(page, name):
    page.get_by_role("button", name=name, exact=True).first.click()
    page.get_by_role("button", name="Log out").wait_for()


def open_page(page, app, path):
    page.goto(f"{app}/{path}")
    page.get_by_test_id("stSidebar").get_by_role("button", name="Log out").wait_for()
    page.wait_for_timeout(1500)


def test_what_ann_makes_others_see_and_only_she_and_the_admin_change(visiting, app):
    with visiting() as page:
        let_in(page, "ann")
        open_page(page, app, "experiment?experiment=example-demo")
        page.get_by_role("button", name="Copy").first.click()
        page.get_by_label("Name of the copy").fill("anns")
        page.get_by_label("Name of the copy").press("Enter")
        page.get_by_role("button", name="Copy", exact=True).last.click()
        page.get_by_text("belongs to").first.wait_for()
    anns = Experiment.open("anns")
    assert anns.owner == "ann@example.org"
    with visiting("run?experiment=anns&run=new+run") as page:
        let_in(page, "bob")
        open_page(page, app, "run?experiment=anns&run=new+run")
        assert page.get_by_text("Copy it to change it.").is_visible()
        assert page.get_by_role("button", name="Merge, heal and evaluate").is_disabled()
        open_page(page, app, "experiment?experiment=anns")
        assert page.get_by_text("belongs to").first.is_visible()
        assert not page.get_by_role("button", name="Delete").is_visible()
    with visiting() as page:
        let_in(page, "root")
        open_page(page, app, "experiment?experiment=anns")
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Delete for good").click()
        page.get_by_role("heading", name="Sliding-Window Merging Studio").wait_for()
    assert not anns.is_there()


def test_who_is_not_logged_in_may_change_nothing_that_is_somebodys(monkeypatch):
    """No page is shown to them; this holds even if one were."""
    monkeypatch.setattr(login, "get_script_run_ctx", lambda **_: object())
    monkeypatch.setattr(login.st, "user", {"is_logged_in": False})
    monkeypatch.setattr(login.st, "secrets", {"auth": {}})
    assert not login.visitor().may_change("ann@example.org")
    monkeypatch.setattr(login.st, "secrets", {})
    assert login.visitor().may_change("ann@example.org")  # an app without a login


@pytest.mark.parametrize("name", ["eve", "mallory"])
def test_who_is_not_listed_or_has_not_proved_the_address_stays_out(name, visiting):
    mine = f"mine-{name}"
    copy_experiment(Experiment.open("example-demo"), mine)
    with visiting(f"experiment?experiment={mine}") as page:
        page.get_by_role("button", name=name, exact=True).first.click()
        page.get_by_text("may not use this server").wait_for()
        assert not page.get_by_text(mine).first.is_visible()
        assert not page.get_by_role("button", name="Delete").is_visible()


def test_who_is_denied_or_whose_login_has_expired_is_asked_again(visiting, app):
    with visiting() as page:
        page.get_by_role("button", name="Deny").click()
        page.get_by_role("button", name="Log in").wait_for()
        assert not page.get_by_role("button", name="Log out").is_visible()
    with visiting() as page:
        let_in(page, "ann")
        for cookie in page.context.cookies():  # as the browser does when they expire
            page.context.clear_cookies(name=cookie["name"])
        page.goto(f"{app}/experiment")
        page.get_by_role("button", name="Log in").wait_for()
        assert not page.get_by_text("New experiment").is_visible()
