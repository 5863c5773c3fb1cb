"""`Throughput`: the share of a device's peak that the network uses, against arithmetic, by a clock of the test's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from builders import FEATURES, Clock, Planned, batches, equal, small_components, small_config, small_engine, weights
from heptad import Engine, Plugin, PluginError, Run
from heptad_plugins import Checkpoint, Evaluate, Throughput
from heptad_plugins._peaks import PEAKS, product_dtype, published_peak

FORWARD = 2 * 4 * 3
"""FLOPs of a sample in the forward pass of the small network, a linear layer from 4 to 3."""
SAMPLE = 3 * FORWARD
"""With its backward pass."""
PEAK = 1e4


class Ticks(Plugin):
    """Each step takes two seconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_exit_process_batch(self, run: Run) -> None:
        self.clock.now += 2.0


def timed(plugin: Throughput) -> list[Plugin]:
    """Return the plugin with a clock that moves two seconds a step, and what moves it."""
    clock = plugin._all.clock = plugin._waiting.clock = Clock()
    return [plugin, Ticks(clock)]


def mfu(data: Any = 4, network: nn.Module | None = None, epochs: int = 2, **options: Any) -> list[float]:
    """Return what is recorded over batches of two samples, by a peak of ten thousand unless another is given."""
    plugins = timed(Throughput(**{"peak_flops": PEAK, **options}))
    return small_engine(data, plugins, network=network, epochs=epochs).run().history("mfu")


def test_it_is_the_flops_of_the_samples_over_what_the_peak_allows():
    """8 samples in 8 seconds."""
    assert mfu() == pytest.approx([SAMPLE * 8 / (8.0 * PEAK)] * 2, rel=1e-12)


def test_a_ragged_batch_counts_by_its_samples():
    """Those of the first step stand for each sample of all."""
    data = [*batches(2, size=4), *batches(1, size=1)]
    assert mfu(data) == pytest.approx([SAMPLE * 9 / (6.0 * PEAK)] * 2, rel=1e-12)


def test_several_epochs_are_taken_together():
    """With `every`."""
    assert mfu(epochs=4, every=2) == pytest.approx([SAMPLE * 16 / (16.0 * PEAK)] * 2, rel=1e-12)


def test_flops_that_are_given_are_not_counted():
    """They are for a forward and a backward pass together."""
    assert mfu(flops_per_sample=500) == pytest.approx([500 * 8 / (8.0 * PEAK)] * 2, rel=1e-12)


