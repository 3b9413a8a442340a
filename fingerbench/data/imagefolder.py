"""A user's own images, a folder a class, in splits like FingerBench's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fingerbench.data.folder import image_paths, read_folder, read_images
from fingerbench.data.splits import split
from fingerbench.errors import UserError, require
from fingerbench.records import Dataset, Images
from fingerbench.task import Classification

LEAST = 2  # images of a class that is halved
PARTS = {"test", "train", "val", "valid", "validation"}  # names of splits, not of classes, where there are no others

Classes = Mapping[str, Sequence[Path]]  # the images of each class, by the name of its folder, sorted


@dataclass(frozen=True)
class ImageFolder:
    """Images in root/CLASS/, any depth, as torchvision's ImageFolder reads them: three channels of size x size pixels.

    root: that folder, or one that holds `train` and `test`, each with the same classes; size: pixels, 16 to 512;
    transfer_root: folder of other images for knockoff, in any subfolders, without labels; None: there are none;
    held: share of the images of root that is finetune and test, where root has no `test` (default: that of CIFAR-10);
    seed: of the splits. Class i is the i-th folder in the order of their names.
    """

    root: str | None = None
    size: int = 32
    transfer_root: str | None = None
    held: float = 1 / 6
    seed: int = 0

    def load(self) -> Dataset:
        """Return the halves of the training images as a and b, of the held ones as finetune and test; all transfer
        images are labelled 0.

        Raises:
            UserError: no such folder, fewer than two classes, a class with too few images, an image that is damaged.
        """
        require(16 <= self.size <= 512, "data.size", "a number of pixels from 16 to 512", self.size)
        require(0 < self.held < 1, "data.held", "a share between 0 and 1", self.held)
        require(bool(self.root), "data.root", "a folder with a subfolder of images for each class", self.root)
        root = Path(str(self.root)).expanduser()
        if (root / "train").is_dir() and (root / "test").is_dir():
            train, held = self._parts(root / "train", root / "test")
        else:
            classes = _classes(root)
            _refuse_small(root, classes, math.ceil(LEAST / min(self.held, 1 - self.held)))
            images = self._read(classes)
            held, train = split(images, round(len(images) * self.held), self.seed)
        a, b = split(train, len(train) // 2, self.seed)
        finetune, test = split(held, len(held) // 2, self.seed)
        names = len(train.y.unique())
        return Dataset("imagefolder", Classification(names), a, b, finetune, test, self._transfer())

    def _parts(self, train: Path, test: Path) -> tuple[Images, Images]:
        parts = {folder: _classes(folder) for folder in (train, test)}
        odd = sorted(set(parts[train]) ^ set(parts[test]))
        require(not odd, f"{train.parent}", "the same classes in train and test", f"{', '.join(odd)} in one of them")
        for folder, classes in parts.items():
            _refuse_small(folder, classes, LEAST)
        return self._read(parts[train]), self._read(parts[test])

    def _read(self, classes: Classes) -> Images:
        labels = [number for number, paths in enumerate(classes.values()) for _ in paths]
        paths = [path for paths in classes.values() for path in paths]
        return Images(read_images(paths, self.size), torch.tensor(labels))

    def _transfer(self) -> Images | None:
        if self.transfer_root is None:
            return None
        x = read_folder(Path(self.transfer_root).expanduser(), self.size)
        return Images(x, torch.zeros(len(x), dtype=torch.long))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the classes in a folder; raise a UserError where there are not two or more."""
    if not folder.is_dir():
        raise UserError(f"data.root: expected a folder, found no {folder}; set data.root=DIR to your images")
    names = sorted(part.name for part in folder.iterdir() if part.is_dir() and not part.name.startswith("."))
    if len(names) < 2:
        found = f"the only folder {names[0]!r}" if names else "no folder"
        raise UserError(f"{folder}: expected a folder of images for each of 2 or more classes; found {found} in it")
    if set(names) <= PARTS:
        raise UserError(f"{folder}: expected train and test, or a folder for each class; found {', '.join(names)}")
    return {name: image_paths(folder / name) for name in names}


def _refuse_small(folder: Path, classes: Classes, least: int) -> None:
    name = min(classes, key=lambda name: len(classes[name]))
    if len(classes[name]) < least:
        raise UserError(
            f"{folder / name}: expected {least} or more images, so that each split has some of this class; found "
            f"{len(classes[name])}; add images or remove the folder"
        )
