"""Estimates against pencil; what cannot fit is told with both numbers."""

from dataclasses import replace

import psutil
import pytest

from swm.estimate import PROCESS_BYTES, Estimate, estimate_run, gib
from swm.plan import MergePlan, Window
from swm.presets import PRESETS, preset_settings, training_speed

FACTS = {"layers": 10, "width": 100, "parameters": 2_000_000, "parameters_per_layer": 100_000, "size_bytes": 8_000_000}
COST = {"layers_ms": 8.0, "rest_ms": 2.0, "forward_tokens_per_second": 1000.0, "training_tokens_per_second": 3000.0}
PLAN = MergePlan(10, (Window(2, 4),))


def test_seconds_follow_from_the_tokens_and_the_rates(tmp_path):
    recovery = preset_settings("quick", steps=30, batch=4, length=100, save_every=30, held_out=3)
    found = estimate_run(FACTS, COST, PLAN, recovery, 10, tmp_path)
    # 30 x 4 x 100 tokens, four forward passes each at 3000 a second, and a held-out pass of 3 x 100 forward only; both
    # models read 24,576 tokens at 1000 a second for the repair
    assert found.seconds["heal"] == pytest.approx(10 + (4 * 12_000 + 300) / 3000 + 2 * 24.576)
    without = estimate_run(FACTS, COST, PLAN, replace(recovery, repair="none"), 10, tmp_path)
    assert without.seconds["heal"] == pytest.approx(10 + (4 * 12_000 + 300) / 3000)
    fitted = estimate_run(FACTS, COST, replace(PLAN, rule="fit"), recovery, 10, tmp_path)
    assert fitted.total_seconds == pytest.approx(found.total_seconds)
    # seven tasks of 10 documents, and 2 x 32 x 256 tokens of perplexity, three times
    assert found.seconds["evaluate"] == pytest.approx(3 * (8 + (97 * 70 + 16384) / 1000))
    assert found.total_seconds == sum(found.seconds.values())
    twice = estimate_run(FACTS, COST, PLAN, preset_settings("quick", steps=60), 10, tmp_path)
    assert twice.seconds["heal"] > found.seconds["heal"]


def test_without_rates_there_are_no_times(tmp_path):
    assert estimate_run(FACTS, None, PLAN, None, 10, tmp_path).seconds == {}


def test_memory_grows_with_the_batch_and_disk_with_the_model(tmp_path):
    small, large = (
        estimate_run(FACTS, COST, PLAN, preset_settings("quick", batch=batch), 10, tmp_path) for batch in (8, 800)
    )
    assert PROCESS_BYTES < small.memory_bytes < large.memory_bytes
    plain = estimate_run(FACTS, COST, PLAN, None, 10, tmp_path)
    assert plain.disk_bytes == 7_200_000  # two of ten layers of 400,000 bytes go
    assert small.free_memory_bytes == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_what_cannot_fit_is_told_with_both_numbers():
    problems = Estimate({}, 8 * 2**30, 4 * 2**30, 2**30, 2**29).problems()
    assert "8.0 GiB of memory and 1.0 GiB are free" in problems[0]
    assert "4.0 GiB of disk and 512 MiB are free" in problems[1]
    assert Estimate({}, 1, 1, 1, 1).problems() == []


def test_bytes_are_written_as_people_read_them():
    assert [gib(size) for size in (3 * 2**20, 2**30, 1536 * 2**30)] == ["3 MiB", "1.0 GiB", "1,536.0 GiB"]


def test_speed_of_training_is_that_of_the_last_steps():
    events = [{"time": 10.0 + 2 * step, "step": step, "steps": 40, "loss": 1.0} for step in range(1, 31)]
    events.insert(3, {"time": 0.0, "step": 3, "steps": 40, "held_out_loss": 1.0})
    settings = {"batch": 4, "accumulate": 2, "length": 100}
    assert training_speed(events, settings) == (400.0, 20.0)
    assert training_speed(events[:1], settings) == (None, None)
    assert training_speed([], {}) == (None, None)


def test_standard_trains_longer_than_quick():
    assert PRESETS["standard"].steps > PRESETS["quick"].steps


def test_a_pause_and_steps_done_again_do_not_bend_the_speed():
    events = [{"time": float(step), "step": step, "steps": 100, "loss": 1.0} for step in range(1, 16)]
    events += [{"time": 9000.0 + step, "step": step, "steps": 100, "loss": 1.0} for step in range(11, 20)]
    assert training_speed(events, {"batch": 1, "accumulate": 1, "length": 10}) == (10.0, 81.0)


def test_saving_memory_is_counted(tmp_path):
    settings = preset_settings("quick", batch=64, length=1024)
    off, on = (
        estimate_run(FACTS, COST, PLAN, replace(settings, checkpointing=how), 10, tmp_path) for how in ("off", "on")
    )
    assert on.memory_bytes < 0.75 * off.memory_bytes
