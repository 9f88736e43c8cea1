"""How unlike are two label images, for all pairs of many?

The Jaccard distance is 1 − Σ |A_c ∩ B_c| / Σ |A_c ∪ B_c|, summed over the classes other than
background; two images without any are equal. A pixel has one class, so Σ |A_c ∩ B_c| counts the
pixels where both have the same one, and unions follow from the pixels that each has in any class.

1. :func:`pack` numbers the classes from 1 and writes the bits of these numbers as *planes*, 64
   pixels to a word: three classes are two planes, fifteen are four. Planes are cut into *panels* of
   as many words as the fastest caches hold of a few dozen images::

       panel 0   image 0: plane 0, plane 1     image 1: plane 0, plane 1   …
       panel 1   image 0: plane 0, plane 1     …

2. :func:`count_common` compares all images of one stack with all of another: of two words, the bits
   that agree in every plane and are not background are counted by one instruction. Two images meet
   two others at a time, so that each word is loaded for two comparisons.
3. :func:`distances` divides. Until there everything is a whole number.

:func:`jaccard_matrix` does it for a stack in memory; ``order`` and ``volume_jaccard`` for what lies
in the store.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from cvdask.engine.blockwise import run
from cvdask.engine.plan import Plan
from cvdask.volume.boxes import Block, Grid

# Words of a plane in a panel: with two planes, 32 images against 32 others are 128 KiB.
PANEL_WORDS = 128
TILE = 32
# So many planes are used; of more, most may be without a bit, and are looked through.
FEW_PLANES = 4
# Images of a block of the matrix, in memory.
BLOCK = 256


@dataclass(frozen=True)
class Packed:
    """Label images as bits.

    Parameters
    ----------
    words : (panels, images, planes, words) uint64
        An even number of images: the last may be an empty one.
    n_images : int
        Without that one.
    """

    words: np.ndarray
    n_images: int

    def select(self, images: slice) -> Packed:
        """Return a range of images that begins at an even one."""
        start, stop, _ = images.indices(self.n_images)
        return Packed(self.words[:, start : stop + (stop - start) % 2], stop - start)


def packed_shape(n_images: int, n_pixels: int, n_planes: int) -> tuple[int, int, int, int]:
    """Return the shape of :attr:`Packed.words`.

    >>> packed_shape(3, 512 * 512, 2), packed_shape(1, 100, 1)
    ((32, 4, 2, 128), (1, 2, 1, 8))
    """
    n_words = -(-n_pixels // 64)
    width = max(8, min(PANEL_WORDS, -(-n_words // 8) * 8))
    return -(-n_words // width), n_images + n_images % 2, n_planes, width


def n_planes(n_classes: int) -> int:
    """Return how many bits number the classes, background being 0.

    >>> [n_planes(n) for n in (0, 1, 3, 4)]
    [1, 1, 2, 3]
    """
    return max(1, n_classes.bit_length())


def pack(images: Iterable[np.ndarray], n_images: int, n_classes: int) -> Packed:
    """Write label images as bits; one is looked at after the other.

    Parameters
    ----------
    images : iterable of (…) uint8 or uint32, all of one shape
        Numbers of classes from 0, the background, to ``n_classes``.
    n_images : int
    n_classes : int

    Examples
    --------
    >>> pack(np.array([[0, 1, 2, 3]], "uint8"), 1, 3).words[0, 0, :, 0]
    array([10, 12], dtype=uint64)
    """
    words = np.zeros(packed_shape(n_images, 0, n_planes(n_classes)), np.uint64)
    for number, image in enumerate(images):
        flat = image.reshape(-1)
        if number == 0:
            words = np.zeros(packed_shape(n_images, flat.size, n_planes(n_classes)), np.uint64)
            codes = np.zeros(-(-flat.size // 8) * 8, np.uint8)
        for first in range(0, words.shape[2], 8):
            codes[: flat.size] = flat if flat.dtype == np.uint8 else (flat >> first) & 255
            _pack(codes.view("<u8"), words[:, number, first : first + 8])
    return Packed(words, n_images)


@njit(nogil=True, cache=True)
def _pack(codes: np.ndarray, words: np.ndarray) -> None:
    """Write the bits of one image, eight pixels to a number, into (panels, planes, words).

    The multiplication gathers the lowest bits of eight bytes in the highest byte.
    """
    lowest, gather = np.uint64(0x0101010101010101), np.uint64(0x0102040810204080)
    width = words.shape[2]
    for first in range(0, len(codes), 8):
        panel, word = divmod(first // 8, width)
        for plane in range(words.shape[1]):
            bits = np.uint64(0)
            for i in range(min(8, len(codes) - first)):
                eight = (codes[first + i] >> np.uint64(plane)) & lowest
                bits |= ((eight * gather) >> np.uint64(56)) << np.uint64(8 * i)
            words[panel, plane, word] = bits


@intrinsic
def _popcount(context: Any, word: Any) -> Any:
    """Count the set bits of a word; AVX-512 has an instruction for eight words at once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(nogil=True, cache=True)
