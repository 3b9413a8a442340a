"""Which code outside fingerbench made an artefact: the store knows a class by its name and fields, not by its code."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from fingerbench.store import Spec, Store

PACKAGE = __name__.partition(".")[0]  # whose own versions are raised by hand


def code(spec: Spec) -> dict[str, str]:
    """Return `code_of` everything that decides what an artefact is."""
    return code_of(_held(spec))


def code_of(values: Iterable[Any]) -> dict[str, str]:
    """Return of each class outside fingerbench among `values`, and in them, a digest of its file, by its name.

    Comments, docstrings and layout are no part of it; a class without a file has none.
    """
    theirs = (cls for cls in set(_classes(values)) if cls.__module__.partition(".")[0] != PACKAGE)
    return {f"{cls.__module__}.{cls.__qualname__}": digest for cls in theirs if (digest := _digest(cls))}


def changed(store: Store, specs: Iterable[Spec]) -> dict[str, list[str]]:
    """Return the labels of the stored artefacts of each class whose code is not that they were made by, by its name.

    Artefacts of before records told are taken for unchanged.
    """
    found: dict[str, list[str]] = {}
    for spec in specs:
        now = code(spec)
        with suppress(KeyError):  # another process has set it aside meanwhile
            then = store.facts(spec).get("code", now) if now else now
            for name, digest in now.items():
                if then.get(name, digest) != digest:
                    found.setdefault(name, []).append(spec.label)
    return found


def _held(value: Any) -> list[Any]:
    return [getattr(value, field.name) for field in fields(value)]


def _classes(values: Iterable[Any]) -> Iterator[type]:
    """Yield the classes of the dataclasses among `values` and in them, but for specs, which are artefacts."""
    for value in values:
        if isinstance(value, Mapping):
            yield from _classes(value.values())
        elif isinstance(value, list | tuple):
            yield from _classes(value)
        elif is_dataclass(value) and not isinstance(value, Spec | type):
            yield type(value)
            yield from _classes(_held(value))


@cache  # what a process imported stays what it was, whatever becomes of the file
def _digest(cls: type) -> str:
    try:
        tree = ast.parse(inspect.getsource(inspect.getmodule(cls) or cls))
    except (OSError, TypeError, SyntaxError):  # typed in, or edited since it was imported
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
