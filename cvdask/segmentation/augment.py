"""What else could this annotated square have looked like? Random crops of a patch, altered.

1. :func:`sampling_grid` says where each pixel of a crop is taken from: turned, scaled, mirrored,
   and pulled about by a smooth random displacement.
2. :func:`sample` takes the pixels: grey values by linear interpolation, mirrored beyond the patch;
   targets from the nearest pixel, 255 (not annotated) beyond it.
3. :func:`alter_intensity` changes gain, offset and gamma, blurs, and adds noise.
4. :func:`add_bands` lays straight darker or brighter bands over some, as folds of a section,
   curtains of a milled face and scratches do.

:func:`augment` does all of it from one random generator. Whoever calls seeds that by what is drawn
(seed, epoch, number of the sample), never by who draws it, so that threads and restarts change
nothing. Everything is NumPy, a few milliseconds for a crop of 256², because it runs beside the
training step on the same cores.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cvdask.volume.colors import UNANNOTATED

# Half of the crops are only mirrored and turned by right angles: exact pixels, no interpolation.
SHARE_WARPED = 0.5
SCALES = (0.8, 1.25)
# How far crops turn where tissue has a direction that all slices share, radians: about 7°.
SMALL_TURN_SD = 0.12
# Spacing of the displacement's control points, and how far they move, in voxels.
ELASTIC_SPACING = 32
ELASTIC_SD = 3.0
# In units of the image's standard deviation, the image being normalised.
GAIN_SD = 0.15
OFFSET_SD = 0.2
GAMMA_SD = 0.25
BLUR_SIGMA = (0.4, 1.2)
NOISE_SD = (0.02, 0.25)
SHARE_BLURRED = 0.2
SHARE_NOISY = 0.3
# Folds hide what is below them in a patch or two of a hundred; networks that have not seen any
# lose the objects beside them too.
SHARE_BANDED = 0.25
MOST_BANDS = 3
BAND_SD = 1.5
BAND_HALF_WIDTHS = (1.5, 25)


def augment(
    image: np.ndarray,
    target: np.ndarray,
    center: tuple[float, float],
    size: int,
    rng: np.random.Generator,
    *,
    upright: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one altered crop of a patch.

    Parameters
    ----------
    image : (Y, X) float32
        Normalised to mean 0 and standard deviation 1.
    target : (Y, X) uint8
        Class of each pixel, 255 not annotated.
    center : tuple of float
        Row and column that the crop is centred on; moved so that an unscaled crop lies inside.
    size : int
        Pixels of the crop along y and x, at most those of the patch.
    rng : Generator
        Drawn from in a fixed order.
    upright : bool
        Mirror and turn by half a circle, and by a few degrees, but by no other angle.

    Returns
    -------
    image : (size, size) float32
    target : (size, size) uint8
        Buffers of the caller's own.
    """
    if rng.random() < SHARE_WARPED:
        rows, columns = sampling_grid(center, size, image.shape, rng, upright=upright)
        image, target = sample(image, target, rows, columns)
    else:
        image, target = cut(image, target, center, size)
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        turns = turns // 2 * 2 if upright else turns
        image, target = (_turn(array, turns, mirrored) for array in (image, target))
    return add_bands(alter_intensity(image, rng), rng), target


