"""Mistakes that people make, each as the code that a new user would write, with what the message must hold.

A mistake is a function of a folder to write in. It is marked with the error that must come out, and with what must
stand in the message or its notes: what was found, where, what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from heptad import (
    CheckpointError,
    Components,
    ConfigError,
    DataError,
    Detour,
    Engine,
    EngineError,
    LossOutput,
    Plugin,
    PluginError,
    RunConfig,
    TableError,
    TransitionLog,
    load_weights,
    on_enter,
    on_exit,
)
from heptad.errors import LogError
from heptad_plugins import (
    EMA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    Evaluate,
    GradientClipping,
    Journal,
    LRSchedule,
    TimeLimit,
    TrainingMetrics,
)

Code = Callable[[Path], object]


@dataclass(frozen=True)
class Mistake:
    """A mistake: its code, the error that must come out, and what must stand in its message or notes."""

    code: Code
    error: type[BaseException]
    parts: tuple[str, ...]


MISTAKES: dict[str, Mistake] = {}


def mistake(error: type[BaseException], *parts: str) -> Callable[[Code], Code]:
    """Put a function into the list."""

    def put(code: Code) -> Code:
        MISTAKES[code.__name__] = Mistake(code, error, parts)
        return code

    return put


# -- what most of them share


def network() -> nn.Module:
    """A classifier of 8 numbers into 3 classes."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def dataset(size: int = 24) -> TensorDataset:
    """Samples for it."""
    return TensorDataset(torch.randn(size, 8), torch.randint(0, 3, (size,)))


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of a network."""
    return torch.optim.SGD(network.parameters(), lr=0.1)


def components(**changes: Any) -> Components:
    """Sound components, with changes; a change to `...` leaves the field out."""
    sound = {"network": network(), "dataset": dataset(), "criterion": nn.CrossEntropyLoss(), "optimizer": sgd}
    return Components(**{name: value for name, value in {**sound, **changes}.items() if value is not ...})


def train(*plugins: Any, config: dict[str, Any] | None = None, **changes: Any) -> Engine:
    """Train an epoch of 6 steps, with changes."""
    engine = Engine(components(**changes), RunConfig(**{"epochs": 1, "batch_size": 4, **(config or {})}), plugins)
    engine.run()
    return engine


# -- the configuration


@mistake(ConfigError, "give epochs, max_updates or both")
def neither_epochs_nor_max_updates(folder: Path) -> None:
    RunConfig(batch_size=4)


@mistake(ConfigError, "RunConfig.accumulation must be at least 1, got 0")
def accumulation_of_nothing(folder: Path) -> None:
    RunConfig(epochs=1, accumulation=0)


@mistake(ConfigError, "RunConfig has no field 'max_epochs'", "did you mean 'epochs'?")
def the_option_of_another_library(folder: Path) -> None:
    RunConfig(max_epochs=10)


@mistake(ConfigError, "RunConfig has no field 'lr'", "known are epochs, max_updates")
def a_learning_rate_in_the_configuration(folder: Path) -> None:
    RunConfig(epochs=1, lr=0.1)


@mistake(ConfigError, "RunConfig.compile has 'fullgrap'", "no option of torch.compile; did you mean 'fullgraph'?")
def an_option_of_compile_that_torch_has_not(folder: Path) -> None:
    RunConfig(epochs=1, compile={"fullgrap": True})


@mistake(ConfigError, "Components.blocks returns a Linear that is no module of the network", "take it from the network")
def a_block_of_another_network(folder: Path) -> None:
    other = network()
    train(config={"recompute": True}, blocks=lambda network: [other[0]])


@mistake(ConfigError, "RunConfig.epochs must be a whole number, got '10'")
def a_number_as_text(folder: Path) -> None:
    RunConfig(epochs="10")


@mistake(ConfigError, "RunConfig takes its fields by name", "RunConfig(epochs=")
def the_configuration_by_position(folder: Path) -> None:
    RunConfig(10, 64)


@mistake(ConfigError, "RunConfig.device is 'cuda:7', but torch sees", "use 'auto' or 'cpu'")
def a_device_that_is_not_there(folder: Path) -> None:
    train(config={"device": "cuda:7"})


@mistake(ConfigError, "RunConfig.device must be 'auto' or a device that torch knows", "got 'gpu'")
def a_device_that_does_not_exist(folder: Path) -> None:
    train(config={"device": "gpu"})


@mistake(ConfigError, "RunConfig.device must be a device that computes", "no values, got 'meta'")
def a_device_without_values(folder: Path) -> None:
    train(config={"device": "meta"})


@mistake(ConfigError, "RunConfig.seed must be at most 18446744073709551615, got 18446744073709551616")
def a_seed_of_too_many_bits(folder: Path) -> None:
    train(config={"seed": 2**64})


@mistake(ConfigError, "RunConfig is frozen, epochs cannot be set; give it when you build the RunConfig")
def changing_the_configuration_later(folder: Path) -> None:
    config = RunConfig(epochs=1)
    config.epochs = 2


@mistake(ConfigError, "RunConfig.remainder must be 'extend', 'flush', 'drop' or 'carry', got 'pad'")
def an_unknown_way_with_the_remainder(folder: Path) -> None:
    RunConfig(epochs=1, remainder="pad")


# -- the components


@mistake(ConfigError, "neither criterion nor compute_loss is given; give one of them")
def a_forgotten_criterion(folder: Path) -> None:
    model = network()
    Components(network=model, dataset=dataset(), optimizer=sgd(model))


@mistake(
    ConfigError, "Components.criterion must be a function of (output, target); pass an instance: CrossEntropyLoss(…)"
)
def the_class_of_a_criterion(folder: Path) -> None:
    train(criterion=nn.CrossEntropyLoss)


@mistake(
    ConfigError,
    "Components.criterion must take the mean",
    "its reduction is 'sum'",
    "use reduction='mean', or compute_loss",
)
def a_criterion_that_sums(folder: Path) -> None:
    train(criterion=nn.CrossEntropyLoss(reduction="sum"))


@mistake(ConfigError, "its reduction is 'sum'", "use reduction='mean'")
def a_criterion_function_that_sums(folder: Path) -> None:
    train(criterion=partial(nn.functional.cross_entropy, reduction="sum"))


@mistake(ConfigError, "its reduction is 'sum'", "use reduction='batchmean'")
def a_divergence_that_sums(folder: Path) -> None:
    train(criterion=nn.KLDivLoss(reduction="sum"))


@mistake(
    ConfigError, "Components.criterion is called as criterion(output, target), but takes (anchor", "for compute_loss"
)
def a_criterion_of_three(folder: Path) -> None:
    train(criterion=nn.TripletMarginLoss())


@mistake(ConfigError, "Components.optimizer is required")
def a_forgotten_optimizer(folder: Path) -> None:
    train(optimizer=...)


@mistake(
    ConfigError,
    "Components.optimizer must be a torch optimizer, a function of the network that returns one",
    "got <class",
    "lambda network: AdamW(",
)
def the_class_of_an_optimizer(folder: Path) -> None:
    train(optimizer=torch.optim.AdamW)


@mistake(ConfigError, "Components.optimizer must be a torch optimizer", "pass an instance, or lambda network: SGD(")
def a_list_of_classes_of_optimizers(folder: Path) -> None:
    train(optimizer=[torch.optim.SGD])


@mistake(
    TypeError,
    "optimizer can only optimize Tensors",
    "while Components.optimizer was called with the network (a Sequential); an optimizer of torch takes",
    "network.parameters()",
)
def a_partial_of_the_class_of_an_optimizer(folder: Path) -> None:
    train(optimizer=partial(torch.optim.SGD, lr=0.1))


@mistake(ConfigError, "Components.optimizer is called as optimizer(network), but takes (): too many")
def an_optimizer_function_of_nothing(folder: Path) -> None:
    model = network()
    train(network=model, optimizer=lambda: sgd(model))


@mistake(ConfigError, "RunConfig.precision must be 'fp32', 'bf16-mixed' or 'fp16-mixed', got 'bf16'")
def a_precision_by_half_of_its_name(folder: Path) -> None:
    RunConfig(epochs=1, precision="bf16")


@mistake(
    ConfigError,
    "RunConfig.precision is 'fp16-mixed', and the step of LBFGS needs a closure",
    "use 'bf16-mixed' or 'fp32', or another optimizer",
)
def an_optimizer_that_needs_a_closure_in_fp16(folder: Path) -> None:
    model = network()
    Engine(
        components(network=model, optimizer=torch.optim.LBFGS(model.parameters())),
        RunConfig(epochs=1, batch_size=4, precision="fp16-mixed"),
    )


@mistake(
    ConfigError,
    "GradientClipping changes the gradients on entry to optimizer_update, and the step of LBFGS",
    "leave the plugin out, or use another optimizer",
)
def an_optimizer_that_needs_a_closure_beside_clipping(folder: Path) -> None:
    model = network()
    Engine(
        components(network=model, optimizer=torch.optim.LBFGS(model.parameters())),
        RunConfig(epochs=1, batch_size=4),
        [GradientClipping(max_norm=1.0)],
    )


@mistake(ConfigError, "Components.optimizer holds the same SGD twice", "pass it once")
def one_optimizer_twice(folder: Path) -> None:
    model = network()
    optimizer = sgd(model)
    Engine(components(network=model, optimizer=[optimizer, optimizer]), RunConfig(epochs=1, batch_size=4))


@mistake(
    ConfigError,
    "this SGD holds none of the network's parameters (4 held, 4 in the network)",
    "build it from the parameters of the network that is passed",
)
def the_optimizer_of_another_network(folder: Path) -> None:
    old, new = network(), network()
    train(network=new, optimizer=sgd(old))


@mistake(ConfigError, "the function must return a torch optimizer, got None")
def an_optimizer_function_that_returns_nothing(folder: Path) -> None:
    def make(network: nn.Module) -> Any:
        torch.optim.SGD(network.parameters(), lr=0.1)

    train(optimizer=make)


@mistake(ConfigError, "Components.network must be a Module, got <class", "Net")
def the_class_of_a_network(folder: Path) -> None:
    class Net(nn.Module):
        pass

    train(network=Net)


class NoParameters(nn.Module):
    """Forgets to register its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 3)]

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.layers[0](data)


