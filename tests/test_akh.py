"""AKH picks the source's mistakes, and keeps only mixtures that are surely wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fingerbench.errors import UserError
from fingerbench.records import Images, Setting
from fingerbench.task import Classification
from methods.akh import AKH, cutmix, mistakes, surely_wrong


class Brightness(nn.Module):
    """A source that tells four classes by the mean of the first channel."""

    def forward(self, x):
        return F.one_hot((x[:, 0].mean((1, 2)) * 4).long().clamp(max=3), 4).float()


def images(n):
    x = torch.randint(256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = (x.float() * torch.linspace(0.2, 1, n).view(-1, 1, 1, 1)).to(torch.uint8)
    return Images(x, Brightness()(x.float() / 255).argmax(1))


def setting(heldout, budget):
    generator = torch.Generator().manual_seed(0)
    return Setting(
        Brightness(), heldout, heldout, (), (), None, Classification(4), budget, torch.device("cpu"), generator
    )


def spoilt(n, wrong):
    """`n` images, of which the source gets the `wrong` ones wrong."""
    right = images(n)
    y = right.y.clone()
    y[wrong] = 3
    assert (right.y[wrong] != 3).all()
    return Images(right.x, y)


def rows(x):
    return {tuple(row.flatten().tolist()) for row in x}


def test_mistakes_are_exactly_the_errors():
    heldout = spoilt(20, [3, 7, 11])
    x, y = mistakes(Brightness(), heldout, torch.device("cpu"))
    assert torch.equal(x, heldout.pixels()[[3, 7, 11]])
    assert y.tolist() == [3, 3, 3]


def test_enough_errors_need_no_mixing():
    heldout = spoilt(20, [1, 3, 7, 11])
    fingerprint = AKH().fingerprint(setting(heldout, budget=3))
    assert rows(fingerprint.queries) < rows(heldout.pixels()[[1, 3, 7, 11]])
    assert fingerprint.yields == {"tried": 20, "errors": 4, "mixed": 0}
    assert fingerprint.note == ""


def test_few_errors_are_mixed_and_screened():
    heldout = spoilt(20, [3, 7, 11])
    fingerprint = AKH().fingerprint(setting(heldout, budget=30))
    assert rows(heldout.pixels()[[3, 7, 11]]) == rows(fingerprint.queries[:3])
    assert fingerprint.yields == {"tried": 20, "errors": 3, "mixed": 27}
    assert (fingerprint.state["labels"] != 3).all()  # the true label of every parent


def test_no_mixture_may_have_the_label_of_a_parent():
    children = torch.tensor([0.1, 0.4, 0.6]).view(3, 1, 1, 1).expand(3, 3, 4, 4)  # labels 0, 1, 2
    parents = torch.tensor([[1, 2], [1, 3], [3, 2]])
    assert surely_wrong(Brightness(), children, parents).tolist() == [True, False, False]


def test_one_error_cannot_be_mixed():
    fingerprint = AKH().fingerprint(setting(spoilt(20, [3]), budget=5))
    assert len(fingerprint) == 1
    assert fingerprint.note.startswith("1 of 5 queries: the source makes 1 mistakes on 20 held-out images")


def test_a_perfect_source_is_one_clear_line():
    with pytest.raises(UserError, match="makes no mistake on 20 held-out images"):
        AKH().fingerprint(setting(images(20), budget=5))


def test_cutmix_pastes_one_box_of_uniform_area():
    x, other = torch.zeros(4000, 1, 16, 16), torch.ones(4000, 1, 16, 16)
    mixed = cutmix(x, other, torch.Generator().manual_seed(0))[:, 0]
    pasted = mixed.mean((1, 2))
    assert pasted.min() > 0  # never a plain copy of x
    assert pasted.max() < 1  # nor of the other
    heights, widths = mixed.amax(2).sum(1), mixed.amax(1).sum(1)
    assert torch.equal(heights * widths, mixed.sum((1, 2)))
    central = (mixed[:, 0].amax(1) + mixed[:, -1].amax(1) + mixed[:, :, 0].amax(1) + mixed[:, :, -1].amax(1)) == 0
    assert central.any()  # some boxes lie wholly inside
