"""The GANs as the tests train them: narrow, and in an instant."""

import pytest
import torch

from fingerbench.gans.contragan import Contragan
from fingerbench.gans.icrgan import Icrgan
from fingerbench.gans.logan import Logan
from fingerbench.gans.reacgan import Reacgan
from fingerbench.gans.sagan import Sagan
from fingerbench.gans.wgan_gp import WganGp
from fingerbench.records import Images

DESIGNS = {
    "wgan_gp": WganGp,
    "sagan": Sagan,
    "logan": Logan,
    "contragan": Contragan,
    "icrgan": Icrgan,
    "reacgan": Reacgan,
}
every_gan = pytest.mark.parametrize("name", DESIGNS)


def small(name, **changes):
    """Return a design that trains in an instant; the average, where there is one, differs from the last weights."""
    ema = {"ema_decay": 0.5, "ema_start": 1} if DESIGNS[name]().ema_decay else {}
    return DESIGNS[name](**{"width": 1 / 32, "steps": 4, "batch": 8, "discriminator_steps": 2} | ema | changes)


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def digits(n=24, size=16):
    g = torch.Generator().manual_seed(0)
    return Images(torch.randint(256, (n, 3, size, size), generator=g, dtype=torch.uint8), torch.arange(n) % 10)


def answers(gan):
    g = torch.Generator().manual_seed(1)
    z, labels = gan.latents(5, g), torch.arange(5)
    with torch.no_grad():
        images = gan.generator(z, labels)
        return images, gan.discriminator(images, labels)


def parameters(net):
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
