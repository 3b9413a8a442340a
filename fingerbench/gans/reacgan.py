"""ReACGAN: rebooting ACGAN (Kang, Shim, Cho, Park, NeurIPS 2021), in StudioGAN's form for CIFAR-10.

The networks and the losses' frame of ContraGAN with another conditional loss, data-to-data cross-entropy (D2D-CE):
an image of length-1 embedding is classified against the images of other classes in its batch, and neither easy
positives nor easy negatives are rewarded any more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fingerbench.gans.contragan import Contragan


@dataclass(frozen=True)
class Reacgan(Contragan):
    """Architecture and training of a ReACGAN. Defaults: StudioGAN's for CIFAR-10 (ReACGAN.yaml)."""

    batch: int = 128
    lr: float = 2.83e-4
    temperature: float = 0.5
    weight: float = 0.5  # of the conditional loss
    margin: float = 0.98  # m_p: similarity to its proxy that is enough; m_n = 1 - m_p to another class is harmless

    def conditional_loss(self, embeddings: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
        """Return the D2D-CE loss of embeddings (n, e) and proxies (n, e) of length 1.

        The paper's equation 6. StudioGAN's code also divides the terms of the negatives, and only those, by the largest
        of each row. Both as remembered: not checked against them.
        """
        attraction = ((embeddings * proxies).sum(1) - self.margin).clamp(max=0) / self.temperature
        repulsion = F.relu(embeddings @ embeddings.T - (1 - self.margin)) / self.temperature
        repulsion = repulsion.masked_fill(labels[:, None] == labels, -torch.inf)  # of images of other classes
        return (torch.logsumexp(torch.cat([attraction[:, None], repulsion], 1), 1) - attraction).mean()
