"""`RanksMetrics`: the metrics of an evaluation that several ranks share; its one exchange is a `Meeting`.

Owned by `RanksEvaluator`. Each rank adds its own batches; then sums, weights and what objects have gathered travel to
all ranks, and each adds them in the order of the ranks: the same bits everywhere.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch

from heptad.errors import CheckpointError, DataError, EngineError, a_kind
from heptad.run.evaluating import EvaluationOptions, Measures
from heptad.run.peers import Peers
from heptad.step.metric_states import gathered_by, merge, pack, syncs_itself, unpack, unsynced
from heptad.step.metrics import Metrics, MetricsInput


class Meeting:
    """The one exchange of an evaluation. A rank that fails before it says so in it, so that no other waits.

    Args:
        peers: The ranks.
        name: What errors call the evaluation.
    """

    def __init__(self, peers: Peers, name: str) -> None:
        self._peers = peers
        self._name = name
        self._held = False

    def begin(self, batches: int | None) -> None:
        """See that all ranks have as many batches, before they make the first forward pass together.

        Args:
            batches: How many; `None` where nobody can know.

        Raises:
            DataError: If they have not, on all ranks.
            RankFailed: If one has failed before.
        """
        counts = [row.decode() for row in self._peers.gather(str(batches).encode())]
        if len({*counts}) > 1:
            listed = ", ".join(f"rank {rank} has {one}" for rank, one in enumerate(counts))
            raise DataError(
                f"{self._name}: the ranks do not have the same data, or a sampler that deals them out unequally: in "
                f"batches, {listed}; give each rank the whole data, without such a sampler"
            )

    def exchange(self, content: bytes) -> list[bytes]:
        """Return what each rank gave, by rank.

        Raises:
            RankFailed: If one has failed before.
        """
        self._held = True
        return self._peers.gather(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not self._held:
            self._peers.fail_together(error, f"in {self._name}")


class RanksMetrics(Metrics):
    """The loss and the metrics of one evaluation over all ranks.

    Args:
        metrics: What is measured beside the loss.
        options: Those of the evaluation.
        meeting: Where the ranks exchange what they have measured.
    """

    def __init__(self, metrics: MetricsInput, options: EvaluationOptions, meeting: Meeting) -> None:
        super().__init__(metrics, options)
        self._meeting = meeting
        self._batches = 0
        self._merged = {name: metric for name, metric in self.objects.items() if not syncs_itself(metric)}

    def add(
        self,
        output: Any,
        batch: Any,
        loss: torch.Tensor | None,
        weight: float | torch.Tensor | None,
        count: float | torch.Tensor | None = None,
    ) -> None:
        """Add what is measured of a batch of this rank."""
        self._batches += 1
        super().add(output, batch, loss, weight, count)

    def measures(self, *, trial: bool = False) -> Measures:
        """Return what was measured on all ranks, which waits for them."""
        self._take_in([unpack(row, "an evaluation") for row in self._meeting.exchange(self._packed())])
        with unsynced(self._merged.values()):
            return super().measures(trial=trial)

    def _packed(self) -> bytes:
        objects: dict[str, Any] = {}
        own: dict[str, Any] = {
            "batches": self._batches,
            "counted": self.counted,
            "has loss": self._has_loss,
            "sums": {name: one.double().cpu() for name, one in self._sums.items()},
            "weights": {name: torch.as_tensor(one, dtype=torch.float64).cpu() for name, one in self._weights.items()},
            "objects": objects,
        }
        if not self.counted:
            return pack(own, "an evaluation")
        for name, metric in self._merged.items():
            objects[name] = gathered_by(metric)
        try:
            return pack(own, "an evaluation")
        except CheckpointError as error:
            names = ", ".join(f"{name!r} ({a_kind(metric)})" for name, metric in self._merged.items())
            raise EngineError(
                f"what the metric objects {names} have gathered cannot be sent to the other ranks: {error}; give the "
                "object state_dict and load_state_dict of tensors and plain data, or give a function"
            ) from error

    def _take_in(self, rows: list[dict[str, Any]]) -> None:
        """Take what each rank has measured as that of this one, in the order of the ranks."""
        if not any(row["batches"] for row in rows):
            raise DataError("the data to evaluate on yield nothing, on any rank")
        self.counted = sum(row["counted"] for row in rows)
        self._has_loss = any(row["has loss"] for row in rows)
        self._sums, self._weights = {}, {}
        for row in rows:
            for name, total in row["sums"].items():
                self._sums[name] = self._sums.get(name, 0.0) + total
                self._weights[name] = self._weights.get(name, 0.0) + row["weights"][name]
        gathered = [row["objects"] for row in rows if row["counted"]]
        for name, metric in self._merged.items():
            if gathered:
                merge(metric, [objects[name] for objects in gathered])
