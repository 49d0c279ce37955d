"""One call of an accelerated pipeline: its loop is watched once, and then run outside of it.

The pipeline does everything else itself: prompts, first noise, decoding, safety checker. It is called as a view of
itself, in which networks and the scheduler are views of our own, so that other threads and other pipelines with the
same parts see nothing of it, and nothing has to be undone.
- A call of a kind that is not known runs in the pipeline's own loop and is watched, see `pipelines.watched.Watch`.
- In a call of a known kind the networks' first calls show their arguments, and all steps are made by a `Trajectory`;
  the pipeline's loop then has nothing left to do. Where later steps are made by other networks, or in another number of
  calls, this is so for each such stage.
- Where only the scale of guidance is another one, the first step is made by the pipeline and compared.
A call that differs from what was understood runs again from its start, in the pipeline's own loop, from the same random
state.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pgraft_fast.pipelines.accelerated.beginning import Beginning, is_watched, tell
from pgraft_fast.pipelines.accelerated.kinds import modules_of
from pgraft_fast.pipelines.accelerated.probe import Probe
from pgraft_fast.pipelines.accelerated.progress import Progress
from pgraft_fast.pipelines.accelerated.requests import Arguments
from pgraft_fast.pipelines.accelerated.steps import after_step, as_asked, steps_of
from pgraft_fast.pipelines.accelerated.trajectory import Trajectory
from pgraft_fast.pipelines.accelerated.watched_steps import WatchedSteps
from pgraft_fast.pipelines.adapters.callback import PGraftCallback
from pgraft_fast.pipelines.around import IN_CALL
from pgraft_fast.pipelines.explain import NotExplainedError
from pgraft_fast.pipelines.shortcuts import shortcuts
from pgraft_fast.pipelines.standin import scaled
from pgraft_fast.pipelines.trees import fresh
from pgraft_fast.pipelines.views import like, target_of, view
from pgraft_fast.pipelines.watched import Stage, Understood, Watch, agrees

if TYPE_CHECKING:
    from pgraft_fast.pipelines.accelerated.accelerate import State


class NotAsUnderstoodError(Exception):
    """The loop did something else than in the call before."""


class Session(AbstractContextManager["Session"]):
    """One call of a pipeline: `with Session(...) as session`, then the call of `session.pipe`.

    pipe: the pipeline, or a view of it. bound: the call's arguments by their names. rehearsed: what is understood of
    this kind and the state after the last step of this very call: no network of the loop is called then.
    """

    def __init__(
        self, pipe: Any, state: "State", bound: dict[str, Any], rehearsed: tuple[Understood, Tensor] | None = None
    ) -> None:
        self._pipe, self._runner = pipe, state.runner
        self._scheduler = target_of(pipe.scheduler)
        self._steps = steps_of(self._scheduler)
        self._watched_steps: WatchedSteps | None = None
        self._can_interrupt = hasattr(type(pipe), "interrupt")
        callback = bound.get("callback_on_step_end")
        self._handover = callback if isinstance(callback, PGraftCallback) else None
        self._rehearsed, self._probe = rehearsed, Probe() if rehearsed else None
        known = rehearsed and Beginning("known", understood=rehearsed[0])
        beginning = known or Beginning.of(pipe, self._steps, bound, state.known)
        self._mode: str = beginning.mode
        self._understood, self._like = beginning.understood, beginning.like
        self.watch = Watch() if self._mode == "watched" else None
        self._arguments: list[Arguments] = []
        self._final: Any = None
        ends = self._is_over if rehearsed is None else lambda: False
        self._progress = Progress(pipe, self._is_taken_over, ends, shown=rehearsed is None)
        self._stage, self._rounds_left, self._undo = 0, 0, ExitStack()
        self.pipe, self._members = pipe, dict[str, Any]()
        self._nets = tuple(modules_of(target_of(pipe)))
        if self._mode != "plain":
            self._members = {
                IN_CALL: True,
                "scheduler": view(pipe.scheduler, self._scheduler_members()),
                "progress_bar": self._progress,
                **self._networks(),
                **shortcuts(target_of(pipe)),
            }
            if self._can_interrupt:
                self._members["interrupt"] = None
            self.pipe = view(pipe, self._members)
            self._members.pop("interrupt", None)

    def _scheduler_members(self) -> dict[str, Any]:
        scheduler, members = self._scheduler, {"step": like(self._scheduler.step, self._on_step)}
        if hasattr(scheduler, "scale_model_input"):
            members["scale_model_input"] = like(scheduler.scale_model_input, self._on_scale)
        return members

    def _networks(self) -> dict[str, Any]:
        """Views of all networks: of those that an understood loop does not call it is seen that it does not."""
        call = self._on_call if self._mode == "known" else self._watched
        return {name: view(net := getattr(self._pipe, name), {"__call__": call(name, net)}) for name in self._nets}

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def understood(self) -> Understood | None:
        """After a watched call: what is to be remembered of it, once it has been rehearsed."""
        pipe, watch = target_of(self._pipe), self.watch
        if self._mode != "watched" or watch is None or (self._can_interrupt and getattr(pipe, "interrupt", False)):
            return None
        steps = getattr(pipe, "_num_timesteps", None) if hasattr(type(pipe), "num_timesteps") else None
        try:
            understood = watch.understood(self._steps.times().values, steps)
            assert self._watched_steps is not None
            self._watched_steps.check(understood.stages[0], watch.first)
        except NotExplainedError as error:
            self.leave(str(error))
            return None
        return None if any(is_watched(getattr(pipe, name)) for name in understood.nets) else understood

    def remember(self, understood: Understood) -> None:
        """Calls of this kind are known from now on."""
        assert self._like is not None
        self._like.put(understood)

    def leave(self, why: str) -> None:
        """Calls of this kind are left to the pipeline from now on."""
        assert self._like is not None
        tell(self._pipe, why)
        self._like.leave()

    def _leave(self) -> None:
        """The rest of the call is the pipeline's own; what it holds in variables goes on through us."""
        self._mode, self.watch = "plain", None
        self._give_back()

    def _give_back(self) -> None:
        """The pipeline has its own parts again: what it does with them after its loop, as offloading them, stays."""
        for name in (*self._nets, "scheduler"):
            self._members.pop(name, None)

    def _watched(self, name: str, net: Any) -> Callable[..., Any]:
        assert self.watch is not None
        watched, known = self.watch.of(name, net), self._on_call(name, net)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._mode == "watched" and torch.is_grad_enabled():
                self._leave()
            if self._mode == "over":
                return known(*args, **kwargs)
            return watched(*args, **kwargs) if self._mode == "watched" else net(*args, **kwargs)

        return call

    def _on_call(self, name: str, net: Any) -> Callable[..., Any]:
        """Of a network, in a known loop: its arguments are kept; zeros are returned, or what probes a rehearsed one."""

        def call(*args: Any, **kwargs: Any) -> Any:
            understood = self._understood
            if self._mode not in ("known", "over") or understood is None:
                return net(*args, **kwargs)
            stage = understood.stages[self._stage]
            if name not in stage.nets and not self._is_taken_over():
                # Before the loop.
                return net(*args, **kwargs)
            place, rules = len(self._arguments), stage.explanation.calls
            if place == len(rules) or rules[place].net != name:
                raise NotAsUnderstoodError
            if self._mode == "known" and (torch.is_grad_enabled() or not stage.is_like(place, args, kwargs)):
                raise NotAsUnderstoodError
            # Some pipelines go on with the same lists and dicts.
            self._arguments.append((fresh(args), fresh(kwargs)))
            blank = stage.blanks[place]
            return blank if self._probe is None else self._probe.answer(blank, place)

        return call

    def _on_scale(self, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        # A round that has nothing to do leaves the scheduler as it is after the last step.
        return sample if self._mode == "over" else self._scheduler.scale_model_input(sample, *args, **kwargs)

    def _on_step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        as_dict = kwargs.get("return_dict", True)
        if self._mode == "over":
            self._arguments = []
            self._rounds_left -= 1
            if self._rounds_left <= 0:
                self._end_stage()
            return as_asked(self._state(), as_dict)
        if self._mode == "known":
            self._final = self._known_step(model_output, sample, args, kwargs)
        else:
            if self._mode == "watched" and (args or model_output.requires_grad):
                self._leave()
            if self._mode != "watched":
                return self._scheduler.step(model_output, timestep, sample, *args, **kwargs)
            done = self._watched_step(model_output, timestep, sample, kwargs)
            if self._mode == "watched":
                return done
        if self._can_interrupt and (self._is_last_stage() or getattr(target_of(self._pipe), "interrupt", False)):
            # The loops that know `interrupt` skip their remaining rounds.
            self._members["interrupt"] = True
            self._give_back()
        return as_asked(self._state(), as_dict)

    def _state(self) -> Tensor:
        """What the loop gets in its rounds: the last state; in a rehearsal another one until its last round."""
        last = self._probe is None or self._rounds_left <= 0 or self._members.get("interrupt")
        return self._final if last or self._probe is None else self._probe.state(self._final)

    def _is_last_stage(self) -> bool:
        return self._understood is None or self._stage == len(self._understood.stages) - 1

    def _is_taken_over(self) -> bool:
        return self._mode == "over" or self._stage > 0

    def _is_over(self) -> bool:
        """Asked after a round by what counts them, which then makes no other one."""
        over = self._mode == "over" and self._is_last_stage()
        if over:
            self._give_back()
        return over

    def _begin_stage(self, stage: Stage) -> None:
        """Its steps are ours, and its rounds have nothing to do."""
        self._mode, self._rounds_left = "over", stage.steps - 1
        if self._handover is not None and self._stage == 0:
            # The pipeline calls it once more, after its first step.
            self._undo.enter_context(self._handover.inside(target_of(self._pipe)))

    def _end_stage(self) -> None:
        """After the last round of a loop that has nothing to do."""
        if self._is_last_stage():
            self._give_back()
        else:
            self._mode, self._stage = "known", self._stage + 1

    def _known_step(self, out: Tensor, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """All steps, in the place of the first."""
        understood, timesteps = self._understood, self._scheduler.timesteps
        assert understood is not None
        stage = understood.stages[self._stage]
        if args or len(self._arguments) != len(stage.explanation.calls) or len(timesteps) != understood.total:
            raise NotAsUnderstoodError
        self._begin_stage(stage)
        if self._rehearsed is not None and self._probe is not None:
            self._probe.check(stage.explanation, x, out)
            self._arguments = []
            return self._rehearsed[1].clone()
        return self._take_over(self._trajectory(stage, kwargs), x, stage.first)

    def _watched_step(self, out: Tensor, timestep: Any, x: Tensor, kwargs: dict[str, Any]) -> Any:
        """A step of the pipeline's own; after the first one all others, where the loop is another's but for a scale."""
        watch, understood = self.watch, self._understood
        assert watch is not None
        self._runner.check(x.device)
        seen = scaled(self._scheduler, x, timestep)
        if watch.why is not None:
            return self._scheduler.step(out, timestep, x, **kwargs)
        if self._watched_steps is None:
            self._watched_steps = WatchedSteps(self._scheduler)
        done, alone = self._watched_steps.step(out, timestep, x, kwargs)
        options = {name: value for name, value in kwargs.items() if name != "return_dict"}
        after = after_step(done)
        watch.step(seen, timestep, x, out, options, after, alone)
        if understood is None or len(watch.iterations) != 1:
            self._understood = None
            return done
        first, self._understood = watch.beginning(understood.nets), None
        same_steps = len(self._scheduler.timesteps) == understood.total
        if same_steps and agrees(understood.stages[0].explanation, first, first):
            self._understood = understood
            self._arguments = [(call.args, call.kwargs) for call in first.calls]
            self.remember(understood)
            (stage,) = understood.stages
            self._begin_stage(stage)
            trajectory = self._trajectory(stage, kwargs)
            self._final = after if trajectory.ends() else self._take_over(trajectory, after, stage.first + 1)
        return done

    def _take_over(self, trajectory: Trajectory, x: Tensor, first: int) -> Tensor:
        trajectory.arguments, self._arguments = self._arguments, []
        if self._handover is None or self._understood is None:
            return self._runner.run(trajectory, x, first, trajectory.last)
        pipe, handover = target_of(self._pipe), self._handover
        step = max(handover.step_of(pipe), self._understood.stages[0].first + 1)
        if step < first or (step >= trajectory.last and not self._is_last_stage()):
            # In a stage before this one, or after it.
            return self._runner.run(trajectory, x, first, trajectory.last)
        return self._runner.run_handover(trajectory, x, first, step, lambda: handover.switch(pipe, False))

    def _trajectory(self, stage: Stage, kwargs: dict[str, Any]) -> Trajectory:
        return Trajectory(
            scheduler=self._steps,
            nets={name: target_of(getattr(self._pipe, name)) for name in stage.nets},
            explanation=stage.explanation,
            arguments=self._arguments,
            options={name: value for name, value in kwargs.items() if name != "return_dict"},
            first=stage.first,
            last=stage.last,
            ends=self._progress.ends(target_of(self._pipe) if self._can_interrupt else None),
        )
