"""Data sets: where the images come from, how they are split, and proof that they are what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from fingerbench.errors import UserError
from fingerbench.records import Dataset, Images

__all__ = ["SPLITS", "check", "digest"]

SPLITS = ("a", "b", "finetune", "test", "transfer")


def digest(dataset: Dataset) -> str:
    """Return the sha256, in hex, of the number of classes and of every split's shape, pixels and labels.

    It tells data sets apart in the keys of the store; the name of the data set and its folder are no part of it.
    """
    total = hashlib.sha256(str(dataset.classes).encode())
    for split, images in _splits(dataset):
        for tensor in (images.x, images.y):
            total.update(f"{split} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.cpu().contiguous().numpy().data)
    return total.hexdigest()


def check(dataset: Dataset) -> None:
    """Refuse a data set that does not keep the promises of `Dataset`.

    Raises:
        UserError: a split that is empty, of another type, size or shape than it should be, or has wrong labels.
    """
    if dataset.classes < 2:
        raise _wrong(dataset, "classes", "2 or more", str(dataset.classes))
    for split, images in _splits(dataset):
        _check_tensors(dataset, split, images)
    for split, images in _splits(dataset):
        if images.x.shape[1:] != dataset.a.x.shape[1:]:
            expected = f"images of shape {dataset.shape}, as in a"
            raise _wrong(dataset, split, expected, str(tuple(images.x.shape[1:])))
        if split != "transfer" and images.y.unique().tolist() != list(range(dataset.classes)):
            got = f"{len(images.y.unique())} labels from {int(images.y.min())} to {int(images.y.max())}"
            raise _wrong(dataset, split, f"each label from 0 to {dataset.classes - 1}", got)


def _check_tensors(dataset: Dataset, split: str, images: Images) -> None:
    x, y = images.x, images.y
    if x.dtype != torch.uint8 or x.ndim != 4 or x.numel() == 0:
        raise _wrong(dataset, split, "uint8 images (n, c, h, w), at least one", f"{x.dtype} {tuple(x.shape)}")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise _wrong(dataset, split, f"int64 labels ({len(x)},)", f"{y.dtype} {tuple(y.shape)}")


def _splits(dataset: Dataset) -> Iterator[tuple[str, Images]]:
    return ((split, getattr(dataset, split)) for split in SPLITS)


def _wrong(dataset: Dataset, what: str, expected: str, got: str) -> UserError:
    return UserError(f"data set {dataset.name!r}, {what}: expected {expected}; got {got}; mend its loader")
