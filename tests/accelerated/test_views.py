"""Views: the target's attributes, other members, nothing left on the target."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pgraft_fast.pipelines.views import is_view, target_of, view


class Thing:
    """With an attribute, a property, a slot's worth of state and a call."""

    def __init__(self):
        self.size = 3

    @property
    def double(self):
        return 2 * self.size

    def grow(self, by=1):
        self.size += by
        return self.size

    def __call__(self, x):
        return x + self.size


def test_members_are_found_first_and_the_rest_is_the_targets():
    thing = Thing()
    seen = view(thing, {"double": -1, "__call__": lambda x: 10 * x, "fresh": 5})
    assert isinstance(seen, Thing) and type(seen).__name__ == "Thing" and is_view(seen) and target_of(seen) is thing
    assert (seen.double, seen(2), seen.fresh, seen.size) == (-1, 20, 5, 3)
    assert seen.grow(by=2) == 5 == thing.size and thing.double == 10 and thing(2) == 7
    seen.other = 1
    assert thing.other == 1 and vars(seen) is vars(thing) and not is_view(thing) and target_of(thing) is thing
    assert not hasattr(seen, "missing")


def test_a_member_that_is_taken_out_is_the_targets_again():
    thing, members = Thing(), {"double": -1, "size": 8}
    seen = view(thing, members)
    assert (seen.double, seen.size) == (-1, 8)
    del members["double"], members["size"]
    assert (seen.double, seen.size) == (6, 3)
    members["size"] = 9
    seen.size = 4
    assert seen.size == thing.size == 4 and "size" not in members


def test_a_view_of_a_view():
    thing = Thing()
    first = view(thing, {"double": -1, "size": 8})
    members = {"size": 9}
    second = view(first, members)
    assert (second.double, second.size, first.size) == (-1, 9, 8) and target_of(second) is thing
    del members["size"]
    assert second.size == 8


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_copies_of_the_target(copied):
    twin = copied(view(Thing(), {"size": 8}))
    assert type(twin) is Thing and twin.size == 3


def test_a_module():
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    x, calls = torch.ones(1, 2), []

    def called(x):
        calls.append(1)
        return module(x)

    seen = view(module, {"__call__": called})
    handle = module.register_forward_hook(lambda hooked, args, out: out + 1)
    assert torch.equal(seen(x), module(x)) and len(calls) == 1
    assert list(seen.parameters()) == list(module.parameters()) and isinstance(seen, nn.Sequential)
    handle.remove()
    seen.eval()
    assert not module.training and seen[0] is module[0]
