"""The Frechet distance of a GAN, against the formula, and what an evaluation keeps of it."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from fingerbench.evaluate.fid import Penultimate, fid
from fingerbench.gans.train import Hinge
from fingerbench.nets import final_layer, network
from fingerbench.records import Gan, Images


class Blocks(nn.Module):
    """A generator of grey images whose brightness follows the class, with the latent on top."""

    def forward(self, z, labels):
        grey = (labels / 5 - 1)[:, None, None, None].expand(-1, 3, 4, 4)
        return (grey + 0.2 * z.view(-1, 3, 4, 4)).clamp(-1, 1)


def test_it_is_the_distance_of_two_gaussians_in_feature_space():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 10)).eval().requires_grad_(False)
    real = Images(torch.randint(256, (700, 3, 4, 4), dtype=torch.uint8), torch.arange(700) % 10)
    gan = Gan(Blocks(), nn.Identity(), 48, Hinge())
    distance = fid(Penultimate(model), gan, real, torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(1)
    z = torch.cat([torch.randn(500, 48, generator=g), torch.randn(200, 48, generator=g)])
    fake = (gan.generator(z, real.y) + 1) / 2
    a, b = (model[:3](x).double().numpy() for x in (real.pixels(), fake))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert distance == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet"])
def test_the_features_are_what_the_last_layer_takes(name):
    model = network(name, 10, 0.125).eval()
    features, x = Penultimate(model), torch.rand(3, 3, 16, 16)
    taken = features(x)
    assert taken.shape == (3, features.num_features)
    if name == "resnet18":
        torch.testing.assert_close(final_layer(model)(taken), model(x))


def test_features_of_several_rows_an_image_are_averaged():
    x = torch.rand(3, 3, 4, 4)
    tokens, squares, pixels = nn.Sequential(nn.Flatten(2), nn.Linear(16, 10)), nn.Linear(4, 10), nn.Conv2d(3, 10, 1)
    for model, averaged in ((tokens, x.flatten(2).mean(1)), (squares, x.mean((1, 2))), (pixels, x.mean((2, 3)))):
        torch.testing.assert_close(Penultimate(model)(x), averaged)
