"""Letters and digits of printed fonts, distorted to look handwritten: the transfer set for knockoff on digits.

The images are made as those of the digits data set were: a binary image of 32x32 pixels, the ink in each of its 4x4
blocks counted. No file is needed beside the fonts that ship inside matplotlib.
"""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fingerbench.errors import UserError

# The fonts with plain Latin letters and digits, by name: matplotlib's others are symbols (cmsy10, cmex10, cmmi10,
# STIXSiz*, STIXNonUni*, *Display) or draw one box for every letter (LastResort), and a list by name stays the same
# when a later matplotlib brings more.
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"),
)
CHARACTERS = string.ascii_letters + string.digits
# A digit is five times as likely as a letter: about half of all. Measured: letters alone teach too little of some
# classes, 9 above all.
LIKELY = np.array([1.0] * len(string.ascii_letters) + [5.0] * len(string.digits))
TALL = 48  # height of an undistorted glyph, pixels
CANVAS = 72  # width and height of the canvas that it stands in the middle of
SIDE = 32  # width and height of the binary image
THICKNESS = (-0.75, 3.75)  # added to each side of the strokes of a glyph, pixels of its canvas
PRESSURE = 3.0  # scale of what is added along a stroke, pixels of its canvas
BEND = 0.12  # scale of the bending; the image is 2 wide
WAVES = 4  # cosines per axis that a smooth random field is made of

Floats = NDArray[np.float64]


def glyphs(count: int, seed: int) -> NDArray[np.int64]:
    """Return `count` random glyphs (count, 8, 8), values 0 to 16, the same for the same seed.

    Each is rotated, sheared, scaled and shifted, bent by a smooth field, and drawn with a stroke whose thickness
    varies from glyph to glyph and, smoothly, along the stroke. The ranges are measured: see `conf/data/digits.yaml`.
    """
    rng = np.random.default_rng(seed)
    font = rng.integers(len(FONTS), size=count)
    character = rng.choice(len(CHARACTERS), size=count, p=LIKELY / LIKELY.sum())
    row, column = _sampled_at(rng, count)
    thickness = _per_image(rng, count, *THICKNESS) + PRESSURE * _smooth_fields(rng, count)
    drawn, which = np.unique(np.stack([font, character], 1), axis=0, return_inverse=True)
    ink = _depths(drawn)[which.reshape(-1, 1, 1), row, column] > -thickness
    return ink.reshape(count, 8, 4, 8, 4).sum(axis=(2, 4))


def _sampled_at(rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the canvas row and column (count, SIDE, SIDE) that each pixel of each image shows."""
    grid = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
    x = grid + BEND * _smooth_fields(rng, count) + _per_image(rng, count, -0.08, 0.08)
    y = grid[:, None] + BEND * _smooth_fields(rng, count) + _per_image(rng, count, -0.08, 0.08)
    angle = _per_image(rng, count, -0.25, 0.25)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    x = (x + _per_image(rng, count, -0.3, 0.3) * y) / _per_image(rng, count, 0.7, 1.1)
    y = y / _per_image(rng, count, 0.85, 1.05)
    # In x and y the glyph is 2 high; coordinates beyond the canvas show its empty border.
    row, column = (np.clip(v * TALL / 2 + CANVAS / 2, 0, CANVAS - 1).astype(np.int64) for v in (y, x))
    return row, column


def _per_image(rng: np.random.Generator, count: int, low: float, high: float) -> Floats:
    return rng.uniform(low, high, (count, 1, 1))


def _smooth_fields(rng: np.random.Generator, count: int) -> Floats:
    """Return random fields (count, SIDE, SIDE) of low frequency, of mean 0 and variance 0.4 or so."""
    waves = np.cos(np.pi * np.outer((np.arange(SIDE) + 0.5) / SIDE, np.arange(WAVES)))
    return waves @ (rng.normal(size=(count, WAVES, WAVES)) / WAVES) @ waves.T


def _depths(drawn: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return how deep each pixel lies inside each glyph, negative outside: (n, CANVAS, CANVAS).

    drawn: (n, 2), the indices of font and character.
    """
    from scipy.ndimage import distance_transform_edt

    shapes = (_shape(FONTS[font], CHARACTERS[character]) for font, character in drawn)
    depths = [distance_transform_edt(shape) - distance_transform_edt(~shape) for shape in shapes]
    return np.array(depths, dtype=np.float32)


def _shape(font: str, character: str) -> NDArray[np.bool_]:
    """Return one glyph, cropped to its ink and stretched to TALL pixels of height, in the middle of its canvas."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    try:  # the basic layout, since the other one depends on libraries that are not everywhere
        type_face = ImageFont.truetype(path, 2 * TALL, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(f"{path}: expected a font of matplotlib, got {error}; reinstall matplotlib") from error
    page = Image.new("L", (6 * TALL, 6 * TALL))
    ImageDraw.Draw(page).text((3 * TALL, 3 * TALL), character, font=type_face, fill=255, anchor="mm")
    ink = page.crop(page.getbbox())
    width = min(max(round(ink.width * TALL / ink.height), TALL // 8), TALL)
    ink = ink.resize((width, TALL), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - width) // 2, (CANVAS - TALL) // 2))
    return np.asarray(canvas) > 127