def test_a_forward_pass_that_is_not_trained_through_has_no_backward_pass():
    """A teacher under `no_grad`, in the same network."""

    def loss(network: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            wanted = network["teacher"](batch[0])
        return (network["student"](batch[0]) - wanted).square().mean()

    network = nn.ModuleDict({"teacher": nn.Linear(FEATURES, 3), "student": nn.Linear(FEATURES, 3)})
    components = small_components(network, compute_loss=loss)
    run = Engine(components, small_config(), timed(Throughput(peak_flops=PEAK))).run()
    assert run.history("mfu") == pytest.approx([(SAMPLE + FORWARD) * 6 / (6.0 * PEAK)], rel=1e-12)


@pytest.mark.parametrize("until", ["before_step", "process_batch", "after_step", "optimizer_update", lambda run: True])
def test_a_pause_and_an_evaluation_are_not_counted(until):
    """Wherever the run is paused, with the network used meanwhile, and evaluated in and between epochs."""
    evaluate = Evaluate(batches(3), at=("before_loop", "optimizer_update"))
    engine = small_engine(4, [*timed(Throughput(peak_flops=PEAK)), evaluate], epochs=2)
    while not engine.current.ended:
        engine.run(until=until)
        engine.current.network(torch.randn(50, FEATURES))
    assert engine.current.history("mfu") == pytest.approx([SAMPLE * 8 / (8.0 * PEAK)] * 2, rel=1e-12)


@pytest.mark.parametrize("at", [1, 5, 6])
def test_a_resumed_run_counts_anew_and_is_the_run_that_was_not_interrupted(at, tmp_path):
    """In mid-window too; the bits are those of a run without it."""

    def build(folder: str, fails: int, plugins: list[Plugin]) -> Engine:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        plugins = [*plugins, Checkpoint(tmp_path / folder, at="after_step")]
        engine = small_engine(4, plugins, network=network, accumulation=2, epochs=2, seed=3)

        @engine.on_enter("process_batch")
        def fail(run: Run) -> None:
            if run.step == fails:
                raise Planned

        return engine

    whole = build("whole", -1, []).run()
    with pytest.raises(Planned):
        build("killed", at, timed(Throughput(peak_flops=PEAK))).run()
    resumed = build("killed", -1, timed(Throughput(peak_flops=PEAK))).run(resume="auto")
    assert equal(weights(resumed.network), weights(whole.network))
    expected = 3 * 2 * (4 * 8 + 8 * 3) * 2 / (2.0 * PEAK)
    assert resumed.history("mfu") == pytest.approx([expected] * 2, rel=1e-12)


# -- where it is not known


def test_without_a_peak_nothing_is_counted_nor_recorded(monkeypatch):
    """On a CPU, whose peak nobody publishes: the step is the one that it was."""
    monkeypatch.setattr("heptad_plugins._flops.StepFlops.begin", Planned)
    run = small_engine(3, [Throughput()]).run()
    assert not run.history("mfu")
    assert run.history("steps_per_second")


def test_a_compiled_network_is_not_known_and_the_log_says_what_to_do():
    """Once; with `flops_per_sample` it is."""
    network = nn.Sequential(nn.Linear(FEATURES, 3))
    network[0].compile(backend="eager")
    run = small_engine(3, [Throughput(peak_flops=PEAK)], network=network, epochs=2).run()
    assert not run.history("mfu")
    (note,) = run.log.notes("note")
    assert str(note).endswith("Throughput: mfu is not known: the network is compiled; give flops_per_sample=…")
    assert len(mfu(network=network, flops_per_sample=10)) == 2


# -- published peaks


class Card:
    """A device's module that names a card."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_device_name(self, device: torch.device) -> str:
        return self.name


def test_the_peak_of_a_known_card_is_taken(monkeypatch):
    """In the dtype of the network; one of a user's own comes before it."""
    monkeypatch.setattr("heptad_plugins._device.module_of", lambda device: Card("NVIDIA A100-SXM4-80GB"))
    assert mfu(peak_flops=None) == pytest.approx([SAMPLE * 8 / (8.0 * 19.5e12)] * 2, rel=1e-12)
    assert mfu() == pytest.approx([SAMPLE * 8 / (8.0 * PEAK)] * 2, rel=1e-12)
    monkeypatch.setattr("heptad_plugins._device.module_of", lambda device: Card("Some Card 9000"))
    assert mfu(peak_flops=None) == []


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA B200", 2250),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A40-8Q", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
        ("Tesla V100-SXM2-16GB", None),
        ("", None),
    ],
)
def test_a_card_is_known_by_its_whole_name(name, bf16):
    """A10 is neither A100 nor A10G, a part of a card is none, and a card that lacks a dtype has no peak in it."""
    assert published_peak(name, "bf16") == (None if bf16 is None else bf16 * 1e12)


def test_the_table_is_consistent():
    """Tensor cores do 16 bits twice as fast as TF32, and never slower than 32 bits without them."""
    for peaks in PEAKS.values():
        assert peaks["fp16"] >= peaks["fp32"]
        if "tf32" in peaks:
            assert peaks["bf16"] == peaks["fp16"] == pytest.approx(2 * peaks["tf32"], rel=0.02)


@pytest.mark.parametrize(
    ("precision", "dtype", "products", "expected"),
    [
        ("fp32", torch.float32, "highest", "fp32"),
        ("fp32", torch.float32, "high", "tf32"),
        ("fp32", torch.bfloat16, "highest", "bf16"),
        ("fp32", torch.float16, "high", "fp16"),
        ("fp32", torch.float64, "highest", ""),
        ("bf16-mixed", torch.float32, "highest", "bf16"),
        ("fp16-mixed", torch.float32, "high", "fp16"),
    ],
)
def test_the_dtype_is_that_of_the_products(precision, dtype, products, expected):
    """As `precision` says, else as the network is stored, else as torch takes its products of 32 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        small = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        assert product_dtype(precision, [small, *nn.Linear(4, 3, dtype=dtype).parameters()]) == expected
        assert product_dtype("fp32", []) == ""
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["peak_flops", "flops_per_sample"])
@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), True, "1e12"])
def test_a_number_of_flops_must_be_above_0(name, wrong):
    """The message names the option."""
    with pytest.raises(PluginError, match=rf"Throughput\({name}=…\) must be a number above 0, got"):
        Throughput(**{name: wrong})
