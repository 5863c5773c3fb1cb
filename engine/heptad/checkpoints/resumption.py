"""`Resumption`: how a run begins, is captured, and is resumed from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from heptad.checkpoints.capture import capture
from heptad.checkpoints.damage import AnotherRunError
from heptad.checkpoints.finding import find, stores_of
from heptad.checkpoints.form import StoredBeginning
from heptad.checkpoints.identity import changed_options, check_run
from heptad.checkpoints.modules import describe_module, modules_of
from heptad.checkpoints.restore import Build, check, restore
from heptad.checkpoints.together import together
from heptad.checkpoints.worlds import check_world, take_over
from heptad.data.generators import restore_states
from heptad.errors import CheckpointError, EngineError, in_a_line
from heptad.plugin.detour_state import DetourState
from heptad.plugin.manager import PluginManager
from heptad.plugin.placing import Placing
from heptad.plugin.subscription import Subscription
from heptad.record.checkpoint_events import Remark, Resume
from heptad.run.run import Run
from heptad.run.snapshot import Snapshot

CHANGES = ("optimizer",)
"""What `allow_changes` may name."""


class Resumption:
    """What checkpoints need of an engine: its plugins, and what only the beginning of a run shows.

    In the order in which the engine calls: `resume` if asked for, `begin`, and `restore_generators` once plugins are
    open.

    Args:
        manager: The plugins.
        detours: What the guards of the detours count.
        subscriptions: The handlers; the list may still grow.
    """

    def __init__(
        self, manager: PluginManager, detours: Sequence[DetourState], subscriptions: Sequence[Subscription]
    ) -> None:
        self._manager = manager
        self._detours = detours
        self._subscriptions = subscriptions
        self._first: dict[str, StoredBeginning | None] = {}
        """What each module was before the first turn: handlers may change its options later."""
        self._options: dict[str, Mapping[str, str]] = {}
        """The parts of each module in the checkpoint that the run was resumed from."""
        self._refused = ""
        """Why the run could not be resumed: it is not driven then, for it would begin, or continue from a mixture."""
        self._begun = False
        """Whether restoring has begun to change live objects."""
        self._asked = False
        """Whether the ranks have compared what each is to resume from."""
        self._placed = False
        """Whether plugins that choose a folder have done so for this run."""
        self._paths: list[tuple[Placing, Path]] = []
        """What they chose: one that serves several engines may have chosen for another run since."""
        self._generators: Mapping[str, Any] | None = None
        """States of the global generators from a checkpoint, until `restore_generators` does."""

    def begin(self, run: Run) -> None:
        """Say in the log which of how many ranks this is, and describe the modules of a run in `idle`.

        Called before plugins are opened.

        Raises:
            EngineError: If the run could not be resumed.
        """
        self._refuse_after_failure(", or run(resume=…) with another checkpoint")
        run._buffer.facts |= {"rank": run.rank, "world": run.world}
        for plugin, path in self._paths:
            plugin.take(path)
        if run.state == "idle":
            self._compare(run, "no checkpoint")
            if not self._placed:
                self._place(run, None)
            self._first.update((name, describe_module(module)) for name, module in modules_of(run).items())

    def capture(self, run: Run) -> Snapshot:
        """Return everything that the rest of the run depends on, see `capture`."""
        return capture(run, self._manager, self._detours, self._subscriptions, self._first)

    def resume(
        self, run: Run, source: str | os.PathLike[str] | None, build: Build, allow_changes: Collection[str] = ()
    ) -> None:
        """Restore a run from a checkpoint, all but the global generators.

        A run that was restored from this checkpoint and has made no turn since, because a plugin failed to open, is
        left as it is.

        Args:
            run: The run, in `idle`.
            source: A directory of checkpoints, one checkpoint, or `"auto"`.
            build: Builds the optimizers and places the network.
            allow_changes: What may differ from the checkpoint, see `Engine.run`.

        Raises:
            EngineError: If the run has begun, or was restored from another checkpoint; if `allow_changes` names
                something else.
            CheckpointError: If there is no sound checkpoint, or the run is not the one that it is of.
        """
        if source is None:
            raise EngineError("run(allow_changes=…) goes with resume=…: it says what may differ from a checkpoint")
        if isinstance(allow_changes, str) or not set(allow_changes) <= set(CHANGES):
            raise EngineError(f"run(allow_changes=…) takes a tuple of names out of {CHANGES}, got {allow_changes!r}")
        if run.state != "idle" and self._generators is None:
            raise EngineError(
                f"run(resume=…) was called on a run that is in {run.state}; call run() to continue it, or build a new "
                "Engine to resume from a checkpoint"
            )
        if self._begun:
            self._refuse_after_failure()
        self._compare(run, f"{source!s:.1000}")
        try:
            self._resume(run, source, build, allow_changes)
        except AnotherRunError as error:  # nothing was touched: the run may still begin
            self._placed = False
            raise CheckpointError(str(error)) from error.__cause__
        except BaseException as error:
            mistaken = type(error) is EngineError  # a call that is not legal
            self._placed = self._generators is not None
            if self._generators is None and not mistaken:
                self._refused = in_a_line(error)
            raise
        self._refused, self._begun = "", False

    def _compare(self, run: Run, asked: str) -> None:
        """Compare what the ranks are to resume from, once: they would wait for one another at different places.

        Raises:
            EngineError: On all ranks, if they differ.
        """
        ranks = together(run._runtime.peers)
        if self._asked or not ranks.others:
            return
        found = ranks.each(lambda: asked)
        odd = next((rank for rank, other in enumerate(found) if other != found[0]), None)
        if odd is not None:
            raise EngineError(
                f"the ranks do not resume alike: rank 0 from {found[0]}, rank {odd} from {found[odd]}; call "
                "run(resume=…) with the same argument on all ranks"
            )
        self._asked = True

    def _refuse_after_failure(self, otherwise: str = "") -> None:
        if self._refused:
            raise EngineError(
                f"this engine could not be resumed ({self._refused:.300}), and is not driven: what it would do now is "
                f"not what was asked for; build a new Engine{'' if self._begun else otherwise}"
            )

    def _resume(self, run: Run, source: str | os.PathLike[str], build: Build, allow_changes: Collection[str]) -> None:
        again = source == "auto" and run._afresh  # it found none before, and a plugin failed to open
        placing = self._generators is None and not again
        if placing and source == "auto" and stores_of(self._manager.plugins):
            self._place(run, source)
        found = find(source, stores_of(self._manager.plugins), run)
        if self._generators is not None:
            if found is None or found.path.resolve() != Path(run.resumed_from or "").resolve():
                raise EngineError(
                    f"run(resume=…) names {'no checkpoint' if found is None else found.path}, but this run was resumed "
                    f"from {run.resumed_from} before; call run() to continue it, or build a new Engine"
                )
            return
        if found is None:
            run._afresh = True
            run.emit(Resume, checkpoint=None, state=run.state)
            return
        ranks = together(run._runtime.peers)
        if ranks.others:  # before the network is placed, for which the ranks wait for one another
            ranks.succeed(lambda: check_run(run, self._manager.plugins, found.sections))
        check_world(run, found.sections)  # alike on all ranks
        ranks.succeed(lambda: take_over(run, found.sections, found.taken, self._manager.plugins))
        checked = ranks.succeed(lambda: check(run, found.sections, self._manager, self._detours, build, allow_changes))
        if placing and source != "auto":  # no folder for a run that is refused
            self._place(run, source)
        self._begun = True
        findings = ranks.succeed(
            lambda: restore(run, found.sections, checked, self._manager, self._detours, self._subscriptions)
        )
        for name in modules_of(run):
            if (stored := found.sections.module(name)) is not None:
                self._first[name], self._options[name] = stored.first, stored.parts
        self._generators = found.sections.run.random
        run._resumed_from = str(found.path)
        run.emit(Resume, checkpoint=found.path.name, state=run.state)
        for text in found.damage:
            run.emit(Remark, text)
        for finding in findings:
            run.emit(finding)

    def _place(self, run: Run, source: str | os.PathLike[str] | None) -> None:
        """Choose the folders of this run on the first rank, for all ranks.

        Raises:
            PluginError: If one cannot be made; of several ranks a CheckpointError.
        """
        self._paths = []
        for plugin in self._manager.plugins:
            if isinstance(plugin, Placing):
                path = Path(together(run._runtime.peers).first(partial(_placed_by, plugin, source)))
                plugin.take(path)
                self._paths.append((plugin, path))
        self._placed = True

    def restore_generators(self, run: Run) -> None:
        """Restore the global generators of a run that was resumed, and note which options nobody has restored.

        Called when plugins are open: opening them may draw random numbers, and may change options.
        """
        if self._generators is None:
            return
        try:
            restore_states(self._generators)
        except Exception as error:
            self._refused, self._begun = in_a_line(error), True
            raise CheckpointError(f"the state of a random generator is not accepted: {self._refused}") from error
        self._generators = None
        for text in changed_options(run, self._options):
            run.emit(Remark, text)


def _placed_by(plugin: Placing, source: str | os.PathLike[str] | None) -> str:
    return str(plugin.place(source))
