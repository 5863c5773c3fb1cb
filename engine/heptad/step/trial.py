"""What a trial of metrics needs: one batch of data that are not moved, copies of metrics, and buffers restored."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, IterableDataset

from heptad.config import Components, RunConfig
from heptad.data.build import build_dataset_feed
from heptad.data.cursor import NOTHING
from heptad.data.generators import generator_state, generators_of, set_generator_state
from heptad.data.loader import parts_of_dataset
from heptad.data.workers import begin_iterating
from heptad.step.metrics import Metric, MetricObject, MetricsInput, named_metrics

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, partial, nn.Module)
"""What is called as it is: a copy of a bound method would be one of all that its object holds."""


def first_batch(data: Any, components: Components, config: RunConfig, *, of_samples: bool) -> Any:
    """Return a batch of data, or `NOTHING` where it cannot be had without moving them.

    It can be had of samples that are indexed, of a list of batches, and of a DataLoader over such samples, whose
    samplers are copied. Where workers fetch, one does: a file that this process opened could not be read by those that
    are forked later. What the data raise is left to the evaluation.

    Args:
        data: What is evaluated on.
        components: Those of the run.
        config: That of a pass in the data's own order.
        of_samples: Whether the data hold samples and not batches.
    """
    loader = cast("DataLoader[Any]", data) if isinstance(data, DataLoader) else None
    dataset = cast("Any", data if loader is None else loader.dataset)
    generators = generators_of(*parts_of_dataset(dataset))
    states = [generator_state(generator) for generator in generators]
    try:
        if isinstance(dataset, IterableDataset):
            return NOTHING
        if loader is not None:
            return _of_loader(loader)
        if isinstance(data, list | tuple) and not of_samples:
            return deepcopy(cast("list[Any]", data)[0])  # a network may write to it
        if not of_samples or not hasattr(dataset, "__getitem__"):
            return NOTHING
        one = config.model_copy(update={"num_workers": min(1, config.num_workers)})
        feed = build_dataset_feed(data, components.collate_fn, one, "")
        try:
            feed.open(0, 0, 1)
            return feed.take()
        finally:
            feed.close()
    except Exception:
        return NOTHING
    finally:
        for generator, state in zip(generators, states, strict=True):
            set_generator_state(generator, state)


def _of_loader(loader: DataLoader[Any]) -> Any:
    """Return the first batch of a loader, of which nothing moves."""
    if type(loader).__iter__ is not DataLoader.__iter__:  # its own batches may look different
        return NOTHING
    of_batches = loader.batch_sampler is not None
    order = cast("Any", loader.batch_sampler if of_batches else loader.sampler)
    indices = [next(iter(deepcopy(order, {id(loader.dataset): loader.dataset})))]
    given: dict[str, Any] = {"batch_sampler": indices} if of_batches else {"sampler": indices, "batch_size": None}
    one: DataLoader[Any] = DataLoader(
        loader.dataset,
        num_workers=min(1, loader.num_workers),
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator().manual_seed(0),  # without one, iter() draws from the global generator
        **given,
    )
    return deepcopy(next(begin_iterating(one)))  # without collating, it is the dataset's own: a network may write to it


def copies_of(metrics: MetricsInput) -> MetricsInput:
    """Return metrics to try: functions as they are, objects copied; one that cannot be copied is left out."""
    copies: dict[str, Metric] = {}
    for name, metric in named_metrics(metrics).items():
        if isinstance(metric, _FUNCTIONS) and not isinstance(metric, MetricObject):
            copies[name] = metric
            continue
        try:
            copies[name] = deepcopy(metric)
        except Exception:  # whatever its own copying raises
            continue
    return copies


def has_memory(network: nn.Module) -> bool:
    """Return whether a network can be run: none of its tensors is lazy or on the meta device."""
    return not any(is_lazy(tensor) or tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


@contextmanager
def buffers_preserved(network: nn.Module) -> Generator[None]:
    """Restore the buffers that a block writes to or replaces (waits for their device)."""
    held = [
        (module, name, buffer, None if buffer.is_inference() else buffer._version, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, version, values in held:
                # the values too: BatchNorm writes its means without counting a version
                if version is not None and (buffer._version != version or not torch.equal(buffer, values)):
                    buffer.copy_(values)
                if getattr(module, name, None) is not buffer:
                    setattr(module, name, buffer)
