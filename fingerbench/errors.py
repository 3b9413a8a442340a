"""Errors that are the user's to mend: one clear line, exit code 2."""

from __future__ import annotations

import difflib
import errno
import math
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

UNWRITABLE = {
    *(errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
SHOWN = 30  # names of a list that an error repeats
LONGEST = 200  # characters of what others say that an error repeats


class UserError(Exception):
    """Bad input or surroundings. The message says what was expected, what was got and what to do next."""

    exit_code = 2


class NoQueriesError(UserError):
    """A method found no query at all: a result, if a sad one. A run notes it, and every suspect scores 0."""


class ContractError(ValueError):
    """What a method handed over is not what the interface says; the message says what was expected, and what came."""


class DamagedError(Exception):
    """A stored artefact does not match its checksums; the message names it and says how."""


class BuildError(Exception):
    """Making an artefact failed for no fault of the user's. The message says which, and why."""


class DivergedError(BuildError):
    """A loss or a weight became infinite or not a number; nothing was stored."""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a `name` that is not among `known`, the nearest names first; at most SHOWN of those."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    more = f", ... ({len(options)} in all)" if len(options) > SHOWN else ""
    return UserError(f"unknown {what} {name!r}; {hint}known: {', '.join(options[:SHOWN])}{more}")


def require(condition: bool, what: str, expected: str, got: object) -> None:
    """Raise the UserError "what: expected ..., got ..." unless `condition` holds."""
    if not condition:
        raise UserError(f"{what}: expected {expected}; got {got!r}")


def is_number(value: object) -> bool:
    """Tell whether a value is a number; true and false are none, though Python counts with them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def number(text: str) -> float:
    """Return the number that a text is, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def require_least(what: object, group: str, **least: float) -> None:
    """Raise a UserError unless each named field of `what`, set under the key `group`, is at least its number."""
    for name, bound in least.items():
        value = getattr(what, name)
        require(is_number(value) and value >= bound, f"{group}.{name}", f"at least {bound}", value)


def require_empty(folder: Path, what: str) -> None:
    """Raise a UserError unless there is nothing in `folder`, which need not be there."""
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(empty, what, "the name of a folder that is empty or not there", str(folder))


def require_schema(what: object, found: object, known: int, remedy: str) -> None:
    """Raise a UserError unless the file or folder `what` has the schema that this version reads."""
    if found != known or isinstance(found, bool):
        newer = isinstance(found, int) and found > known
        origin = "a newer fingerbench wrote it" if newer else "an older fingerbench wrote it, or another program"
        raise UserError(f"{what} has schema {found}, this version reads {known}: {origin}; {remedy}")


def unwritable(error: BaseException, folder: Path) -> bool:
    """Tell whether an error is what a disk says that cannot be written to.

    That there is no such file counts on the way to `folder` and in it alone, as /proc says it of folders to be made:
    elsewhere something was to be read.
    """
    if not isinstance(error, OSError) or error.errno != errno.ENOENT:
        return isinstance(error, OSError) and error.errno in UNWRITABLE
    place, folder = Path(str(error.filename)).absolute(), folder.absolute()
    return place.is_relative_to(folder) or folder.is_relative_to(place)


@contextmanager
def writing(folder: Path, option: str) -> Iterator[None]:
    """Turn what a full, read-only or misplaced disk says into one clear line; `option` chooses another folder."""
    try:
        yield
    except OSError as error:
        if not unwritable(error, folder):
            raise
        raise UserError(
            f"cannot write to {error.filename or folder}: {error.strerror}; nothing finished is lost: make room or "
            f"grant access and run the same command again, or choose another folder with {option}=DIR"
        ) from error


def last_raised(text: str) -> str | None:
    """Return the first line of the last error in a traceback; None where `text` is none. CUDA says much after it."""
    lines = text.strip().splitlines()
    files = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    if not files:
        return None
    return next((line for line in lines[files[-1] :] if not line.startswith(" ")), lines[-1].strip())


def raised(error: BaseException) -> str:
    """Return what the code of a stranger raised, and where, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)} ({Path(last.filename).name}, line {last.lineno})"


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line that is not long."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in text)
    text = f"no {text}" if isinstance(error, KeyError) else text
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
