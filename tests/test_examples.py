"""The examples run, in a small setting, and show what they promise; what stands beside each is what it prints."""

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heptad import Components, Engine, LossOutput, RunConfig, TransitionLog
from heptad.cli.main import main as heptad_command
from heptad_plugins import GradientClipping

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def run_example(name, folder, *options):
    """Run an example in a folder of its own; return what it printed and what it wrote to the error stream."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *options],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert shape_of(done.stdout) == shape_of((EXAMPLES / f"{name}.out.txt").read_text(encoding="utf-8"))
    return done.stdout, done.stderr


def shape_of(text):
    """Return the lines without what depends on size and machine: numbers, widths, text that a model wrote.

    Lines that are alike then and follow each other count once, since a longer run prints more of them.
    """
    lines: list[str] = []
    for line in text.strip().splitlines():
        shape = re.sub(r"[-+]?\d[\d,.]*(e-?\d+)?", "0", re.sub(r"^\|.*", "|", line))
        shape = " ".join(shape.split())
        if not lines or shape != lines[-1]:
            lines.append(shape)
    return lines


def number(pattern, text):
    """Return the one number that a pattern finds."""
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return float(found.replace(",", ""))


def load(name):
    """Return what an example defines, without running it."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder in which the example was run over the remains of a killed run, its output and its error stream."""
    folder = tmp_path_factory.mktemp("digits")
    begun = [sys.executable, EXAMPLES / "digits.py", "--die", "--epochs=2", "--folder=runs/digits/first"]
    assert subprocess.run(begun, cwd=folder, stderr=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    return folder, *run_example("digits", folder, "--epochs=6")


class TestDigits:
    """The example that trains on digits, is killed, resumes and explains itself."""

    def test_it_learns(self, digits):
        _, out, err = digits
        assert number(r"accuracy on the held-out images (\S+)$", out) >= 0.97
        assert err.count("epoch ") == 6 + 3 + 3

    def test_a_kill_changes_no_bit(self, digits):
        _, out, _ = digits
        assert "ended by SIGKILL" in out
        assert number(r"resumed from checkpoint-0*(\d+)", out) == 3
        assert out.count("the same") == 7  # six tensors, and the heading of the second act
        assert "DIFFERENT" not in out

    def test_it_shows_its_machine_and_its_path(self, digits):
        _, out, _ = digits
        assert "stateDiagram-v2" in out
        assert number(r"^optimizer_update +(\d+) .* µs .* s$", out) == 6 * 23
        assert len(re.findall(r"^#\d+ +\w+ -> \w+", out, re.MULTILINE)) == 10

    def test_the_command_that_it_names_shows_its_updates(self, digits, monkeypatch, capsys):
        folder, out, _ = digits
        (command,) = re.findall(r"^    heptad (stats .*)$", out, re.MULTILINE)
        monkeypatch.chdir(folder)
        assert heptad_command(command.split()) == 0
        assert re.search(r"^ *optimizer_update +138 ", capsys.readouterr().out, re.MULTILINE)


def test_language_model_learns_from_text_and_writes_some(tmp_path):
    """Better than chance after a few updates, evaluated and sampled on the way, and compared with xz."""
    out, _ = run_example(
        "language_model", tmp_path, "--width=64", "--layers=1", "--updates=40", "--every=20", "--threads=1"
    )
    assert len(re.findall(r"^update \d+ of 40: ", out, re.MULTILINE)) == 2
    assert 1.5 < number(r"^xz -9 .*: (\S+) bits", out) < 2.5
    assert number(r"^the model: +(\S+) bits", out) < 6.5  # 7 is chance
    samples = (tmp_path / "runs" / "language_model" / "samples.txt").read_text(encoding="utf-8")
    assert re.findall(r"^--- update (\d+)$", samples, re.MULTILINE) == ["20", "40"]
    header = (tmp_path / "runs" / "language_model" / "values.csv").read_text(encoding="utf-8").split("\n")[0].split(",")
    assert {"train/loss", "lr/0", "lr/1", "gradient_norm", "valid/loss", "held_out/loss"} <= set(header)


def test_language_model_is_held_to_files_that_it_has_not_seen():
    """No file is on both sides, and reading again gives the same."""
    read_library = load("language_model")["read_library"]
    train, held_out = read_library()
    files = set(train.split(b"\0")), set(held_out.split(b"\0"))
    assert not files[0] & files[1] - {b""}
    assert read_library() == (train, held_out)


def test_language_model_beat_xz_when_it_was_recorded():
    """The run whose output is kept needed fewer bits than `xz -9` on the same files."""
    kept = (EXAMPLES / "language_model.out.txt").read_text(encoding="utf-8")
    assert number(r"^the model: +(\S+) bits", kept) < number(r"^xz -9 .*: (\S+) bits", kept)


def test_hugging_face_learns_and_writes(tmp_path):
    """Fewer bits than the untrained model needs."""
    out, _ = run_example("hugging_face", tmp_path, "--epochs=1", "--samples=400")
    assert number(r"^trained +(\S+) bits", out) < number(r"^untrained +(\S+) bits", out) - 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what transformers' Trainer meets in its own imports
def test_updates_are_those_of_the_transformers_trainer(tmp_path, monkeypatch):
    """Its accumulation is exact over tokens, as ours; batches, clipping and the rest of an epoch included."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    example = load("hugging_face")
    from transformers import Trainer, TrainingArguments

    dataset = example["build_dataset"]().select(range(27))  # 7 batches of 4, the last of 3; windows of 3, 3 and 1
    torch.manual_seed(0)
    start = example["build_network"]().state_dict()

    def build():
        network = example["build_network"]()
        network.load_state_dict(start)
        return network, torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)

    def ours(compute_loss):
        network, optimizer = build()
        engine = Engine(
            Components(
                network=network,
                dataset=dataset,
                collate_fn=example["collate"],
                compute_loss=compute_loss,
                optimizer=optimizer,
            ),
            RunConfig(epochs=2, batch_size=4, accumulation=3, remainder="flush", shuffle=False, drop_last=False),
            [GradientClipping(max_norm=1.0)],
        )
        assert engine.run().update == 6
        return network

    class InOrder(Trainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=example["collate"])

    network, optimizer = build()
    trainer = InOrder(
        network,
        TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=3,
            num_train_epochs=2,
            max_grad_norm=1.0,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
        ),
        train_dataset=dataset,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)),
    )
    assert trainer.train().global_step == 6

    theirs = network.state_dict()
    moved = max((theirs[name] - start[name]).abs().max() for name in theirs)
    assert moved > 0.1
    torch.testing.assert_close(ours(example["compute_loss"]).state_dict(), theirs, rtol=1e-5, atol=2e-6)

    def unweighted(network, batch):
        return LossOutput(network(**batch).loss)

    other = ours(unweighted).state_dict()
    assert max((theirs[name] - other[name]).abs().max() for name in theirs) > 1e-3


def test_tabular_stops_early_and_predicts_with_the_best(tmp_path):
    """The best epoch is ten before the last; its weights are loaded, and recognise nine rows of ten."""
    out, _ = run_example("tabular", tmp_path)
    epochs = number(r"^(\d+) epochs: EarlyStopping", out)
    assert number(r"^weights from checkpoint-0*(\d+)$", out) == epochs - 10
    assert number(r"accuracy on .*: (\S+)$", out) > 0.9
    assert number(r"at best (\S+)$", out) < number(r"at last (\S+),", out)


class TestSearch:
    """The example that prunes trials, and names the commands that compare the best."""

    @pytest.fixture(scope="class")
    @staticmethod
    def searched(tmp_path_factory):
        folder = tmp_path_factory.mktemp("search")
        return folder, run_example("search", folder, "--trials=8", "--epochs=4")[0]

    def test_bad_trials_are_pruned_and_the_best_is_complete(self, searched):
        _, out = searched
        rows = re.findall(r"loss (\S+) after (\d+) epochs, (\w+)$", out, re.MULTILINE)
        assert len(rows) == 8
        complete = [float(loss) for loss, _, ended in rows if ended == "complete"]
        assert complete == sorted(complete)
        assert {int(epochs) for _, epochs, ended in rows if ended == "complete"} == {4}
        assert {int(epochs) for _, epochs, ended in rows if ended == "pruned"} <= {2, 3, 4}

    def test_each_trial_has_a_journal_that_ends_in_order(self, searched):
        folder, out = searched
        for number, epochs in re.findall(r"^trial +(\d+): .* after (\d+) epochs", out, re.MULTILINE):
            log = TransitionLog.load(folder / "runs" / "search" / f"trial-{number}.journal")
            assert (log[-1].dest, log[-1].epoch) == ("finished", int(epochs))

    def test_the_commands_that_it_names_compare_them(self, searched, monkeypatch, capsys):
        folder, out = searched
        diff, report = re.findall(r"^    heptad (.*)$", out, re.MULTILINE)
        monkeypatch.chdir(folder)
        assert heptad_command(diff.split()) == 0
        assert "valid/loss" in capsys.readouterr().out
        assert heptad_command(report.split()) == 0
        assert (folder / "runs" / "search" / "report.html").stat().st_size > 10_000


def test_gan_has_a_state_of_its_own(tmp_path):
    """The detour stands in the diagram, is entered after each update, and moves the generator."""
    out, _ = run_example("gan", tmp_path, "--updates=300")
    assert "optimizer_update --> generator_update: generator_update_due" in out
    assert "generator_update --> before_step: batches_remain" in out
    assert number(r"^ +generator_update +entered (\S+) times", out) == 300
    assert number(r"^([\d.]+)% of the generator", out) > 5


def test_fine_tuning_freezes_a_part_and_trains_it_later(tmp_path):
    """What was learnt of other digits is worth ten points; what is frozen stands still; both blocks join."""
    out, _ = run_example("fine_tuning", tmp_path)
    found = {
        way: number(rf"^{way} +accuracy (\S+),", out) for way in ("from nothing", "the head alone", "part after part")
    }
    assert found["the head alone"] > found["from nothing"] + 0.05
    assert found["part after part"] > found["from nothing"] + 0.05
    assert re.search(r"^the head alone .*, the backbone stood still$", out, re.MULTILINE)
    assert re.findall(r"^epoch (\d+): .* join AdamW as group (\d)$", out, re.MULTILINE) == [("4", "1"), ("8", "2")]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_stands_in_the_readme_and_in_the_makefile(name):
    """With a line on what it shows; `make examples` runs it."""
    root = EXAMPLES.parent
    assert f"](examples/{name}.py)" in (root / "README.md").read_text(encoding="utf-8")
    assert f"examples/{name}.py" in (root / "Makefile").read_text(encoding="utf-8")
