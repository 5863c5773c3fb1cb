"""`RunConfig.from_strings`: texts in, a strict configuration out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heptad import ConfigError, RunConfig
from pages import Session

VALUES: dict[str, st.SearchStrategy[object]] = {
    "max_updates": st.none() | st.integers(0, 10**9),
    "batch_size": st.none() | st.integers(1, 10**6),
    "remainder": st.sampled_from(["extend", "flush", "drop", "carry"]),
    "limit_batches": st.none() | st.integers(1, 10**6),
    "seed": st.none() | st.integers(0, 2**64 - 1),
    "shuffle": st.booleans(),
    "drop_last": st.booleans(),
    "device": st.sampled_from(["auto", "cpu", "cuda:1"]),
    "precision": st.sampled_from(["fp32", "bf16-mixed"]),
    "prefetch": st.integers(0, 9),
    "deterministic": st.booleans(),
    "compile": st.booleans() | st.just({"mode": "max-autotune"}),
    "recompute": st.booleans(),
    "redo": st.sampled_from([(), ("out_of_memory",), ("out_of_memory", "non_finite")]),
    "agree_every": st.integers(1, 99),
    "patience": st.floats(0.001, 1e6),
    "log_capacity": st.integers(1, 10**9),
    "trace_handlers": st.booleans(),
}


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@settings(max_examples=25)
@given(st.fixed_dictionaries(VALUES))
def test_a_configuration_comes_back_from_its_texts(values: dict[str, object]):
    config = RunConfig.model_validate({"epochs": 3, **values})
    texts = {name: as_text(value) for name, value in config.model_dump(mode="json").items()}
    assert set(texts) == set(RunConfig.model_fields)
    assert RunConfig.from_strings(texts) == config
    assert RunConfig.from_strings([f"{name}={text}" for name, text in texts.items()]) == config


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("epochs=1e3", "epochs", 1000),
        ("epochs= 10.0", "epochs", 10),
        ("max_updates=18014398509481985", "max_updates", 2**54 + 1),
        ("seed=None", "seed", None),
        ("seed=", "seed", None),
        ("shuffle=No", "shuffle", False),
        ("trace_handlers=ON", "trace_handlers", True),
        ("patience=60", "patience", 60.0),
        ("redo=out_of_memory, non_finite", "redo", ("out_of_memory", "non_finite")),
        ("redo=none", "redo", ()),
        ("compile=true", "compile", True),
        ("compile.mode=max-autotune", "compile", {"mode": "max-autotune"}),
        ("compile.dynamic=false", "compile", {"dynamic": False}),
    ],
)
def test_a_text_means_what_it_says(setting: str, name: str, value: object):
    found = getattr(RunConfig.from_strings(["epochs=3", setting]), name)
    assert (found, type(found)) == (value, type(value))


def test_of_two_settings_the_last_counts():
    assert RunConfig.from_strings(["epochs=3", "epochs=5"]).epochs == 5


def test_every_mistake_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_strings(["epochs", "epoch=3", "accumulation=1.5", "shuffle=maybe", "patience=nan"])
    lines = str(caught.value).splitlines()
    for part in ("got 'epochs'", "did you mean 'epochs'", "RunConfig.accumulation", "RunConfig.shuffle", ".patience"):
        assert any(part in line for line in lines), (part, lines)


@pytest.mark.parametrize("value", [3.0, True, [3]])
def test_a_value_that_is_no_text_is_checked_strictly(value: object):
    with pytest.raises(ConfigError, match=r"RunConfig\.epochs"):
        RunConfig.from_strings({"epochs": value})


def test_the_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = Session(Path(__file__).parents[1] / "docs" / "configuration.md")
    assert page.run_all() == 7
    assert page.run_all() == 7