@mistake(ConfigError, "NoParameters", "has no parameters", "ModuleList")
def a_network_whose_layers_are_in_a_list(folder: Path) -> None:
    train(network=NoParameters())


@mistake(EngineError, "Engine takes Components, RunConfig and plugins in this order, got a RunConfig")
def components_and_configuration_swapped(folder: Path) -> None:
    Engine(RunConfig(epochs=1), components())


@mistake(EngineError, "Engine takes Components", "got a Sequential")
def the_network_in_place_of_components(folder: Path) -> None:
    Engine(network(), RunConfig(epochs=1))


@mistake(ConfigError, "Components takes its fields by name: Components(network=…, dataset=…)")
def components_by_position(folder: Path) -> None:
    Components(network(), dataset(), nn.CrossEntropyLoss(), sgd)


# -- the data


@mistake(DataError, "is empty", "at least one sample")
def an_empty_dataset(folder: Path) -> None:
    train(dataset=dataset(0))


@mistake(DataError, "has 24 samples, fewer than one batch of 64", "smaller batch_size or drop_last=False")
def a_batch_larger_than_the_dataset(folder: Path) -> None:
    train(config={"batch_size": 64})


@mistake(
    DataError,
    "Components.dataset (a tuple) has 2 samples, fewer than one batch of 4",
    "if its items are columns, pass TensorDataset(",
)
def tensors_in_a_tuple(folder: Path) -> None:
    train(dataset=(torch.randn(24, 8), torch.randint(0, 3, (24,))))


