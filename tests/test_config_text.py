"""`RunConfig.from_strings`: texts in, a strict configuration out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from heptad import ConfigError, RunConfig
from pages import Session

EXAMPLES: dict[str, dict[str, object]] = {
    "epochs": {"3": 3, "1e3": 1000, "none": None},
    "max_updates": {"1_000_000_000_000": 10**12, "null": None},
    "batch_size": {"64": 64, "": None},
    "accumulation": {"4": 4, " 4 ": 4, "1_000": 1000, "٣": 3},
    "remainder": {"flush": "flush", " carry ": "carry"},
    "limit_batches": {"18014398509481985": 2**54 + 1, "None": None},
    "seed": {"18446744073709551615": 2**64 - 1, "0": 0, "none": None},
    "shuffle": {"No": False, "true": True},
    "drop_last": {"off": False, "ON": True},
    "num_workers": {"0": 0},
    "persistent_workers": {"false": False},
    "device": {"cuda:1": "cuda:1", "cpu": "cpu"},
    "precision": {"bf16-mixed": "bf16-mixed"},
    "prefetch": {"9": 9},
    "data_on_device": {"yes": True},
    "deterministic": {"TRUE": True},
    "compile": {"true": True, '{"mode": "max-autotune"}': {"mode": "max-autotune"}},
    "recompute": {"true": True},
    "redo": {
        "out_of_memory": ("out_of_memory",),
        "out_of_memory, non_finite": ("out_of_memory", "non_finite"),
        '["non_finite"]': ("non_finite",),
        "none": (),
        "": (),
    },
    "strategy": {"ddp": "ddp"},
    "window": {"8": 8, "none": None},
    "agree_every": {"10.0": 10},
    "patience": {"60": 60.0, "1.5e2": 150.0},
    "log_capacity": {"1e6": 10**6},
    "trace_handlers": {"ON": True},
}
"""Texts of each field, and what they mean."""


@pytest.mark.parametrize("name", list(RunConfig.model_fields))
def test_each_field_can_be_given_as_text(name: str):
    for text, value in EXAMPLES[name].items():
        rest: dict[str, object] = {"max_updates": 9} if name == "epochs" else {"epochs": 3}
        found = getattr(RunConfig.from_strings({**rest, name: text}), name)
        assert (found, type(found)) == (value, type(value)), text


@pytest.mark.parametrize("name", list(RunConfig.model_fields))
def test_each_field_comes_back_from_the_text_of_its_default(name: str):
    default = RunConfig(epochs=3)
    stored = default.model_dump(mode="json")[name]
    text = stored if isinstance(stored, str) else json.dumps(stored)
    assert RunConfig.from_strings({"epochs": 3, name: text}) == default


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        (" seed = 7", "seed", 7),
        ("compile.mode=max-autotune", "compile", {"mode": "max-autotune"}),
        ("compile.dynamic=false", "compile", {"dynamic": False}),
    ],
)
def test_a_setting_is_a_name_and_a_text(setting: str, name: str, value: object):
    found = getattr(RunConfig.from_strings(["epochs=3", setting]), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("settings", [None, 3])
def test_what_holds_no_settings_is_refused(settings: Any):
    with pytest.raises(ConfigError, match=f"settings are written name=value, got {settings}"):
        RunConfig.from_strings(settings)


def test_of_two_settings_the_last_counts():
    assert RunConfig.from_strings(["epochs=3", "epochs=5"]).epochs == 5


@pytest.mark.parametrize(
    "settings", list(itertools.permutations(["compile=true", "compile.mode=lite", "compile.dynamic=true"]))
)
def test_options_of_a_field_go_with_its_yes_in_any_order(settings: tuple[str, ...]):
    assert RunConfig.from_strings(["epochs=3", *settings]).compile == {"mode": "lite", "dynamic": True}


@pytest.mark.parametrize("settings", list(itertools.permutations(["seed=1", "seed.typo=3"])))
def test_an_option_that_is_none_is_refused_beside_a_value_too(settings: tuple[str, ...]):
    with pytest.raises(ConfigError, match=r"no field 'seed\.typo'"):
        RunConfig.from_strings(["epochs=3", *settings])


def test_every_mistake_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_strings(["epochs", "epoch=3", "accumulation=1.5", "shuffle=maybe", "patience=nan"])
    lines = str(caught.value).splitlines()
    for part in ("got 'epochs'", "did you mean 'epochs'", "RunConfig.accumulation", "RunConfig.shuffle", ".patience"):
        assert any(part in line for line in lines), (part, lines)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("acumulation=2", r"did you mean 'accumulation'\?"),
        ("EPOCHS=5", r"did you mean 'epochs'\?"),
        ("accumulation=true", r"RunConfig\.accumulation must be a whole number.*got 'true'"),
        ("accumulation=", r"RunConfig\.accumulation must be a whole number.*got ''"),
        ("accumulation=none", r"RunConfig\.accumulation must be a whole number.*got 'none'"),
        ("accumulation=0", r"RunConfig\.accumulation must be at least 1, got 0"),
        ("accumulation=inf", r"RunConfig\.accumulation must be a whole number.*got 'inf'"),
        ("accumulation=²", r"RunConfig\.accumulation must be a whole number.*got '²'"),
        ("patience=nan", r"RunConfig\.patience.*nan"),
        ("patience=", r"RunConfig\.patience.*got ''"),
        ("shuffle=1", r"RunConfig\.shuffle.*got '1'"),
        ("shuffle=", r"RunConfig\.shuffle.*got ''"),
        ("device=", r"RunConfig\.device"),
        ("redo=out_of_memory,", r"RunConfig\.redo"),
        ("compile=[1]", r"RunConfig\.compile"),
        ("epochs.x=3", r"RunConfig has no field 'epochs.x': epochs has no options; write epochs=…"),
        ("seed.", r"settings are written name=value, got 'seed\.'"),
    ],
)
def test_a_text_that_means_nothing_is_refused(setting: str, said: str):
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_strings(["epochs=3", setting])


@pytest.mark.parametrize("value", [3.0, True, [3]])
def test_a_value_that_is_no_text_is_checked_strictly(value: object):
    with pytest.raises(ConfigError, match=r"RunConfig\.epochs"):
        RunConfig.from_strings({"epochs": value})


def test_the_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = Session(Path(__file__).parents[1] / "docs" / "configuration.md")
    assert page.run_all() == 8
    assert page.run_all() == 8
