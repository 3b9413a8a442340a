"""Data sets: where the images come from, how they are split, and proof that they are what they were."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fingerbench.errors import UserError, raised, require
from fingerbench.records import Dataset, Images

__all__ = ["SPLITS", "check", "digest", "load"]

log = logging.getLogger(__name__)

SPLITS = ("a", "b", "finetune", "test", "transfer")
SHARED = 0.01  # of a split's images, the most that may be in another as well, or
FEW = 10  # of them, if that is more: blank ones, say. Defaults: not published


def digest(dataset: Dataset) -> str:
    """Return the sha256, in hex, of the number of outputs and of every split's shape, pixels and labels.

    It tells data sets apart in the keys of the store; the name of the data set and its folder are no part of it.
    """
    total = hashlib.sha256(str(dataset.task.outputs).encode())
    for split, images in _splits(dataset):
        for tensor in (images.x, images.y):
            total.update(f"{split} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.cpu().contiguous().numpy().data)
    return total.hexdigest()


def load(name: str, loader: Any) -> Dataset:
    """Return the data set called `name` that `loader` has, checked.

    Raises:
        UserError: it does not load, or what comes is none.
    """
    try:
        dataset: Any = loader.load()
    except UserError:
        raise
    except Exception as error:  # a stranger's code, and files
        why = f"`load` raises {raised(error)}; mend that, or choose other files with data.*"
        raise UserError(f"data={name}: {why}") from error
    expected, got = "`load` to return a fingerbench.records.Dataset", type(dataset).__name__
    require(isinstance(dataset, Dataset), f"data={name}", expected, got)
    task = dataset.task
    require(hasattr(task, "outputs"), f"data={name}, task", "one of fingerbench.task", type(task).__name__)
    for split in SPLITS:
        images = getattr(dataset, split)
        sound = isinstance(images, Images) or (split == "transfer" and images is None)
        require(sound, f"data={name}, {split}", "fingerbench.records.Images", type(images).__name__)
    check(dataset)
    return dataset


def check(dataset: Dataset) -> None:
    """Refuse a data set that does not keep the promises of `Dataset`.

    Raises:
        UserError: a split that is empty, of another type, size or shape than it should be, has wrong labels, or has
            more images in common with another than SHARED and FEW say; the transfer set and rows of features may.
    """
    for split, images in _splits(dataset):
        _check_tensors(dataset, split, images)
    for split, images in _splits(dataset):
        if images.x.shape[1:] != dataset.a.x.shape[1:]:
            expected = f"images of shape {dataset.shape}, as in a"
            raise _wrong(dataset, split, expected, str(tuple(images.x.shape[1:])))
        if split != "transfer":
            _check_truth(dataset, split, images.y)
    _check_apart(dataset)


def _check_tensors(dataset: Dataset, split: str, images: Images) -> None:
    x, y = images.x, images.y
    stored = x.dtype == torch.uint8 or (x.dtype == torch.float32 and bool(((x >= 0) & (x <= 1)).all()))
    if not stored or x.ndim != 4 or x.numel() == 0:
        expected = "uint8 images (n, c, h, w), or float32 ones in [0, 1], at least one"
        raise _wrong(dataset, split, expected, f"{x.dtype} {tuple(x.shape)}")
    n, outputs = len(x), dataset.task.outputs
    if dataset.task.labelled and (y.dtype != torch.int64 or y.shape != (n,)):
        raise _wrong(dataset, split, f"int64 labels ({n},)", f"{y.dtype} {tuple(y.shape)}")
    if not dataset.task.labelled and (y.dtype != torch.float32 or y.shape != (n, outputs)):
        raise _wrong(dataset, split, f"float32 values ({n}, {outputs})", f"{y.dtype} {tuple(y.shape)}")


def _check_truth(dataset: Dataset, split: str, y: Tensor) -> None:
    values, classes = y.unique(), dataset.task.outputs
    if dataset.task.labelled and values.tolist() != list(range(classes)):
        got = f"{len(values)} labels from {int(y.min())} to {int(y.max())}"
        raise _wrong(dataset, split, f"each label from 0 to {classes - 1}", got)
    if not dataset.task.labelled and not (bool(torch.isfinite(y).all()) and len(values) > 1):
        raise _wrong(dataset, split, "finite values, not all the same", f"{len(values)} from {y.min()} to {y.max()}")


def _check_apart(dataset: Dataset) -> None:
    """Refuse splits with many images in common: whoever is trained on one would know the answers to the other.

    Of few there is a warning.
    """
    if dataset.shape[1:] == (1, 1):
        return  # rows of features, which may be equal by chance
    rows = {
        split: {hash(image.tobytes()) for image in images.x.cpu().numpy()}
        for split, images in _splits(dataset)
        if split != "transfer"
    }
    few = []
    for one, other in combinations(rows, 2):
        common = len(rows[one] & rows[other])
        if common > max(FEW, SHARED * min(len(rows[one]), len(rows[other]))):
            raise _wrong(dataset, f"{one} and {other}", "different images", f"{common} that are in both")
        few += [f"{one} and {other} {common}"] if common else []
    if few:
        log.warning("data set %r: the same images in two splits: %s; leave copies out", dataset.name, ", ".join(few))


def _splits(dataset: Dataset) -> Iterator[tuple[str, Images]]:
    every = ((split, getattr(dataset, split)) for split in SPLITS)
    return ((split, images) for split, images in every if images is not None)


def _wrong(dataset: Dataset, what: str, expected: str, got: str) -> UserError:
    return UserError(f"data set {dataset.name!r}, {what}: expected {expected}; got {got}; mend its loader or its files")
