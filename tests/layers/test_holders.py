"""Whether any module holds a Parameter."""

from torch import nn

from loralib.layers.holders import is_held


def test_a_parameter_is_held_as_long_as_a_module_has_it():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    parameter = model[0][0].weight
    assert is_held(parameter)
    model[0][0].weight = nn.Parameter(parameter.detach().clone())
    assert not is_held(parameter)


def test_what_else_refers_to_a_parameter_does_not_hold_it():
    parameter = nn.Parameter(nn.Linear(2, 2).weight.detach())
    lists, named, module = [parameter], {"weight": parameter}, nn.Identity()
    module.note, module.by_name = lists, {"_parameters": parameter}
    vars(module)["weight"] = parameter
    assert not is_held(parameter)
    assert [lists, named] == [[parameter], {"weight": parameter}]
