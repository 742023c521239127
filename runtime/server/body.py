"""A request body, from bytes to a typed struct: strict JSON, every failure a 400 that names the field."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any, TypeVar

import msgspec

from mlc.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)

_PLACE = re.compile(r" - at `\$?(?P<path>.*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<field>.*)`", re.DOTALL)


def decode_body(body: bytes, kind: type[T]) -> T:
    """`body` as a `kind`. Raises `InvalidRequest`, with `param` set to the path of the field at fault.

    Refuses what JSON parsers disagree on: NaN, numbers out of range, lone surrogates, bytes that are not UTF-8, a key
    that appears twice in one object, nesting without end.
    """
    if not body.strip():
        raise InvalidRequest("the body is empty; expected a JSON object")
    try:
        value = msgspec.json.decode(body, type=kind)
        json.loads(body, object_pairs_hook=_unique)
    except msgspec.ValidationError as error:
        raise _explain(str(error), kind) from None
    except (msgspec.DecodeError, json.JSONDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise InvalidRequest("the body nests too many arrays or objects") from None
    except ValueError as error:  # an integer with thousands of digits in a field that nobody reads
        raise InvalidRequest(f"the body holds a number out of range: {error}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set[str]()
    for key, _ in pairs:
        if key in seen:
            raise InvalidRequest(f"the key {key[:80]!r} appears twice in one object", param=key[:80])
        seen.add(key)


def _explain(message: str, kind: type[msgspec.Struct]) -> InvalidRequest:
    """msgspec's message, with the path taken out of its tail and a guess at a misspelt field."""
    place = _PLACE.search(message)
    path = place["path"].lstrip(".") if place else ""
    text = (message[: place.start()] if place else message).replace("`", "")
    unknown = _UNKNOWN.search(message[: place.start()] if place else message)
    if unknown is None:
        return InvalidRequest(f"{path or 'the body'}: {text[:1].lower()}{text[1:]}", param=path or None)
    field = unknown["field"][:80]
    param = f"{path}.{field}" if path else field
    near = difflib.get_close_matches(field, kind.__struct_encode_fields__, n=1) if not path else []
    hint = f"; did you mean {near[0]!r}?" if near else "; remove it"
    return InvalidRequest(f"{param} is not a field that this server knows{hint}", param=param)
