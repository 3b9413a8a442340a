"""Errors that are the user's to mend: one clear line, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or surroundings. The message says what was expected, what was got and what to do next."""

    exit_code = 2


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a `name` that is not among `known`, with the nearest names first."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return UserError(f"unknown {what} {name!r}; {hint}known: {', '.join(options)}")