def _count_panel(a: np.ndarray, b: np.ndarray, planes: tuple, out: np.ndarray) -> None:
    """Add what all images of one panel share with all of another, two by two.

    ``planes`` is a tuple as long as there are planes: its length is known when this is compiled, so
    the loops over planes vanish.
    """
    for i in range(0, a.shape[0], 2):
        for j in range(0, b.shape[0], 2):
            a0, a1, b0, b1 = a[i], a[i + 1], b[j], b[j + 1]
            n00, n01, n10, n11 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
            for w in range(a.shape[2]):
                some0, some1 = np.uint64(0), np.uint64(0)
                for p in range(len(planes)):
                    some0 |= a0[p, w]
                    some1 |= a1[p, w]
                c00, c01, c10, c11 = some0, some0, some1, some1
                for p in range(len(planes)):
                    c00 &= ~(a0[p, w] ^ b0[p, w])
                    c01 &= ~(a0[p, w] ^ b1[p, w])
                    c10 &= ~(a1[p, w] ^ b0[p, w])
                    c11 &= ~(a1[p, w] ^ b1[p, w])
                n00 += _popcount(c00)
                n01 += _popcount(c01)
                n10 += _popcount(c10)
                n11 += _popcount(c11)
            out[i, j] += np.int64(n00)
            out[i, j + 1] += np.int64(n01)
            out[i + 1, j] += np.int64(n10)
            out[i + 1, j + 1] += np.int64(n11)


@njit(nogil=True, cache=True)
def _count_common(a: np.ndarray, b: np.ndarray, planes: tuple, tile: int, out: np.ndarray) -> None:
    for panel in range(a.shape[0]):
        for i in range(0, a.shape[1], tile):
            for j in range(0, b.shape[1], tile):
                _count_panel(
                    a[panel, i : i + tile],
                    b[panel, j : j + tile],
                    planes,
                    out[i : i + tile, j : j + tile],
                )


def count_common(a: Packed, b: Packed) -> np.ndarray:
    """Count the pixels where two images have the same class, for all pairs.

    Returns
    -------
    (images of a, images of b) int64
        Of an image with itself: its pixels that are not background.

    Examples
    --------
    >>> stack = pack(np.array([[0, 1, 2], [0, 2, 2]], "uint8"), 2, 2)
    >>> count_common(stack, stack)
    array([[2, 1],
           [1, 2]])
    """
    first, second = a.words, b.words
    if first.shape[2] > FEW_PLANES:
        used = [p for p in range(first.shape[2]) if first[:, :, p].any() or second[:, :, p].any()]
        if len(used) < first.shape[2]:
            first, second = (
                np.ascontiguousarray(words[:, :, used or [0]]) for words in (first, second)
            )
    out = np.zeros((first.shape[1], second.shape[1]), np.int64)
    _count_common(first, second, (0,) * first.shape[2], TILE, out)
    return out[: a.n_images, : b.n_images]


