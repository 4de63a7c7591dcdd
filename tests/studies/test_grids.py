"""Tests of swm.studies.grids."""

import pytest
import yaml

from swm.cli.main import main
from swm.errors import SettingsError
from swm.models.load import config_facts
from swm.studies.grid_files import GRIDS, grid_of, grid_text, grid_yaml, read_grid
from swm.studies.grids import KINDS, Cell, Grid
from swm.studies.run import run_study
from swm.workspace.targets import parameters_left, weights_bytes
from tests.studies.run_cases import SMALL


def test_the_grids_that_ship_can_be_read():
    assert list(yaml.safe_load(GRIDS.read_text())) == list(KINDS)
    for kind in KINDS:
        assert read_grid(kind) == yaml.safe_load(grid_text(kind))[kind]
        assert read_grid(kind) == yaml.safe_load(grid_yaml(kind, read_grid(kind)))[kind]
    grid = Grid(**read_grid("methods"))
    assert len(set(grid.planners)) == len(grid.planners) >= 8
    assert set(grid.rules) >= {"rdsc", "replace", "mean", "keep_first", "keep_last", "fit"}
    assert [cell.layers for cell in grid.cells({"layers": 30})][:: len(grid.planners) + len(grid.rules)] == [27, 24, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planners": ["chess"]}, "'chess' is not a planner"),
        ({"rules": ["chess"]}, "'chess' is not a merge rule"),
        ({"ratios": [1.0]}, "Ratio 1.0 is out of range"),
        ({"ratios": []}, "The grid has no depths"),
        ({"memory": ["6 apples"]}, "'6 apples' is not a size"),
        ({"parameters": ["lots"]}, "'lots' is not a number of parameters"),
        ({"parameters": "5B"}, "parameters must be a list"),
        ({"heal": ["best"]}, "heals best, but does not plan it"),
        ({"lora_alone": ["random"]}, "names random under lora_alone, but does not heal it"),
        ({"ratios": None}, "Cannot read grid 'methods'"),
        ({"recovery": {"preset": "quick", "stepz": 3}}, "Cannot read grid 'methods'"),
        ({"limit": "many"}, "Cannot read grid 'methods'"),
        ({"limit": 0}, "Cannot read grid 'methods'"),
        ({"limit": 2.7}, "Cannot read grid 'methods'"),
        ({"limit": float("inf")}, "Cannot read grid 'methods'"),
        ({"ratios": [10**400]}, "Cannot read grid 'methods'"),
        ({"ratios": [float("nan")]}, "Ratio nan is out of range"),
        ({"time": "no"}, "time must be true or false"),
        ({"heal": "best"}, "heal must be a list"),
        ({"lora_only": ["sleb"]}, "unknown entry 'lora_only'"),
        ({"planners": ["best"], "heal": ["best"], "lora_alone": ["best"]}, "its merge rule fits the layers"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"seeds": [-1]}, "seed -1 is out of range"),
        ({"seeds": [1.5]}, "Cannot read grid 'methods'"),
        ({"recovery": {"preset": "quick", "steps": 2.5}}, "steps must be a whole number \\(got 2.5\\)"),
        ({"recovery": {"preset": "quick", "texts": 5}}, "texts must be text \\(got 5\\)"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path, change, message):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"methods": {**SMALL, **change}}))
    with pytest.raises(SettingsError, match=message):
        read_grid("methods", tmp_path / "grid.yaml")


