"""One stage in two processes (gloo): the numbers of one process, written once; commands that cannot share say so."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from swm.cli.main import main
from swm.disk.files import home, read_json
from swm.errors import SettingsError
from swm.jobs.child import cancel
from swm.plan import MergePlan, Window
from swm.search.kept_path import kept_path
from swm.settings import SAMPLE_TOKENS, ExperimentSettings, preset_settings
from swm.stages.create import create_experiment
from swm.stages.merge import merge_run
from swm.stages.recover import recover_run
from swm.workspace.experiments import Experiment
from tests.conftest import WORDS, need, tiny_model, written_text
from tests.jobs.test_child import wait_for

pytestmark = pytest.mark.apart
ROOT = Path(__file__).parents[2]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
FSDP = [*ACCELERATE, str(ROOT / "assets" / "accelerate" / "fsdp2-2.yaml")]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "swm"]


@pytest.fixture
def study(model_folder, text_file):
    return create_experiment("study", ExperimentSettings(str(model_folder), str(text_file), 10, 128))


def launched(*arguments, launch=LAUNCH):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*launch, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


RECOVERY = "--preset quick --steps 6 --batch 4 --length 32 --held-out 4 --save-every 3 --rank 4 --loss-on response"
MEASURES = {"cka": [], "cka-rbf_update_skip2": ["--metric", "cka-rbf", "--part", "update", "--skip", "2"]}
HEALINGS = {
    "accumulate": ["--accumulate", "2"],
    "hidden": ["--target", "hidden"],
    "weights": ["--train", "weights", "--adapt", "last"],
}
FOUND = (
    "path/rdsc.json",
    "path/fit.json",
    "answers/rdsc.json",
    "tried.json",
    *(f"plans/{name}.json" for name in ("best-4", "sleb-5", "perplexity-6")),
)
SEARCHES = {
    "path": ["search", "deep", "--from", "0.05"],
    "best": ["plan", "deep", "--planner", "best", "--layers", "4", "--budget", "30"],
    "sleb": ["plan", "deep", "--planner", "sleb", "--layers", "5"],
    "perplexity": ["plan", "deep", "--planner", "perplexity", "--layers", "6"],
}


@pytest.fixture
def examples_file(tmp_path):
    """60 prompts with answers of unlike lengths."""
    return written_examples(tmp_path / "examples.jsonl")


def written_examples(file):
    words = WORDS.split()
    rows = [
        {"prompt": " ".join(words[i : i + 3]), "response": " " + " ".join(words[i : i + 4 + i % 5])} for i in range(60)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def merged(study):
    """Two runs with the same plan, both merged."""
    return merged_runs(study, "one", "two")


def merged_runs(study, *names):
    runs = [study.create_run(name, MergePlan(4, (Window(1, 2),))) for name in names]
    for run in runs:
        merge_run(run)
    return runs


@pytest.fixture(scope="session")
def both(tmp_path_factory, tokenizer):
    """What one process measures, heals and scores, and two processes do in one launch: {"study", "measured", "out"}."""
    need("olmo_eval")
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWM_HOME", str(folder / "home"))
        patch.setattr("swm.evaluation.answers.SAMPLE_TOKENS", SAMPLE_TOKENS)  # as the processes that are launched write
        patch.setattr("swm.healing.trainer._in_bfloat16", lambda *_: False)  # as there
        tiny_model().save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        text = written_text(folder / "text.txt")
        study = create_experiment("study", ExperimentSettings(str(folder / "model"), str(text), 10, 128))
        examples = ["--texts", str(written_examples(folder / "examples.jsonl"))]
        scores = ["--tasks", "piqa,arc_easy", "--limit", "7"]
        names = [f"{how}-{count}" for how in HEALINGS for count in ("one", "two")]
        merged_runs(study, *names, "scored-one", "scored-two")
        commands = [["measure", "study", *how] for how in MEASURES.values()]
        commands += [
            ["recover", "study", f"{name}-two", *RECOVERY.split(), *how, *examples] for name, how in HEALINGS.items()
        ]
        commands += [["evaluate", "study", "scored-two", *scores], *SEARCHES.values()]
        tiny_model(layers=8).save_pretrained(folder / "deep")
        tokenizer.save_pretrained(folder / "deep")
        deep = create_experiment("deep", ExperimentSettings(str(folder / "deep"), str(text), 6, 32))
        for command in commands:
            main([word.replace("-two", "-one") for word in command])
        measured = {name: study.similarity(name) for name in MEASURES}
        for name in MEASURES:
            (study.folder / "similarity" / f"{name}.json").unlink()
        shutil.rmtree(home() / "cache" / "scores")
        searched = {name: read_json(deep.folder / name) for name in FOUND}
        for name in ("path", "answers", "plans", "tried.json"):
            (deep.folder / name).rename(folder / f"{name} of one")
        script = str(ROOT / "tests" / "several_commands.py")
        done = launched(json.dumps(commands), launch=[*LAUNCH[:-2], script])
        assert done.returncode == 0, done.stderr[-3000:]
        yield {
            "study": Experiment.open("study"),
            "measured": measured,
            "searched": searched,
            "deep": Experiment.open("deep"),
            "out": done.stdout,
        }


@pytest.mark.data
@pytest.mark.parametrize("name", MEASURES)
def test_two_processes_measure_what_one_does(name, both):
    one, two = both["measured"][name], both["study"].similarity(name)
    for part in ("matrix", "block_influence", "norm"):
        torch.testing.assert_close(
            torch.tensor(two[part], dtype=torch.float64),
            torch.tensor(one[part], dtype=torch.float64),
            atol=1e-10,
            rtol=1e-10,
        )
    assert two["tokens"] == one["tokens"]
    assert two["conditions"]["processes"] == 2
    assert both["study"].state().status == "done"
    assert both["out"].count("similarity of neighbouring layers") == len(MEASURES)


def assert_same_events(one, two, rounding):
    ours, theirs = one.events(), two.events()
    assert len(ours) == len(theirs) == 10  # the beginning, six steps, three looks at the held-out texts
    for one_event, two_event in zip(ours, theirs, strict=True):
        assert one_event.keys() == two_event.keys()
        for name in one_event.keys() & {"step", "loss", "held_out_loss", "learning_rate"}:
            assert two_event[name] == pytest.approx(one_event[name], rel=rounding)
        if "grad_norm" in one_event:
            assert two_event["grad_norm"] == pytest.approx(one_event["grad_norm"], rel=20 * rounding)


@pytest.mark.data
@pytest.mark.parametrize("name", FOUND)
def test_two_processes_find_what_one_does_bit_for_bit(name, both):
    one, two = (without_cost(found) for found in (both["searched"][name], read_json(both["deep"].folder / name)))
    assert one == two
    if name == "path/rdsc.json":
        assert len(one["similarities"]) > 20
        assert {plan.perplexity is None for plan in kept_path(both["deep"], "rdsc").intervals()} == {False}


def without_cost(found):
    """A file's content without how long it took and in which order its table was filled."""
    return {
        name: sorted(value, key=json.dumps) if name in ("similarities", "perplexities") else value
        for name, value in found.items()
        if name not in ("seconds", "layer_runs")
    }


