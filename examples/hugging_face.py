"""Train a `transformers` model on a `datasets` dataset: batches are dicts, and every token counts the same.

A small Llama, built from a config, learns to write docstrings of Python's standard library, byte by byte. Nothing is
downloaded. The texts differ in length, so the micro-batches of a window hold different numbers of tokens. The mean over
the window is taken over its tokens, as in transformers' own Trainer: `tests/test_examples.py` checks that both make the
same updates. It takes about a minute; `hugging_face.out.txt` shows what it prints.
"""

import argparse
import importlib
import inspect
import math
from collections.abc import Iterator

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from heptad import Components, Engine, LossOutput, RunConfig
from heptad_plugins import Evaluate, GradientClipping, Progress

torch.set_num_threads(1)

LONGEST = 96
MODULES = "argparse ast asyncio collections datetime decimal email.message functools http.client inspect ipaddress json"
MODULES += " logging os pathlib pickle random re shutil socket statistics string subprocess textwrap threading typing"


def docstrings() -> Iterator[str]:
    """Yield the first paragraph of the docstring of each function and method, each text once."""
    seen: set[str] = set()
    for name in MODULES.split():
        module = importlib.import_module(name)
        members = [module, *(member for _, member in inspect.getmembers(module, inspect.isclass))]
        for owner in members:
            for _, member in inspect.getmembers(owner, inspect.isroutine):
                text = (inspect.getdoc(member) or "").split("\n\n")[0]
                if len(text) > 20 and text not in seen:
                    seen.add(text)
                    yield text


def build_dataset() -> Dataset:
    """Return rows of `input_ids` of different lengths: the first bytes of a docstring, at most LONGEST."""
    return Dataset.from_dict({"input_ids": [list(text.encode())[:LONGEST] for text in docstrings()]})


def collate(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad the samples to the longest of the batch; transformers ignores label -100 in a loss."""
    rows = [torch.tensor(sample["input_ids"]) for sample in samples]
    mask = [torch.ones_like(row) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad(mask, batch_first=True),
        "labels": pad(rows, batch_first=True, padding_value=-100),
    }


def build_network() -> PreTrainedModel:
    """Return a Llama with 115,008 parameters and weights drawn at random."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LONGEST,
        )
    )


def compute_loss(network: nn.Module, batch: dict[str, Tensor]) -> LossOutput:
    """Return the mean over the predicted tokens, weighted by their number."""
    output = network(**batch)
    predicted = batch["labels"][:, 1:] != -100  # the first token of a row is given
    return LossOutput(output.loss, weight=predicted.sum(), output=output.logits)


def main() -> None:
    """Train, and write a docstring with the trained model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--samples", type=int, help="number of samples to train on (default: all)")
    options = parser.parse_args()

    dataset = build_dataset()
    if options.samples:
        dataset = dataset.select(range(options.samples))
    parts = dataset.train_test_split(test_size=0.1, seed=0)
    print(f"{len(parts['train']):,} docstrings to train on, {len(parts['test']):,} held out")

    torch.manual_seed(0)
    network = build_network()
    engine = Engine(
        Components(
            network=network,
            dataset=parts["train"],
            collate_fn=collate,
            compute_loss=compute_loss,
            optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3),
        ),
        RunConfig(epochs=options.epochs, batch_size=8, accumulation=2, device="cpu"),
        plugins=[Evaluate(parts["test"]), GradientClipping(max_norm=1.0), Progress()],
    )
    untrained = engine.evaluate(parts["test"])["loss"]
    run = engine.run()

    for name, loss in (("untrained", untrained), ("trained", run.metrics["valid/loss"])):
        print(f"{name:10}{loss / math.log(2):.3f} bits a byte, held out")
    beginning = torch.tensor([list(b"Return the ")])
    written = network.generate(beginning, max_new_tokens=60, do_sample=False, pad_token_id=0, eos_token_id=None)
    print("|", repr(bytes(written[0].tolist()).decode(errors="replace")))


if __name__ == "__main__":
    main()
