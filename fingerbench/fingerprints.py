"""Fingerprint files, fingerprint.safetensors of a run: written by it, and read back, from anyone.

A file holds the tensors of a `Fingerprint` and, as one JSON text in its metadata, its note and yields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fingerbench import files
from fingerbench.errors import UserError, is_whole, one_line
from fingerbench.records import Fingerprint
from fingerbench.untrusted import content, parse_json, parse_tensors

SCHEMA = 1
METADATA = "fingerbench"  # one key, since safetensors writes several in no fixed order
PLAIN = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
UNSAID = "the file does not say why there are no queries"


def write_fingerprint(fingerprint: Fingerprint, path: Path) -> None:
    """Write the file `path`; the same fingerprint gives the same bytes."""
    said = {"schema": SCHEMA, "note": fingerprint.note, "yields": dict(fingerprint.yields)}
    metadata = {METADATA: json.dumps(said, allow_nan=False)}
    # Not by `save_file`, which lets nobody else read the file, whatever the umask says.
    files.write(path, safetensors.torch.save(dict(fingerprint.tensors()), metadata))


def read_fingerprint(path: Path | str) -> Fingerprint:
    """Read a fingerprint file, also a stranger's: nothing in it is run, and all of it is checked.

    A file from before there was metadata has neither note nor yields. Whether `state` is what a method needs to judge
    answers, only the method knows.

    Raises:
        UserError: there is no such file, or it holds no fingerprint: queries float32 (n, c, h, w) in [0, 1]; other
            tensors finite; labels, if there, int64 (n,) from 0; the note a text, yields whole numbers from 0.
    """
    path = Path(path)
    try:
        return _fingerprint(*parse_tensors(content(path)))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the fingerprint.safetensors of a run") from error
    except ValueError as error:
        raise UserError(
            f"{path}: not a fingerprint ({one_line(error)}); run the command of its folder again, or ask whoever made "
            "it for another copy"
        ) from error


def _fingerprint(state: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> Fingerprint:
    said: Any = parse_json(metadata[METADATA].encode()) if METADATA in metadata else {"schema": SCHEMA}
    _require(isinstance(said, dict) and said.get("schema") == SCHEMA, f"metadata: expected schema {SCHEMA}", said)
    note, yields = said.get("note", ""), said.get("yields", {})
    _require(isinstance(note, str), "note: expected a text", note)
    _require(
        isinstance(yields, dict) and all(map(_is_count, yields.values())), "yields: expected whole numbers", yields
    )
    _require("queries" in state, "expected a tensor named queries", ", ".join(state) or "none")
    queries = state.pop("queries")
    for name, tensor in state.items():
        _require(tensor.dtype in PLAIN, f"{name}: expected {', '.join(map(str, PLAIN))}", tensor.dtype)
        _require(bool(tensor.isfinite().all()), f"{name}: expected finite numbers", "others")
    labels = state.get("labels")
    if labels is not None:
        sound = labels.dtype == torch.int64 and labels.shape == queries.shape[:1] and not bool((labels < 0).any())
        _require(sound, "labels: expected int64 from 0, one a query", f"{labels.dtype} {tuple(labels.shape)}")
    return Fingerprint(queries, state, yields, note or ("" if len(queries) else UNSAID))


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 0


def _require(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{expected}; got {got!r:.80}")
