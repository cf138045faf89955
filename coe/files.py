"""Our files on disk: strict reading with every mistake reported at once, and atomic writing.

A YAML or JSON file of ours starts with `kind` and `version`. Reading gives a frozen noun of `coe.types` or an
`InvalidInput` that names file, line, key path, rule, value found and remedy. Writing goes to a temporary file beside
the target which then replaces it, so that no reader ever sees half a file. A `.json` file is JSON, any other YAML.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from coe.errors import InvalidInput, Problem, WrongKind
from coe.records import Bench
from coe.table import PredictionTable
from coe.types import (
    Access,
    Audits,
    BearerTokens,
    Cascade,
    Costs,
    Fleet,
    Front,
    Gears,
    LedgerLimits,
    Noun,
    Plan,
    Pool,
    Prices,
    Profiles,
    Scaling,
    Scenario,
    Tracing,
    Workload,
)

N = TypeVar("N", bound=Noun)

KINDS: dict[str, type[Noun]] = {
    "pool": Pool,
    "cascade": Cascade,
    "profiles": Profiles,
    "prices": Prices,
    "fleet": Fleet,
    "workload": Workload,
    "plan": Plan,
    "gears": Gears,
    "scenario": Scenario,
    "scaling": Scaling,
    "front": Front,
    "costs": Costs,
    "bench": Bench,
    "access": Access,
    "audits": Audits,
    "tokens": BearerTokens,
    "ledger_limits": LedgerLimits,
    "tracing": Tracing,
}
"""What the `kind` key of a YAML file may say."""

PREDICTIONS_KIND = "coe-predictions"
_OPTIONAL_ARRAYS = ("probs", "top", "tokens", "content")
_REMEDY_SHOWN = "run `coe init` for an example of every file"


# --- Reading ----------------------------------------------------------------------------------------------------------


def yaml_mapping(path: str | Path) -> dict[str, Any]:
    """A YAML mapping of whatever kind, such as a config of Ray's. Raises `InvalidInput` where it is none."""
    return _load(Path(path))[0]


def read(path: str | Path, noun: type[N]) -> N:
    """Read a file of one kind.

    Raises `InvalidInput` with every mistake found, or `WrongKind` for a readable file of another kind.
    """
    data, lines = _load(Path(path))
    expected = _kind_of(noun)
    found = data.get("kind")
    if found != expected:
        raise WrongKind(_wrong_kind(path, found, expected))
    return _validated(Path(path), data, lines, noun)


def read_any(path: str | Path) -> Noun | PredictionTable:
    """Read a file of whatever kind it says it is; `.npz` files are prediction tables."""
    if Path(path).suffix == ".npz":
        return read_predictions(path)
    data, lines = _load(Path(path))
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise WrongKind(_wrong_kind(path, kind, " or ".join(KINDS)))
    return _validated(Path(path), data, lines, KINDS[kind])


def read_prices(path: str | Path) -> Prices:
    """The offers of a price list, or of a fleet (whose node counts are the quotas)."""
    data, lines = _load(Path(path))
    if data.get("kind") == "fleet":
        return _validated(Path(path), data, lines, Fleet).prices
    if data.get("kind") != "prices":
        raise WrongKind(_wrong_kind(path, data.get("kind"), "prices or fleet"))
    return _validated(Path(path), data, lines, Prices)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], n=1)
        remedy = f"did you mean {path.with_name(near[0])}?" if near else "check the path"
        raise InvalidInput(Problem(str(path), "does not exist", remedy=remedy)) from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise InvalidInput(Problem(str(path), "cannot be read as text", str(error))) from None


def _siblings(path: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from path.parent.iterdir()


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys, reads 1e-3 as a number and leaves dates as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)

Lines = dict[tuple[str | int, ...], int]


def _load(path: Path) -> tuple[dict[str, Any], Lines]:
    """A YAML or JSON mapping and, for YAML, the line number of every key path in it."""
    text = _text(path)
    if path.suffix == ".json":
        return _load_json(path, text), {}
    lines: Lines = {}
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _number(path, node, (), lines)
        data = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        found = str(getattr(error, "problem", None) or error).split("\n")[0]
        raise InvalidInput(Problem(where, "is not valid YAML", found, "is the file complete?")) from None
    except (RecursionError, ValueError) as error:  # an anchor inside itself; a number of thousands of digits
        raise InvalidInput(Problem(str(path), "is no file of ours", str(error), _REMEDY_SHOWN)) from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        found = "an empty file" if data is None else f"a {type(data).__name__}"
        raise InvalidInput(Problem(str(path), "must be a YAML mapping with `kind` and `version`", found, _REMEDY_SHOWN))
    return data, lines


