"""The ways in which a pipeline is called: guided, without guidance, at another scale; each explained or driven."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from pgraft_fast.pipelines.driver import Driver
from pgraft_fast.pipelines.experts import Experts
from pgraft_fast.pipelines.explain import NotExplainedError
from pgraft_fast.pipelines.facts import LEVEL, Facts, Way, way_at
from pgraft_fast.pipelines.fast import FastLoop

# Times at which a loop is watched, as shares of the first.
WATCHED = (0.61, 0.13, 0.97)
# Ways to call a pipeline: as its arguments ask, or without guidance. A number is another scale of guidance.
GUIDED, UNGUIDED = "guided", "unguided"
Key = str | float


@dataclass
class Ways:
    """How a pipeline is called, shared by all that call it with the same network. ways: what each is. wanted:
    prompts that are prepared, by those with other networks, too.
    """

    facts: Facts
    net: nn.Module
    ways: dict[Key, Way] = field(default_factory=dict)
    drivers: dict[Key, Driver] = field(default_factory=dict)
    fast: dict[Key, FastLoop | Experts | None] = field(default_factory=dict)
    why: dict[Key, str | None] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, facts: Facts, net: nn.Module) -> "Ways":
        """With guidance and without."""
        made = cls(facts, net)
        made.add(GUIDED, facts.guided)
        made.add(UNGUIDED, facts.unguided)
        return made

    def key(self, way: Key) -> Key:
        """Of a way, which is added where it is another scale."""
        if way == self.facts.guided.calls.guidance:
            return GUIDED
        if way not in self.ways:
            self.add(way, way_at(self.facts, float(way)))
        return way

    def with_net(self, net: nn.Module) -> "Ways":
        """The same with another network of the same kind."""
        made = replace(self, net=net, ways=dict(self.ways), why=dict(self.why))
        made.drivers = {key: self._driver(way, net) for key, way in self.ways.items()}
        name = self.facts.denoiser
        made.fast = {
            key: loop and loop.mapped(lambda called, own: net if called == name else own)
            for key, loop in self.fast.items()
        }
        return made

    def compiled(self, compile: Callable[[nn.Module], Any]) -> "Ways":
        """The same with compiled networks, where they are called directly."""
        fast = {key: loop and loop.mapped(lambda name, net: compile(net)) for key, loop in self.fast.items()}
        return replace(self, ways=dict(self.ways), drivers=dict(self.drivers), fast=fast, why=dict(self.why))

    def add(self, key: Key, way: Way) -> None:
        """Find out whether the denoiser can be called directly; where it cannot, the loop is driven."""
        facts = self.facts
        same = next((known for known, other in self.ways.items() if other is way), None)
        self.ways[key] = way
        if same is not None:
            self.drivers[key], self.fast[key], self.why[key] = self.drivers[same], self.fast[same], self.why[same]
            return
        self.drivers[key], self.fast[key], self.why[key] = self._driver(way, self.net), None, None
        if facts.seeded:
            self.why[key] = "the seed of a sample decides more than its noise"
        elif way.calls.rows == 1:
            self.why[key] = "the pipeline makes one sample at once"
        else:
            try:
                with facts.team(way.calls.rows):
                    self.fast[key] = self._explained(self.drivers[key])
            except NotExplainedError as error:
                self.why[key] = str(error)

    def _explained(self, driver: Driver) -> FastLoop | Experts:
        facts, of_time = self.facts, self.facts.times.of_time
        if facts.lowest == 0.0:
            return FastLoop.of(driver, [of_time(facts.begin * share) for share in WATCHED])
        low = facts.lowest - LEVEL
        above = [of_time(facts.lowest + (facts.begin - facts.lowest) * share) for share in WATCHED]
        below = [of_time(low * share) for share in WATCHED]
        return Experts.of(driver, of_time(facts.lowest), of_time(low), above, below)

    def _driver(self, way: Way, net: nn.Module) -> Driver:
        return Driver(way.calls, way.state, {self.facts.denoiser: net})