@mistake(
    DataError,
    "Components.dataset is a dict of 2: 'x': float32 of shape (24, 8), 'y': int64 of shape (24,)",
    "pass TensorDataset(torch.as_tensor(data['x']), torch.as_tensor(data['y']))",
)
def tensors_in_a_dict(folder: Path) -> None:
    train(dataset={"x": torch.randn(24, 8), "y": torch.randint(0, 3, (24,))})


@mistake(DataError, "Components.dataset is a dict of 2: 'train': a TensorDataset", "one of its values, such as data[")
def datasets_in_a_dict(folder: Path) -> None:
    train(dataset={"train": dataset(), "valid": dataset()})


@mistake(
    DataError,
    "Components.loader is a dict of 1: 'train': a DataLoader",
    "it must be a re-iterable of batches: pass one of its values, such as data['train']",
)
def loaders_in_a_dict(folder: Path) -> None:
    loaders = {"train": DataLoader(dataset(), batch_size=4)}
    Engine(components(dataset=..., loader=loaders), RunConfig(epochs=1)).run()


@mistake(DataError, "Components.dataset is a DataFrame, which is indexed by column", "TensorDataset(torch.tensor(")
def a_frame_as_dataset(folder: Path) -> None:
    train(dataset=pandas.DataFrame({"x": range(24), "y": range(24)}))


@mistake(DataError, "Components.dataset is 'data/train'; no file is read here")
def the_path_of_a_dataset(folder: Path) -> None:
    train(dataset="data/train")


@mistake(DataError, "Components.dataset is the class Texts; pass an instance: Texts(…)")
def the_class_of_a_dataset(folder: Path) -> None:
    train(dataset=Texts)


@mistake(
    DataError,
    "Components.collate_fn returned None for a list of 4: a tuple of 2: float32 of shape (8,)",
    "does it end without a return?",
    "in the body of before_step (epoch 0, batch 0, step 0, update 0)",
)
def a_collate_function_that_returns_nothing(folder: Path) -> None:
    def collate(samples: list[Any]) -> Any:
        torch.utils.data.default_collate(samples)

    train(collate_fn=collate)


@mistake(DataError, "sample 2 of the Subset cannot be read: its index is 24, and the dataset within has 24 samples")
def a_subset_that_reaches_too_far(folder: Path) -> None:
    Engine(components(dataset=Subset(dataset(), [0, 5, 24, 7])), RunConfig(epochs=1, batch_size=4))


@mistake(IndexError, "list index out of range", "while sample 2 of the Subset was read", "in the body of before_step")
def a_subset_that_reaches_too_far_into_a_list(folder: Path) -> None:
    samples = list(dataset())
    train(dataset=Subset(samples, [0, 5, 24, 7]), config={"shuffle": False})


class Rows(IterableDataset[Any]):
    """Samples that are walked."""

    def __iter__(self) -> Any:
        return iter(dataset())


@mistake(
    ConfigError, "RunConfig.shuffle=True needs a dataset that is indexed", "a Rows", "leave it out, and shuffle where"
)
def shuffling_what_is_walked(folder: Path) -> None:
    train(dataset=Rows(), config={"shuffle": True})


@mistake(ConfigError, "RunConfig.batch_size is required with Components.dataset")
def a_forgotten_batch_size(folder: Path) -> None:
    Engine(components(), RunConfig(epochs=1))


@mistake(DataError, "is a DataLoader, which yields batches; pass it as loader=")
def a_loader_as_dataset(folder: Path) -> None:
    train(dataset=DataLoader(dataset(), batch_size=4))


@mistake(ConfigError, "RunConfig.batch_size goes with Components.dataset; the loader decides it, leave it out")
def a_batch_size_beside_a_loader(folder: Path) -> None:
    train(dataset=..., loader=DataLoader(dataset(), batch_size=4))


