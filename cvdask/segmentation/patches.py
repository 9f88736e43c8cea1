"""Which squares of which slices does a network learn from, and which of them judge it?

Annotations are label images in which most voxels may be 255, not annotated. The way from there to
a training set reads labels only, a slab or a slice at a time:

1. :func:`survey` counts, slice by slice, how often each label value occurs and where the annotated
   part lies.
2. :func:`tile` lays squares of one size over the annotated part of a slice. They never overlap,
   and lie at the same place in every slice of a sample that is annotated at the same place.
3. :func:`draw` takes ``n`` of them, spread over the slices; classes that are rare get their share.
4. :func:`regions` finds patches that show the same tissue: their squares overlap and their slices
   are near. :func:`split` puts each region wholly into one part, training, validation or test::

       z = 0    [A][B]      z = 1    [A][B]      z = 90   [C][D]
       regions  A A | B B | C | D       never A in training and A in validation

5. :func:`select` does all this and refuses, with the numbers, what cannot be learned from.

:func:`read_patch` then reads the pixels of one patch from the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from cvdask.volume.boxes import Box, Grid
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.objects import redact
from cvdask.volume.store import Volume, open_volume

# Patches whose squares overlap show the same tissue when their slices are nearer than this.
NEAR_SLICES = 5
# A patch with less annotated than this is not worth a place; a scribble passes.
LEAST_PATCH_PIXELS = 64
# Below this in all training patches together nothing is learned that holds elsewhere.
LEAST_TRAINING_PIXELS = 4096
# Halving of the patches for more regions ends here: smaller ones show no context.
LEAST_HALVED_SIZE = 128
# Training, validation, test: the paper's 20, 5 and 5 of 30 patches.
SHARES = (4.0, 1.0, 1.0)
# Of the slices of a densely annotated stack this many per wanted patch are looked at.
SLICES_PER_PATCH = 4

SplitBy = Literal["region", "slice"]


@dataclass(frozen=True)
class Patch:
    """A square of one slice of one sample.

    Parameters
    ----------
    volume_url : str
        Normalised location of the sample.
    labels : str
        Name of the label image with the annotations.
    z, y, x : int
        Slice, and the square's first row and column.
    size : int
        Voxels along y and x.
    """

    volume_url: str
    labels: str
    z: int
    y: int
    x: int
    size: int

    @property
    def box(self) -> Box:
        """The patch as a box of the finest level, one slice thick."""
        start = (self.z, self.y, self.x)
        return Box(start, (self.z + 1, self.y + self.size, self.x + self.size))


@dataclass(frozen=True)
class Candidate:
    """A patch and how many voxels of it carry each label value.

    Parameters
    ----------
    patch : Patch
    counts : mapping of int to int
        Voxels by label value, without those that are not annotated.
    """

    patch: Patch
    counts: Mapping[int, int]

    @property
    def n_annotated(self) -> int:
        """Voxels that carry any label, background included."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class SliceSurvey:
    """What is annotated in one slice.

    Parameters
    ----------
    z : int
    box : Box
        Rows and columns (y, x) that hold all annotated voxels.
    counts : mapping of int to int
        Voxels by label value, without those that are not annotated.
    """

    z: int
    box: Box
    counts: Mapping[int, int]


