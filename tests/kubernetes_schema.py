"""How `coe/fleet/pod-template.schema.yaml` is made: Kubernetes' PodTemplateSpec and what it names, from `kubernetes-validate`.

That package carries the schemas of every release of Kubernetes and is large; so what we need of one is recorded, and a test makes
it anew where the package is installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RELEASE = "1.34.0"
_ROOT = "io.k8s.api.core.v1.PodTemplateSpec"
_MORE = (
    "io.k8s.api.core.v1.EnvFromSource",
    "io.k8s.api.core.v1.SecurityContext",
    "io.k8s.api.core.v1.VolumeMount",
)
_QUANTITY = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)
_OWN = {
    "Quantity": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": _QUANTITY}]},
    "IntOrString": {"type": ["integer", "string"]},
}

_HEAD = f"""\
# Kubernetes' core/v1 PodTemplateSpec and the types that it refers to, as JSON Schema, one type a line.
#
# From Kubernetes {RELEASE} (Apache-2.0), by way of PyPI's kubernetes-validate, v{RELEASE}-local-strict: fields, types and
# required fields are theirs, unknown fields are refused. Left out: descriptions, null (we write no field without a value),
# formats, what is said of merging. Quantities have the pattern of custom resources. Made by tests/kubernetes_schema.py.
$schema: https://json-schema.org/draft/2020-12/schema
$id: coe:pod-template
$ref: "#/$defs/PodTemplateSpec"
$defs:
"""


def recorded(folder: Path) -> str:
    """The file's text, from `kubernetes_validate/kubernetes-json-schema`."""
    text = (folder / f"v{RELEASE}-local-strict" / "_definitions.json").read_text(encoding="utf-8")
    types = json.loads(text)["$defs"]
    found: dict[str, Any] = {}
    waiting = [_ROOT, *_MORE]
    while waiting:
        name = waiting.pop()
        short = _short(name)
        if short not in found:
            found[short] = _OWN.get(short) or _plain(types[name])
            if short not in _OWN:
                waiting += [r.rpartition("/")[2] for r in _references(types[name])]
    return _HEAD + "".join(f"  {name}: {json.dumps(found[name])}\n" for name in sorted(found))


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """One type without what is not checked, its references shortened. Names of fields are kept whatever they are."""
    plain: dict[str, Any] = {}
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{_short(schema['$ref'])}"}
    for key, value in schema.items():
        if key == "type":
            plain[key] = _without_null(value)
        elif key == "properties":
            plain[key] = {name: _plain(inner) for name, inner in value.items()}
        elif key in ("items", "additionalProperties"):
            plain[key] = _plain(value) if isinstance(value, dict) else value
        elif key in ("required", "enum"):
            plain[key] = [v for v in value if v is not None]
        elif key not in ("description", "format", "default") and not key.startswith("x-kubernetes-"):
            raise ValueError(f"unforeseen key of a schema: {key}")
    return plain


def _without_null(kind: str | list[str]) -> str:
    kinds = [kind] if isinstance(kind, str) else [k for k in kind if k != "null"]
    (only,) = kinds
    return only
