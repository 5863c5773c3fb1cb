"""`Components.blocks`: which parts of a network are compiled and recomputed one by one."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from builders import small_components
from heptad import ConfigError, Engine, RunConfig
from heptad.blocks.finding import find_blocks


def linears(count: int) -> nn.ModuleList:
    """Return a list of so many layers."""
    return nn.ModuleList(nn.Linear(4, 4) for _ in range(count))


def network(**parts: nn.Module) -> nn.Module:
    """Return a network of these parts, and a last layer."""
    made = nn.Module()
    for name, part in {**parts, "head": nn.Linear(4, 3)}.items():
        made.add_module(name, part)
    return made


def names(found: dict[str, nn.Module]) -> list[str]:
    return list(found)


def test_by_default_they_are_the_members_of_the_longest_list():
    assert names(find_blocks(network(a=linears(2), b=linears(3)), None)) == ["b.0", "b.1", "b.2"]


def test_of_several_longest_lists_all_members_count():
    assert names(find_blocks(network(a=linears(2), b=linears(2), c=linears(1)), None)) == ["a.0", "a.1", "b.0", "b.1"]


def test_a_network_without_a_list_is_its_own_block():
    alone = network(a=nn.ModuleList(), b=nn.ModuleDict({"x": nn.Linear(4, 4)}))
    assert find_blocks(alone, None) == {"": alone}


def test_a_list_whose_members_cannot_be_called_does_not_count():
    lists = nn.ModuleList([linears(1), linears(1), linears(1)])
    assert names(find_blocks(network(a=lists, b=linears(2)), None)) == ["b.0", "b.1"]


def test_of_two_lists_of_one_length_the_outer_one_counts():
    outer = linears(2)
    outer[0].add_module("heads", linears(2))
    assert names(find_blocks(network(a=outer), None)) == ["a.0", "a.1"]


def test_a_module_that_stands_twice_is_one_block():
    shared = nn.Linear(4, 4)
    assert names(find_blocks(network(a=nn.ModuleList([shared, shared])), None)) == ["a.0"]


def test_a_function_chooses():
    chosen = find_blocks(network(a=linears(3)), lambda network: [network.head, *network.a[1:]])
    assert names(chosen) == ["head", "a.1", "a.2"]


def test_a_sequential_is_taken_as_its_members():
    parts = network(a=nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert names(find_blocks(parts, lambda network: network.a)) == ["a.0", "a.1"]


@pytest.mark.parametrize(
    ("choose", "text"),
    [
        (lambda network: network.head, "must return several modules, got a Linear; return [module]"),
        (lambda network: None, "must return modules of the network, got a NoneType"),
        (lambda network: ["a.0"], "must return modules of the network, a str is among them"),
        (lambda network: [nn.Linear(4, 4)], "that is no module of the network"),
        (lambda network: [network.a], "returns 'a', a ModuleList, which cannot be called; return its members"),
        (lambda network: [], "returns no module; leave it out"),
        (lambda network: [network.b, network.b[0]], "gives 'b.0' and 'b', which holds it; give one of them"),
    ],
)
def test_what_cannot_be_a_block_is_refused_when_the_engine_is_built(choose: Any, text: str):
    with pytest.raises(ConfigError) as caught:
        Engine(
            small_components(network(a=linears(2), b=nn.Sequential(nn.Linear(4, 4))), blocks=choose),
            RunConfig(epochs=1),
        )
    assert text in str(caught.value)


def test_blocks_must_be_a_function():
    with pytest.raises(ConfigError, match=r"Components\.blocks"):
        small_components(network(a=linears(2)), blocks=["a.0"])


def test_without_compile_and_recompute_blocks_change_nothing():
    components = small_components(blocks=lambda network: [network])
    assert Engine(components, RunConfig(epochs=1)).run().state == "finished"
