"""The transform bank, against examples computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fingerbench import transforms
from fingerbench.transforms import (
    GaussianBlur,
    GaussianNoise,
    HorizontalFlip,
    Identity,
    Mean,
    Median,
    ResizePad,
    Shear,
    Translate,
    UniformNoise,
    shear,
    translate,
)
from fingerbench.vision import torchvision


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


def test_uniform_noise_reaches_its_limit_and_is_clipped():
    x = torch.full((4, 3, 32, 32), 0.5)
    noise = UniformNoise(0.05)(x, generator()) - x
    assert noise.mean().abs().item() < 2e-3
    assert noise.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.02)
    assert 0.0495 < noise.abs().max() <= 0.05 + 1e-6
    assert noise.min() < 0 < noise.max()
    assert UniformNoise(5.0)(x, generator()).min() == 0
    assert UniformNoise(5.0)(x, generator()).max() == 1


def test_mean_and_median_see_the_mirrored_neighbours_of_a_border():
    # Mirrored, the rows of GRID are 5 4 5 6 5, 2 1 2 3 2, 5 4 5 6 5, 8 7 8 9 8, 5 4 5 6 5.
    # Around 1: 5 4 5, 2 1 2, 5 4 5; around 2: 4 5 6, 1 2 3, 4 5 6; around 5: 1 to 9.
    mean, median = Mean()(GRID, generator())[0, 0], Median()(GRID, generator())[0, 0]
    assert [mean[0, 0].item(), mean[0, 1].item(), mean[1, 1].item()] == pytest.approx([33 / 9, 36 / 9, 5.0])
    assert [median[0, 0].item(), median[0, 1].item(), median[1, 1].item()] == [4.0, 4.0, 5.0]


def test_median_removes_one_bright_pixel_and_keeps_channels_apart():
    x = torch.zeros(2, 3, 5, 5)
    x[0, 1, 2, 2] = 1.0
    x[1, 2] = 0.7
    y = Median()(x, generator())
    assert y[0].abs().max() == 0
    assert torch.equal(y[1], x[1])


def test_blur_is_the_normal_density_and_torchvisions():
    x = torch.zeros(1, 1, 5, 5)
    x[..., 2, 2] = 1.0
    side = math.exp(-1 / (2 * 0.8**2))
    weights = torch.tensor([side, 1.0, side]) / (1 + 2 * side)
    torch.testing.assert_close(GaussianBlur(0.8)(x, generator())[0, 0, 1:4, 1:4], weights[:, None] * weights)
    x = torch.rand(2, 3, 9, 7, generator=generator())
    theirs = torchvision.transforms.functional.gaussian_blur(x, [3, 3], [0.8, 0.8])
    torch.testing.assert_close(GaussianBlur(0.8)(x, generator()), theirs)


def test_blur_happens_as_often_as_it_says():
    g = generator()
    seen = [GaussianBlur(0.8, 0.7)(GRID, g) for _ in range(300)]
    assert 180 < sum(not torch.equal(y, GRID) for y in seen) < 240


def test_resize_pad_puts_a_square_of_a_drawn_side_anywhere():
    x, g = torch.ones(2, 3, 32, 32), generator()
    sides, corners = set(), set()
    for _ in range(300):
        y = ResizePad(24, 39, 40, fill=0.5)(x, g)
        assert y.shape == (2, 3, 40, 40)
        inside = y > 0.99
        assert torch.equal(y[~inside], torch.full_like(y[~inside], 0.5))
        rows, columns = inside[0, 0].any(1).nonzero().flatten(), inside[0, 0].any(0).nonzero().flatten()
        assert len(rows) == len(columns) == rows[-1] - rows[0] + 1
        assert inside.sum() == 6 * len(rows) ** 2
        sides.add(len(rows))
        corners.add((rows[0].item(), columns[0].item()))
    assert sides == set(range(24, 40))
    assert {0, 16} <= {top for top, _ in corners} and {0, 16} <= {left for _, left in corners}


def test_resize_pad_can_give_the_size_back():
    x = torch.rand(2, 3, 16, 16)
    large, back = (ResizePad(12, 19, 20, restored=flag)(x, torch.Generator().manual_seed(0)) for flag in (False, True))
    assert large.shape[2:] == (20, 20) and back.shape == x.shape
    assert torch.equal(back, F.interpolate(large, (16, 16), mode="bilinear", align_corners=False))


def test_resize_pad_of_the_same_side_only_moves():
    y = ResizePad(3, 3, 4)(GRID, generator())[0, 0]
    assert any(torch.equal(y[i : i + 3, j : j + 3], GRID[0, 0]) for i in range(2) for j in range(2))
    assert y.sum() == 45 + 7 * 0.5
    torch.testing.assert_close(ResizePad(2, 2, 2)(image([[1, 1, 3, 3]] * 4), generator()), image([[1, 3]] * 2))


@pytest.mark.parametrize(
    ("transform", "side"),
    [
        (Identity(), 16),
        (HorizontalFlip(), 16),
        (GaussianNoise(0.02), 16),
        (UniformNoise(0.05), 16),
        (GaussianBlur(0.8), 16),
        (Mean(), 16),
        (Median(), 16),
        (ResizePad(12, 19, 20), 20),
        (Translate(4, 1.0), 16),
        (Shear(0.1), 16),
    ],
)
def test_every_transform_is_differentiable_repeatable_and_leaves_global_randomness_alone(transform, side):
    before = torch.random.get_rng_state()
    x = (torch.rand(2, 3, 16, 16, generator=generator()) * 0.8 + 0.1).requires_grad_(True)
    y = transform(x, generator(1))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == (2, 3, side, side)
    assert 0 <= y.min() <= y.max() <= 1 + 1e-6
    assert gradient.abs().sum() > 0
    assert torch.equal(y, transform(x, generator(1)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (5, 9), (3, 2)])
@pytest.mark.parametrize(("across", "along"), [(0.0, 0.0), (0.1, -0.3), (-0.9, 0.7)])
def test_a_shear_by_indexing_is_that_of_grid_sample_and_so_is_its_gradient(h, w, across, along, monkeypatch):
    x = torch.rand(2, 3, h, w, generator=generator(), dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 3, h, w, generator=generator(1), dtype=torch.float64)
    expected = shear(x, across, along)
    monkeypatch.setattr(transforms, "_must_repeat", lambda x: True)
    found = shear(x, across, along)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (expected, found)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 5])
def test_the_median_is_that_of_pytorch_to_the_bit(size):
    x = torch.rand(2, 3, 8, 8, generator=generator())
    patches = F.unfold(F.pad(x, (size // 2,) * 4, mode="reflect"), size).view(2, 3, size**2, 8, 8)
    assert torch.equal(Median(size)(x, generator()), patches.median(2).values)


@pytest.mark.parametrize("size", [3, 5])
def test_borders_mirrored_by_indexing_are_those_of_pytorch(size, monkeypatch):
    x = torch.rand(2, 3, 4, 7, generator=generator())
    expected = transforms._extend(x, size)
    monkeypatch.setattr(transforms, "_must_repeat", lambda x: True)
    assert torch.equal(transforms._extend(x, size), expected)
