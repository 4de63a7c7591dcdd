"""Facts of single layers that no other family has, what a fact can be, and when two layers are built alike."""

import pytest
from torch import nn

from swm.errors import PlanError
from swm.models.layer_facts import _alike, _candidates, _signature, facts_for, set_facts
from tests.conftest import tiny_model

# Gemma 3n: the last layers use the keys and values of the last one below them.
GEMMA3N = {
    "head_dim": 8, "laurel_rank": 4, "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 2, "num_kv_shared_layers": 3, "intermediate_size": [64] * 8,
    "activation_sparsity_pattern": [0.0] * 8, "layer_types": ["full_attention"] * 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "shared"),
    [
        ([0, 1, 2, 3, 4, 5, 6], 2),  # 5 and 6 of 5, 6 and 7
        ([0, 1, 2, 3, 4, 7], 1),
        ([1, 2, 3, 4, 5, 6, 7], 3),
        ([0, 4, 5, 6, 7], 3),
    ],
)
def test_the_last_so_many_layers_are_counted_among_those_kept(kept, shared):
    model = tiny_model("gemma3n_text", layers=8, **GEMMA3N)
    facts = facts_for(model, kept)
    assert facts.get("num_kv_shared_layers", 3) == shared
    assert facts["num_hidden_layers"] == len(facts["layer_types"]) == len(kept)
    assert model.config.num_hidden_layers == 8


def test_a_layer_whose_keys_and_values_others_use_cannot_go():
    model = tiny_model("gemma3n_text", layers=8, **GEMMA3N)
    with pytest.raises(PlanError, match="cannot describe the layers that are left") as error:
        facts_for(model, [0, 1, 2, 3, 5, 6, 7])
    assert "layer 3 of the smaller model, originally layer 3, would be built as another kind" in str(error.value)


def test_facts_are_put_into_the_models_own_config():
    model = tiny_model(layers=3)
    set_facts(model, {"num_hidden_layers": 2, "anything": [1]})
    assert (model.config.num_hidden_layers, model.config.anything) == (2, [1])


@pytest.mark.parametrize(
    ("value", "candidates"),
    [
        # Of 6 layers 0, 2, 4 and 5 are left.
        (3, [2, 1, 1, 2]),  # below 3: two. The index where it ends: 2 is now 1. The last 3: two, 4 and 5.
        (0, [0, -1, 0, 0]),
        (6, [4, 3, 3, 4]),
        (7, []),
        (-1, []),
        (True, []),
        (2.0, []),
        ("2", []),
        (None, []),
        ([], []),
        (["a", "b"], [["a", "a", "a", "b"]]),  # a, b, a, b, a, b
        ((1, 4, 5), [[1, 5, 4, 5], [2, 3]]),  # as a pattern: 1, 4, 5, 1, 4, 5; as indexes: 4 and 5 are now 2 and 3
        (list("abcdef"), [list("abcdef"), list("acef")]),  # as long as the layers by chance, or one for each
    ],
)
def test_an_entry_can_be_any_fact_about_layers(value, candidates):
    assert list(_candidates({"n": value}, [0, 2, 4, 5], 6)) == [("n", candidate) for candidate in candidates]


class Numbered(nn.Module):
    def __init__(self, number, **attributes):
        super().__init__()
        self.number = number
        vars(self).update(attributes)


def alike(one, other, new=0, old=0):
    return _alike(_signature(one, {}), _signature(other, {}), new, old)


def test_layers_are_alike_by_place_class_shapes_and_plain_attributes():
    layer = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    assert alike(layer, nn.Sequential(nn.Linear(2, 3), nn.Tanh()))
    for other in (
        nn.Sequential(nn.Linear(2, 3), nn.Sigmoid()),  # another class of the same attributes
        nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh()),
        nn.Sequential(nn.Linear(2, 4), nn.Tanh()),
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Tanh()),
        nn.Sequential(nn.Tanh(), nn.Linear(2, 3)),
    ):
        assert not alike(layer, other)
        assert not alike(other, layer)
    assert alike(Numbered(0, dropout=0.1), Numbered(0, dropout=0.1))
    assert not alike(Numbered(0, dropout=0.1), Numbered(0, dropout=0.2))
    assert not alike(Numbered(0, dropout=0.1), Numbered(0))
    assert alike(Numbered(0, anything=nn.Tanh), Numbered(0))  # not plain
    assert alike(Numbered(0, _hidden=1), Numbered(0, _hidden=2))
    assert alike(layer.eval(), nn.Sequential(nn.Linear(2, 3), nn.Tanh()).train())


def test_a_layer_may_know_its_own_number_and_no_other():
    assert alike(Numbered(2), Numbered(5), new=2, old=5)
    assert not alike(Numbered(2), Numbered(5), new=2, old=4)
    assert not alike(Numbered(1), Numbered(5), new=2, old=5)
    assert alike(Numbered(7), Numbered(7), new=2, old=5)
