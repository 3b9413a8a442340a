"""AKH: agreement on the source's own mistakes.

Paper: Godinot et al., "Queries, Representation & Detection: The Next 100 Model Fingerprinting Schemes" (QuRD),
AAAI 2025, where it is the baseline. Claim: independent models rarely make the same mistake, a derived model inherits
those of its source. Access: top-1 labels. Needs: the source and labelled held-out images, no other model.

Deviations from QuRD:
- mixed images are screened: the source must give one a label that neither of its parents has. There every mix is
  kept, though a mix has no sure label, so the source may well be right about it;
- the mistakes are taken in random order, and the score is the matching rate rather than the Hamming distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fingerbench import ops
from fingerbench.api import Access
from fingerbench.cost import MethodOutline, Work, passes
from fingerbench.errors import NoQueriesError
from fingerbench.records import Fingerprint, Images, Setting


@dataclass(frozen=True)
class AKH:
    """Held-out images that the source gets wrong, then CutMix mixtures of them and the mixtures' flips.

    rounds: rounds of mixing at most, each of as many mixtures as queries asked for.
    """

    access: ClassVar[Access] = "label"
    needs: ClassVar[frozenset[str]] = frozenset()

    rounds: int = 20

    def fingerprint(self, setting: Setting) -> Fingerprint:
        """Take the source's mistakes until the budget is full, then mixtures of them that pass the screen.

        Yields: tried (held-out images), errors (mistakes among them), mixed (queries that are mixtures; their share
        of all queries tells how far this is from true mistakes). Raises NoQueriesError if the source makes none.
        """
        wrong, truth = mistakes(setting.source, setting.heldout, setting.device)
        if len(wrong) == 0:
            raise NoQueriesError(
                f"akh: the source makes no mistake on {len(setting.heldout)} held-out images, and this method needs "
                "one at least; give it more held-out images or choose another method"
            )
        order = torch.randperm(len(wrong), generator=setting.generator)
        kept = wrong[order[: setting.budget]]
        mixed = self._mixtures(setting, wrong, truth, setting.budget - len(kept))
        return _record(setting, torch.cat([kept, mixed]), errors=len(wrong), mixed=len(mixed))

    def similarity(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return the matching rate: the share of queries on which the suspect's label is the source's."""
        return ops.matching_rate(fingerprint.state["labels"], responses)

    def work(self, outline: MethodOutline) -> Work:
        """Return the held-out images, and all mixtures that there may be, three of each pair."""
        return passes("answer", (outline.source,), outline.sizes.test + 3 * self.rounds * outline.budget)

    def _mixtures(self, setting: Setting, wrong: Tensor, truth: Tensor, count: int) -> Tensor:
        """Return at most `count` screened mixtures of two different mistakes, each as it is or flipped."""
        found = wrong[:0]
        for _ in range(self.rounds if len(wrong) > 1 else 0):
            if len(found) >= count:
                break
            first, second = _pairs(len(wrong), setting.budget, setting.generator)
            child = cutmix(wrong[first], wrong[second], setting.generator)
            children = torch.cat([child, child.flip(3), child.flip(2)])
            parents = torch.stack([truth[first], truth[second]], 1).repeat(3, 1)
            found = torch.cat([found, children[surely_wrong(setting.source, children, parents)]])
        return found[:count]


def mistakes(source: nn.Module, images: Images, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the pixels of the images that `source` labels wrongly, on `device`, and their true labels."""
    x, y = images.pixels().to(device), images.y.to(device)
    wrong = ops.predict(source, x).argmax(1) != y
    return x[wrong], y[wrong]


def surely_wrong(source: nn.Module, children: Tensor, parents: Tensor) -> Tensor:
    """Return bool (n,): the label that `source` gives a child is the true one of neither parent, int64 (n, 2)."""
    return (ops.predict(source, children).argmax(1)[:, None] != parents).all(1)


def cutmix(x: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """Return x (n, c, h, w) with a random box of each image taken from `other`.

    The box has an area of 1 - u of the image, u uniform, and a uniform centre: CutMix (Yun et al., ICCV 2019) with
    alpha 1, as in QuRD. It holds at least one pixel, so that no child is a plain copy of `x`.
    """
    n, _, height, width = x.shape
    side = (1 - torch.rand(n, generator=generator)).sqrt()
    rows = _spans(height, side, generator)
    columns = _spans(width, side, generator)
    box = (rows[:, None, :, None] & columns[:, None, None, :]).to(x.device)
    return torch.where(box, other, x)


def _spans(size: int, side: Tensor, generator: torch.Generator) -> Tensor:
    """Return bool (n, size): the part of an axis that a box of `side` (n,) of it covers about a random centre."""
    length = (side * size).long().clamp(min=1)
    start = torch.randint(size, side.shape, generator=generator) - length // 2
    place = torch.arange(size)
    return (place >= start[:, None]) & (place < (start + length)[:, None])


def _pairs(n: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` random pairs of different numbers below n."""
    first = torch.randint(n, (count,), generator=generator)
    return first, (first + torch.randint(1, n, (count,), generator=generator)) % n


def _record(setting: Setting, queries: Tensor, errors: int, mixed: int) -> Fingerprint:
    yields = {"tried": len(setting.heldout), "errors": errors, "mixed": mixed}
    why = (
        f"the source makes {errors} mistakes on {len(setting.heldout)} held-out images, and only {mixed} mixtures of "
        "them are surely wrong"
    )
    return setting.labelled(queries, yields, why)
