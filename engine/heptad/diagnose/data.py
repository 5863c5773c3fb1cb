"""What is likely wrong with data that were given, and what to pass in their place."""

from __future__ import annotations

import os
import reprlib
from collections import UserDict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from heptad.config import RunConfig
from heptad.errors import a_kind, counted, summarize


def no_data(data: Any, field: str) -> str:
    """Describe what can be indexed or iterated, but not for samples or batches."""
    if isinstance(data, type):
        return f"{field} is the class {data.__name__}; pass an instance: {data.__name__}(…)"
    if isinstance(data, str | bytes | os.PathLike):
        path = reprlib.repr(os.fspath(cast("str", data)))
        return f"{field} is {path}; no file is read here, pass what reads it"
    return (
        f"{field} is a DataFrame, which is indexed by column; pass TensorDataset(torch.tensor(frame.to_numpy())), "
        "or a Dataset whose __getitem__ takes a row by its position"
    )


def no_dataset(data: Any, field: str) -> str:
    """Describe what is not a dataset of samples."""
    if isinstance(data, DataLoader):
        return f"{field} is a DataLoader, which yields batches; pass it as loader="
    if isinstance(data, dict | UserDict):
        return f"{field} is {summarize(data)}; samples are read at 0, 1, 2, …: {_in_place_of_dict(data)}"
    return f"{field} must have __getitem__ and __len__, or __iter__; got {a_kind(data)}"


def shuffled_stream(data: Any, field: str) -> str:
    """Describe a shuffle of data that come in their own order."""
    return (
        f"RunConfig.shuffle=True needs a dataset that is indexed, and {field} ({a_kind(data)}) is iterated in "
        "its own order; leave it out, and shuffle where the samples are yielded"
    )


def too_few_samples(data: Any, field: str, samples: int | None, size: int) -> str:
    """Describe a dataset that does not fill one batch."""
    name = f"{field} ({a_kind(data)})"
    if samples is None:
        return f"{name} has __getitem__ but no length; give it __len__, or __iter__ and IterableDataset as a base"
    if not samples:
        return f"{name} is empty; give it at least one sample"
    advice = "use a smaller batch_size or drop_last=False"
    if isinstance(data, tuple | list) and _are_columns(cast("Sequence[Any]", data)):
        advice = "if its items are columns, pass TensorDataset(*map(torch.as_tensor, data)); else " + advice
    return (
        f"{name} has {counted(samples, 'sample')}, fewer than one batch of {size}, and drop_last=True leaves it "
        f"out; {advice}"
    )


def empty_pass(which: str, config: RunConfig) -> str:
    """Describe a pass without a batch; samples that do not fill one are left out by default."""
    size = config.batch_size
    of = f" of {size}; drop_last=True leaves a smaller one out" if size and size > 1 and config.drop_last else ""
    return f"{which} yields nothing; the data must hold at least one batch{of}"


def no_loader(data: Any, field: str) -> str:
    """Describe what is not a loader of batches."""
    if isinstance(data, Dataset):
        return f"{field} is {a_kind(cast('object', data))}, which holds samples; pass it as dataset="
    if isinstance(data, dict | UserDict):
        return f"{field} is {summarize(data)}; it must be a re-iterable of batches: {_in_place_of_dict(data)}"
    return f"{field} must be a re-iterable of batches, got {a_kind(data)}"


def iterated_once(data: Any) -> str:
    """Describe an iterator where a further pass is needed."""
    return (
        f"the data are {a_kind(data)}, which can be iterated once, and a further pass is needed; pass "
        "something whose __iter__ begins anew, such as a list, a DataLoader or a class with __iter__"
    )


def _in_place_of_dict(data: Any) -> str:
    """Return what to pass in place of a dict."""
    keys = [repr(key) for key in data]
    if _are_columns(list(data.values())):
        return f"pass TensorDataset({', '.join(f'torch.as_tensor(data[{key}])' for key in keys[:4])})"
    return f"pass one of its values, such as data[{keys[0]}]" if keys else "it is empty"


def _are_columns(values: Sequence[Any]) -> bool:
    """Return whether these are tensors or arrays of one length, which people mean as the columns of samples."""
    rows = {
        len(cast("Any", value)) if isinstance(value, torch.Tensor | np.ndarray) and value.ndim else None
        for value in values
    }
    return len(values) > 1 and len(rows) == 1 and None not in rows
