"""Drive the work of `peer_work` by Accelerate and by transformers' Trainer, as `peer_adapters` does by the others."""

# ruff: noqa: PLC0415 - an adapter imports its library itself: few environments have all of them

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from peer_work import Work, only_labelled, only_named

Train = Callable[[], object]


def accelerate(work: Work) -> Train:
    """Return a loop with Accelerate, which has no handlers."""
    from accelerate import Accelerator

    maker = Accelerator(cpu=True, gradient_accumulation_steps=work.accumulation)
    network, optimizer, loader = maker.prepare(work.network, work.optimizer(), work.loader())
    criterion = work.criterion

    def train() -> None:
        for _ in range(work.epochs):
            for data, target in loader:
                with maker.accumulate(network):
                    loss = criterion(network(data), target)
                    maker.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()

    return train


class WithLoss(nn.Module):
    """A network that returns its loss, as transformers' Trainer expects it."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.network, self.criterion = work.network, work.criterion

    def forward(self, data: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss of a batch."""
        return {"loss": self.criterion(self.network(data), target)}


class WithOutput(nn.Module):
    """A network that leaves its loss to `compute_loss_func`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, data: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the output of a batch."""
        return {"output": self.network(data)}


class NamedSamples:
    """Samples as dicts, which transformers' default collator takes."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        data, target = self.dataset[index]
        return {"data": data, "target": target}


def quiet_arguments(work: Work) -> dict[str, Any]:
    """Return the arguments of transformers' Trainer; clipping and the decay of the rate, its defaults, are off."""
    return {
        "output_dir": str(work.folder),
        "num_train_epochs": work.epochs,
        "per_device_train_batch_size": 64 if work.dataset is not None else 1,
        "gradient_accumulation_steps": work.accumulation,
        "max_grad_norm": 0,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def transformers(work: Work) -> Train:
    """Return a run of transformers' Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class FromReady(Trainer):
        def get_train_dataloader(self) -> Any:
            loader = DataLoader(work.batches, batch_size=1, collate_fn=only_named)
            return self.accelerator.prepare(loader)

    arguments = TrainingArguments(**quiet_arguments(work))
    trainer = (Trainer if work.dataset is not None else FromReady)(
        WithLoss(work),
        arguments,
        train_dataset=NamedSamples(work.dataset) if work.dataset is not None else work.batches,
        optimizers=(work.optimizer(), None),
        callbacks=work.handlers(TrainerCallback, "on_step_end"),
    )
    return trainer.train


def transformers_counted(work: Work) -> Train:
    """Return a run of transformers' Trainer with a loss that is divided by the labels of the window."""
    from transformers import Trainer, TrainingArguments

    class FromReady(Trainer):
        def get_train_dataloader(self) -> Any:
            loader = DataLoader(work.batches, batch_size=1, collate_fn=only_labelled)
            return self.accelerator.prepare(loader)

    def summed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return (outputs["output"] - labels).sum() / num_items_in_batch

    arguments = TrainingArguments(**quiet_arguments(work))
    trainer = FromReady(
        WithOutput(work.network),
        arguments,
        train_dataset=work.batches,
        optimizers=(work.optimizer(), None),
        compute_loss_func=summed,
    )
    return trainer.train


def reset(name: str) -> None:
    """Forget what a library keeps for the process from one run to the next: Accelerate's shared state."""
    if name in ("accelerate", "transformers"):
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()
