"""How several ranks share the data of a run: whose a loader's batches are, and what the log says of it.

`build` asks here where there are ranks; alone, nothing of this is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - the base of all of them

from heptad.config import Components, RunConfig
from heptad.data.dealing import Deal
from heptad.data.feed import Feed, SizedFeed
from heptad.data.fetch import Collate
from heptad.data.group_cursor import GroupCursor
from heptad.data.group_feed import GroupFeed
from heptad.data.iterator_cursor import IteratorCursor, PassSource
from heptad.data.part_cursor import Gather, PartCursor
from heptad.data.stream import StreamSource
from heptad.errors import DataError, a_kind, counted

_ONE_BEHIND = (
    "remainder='flush' with data of unknown length reads a batch before the step of the one before it, so what acts in "
    "the data acts with weights that are one step older; remainder='extend' does not"
)


def build_deal(components: Components, config: RunConfig, rank: int, world: int) -> Deal:
    """Return how the batches of a run are dealt to its ranks.

    The last group is cut only where a criterion says what each part weighs: a `compute_loss` that gives no weight would
    count a smaller part like a whole batch. BatchNorm refuses a part of one sample.
    """
    has_norm = any(isinstance(module, _BatchNorm) for module in components.network.modules())
    return Deal(
        rank,
        world,
        config.remainder,
        epochs=config.epochs,
        least=2 if has_norm else 1,
        slices=components.criterion is not None,
    )


def shared_limit(limit: int | None, deal: Deal) -> int | None:
    """Return how many batches of its own a rank takes in a pass at most, of so many over all ranks."""
    if limit is None:
        return None
    return limit // deal.world if deal.remainder == "drop" else -(-limit // deal.world)


def distributed_sampler(loader: Any, deal: Deal, field: str) -> Any:
    """Return what deals a loader's samples to the ranks already, such as a `DistributedSampler`; else `None`.

    Raises:
        DataError: If it deals to other ranks than these.
    """
    batches = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        replicas = getattr(sampler, "num_replicas", None)
        if not isinstance(replicas, int) or replicas == 1:
            continue
        rank = getattr(sampler, "rank", deal.rank)
        if (replicas, rank) != (deal.world, deal.rank):
            raise DataError(
                f"the sampler of {field} ({a_kind(sampler)}) is of rank {rank} of {replicas}, this process is rank "
                f"{deal.rank} of {deal.world}; make it with num_replicas={deal.world}, rank={deal.rank}"
            )
        return sampler
    return None


def trusted_remarks(sampler: Any) -> Iterator[str]:
    """Yield what is to be said of a sampler that deals the samples itself."""
    samples, total = _length_of(getattr(sampler, "dataset", None)), getattr(sampler, "total_size", None)
    if samples is None or not isinstance(total, int) or total == samples:
        return
    more = total - samples
    if more > 0:
        yield (
            f"the {type(sampler).__name__} of the loader repeats {counted(more, 'sample')} in each pass, so that all "
            "ranks have as many; with dataset= in place of loader= none is repeated"
        )
    else:
        yield f"the {type(sampler).__name__} of the loader leaves out {counted(-more, 'sample')} of each pass"


def dealt_loader_feed(source: PassSource, limit: int | None, deal: Deal, *, draws: bool) -> Feed:
    """Return the feed over a loader that every rank reads whole."""
    cursor = GroupCursor(IteratorCursor(source, limit), deal, draws=draws)
    remarks = [
        f"each of the {deal.world} ranks reads all batches of the loader ({a_kind(source.data)}) and keeps every "
        f"{_ordinal(deal.world)}; with dataset=, or a DistributedSampler in the loader, each reads only its own"
    ]
    if cursor.batches is not None:
        return SizedFeed(cursor, remarks)
    return GroupFeed(cursor, [*remarks, *_on_flush(deal)])


def dealt_stream_feed(
    dataset: Any, collate: Collate | None, config: RunConfig, deal: Deal, gather: Gather | None, field: str
) -> Feed:
    """Return the feed over an iterable dataset: this rank's part, where `share(rank, world)` gives one, or all of it.

    Raises:
        DataError: If that returned nothing that can be iterated.
    """
    if gather is not None and callable(getattr(dataset, "share", None)):
        part = dataset.share(deal.rank, deal.world)
        if not hasattr(part, "__iter__"):
            raise DataError(
                f"{field}.share({deal.rank}, {deal.world}) of {a_kind(dataset)} must return what yields the samples of "
                f"that rank, got {a_kind(part)}"
            )
        source = StreamSource(part, config, collate)
        cursor = IteratorCursor(source, shared_limit(config.limit_batches, deal))
        return GroupFeed(PartCursor(cursor, deal, gather), _on_flush(deal))
    remark = (
        f"each of the {deal.world} ranks reads all samples of the dataset ({a_kind(dataset)}) and keeps every "
        f"{_ordinal(deal.world)} batch; a method share(rank, world) of the dataset may return the part of one rank"
    )
    cursor = IteratorCursor(StreamSource(dataset, config, collate), config.limit_batches)
    return GroupFeed(GroupCursor(cursor, deal, draws=False), [remark, *_on_flush(deal)])


def refuse_few(batches: int | None, deal: Deal, total: int | None) -> None:
    """Refuse a pass of which no step can be made.

    Raises:
        DataError: If there are fewer batches than ranks, and those of a group that is not full are left out.
    """
    if batches == 0 and total and deal.remainder == "drop":
        raise DataError(
            f"a pass has {counted(total, 'batch')}, fewer than the {deal.world} ranks, and remainder='drop' leaves out "
            "a group that is not full, so that no step would be made; use remainder='extend' or 'flush', a smaller "
            "batch_size or fewer ranks"
        )


def _on_flush(deal: Deal) -> list[str]:
    return [_ONE_BEHIND] if deal.remainder == "flush" else []


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _length_of(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
