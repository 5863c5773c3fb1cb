"""`DeviceMonitor` observes the run: the memory and the load of the device, and the memory of the process."""

from __future__ import annotations

from typing import Any, Literal

from heptad import Plugin, Run
from heptad_plugins._device import load_of, memory_of
from heptad_plugins._options import selection


class DeviceMonitor(Plugin):
    """Record on exit of `optimizer_update` what device and host are used for.

    `device/allocated` and `device/reserved` are the bytes that tensors hold and that torch's allocator holds for them,
    `device/peak` the most that were allocated since the process began (or somebody called `reset_peak_memory_stats`).
    `device/utilisation` is the share of the last moments, from 0 to 1, in which a kernel ran, as `nvidia-smi` says it:
    it needs nvidia-ml-py. `host/memory` are the bytes of this process that lie in memory, those of workers left out. On
    a CPU there is the last one alone.

    None of them waits for the device: its allocator counts on the host, and the driver answers for itself. A record
    costs some 20 µs for the host, and a call of the driver.

    Args:
        every: Updates between two records; a skipped update has none.
        first: The first of these numbers, by default `every`: `every=10, first=1` means 1, 11, 21, ….
        on_error: `"detach"`: an exception detaches the plugin, and the run continues.

    Raises:
        PluginError: If `every` is not a whole number from 1 on.
        ImportError: If psutil is not installed; it names the extra.
    """

    observes = True
    ranks = "all"  # each has a device and a process of its own

    runs_before = ("EarlyStopping", "Journal", "CSVLogger", "TensorBoardLogger", "Progress", "Checkpoint")

    def __init__(
        self, every: int = 1, *, first: int | None = None, on_error: Literal["raise", "detach"] = "raise"
    ) -> None:
        try:
            import psutil
        except ImportError as error:
            raise ImportError("DeviceMonitor needs psutil: pip install 'heptad[monitor]'") from error
        self._processes = psutil
        self.on_error = on_error
        self._numbers = selection("DeviceMonitor", every, first)
        self._process: Any = None
        self._load: Any = None
        """Returns how many of a hundred moments the device was busy; `None` where nobody can."""
        self._said = False  # whether the log says why

    def on_begin(self, run: Run) -> None:
        """Forget what was said of an earlier run."""
        self._said = False

    def open(self, run: Run) -> None:
        """Find the process, which a fork may have changed, and see what the device can tell."""
        self._process = self._processes.Process()
        self._load = load_of(run.device)
        if self._load is None:
            return
        try:
            self._load(run.device)
        except ModuleNotFoundError:
            self._do_without_load(run, "it needs nvidia-ml-py: pip install 'heptad[monitor]'")
        except Exception as error:  # a driver or a card that does not say it: each library has exceptions of its own
            self._do_without_load(run, f"{type(error).__name__}: {error}")

    def _do_without_load(self, run: Run, why: str) -> None:
        self._load = None
        if not self._said:
            run.note(f"DeviceMonitor: device/utilisation is not known; {why}")
        self._said = True

    def on_exit_optimizer_update(self, run: Run) -> None:
        """Record the values, at an update whose number is selected."""
        if run.update_skipped or not self._numbers.selects(run.update):
            return
        for name, count in (memory_of(run.device) or {}).items():
            run.record(f"device/{name}", count)
        if self._load is not None:
            run.record("device/utilisation", self._load(run.device) / 100)
        run.record("host/memory", self._process.memory_info().rss)
