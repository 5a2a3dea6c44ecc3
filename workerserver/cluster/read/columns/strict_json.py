"""JSON as workers send it: no NaN, no number that is too large, and no error but ValueError."""

from __future__ import annotations

import json
from typing import Any

from workerserver.cluster.failures import short

__all__ = ["json_object", "load_json"]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:  # 1e999
        raise ValueError(f"{text[:40]} is too large a number")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def load_json(body: bytes | str) -> Any:
    """The JSON value in *body*. ValueError if *body* is no JSON, holds NaN, or nests too deeply."""
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
        text = text.strip(" \t\n\r")
        value, end = _DECODER.raw_decode(text)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {short(error)}") from None


def json_object(body: bytes | str) -> dict[str, Any]:
    value = load_json(body)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
