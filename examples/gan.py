"""Train two networks against each other: how a plugin adds a state to the machine.

A discriminator learns to distinguish points of a ring of eight blots from those that a generator draws; the generator
learns to deceive it. The engine's own update is that of the discriminator. That of the generator is a detour,
`generator_update`: a state of its own with an arc, a guard, a place in the diagram, in the log and in the timings.
It takes about half a minute; `gan.out.txt` shows what it prints.
"""

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from heptad import Components, Detour, Engine, LossOutput, Plugin, Run, RunConfig

torch.set_num_threads(1)

NOISE = 8
BLOTS, SPREAD = 8, 0.08


def draw_ring(count: int, generator: torch.Generator) -> Tensor:
    """Return points, shape (count, 2), each near one of eight places on a circle."""
    angles = torch.randint(BLOTS, (count,), generator=generator) * (2 * math.pi / BLOTS)
    places = torch.stack((angles.cos(), angles.sin()), dim=1)
    return places + SPREAD * torch.randn(count, 2, generator=generator)


def build_networks() -> nn.ModuleDict:
    """Return both as one module, so that the engine places, checkpoints and sets the mode of both."""

    def layers(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
        )

    return nn.ModuleDict({"generator": layers(NOISE, 2), "discriminator": layers(2, 1)})


def invent(networks: nn.Module, count: int) -> Tensor:
    """Return points drawn by the generator, shape (count, 2)."""
    return networks["generator"](torch.randn(count, NOISE))


def discriminator_loss(networks: nn.Module, real: Tensor) -> LossOutput:
    """Return the loss of the engine's own update: high scores for real points, low ones for invented points."""
    with torch.no_grad():
        invented = invent(networks, len(real))
    judge = networks["discriminator"]
    loss = softplus(-judge(real)).mean() + softplus(judge(invented)).mean()
    # R1 penalty on the slope of the scores at real points; without it GANs may not converge (Mescheder et al., 2018)
    points = real.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(judge(points).sum(), points, create_graph=True)
    return LossOutput(loss + 0.1 * slopes.square().sum(dim=1).mean(), weight=len(real), logs={"discriminator": loss})


class GeneratorUpdate(Plugin):
    """Update the generator after each update of the discriminator, in a state of its own.

    Args:
        size: Number of points of an update.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def detours(self) -> list[Detour]:
        """Return the state: its name, the state that it follows, the guard of its arc, and its body."""
        return [Detour("generator_update", after="optimizer_update", when=self.is_due, body=self.update)]

    def is_due(self, run: Run) -> bool:
        """Return whether to enter the state: the guard, which reads the run and changes nothing."""
        return not run.update_skipped

    def update(self, run: Run) -> None:
        """Update the generator: the body of the state.

        The engine has built its optimizer, stores it, and clears all gradients where the next window opens.
        """
        judge = run.network["discriminator"]
        loss = softplus(-judge(invent(run.network, self._size))).mean()
        loss.backward()
        run.side_optimizers["generator"].step()
        run.record("generator", loss.detach())


def main() -> None:
    """Train, print the diagram, and measure how good the generator's points are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=5_000)
    options = parser.parse_args()

    torch.manual_seed(0)
    networks = build_networks()
    adam = {name: torch.optim.Adam(part.parameters(), lr=1e-3, betas=(0.5, 0.99)) for name, part in networks.items()}
    engine = Engine(
        Components(
            network=networks,
            dataset=draw_ring(10_000, torch.Generator().manual_seed(0)),  # a tensor of rows is a dataset
            compute_loss=discriminator_loss,
            optimizer=adam["discriminator"],
            side_optimizers={"generator": adam["generator"]},
        ),
        RunConfig(max_updates=options.updates, batch_size=128, device="cpu"),
        plugins=[GeneratorUpdate(size=128)],
    )
    print(engine.diagram())

    run = engine.run()
    print(f"\n{run.reason}")
    counts, durations = run.log.counts(), run.log.durations()
    for state in ("process_batch", "optimizer_update", "generator_update"):
        print(f"    {state:18}entered {counts[state]:,} times, median {durations[state].median_ns / 1e3:,.0f} µs")
    print("\nOne round, from the log:")
    print(*run.log.tail(8)[:5], sep="\n")

    with torch.no_grad():
        points = invent(networks, 2_000)
    angles = torch.arange(BLOTS) * (2 * math.pi / BLOTS)
    distance, nearest = torch.cdist(points, torch.stack((angles.cos(), angles.sin()), dim=1)).min(dim=1)
    near = distance < 4 * SPREAD
    print(f"\n{near.float().mean():.1%} of the generator's points lie on a blot; on each of the eight:")
    print(torch.bincount(nearest[near], minlength=BLOTS).tolist())


if __name__ == "__main__":
    main()
