"""Random held-out images, the floor under every table.

Control of the peer literature, not a published method. Claim: none; models of the same task agree on most images, so
what a method scores beyond this is its own. Access: top-1 labels. Needs: the source and labelled held-out images.
Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fingerbench import ops
from fingerbench.api import Access
from fingerbench.cost import MethodOutline, Work, passes
from fingerbench.records import Fingerprint, Setting


@dataclass(frozen=True)
class RandomImages:
    """Held-out images drawn at random without replacement, with the labels that the source gives them."""

    access: ClassVar[Access] = "label"
    needs: ClassVar[frozenset[str]] = frozenset()

    def fingerprint(self, setting: Setting) -> Fingerprint:
        """Draw `setting.budget` held-out images, or all of them if there are fewer.

        Yields: tried and accepted, which are the same, as every image drawn is a query.
        """
        order = torch.randperm(len(setting.heldout), generator=setting.generator)
        queries = setting.heldout.pixels(order[: setting.budget])
        yields = {"tried": len(queries), "accepted": len(queries)}
        return setting.labelled(queries, yields, "there are no more held-out images")

    def similarity(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return the matching rate: the share of queries on which the suspect's label is the source's."""
        return ops.matching_rate(fingerprint.state["labels"], responses)

    def work(self, outline: MethodOutline) -> Work:
        """Return the queries."""
        return passes("answer", (outline.source,), outline.budget)