def test_where_layers_differ_in_size_each_method_has_its_own_depth_for_a_size():
    facts = {"layers": 4, "parameters": 100, "size_bytes": 400e3, "layer_parameters": [40, 10, 10, 10]}
    facts["parameters_per_layer"] = 18
    grid = Grid(
        **{
            **SMALL,
            "rules": ["rdsc"],
            "ratios": (),
            "memory": ["240KB", "1TiB"],
            "parameters": ["95"],
            "cache_tokens": 0,
        }
    )
    assert grid.depths(facts) == []
    assert grid.own_depths(facts) == [
        ("memory: 240KB with 0 tokens", "memory", 240e3),
        ("parameters: 95", "parameters", 95.0),
    ]
    known = {"sleb": {"memory: 240KB with 0 tokens": 2, "parameters: 95": 3}, "rdsc": {"parameters: 95": 3}}
    found = {(cell.method, cell.layers) for cell in grid.cells(facts, None, known) if cell.layers < 4}
    assert found == {("sleb", 2), ("sleb", 3), ("rdsc", 3)}
    with pytest.raises(SettingsError, match="memory: 100KB cannot be met"):
        Grid(**{**SMALL, "memory": ["100KB"], "cache_tokens": 0}).depths(facts)
    equal = {**facts, "layer_parameters": [], "parameters_per_layer": 15}
    assert grid.own_depths(equal) == []


def test_depths_can_be_sizes_and_numbers_of_parameters(model_folder):
    facts = config_facts(str(model_folder))
    small = {"ratios": (), "memory": [f"{weights_bytes(facts, 3) / 2**20 + 0.001:.4f}MiB"], "cache_tokens": 0}
    assert Grid(**{**SMALL, **small}).depths(facts) == [3]
    room = weights_bytes(facts, 3) - weights_bytes(facts, 2)
    tokens = int(room / (2 * facts["cache_bytes_per_token"]))
    assert Grid(**{**SMALL, **small, "cache_tokens": tokens}).depths(facts) == [2]  # keys and values count as well
    count = f"{parameters_left(facts, 2) / 1e3 + 0.01:.3f}K"
    both = Grid(**{**SMALL, **small, "ratios": [0.5], "parameters": [count]})
    assert both.depths(facts) == [2, 3]  # once each
    assert {cell.layers for cell in both.cells(facts) if cell.method == "sleb"} == {2, 3}
    with pytest.raises(SettingsError, match="memory: 1KiB cannot be met by this model"):
        Grid(**{**SMALL, "memory": ["1KiB"]}).depths(facts)
    assert Grid(**{**SMALL, "ratios": [0.5], "memory": ["1TiB"]}).depths(facts) == [2]  # the original meets the other
    with pytest.raises(SettingsError, match="already meets every target"):
        Grid(**{**SMALL, "ratios": (), "memory": ["1TiB"]}).depths(facts)


def test_a_grid_that_does_not_fit_the_model_leaves_the_last_one(experiment):
    experiment.save_study("methods", {"grid": {**SMALL}, "failed": {}})
    with pytest.raises(SettingsError, match="cannot be met by this model"):
        run_study(experiment, "methods", {**SMALL, "memory": ["1KiB"]})
    assert experiment.study("methods")["grid"] == SMALL


@pytest.mark.parametrize("text", ["", "methods", "methods: [", "other: {}", "[" * 3000, "!!python/object:os.system {}"])
def test_a_file_that_is_no_grid_is_refused(tmp_path, text):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(SettingsError, match="Cannot read grid 'methods'"):
        read_grid("methods", tmp_path / "grid.yaml")
    with pytest.raises(SettingsError, match="'chess' is not a study"):
        read_grid("chess")


def test_cells_go_depth_by_depth():
    cells = Grid(**SMALL).cells({"layers": 4})
    depths = ["sleb-3", "random-3", "keep-first-3", "sleb-2", "random-2", "keep-first-2"]
    assert [cell.run for cell in cells] == ["control-4", *depths]
    assert [cell.recovery is not None for cell in cells] == [True, *([True, False, False] * 2)]
    assert cells[2] == Cell("random", 3)


def test_a_control_is_healed_only_if_something_else_is():
    assert [cell.method for cell in Grid(**{**SMALL, "control": False}).cells({"layers": 4})].count("control") == 0
    assert [cell.method for cell in Grid(**{**SMALL, "heal": []}).cells({"layers": 4})].count("control") == 0


