"""Evasions: what a thief puts around the API of a model, never known to a method.

An evasion changes the queries before the model sees them, or the full answers before they go out; it is put around
independent models as well. Parameters have no default here: each stands, with its source, in conf/evasion.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.cost import Other, Pass, Sizes, Work, forward_flop
from fingerbench.errors import UserError, is_whole, one_line, require
from fingerbench.seeds import seeded
from fingerbench.transforms import Transform

Bytes = NDArray[np.uint8]
TRIALS = 10  # of a transform, each with a seed of its own: one that works in half of all cases shows that it is random


@dataclass(frozen=True, kw_only=True)
class Evasion:
    """An API that changes nothing; every evasion is a frozen dataclass that overrides what it changes.

    draws: how often a query is changed, for answers and accuracies to be averaged over; 1 says that nothing is random,
    and is refused of what is, unless it has to be prepared.
    """

    draws: int = 1

    def __post_init__(self) -> None:
        require(is_whole(self.draws) and self.draws >= 1, "evasion.draws", "a whole number from 1", self.draws)

    @property
    def changes_queries(self) -> bool:
        """Whether it works on queries, which must be images of 3 channels."""
        return type(self).queries is not Evasion.queries

    @property
    def changes_answers(self) -> bool:
        """Whether it works on the probabilities of classes."""
        return type(self).answers is not Evasion.answers

    def prepare(self, images: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the weights that `queries` will need, and facts on how they came out.

        Args: images: the thief's, float (n, c, h, w) in [0, 1]; generator: on the CPU. Global generators are seeded.
        """
        return {}, {}

    def work(self, sizes: Sizes) -> Work:
        """Return the work of `prepare`: none."""
        return Work()

    def queries(self, x: Tensor, weights: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return what the model sees of queries x float (n, c, h, w) in [0, 1]: float (n, c, h', w') in [0, 1]."""
        return x

    def answers(self, probabilities: Tensor) -> Tensor:
        """Return what goes out instead of probabilities (n, classes). A label stays the model's own top answer."""
        return probabilities


@dataclass(frozen=True, kw_only=True)
class Transformed(Evasion):
    """Every query undergoes an image transform, one of `fingerbench.transforms` or of those below."""

    transform: Transform

    def queries(self, x: Tensor, weights: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return x transformed, each query on its own and with draws of its own, since an API gets it alone."""
        return torch.cat([self.transform(query, generator) for query in x.split(1)])


def try_out(evasion: Evasion, name: str, shape: tuple[int, int, int], outputs: int) -> None:
    """Try an evasion on images of `shape` (c, h, w), unless it must be prepared, or on answers of `outputs` classes.

    So what is none, or random without more draws than one, is refused before any suspect is asked.

    Raises:
        UserError: it fails, returns something other than images in [0, 1] or as many finite answers, or other ones each
            time with one draw.
    """
    what = f"evasion={name}, {type(evasion.transform if isinstance(evasion, Transformed) else evasion).__name__}"
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, *shape, generator=generator)
    probabilities = torch.rand(2, outputs, generator=generator).softmax(1)
    tried = []
    if evasion.changes_queries and type(evasion).prepare is Evasion.prepare:
        call = "transform(x, generator)" if isinstance(evasion, Transformed) else "queries(x, weights, generator)"
        expected = f"{call} of float32 images (n, c, h, w) in [0, 1] to return as many such"
        tried.append(_tried(lambda generator: evasion.queries(x.clone(), {}, generator), what, expected))
        _require_images(tried[-1], x, what, expected)
    if evasion.changes_answers:
        expected = "answers(probabilities), float32 (n, classes), to return as many finite ones"
        tried.append(_tried(lambda _: evasion.answers(probabilities.clone()), what, expected))
        _require_answers(tried[-1], probabilities, what, expected)
    fixed = all(torch.equal(seen[0], other) for seen in tried for other in seen)
    require(fixed or evasion.draws > 1, f"{what}: evasion.draws", "3 or so of what is random", evasion.draws)


def _tried(act: Callable[[torch.Generator], Any], what: str, expected: str) -> list[Any]:
    """Return what comes of `act` with each of TRIALS seeds."""
    seen = []
    for seed in range(TRIALS):
        with seeded(seed, cuda=False) as generator:
            try:
                seen.append(act(generator))
            except Exception as error:  # a stranger's code
                got = f"{type(error).__name__}: {one_line(error)}"
                raise UserError(f"{what}: expected {expected}; got {got}") from error
    return seen


def _require_images(every: Sequence[Any], x: Tensor, what: str, expected: str) -> None:
    for seen in every:
        alike = isinstance(seen, Tensor) and (seen.dtype, seen.ndim, seen.shape[:2]) == (x.dtype, 4, x.shape[:2])
        require(alike and seen.numel() > 0, what, expected, _told(seen))
        require(seen.shape == every[0].shape, what, "images of one size", f"{_told(every[0])} and {_told(seen)}")
        require(bool(((seen >= 0) & (seen <= 1)).all()), what, expected, f"{float(seen.min())} to {float(seen.max())}")


def _require_answers(every: Sequence[Any], probabilities: Tensor, what: str, expected: str) -> None:
    for seen in every:
        alike = isinstance(seen, Tensor) and (seen.dtype, seen.shape) == (probabilities.dtype, probabilities.shape)
        require(alike, what, expected, _told(seen))
        require(bool(seen.isfinite().all()), what, expected, "some that are not")


def _told(seen: Any) -> str:
    return f"{seen.dtype} {tuple(seen.shape)}" if isinstance(seen, Tensor) else type(seen).__name__


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Evasion):
    """Every query is replaced by what an autoencoder, trained on the thief's images, makes of it.

    channels: of the encoder's stride-2 convolutions, 3 x 3, ReLU between them; the decoder mirrors them and ends in a
    sigmoid. epochs, batch, lr: of Adam on the mean squared error.
    """

    channels: tuple[int, ...]
    epochs: int
    batch: int
    lr: float

    def prepare(self, images: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the trained weights, and the mean squared error that is left on `images`."""
        model = _autoencoder((images.shape[1], *self.channels)).to(images.device)
        optimizer = torch.optim.Adam(model.parameters(), self.lr)
        for _ in range(self.epochs):
            order = torch.randperm(len(images), generator=generator).to(images.device)
            for rows in order.split(self.batch):
                optimizer.zero_grad()
                F.mse_loss(_reconstructed(model, images[rows]), images[rows]).backward()
                optimizer.step()
        weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        return weights, {"mse": F.mse_loss(self.queries(images, weights, generator), images).item()}

    def work(self, sizes: Sizes) -> Work:
        """Return the training."""
        with torch.device("meta"):
            model = _autoencoder((sizes.shape[0], *self.channels))
        network = Other("autoencoder", forward_flop(model, sizes.shape))
        return Work({Pass("train", network, self.batch): self.epochs * sizes.finetune})

    @torch.no_grad()
    def queries(self, x: Tensor, weights: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return x reconstructed; nothing is drawn."""
        with torch.device("meta"):
            model = _autoencoder((x.shape[1], *self.channels))
        model.load_state_dict(dict(weights), assign=True)
        return _reconstructed(model, x)


def _autoencoder(channels: Sequence[int]) -> nn.Module:
    pairs = list(pairwise(channels))
    down = [layer for a, b in pairs for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU())]
    up: list[nn.Module] = []
    for a, b in reversed(pairs):
        up += [nn.ConvTranspose2d(b, a, 3, stride=2, padding=1, output_padding=1), nn.ReLU()]
    return nn.Sequential(*down, *up[:-1], nn.Sigmoid())


def _reconstructed(model: nn.Module, x: Tensor) -> Tensor:
    """Return the reconstruction, without the rows and columns by which it is larger where halving leaves a rest."""
    h, w = x.shape[-2:]
    return model(x)[..., :h, :w]


@dataclass(frozen=True, kw_only=True)
class RoundProbabilities(Evasion):
    """Probabilities go out with few decimals."""

    decimals: int

    def answers(self, probabilities: Tensor) -> Tensor:
        """Return the probabilities rounded; they need not sum to 1."""
        return probabilities.round(decimals=self.decimals)


@dataclass(frozen=True, kw_only=True)
class Top1(Evasion):
    """The most probable class goes out with probability 1, all others with 0."""

    def answers(self, probabilities: Tensor) -> Tensor:
        """Return one-hot answers."""
        return F.one_hot(probabilities.argmax(1), probabilities.shape[1]).to(probabilities)


@dataclass(frozen=True, kw_only=True)
class Temperature(Evasion):
    """Probabilities go out as p^(1/T), normalised: T > 1 makes them more equal."""

    version: ClassVar[int] = 2  # 1 normalised nothing where T is near 0
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.temperature < math.inf, "evasion.temperature", "a number above 0", self.temperature)

    def answers(self, probabilities: Tensor) -> Tensor:
        """Return the probabilities at this temperature."""
        return (probabilities.log() / self.temperature).softmax(1)


@dataclass(frozen=True)
class Jpeg:
    """Compress 8-bit copies of the images as JPEG does, chroma at half the resolution, by Pillow."""

    quality: int

    def __post_init__(self) -> None:
        require(1 <= self.quality <= 100, "evasion.transform.quality", "a whole number from 1 to 100", self.quality)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x (n, 3, h, w) compressed and decompressed; nothing is drawn."""
        return _each(x, self._compressed)

    def _compressed(self, image: Bytes) -> Bytes:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        file.seek(0)
        return np.asarray(Image.open(file))


@dataclass(frozen=True)
class BitDepth:
    """Leave `bits` bits a value: by rounding to 2^bits equal levels, or by clearing the last bits of 8."""

    bits: int
    by: Literal["rounding", "truncation"]

    def __post_init__(self) -> None:
        require(1 <= self.bits <= 8, "evasion.transform.bits", "a whole number from 1 to 8", self.bits)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x squeezed; nothing is drawn."""
        if self.by == "rounding":
            steps = 2**self.bits - 1
            return (x * steps).round() / steps
        step = 2 ** (8 - self.bits)
        return ((x * 255).round() / step).floor() * step / 255


@dataclass(frozen=True)
class NonLocalMeans:
    """Denoise 8-bit copies of the images in LAB, each channel on its own, by non-local means (Buades et al. 2005).

    strength: OpenCV's h; template, search: sides of the patch compared and of the window searched, odd, pixels.
    """

    strength: float
    template: int
    search: int

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x (n, 3, h, w) denoised; nothing is drawn."""
        return _each(x, self._denoised)

    def _denoised(self, image: Bytes) -> Bytes:
        import cv2  # takes long to import, and is needed here alone

        cv2.setNumThreads(torch.get_num_threads())  # else each worker takes every core
        channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))
        smooth = [cv2.fastNlMeansDenoising(c, None, self.strength, self.template, self.search) for c in channels]
        return np.asarray(cv2.cvtColor(cv2.merge(smooth), cv2.COLOR_LAB2RGB), dtype=np.uint8)


def _each(x: Tensor, change: Callable[[Bytes], Bytes]) -> Tensor:
    """Return x float (n, c, h, w) in [0, 1] with each image changed as (h, w, c) bytes."""
    images = (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    changed = np.stack([change(np.ascontiguousarray(image)) for image in images])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous().to(x) / 255
