"""`Freeze` changes the run: parameters stand still, for the whole run or its first epochs, and are trained then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from heptad import EngineError, Plugin, PluginError, Run
from heptad_plugins._joining import announce, in_registry, option_mistake
from heptad_plugins._options import number, text_of, whole_number, yes_or_no
from heptad_plugins._patterns import matching_parameters, matching_statistics, patterns_of
from heptad_plugins._stored import flag_in, mapping


class Freeze(Plugin):
    """Freeze the parameters whose names match patterns, and thaw them after some epochs.

    They are frozen on entry to `before_loop`, before the engine builds the optimizers: `requires_grad` is False, they
    get no gradient, and no optimizer moves them, by weight decay or momentum either. On entry to `before_epoch`, once
    `until` epochs are complete, they are thawed. Those that no optimizer holds by then (a function that builds one may
    filter by `requires_grad`) join one, as a parameter group of their own. Those that an optimizer holds already stay
    in its group, with its options; such an optimizer has skipped them.

    A parameter that takes no gradient before is neither frozen nor thawed. Parameters that are tied are one: it is
    frozen if one of its names matches. Evaluation, `EMA` and checkpoints see frozen parameters as they see all.

    BatchNorm updates its running statistics in each forward pass in training mode, whether its weights are frozen or
    not. By default those whose statistics match as well (`"backbone.*"` matches `backbone.bn.running_mean`) are in
    evaluation mode while they are frozen. Dropout stays as it is.

    An `LRSchedule` that is given a function includes the group that joins, as if the group had been there from the
    first update on: its first rate is `lr`, and the factor is that of the schedule at this place. The recorded rates
    are then `"lr/0"` and `"lr/1"` in place of `"lr"`. A scheduler that is built already, or a second schedule of the
    same optimizer, cannot include it, and is refused in `before_loop`.

    With `strategy="ddp"` the gradients of thawed parameters are averaged on their own, one by one after the backward
    pass of a window, because torch's DDP knows those only that took a gradient when the run began. With
    `remainder="carry"` a window that is open over the end of an epoch has gradients of thawed parameters from its later
    steps only.

    Args:
        *patterns: Of names as `network.named_parameters()` has them, as `fnmatch` takes them: `"backbone.*"`.
        until: The epochs after which they are trained, from 1 on; `None`: never. Where the run has no epoch after these
            a note in the log says so.
        lr: The learning rate of the group that joins; by default the one that the optimizer was built with. Where
            none joins it is not used, and a note in the log says so.
        group: More options of this group, such as `{"weight_decay": 0.0}`; the others are the optimizer's defaults.
        optimizer: Which of several optimizers they join, by its number in `Components.optimizer`.
        freeze_statistics: Whether layers with running statistics that match are in evaluation mode while frozen.
            `network.train()` in a handler undoes it, as it does for every layer.
        name: The plugin's name; by default `Freeze/` and the patterns.

    Raises:
        PluginError: When built, for an option that does not fit. When the engine is built, if a pattern matches no
            parameter, or the patterns match all that are trained.
        EngineError: In `before_loop`, if all that match are frozen already or another `Freeze` has one of them; if
            nothing is left to train; if the optimizer does not take a further group, or has no such option.
    """

    ranks = "all"  # each freezes its own parameters
    runs_before = ("LRSchedule", "ModelSummary")

    def __init__(
        self,
        *patterns: str,
        until: int | None = None,
        lr: float | None = None,
        group: Mapping[str, Any] | None = None,
        optimizer: int = 0,
        freeze_statistics: bool = True,
        name: str | None = None,
    ) -> None:
        self._patterns = patterns_of("Freeze", patterns)
        self._until = None if until is None else whole_number("Freeze", "until", until)
        self._group = _options(until, lr, group)
        self._number = whole_number("Freeze", "optimizer", optimizer, least=0)
        self._statistics = yes_or_no("Freeze", "freeze_statistics", freeze_statistics)
        own = "Freeze/" + ",".join(self._patterns)
        self.name = own if name is None else text_of("Freeze", "name", name, "a word such as 'backbone'")
        self._names: list[str] | None = None
        """The parameters that it has frozen; `None` before."""
        self._thawed = False

    def on_build(self, run: Run) -> None:
        """Compare the patterns with the network."""
        found = matching_parameters("Freeze", run.network, self._patterns)
        trained = [name for name, one in run.network.named_parameters() if one.requires_grad]
        if found.keys() >= set(trained):
            raise PluginError(
                f"Freeze({', '.join(map(repr, self._patterns))}) matches all {len(trained)} parameters that are "
                "trained, and nothing would be left to train; name those of a part of the network"
            )

    def on_begin(self, run: Run) -> None:
        """Forget what was frozen in an earlier run."""
        self._names, self._thawed = None, False

    def open(self, run: Run) -> None:
        """Freeze, if the run has begun without this plugin: it was resumed from a checkpoint that has none of it."""
        if self._names is None and run.state != "idle":
            if self._until is not None and run.epoch >= self._until:
                self._names, self._thawed = [], True
            else:
                self._freeze(run)
                self._hold_statistics(run)

    def on_enter_before_loop(self, run: Run) -> None:
        """Freeze, before the optimizers are built."""
        self._freeze(run)

    def on_exit_before_loop(self, run: Run) -> None:
        """Put layers with running statistics into evaluation mode; see whether the optimizer takes what joins."""
        self._hold_statistics(run)
        if self._until is not None and (joining := self._unheld(run)):
            optimizer = self._optimizer(run)
            self._check(run, optimizer, joining)
            announce(run, optimizer)
        elif self._group:
            run.note(
                f"{self.name}: lr and group are not used: an optimizer holds all that is frozen; give Components a "
                "function that builds it from the parameters with requires_grad"
            )
        epochs = run.config.epochs
        if self._until is not None and epochs is not None and epochs <= self._until:
            run.note(f"{self.name}: nothing will be thawed: until={self._until}, and epochs={epochs}")

    def on_enter_before_epoch(self, run: Run) -> None:
        """Thaw, if the epochs are complete."""
        if self._until is not None and run.epoch >= self._until and not self._thawed:
            self._thawed = True
            self._let_go(run)
            run.note(f"{self.name}: {_in_number(self._names or ())} thawed{self._join(run)}")

    def state_dict(self) -> dict[str, Any]:
        """Return the names of what it has frozen, and whether that is thawed."""
        return {} if self._names is None else {"frozen": list(self._names), "thawed": self._thawed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take these names; the parameters take a gradient or none as the checkpoint says of each.

        Raises:
            ValueError: If it is no state of this class.
        """
        if not state:
            return
        thawed = flag_in(mapping(state), "thawed")
        names = state.get("frozen")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[Any]", names)):
            raise ValueError(f"frozen is {names!r:.60}, expected a list of names")
        self._names, self._thawed = cast("list[str]", names), thawed

    # -- freeze

    def _freeze(self, run: Run) -> None:
        found = matching_parameters("Freeze", run.network, self._patterns)
        owners = in_registry(run)
        if twice := next((name for name in found if owners.get(name, self.name) != self.name), None):
            raise EngineError(
                f"{self.name} and {owners[twice]} both freeze {twice}; give each parameter to one Freeze, by patterns "
                "that do not overlap"
            )
        taken = {name: one for name, one in found.items() if one.requires_grad}
        if not taken:
            raise EngineError(
                f"{self.name}: {_in_number(found)} that match are frozen already; if a run that ended before its thaw "
                "has left them so, call requires_grad_(True) on them, else leave the plugin out"
            )
        for name, one in taken.items():
            one.requires_grad_(False)
            one.grad = None
            owners[name] = self.name
        self._names = list(taken)
        if not any(one.requires_grad for one in run.network.parameters()):
            raise EngineError(f"{self.name}: now all parameters are frozen, and nothing is left to train")

    def _hold_statistics(self, run: Run) -> None:
        if self._statistics:
            for layer in matching_statistics(run.network, self._patterns).values():
                layer.training = False

    # -- thaw

    def _let_go(self, run: Run) -> None:
        """Let the parameters take gradients again, and statistics follow the data."""
        for one in self._parameters(run).values():
            one.requires_grad_(True)
        if self._statistics:
            for layer in matching_statistics(run.network, self._patterns).values():
                layer.training = True

    def _join(self, run: Run) -> str:
        """Add what no optimizer holds to one, as a group; return what was done, in words."""
        joining = self._unheld(run)
        if not joining:
            return ""
        optimizer = self._optimizer(run)
        _add_joining(run, optimizer, joining, self._group)
        place = len(run.parameter_groups(optimizer)) - 1
        return f", {len(joining)} of them join {type(optimizer).__name__} as group {place}"

    def _unheld(self, run: Run) -> dict[str, nn.Parameter]:
        """Return those of the parameters that no optimizer holds."""
        side = (group for one in run.side_optimizers.values() for group in run.parameter_groups(one))
        held = {id(one) for group in (*run.parameter_groups(), *side) for one in group["params"]}
        return {name: one for name, one in self._parameters(run).items() if id(one) not in held}

    def _parameters(self, run: Run) -> dict[str, nn.Parameter]:
        every = dict(run.network.named_parameters())
        if lost := next((name for name in self._names or () if name not in every), None):
            raise EngineError(f"{self.name}: it has frozen {lost}, and the network has no parameter of this name now")
        return {name: every[name] for name in self._names or ()}

    def _optimizer(self, run: Run) -> Optimizer:
        if self._number >= len(run.optimizers):
            raise EngineError(f"Freeze(optimizer={self._number}): there are {len(run.optimizers)}, counted from 0")
        return run.optimizers[self._number]

    def _check(self, run: Run, optimizer: Optimizer, joining: Mapping[str, nn.Parameter]) -> None:
        """Refuse before the first epoch what the optimizer would not take, or never step, when it joins."""
        if isinstance(optimizer, LBFGS):
            raise EngineError(
                f"{self.name}: LBFGS steps its first parameter group only, so nothing can join it; build it with all "
                "parameters of the network: frozen ones stand still"
            )
        if mistake := option_mistake(optimizer, self._group):
            raise EngineError(f"Freeze(group=…): {mistake}")
        held = len(optimizer.param_groups)
        try:
            _add_joining(run, optimizer, joining, self._group)
        except Exception as error:
            raise EngineError(
                f"{self.name}: {type(optimizer).__name__} takes no further group of {', '.join(joining)} ({error}); "
                "build it with all parameters of the network: frozen ones stand still"
            ) from error
        finally:
            del optimizer.param_groups[held:]
            for one in joining.values():
                optimizer.state.pop(one, None)


