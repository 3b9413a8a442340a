"""IPGuard: data points a chosen margin beyond the source's classification boundary.

Paper: Cao, Jia, Gong, "IPGuard: Protecting Intellectual Property of Deep Neural Networks via Fingerprinting the
Classification Boundary", AsiaCCS 2021. Claim: a model's boundary is its own; a modified copy keeps it, so it agrees
on points close to it, and an independent model does not. Here in the version that the FingerBench author compares
with: the target is the least likely class, and a point that misses the margin is skipped.
Access: top-1 labels. Needs: the source and the owner's training images, no other model.

Deviations from that version:
- a point is kept as it was when its loss reached 0, be it by the last step; there one more Adam step follows, which
  can move it off again, and what the last of `steps` gives is not looked at;
- start images are plain training images; there they are randomly cropped and flipped first;
- `tries` start images at most, each once; there they are drawn until there are enough points;
- points are optimised side by side, not one after another: the same result, as nothing couples them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench import ops
from fingerbench.api import Access
from fingerbench.cost import MethodOutline, Work, passes
from fingerbench.errors import NoQueriesError
from fingerbench.records import Fingerprint, Setting

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8


@dataclass(frozen=True)
class IPGuard:
    """Points that the source puts in a target class, by a margin over their true class, which comes second.

    margin: logits between the target and the true class, k of the paper; lr: Adam's, in pixel units of [0, 1];
    steps: Adam steps a point may take; tries: start images tried at most, of those that the source classifies
    correctly, as a multiple of the queries asked for.
    """

    access: ClassVar[Access] = "label"
    needs: ClassVar[frozenset[str]] = frozenset()

    margin: float = 10.0
    lr: float = 1e-3
    steps: int = 1000
    tries: float = 10.0

    def fingerprint(self, setting: Setting) -> Fingerprint:
        """Optimise start images in random order until the budget is full, or none may be tried any more.

        Each round starts as many points as are still missing, so the result is that of taking them one by one.
        Yields: tried (start images that the source classifies correctly), accepted. Raises NoQueriesError if no
        point at all reaches the margin.
        """
        order = torch.randperm(len(setting.train), generator=setting.generator)
        limit = round(self.tries * setting.budget)
        queries: list[Tensor] = []
        tried = accepted = 0
        while accepted < setting.budget and tried < limit and len(order):
            missing = min(setting.budget - accepted, limit - tried)
            chosen, order = order[:missing], order[missing:]
            x, true, target = start_points(setting, chosen)
            points = self._accepted(setting.source, x, true, target)
            queries.append(points)
            tried, accepted = tried + len(x), accepted + len(points)
        if accepted == 0:
            raise NoQueriesError(
                f"ipguard: none of {tried} start images reached a margin of {self.margin:g} logits in {self.steps} "
                "steps; lower method.margin or raise method.steps"
            )
        return self._record(setting, torch.cat(queries), tried)

    def similarity(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return the matching rate: the share of queries on which the suspect's label is the source's."""
        return ops.matching_rate(fingerprint.state["labels"], responses)

    def work(self, outline: MethodOutline) -> Work:
        """Return the steps of all start images that may be tried, the most there may be."""
        tried = min(round(self.tries * outline.budget), outline.sizes.half)
        return passes("attack", (outline.source,), self.steps * tried, outline.budget)

    def _accepted(self, source: nn.Module, x: Tensor, true: Tensor, target: Tensor) -> Tensor:
        """Return those points whose loss, computed afresh on the image to be stored, is exactly 0."""
        if len(x) == 0:
            return x
        points = optimise(source, x, true, target, self.margin, self.lr, self.steps)
        return points[boundary_loss(ops.predict(source, points), true, target, self.margin) == 0]

    def _record(self, setting: Setting, queries: Tensor, tried: int) -> Fingerprint:
        why = (
            f"{tried} start images tried, the others did not reach a margin of {self.margin:g} logits in {self.steps} "
            "steps"
        )
        return setting.labelled(queries, {"tried": tried, "accepted": len(queries)}, why)


def start_points(setting: Setting, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels, true classes and least likely classes of those `chosen` training images classified correctly."""
    x = setting.train.pixels(chosen).to(setting.device)
    true = setting.train.y[chosen].to(setting.device)
    logits = ops.predict(setting.source, x)
    correct = logits.argmax(1) == true
    return x[correct], true[correct], logits[correct].argmin(1)


def boundary_loss(logits: Tensor, true: Tensor, target: Tensor, margin: float) -> Tensor:
    """Return relu(Z_i - Z_j + k) + relu(max of the other Z - Z_i) for each image, i true, j target, k margin.

    Args: logits (n, classes); true, target int64 (n,). 0 exactly where j is first by at least k and i second.
    Source: Cao et al. 2021, as in the version of the FingerBench author.
    """
    z_true = logits.gather(1, true[:, None]).squeeze(1)
    z_target = logits.gather(1, target[:, None]).squeeze(1)
    pair = torch.stack([true, target], 1)
    z_other = logits.scatter(1, pair, -torch.inf).amax(1)
    return F.relu(z_true - z_target + margin) + F.relu(z_other - z_true)


@ops.without_trials()  # the batch shrinks all the time
@ops.without_tf32()  # an image stops exactly at its margin
def optimise(
    source: nn.Module, x: Tensor, true: Tensor, target: Tensor, margin: float, lr: float, steps: int
) -> Tensor:
    """Descend the boundary loss from each image of x (n, c, h, w) by Adam, clipped to [0, 1] after every step.

    An image leaves the batch, as it is, when its loss is 0. Adam works element by element and all images start
    together, so each ends as if it were alone. torch.optim.Adam cannot drop rows, hence the four lines of it here.
    """
    x = x.clone()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    active = torch.arange(len(x), device=x.device)
    for step in range(1, steps + 1):
        loss, gradient = _loss_and_gradient(source, x[active], true[active], target[active], margin)
        active, gradient = active[loss > 0], gradient[loss > 0]
        if len(active) == 0:
            break
        m = first[active].lerp(gradient, 1 - ADAM_BETAS[0])
        v = second[active].lerp(gradient.square(), 1 - ADAM_BETAS[1])
        scale = (v / (1 - ADAM_BETAS[1] ** step)).sqrt() + ADAM_EPS
        x[active] = (x[active] - lr / (1 - ADAM_BETAS[0] ** step) * m / scale).clamp(0, 1)
        first[active], second[active] = m, v
    return x


def _loss_and_gradient(
    source: nn.Module, x: Tensor, true: Tensor, target: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Return the boundary loss of each image, and its gradient with respect to that image."""
    x = x.requires_grad_(True)
    with torch.enable_grad():
        loss = boundary_loss(source(x), true, target, margin)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient
