"""The transform bank, against examples computed by hand."""

from __future__ import annotations

import pytest
import torch

from fingerbench.transforms import (
    GaussianNoise,
    HorizontalFlip,
    Identity,
    Shear,
    Translate,
    shear,
    translate,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def image(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]


GRID = image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])


def test_identity_and_flip():
    assert torch.equal(Identity()(GRID, generator()), GRID)
    assert torch.equal(HorizontalFlip()(GRID, generator()), image([[3, 2, 1], [6, 5, 4], [9, 8, 7]]))


@pytest.mark.parametrize(
    ("right", "down", "expected"),
    [
        (1, 0, [[0, 1, 2], [0, 4, 5], [0, 7, 8]]),
        (0, 1, [[0, 0, 0], [1, 2, 3], [4, 5, 6]]),
        (-1, -1, [[5, 6, 0], [8, 9, 0], [0, 0, 0]]),
        (0, 0, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    ],
)
def test_translate_fills_with_zeros(right, down, expected):
    assert torch.equal(translate(GRID, right, down), image(expected))


def test_translate_draws_once_for_the_batch_and_rarely_more_than_half_the_time():
    x = torch.rand(2, 1, 8, 8)
    x[1] = x[0]
    g = generator()
    seen = [Translate(4)(x, g) for _ in range(400)]
    assert all(torch.equal(y[0], y[1]) for y in seen)
    moved = sum(not torch.equal(y, x) for y in seen)
    assert 140 < moved < 240  # half, less the 1 in 25 draws of no shift
    assert all(torch.equal(y, x) for y in (Translate(4, p=0)(x, g) for _ in range(20)))


def test_shear_across_moves_lower_rows_further_right():
    # Row v moves by v / 2: row 1 by half a pixel (means of neighbours), row 2 by one.
    expected = image([[1, 2, 3], [2, 4.5, 5.5], [0, 7, 8]])
    torch.testing.assert_close(shear(GRID, 0.5, 0.0), expected)


def test_shear_along_moves_right_columns_further_down():
    expected = image([[1, 0, 0], [4, 2, 0], [7, 5, 3]])
    torch.testing.assert_close(shear(GRID, 0.0, 1.0), expected)


def test_shear_of_an_oblong_image():
    x = image([[1, 2, 3, 4], [5, 6, 7, 8]])
    torch.testing.assert_close(shear(x, 1.0, 0.0), image([[1, 2, 3, 4], [0, 5, 6, 7]]))


def test_shear_both_ways_inverts_the_matrix():
    # [[1, .5], [-.5, 1]] has the inverse [[.8, -.4], [.4, .8]]: output (u 1, v 1) comes from (0.4, 1.2).
    got = shear(GRID, 0.5, -0.5)[0, 0, 1, 1]
    assert got.item() == pytest.approx(0.6 * (0.8 * 4 + 0.2 * 7) + 0.4 * (0.8 * 5 + 0.2 * 8), abs=1e-4)


def test_shear_draws_within_its_limit():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 15, 0] = 1.0  # moves by 15 x at most 0.1 to the right
    g = generator()
    for _ in range(50):
        assert Shear(0.1)(x, g)[..., 3:].abs().sum() == 0


def test_noise_is_normal_and_clipped():
    x = torch.full((4, 3, 32, 32), 0.5)
    noise = GaussianNoise(0.02)(x, generator()) - x
    assert noise.mean().abs().item() < 1e-3
    assert noise.std().item() == pytest.approx(0.02, rel=0.05)
    assert GaussianNoise(5.0)(x, generator()).min() == 0
    assert GaussianNoise(5.0)(x, generator()).max() == 1


@pytest.mark.parametrize(
    "transform", [Identity(), HorizontalFlip(), GaussianNoise(0.02), Translate(4, 1.0), Shear(0.1)]
)
def test_every_transform_is_differentiable_repeatable_and_leaves_global_randomness_alone(transform):
    before = torch.random.get_rng_state()
    x = (torch.rand(2, 3, 16, 16, generator=generator()) * 0.8 + 0.1).requires_grad_(True)
    y = transform(x, generator(1))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == x.shape
    assert gradient.abs().sum() > 0
    assert torch.equal(y, transform(x, generator(1)))
    assert torch.equal(torch.random.get_rng_state(), before)
