"""Model arguments as lm-eval records them: a dict, or the `a=1,b=2` string of older versions; secrets are struck out."""

import json
import re
from collections.abc import Mapping
from typing import Any

_SPLIT = re.compile(r",(?=\s*[A-Za-z_][\w.]*=)")
# Reports are made to be shared, and API models take their keys as arguments.
_SECRET = re.compile(
    r"api[-_]?key|secret|passw|credential|authori[sz]ation|header|^token$|(hf|hub|auth|access|bearer)[-_]?token", re.IGNORECASE
)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"([?&][^=&\s]*(?:key|token|secret|passw|sig)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
_HARMLESS = {"true", "false", "none", ""}


def parse_model_args(value: Any) -> dict[str, str]:
    """Return model (or generation) arguments as name -> text, in the order given, with secrets replaced by `***`.

    Args:
        value: what lm-eval wrote: dict, `a=1,b=2`, JSON text of a dict, or None.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return {"arguments": value}
    if isinstance(value, str):
        pairs = [part.partition("=") for part in _SPLIT.split(value) if part.strip()]
        value = {name.strip(): text for name, _, text in pairs}
    if not isinstance(value, Mapping):
        return {}
    return {str(name): _shown(str(name), text) for name, text in value.items()}


def _shown(name: str, value: Any) -> str:
    value = _struck(name, value)
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _struck(name: str, value: Any) -> Any:
    """Return a value without the secrets in it, however deep they lie."""
    if _SECRET.search(name) and str(value).lower() not in _HARMLESS:
        return "***"
    if isinstance(value, dict):
        return {key: _struck(str(key), item) for key, item in value.items()}
    if isinstance(value, list):
        return [_struck("", item) for item in value]
    return _QUERY.sub(r"\1***", _USERINFO.sub("***@", value)) if isinstance(value, str) else value


def short_name(model: str) -> str:
    """Return the last part of a model's name or path: `org/name` -> `name`, a hub cache's `models--org--name/…` -> `name`."""
    cached = re.search(r"models--(?:[^/\\]+--)?([^/\\]+?)(?:[/\\]|$)", model)
    if cached:
        return cached.group(1)
    parts = [part for part in re.split(r"[/\\]", model) if part not in ("", ".", "..")]
    return parts[-1] if parts else model
