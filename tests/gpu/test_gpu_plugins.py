"""Plugins that watch a device, on one: `make test-gpu`. What needs none of it is tested beside each of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from builders import small_components, small_config
from heptad import Engine, Plugin, Run
from heptad_plugins import DeviceMonitor, ModelSummary, Profiler, Throughput


def engine_on_a_device(plugins: list[Plugin], **config: object) -> Engine:
    """Return an engine over eight batches on the accelerator, in bits that torch can repeat."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Dropout(0.1), nn.Linear(1024, 10))
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(64, 256, generator=generator), torch.arange(64) % 10) for _ in range(8)]
    return Engine(small_components(network, loader=data), small_config(device="cuda", seed=2, **config), plugins)


class NoWait(Plugin):
    """Makes torch raise where the device is waited for: from the second update to the end of the last but one."""

    def on_exit_optimizer_update(self, run: Run) -> None:
        torch.cuda.set_sync_debug_mode("error" if 1 <= run.update < 7 else "default")

    def close(self, run: Run) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu("DeviceMonitor, Profiler and ModelSummary tell of the device, wait for nothing and change no bit")
@pytest.mark.usefixtures("cuda")
def test_the_memory_of_the_device_is_that_of_its_allocator():
    """At each update, without a wait, and what the run allocates is in it."""
    run = engine_on_a_device([DeviceMonitor(), NoWait()]).run()
    allocated, reserved, peak = (run.history(f"device/{name}") for name in ("allocated", "reserved", "peak"))
    assert len(allocated) == 8
    parameters = sum(parameter.numel() * 4 for parameter in run.network.parameters())
    assert all(parameters <= least <= most <= held for least, most, held in zip(allocated, peak, reserved, strict=True))
    assert peak[-1] <= torch.cuda.max_memory_allocated()


@pytest.mark.gpu("DeviceMonitor, Profiler and ModelSummary tell of the device, wait for nothing and change no bit")
@pytest.mark.usefixtures("cuda")
def test_the_load_of_the_device_is_a_share():
    """As `nvidia-smi` says it."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    loads = engine_on_a_device([DeviceMonitor()]).run().history("device/utilisation")
    assert len(loads) == 8
    assert all(0.0 <= load <= 1.0 for load in loads)


@pytest.mark.gpu("DeviceMonitor, Profiler and ModelSummary tell of the device, wait for nothing and change no bit")
@pytest.mark.usefixtures("cuda")
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch says so once a process
def test_kernels_stand_in_the_states_that_launched_them(tmp_path):
    """Each launch of a kernel lies in one of our ranges, and a forward pass has kernels."""
    path = tmp_path / "trace.json"
    engine_on_a_device([Profiler(path, range(2, 4), memory=False)]).run()
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    ours = [e for e in events if e.get("cat") == "user_annotation" and not e["name"].startswith("Optimizer.")]
    kernels = {e["args"]["correlation"] for e in events if e.get("cat") == "kernel"}
    launches = [e for e in events if e.get("cat") == "cuda_runtime" and e["args"].get("correlation") in kernels]
    found = {
        state["name"]
        for launch in launches
        for state in ours
        if state["ts"] <= launch["ts"] <= state["ts"] + state["dur"]
    }
    assert launches
    assert {"process_batch", "optimizer_update"} <= found


@pytest.mark.gpu("DeviceMonitor, Profiler and ModelSummary tell of the device, wait for nothing and change no bit")
@pytest.mark.usefixtures("cuda")
def test_a_snapshot_is_stored_when_the_device_runs_out_of_memory(tmp_path):
    """Torch's own, of which the file is beside the trace."""
    engine = engine_on_a_device([Profiler(tmp_path / "trace.json", range(90, 91))])

    @engine.on_exit("process_batch")
    def ask_for_too_much(run: Run) -> None:
        if run.step == 2:
            torch.empty(2**50, dtype=torch.uint8, device=run.device)

    with pytest.raises(torch.OutOfMemoryError) as caught:
        engine.run()
    snapshot = tmp_path / "trace.oom.pickle"
    assert snapshot.stat().st_size > 0
    assert any(str(snapshot) in note for note in caught.value.__notes__)


@pytest.mark.gpu("DeviceMonitor, Profiler and ModelSummary tell of the device, wait for nothing and change no bit")
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("accumulation", [1, 4])
def test_all_of_them_leave_the_bits_as_they_are(accumulation, tmp_path):
    """Weights and the device's generator, with and without."""
    left = []
    for plugins in ([], watching(tmp_path)):
        run = engine_on_a_device(plugins, accumulation=accumulation, epochs=2).run()
        left.append([*run.network.state_dict().values(), torch.cuda.get_rng_state()])
    for one, other in zip(*left, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def watching(folder: Path) -> list[Plugin]:
    """Return one of each."""
    return [
        DeviceMonitor(),
        Profiler(folder / "trace.json", range(1, 2)),
        ModelSummary(file=io.StringIO()),
        Throughput(peak_flops=1e15),
    ]


@pytest.mark.gpu("DeviceMonitor, Profiler and ModelSummary tell of the device, wait for nothing and change no bit")
@pytest.mark.usefixtures("cuda")
def test_flops_of_attention_on_the_device_are_those_of_arithmetic():
    """Whichever kernel torch takes there: two products for the sequence with itself."""

    def loss(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return network(batch).float().mean()

    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    summary = ModelSummary(depth=0)
    components = small_components(layer, loader=[torch.randn(2, 32, 64)], compute_loss=loss)
    Engine(components, small_config(device="cuda"), [summary]).run()
    products = 2 * 2 * 32 * (64 * 192 + 64 * 64 + 2 * 64 * 128)
    assert summary.parts[0].flops == products + 2 * 2 * 2 * 32**2 * 64
