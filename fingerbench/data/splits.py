"""Splits, stratified as the FingerBench zoo makes them (NaturalFinger, section 4; its loaders)."""

from __future__ import annotations

import numpy as np
import torch

from fingerbench.errors import UserError
from fingerbench.records import Images


def split(images: Images, first: int, seed: int = 0, *, stratified: bool = True) -> tuple[Images, Images]:
    """Return `first` images and all others, disjoint, each with the class frequencies of the whole.

    stratified: False for a regression, which has no classes to keep the frequencies of.

    It is scikit-learn's `train_test_split(train_size=first, stratify=y, random_state=seed)`, so that CIFAR-10
    comes out in the very halves of the paper.

    Raises:
        UserError: one side would have fewer images than there are classes, or a class has but one.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    classes = len(images.y.unique()) if stratified else 1
    most = len(images) - classes
    if not classes <= first <= most:
        raise UserError(f"split of {len(images)} images: expected a size of {classes} to {most}, got {first}")
    if stratified and int(images.y.unique(return_counts=True)[1].min()) < 2:
        raise UserError(f"split of {len(images)} images: expected 2 or more of each class, got one of some class")
    numbers = np.arange(len(images))
    labels = images.y.numpy() if stratified else None
    sides = train_test_split(numbers, train_size=first, stratify=labels, random_state=seed)
    return take(images, sides[0]), take(images, sides[1])


def take(images: Images, numbers: np.ndarray) -> Images:
    """Return the images with these int64 (m,) numbers, in this order."""
    index = torch.from_numpy(numbers)
    return Images(images.x[index], images.y[index])
