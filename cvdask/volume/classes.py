"""Which values of a label image are meant, and what does a box of it hold?

1. :func:`open_classes` and :func:`measured_box` open a label image and choose the voxels.
2. :func:`class_values` turns names and numbers, as people write them, into label values.
3. :func:`read_classes` reads a box as uint8, whatever integers are stored.

0 is background and 255 means that nobody has annotated the voxel; both need no name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from cvdask.volume.boxes import Box
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.objects import redact
from cvdask.volume.store import Level, Volume, open_volume, read_box

BACKGROUND = 0
# Shards hold more; smaller chunks are taken together, or reading them would be waiting for them.
FEWEST_BLOCK_VOXELS = 2**24


def open_classes(volume: Volume | str, labels: str) -> Volume:
    """Open a label image of classes.

    Raises
    ------
    ValueError
        When the sample has no such label image, or it states no voxel size.
    """
    sample = open_volume(volume) if isinstance(volume, str) else volume
    found = sample.label(labels)
    if found.voxel_size_nm is None:
        raise ValueError(
            f"{labels!r} of {redact(found.url)} states no voxel size, so nothing can be said in "
            f"µm. Ingest it again with --voxel-nm Z Y X"
        )
    if found.dtype.kind not in "ui":
        raise ValueError(f"classes are integers. Received: {found.dtype} in {labels!r}")
    return found


def measured_box(labels: Volume, box: Box | str | None) -> Box:
    """Return the voxels to look at: all, or those of a box or its text.

    Raises
    ------
    ValueError
        When the box is empty or leaves the volume.
    """
    if isinstance(box, str):
        return Box.parse(box, labels.shape)
    whole = Box.whole(labels.shape)
    region = box if box is not None else whole
    if not whole.contains(region) or region.size == 0:
        raise ValueError(
            f"the box must hold at least one voxel and lie inside {labels.name}, {whole}. "
            f"Received: {region}"
        )
    return region


def named_values(labels: Volume) -> dict[int, str]:
    """Return the classes of a label image, name by value: background first, 255 left out.

    Empty where the label image has no names.

    Raises
    ------
    ValueError
        When two values have the same name, or one lies outside 0 to 254.
    """
    given = {value: name for value, name in labels.classes.items() if value != UNANNOTATED}
    if not given:
        return {}
    names = dict(sorted({BACKGROUND: "background", **given}.items()))
    if len(set(names.values())) < len(names):
        raise ValueError(f"class names must differ. {labels.name!r} has {names}")
    odd = [value for value in names if not 0 <= value < UNANNOTATED]
    if odd:
        raise ValueError(
            f"values of classes lie between 0 and {UNANNOTATED - 1}. {labels.name!r} names {odd}: "
            f"are these objects rather than classes?"
        )
    return names


def class_values(labels: Volume, wanted: str | int | Sequence[str | int]) -> tuple[int, ...]:
    """Turn names or values of classes into values, ascending.

    Parameters
    ----------
    labels : Volume
        A label image.
    wanted : str, int or sequence of them
        Names of its classes, or their values; text may hold several between commas.

    Raises
    ------
    ValueError
        When it names no class, or one that the label image does not have.

    Examples
    --------
    >>> from cvdask.volume.store import describe
    >>> labels = describe(
    ...     "cell.zarr",
    ...     shape=(1, 1, 1),
    ...     dtype="uint8",
    ...     voxel_size_nm=(1, 1, 1),
    ...     labels="classes",
    ...     classes={1: "mitochondria", 2: "myofibrils"},
    ... )
    >>> class_values(labels, "myofibrils, mitochondria"), class_values(labels, 2)
    ((1, 2), (2,))
    """
    names = named_values(labels)
    by_name = {name: value for value, name in names.items()}
    parts = [wanted] if isinstance(wanted, str | int) else list(wanted)
    # A name may hold a comma itself: it is looked up whole before it is cut.
    texts = [
        text.strip()
        for part in map(str, parts)
        for text in ([part] if part in by_name else part.split(","))
        if text.strip()
    ]
    found = set()
    for text in texts:
        value = by_name.get(text, int(text) if text.isdecimal() else None)
        if value is None or not (value in names if names else value < UNANNOTATED):
            has = (
                f"the classes {names}"
                if names
                else f"classes without names, so give values from 0 to {UNANNOTATED - 1}"
            )
            raise ValueError(f"{labels.name!r} has {has}. Received: {text!r}")
        found.add(value)
    if not found:
        raise ValueError(f"at least one class is needed. Received: {wanted!r}")
    return tuple(sorted(found))


def block_shape(level: Level) -> tuple[int, ...]:
    """Choose blocks that decode each stored chunk once: a shard, or several small ones.

    >>> level = Level("0", (300, 900, 900), "uint8", (64, 64, 64), (64, 64, 64), None)
    >>> block_shape(level)
    (256, 256, 256)
    """
    shape = list(level.shard_shape)
    while math.prod(shape) < FEWEST_BLOCK_VOXELS:
        growing = [axis for axis in range(3) if shape[axis] < level.shape[axis]]
        if not growing:
            break
        shape[min(growing, key=lambda axis: shape[axis])] *= 2
    return tuple(shape)


def read_classes(url: str, level: Level, box: Box) -> np.ndarray:
    """Read classes as uint8, whatever integers they are stored as.

    Raises
    ------
    ValueError
        When a value lies outside 0 to 255: objects rather than classes.
    """
    data = read_box(url, level, box)
    if data.dtype == np.uint8:
        return data
    low, high = int(data.min()), int(data.max())
    if low < 0 or high > UNANNOTATED:
        raise ValueError(
            f"values of classes lie between 0 and {UNANNOTATED}. {level.path} holds {low} to "
            f"{high}: are these objects rather than classes?"
        )
    return data.astype(np.uint8)


def absent_values(data: np.ndarray, known: Collection[int]) -> str:
    """Say which values of a box are in no class, for a message.

    >>> absent_values(np.array([0, 1, 7, 7], "uint8"), [0, 1])
    'the value 7, which is no class (2 voxels)'
    """
    values, counts = np.unique(data, return_counts=True)
    odd = [(int(v), int(n)) for v, n in zip(values, counts, strict=True) if v not in known]
    return ", ".join(f"the value {v}, which is no class ({n} voxels)" for v, n in odd[:5])
