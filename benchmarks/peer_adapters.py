"""Drive the same work by a plain loop, by this engine and by its peers, each as its own documentation shows it.

An adapter is a function that takes a `Work`, builds what its library needs, and returns a function that trains. Each
imports its library itself, so that those work that are installed. What all of them have in common: the processor, one
process, float32; progress bars, loggers, checkpoints, summaries and clipping off, where that is a documented option.
"""

# ruff: noqa: PLC0415 - an adapter imports its library itself: few environments have all of them

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from peer_hugging_face import Train, accelerate, transformers
from peer_work import Work


def plain(work: Work) -> Train:
    """Return the textbook loop."""
    loader, optimizer, k = work.loader(), work.optimizer(), work.accumulation
    network, criterion = work.network, work.criterion
    handlers = [work.call] * work.subscribers

    def train() -> None:
        for _ in range(work.epochs):
            for number, (data, target) in enumerate(loader):
                if number % k == 0:
                    optimizer.zero_grad()
                loss = criterion(network(data), target)
                (loss / k if k > 1 else loss).backward()
                if (number + 1) % k == 0:
                    optimizer.step()
                for handler in handlers:
                    handler()

    return train


def heptad(work: Work, plugins: Iterable[Any] = (), **options: Any) -> Train:
    """Return a run of this engine, with its log."""
    from heptad import Components, Engine, RunConfig

    data: dict[str, Any] = {"loader": work.loader()} if work.dataset is None else {"dataset": work.dataset}
    if work.dataset is not None:
        options |= {"batch_size": 64, "drop_last": False}
    parts = Components(network=work.network, criterion=work.criterion, optimizer=work.optimizer(), **data)
    engine = Engine(parts, RunConfig(epochs=work.epochs, accumulation=work.accumulation, **options), list(plugins))
    for _ in range(work.subscribers):
        engine.on_exit("process_batch")(lambda run: work.call())
    return engine.run


def heptad_flush(work: Work) -> Train:
    """Return a run of this engine that updates with the part of the last window that is there."""
    return heptad(work, remainder="flush")


def heptad_journal(work: Work) -> Train:
    """Return a run of this engine with its log and a journal."""
    from heptad_plugins import Journal

    return heptad(work, [Journal(work.folder / "journal")])


def ignite(work: Work) -> Train:
    """Return a run of pytorch-ignite's supervised trainer."""
    from ignite.engine import Events, create_supervised_trainer

    trainer = create_supervised_trainer(
        work.network, work.optimizer(), work.criterion, gradient_accumulation_steps=work.accumulation
    )
    for _ in range(work.subscribers):
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: work.call())
    loader = work.loader()
    return lambda: trainer.run(loader, max_epochs=work.epochs)


def lightning(work: Work) -> Train:
    """Return a run of Lightning's Trainer."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.criterion = work.network, work.criterion

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            data, target = batch
            return self.criterion(self.network(data), target)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return work.optimizer()

    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=work.epochs,
        accumulate_grad_batches=work.accumulation,
        callbacks=work.handlers(Callback, "on_train_batch_end"),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=work.folder,
    )
    module, loader = Module(), work.loader()
    return lambda: trainer.fit(module, loader)


def fabric(work: Work) -> Train:
    """Return a loop with Lightning Fabric, which leaves it to the user."""
    from lightning.fabric import Fabric

    class Handler:
        def on_step_end(self) -> None:
            work.call()

    maker = Fabric(accelerator="cpu", devices=1, callbacks=[Handler() for _ in range(work.subscribers)])
    network, optimizer = maker.setup(work.network, work.optimizer())
    loader, k, criterion = maker.setup_dataloaders(work.loader()), work.accumulation, work.criterion

    def train() -> None:
        for _ in range(work.epochs):
            for number, (data, target) in enumerate(loader):
                open_still = (number + 1) % k != 0
                with maker.no_backward_sync(network, enabled=open_still):
                    loss = criterion(network(data), target)
                    maker.backward(loss / k if k > 1 else loss)
                if not open_still:
                    optimizer.step()
                    optimizer.zero_grad()
                if work.subscribers:
                    maker.call("on_step_end")

    return train


def skorch(work: Work) -> Train:
    """Return a fit of skorch's NeuralNet; accumulation is the recipe of its FAQ, written anew."""
    from skorch import NeuralNet
    from skorch.callbacks import Callback

    k = work.accumulation

    class Accumulating(NeuralNet):
        def get_loss(self, *arguments: Any, **named: Any) -> Tensor:
            return super().get_loss(*arguments, **named) / k

        def train_step(self, batch: Any, **fit_params: Any) -> Any:
            count = len(self.history[-1, "batches"])
            step = self.train_step_single(batch, **fit_params)
            if count % k == 0:
                self.optimizer_.step()
                self.optimizer_.zero_grad()
            return step

    options: dict[str, Any] = {}
    if work.dataset is None:
        options["iterator_train"] = lambda dataset, **named: work.loader()
    net = (Accumulating if k > 1 else NeuralNet)(
        work.network,
        criterion=work.criterion,
        optimizer=torch.optim.SGD,
        lr=work.lr,
        max_epochs=work.epochs,
        batch_size=64,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=work.handlers(Callback, "on_batch_end"),
        callbacks__print_log=None,
        verbose=0,
        **options,
    )
    if work.dataset is None:
        return lambda: net.fit(work.batches, y=None)
    return lambda: net.fit(*work.dataset.tensors)