@pytest.mark.data
@pytest.mark.parametrize("how", HEALINGS)
def test_two_processes_heal_as_one_does(how, both):
    one, two = (both["study"].run(f"{how}-{count}") for count in ("one", "two"))
    assert both["out"].count(f"Recovered {two.name}") == 1
    assert two.settings["recovery"]["processes"] == 2
    assert two.state().status == "done"
    assert_same_events(one, two, rounding=1e-5)


def test_two_processes_that_share_the_weights_heal_as_one_does(study, examples_file):
    """And the second never holds the model: the first alone loads and merges it."""
    ways = {"lora": [], "weights": HEALINGS["weights"]}
    runs = {name: merged_runs(study, f"{name}-one", f"{name}-two") for name in ways}
    commands = [
        ["recover", "study", f"{name}-two", *RECOVERY.split(), *how, "--texts", str(examples_file)]
        for name, how in ways.items()
    ]
    for command in commands:
        main([word.replace("-two", "-one") for word in command])
    done = launched(json.dumps(commands), launch=[*FSDP, str(ROOT / "tests" / "fsdp_on_cpu.py")])
    assert done.returncode == 0, done.stderr[-3000:]
    size = sum(weight.nbytes for weight in load_file(runs["lora"][0].model_folder / "model.safetensors").values())
    assert done.stdout.count(f"process 0 holds {size} bytes") == done.stdout.count("process 1 holds 0 bytes") == 2
    original = load_file(Path(study.settings.model) / "model.safetensors")
    for one, two in runs.values():
        assert_same_events(one, two, rounding=5e-3)  # products are in bfloat16 there
        found, expected = (load_file(run.model_folder / "model.safetensors") for run in (two, one))
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, atol=5e-3, rtol=0)
        last, before = (f"model.layers.{place}.mlp.up_proj.weight" for place in (2, 3))
        learned = (expected[last] - original[before]).norm()
        assert learned > 0.1
        assert (found[last] - expected[last]).norm() < 0.1 * learned