def _load_json(path: Path, text: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object; JSON itself would let the last of two equal keys win, silently."""
        for number, (key, _) in enumerate(pairs):
            if key in [k for k, _ in pairs[:number]]:
                raise InvalidInput(Problem(f"{path}: {key}", "appears twice in one object", remedy="keep one of them"))
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise InvalidInput(Problem(where, "is not valid JSON", error.msg, "is the file complete?")) from None
    except (RecursionError, ValueError) as error:
        raise InvalidInput(Problem(str(path), "is no file of ours", str(error), _REMEDY_SHOWN)) from None
    if not isinstance(data, dict):
        raise InvalidInput(Problem(str(path), "must be a JSON object with `kind` and `version`", type(data).__name__))
    return data


def _number(path: Path, node: yaml.Node, at: tuple[str | int, ...], lines: Lines) -> None:
    """Fill `lines`, and refuse a mapping that has the same key twice."""
    lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                place = f"{path}:{key.start_mark.line + 1}: {dotted((*at, name))}"
                raise InvalidInput(Problem(place, "appears twice", remedy="keep one of them"))
            seen.add(name)
            _number(path, value, (*at, name), lines)
            lines[(*at, name)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _number(path, value, (*at, i), lines)


def _validated(path: Path, data: dict[str, Any], lines: Lines, noun: type[N]) -> N:
    """The noun in `data`; strict, so that a quoted number is an error and not a guess."""
    try:
        text = json.dumps(data)
    except TypeError as error:  # YAML's own kinds of value: !!binary, !!set
        raise InvalidInput(
            Problem(str(path), "holds a value that is none of ours", str(error), _REMEDY_SHOWN)
        ) from None
    try:
        return noun.model_validate_json(text, strict=True)
    except ValidationError as error:
        errors = error.errors()
        # pydantic also calls a list too short when its entries are wrong; the entries' own errors say enough
        inside = {tuple(e["loc"][: len(o["loc"])]) for e in errors for o in errors if len(e["loc"]) > len(o["loc"])}
        told = [e for e in errors if e["type"] != "too_short" or tuple(e["loc"]) not in inside]
        raise InvalidInput([_problem(path, lines, noun, e) for e in told]) from None


def _problem(path: Path, lines: Lines, noun: type[Noun], error: ErrorDetails) -> Problem:
    """One pydantic error in our words: file, line and key path, rule, value found, remedy."""
    at = tuple(error["loc"])
    line = next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), None)
    where = f"{path}:{line}" if line else str(path)
    if at:
        where += f": {dotted(at)}"
    kind, ctx = error["type"], error.get("ctx", {})
    found = _shown(error["input"])
    if kind == "extra_forbidden":
        return Problem(where, "is not a known key", remedy=_near(str(at[-1]), _keys_at(noun, at[:-1])))
    if kind == "missing":
        return Problem(where, "is missing", remedy="add it")
    if kind == "value_error":
        return Problem(where, str(ctx.get("error", error["msg"])))
    rules = {
        "greater_than": f"must be > {ctx.get('gt', 0):g}",
        "greater_than_equal": f"must be >= {ctx.get('ge', 0):g}",
        "less_than": f"must be < {ctx.get('lt', 0):g}",
        "less_than_equal": f"must be <= {ctx.get('le', 0):g}",
        "finite_number": "must be a finite number",
        "literal_error": f"must be {ctx.get('expected')}",
        "too_short": f"needs at least {ctx.get('min_length')} entries",
        "string_pattern_mismatch": f"must match {ctx.get('pattern')}",
    }
    return Problem(where, rules.get(kind, error["msg"][:1].lower() + error["msg"][1:]), found)


def dotted(at: tuple[str | int, ...]) -> str:
    """A key path as people write it: ``tiers[0].quorum``."""
    text = ""
    for part in at:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _keys_at(noun: type[Noun], at: tuple[str | int, ...]) -> list[str]:
    """Known keys of the object at a key path, by walking the JSON schema."""
    schema = noun.model_json_schema()
    defs, here = schema.get("$defs", {}), schema
    for part in at:
        here = here.get("items", {}) if isinstance(part, int) else here.get("properties", {}).get(part, {})
        options = [here, *here.get("anyOf", [])]
        ref = next((o["$ref"] for o in options if "$ref" in o), None)
        here = defs[ref.rsplit("/", 1)[-1]] if ref else here
    return list(here.get("properties", {}))


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


def _kind_of(noun: type[Noun]) -> str:
    return str(noun.model_fields["kind"].default)


def _wrong_kind(path: str | Path, found: object, expected: str) -> Problem:
    shown = "no `kind`" if found is None else f"kind '{found}'"
    return Problem(str(path), f"must be a file of kind {expected}", shown, _REMEDY_SHOWN)


# --- Writing ----------------------------------------------------------------------------------------------------------


def write(path: str | Path, noun: Noun, comment: str = "") -> None:
    """Write a noun, keys in the order of the class; YAML gets an optional comment on top."""
    data = noun.model_dump(mode="json", exclude_none=True)
    if Path(path).suffix == ".json":
        write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
    else:
        write_text(path, "".join(f"# {line}\n" for line in comment.splitlines()) + to_yaml(data))


def to_yaml(data: Any) -> str:
    """YAML as we write it: key order kept, no aliases, short lists on one line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """SafeDumper without anchors, with lists of scalars in one line."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # the base class names it
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        del flow_style  # we choose
        flat = all(not isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def check_place(path: str | Path) -> None:
    """Refuse a path at which no file can be written: its folder is missing, or it is a folder itself."""
    path = Path(path)
    if path.is_dir():
        raise InvalidInput(Problem(str(path), "is a folder", remedy="name a file in it"))
    if not path.parent.is_dir():
        raise InvalidInput(Problem(str(path), f"the folder {path.parent} does not exist", remedy="create it first"))


def write_atomically(path: str | Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Call `fill` with a temporary binary file beside `path`, then put it in place of `path`."""
    path = Path(path)
    check_place(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# --- Arrays -----------------------------------------------------------------------------------------------------------


def write_predictions(path: str | Path, table: PredictionTable) -> None:
    """Write a prediction table as a compressed NPZ without pickles."""
    header = {
        "kind": PREDICTIONS_KIND,
        "version": 1,
        "members": table.members,
        "classes": table.classes,
        "sources": table.sources,
    }
    arrays: dict[str, Any] = {
        "header": np.array(json.dumps(header)),
        "items": table.items,
        "labels": table.labels,
        "splits": table.splits,
        "answers": table.answers,
    }
    for name in _OPTIONAL_ARRAYS:
        if (array := getattr(table, name)) is not None:
            arrays[name] = array
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def read_predictions(path: str | Path) -> PredictionTable:
    """Read a prediction table; `InvalidInput` names what is wrong with it."""
    arrays = read_npz(path)
    header = _predictions_header(path, arrays)
    problems = list(_array_problems(path, arrays))
    if problems:
        raise InvalidInput(problems)
    try:
        return PredictionTable(
            members=tuple(header["members"]),
            classes=tuple(header["classes"]),
            items=arrays["items"].astype(np.str_),
            labels=arrays["labels"].astype(np.int64),
            splits=arrays["splits"].astype(np.str_),
            answers=arrays["answers"].astype(np.int64),
            probs=arrays["probs"].astype(np.float32) if "probs" in arrays else None,
            sources=dict(header.get("sources", {})),
            top=arrays["top"].astype(np.int32) if "top" in arrays else None,
            tokens=arrays["tokens"].astype(np.int32) if "tokens" in arrays else None,
            content=arrays["content"].astype(np.str_) if "content" in arrays else None,
        )
    except InvalidInput as error:
        raise InvalidInput([Problem(f"{path}: {p.where}", p.rule, p.found, p.remedy) for p in error.problems]) from None


def _predictions_header(path: str | Path, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """What the table says about itself: kind, version, members, classes and sources."""
    try:
        header = json.loads(str(arrays["header"]))
    except (KeyError, json.JSONDecodeError):
        header = None
    if not isinstance(header, dict) or header.get("kind") != PREDICTIONS_KIND:
        found = header.get("kind") if isinstance(header, dict) else None
        raise WrongKind(_wrong_kind(path, found, f"{PREDICTIONS_KIND} (.npz)"))
    if header.get("version") != 1:
        raise InvalidInput(Problem(f"{path}: header.version", "must be 1", _shown(header.get("version"))))
    for key in ("members", "classes"):
        names = header.get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidInput(Problem(f"{path}: header.{key}", "must be a list of names", _shown(names)))
    return header


def _array_problems(path: str | Path, arrays: dict[str, np.ndarray[Any, Any]]) -> Iterator[Problem]:
    """Arrays that are missing, or that hold something else than numbers of the kind needed."""
    lacking = [name for name in ("items", "labels", "splits", "answers") if name not in arrays]
    if lacking:
        yield Problem(str(path), f"lacks the arrays {', '.join(lacking)}", remedy="run `coe predict`")
    for name, kinds, rule in (
        ("labels", "iu", "must hold class indices (whole numbers)"),
        ("answers", "iu", "must hold class indices (whole numbers)"),
        ("probs", "f", "must hold probabilities (floating-point numbers)"),
        ("top", "iu", "must hold class indices (whole numbers)"),
        ("tokens", "iu", "must hold token counts (whole numbers)"),
    ):
        if name in arrays and arrays[name].dtype.kind not in kinds:
            yield Problem(f"{path}: {name}", rule, str(arrays[name].dtype))


def read_npz(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of an NPZ file; pickled arrays are refused."""
    path = Path(path)
    if not path.exists():
        _text(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        remedy = "is the file complete? pickled arrays are not read"
        raise InvalidInput(Problem(str(path), "is not a readable NPZ file", str(error), remedy)) from None
