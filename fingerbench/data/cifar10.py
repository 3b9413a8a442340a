"""CIFAR-10 (Krizhevsky 2009) in the splits of FingerBench, with CIFAR-100 for knockoff."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fingerbench.data.folder import read_folder, spaced
from fingerbench.data.splits import split
from fingerbench.errors import UserError, is_whole, require
from fingerbench.records import Dataset, Images
from fingerbench.task import Classification

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

SIDE = 32


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 from disk, three channels of 32x32 pixels.

    root: folder that holds `cifar-10-batches-py`; transfer_root: folder that holds `cifar-100-python`, or images in
    any subfolders, whose labels are ignored; None: `cifar-100-python` or else the images in `cifar100`, both under
    root; transfer: number of those images, at most, at equal distances in their order; None: all; download: fetch what
    root lacks; seed: of the splits.
    """

    root: str
    transfer_root: str | None = None
    transfer: int | None = None
    download: bool = False
    seed: int = 0

    def load(self) -> Dataset:
        """Return 25000 / 25000 images of the training part for a and b, 5000 / 5000 of the test part for finetune
        and test (NaturalFinger's loaders), and the transfer images labelled 0.

        Raises:
            UserError: files that are missing or damaged.
        """
        sound = self.transfer is None or (is_whole(self.transfer) and self.transfer > 0)
        require(sound, "data.transfer", "null or a number of images", self.transfer)
        from fingerbench.vision import torchvision

        kind = torchvision.datasets.CIFAR10
        root = Path(self.root).expanduser()
        train = _archive(kind, root, train=True, download=self.download)
        held = _archive(kind, root, train=False, download=False)
        a, b = split(train, len(train) // 2, self.seed)
        finetune, test = split(held, len(held) // 2, self.seed)
        x = self._transfer()
        transfer = Images(x, torch.zeros(len(x), dtype=torch.long))
        return Dataset("cifar10", Classification(10), a, b, finetune, test, transfer)

    def _transfer(self) -> Tensor:
        from fingerbench.vision import torchvision

        kind = torchvision.datasets.CIFAR100
        root = Path(self.transfer_root or self.root).expanduser()
        folder = root if self.transfer_root else root / "cifar100"
        if (root / kind.base_folder).is_dir() or (self.download and not folder.is_dir()):
            x = _archive(kind, root, train=True, download=self.download).x
            return x[spaced(len(x), self.transfer)]
        if folder.is_dir():
            return read_folder(folder, SIDE, self.transfer)
        raise UserError(
            f"transfer images of cifar10: expected {root / kind.base_folder} or images in {folder}, found neither; "
            "set data.download=true, or data.transfer_root=DIR to any folder of images"
        )


def _archive(kind: type[CIFAR10], root: Path, *, train: bool, download: bool) -> Images:
    try:
        loaded: Any = kind(str(root), train=train, download=download)  # torchvision compares the md5 of each file
    except (RuntimeError, OSError) as error:
        reason = f"; the download failed ({error})" if download else ""
        step = "unpack it there by hand" if download else "set data.download=true"
        option = "data.root" if kind.__name__ == "CIFAR10" else "data.transfer_root"
        raise UserError(
            f"{kind.__name__}: expected its python version, complete, in {root / kind.base_folder}; "
            f"found {_found(kind, root)}{reason}; {step}, or set {option} to the folder that holds {kind.base_folder}"
        ) from error
    x = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
    return Images(x, torch.tensor(loaded.targets))


def _found(kind: type[CIFAR10], root: Path) -> str:
    from torchvision.datasets.utils import check_integrity

    if not root.is_dir():
        return f"no folder {root}"
    folder = root / kind.base_folder
    if not folder.is_dir():
        return "no such folder"
    files = [name for name, _ in kind.train_list + kind.test_list if not (folder / name).is_file()]
    if files:
        return f"no {', '.join(files)}"
    sums = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
    return f"damaged {', '.join(name for name, md5 in sums if not check_integrity(str(folder / name), md5))}"