def test_settings_files_are_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((ROOT / "assets" / "accelerate").glob("*.yaml"))
    assert len(files) == 5
    for file in files:
        config = load_config_from_file(str(file))
        assert config.num_processes == int(file.stem.split("-")[1])
        assert file.name in file.read_text()


@pytest.mark.data
def test_two_processes_score_as_one_does(both):
    one, two = (both["study"].run(f"scored-{count}") for count in ("one", "two"))
    expected, found = one.scores(), two.scores()
    assert found["tasks"] == expected["tasks"]
    assert two.documents() == one.documents()
    assert found["conditions"]["processes"] == 2
    for text, value in expected["perplexity"].items():
        other = dict(found["perplexity"][text])
        assert other.pop("text_hash") == value["text_hash"]
        assert other.pop("losses") == pytest.approx(value["losses"], rel=1e-6)
        assert other == pytest.approx({name: value[name] for name in other}, rel=1e-6)


@pytest.mark.long
def test_several_processes_stop_together_and_one_goes_on(merged, examples_file):
    run = merged[0]
    how = [*RECOVERY.replace("--steps 6", "--steps 100000").split(), "--texts", str(examples_file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [*LAUNCH, "recover", "study", "one", *how], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert wait_for(lambda: run.events() and run.events()[-1]["step"] > 8, 120)
    cancel(run)
    _, err = process.communicate(timeout=60)
    assert "Cancelled" in err
    assert run.state().status == "cancelled"
    step = run.checkpoint_step()
    assert step > 8
    assert run.events()[-1]["step"] == step
    stopped = json.loads((run.folder / "recovery" / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert stopped["global_step"] == step


BROKEN = """
import os, sys
from swm.cli.main import main
from swm.stages import measure

def broken(*arguments):
    raise MemoryError

if os.environ["RANK"] == "1":
    measure.measure_similarity = broken
main(sys.argv[1:])
"""


def test_the_first_process_tells_why_another_one_ended(study, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    done = launched("measure", "study", launch=[*LAUNCH[:-2], str(tmp_path / "broken.py")])
    assert done.returncode
    state = study.state()
    assert state.status == "failed"
    assert state.error.startswith("Process 1 of 2: Out of memory")
    main(["measure", "study"])
    assert study.state().status == "done"


def test_what_processes_cannot_share_is_told_before_anything_is_done(merged, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="2 processes cannot share a batch of 3 evenly. Choose --batch 4"):
        recover_run(merged[0], preset_settings("quick", batch=3))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SettingsError, match=r"FSDP 1. Write fsdp_version: 2"):
        recover_run(merged[0], preset_settings("quick"))
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(SettingsError, match=r"this machine has no GPU. Use assets/accelerate/gpu-2.yaml"):
        recover_run(merged[0], preset_settings("quick"))
    monkeypatch.setattr("swm.stages.recover.check_sharding", lambda: None)
    with pytest.raises(SettingsError, match="does not work with sharded weights .FSDP.. Choose --target text"):
        recover_run(merged[0], preset_settings("quick", target="original"))
    assert "recovery_started" not in merged[0].settings


def test_an_error_in_one_process_is_raised_in_all_and_they_go_on_together():
    done = launched(launch=[*LAUNCH[:-2], str(ROOT / "tests" / "models" / "shared_error.py")])
    assert done.returncode == 0, done.stderr[-3000:]
    said = [f"{number}: {what}" for number in (0, 1) for what in ("3 cannot be planned", [10, 12, 14])]
    assert sorted(done.stdout.splitlines()) == sorted(said)


def test_what_cannot_be_shared_is_told(study, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        main(["merge", "study", "one", "--windows", "1-2"])
    assert end.value.code == 1
    assert "merge runs in one process" in capsys.readouterr().err
    assert study.runs()[1:] == []
    with pytest.raises(SystemExit):
        main(["plan", "study", "--planner", "best", "--layers", "3", "--minutes", "1"])
    assert "--minutes can give each process a different plan: choose --budget" in capsys.readouterr().err
