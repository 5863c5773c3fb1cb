"""`values_of`: what texts mean for the fields of a configuration, where text is all there is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel

YES, NO, NOTHING = ("true", "yes", "on"), ("false", "no", "off"), ("none", "null", "")


def values_of(
    model: type[BaseModel], settings: Mapping[str, object] | Iterable[str]
) -> tuple[dict[str, object], list[str]]:
    """Return the values that texts stand for, and what is wrong with settings that have no name.

    A text that means nothing for its field stays as it is: the strict check of the model says what was expected.

    Args:
        model: Whose fields they are.
        settings: Values by name, or texts such as `"epochs=10"`; of two for one name the last counts.
    """
    mistakes: list[str] = []
    if isinstance(settings, Mapping):
        pairs = list(cast("Mapping[str, object]", settings).items())
    else:
        texts = list(settings) if isinstance(settings, Iterable) and not isinstance(settings, str) else [settings]  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
        mistakes = [
            f"{model.__name__}: settings are written name=value, got {text!r}"
            for text in texts
            if not _is_setting(text)
        ]
        pairs = [
            (name.strip(), value) for name, _, value in (text.partition("=") for text in texts if _is_setting(text))
        ]
    found: dict[str, object] = {}
    for name, value in pairs:
        field, dot, option = str(name).partition(".")
        known = model.model_fields.get(field)
        kinds = set[object]() if known is None else _plain_types(known.annotation)
        if dot and known is not None and dict not in kinds:
            mistakes.append(f"{model.__name__} has no field {name!r}: {field} has no options; write {field}=…")
            continue
        inner = found.get(field)
        options = cast("dict[str, object]", inner) if isinstance(inner, dict) else {}
        if dot:  # an option in a field, as in compile.mode
            found[field] = {**options, option: _plain(value)}
            continue
        meant = _meaning(value, kinds) if known is not None else value
        found[field] = options if options and meant is True else meant  # compile=true does not take options back
    return found, mistakes


def _is_setting(text: object) -> bool:
    return isinstance(text, str) and bool(text.partition("=")[0].strip()) and "=" in text


def _plain_types(annotation: Any) -> set[object]:
    """Return the plain types that an annotation is made of."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_types(get_args(annotation)[0])
    if origin is Literal:
        return {str}
    if origin in (tuple, list, dict):
        return {origin}
    inner = get_args(annotation)
    return set[object]().union(*map(_plain_types, inner)) if inner else {annotation}


def _meaning(value: object, kinds: set[object]) -> object:
    """Return what a text means for a field of these types; a value that has no meaning there stays as it is."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    if type(None) in kinds and word in NOTHING:
        return None
    if bool in kinds and word in (*YES, *NO):
        return word in YES
    if int in kinds and (number := _whole(word)) is not None:
        return number
    if float in kinds and (real := _real_number(word)) is not None:
        return real
    if tuple in kinds:
        return _words_in(value)
    return _from_json(value, dict) if dict in kinds else value.strip() if str in kinds else value


def _real_number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _whole(word: str) -> int | None:
    """Return a whole number, exactly; of 1e3 and 10.0 as well."""
    try:
        return int(word)
    except ValueError:
        number = _real_number(word)
    return int(number) if number is not None and math.isfinite(number) and number.is_integer() else None


def _words_in(text: str) -> object:
    """Return several words: a JSON list, or with commas between them."""
    if text.strip().lower() in NOTHING:
        return ()
    listed = _from_json(text, list)
    return cast("list[object]", listed) if isinstance(listed, list) else tuple(part.strip() for part in text.split(","))


def _from_json(text: str, kind: type) -> object:
    try:
        found: object = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, kind) else text


def _plain(value: object) -> object:
    """Return what a text means where no type is known: a truth value or a number if it looks like one."""
    return _meaning(value, {bool, int, float, str})
