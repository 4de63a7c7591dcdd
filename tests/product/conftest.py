"""A real browser, for all tests that need one: it cannot be started twice in a process."""

import shutil

import pytest

from tools.running import CHROMIUM_FLAGS

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")  # the first computes least


@pytest.fixture(scope="session")
def chromium():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        pytest.skip("there is no chromium")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
