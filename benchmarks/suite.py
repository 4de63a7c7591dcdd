"""Where the seconds of the tests go: `python -m pytest -n 2 -p benchmarks.suite`.

For each file: seconds of a worker, how many of them its process and its children (those that ended) computed, and how
long it waited. Below it the slowest tests. Seconds of fixtures count for the first test that needs them. What the
browser, and servers that serve several tests, compute is in no column: it counts as waiting.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

SLOWEST = 150


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before, start = os.times(), time.perf_counter()
    item.user_properties.append(("before", (start, before.user + before.system)))
    item.user_properties.append(("children before", before.children_user + before.children_system))
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    if call.when == "teardown":
        marks, now = dict(item.user_properties), os.times()
        start, own = marks["before"]
        children = now.children_user + now.children_system - marks["children before"]
        seconds = (time.perf_counter() - start, now.user + now.system - own, children)
        item.user_properties.append(("seconds", seconds))
    yield


class Table:
    """Collects what the workers report."""

    def __init__(self) -> None:
        self.tests: dict[str, tuple[float, float, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.tests[report.nodeid] = dict(report.user_properties)["seconds"]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        files: dict[str, list[float]] = {}
        for name, seconds in self.tests.items():
            found = files.setdefault(name.split("::")[0], [0, 0, 0, 0])
            found[0] += 1
            found[1:] = [a + b for a, b in zip(found[1:], seconds, strict=True)]
        files["all"] = [sum(column) for column in zip(*files.values(), strict=True)]
        terminalreporter.section("seconds by file")
        terminalreporter.write_line(f"{'file':<50} tests  seconds  computed  by children  waited")
        for name, (tests, wall, own, children) in sorted(files.items(), key=lambda item: -item[1][1]):
            waited = max(wall - own - children, 0)
            line = f"{name:<50} {tests:>5} {wall:>8.1f} {own:>9.1f} {children:>12.1f} {waited:>7.1f}"
            terminalreporter.write_line(line)
        terminalreporter.section("slowest tests")
        for name, (wall, own, children) in sorted(self.tests.items(), key=lambda item: -item[1][0])[:SLOWEST]:
            terminalreporter.write_line(f"{wall:>6.1f} s, computed {own:>5.1f} + {children:>5.1f}  {name}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table())