def distances(common: np.ndarray, n_a: np.ndarray, n_b: np.ndarray) -> np.ndarray:
    """Turn counts into Jaccard distances.

    Parameters
    ----------
    common : (a, b) int
        Pixels that two images have in common.
    n_a, n_b : (a,) and (b,) int
        Pixels of each that are not background.

    Returns
    -------
    (a, b) float64

    Examples
    --------
    >>> distances(np.array([[1, 0]]), np.array([2]), np.array([3, 0]))
    array([[0.75, 1.  ]])
    """
    union = n_a[:, None] + n_b[None, :] - common
    similarity = np.ones(common.shape)
    np.divide(common, union, out=similarity, where=union > 0)
    return np.subtract(1.0, similarity, out=similarity)


# ---------------------------------------------------------------------------------------------
# A stack in memory


def jaccard_matrix(slices: np.ndarray, *, workers: int | None = None) -> np.ndarray:
    """Compare all slices of a stack with one another.

    Parameters
    ----------
    slices : (n, Y, X) bool or integer
        Labels; every value above 0 is a class.
    workers : int, optional
        Threads; by default one per core.

    Returns
    -------
    (n, n) float64
        Jaccard distances, symmetric, 0 on the diagonal: 0 equal, 1 nothing in common. Slices
        without any class are at distance 0 from one another, at 1 from all others.

    Raises
    ------
    ValueError
        When it is not three axes of integers.

    Examples
    --------
    >>> jaccard_matrix(np.array([[[1, 1, 0]], [[1, 2, 0]], [[0, 0, 0]]]))
    array([[0.        , 0.66666667, 1.        ],
           [0.66666667, 0.        , 1.        ],
           [1.        , 1.        , 0.        ]])
    """
    slices = np.asarray(slices)
    if slices.ndim != 3 or slices.dtype.kind not in "bui":
        raise ValueError(
            f"slices are an array of integers with the axes (n, Y, X). Received: {slices.dtype} of "
            f"shape {slices.shape}"
        )
    n = len(slices)
    matrix = np.zeros((n, n))
    if slices.size == 0:
        return matrix
    packed = _pack_values(slices)
    n_pixels = _count_foreground(packed)

    def compare(block: Block) -> None:
        rows, columns = block.write.slices
        if rows.start > columns.start:
            return
        common = count_common(packed.select(rows), packed.select(columns))
        found = distances(common, n_pixels[rows], n_pixels[columns])
        matrix[rows, columns] = found
        matrix[columns, rows] = found.T

    plan = Plan("jaccard", Grid((n, n), (BLOCK, BLOCK)), "memory", task_bytes=3 * 8 * BLOCK**2)
    run(compare, plan, client="threads", workers=workers)
    return matrix


def _pack_values(slices: np.ndarray) -> Packed:
    """Pack a stack of labels, whatever values they have."""
    n = len(slices)
    if slices.dtype.itemsize == 1:
        present = values_present(slices.view(np.uint8))
        present[0] = False
        present[128:] &= slices.dtype != np.int8  # there they are negative
        table = np.where(present, np.cumsum(present), 0).astype(np.uint8)
        return pack((table[image.view(np.uint8)] for image in slices), n, int(present.sum()))
    found: set[int] = set()
    for image in slices:
        found.update(np.unique(image[image > 0]).tolist())
    values = np.array(sorted(found), slices.dtype)

    def numbered(image: np.ndarray) -> np.ndarray:
        return np.where(image > 0, np.searchsorted(values, image) + 1, 0).astype(np.uint32)

    return pack(map(numbered, slices), n, len(values))


def values_present(data: np.ndarray) -> np.ndarray:
    """Tell which values there are: (256,) bool, of uint8.

    >>> np.flatnonzero(values_present(np.array([[3, 0, 3]], "uint8")))
    array([0, 3])
    """
    present = np.zeros(256, bool)
    for part in data:
        _note_values(np.ascontiguousarray(part).reshape(-1), present)
    return present


@njit(nogil=True, cache=True)
def _note_values(data: np.ndarray, present: np.ndarray) -> None:
    for value in data:
        present[value] = True


def _count_foreground(packed: Packed) -> np.ndarray:
    """Count the pixels of each image that are in a class: (n,) int64."""
    counts = np.zeros(packed.words.shape[1], np.int64)
    for panel in packed.words:
        some = np.bitwise_or.reduce(panel, axis=1)
        counts += np.bitwise_count(some).sum(axis=1, dtype=np.int64)
    return counts[: packed.n_images]