@dataclass(frozen=True)
class Fold:
    """Numbers of the patches of a selection that train, validate and test one network.

    Parameters
    ----------
    train, validation, test : tuple of int
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...] = ()


@dataclass(frozen=True)
class Selection:
    """The patches of a training, and how they are divided.

    Parameters
    ----------
    candidates : tuple of Candidate
        In the order in which folds number them.
    classes : mapping of int to str
        Label values to be learned, ascending, and their names. All other values are background.
    folds : tuple of Fold
    size : int
        Voxels of a patch along y and x.
    voxel_size_nm : tuple of float
        Shared by all samples.
    image_dtype : str
        Shared by all samples.
    notes : tuple of str
        What was decided and the reader should know.
    """

    candidates: tuple[Candidate, ...]
    classes: Mapping[int, str]
    folds: tuple[Fold, ...]
    size: int
    voxel_size_nm: tuple[float, float, float]
    image_dtype: str
    notes: tuple[str, ...] = ()

    def only(self, name: str) -> Selection:
        """Return the same patches, divided alike, with one class to learn.

        Raises
        ------
        ValueError
            When no class has that name.
        """
        classes = {value: known for value, known in self.classes.items() if known == name}
        if not classes:
            raise ValueError(
                f"a class is chosen by one of the names {list(self.classes.values())}. "
                f"Received: {name!r}"
            )
        return replace(self, classes=classes)

    def as_dict(self) -> dict[str, Any]:
        """Return the selection as JSON-ready values."""
        return {
            "classes": {str(value): name for value, name in self.classes.items()},
            "patch_size": self.size,
            "patches": [
                {
                    **asdict(candidate.patch),
                    "volume_url": redact(candidate.patch.volume_url),
                    "counts": {str(value): n for value, n in candidate.counts.items()},
                }
                for candidate in self.candidates
            ],
            "folds": [
                {key: list(numbers) for key, numbers in asdict(fold).items()} for fold in self.folds
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{len(self.candidates)} patches of {self.size} × {self.size} voxels"]
        for number, fold in enumerate(self.folds, 1):
            lines.append(
                f"fold {number}: {len(fold.train)} to train, {len(fold.validation)} to validate, "
                f"{len(fold.test)} to test"
            )
        n_annotated = sum(candidate.n_annotated for candidate in self.candidates)
        for value, name in self.classes.items():
            n_voxels = sum(candidate.counts.get(value, 0) for candidate in self.candidates)
            lines.append(f"{name}: {n_voxels / n_annotated:.2%} of {n_annotated} annotated voxels")
        return "\n".join((*lines, *self.notes))


# ---------------------------------------------------------------------------------------------
# All in one


def select(
    volumes: Sequence[Volume],
    labels: str,
    *,
    n_patches: int | None = 30,
    size: int = 512,
    stride: int = 1,
    folds: int = 1,
    split_by: SplitBy = "region",
    z_range: tuple[int, int] | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    balanced: bool = True,
    seed: int = 0,
) -> Selection:
    """Choose the patches of a training and divide them; reads labels, no image.

    Parameters
    ----------
    volumes : sequence of Volume
        Images, each with a label image of the given name.
    labels : str
        Name of the label image with the annotations.
    n_patches : int, optional
        How many are wanted; None takes all that fit. Fewer where fewer fit, which is noted.
    size : int
        Largest size of a patch. Smaller where a slice is smaller, and halved (not below 128) where
        it leaves fewer regions than the parts they are to be divided into.
    stride : int
        Sizes are multiples of this: see :func:`cvdask.segmentation.unet.stride`.
    folds : int
        1 divides once, 20 : 5 : 5. More make that many parts; each validates once.
    split_by : {"region", "slice"}
        What stays together: patches of one :func:`region <regions>`, or all of one slice, for
        stacks whose slices are independent images.
    z_range : tuple of int, optional
        First slice and one past the last that are looked at.
    classes : sequence of str, or mapping of int to str, optional
        Names of the classes to learn, of those the label image names; the others become
        background. A mapping names values itself. By default every named class that occurs.
    balanced : bool
        See :func:`draw`.
    seed : int

    Raises
    ------
    ValueError
        When labels do not fit their image; a value has no name; samples disagree; a class does not
        occur in the training patches; a part has no foreground; too little is annotated.
    """
    pairs = [(volume, open_annotations(volume, labels)) for volume in volumes]
    voxel_size_nm, image_dtype = _shared(volumes)
    surveys = [survey(annotated, z_range) for _, annotated in pairs]
    found = {value for slices in surveys for one in slices for value in one.counts}
    learned = choose_classes([annotated for _, annotated in pairs], found, classes)
    n_parts = folds if folds > 1 else len(SHARES)
    largest = fit_size(size, stride, [volume.shape for volume in volumes])
    notes = [] if largest == size else [f"patches of {largest}: slices hold none of {size}"]
    absent = [name for value, name in learned.items() if value not in found]
    if classes is None and 0 < len(absent) < len(learned):
        # Nobody has asked for them: the label image has the name of more than it shows.
        learned = {value: name for value, name in learned.items() if value in found}
        notes.append(f"not learned, since no annotated voxel shows them: {', '.join(absent)}")

    while True:
        pool = [
            candidate
            for (_, annotated), slices in zip(pairs, surveys, strict=True)
            for candidate in _candidates(annotated, slices, largest, n_patches, learned, seed)
        ]
        wanted = len(pool) if n_patches is None else n_patches
        drawn = draw(pool, wanted, tuple(learned), balanced=balanced, seed=seed)
        groups = regions([candidate.patch for candidate in drawn], by=split_by)
        smaller = largest // 2 // stride * stride
        # Slices stay whole whatever the size of the patches.
        if len(set(groups)) >= n_parts or split_by == "slice" or smaller < LEAST_HALVED_SIZE:
            break
        notes.append(
            f"patches of {smaller} instead of {largest}: those show {len(set(groups))} regions, "
            f"{n_parts} are needed to train and to validate on different tissue"
        )
        largest = smaller
    if n_patches is not None and len(drawn) < n_patches:
        notes.append(
            f"{len(drawn)} patches instead of {n_patches}: no more of {largest} × {largest} voxels "
            f"fit without overlap"
        )
    if len(set(groups)) < max(2, folds):
        what = "slices" if split_by == "slice" else "regions"
        raise ValueError(
            f"training needs patches of at least {max(2, folds)} different {what}, one part to "
            f"learn from and one to judge by. Received: {len(drawn)} patches of {largest} voxels "
            f"in {len(set(groups))}. Annotate another slice, choose a smaller patch size or fewer "
            f"folds"
        )
    divided = _folds(drawn, groups, folds, tuple(learned), seed)
    if folds == 1 and not divided[0].test:
        notes.append("no patches to test on: two regions are divided into training and validation")
    for number, fold in enumerate(divided, 1):
        _check_fold(f"fold {number}" if folds > 1 else "the split", fold, drawn, learned)
    return Selection(
        tuple(drawn), learned, tuple(divided), largest, voxel_size_nm, image_dtype, tuple(notes)
    )


def _folds(
    drawn: Sequence[Candidate],
    groups: Sequence[int],
    folds: int,
    values: Sequence[int],
    seed: int,
) -> list[Fold]:
    if folds == 1:
        train, validation, test = split(drawn, groups, SHARES, values, seed=seed)
        return [Fold(train, validation, test)]
    parts = split(drawn, groups, (1.0,) * folds, values, seed=seed)
    return [
        Fold(tuple(sorted(i for other in parts if other is not part for i in other)), part)
        for part in parts
    ]


def _check_fold(
    where: str, fold: Fold, candidates: Sequence[Candidate], classes: Mapping[int, str]
) -> None:
    """Refuse a fold that cannot teach or cannot judge."""
    n_annotated = sum(candidates[i].n_annotated for i in fold.train)
    if n_annotated < LEAST_TRAINING_PIXELS:
        raise ValueError(
            f"{where} needs at least {LEAST_TRAINING_PIXELS} annotated voxels to train on. "
            f"Received: {n_annotated} in {len(fold.train)} patches. Annotate more"
        )
    for value, name in classes.items():
        if not any(candidates[i].counts.get(value) for i in fold.train):
            n_elsewhere = sum(candidate.counts.get(value, 0) for candidate in candidates)
            raise ValueError(
                f"every class must occur in the training patches. Received: class {value} "
                f"({name}) has 0 voxels in the {len(fold.train)} training patches of {where}, "
                f"{n_elsewhere} in the others. Annotate more of it, or leave it out of the classes"
            )
    if not any(candidates[i].counts.get(value) for i in fold.validation for value in classes):
        raise ValueError(
            f"the validation patches need foreground to judge by. Received: {where}, "
            f"{len(fold.validation)} patches with 0 voxels of "
            f"{', '.join(classes.values())}. Annotate more, or choose fewer folds"
        )


def _shared(volumes: Sequence[Volume]) -> tuple[tuple[float, float, float], str]:
    """Return the voxel size and type that all samples share."""
    if not volumes:
        raise ValueError("training needs at least one volume. Received: none")
    first = volumes[0]
    for volume in volumes:
        if volume.voxel_size_nm is None:
            raise ValueError(
                f"a network records the voxel size it was trained for; {redact(volume.url)} "
                f"states none. Ingest it again with --voxel-nm"
            )
        assert first.voxel_size_nm is not None
        if not np.allclose(volume.voxel_size_nm, first.voxel_size_nm, rtol=0.01):
            raise ValueError(
                f"all volumes of a training need one voxel size. Received: "
                f"{first.voxel_size_nm} nm at {redact(first.url)}, {volume.voxel_size_nm} nm at "
                f"{redact(volume.url)}. Resample one of them"
            )
        if volume.dtype != first.dtype:
            raise ValueError(
                f"all volumes of a training need one type, since they share one normalisation. "
                f"Received: {first.dtype} at {redact(first.url)}, {volume.dtype} at "
                f"{redact(volume.url)}. Rescale one of them when ingesting"
            )
    assert first.voxel_size_nm is not None
    return first.voxel_size_nm, first.dtype.name


# ---------------------------------------------------------------------------------------------
# What is annotated


def open_annotations(volume: Volume, labels: str) -> Volume:
    """Open the annotations of an image.

    Raises
    ------
    ValueError
        When there are none of that name, or their shape or voxel size is not the image's.
    """
    annotated = volume.label(labels)
    for what, ours, theirs in (
        ("shape", volume.shape, annotated.shape),
        ("voxel size in nm", volume.voxel_size_nm, annotated.voxel_size_nm),
    ):
        if ours is None or theirs is None:
            continue
        if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=1e-6):
            raise ValueError(
                f"annotations need the {what} of their image (z, y, x). Received at "
                f"{redact(volume.url)}: image {ours}, labels/{labels} {theirs}. Annotate the "
                f"image itself, or ingest the labels again with the right {what}"
            )
    return annotated


def survey(annotated: Volume, z_range: tuple[int, int] | None = None) -> list[SliceSurvey]:
    """Find the annotated slices of a label image.

    Reads every voxel of the range once, in blocks one chunk deep and one shard wide.

    Parameters
    ----------
    annotated : Volume
        A label image; 255 means not annotated.
    z_range : tuple of int, optional
        First slice and one past the last.

    Returns
    -------
    list of SliceSurvey
        Only slices with annotated voxels, by z.

    Raises
    ------
    ValueError
        When the range leaves the volume.
    """
    level = annotated.levels[0]
    first, last = z_range if z_range is not None else (0, level.shape[0])
    if not 0 <= first < last <= level.shape[0]:
        raise ValueError(
            f"a range of slices must hold at least one and lie inside the volume. Received along "
            f"z: {first}:{last}, the volume has {level.shape[0]} slices"
        )
    roi = Box((first, 0, 0), (last, *level.shape[1:]))
    blocks = Grid(level.shape, (level.chunk_shape[0], *level.shard_shape[1:]), roi=roi)
    counts: dict[int, dict[int, int]] = {}
    boxes: dict[int, Box] = {}
    for block in blocks:
        box = block.write.intersect(roi)
        for z, plane in enumerate(annotated.read(box), box.start[0]):
            known = plane != UNANNOTATED
            if not known.any():
                continue
            for value, n in _count(plane):
                counts.setdefault(z, {})
                counts[z][value] = counts[z].get(value, 0) + n
            part = _bounds(known).shift(box.start[1:])
            boxes[z] = _hull(boxes[z], part) if z in boxes else part
    return [SliceSurvey(z, boxes[z], counts[z]) for z in sorted(counts)]


def _count(labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the label values of an array, ascending, without 255, and how often they occur."""
    if labels.dtype == np.uint8:
        numbers = np.bincount(labels.ravel(), minlength=1)
        values = np.flatnonzero(numbers)
        numbers = numbers[values]
    else:
        values, numbers = np.unique(labels, return_counts=True)
    for value, n in zip(values, numbers, strict=True):
        if value != UNANNOTATED:
            yield int(value), int(n)