def poutyne(work: Work) -> Train:
    """Return a fit of Poutyne's Model."""
    from poutyne import Callback, Model

    model = Model(work.network, work.optimizer(), work.criterion)
    loader, callbacks = work.loader(), work.handlers(Callback, "on_train_batch_end")
    return lambda: model.fit_generator(
        loader, epochs=work.epochs, batches_per_step=work.accumulation, callbacks=callbacks, verbose=False
    )


def torchtnt(work: Work) -> Train:
    """Return a run of torchtnt's AutoUnit."""
    from torchtnt.framework.auto_unit import AutoUnit
    from torchtnt.framework.callback import Callback
    from torchtnt.framework.train import train

    class Unit(AutoUnit):
        def compute_loss(self, state: Any, data: Any) -> tuple[Tensor, Tensor]:
            inputs, target = data
            output = self.module(inputs)
            return work.criterion(output, target), output

        def configure_optimizers_and_lr_scheduler(self, module: nn.Module) -> tuple[torch.optim.Optimizer, None]:
            return work.optimizer(), None

    unit = Unit(module=work.network, device=torch.device("cpu"), gradient_accumulation_steps=work.accumulation)
    loader, callbacks = work.loader(), work.handlers(Callback, "on_train_step_end")
    return lambda: train(unit, loader, max_epochs=work.epochs, callbacks=callbacks)


def mmengine(work: Work) -> Train:
    """Return a run of MMEngine's Runner, without its default hooks."""
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.optim import OptimWrapper
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.network = work.network

        def forward(self, data: Tensor, target: Tensor, mode: str = "tensor") -> dict[str, Tensor]:
            return {"loss": work.criterion(self.network(data), target)}

    names = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
    runner = Runner(
        Model(),
        work_dir=str(work.folder),
        train_dataloader=work.loader(),
        optim_wrapper=OptimWrapper(work.optimizer(), accumulative_counts=work.accumulation),
        train_cfg={"by_epoch": True, "max_epochs": work.epochs},
        default_hooks=dict.fromkeys(names),
        custom_hooks=work.handlers(Hook, "after_train_iter"),
        experiment_name=f"run-{time.perf_counter_ns()}",
        log_level="CRITICAL",
    )
    return runner.train


ADAPTERS: dict[str, Callable[[Work], Train]] = {
    "plain": plain,
    "heptad": heptad,
    "heptad + journal": heptad_journal,
    "ignite": ignite,
    "lightning": lightning,
    "fabric": fabric,
    "accelerate": accelerate,
    "transformers": transformers,
    "skorch": skorch,
    "poutyne": poutyne,
    "torchtnt": torchtnt,
    "mmengine": mmengine,
}
"""By name, in the order of the tables. `plain` is what the others are compared with."""

PACKAGES = {
    "heptad": ("heptad", "from heptad import Engine"),
    "ignite": ("pytorch-ignite", "import ignite.engine"),
    "lightning": ("lightning", "import lightning.pytorch"),
    "fabric": ("lightning", "import lightning.fabric"),
    "accelerate": ("accelerate", "from accelerate import Accelerator"),
    "transformers": ("transformers", "from transformers import Trainer"),
    "skorch": ("skorch", "import skorch"),
    "poutyne": ("poutyne", "import poutyne"),
    "torchtnt": ("torchtnt", "import torchtnt.framework"),
    "mmengine": ("mmengine", "import mmengine.runner"),
}
"""The distribution of each, and the import with which its first tutorial begins."""

WITHOUT_HANDLERS = ("accelerate",)
"""Those that have no handlers of their own."""


def hush() -> None:
    """Silence what the libraries write, beyond their options, while they train."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
