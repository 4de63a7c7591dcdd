"""Full and read-only disks, met by real stages on a real small file system: reported, nothing lost, resumed later."""

import os
import re
import subprocess

import pytest

from swm.disk.files import read_json, replaced_folder, write_json
from swm.errors import ExperimentError
from swm.workspace.experiments import Experiment
from tests.conftest import need
from tests.product.test_kill import STAGES, check_whole, content

DISK = "size=8m"


@pytest.fixture
def disk(home, small_disk, monkeypatch):
    """SWM_HOME on a file system of 8 MiB, and a function that leaves so many bytes of it free."""
    subprocess.run(["mount", "-o", f"remount,{DISK}", str(small_disk)], check=True)
    monkeypatch.setenv("SWM_HOME", str(small_disk / "home"))
    ballast = small_disk / "ballast"

    def leave(free):
        ballast.unlink(missing_ok=True)
        if free is None:
            return
        space = os.statvfs(small_disk)
        with ballast.open("wb") as file:
            file.write(b"x" * max(0, space.f_bavail * space.f_frsize - free))

    yield leave
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


@pytest.fixture
def study(swm, disk, model_folder, text_file):
    need("olmo_eval")
    made = swm("create", "study", "--model", model_folder, "--texts", text_file, "--count", 3, "--length", 32)
    assert made[0] == 0, made
    return Experiment.open("study")


def command(stage, text_file):
    return (*STAGES[stage][1], "--texts", text_file) if stage == "recover" else STAGES[stage][1]


@pytest.mark.data
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "delete"])
def test_a_full_disk_in_any_stage_is_told_and_nothing_is_lost(stage, swm, study, disk, text_file, small_disk, often):
    for each in STAGES[stage][0]:
        assert swm(*command(each, text_file))[0] == 0
    before = content(small_disk / "home")
    failed = 0
    for free in [0, 2**19, *(n * 2**16 for n in range(1, often(1, 20)))]:
        disk(free)
        code, _, told = swm(*command(stage, text_file))
        disk(None)
        check_whole(study.folder)
        if code == 0:  # it was enough
            break
        failed += 1
        assert code == 1
        last = told.strip().splitlines()[-1]
        assert re.search(r"No space left for .*: [\d,.]+ MiB needed, [\d,.]+ MiB free", last), last
        kept = content(small_disk / "home")
        assert {name: kept[name] for name in before if "events" not in name} == {
            name: value for name, value in before.items() if "events" not in name
        }
    assert failed
    assert swm(*command(stage, text_file))[0] == 0
    check_whole(study.folder)
    often.figure("full disks told", failed)


@pytest.mark.data
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "delete"])
def test_a_read_only_disk_is_told(stage, swm, study, text_file, small_disk):
    for each in STAGES[stage][0]:
        assert swm(*command(each, text_file))[0] == 0
    before = content(small_disk / "home")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, _, told = swm(*command(stage, text_file))
    assert code == 1
    assert "Read-only file system" in told
    assert "Traceback" not in told
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert content(small_disk / "home") == before


def test_json_is_replaced_whole_and_leaves_no_temporary_file(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"x": float("nan")})
    assert read_json(file)["x"] == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_full_disk_keeps_the_old_json_and_says_what_is_needed(small_disk):
    file = small_disk / "a.json"
    write_json(file, {"x": 1})
    with pytest.raises(ExperimentError, match=r"No space left .*2\.\d MiB needed, [01]\.\d MiB free"):
        write_json(file, {"x": "y" * 2**21})
    assert read_json(file)["x"] == 1
    assert os.listdir(small_disk) == ["a.json"]


def test_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with replaced_folder(folder) as new:
        (new / "a").write_text("1")

    def broken():
        with replaced_folder(folder) as new:
            (new / "a").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert (folder / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["model"]