def _add_joining(
    run: Run, optimizer: Optimizer, joining: Mapping[str, nn.Parameter], options: Mapping[str, Any]
) -> None:
    first, given = run.parameter_groups(optimizer)[0], dict(options)
    if len({run.local(one) is one for one in joining.values() if one.dim()}) > 1:  # some are shared by ranks
        given["foreach"] = False
    rate = optimizer.defaults.get("lr")
    if isinstance(rate, Tensor):  # the groups would share it, and a schedule writes into it
        given.setdefault("lr", first.get("initial_lr", rate).clone())
    held: list[Any] = [*(joining.items() if "param_names" in first else joining.values())]
    optimizer.add_param_group({**given, "params": held})


def _options(until: object, lr: object, group: object) -> dict[str, Any]:
    """Return the options of the group that joins."""
    if until is None and (lr is not None or group is not None):
        raise PluginError("Freeze(lr=…, group=…) are options of parameters that are trained again: say until=…")
    if group is not None and not (
        isinstance(group, Mapping) and all(isinstance(name, str) for name in cast("Mapping[Any, Any]", group))
    ):
        raise PluginError(
            f"Freeze(group=…) must be options of a parameter group by name, such as {{'weight_decay': 0.0}}, "
            f"got {group!r}"
        )
    options: dict[str, Any] = dict(cast("Mapping[str, Any]", group or {}))
    if "params" in options or (lr is not None and "lr" in options):
        raise PluginError("Freeze(group=…) has no params, which are those that match, and no lr beside Freeze(lr=…)")
    return options if lr is None else {**options, "lr": number("Freeze", "lr", lr, least=0.0)}


def _in_number(names: Any) -> str:
    return f"{len(names)} parameter{'' if len(names) == 1 else 's'}"
