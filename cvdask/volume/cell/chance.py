"""What does chance say for one purpose at one place?

Nothing is drawn in sequence. A draw is a hash of (key, purpose, i, j, k), where i, j, k number a
place, so that everybody who asks for it gets the same, in any order, on any worker.

The hash is the finaliser of splitmix64 (Steele, Lea and Flood 2014). Integers and + - * / sqrt
only: the same bits on every machine, where sin and cos may differ.
"""

from __future__ import annotations

import numpy as np

from cvdask.compiled import compiled

# Purposes: draws for different ones are independent.
CELL, SARCOMERE, SITE, ROW, CLUSTER, FIBRIL, STAGGER = range(1, 8)
SLOT, FILLED, RADIUS, ENDS, FUSED, LATERAL = range(8, 14)
CRISTAE, FILAMENT, CHROMATIN, GRAIN, BLOTCH = range(14, 19)
CURTAIN, STREAK, DRIFT, NOISE = range(19, 23)

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_U11, _U27, _U30, _U31, _U32 = (np.uint64(n) for n in (11, 27, 30, 31, 32))
_LOW_32 = np.uint64(0xFFFFFFFF)


@compiled("uint64(uint64)")
def mix(h: np.uint64) -> np.uint64:
    """Make 64 bits of which each depends on every bit of ``h``."""
    h = (h ^ (h >> _U30)) * _MIX_1
    h = (h ^ (h >> _U27)) * _MIX_2
    return h ^ (h >> _U31)


@compiled("uint64(uint64, int64, int64, int64, int64)")
def bits(key: np.uint64, purpose: int, i: int, j: int, k: int) -> np.uint64:
    """Draw 64 bits."""
    h = mix(key + np.uint64(purpose) * GOLDEN)
    h = mix(h + np.uint64(i) * GOLDEN)
    h = mix(h + np.uint64(j) * GOLDEN)
    return mix(h + np.uint64(k) * GOLDEN)


@compiled("float64(uint64, int64, int64, int64, int64)")
def uniform(key: np.uint64, purpose: int, i: int, j: int, k: int) -> float:
    """Draw from [0, 1)."""
    return float(bits(key, purpose, i, j, k) >> _U11) * 2.0**-53


@compiled("UniTuple(float64, 2)(uint64, int64, int64, int64, int64)")
def in_disc(key: np.uint64, purpose: int, i: int, j: int, k: int) -> tuple[float, float]:
    """Draw a point of the unit disc, by rejection from the square around it."""
    h = bits(key, purpose, i, j, k)
    while True:
        a = float(h >> _U32) * 2.0**-31 - 1.0
        b = float(h & _LOW_32) * 2.0**-31 - 1.0
        if a * a + b * b <= 1.0:
            return a, b
        h = mix(h + GOLDEN)


@compiled("float64(uint64, int64, float64, float64, float64)")
def value_noise(key: np.uint64, purpose: int, z: float, y: float, x: float) -> float:
    """Interpolate random values of the integer lattice, in [0, 1)."""
    i, j, k = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
    f, g, h = z - i, y - j, x - k
    total = 0.0
    for a in range(2):
        for b in range(2):
            for c in range(2):
                weight = (f if a else 1.0 - f) * (g if b else 1.0 - g) * (h if c else 1.0 - h)
                total += weight * uniform(key, purpose, i + a, j + b, k + c)
    return total