def cut(
    image: np.ndarray, target: np.ndarray, center: tuple[float, float], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the crop around a centre out, moved inside the patch; views, nothing is copied.

    Raises
    ------
    ValueError
        When the patch is smaller than the crop.
    """
    if min(image.shape) < size:
        raise ValueError(
            f"a crop must fit into its patch. Received: a crop of {size}, a patch of {image.shape}"
        )
    y, x = (
        min(max(0, round(c) - size // 2), extent - size)
        for c, extent in zip(center, image.shape, strict=True)
    )
    return image[y : y + size, x : x + size], target[y : y + size, x : x + size]


def _turn(array: np.ndarray, turns: int, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, turns))


def sampling_grid(
    center: tuple[float, float],
    size: int,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    *,
    upright: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw where each pixel of a crop lies in the patch.

    Returns
    -------
    rows, columns : (size, size) float32
        May lie beyond the patch.
    """
    if upright:
        angle = float(np.pi * rng.integers(2) + rng.normal(0, SMALL_TURN_SD))
    else:
        angle = float(rng.uniform(0, 2 * np.pi))
    mirror = rng.choice([-1.0, 1.0])
    scale = np.exp(rng.uniform(*np.log(SCALES)))
    middle = [min(max(c, size / 2), n - size / 2) for c, n in zip(center, shape, strict=True)]
    steps = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(scale)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across = np.float32(mirror) * steps
    rows = (middle[0] + cos * steps)[:, None] - (sin * across)[None, :]
    columns = (middle[1] + sin * steps)[:, None] + (cos * across)[None, :]
    strength = rng.uniform(0, ELASTIC_SD)
    basis = _spline_basis(size)
    for grid in (rows, columns):
        knots = rng.standard_normal((basis.shape[1],) * 2, dtype=np.float32)
        grid += np.float32(strength) * (basis @ knots @ basis.T)
    return rows.astype(np.float32, copy=False), columns.astype(np.float32, copy=False)


def _spline_basis(size: int) -> np.ndarray:
    """Weights (size, K) of uniform cubic B-splines, one every ``ELASTIC_SPACING`` pixels.

    A smooth field on the crop is then two small matrix products, a tenth of the time of an
    interpolation from the coarse grid.
    """
    n_knots = -(-size // ELASTIC_SPACING) + 3
    places = np.arange(size)[:, None] / ELASTIC_SPACING + 1
    distance = np.abs(places - np.arange(n_knots)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - np.minimum(distance, 2)) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def sample(
    image: np.ndarray, target: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take pixels of a patch at any positions.

    Parameters
    ----------
    image : (Y, X) float32
    target : (Y, X) uint8
    rows, columns : (S, S) float32
        Positions in pixels; pixel centres are whole numbers.

    Returns
    -------
    image : (S, S) float32
        Linear between the four nearest; mirrored at the outer pixels beyond them.
    target : (S, S) uint8
        Of the nearest pixel; 255 beyond the patch.
    """
    height, width = image.shape
    near_y, near_x = np.rint(rows).astype(np.int32), np.rint(columns).astype(np.int32)
    outside = (near_y < 0) | (near_y >= height) | (near_x < 0) | (near_x >= width)
    np.clip(near_y, 0, height - 1, out=near_y)
    np.clip(near_x, 0, width - 1, out=near_x)
    labels = target[near_y, near_x]
    labels[outside] = UNANNOTATED

    y, below, at_y = _interval(rows, height)
    x, beside, at_x = _interval(columns, width)
    flat = image.ravel()
    upper, lower = y * width, below * width
    top = flat[upper + x] * (1 - at_x) + flat[upper + beside] * at_x
    bottom = flat[lower + x] * (1 - at_x) + flat[lower + beside] * at_x
    return top * (1 - at_y) + bottom * at_y, labels


def _interval(places: np.ndarray, extent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels before and behind each place, and how far it lies between them."""
    if extent == 1:
        nothing = np.zeros(places.shape, np.int32)
        return nothing, nothing, np.zeros_like(places)
    last = extent - 1
    places = last - np.abs(np.mod(places, 2 * last) - last)
    before = places.astype(np.int32)
    np.minimum(before, last - 1, out=before)
    return before, before + 1, (places - before).astype(np.float32)


def alter_intensity(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change gain, offset and gamma of a normalised image; blur some, add noise to some.

    Parameters
    ----------
    image : (Y, X) float32
    rng : Generator

    Returns
    -------
    (Y, X) float32
        Another buffer. Without brightness differences gamma is left out.
    """
    gain, gamma = np.exp(rng.normal(0, (GAIN_SD, GAMMA_SD)))
    offset = rng.normal(0, OFFSET_SD)
    low, high = float(image.min()), float(image.max())
    if high > low:
        bent = ((image - low) / (high - low)) ** np.float32(gamma)
        image = bent * np.float32(high - low) + np.float32(low)
    image = image * np.float32(gain) + np.float32(offset)
    if rng.random() < SHARE_BLURRED:
        image = ndimage.gaussian_filter(image, rng.uniform(*BLUR_SIGMA), truncate=3)
    if rng.random() < SHARE_NOISY:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + np.float32(rng.uniform(*NOISE_SD)) * noise
    return image.astype(np.float32, copy=False)


def add_bands(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make straight bands across some images darker or brighter.

    Parameters
    ----------
    image : (Y, X) float32
        Normalised.
    rng : Generator

    Returns
    -------
    (Y, X) float32
        The image itself where it gets no band.
    """
    if rng.random() >= SHARE_BANDED:
        return image
    image = image.copy()
    rows, columns = (np.arange(n, dtype=np.float32) for n in image.shape)
    for _ in range(int(rng.integers(1, MOST_BANDS + 1))):
        angle = rng.uniform(0, np.pi)
        y, x = rng.uniform(0, image.shape)
        half_width = np.exp(rng.uniform(*np.log(BAND_HALF_WIDTHS)))
        across = np.add.outer(np.cos(angle) * (rows - y), np.sin(angle) * (columns - x))
        image[np.abs(across) < half_width] += np.float32(rng.normal(0, BAND_SD))
    return image
