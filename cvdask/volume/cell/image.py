"""What would a microscope show of labelled voxels?

1. **Texture**: brightness by class, with bands along the fibrils, cristae and chromatin.
2. **Exposure**: the texture is blurred by one voxel, then come grain and blotches, curtains, slow
   drift from slice to slice, and the noise of every single voxel.

Everything is keyed by global voxel indices, so that boxes fit together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cvdask.compiled import compiled
from cvdask.volume.cell import chance
from cvdask.volume.cell.layout import Layout

# Brightness 0-255, as in a section stained with osmium and imaged in back-scatter, inverted.
SARCOPLASM, MATRIX, CRISTA, A_BAND, I_BAND, M_LINE, Z_LINE = 168, 92, 126, 138, 186, 112, 52
NUCLEOPLASM, CHROMATIN = 182, 112
CRISTAE_PERIOD = 90.0  # nm


@compiled()
def paint_texture(
    layout: Layout,
    start: tuple[int, ...],
    planes: npt.NDArray[np.float64],
    classes: npt.NDArray[np.uint8],
    instances: npt.NDArray[np.uint32],
) -> npt.NDArray[np.uint8]:
    """Turn labels into brightness with the texture of each class, before blur and noise.

    ``planes`` holds the x of a Z-disc per (z, y) column, see :mod:`~cvdask.volume.cell.fibrils`.
    """
    nz, ny, nx = classes.shape
    vz, vy, vx = layout.voxel
    key, period = layout.key, layout.sarcomere
    # Stripes finer than about four voxels would alias.
    stripe = max(CRISTAE_PERIOD, 4.0 * max(vz, vy, vx))
    bend = 3.0 * stripe
    out = np.empty(classes.shape, np.uint8)
    for z in range(nz):
        pz = (start[0] + z + 0.5) * vz
        for y in range(ny):
            py = (start[1] + y + 0.5) * vy
            grey = chance.uniform(key, chance.FILAMENT, start[0] + z, start[1] + y, 0)
            filament = 16.0 * (grey - 0.5)
            label = np.uint32(0)
            across = along = 0.0
            for x in range(nx):
                px = (start[2] + x + 0.5) * vx
                tissue = classes[z, y, x]
                value = float(SARCOPLASM)
                if tissue == 1:
                    if instances[z, y, x] != label:
                        # Sheets of a direction of its own, mostly across the fibre.
                        label = instances[z, y, x]
                        a, b = chance.in_disc(key, chance.CRISTAE, label, 0, 0)
                        across, along = a * py + b * pz, 0.6 + 0.4 * abs(a)
                    # Bent sheets: a triangle wave shifts the stripes as one goes along.
                    wave = (across + 0.35 * px) / (4.0 * bend)
                    wave = abs(wave - np.floor(wave) - 0.5)
                    at = (along * px + across) / stripe + 2.0 * wave
                    share = 2.0 * abs(at - np.floor(at) - 0.5)
                    value = MATRIX + (CRISTA - MATRIX) * share
                elif tissue == 2:
                    t = (px - planes[z, y]) / period
                    t = t - np.floor(t)
                    from_z = min(t, 1.0 - t)
                    if from_z < 0.14:
                        value = I_BAND
                    elif from_z > 0.48:
                        value = M_LINE
                    else:
                        value = A_BAND
                    value += filament
                elif tissue == 3:
                    value = float(Z_LINE)
                elif tissue == 4:
                    clump = chance.value_noise(
                        key, chance.CHROMATIN, pz / 350.0, py / 350.0, px / 350.0
                    )
                    value = float(CHROMATIN if clump > 0.62 else NUCLEOPLASM)
                out[z, y, x] = int(value)
    return out


@compiled("void(float64[::1], uint64, int64, UniTuple(int64, 3), UniTuple(int64, 3), float64)")
def _add_noise(
    row: npt.NDArray[np.float64],
    key: np.uint64,
    purpose: int,
    at: tuple[int, ...],
    steps: tuple[int, ...],
    amplitude: float,
) -> None:
    """Add value noise in [-amplitude, amplitude] to a row of voxels along x.

    The noise has a random value at every ``steps``-th voxel and is linear between them. ``at`` is
    the global index of the row's first voxel.
    """
    i, j = at[0] // steps[0], at[1] // steps[1]
    f = (at[0] - i * steps[0]) / steps[0]
    g = (at[1] - j * steps[1]) / steps[1]
    node = at[2] // steps[2] - 2  # two behind, so that the first voxel fetches left and right
    left = right = 0.0
    for x in range(len(row)):
        k = (at[2] + x) // steps[2]
        while node < k:
            node += 1
            left, right = right, 0.0
            for a in range(2):
                for b in range(2):
                    weight = (f if a else 1.0 - f) * (g if b else 1.0 - g)
                    right += weight * chance.uniform(key, purpose, i + a, j + b, node + 1)
        h = (at[2] + x - k * steps[2]) / steps[2]
        row[x] += amplitude * (2.0 * (left + h * (right - left)) - 1.0)


@compiled()
def _steps(layout: Layout, length: float) -> tuple[int, ...]:
    """Return a length as whole voxels per axis, 2 at least."""
    vz, vy, vx = layout.voxel
    return (
        max(2, int(length / vz + 0.5)),
        max(2, int(length / vy + 0.5)),
        max(2, int(length / vx + 0.5)),
    )


@compiled()
def expose(
    layout: Layout,
    around: tuple[int, ...],
    start: tuple[int, ...],
    shape: tuple[int, ...],
    textured: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Blur the texture by one voxel and add what a microscope adds.

    The blur is binomial, (1, 2, 1)/4 per axis, summed in integers. ``textured`` starts at
    ``around``, one voxel before ``start`` except at the volume's bounds, where it is continued.
    """
    nz, ny, nx = shape
    key = layout.key
    hz, hy, hx = textured.shape
    oz, oy, ox = start[0] - around[0], start[1] - around[1], start[2] - around[2]
    grain, blotch, streak = _steps(layout, 70.0), _steps(layout, 600.0), _steps(layout, 900.0)
    out = np.empty((nz, ny, nx), np.uint8)
    sums = np.empty(hx, np.int32)
    row, curtain, drift = np.empty(nx), np.empty(nx), np.empty(2)
    for z in range(nz):
        # Per slice: contrast and offset drift over about 60 slices; curtains, which run along y,
        # keep their place for about 25.
        gz = start[0] + z
        drift[:] = 0.0
        _add_noise(drift[:1], key, chance.DRIFT, (gz, 0, 0), (60, 1, 1), 0.12)
        _add_noise(drift[1:], key, chance.DRIFT, (gz, 1, 0), (60, 1, 1), 10.0)
        gain, offset = 1.0 + drift[0], drift[1]
        curtain[:] = 0.0
        _add_noise(curtain, key, chance.CURTAIN, (gz, 0, start[2]), (25, 1, 2), 3.0)
        _add_noise(curtain, key, chance.STREAK, (gz, 0, start[2]), (25, 1, streak[2]), 6.0)
        for y in range(ny):
            gy = start[1] + y
            for x in range(nx):  # numba would compile `row[:] = curtain` for a second
                row[x] = curtain[x]
            _add_noise(row, key, chance.GRAIN, (gz, gy, start[2]), grain, 9.0)
            _add_noise(row, key, chance.BLOTCH, (gz, gy, start[2]), blotch, 6.0)

            sums[:] = 0
            for a in range(-1, 2):
                tz = min(max(oz + z + a, 0), hz - 1)
                for b in range(-1, 2):
                    ty = min(max(oy + y + b, 0), hy - 1)
                    weight = (2 - abs(a)) * (2 - abs(b))
                    for x in range(hx):
                        sums[x] += weight * textured[tz, ty, x]

            row_key = chance.bits(key, chance.NOISE, gz, gy, 0)
            for x in range(nx):
                tx = ox + x
                blurred = sums[max(tx - 1, 0)] + 2 * sums[tx] + sums[min(tx + 1, hx - 1)]
                # Four bytes of a hash sum up to nearly a Gaussian of standard deviation 148.
                h = chance.mix(row_key + np.uint64(start[2] + x) * chance.GOLDEN)
                bell = -510
                for byte in range(4):
                    bell += int((h >> np.uint64(8 * byte)) & np.uint64(255))
                value = 128.0 + gain * (blurred / 64.0 - 128.0) + offset + row[x] + 0.075 * bell
                out[z, y, x] = int(min(255.0, max(0.0, value + 0.5)))
    return out