@mistake(DataError, "a generator, which can be iterated once, and a further pass is needed", "a list, a DataLoader")
def a_generator_for_two_epochs(folder: Path) -> None:
    batches = ((torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(6))
    Engine(components(dataset=..., loader=batches), RunConfig(epochs=2)).run()


class Texts(Dataset[Any]):
    """Samples of text."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[str, int]:
        return f"text {index}", index % 3


@mistake(
    TypeError,
    "must be Tensor, not tuple",
    "in the body of process_batch (epoch 0, batch 0, step 0, update 0)",
    "the batch: a list of 2: a tuple of 4 str, int64 of shape (4,)",
)
def a_dataset_that_returns_strings(folder: Path) -> None:
    train(dataset=Texts())


class Ragged(Dataset[Any]):
    """Samples of unequal lengths."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(8 + index), index % 3


@mistake(
    RuntimeError,
    "stack expects each tensor to be equal size",
    "while a batch was made of a list of 4: a tuple of 2: float32 of shape (",
    "Components.collate_fn makes batches another way",
    "in the body of before_step (epoch 0, batch 0, step 0, update 0)",
)
def samples_that_do_not_stack(folder: Path) -> None:
    train(dataset=Ragged())


class Broken(Dataset[Any]):
    """Cannot read one of its samples."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 17:
            raise FileNotFoundError("image 17 is gone")
        return torch.zeros(8), index % 3


@mistake(
    FileNotFoundError,
    "image 17 is gone",
    "while sample 17 of the Broken was read",
    "in the body of before_step (epoch 0, batch 4, step 4, update 4)",
)
def a_sample_that_cannot_be_read(folder: Path) -> None:
    train(dataset=Broken(), config={"shuffle": False})


@mistake(
    FileNotFoundError,
    "image 17 is gone",
    "while sample 17 of the Broken was read",
    "worker process 0",
    "in the body of before_step (epoch 0, batch 4, step 4, update 4)",
)
def a_worker_that_raises(folder: Path) -> None:
    train(dataset=Broken(), config={"shuffle": False, "num_workers": 1})


@mistake(DataError, "with a criterion a batch must be (data, target), got a dict of 2", "compute_loss")
def a_batch_that_is_a_dict(folder: Path) -> None:
    batches = [{"data": torch.randn(4, 8), "target": torch.zeros(4)}]
    Engine(components(dataset=..., loader=batches), RunConfig(epochs=1)).run()


@mistake(DataError, "with a criterion a batch must be (data, target), got a list of 1")
def a_dataset_without_targets(folder: Path) -> None:
    train(dataset=TensorDataset(torch.randn(24, 8)))


class Liar(list[Any]):
    """A loader that says that it has more batches than it has."""

    def __len__(self) -> int:
        return 100


@mistake(DataError, "says that it has 100 batches, but it ended after 1", "correct its __len__")
def a_loader_that_ends_early(folder: Path) -> None:
    batches = Liar([(torch.randn(4, 8), torch.randint(0, 3, (4,)))])
    Engine(components(dataset=..., loader=batches), RunConfig(epochs=1)).run()


@mistake(DataError, "Components.loader is a TensorDataset, which holds samples; pass it as dataset=")
def a_dataset_as_loader(folder: Path) -> None:
    Engine(components(dataset=..., loader=dataset()), RunConfig(epochs=1)).run()


@mistake(
    RuntimeError,
    "each element in list of batch should be of equal size",
    "while a batch was made of a list of 4: a list of 1 int, a list of 2 int",
    "Components.collate_fn makes batches another way",
)
def samples_that_are_lists(folder: Path) -> None:
    train(dataset=[[0] * (1 + index % 2) for index in range(8)], config={"shuffle": False})


# -- shapes, types and losses


@mistake(RuntimeError, "shapes cannot be multiplied", "in the body of process_batch", "float32 of shape (4, 5)")
def data_of_the_wrong_shape(folder: Path) -> None:
    train(dataset=TensorDataset(torch.randn(24, 5), torch.randint(0, 3, (24,))))


@mistake(RuntimeError, "in the body of process_batch", "float64 of shape (4, 8)", "int64 of shape (4,)")
def data_of_another_dtype(folder: Path) -> None:
    train(dataset=TensorDataset(torch.randn(24, 8, dtype=torch.float64), torch.randint(0, 3, (24,))))


@mistake(RuntimeError, "in the body of process_batch", "float32 of shape (4,)", "the output: float32 of shape (4, 3)")
def targets_of_the_wrong_type(folder: Path) -> None:
    train(dataset=TensorDataset(torch.randn(24, 8), torch.randint(0, 3, (24,)).float()))


@mistake(IndexError, "Target", "is out of bounds", "output: float32 of shape (4, 3)")
def a_target_out_of_range(folder: Path) -> None:
    train(dataset=TensorDataset(torch.randn(24, 8), torch.full((24,), 3)))


@mistake(EngineError, "criterion must return a scalar tensor, got one of shape (4,); take its mean")
def a_loss_a_sample(folder: Path) -> None:
    train(criterion=lambda output, target: nn.functional.cross_entropy(output, target, reduction="none"))


@mistake(EngineError, "compute_loss must return a scalar tensor or a LossOutput, got float", "leave out .item()")
def a_loss_as_a_float(folder: Path) -> None:
    def compute_loss(network: nn.Module, batch: Any) -> Any:
        data, target = batch
        return nn.functional.cross_entropy(network(data), target).item()

    train(criterion=..., compute_loss=compute_loss)


@mistake(EngineError, "compute_loss must return a scalar tensor or a LossOutput, got NoneType", "without a return?")
def a_loss_that_is_not_returned(folder: Path) -> None:
    def compute_loss(network: nn.Module, batch: Any) -> Any:
        nn.functional.cross_entropy(network(batch[0]), batch[1])

    train(criterion=..., compute_loss=compute_loss)


@mistake(EngineError, "compute_loss must return a scalar tensor or a LossOutput, got tuple", "LossOutput(loss, output=")
def a_loss_with_the_output_beside_it(folder: Path) -> None:
    def compute_loss(network: nn.Module, batch: Any) -> Any:
        output = network(batch[0])
        return nn.functional.cross_entropy(output, batch[1]), output

    train(criterion=..., compute_loss=compute_loss)


@mistake(
    EngineError,
    "LossOutput.value must be the loss, a scalar tensor, got float32 of shape (4, 3)",
    "they are swapped; write LossOutput(loss, output=…)",
)
def a_loss_and_its_output_swapped(folder: Path) -> None:
    def compute_loss(network: nn.Module, batch: Any) -> Any:
        output = network(batch[0])
        return LossOutput(output, nn.functional.cross_entropy(output, batch[1]))

    train(criterion=..., compute_loss=compute_loss)


@mistake(
    EngineError, "LossOutput.value must be the loss, a scalar tensor, got an int", "write LossOutput(loss, weight=…)"
)
def a_loss_and_its_weight_swapped(folder: Path) -> None:
    def compute_loss(network: nn.Module, batch: Any) -> Any:
        return LossOutput(len(batch[1]), nn.functional.cross_entropy(network(batch[0]), batch[1]))

    train(criterion=..., compute_loss=compute_loss)


@mistake(PluginError, "Nameless.name must be a text that is not empty, got None")
def a_plugin_whose_name_is_no_text(folder: Path) -> None:
    class Nameless(Plugin):
        name = None

    train(Nameless())


@mistake(EngineError, "run(resume=…) takes a directory of checkpoints, one checkpoint, or 'auto'; got True")
def resume_as_a_switch(folder: Path) -> None:
    Engine(components(), RunConfig(epochs=1, batch_size=4)).run(resume=True)


@mistake(EngineError, "LossOutput.logs must map names to values, got a list; write logs={'name': value}")
def logs_in_a_list(folder: Path) -> None:
    def compute_loss(network: nn.Module, batch: Any) -> Any:
        loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
        return LossOutput(loss, logs=[loss])

    train(criterion=..., compute_loss=compute_loss)


@mistake(EngineError, "does not require grad", "detached")
def a_loss_that_was_detached(folder: Path) -> None:
    train(criterion=lambda output, target: nn.functional.cross_entropy(output, target).detach())


@mistake(EngineError, "LossOutput.weight must be a number from 0 on", "got -1")
def a_weight_below_nothing(folder: Path) -> None:
    def compute_loss(network: nn.Module, batch: Any) -> Any:
        return LossOutput(nn.functional.cross_entropy(network(batch[0]), batch[1]), weight=-1)

    train(criterion=..., compute_loss=compute_loss)


@mistake(EngineError, "LossOutput.weight must be a number from 0 on", "nan")
def a_weight_that_is_no_number(folder: Path) -> None:
    def compute_loss(network: nn.Module, batch: Any) -> Any:
        return LossOutput(nn.functional.cross_entropy(network(batch[0]), batch[1]), weight=float("nan"))

    train(criterion=..., compute_loss=compute_loss)


@mistake(ConfigError, "is called as compute_loss(network, batch), but takes (network", "'target'")
def a_compute_loss_with_three_arguments(folder: Path) -> None:
    def compute_loss(network: nn.Module, data: Any, target: Any) -> Any:
        return nn.functional.cross_entropy(network(data), target)

    train(criterion=..., compute_loss=compute_loss)


class Reused(nn.Module):
    """Keeps its output from step to step, graph and all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.carried: Any = 0.0

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        self.carried = self.layer(data) + self.carried
        return self.carried


@mistake(RuntimeError, "backward through the graph a second time", "in the body of process_batch (epoch 0, batch 1")
def a_graph_that_is_kept_from_step_to_step(folder: Path) -> None:
    train(network=Reused())


# -- plugins and handlers


@mistake(PluginError, "plugins holds the class EarlyStopping; pass an instance: EarlyStopping(…)")
def a_plugin_as_a_class(folder: Path) -> None:
    train(EarlyStopping)


@mistake(PluginError, "plugins must be a list, got an EarlyStopping; write plugins=[…]")
def a_plugin_without_brackets(folder: Path) -> None:
    Engine(components(), RunConfig(epochs=1, batch_size=4), plugins=EarlyStopping("valid/loss"))


@mistake(PluginError, "two plugins have the name 'Evaluate'", "another `name`", "plugin.name = '…'")
def two_plugins_of_one_name(folder: Path) -> None:
    class Evaluate(Plugin):
        pass

    class Other(Plugin):
        name = "Evaluate"

    train(Evaluate(), Other())


@mistake(
    PluginError, "Misspelt.on_enter_proces_batch", "'proces_batch'", "unknown state", "did you mean 'process_batch'?"
)
def a_misspelt_handler(folder: Path) -> None:
    class Misspelt(Plugin):
        def on_enter_proces_batch(self, run: Any) -> None:
            pass

    train(Misspelt())


@mistake(PluginError, "Report.on_epoch_end would never be called", "here it would be on_exit_after_epoch")
def a_hook_of_another_library(folder: Path) -> None:
    class Report(Plugin):
        def on_epoch_end(self, run: Any) -> None:
            pass

    train(Report())


@mistake(
    PluginError, "Old.on_exit_after_step", "cannot be called with the run alone", "'batch'", "write it as (self, run)"
)
def a_handler_with_the_wrong_arguments(folder: Path) -> None:
    class Old(Plugin):
        def on_exit_after_step(self, run: Any, batch: Any) -> None:
            pass

    train(Old())


@mistake(PluginError, "Never.report: every must be a whole number from 1 on, got 0")
def every_zero(folder: Path) -> None:
    class Never(Plugin):
        @on_exit("after_step", every=0)
        def report(self, run: Any) -> None:
            pass

    train(Never())


@mistake(PluginError, "'after_stp'", "did you mean 'after_step'?")
def an_unknown_state(folder: Path) -> None:
    engine = Engine(components(), RunConfig(epochs=1, batch_size=4))

    @engine.on_enter("after_stp")
    def report(run: Any) -> None:
        pass


@mistake(PluginError, "@on_exit stands before after_step without a state; write it as @on_exit('after_step')")
def a_decorator_without_its_state(folder: Path) -> None:
    class Report(Plugin):
        @on_exit
        def after_step(self, run: Any) -> None:
            pass

    train(Report())


@mistake(PluginError, "report comes too late: handlers are taken until the run has started")
def a_handler_after_the_run(folder: Path) -> None:
    engine = train()

    @engine.on_exit("after_step")
    def report(run: Any) -> None:
        pass


@mistake(TableError, "detour 'after_step' has the name of one of the engine's own states")
def a_detour_named_like_a_state(folder: Path) -> None:
    class Sample(Plugin):
        def detours(self) -> Any:
            return [Detour("after_step", "optimizer_update", lambda run: True, lambda run: None)]

    train(Sample())


@mistake(TableError, "detour 'sample' cannot leave from 'epoch_end'", "known are")
def a_detour_from_an_unknown_state(folder: Path) -> None:
    class Sample(Plugin):
        def detours(self) -> Any:
            return [Detour("sample", "epoch_end", lambda run: True, lambda run: None)]

    train(Sample())


@mistake(PluginError, "Sample.detours() must return Detour objects, got a tuple")
def a_detour_of_the_wrong_type(folder: Path) -> None:
    class Sample(Plugin):
        def detours(self) -> Any:
            return [("sample", "after_epoch")]

    train(Sample())


@mistake(PluginError, "subscribes to the bookend 'finished'", "use open() and close()")
def a_handler_at_the_end(folder: Path) -> None:
    class Report(Plugin):
        @on_enter("finished")
        def report(self, run: Any) -> None:
            pass

    train(Report())


@mistake(PluginError, "@on_enter stands before report without a state; write it as @on_enter('after_step')")
def an_engine_decorator_without_its_state(folder: Path) -> None:
    engine = Engine(components(), RunConfig(epochs=1, batch_size=4))

    @engine.on_enter
    def report(run: Any) -> None:
        pass


@mistake(PluginError, "Later.on_exit_after_epoch is a coroutine or a generator", "make it a plain function")
def a_handler_that_is_async(folder: Path) -> None:
    class Later(Plugin):
        async def on_exit_after_epoch(self, run: Any) -> None:
            pass

    train(Later())


@mistake(PluginError, "plugins holds the same Own twice; pass it once")
def one_plugin_twice(folder: Path) -> None:
    class Own(Plugin):
        pass

    plugin = Own()
    train(plugin, plugin)


@mistake(PluginError, "plugins holds a function; a plugin is an instance of a subclass of Plugin")
def a_function_as_plugin(folder: Path) -> None:
    train(lambda run: None)


@mistake(AttributeError, "has no attribute 'metric'", "in Report.on_exit_after_epoch on exit of after_epoch (epoch 1")
def a_handler_that_raises(folder: Path) -> None:
    class Report(Plugin):
        def on_exit_after_epoch(self, run: Any) -> None:
            print(run.metric)

    train(Report())


@mistake(EngineError, "run() was called from a handler", "stop, pause, skip_update")
def running_from_a_handler(folder: Path) -> None:
    engine = Engine(components(), RunConfig(epochs=1, batch_size=4))

    @engine.on_exit("after_epoch")
    def again(run: Any) -> None:
        engine.run()

    engine.run()


@mistake(EngineError, "skip_update is legal on entry to optimizer_update only", "on_enter_optimizer_update")
def skipping_at_the_wrong_place(folder: Path) -> None:
    class Skip(Plugin):
        def on_exit_process_batch(self, run: Any) -> None:
            run.skip_update("the loss is too high")

    train(Skip())


@mistake(EngineError, "set_accumulation takes a whole number from 1 on, got 0")
def accumulating_nothing(folder: Path) -> None:
    class Grow(Plugin):
        def on_exit_after_epoch(self, run: Any) -> None:
            run.set_accumulation(0)

    train(Grow())


@mistake(EngineError, "'logits'", "shape (4, 3)", "0-dim")
def recording_a_vector(folder: Path) -> None:
    class Record(Plugin):
        def on_exit_process_batch(self, run: Any) -> None:
            run.record("logits", run.output)

    train(Record())


@mistake(TypeError, "'NoneType' object is not subscriptable", "in Late.on_exit_after_step on exit of after_step")
def looking_at_a_batch_that_is_gone(folder: Path) -> None:
    class Late(Plugin):
        def on_exit_after_step(self, run: Any) -> None:
            print(run.batch[0].shape)

    train(Late())


@mistake(AttributeError, "step", "in Own.on_exit_after_step")
def counting_the_steps_oneself(folder: Path) -> None:
    class Own(Plugin):
        def on_exit_after_step(self, run: Any) -> None:
            run.step += 1

    train(Own())


# -- the shipped plugins


@mistake(
    EngineError, "EarlyStopping(monitor='val_loss')", "recorded so far: 'valid/loss'", "did you mean 'valid/loss'?"
)
def a_monitor_that_is_misspelt(folder: Path) -> None:
    train(Evaluate(dataset()), EarlyStopping("val_loss"))


@mistake(EngineError, "EarlyStopping(monitor='valid/loss')", "recorded so far: none", "Evaluate")
def a_monitor_that_nobody_records(folder: Path) -> None:
    train(EarlyStopping("valid/loss"))


@mistake(
    EngineError, "(monitor='valid/loss')", "recorded so far: 'train/loss'", "Evaluate(data) records 'valid/loss', run."
)
def a_monitor_that_is_of_training_only(folder: Path) -> None:
    train(TrainingMetrics(), EarlyStopping("valid/loss"))


@mistake(PluginError, "metrics['accuracy'] is the class Accuracy; pass an instance")
def a_metric_as_a_class(folder: Path) -> None:
    class Accuracy:
        def update(self, output: Any, target: Any) -> None: ...
        def compute(self) -> float: ...
        def reset(self) -> None: ...

    train(Evaluate(dataset(), {"accuracy": Accuracy}))


@mistake(PluginError, "metrics maps names to", "got a list")
def metrics_as_a_list(folder: Path) -> None:
    train(Evaluate(dataset(), [lambda output, batch: 0.0]))


@mistake(PluginError, "'accuracy'", "functions (output, batch)")
def a_metric_by_its_name(folder: Path) -> None:
    train(Evaluate(dataset(), {"acc": "accuracy"}))


@mistake(
    RuntimeError,
    "The size of tensor a (3) must match the size of tensor b (4)",
    "in metrics['accuracy']",
    "the output: float32 of shape (4, 3)",
    "in a trial of the metrics of Evaluate(data=…) of 'valid' on one batch; trial=False leaves it out",
)
def a_metric_of_the_wrong_shapes(folder: Path) -> None:
    train(Evaluate(dataset(), {"accuracy": lambda output, batch: (output == batch[1]).float().mean()}))


@mistake(PluginError, "which can be iterated once", "a dataset, a DataLoader or a list")
def evaluating_on_an_iterator(folder: Path) -> None:
    train(Evaluate(iter([(torch.randn(4, 8), torch.randint(0, 3, (4,)))])))


@mistake(DataError, "the data to evaluate on yield nothing")
def evaluating_on_an_exhausted_iterator(folder: Path) -> None:
    batches = iter([(torch.randn(4, 8), torch.randint(0, 3, (4,)))])
    engine = train()
    engine.evaluate(batches)
    engine.evaluate(batches)


@mistake(EngineError, "got shape (3, 8, 8)", "logger.writer.add_image('samples', image, run.update)")
def recording_an_image(folder: Path) -> None:
    engine = train()
    engine.current.record("samples", torch.zeros(3, 8, 8))


@mistake(PluginError, "Counts has a state_dict and no load_state_dict", "give it both")
def half_a_state(folder: Path) -> None:
    class Counts(Plugin):
        def state_dict(self) -> dict[str, Any]:
            return {"count": 3}

    train(Counts())


@mistake(PluginError, "EMA(decay=…) must be below 1", "got 1.5")
def a_decay_above_one(folder: Path) -> None:
    EMA(decay=1.5)


@mistake(EngineError, "cannot size the schedule", "RunConfig(max_updates=…)")
def a_schedule_of_unknown_length(folder: Path) -> None:
    def schedule(optimizer: Any, total_updates: int) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_updates)

    batches = ((torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(6))
    Engine(components(dataset=..., loader=batches), RunConfig(epochs=1), [LRSchedule(schedule)]).run()


@mistake(PluginError, "LRSchedule(monitor=…)", "ReduceLROnPlateau")
def a_plateau_without_a_monitor(folder: Path) -> None:
    model = network()
    optimizer = sgd(model)
    LRSchedule(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


@mistake(EngineError, "belongs to an optimizer that is not the run's")
def a_schedule_of_another_optimizer(folder: Path) -> None:
    other = sgd(network())
    train(LRSchedule(torch.optim.lr_scheduler.StepLR(other, 1)))


@mistake(PluginError, "GradientClipping(max_norm=…) must be a number above 0, got -1")
def clipping_at_a_negative_norm(folder: Path) -> None:
    GradientClipping(max_norm=-1)


@mistake(PluginError, "TimeLimit", "'1h'")
def a_time_limit_in_words(folder: Path) -> None:
    TimeLimit("1h")


@mistake(PluginError, "Evaluate(at=…) must be 'after_epoch', ", "got 'epoch'")
def evaluating_at_an_unknown_place(folder: Path) -> None:
    train(Evaluate(dataset(), at="epoch"))


@mistake(PluginError, "'valid' is the DataLoader that the run trains on", "pass another DataLoader")
def evaluating_on_the_loader_of_the_training(folder: Path) -> None:
    loader = DataLoader(dataset(), batch_size=4)
    Engine(components(dataset=..., loader=loader), RunConfig(epochs=1), [Evaluate(loader)]).run()


@mistake(PluginError, "Checkpoint(keep_best=1) needs monitor=…, the recorded value to go by")
def keeping_the_best_of_nothing(folder: Path) -> None:
    Checkpoint(folder / "run", keep_best=1)


# -- files


@mistake(PluginError, "CSVLogger:", "is a directory; name a file in it", "in CSVLogger.open")
def a_csv_file_that_is_a_directory(folder: Path) -> None:
    train(CSVLogger(folder))


@mistake(PluginError, "values.csv holds the values of another run", "overwrite=True")
def a_csv_file_of_another_run(folder: Path) -> None:
    train(CSVLogger(folder / "values.csv"))
    train(CSVLogger(folder / "values.csv"))


@mistake(PluginError, "run.journal holds the log of another run", "engine.run(resume=…)")
def a_journal_of_another_run(folder: Path) -> None:
    train(Journal(folder / "run.journal"))
    train(Journal(folder / "run.journal"))


@mistake(PluginError, "Journal", "cannot be written", "name another file")
def a_journal_in_a_directory_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").write_text("")
    train(Journal(folder / "file" / "run.journal"))


@mistake(CheckpointError, "making", "/file/run failed: ENOTDIR (Not a directory)", "in Checkpoint.open")
def checkpoints_in_a_directory_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").write_text("")
    train(Checkpoint(folder / "file" / "run"))


@mistake(CheckpointError, "holds", "resume", "overwrite=True")
def checkpoints_of_another_run(folder: Path) -> None:
    train(Checkpoint(folder / "run"))
    train(Checkpoint(folder / "run"))


@mistake(CheckpointError, "there is no directory", "name a directory of checkpoints, or one")
def resuming_from_nowhere(folder: Path) -> None:
    Engine(components(), RunConfig(epochs=2, batch_size=4)).run(resume=folder / "rnu")


@mistake(EngineError, "run(resume='auto')", "has none; add Checkpoint(directory)")
def resuming_without_a_checkpoint_plugin(folder: Path) -> None:
    Engine(components(), RunConfig(epochs=2, batch_size=4)).run(resume="auto")


@mistake(
    CheckpointError,
    "this is not the run that the checkpoint is of; nothing was changed",
    "network.0.weight: float32 (16, 8) in the checkpoint, float32 (32, 8) here",
    "begin a new run from the weights with load_weights",
)
def resuming_another_network(folder: Path) -> None:
    train(Checkpoint(folder / "run"))
    other = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    engine = Engine(components(network=other), RunConfig(epochs=1, batch_size=4), [Checkpoint(folder / "run")])
    engine.run(resume="auto")


@mistake(CheckpointError, "RunConfig.batch_size: 4 in the checkpoint, 8 here", "Build the engine as it was built then")
def resuming_with_another_configuration(folder: Path) -> None:
    train(Checkpoint(folder / "run"))
    Engine(components(), RunConfig(epochs=1, batch_size=8), [Checkpoint(folder / "run")]).run(resume="auto")


@mistake(EngineError, "run() was called on a run that is finished (epochs=1 complete)", "build a new Engine")
def resuming_a_finished_engine(folder: Path) -> None:
    engine = train(Checkpoint(folder / "run"))
    engine.run(resume="auto")


@mistake(EngineError, "run() was called on a run that is finished (epochs=1 complete)", "build a new Engine")
def running_a_finished_engine(folder: Path) -> None:
    train().run()


@mistake(EngineError, "run(until='after_epock')", "did you mean 'after_epoch'?")
def pausing_in_an_unknown_state(folder: Path) -> None:
    Engine(components(), RunConfig(epochs=1, batch_size=4)).run(until="after_epock")


@mistake(CheckpointError, "holds no checkpoint")
def loading_weights_from_an_empty_directory(folder: Path) -> None:
    load_weights(folder, network())


@mistake(LogError, "run.journal", "no such file")
def loading_a_log_that_is_not_there(folder: Path) -> None:
    TransitionLog.load(folder / "run.journal")
