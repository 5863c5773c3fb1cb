"""Mistakes that pyright finds. Each line that ends in `# wrong` has at least one; no other line has any."""

import torch
from torch import nn

from heptad import Components, Detour, Engine, LossOutput, Plugin, Run, RunConfig, on_enter, on_exit
from heptad_plugins import Evaluate, GradientClipping, LRSchedule, NonFiniteGuard, TimeLimit


class Wrong(Plugin):
    name = 3  # wrong
    on_error = "ignore"  # wrong
    runs_after = (3,)  # wrong

    def open(self, run: int) -> None:  # wrong
        pass

    def close(self) -> None:  # wrong
        pass

    def state_dict(self) -> list[int]:  # wrong
        return []

    @on_exit("after_step", every="2")  # wrong
    def a(self, run: Run) -> None:
        pass

    @on_exit("after_step")  # wrong
    def b(self) -> None:
        pass

    @on_enter("after_step")  # wrong
    def c(self, run: int) -> None:
        pass

    @on_enter("after_step", when=lambda run: run.nothing)  # wrong
    def d(self, run: Run) -> None:
        run.epoch = 3  # wrong
        run.record("a", "b")  # wrong
        run.stop()  # wrong


def mistakes(network: nn.Module, engine: Engine, run: Run) -> None:
    RunConfig(epoch=3)  # wrong
    RunConfig(epochs="3")  # wrong
    RunConfig(epochs=3, remainder="round")  # wrong
    Components(network=3, loader=[], criterion=nn.CrossEntropyLoss(), optimizer=lambda n: n)  # wrong
    Components(loader=[])  # wrong
    Engine(RunConfig(epochs=1), Components)  # wrong
    Engine.run(engine, until=3)  # wrong
    LossOutput(torch.zeros(()), weight="3")  # wrong
    Detour("a", "after_step", lambda run: "yes", print)  # wrong
    Detour("a", "after_step", lambda run: True, print, count="steps")  # wrong
    run.log.where(state="after_step")  # wrong
    run.log.tail("5")  # wrong
    GradientClipping(1.0)  # wrong
    NonFiniteGuard(action="ignore")  # wrong
    TimeLimit("60")  # wrong
    Evaluate([], at="before_epoch")  # wrong
    Evaluate([], limits=3)  # wrong
    LRSchedule(3)  # wrong

    @engine.on_exit("after_epoch")  # wrong
    def tell() -> None:
        pass