def _bounds(known: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    return Box((rows[0], columns[0]), (rows[-1] + 1, columns[-1] + 1))


def _hull(one: Box, other: Box) -> Box:
    start = tuple(min(a, b) for a, b in zip(one.start, other.start, strict=True))
    return Box(start, tuple(max(a, b) for a, b in zip(one.stop, other.stop, strict=True)))


def choose_classes(
    annotated: Sequence[Volume],
    found: set[int],
    classes: Sequence[str] | Mapping[int, str] | None = None,
) -> dict[int, str]:
    """Name the label values to be learned, ascending.

    Parameters
    ----------
    annotated : sequence of Volume
        Label images; what they call a value must agree.
    found : set of int
        Values that occur in the annotations.
    classes : sequence of str, or mapping of int to str, optional
        See :func:`select`.

    Raises
    ------
    ValueError
        When a value occurs that has no name, a name is unknown, two samples call a value
        differently, or there is nothing but background.
    """
    names: dict[int, str] = {}
    sources = [classes] if isinstance(classes, Mapping) else [one.classes for one in annotated]
    for source in sources:
        for value, name in source.items():
            if names.setdefault(int(value), name) != name:
                raise ValueError(
                    f"a label value must mean one class in all volumes. Received: {value} is "
                    f"{names[int(value)]!r} and {name!r}"
                )
    names = {value: names[value] for value in sorted(names) if value not in (0, UNANNOTATED)}
    nameless = sorted(found - set(names) - {0, UNANNOTATED})
    if nameless:
        raise ValueError(
            f"every label value needs a class. Received: {len(nameless)} without, such as "
            f"{nameless[:9]}; the classes are {names or 'not named'}. Name them "
            f"(classes={{{nameless[0]}: 'name'}}), or mark them {UNANNOTATED}, not annotated"
        )
    if min(names, default=1) < 0 or max(names, default=1) > UNANNOTATED:
        raise ValueError(
            f"label values of classes lie between 1 and {UNANNOTATED - 1}. Received: {names}. "
            f"Label images of single objects teach no class: ingest one that numbers classes"
        )
    if len(set(names.values())) != len(names):
        raise ValueError(f"every class has a name of its own. Received: {names}")
    if classes is not None and not isinstance(classes, Mapping):
        unknown = [name for name in classes if name not in names.values()]
        if unknown or not classes:
            raise ValueError(
                f"classes are chosen by the names {list(names.values())}. Received: {list(classes)}"
            )
        names = {value: name for value, name in names.items() if name in classes}
    if not names:
        raise ValueError(
            "training needs at least one class beside background. Received: annotations without "
            "any. Annotate the structures to be found"
        )
    return names


# ---------------------------------------------------------------------------------------------
# Squares


def fit_size(size: int, stride: int, shapes: Sequence[Sequence[int]]) -> int:
    """Return the largest patch size, at most ``size``, that fits all slices.

    Raises
    ------
    ValueError
        When not even one stride fits.

    Examples
    --------
    >>> fit_size(512, 16, [(20, 768, 1024), (1, 500, 600)])
    496
    """
    extent = min(min(shape[1:]) for shape in shapes)
    fitted = min(size, extent) // stride * stride
    if fitted < 1:
        raise ValueError(
            f"a patch must hold at least the network's stride of {stride} voxels. Received: a "
            f"patch size of {size}, slices of at least {extent} voxels. Choose a network of less "
            f"depth, or larger patches"
        )
    return fitted


def tile(box: Box, size: int, plane_shape: Sequence[int], jitter: np.ndarray) -> list[Box]:
    """Lay squares of one size over a box of rows and columns; they never overlap.

    As many as fit into the box, at least one; a box smaller than a square gets one around it,
    moved inside the plane.

    Parameters
    ----------
    box : Box
        Rows and columns (y, x).
    size : int
        At most the extents of the plane.
    plane_shape : (Y, X)
    jitter : (2,) of float in 0–1
        Where the squares lie in the space that is left over.

    Examples
    --------
    >>> for square in tile(Box((0, 0), (10, 4)), 4, (10, 10), np.array([0.5, 0.5])):
    ...     print(square)
    1:5,0:4
    5:9,0:4
    """
    starts = []
    for axis, (low, high) in enumerate(zip(box.start, box.stop, strict=True)):
        n = max(1, (high - low) // size)
        slack = high - low - n * size
        first = low + (int(jitter[axis] * slack) if slack >= 0 else slack // 2)
        first = min(max(0, first), plane_shape[axis] - n * size)
        starts.append([first + i * size for i in range(n)])
    return [Box((y, x), (y + size, x + size)) for y in starts[0] for x in starts[1]]


def _candidates(
    annotated: Volume,
    slices: Sequence[SliceSurvey],
    size: int,
    n_patches: int | None,
    classes: Mapping[int, str],
    seed: int,
) -> list[Candidate]:
    """Count the label values in every square of the slices that are looked at."""
    # One jitter for the sample: the squares of neighbouring slices lie in columns, which makes
    # small regions. Moved slice by slice they would overlap in chains, and all be one region.
    jitter = np.random.default_rng(seed).random(2)
    found = []
    for one in _thin_out(slices, n_patches, classes):
        box = Box((one.z, *one.box.start), (one.z + 1, *one.box.stop))
        squares = tile(one.box, size, annotated.shape[1:], jitter)
        for square in squares:
            box = _hull(box, Box((one.z, *square.start), (one.z + 1, *square.stop)))
        plane = annotated.read(box)[0]
        for square in squares:
            counts = dict(_count(plane[square.shift([-v for v in box.start[1:]]).slices]))
            y, x = square.start
            patch = Patch(annotated.url, annotated.name, one.z, y, x, size)
            if sum(counts.values()) >= LEAST_PATCH_PIXELS:
                found.append(Candidate(patch, counts))
    return found


def _thin_out(
    slices: Sequence[SliceSurvey], n_patches: int | None, classes: Mapping[int, str]
) -> list[SliceSurvey]:
    """Leave slices of a dense stack out: evenly spaced ones stay, and those rich in each class."""
    most = len(slices) if n_patches is None else SLICES_PER_PATCH * n_patches
    if len(slices) <= most:
        return list(slices)
    assert n_patches is not None
    kept = {int(i) for i in np.linspace(0, len(slices) - 1, most)}
    for value in classes:
        richest = sorted(range(len(slices)), key=lambda i: -slices[i].counts.get(value, 0))
        kept |= set(richest[:n_patches])
    return [slices[i] for i in sorted(kept)]


def draw(
    candidates: Sequence[Candidate],
    n: int,
    values: Sequence[int],
    *,
    balanced: bool = True,
    seed: int = 0,
) -> list[Candidate]:
    """Draw patches, spread over the slices: no slice gives a second before all have given one.

    Parameters
    ----------
    candidates : sequence of Candidate
    n : int
        How many; fewer where there are fewer.
    values : sequence of int
        Label values of the classes.
    balanced : bool
        Each class, rarest first, gets ``n / (classes + 1)`` patches that show it well (a tenth at
        least of what the richest shows), as far as there are any; the rest is drawn from all.
    seed : int

    Returns
    -------
    list of Candidate
        In the order of sample, slice, row and column.

    Raises
    ------
    ValueError
        When there is no candidate, or n is below 2.
    """
    if n < 2:
        raise ValueError(f"training needs at least 2 patches, one to judge by. Received: {n}")
    if not candidates:
        raise ValueError(
            f"training needs patches with at least {LEAST_PATCH_PIXELS} annotated voxels. "
            f"Received: none in the slices that were looked at. Annotate more, or look at more "
            f"slices (z_range)"
        )
    rng = np.random.default_rng(seed)
    per_slice: dict[tuple[str, int], int] = {}
    turn = {}
    for i in rng.permutation(len(candidates)):
        patch = candidates[i].patch
        key = (patch.volume_url, patch.z)
        turn[int(i)] = per_slice[key] = per_slice.get(key, -1) + 1
    order = sorted(turn, key=lambda i: turn[i])  # stable, so within a turn the order is random

    chosen: dict[int, None] = {}
    totals = {value: sum(one.counts.get(value, 0) for one in candidates) for value in values}
    share = math.ceil(n / (len(values) + 1))
    for value in sorted(values, key=lambda value: totals[value]) if balanced else ():
        richest = max(one.counts.get(value, 0) for one in candidates)
        showing = [i for i in order if candidates[i].counts.get(value, 0) > richest / 10]
        n_had = sum(i in chosen for i in showing)
        for i in [i for i in showing if i not in chosen][: max(0, share - n_had)]:
            chosen[i] = None
    picked = [*chosen, *(i for i in order if i not in chosen)][:n]
    return [candidates[i] for i in sorted(picked, key=lambda i: _position(candidates[i].patch))]


def _position(patch: Patch) -> tuple[str, int, int, int]:
    return patch.volume_url, patch.z, patch.y, patch.x


# ---------------------------------------------------------------------------------------------
# Parts


def regions(
    patches: Sequence[Patch], *, by: SplitBy = "region", near_slices: int = NEAR_SLICES
) -> list[int]:
    """Number the image region of each patch: patches of one region show the same tissue.

    Two patches of a sample are of one region when their squares overlap and their slices are at
    most ``near_slices`` apart, or when a chain of such pairs links them.

    Parameters
    ----------
    patches : sequence of Patch
    by : {"region", "slice"}
        ``slice``: instead, all patches of a slice are one region, and no others.
    near_slices : int
        Slices, at most.

    Returns
    -------
    list of int
        Numbers from 0 in the order of first appearance.

    Examples
    --------
    >>> at = lambda z, x: Patch("a", "annotations", z, 0, x, 8)
    >>> regions([at(0, 0), at(0, 8), at(3, 4), at(40, 0)])
    [0, 0, 0, 1]
    >>> regions([at(0, 0), at(0, 8), at(3, 4), at(40, 0)], by="slice")
    [0, 0, 1, 2]
    """
    parent = list(range(len(patches)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, one in enumerate(patches):
        for j, other in enumerate(patches[:i]):
            if _same_tissue(one, other, by, near_slices):
                parent[max(root(i), root(j))] = min(root(i), root(j))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(patches))]


def _same_tissue(one: Patch, other: Patch, by: SplitBy, near_slices: int) -> bool:
    if one.volume_url != other.volume_url:
        return False
    if by == "slice":
        return one.z == other.z
    flat = [Box(patch.box.start[1:], patch.box.stop[1:]) for patch in (one, other)]
    return abs(one.z - other.z) <= near_slices and flat[0].intersect(flat[1]).size > 0


def split(
    candidates: Sequence[Candidate],
    groups: Sequence[int],
    shares: Sequence[float],
    values: Sequence[int],
    *,
    seed: int = 0,
) -> list[tuple[int, ...]]:
    """Divide patches into parts, groups undivided, so that each part gets its share of each class.

    Groups are dealt out largest first. Each goes where it disturbs the shares of patches and of
    the classes' voxels least, in the sense of least squares; equal groups are therefore divided as
    seats are by the method of Sainte-Laguë. No part stays empty while there are enough groups.

    Parameters
    ----------
    candidates : sequence of Candidate
    groups : sequence of int
        Group of each candidate.
    shares : sequence of float
        Of the parts, in any unit.
    values : sequence of int
        Label values of the classes.
    seed : int
        Decides between groups that are alike.

    Returns
    -------
    list of tuple of int
        Numbers of the candidates in each part, ascending.
    """
    # (G, 1 + C): share of the group in all patches, and in all voxels of each class
    features = np.zeros((max(groups) + 1, 1 + len(values)))
    for candidate, group in zip(candidates, groups, strict=True):
        features[group] += [1, *(candidate.counts.get(value, 0) for value in values)]
    features /= np.maximum(features.sum(0), 1)
    shuffled = np.random.default_rng(seed).permutation(len(features))
    order = sorted(shuffled, key=lambda group: -features[group].sum())

    filled = np.zeros((len(shares), features.shape[1]))
    members: list[list[int]] = [[] for _ in shares]
    for n_left, group in zip(range(len(order), 0, -1), order, strict=True):
        empty = [part for part in range(len(shares)) if not members[part]]
        open_to = empty[:n_left] if n_left <= len(empty) else range(len(shares))
        costs = {
            part: float(((2 * filled[part] + features[group]) * features[group]).sum())
            / shares[part]
            for part in open_to
        }
        part = min(costs, key=lambda part: costs[part])
        filled[part] += features[group]
        members[part].append(int(group))
    return [tuple(i for i, group in enumerate(groups) if group in part) for part in members]


# ---------------------------------------------------------------------------------------------
# Pixels


def read_patch(patch: Patch, values: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Read the image and the target of a patch from the store.

    Parameters
    ----------
    patch : Patch
    values : sequence of int
        Label values of the classes, ascending.

    Returns
    -------
    image : (size, size) of the volume's type
    target : (size, size) uint8
        The network's output channel: 0 background, k the k-th value, 255 not annotated. Values
        that are not among the classes are background.
    """
    image = open_volume(patch.volume_url).read(patch.box)[0]
    labels = open_volume(patch.volume_url, labels=patch.labels).read(patch.box)[0]
    target = np.zeros(labels.shape, np.uint8)
    for channel, value in enumerate(values, 1):
        target[labels == value] = channel
    target[labels == UNANNOTATED] = UNANNOTATED
    return image, target