def test_a_method_can_be_healed_by_lora_alone():
    grid = Grid(**{**SMALL, "heal": ["sleb", "random"], "recovery": {"preset": "quick"}, "lora_alone": ["sleb"]})
    found = {cell.run: cell.recovery and cell.recovery.repair for cell in grid.cells({"layers": 4})}
    assert found == {
        "control-4": "fit", "sleb-3": "none", "random-3": "fit", "keep-first-3": None,
        "sleb-2": "none", "random-2": "fit", "keep-first-2": None,
    }  # fmt: skip


def test_each_seed_is_a_run_of_what_is_healed():
    grid = Grid(**{**SMALL, "ratios": [0.25], "seeds": [1234, 2]})
    assert [(cell.run, cell.recovery and cell.recovery.seed) for cell in grid.cells({"layers": 4})] == [
        ("control-4", 1234), ("sleb-3", 1234), ("random-3", None), ("keep-first-3", None),
        ("control-4-seed-2", 2), ("sleb-3-seed-2", 2),
    ]  # fmt: skip


def test_width_makes_up_what_depth_leaves():
    grid = Grid(**{**SMALL, "ratios": [0, 0.25, 0.5], "total": 0.4, "planners": ["sleb"], "rules": [], "heal": []})
    cells = grid.cells({"layers": 4})
    assert [(cell.layers, cell.width.ratio) for cell in cells] == [(4, 0.4), (3, 0.2), (2, 0.0)]
    assert [cell.run for cell in cells] == ["sleb-4-flap-400", "sleb-3-flap-200", "sleb-2"]


@pytest.mark.parametrize(
    ("kind", "grid", "message"),
    [
        ("thresholds", {"rules": ["rdsc"]}, "has no thresholds"),
        ("thresholds", {"rules": ["rdsc"], "scored_at": []}, "has no thresholds"),
        ("thresholds", {"rules": ["rdsc"], "scored_at": [0]}, "Use a value above 0 and at most 1"),
        ("thresholds", {"rules": ["rdsc"], "from": 0.5, "scored_at": [0.4]}, "Use a value from 0.5 to 1"),
        ("thresholds", {"rules": ["rdsc"], "from": 2}, "from: 2.0 is out of range"),
        ("thresholds", {"rules": ["rdsc"], "from": None, "scored_at": [0.9]}, "from: must be a number"),
        ("thresholds", {"rules": 3, "from": 0.5}, "rules must be a list"),
        ("thresholds", {"rules": ["rdsc"], "from": 0.5, "scored_at": 0.9}, "scored_at must be a list"),
        ("thresholds", {"rules": ["rdsc"], "from": 0.5, "score_at": [0.9]}, "unknown entry 'score_at'"),
        ("thresholds", {"rules": ["rdsc"], "from": 0.5, "task": []}, "task must be text"),
        ("texts", {"metric": "cka", "texts": [5]}, "texts.0 must be text"),
        ("texts", {"metric": "cka", "texts": None}, "texts must be a list"),
    ],
)
def test_other_grids_are_checked_too(tmp_path, kind, grid, message):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({kind: grid}))
    with pytest.raises(SettingsError, match=message):
        read_grid(kind, tmp_path / "grid.yaml")


def test_a_study_from_the_command_line(experiment, tmp_path, capsys):
    grid = {**SMALL, "ratios": [0.25], "planners": ["sleb", "taylor"], "rules": [], "heal": []}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"methods": grid}))
    main(["study", "e", "methods", "--grid", str(tmp_path / "grid.yaml")])
    out = capsys.readouterr().out
    assert "sleb-3,merged,3," in out
    assert "taylor-3: This method can drop" in out
    with pytest.raises(SystemExit) as stopped:
        main(["study", "e", "methods", "--against", "best"])  # goes on with the grid it had
    assert stopped.value.code == 1
    assert "The grid has no method 'best'. Choose one of: sleb, taylor." in capsys.readouterr().err
    assert grid_of(experiment, "methods") == grid
    assert grid_of(experiment, "methods", GRIDS) == read_grid("methods")
    assert grid_of(experiment, "healing") == read_grid("healing")
    with pytest.raises(SystemExit) as stopped:
        main(["study", "e", "chess"])
    assert stopped.value.code == 1
