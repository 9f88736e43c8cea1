"""Which label slices does a network learn from, and how do they come out of the store in time?

Nothing is copied: slices are cut out of the shards when they are wanted, and shards are decoded
ahead of the training.

1. :func:`open_slices` opens the volumes, leaves out holes and slices that are not what they seem,
   and says so; it decides how a slice becomes a square of ``resolution`` pixels::

       slice 700 × 900          largest centred square       cells of 2 × 2 voxels, each the class
       resolution 256, crop     of whole cells, 512 × 512    that most of its voxels have: 256²

2. The stack is divided into *slabs*, layers of whole shards. A slab is decoded once, and held as
   squares of channel numbers: a byte for each pixel.
3. :meth:`SliceSet.batch` is a pure function of seed, step and size. Where all slabs fit the cache,
   a pass is one shuffle of all slices. Where they do not, slabs are shuffled, taken together in
   *windows* of half the cache, and slices shuffled within a window, while the next is decoded::

       slabs      3 0 | 4 1 | 2 5         shuffled, two to a window
       slices     …   | … … | …           shuffled within a window

4. :meth:`SliceSet.batches` makes batches in a thread, some ahead of whoever takes them.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cvdask.engine.cluster import machine_limits
from cvdask.synthesis.majority import ODD, vote
from cvdask.synthesis.slice_sources import (
    Crop,
    Slab,
    Source,
    centred,
    check_options,
    choose_channels,
    choose_geometry,
    cut_tiles,
    describe_source,
    divide_stacks,
    label_images,
    left_out_notes,
)
from cvdask.volume.boxes import Box
from cvdask.volume.classes import absent_values, named_values, read_classes
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.ensemble import Ensemble
from cvdask.volume.objects import redact
from cvdask.volume.store import Volume, volume_digest

# Below this a network may well know every slice by heart.
FEW_SLICES = 50
# Batches that are made ahead.
AHEAD = 4
DEFAULT_CACHE_BYTES = 2**30
# Random squares of examples that are cut out at a time.
EXAMPLES = 64
# Streams of chance of one seed: they must not repeat one another.
ORDER, DRAW = 1, 2


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Parameters
    ----------
    channels : (N, S, R, R) uint8
        Number of each pixel's channel, of N samples of S slices.
    place : (N, S) float32
        Where each slice lies in z, 0 to 1.
    index : (N, S) int64
        Number of each slice in its :class:`SliceSet`.
    """

    channels: np.ndarray
    place: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class _Window:
    """Slabs that are in memory together, and the slices that are drawn from them in this order."""

    slabs: tuple[int, ...]
    order: np.ndarray


def open_slices(
    volumes: Volume | str | Ensemble | Sequence[Volume | str],
    labels: str = "classes",
    *,
    classes: str | int | Sequence[str | int] | None = None,
    resolution: int | None = None,
    crop: Crop = "centre",
    reduction: int | None = None,
    slices_per_sample: int = 1,
    max_span: int = 32,
    shuffle: bool = True,
    seed: int = 0,
    z_range: tuple[int, int] | None = None,
    exclude: Sequence[int] | Mapping[int, Sequence[int]] = (),
    keep_noisy: bool = False,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> SliceSet:
    """Open the label slices of one or several volumes. Reads metadata only.

    Parameters
    ----------
    volumes : Volume, str, Ensemble or sequence of them
        Samples. Several must agree in classes and voxel size.
    labels : str
        Label image of classes.
    classes : str, int or sequence, optional
        Names or values of the classes that get a channel; all others become background. By
        default every named class.
    resolution : int, optional
        Pixels of a square's side, a power of two from 4; by default the largest that fits, at most
        1024.
    crop : {"centre", "random"}
        The square of ``resolution * reduction`` voxels is the centred one, or one at a place that
        is drawn for each sample.
    reduction : int, optional
        Voxels of a cell's side. A cell becomes one pixel: the class that most of its voxels have,
        the smallest of equals. By default as many as the slice allows for centred squares, 1 for
        random ones.
    slices_per_sample : int
        1, or as many as a network looks at together: ascending z, of one volume.
    max_span : int
        Slices from the first to the last of a sample, at most.
    shuffle : bool
        False walks through the stacks in order; samples of several slices are then neighbours.
    seed : int
        Of order, samples and places of crops.
    z_range : (int, int), optional
        Only slices ``first <= z < stop`` of each volume.
    exclude : sequence of int, or mapping of int to sequence of int
        Further slices to leave out: of every volume, or by number of the volume.
    keep_noisy : bool
        Keep slices that ingest found blank or unlike their neighbours. Missing and damaged ones
        are left out always: they are holes, or were made up.
    cache_bytes : int
        Memory for decoded slices, at most. Another value changes the order where the set does not
        fit. Decoding takes the voxels of one shard for each thread besides.

    Returns
    -------
    SliceSet

    Raises
    ------
    ValueError
        When no slice is left, a slice is too small, volumes do not agree, classes have no names,
        or an option breaks its rule.

    Warns
    -----
    UserWarning
        When slices were left out, or there are fewer than 50.
    """
    check_options(resolution, reduction, crop, slices_per_sample, max_span, cache_bytes)
    images = label_images(volumes, labels)
    values, names = choose_channels(images, classes)
    side, factor = choose_geometry(images, resolution, reduction, crop)
    sources = [
        describe_source(image, number, side * factor, crop, z_range, exclude, keep_noisy)
        for number, image in enumerate(images)
    ]
    n_slices = sum(len(source.z) for source in sources)
    notes = [note for source in sources for note in left_out_notes(source)]
    if n_slices == 0:
        raise ValueError(
            f"no slice is left of {', '.join(redact(image.url) for image in images)}: "
            f"{'; '.join(notes) or f'z_range {z_range} leaves none'}"
        )
    if n_slices < FEW_SLICES:
        notes.append(
            f"{n_slices} slices are few: a network may learn them by heart. The memorisation test "
            f"of the distance tells"
        )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return SliceSet(
        sources,
        values,
        names,
        resolution=side,
        reduction=factor,
        crop=crop,
        slices_per_sample=slices_per_sample,
        max_span=max_span,
        shuffle=shuffle,
        seed=seed,
        cache_bytes=cache_bytes,
        notes=tuple(notes),
    )


class SliceSet:
    """Label slices that are read when they are wanted; made by :func:`open_slices`.

    Attributes
    ----------
    values, names : tuple
        Label value and name of each channel, background first.
    resolution : int
        Pixels of a square's side.
    reduction : int
        Voxels of a pixel's side.
    slices_per_sample : int
    seed : int
    voxel_size_nm : tuple of float
        z, y, x of the squares: reduced.
    colors : mapping of int to str
        ``#rrggbb`` of each label value, where the label image has them.
    depth : int
        Slices that places 0 to 1 span: those of the deepest volume. Every volume starts at 0, so
        the same difference in place is the same distance in all of them.
    z, volume : (n_slices,) int64
        z of each slice in its volume, and the number of that volume.
    notes : tuple of str
        What was left out, and what else was warned of.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        values: tuple[int, ...],
        names: tuple[str, ...],
        *,
        resolution: int,
        reduction: int,
        crop: Crop,
        slices_per_sample: int,
        max_span: int,
        shuffle: bool,
        seed: int,
        cache_bytes: int,
        notes: tuple[str, ...],
    ) -> None:
        self.values, self.names = values, names
        self.resolution, self.reduction = resolution, reduction
        self.slices_per_sample = slices_per_sample
        self.seed = seed
        self.notes = notes
        self.colors = dict(sources[0].labels.colors)
        z_nm, y_nm, x_nm = sources[0].labels.voxel_size_nm or (1.0, 1.0, 1.0)
        self.voxel_size_nm = (z_nm, y_nm * reduction, x_nm * reduction)
        self.z = np.concatenate([source.z for source in sources])
        self.volume = np.repeat(np.arange(len(sources)), [len(source.z) for source in sources])
        self.depth = max(len(source.span) for source in sources)
        self._sources = tuple(sources)
        self._crop, self._shuffle, self._max_span = crop, shuffle, max_span
        self._cache_bytes = cache_bytes
        planes = [
            math.prod(source.plane.shape) if crop == "random" else resolution**2
            for source in sources
        ]
        self._slabs = divide_stacks(sources, planes, slices_per_sample, max_span, cache_bytes)
        self._slab_bytes = [slab.n_slices * planes[slab.source] for slab in self._slabs]
        self._slab_of = np.repeat(
            np.arange(len(self._slabs)), [slab.n_slices for slab in self._slabs]
        )
        self._fits = sum(self._slab_bytes) <= cache_bytes
        self._last_partner = self._partners()
        self._anchors = np.flatnonzero(
            self._last_partner - np.arange(self.n_slices) >= slices_per_sample - 1
        )
        if not len(self._anchors):
            raise ValueError(
                f"a sample takes {slices_per_sample} slices of one volume within {max_span}. The "
                f"{self.n_slices} slices that are left allow none"
            )
        table = np.full(256, ODD, np.uint8)
        known = [value for source in sources for value in named_values(source.labels)]
        table[known or range(UNANNOTATED)] = 0
        table[list(values)] = np.arange(len(values))
        self._table = table
        self._cache: _SlabCache | None = None
        self._lock = threading.Lock()
        self._windows = lru_cache(maxsize=4)(self._plan_pass)

    # What there is

    @property
    def n_slices(self) -> int:
        """Slices of all volumes together."""
        return len(self.z)

    @property
    def n_channels(self) -> int:
        """Classes and background."""
        return len(self.values)

    @property
    def n_samples(self) -> int:
        """Samples of one pass: slices that a sample can begin with."""
        return len(self._anchors)

    @property
    def place_step(self) -> float:
        """Difference in place of two slices that lie one behind the other."""
        return 1.0 / max(1, self.depth - 1)

    @property
    def fits_cache(self) -> bool:
        """Whether all slices are held in memory after the first pass."""
        return self._fits

    def describe(self) -> dict[str, Any]:
        """Return what was opened as JSON-ready values, for provenance."""
        return {
            "volumes": [
                {
                    "volume": redact(source.labels.url),
                    "labels": source.labels.name,
                    "digest": volume_digest(source.labels),
                    "n_slices": len(source.z),
                    "left_out": {why: list(z) for why, z in source.left_out.items()},
                    "square": str(source.plane),
                }
                for source in self._sources
            ],
            "classes": dict(zip(map(str, self.values), self.names, strict=True)),
            "resolution": self.resolution,
            "reduction": self.reduction,
            "crop": self._crop,
            "slices_per_sample": self.slices_per_sample,
            "max_span": self._max_span,
            "shuffle": self._shuffle,
            "seed": self.seed,
            "voxel_size_nm": list(self.voxel_size_nm),
            "depth": self.depth,
            # The order depends on it where not all slices fit.
            "cache_bytes": None if self._fits else self._cache_bytes,
        }

    def places(self, index: np.ndarray) -> np.ndarray:
        """Return the place of slices by number: float32, 0 to 1."""
        first = np.array([source.span.start for source in self._sources])
        depth = self.z[index] - first[self.volume[index]]
        return (depth * self.place_step).astype(np.float32)

    def spread(self, most: int) -> np.ndarray:
        """Return numbers of slices that are spread evenly over the set, ``most`` at most."""
        n = min(most, self.n_slices)
        return np.unique(np.linspace(0, self.n_slices - 1, n).round().astype(np.int64))

    # What is taken

    def examples(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return slices as a training sees them: spread over the set, or of random squares.

        Parameters
        ----------
        most : int
            Slices, at most; where samples are cropped at random, exactly.

        Returns
        -------
        slices : (n, R, R) uint8
            Channel numbers.
        index : (n,) int64
            Numbers of the slices.
        """
        if self._crop == "centre":
            index = self.spread(most)
            return self.read(index), index
        steps = [self.batch(step, EXAMPLES) for step in range(-(-most // EXAMPLES))]
        channels = np.concatenate([batch.channels[:, 0] for batch in steps])[:most]
        return channels, np.concatenate([batch.index[:, 0] for batch in steps])[:most]

    def batch(self, step: int, size: int) -> Batch:
        """Make the batch of one step: the same for the same seed, step and size.

        Parameters
        ----------
        step : int
            From 0; any order, though only steps that follow one another are read ahead.
        size : int
            Samples.

        Raises
        ------
        ValueError
            When a slice holds voxels that nobody has annotated, or values that are no class.
        """
        if step < 0 or size < 1:
            raise ValueError(
                f"steps count from 0, batches have at least 1 sample. Received: step {step}, "
                f"size {size}"
            )
        chance = np.random.default_rng([self.seed, DRAW, step])
        # Drawn before anything is read, so that it does not depend on windows.
        draws = chance.random((size, self.slices_per_sample + 1))
        index = np.empty((size, self.slices_per_sample), np.int64)
        shape = (size, self.slices_per_sample, self.resolution, self.resolution)
        channels = np.empty(shape, np.uint8)
        with self._lock:
            filled = 0
            while filled < size:
                number = step * size + filled
                window, following, within = self._window_at(number)
                taken = min(size - filled, len(window.order) - within)
                rows = slice(filled, filled + taken)
                anchors = window.order[within : within + taken]
                index[rows] = self._samples(anchors, draws[rows, 2:])
                self._keep(window, following)
                self._cut(index[rows], draws[rows, :2], channels[rows])
                filled += taken
        return Batch(channels, self.places(index), index)

    def batches(self, size: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches from a step on, without end, made ahead in a thread."""
        maker = ThreadPoolExecutor(1, "slices")
        waiting: deque[Future[Batch]] = deque()
        try:
            step = first_step
            while True:
                while len(waiting) < AHEAD:
                    waiting.append(maker.submit(self.batch, step, size))
                    step += 1
                yield waiting.popleft().result()
        finally:
            maker.shutdown(wait=True, cancel_futures=True)

    def read(self, index: Iterable[int]) -> np.ndarray:
        """Read slices by number: (n, R, R) uint8 channel numbers, in the order asked for.

        Centred squares also where samples are cropped at random. The cache is passed by.
        """
        wanted = np.asarray(list(index), np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.n_slices:
            raise ValueError(
                f"slices are numbered 0 to {self.n_slices - 1}. Received: {wanted.min()} to "
                f"{wanted.max()}"
            )
        out = np.empty((len(wanted), self.resolution, self.resolution), np.uint8)
        for number in np.unique(self._slab_of[wanted]):
            slab = self._slabs[number]
            source = self._sources[slab.source]
            square = centred(source.level, self.resolution * self.reduction)
            held = np.empty((slab.n_slices, self.resolution, self.resolution), np.uint8)
            mine = np.flatnonzero(self._slab_of[wanted] == number)
            used = np.zeros(slab.n_slices, bool)
            used[wanted[mine] - slab.first] = True
            wanted_z = self.z[slab.first + np.flatnonzero(used)]
            for tile in cut_tiles(source.level, wanted_z, square, self.reduction):
                self._decode(slab, square, self.reduction, tile, held, used)
            out[mine] = held[wanted[mine] - slab.first]
        return out

    def close(self) -> None:
        """Give the memory of the cache back; the next batch fills it again."""
        with self._lock:
            if self._cache is not None:
                self._cache.close()
                self._cache = None

    # Order

    def _partners(self) -> np.ndarray:
        """Return the last slice that a sample beginning with each slice may take."""
        numbers = np.arange(self.n_slices)
        last = numbers.copy()
        for volume in range(len(self._sources)):
            mine = np.flatnonzero(self.volume == volume)
            if len(mine):
                z = self.z[mine]
                last[mine] = mine[0] + np.searchsorted(z, z + self._max_span, "right") - 1
        if not self._fits:
            # Within one slab, so that a sample does not decode another for one slice.
            stops = np.array([slab.first + slab.n_slices - 1 for slab in self._slabs])
            last = np.minimum(last, stops[self._slab_of])
        return last

    def _plan_pass(self, number: int) -> tuple[list[_Window], np.ndarray]:
        """Order the anchors of one pass; return its windows and where each of them starts."""
        chance = np.random.default_rng([self.seed, ORDER, number])
        slabs = np.unique(self._slab_of[self._anchors])
        if self._shuffle:
            slabs = chance.permutation(slabs)
        budget = self._cache_bytes if self._fits else self._cache_bytes // 2
        groups: list[list[int]] = [[]]
        for slab in map(int, slabs):
            held = sum(self._slab_bytes[other] for other in groups[-1])
            if groups[-1] and held + self._slab_bytes[slab] > budget:
                groups.append([])
            groups[-1].append(slab)
        windows = []
        for group in groups:
            order = self._anchors[np.isin(self._slab_of[self._anchors], group)]
            windows.append(
                _Window(tuple(group), chance.permutation(order) if self._shuffle else order)
            )
        starts = np.cumsum([0, *(len(window.order) for window in windows)])
        return windows, starts

    def _window_at(self, number: int) -> tuple[_Window, _Window, int]:
        """Return the window of a sample, the one after it, and the sample's place in the first."""
        turn, position = divmod(number, self.n_samples)
        windows, starts = self._windows(turn)
        found = int(np.searchsorted(starts, position, "right")) - 1
        if found + 1 < len(windows):
            following = windows[found + 1]
        else:
            following = windows[found] if self._fits else self._windows(turn + 1)[0][0]
        return windows[found], following, position - int(starts[found])

    def _samples(self, anchors: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Choose the slices that go with each anchor: (N, S) numbers, ascending.

        In order, the next ones. Shuffled, a distance is drawn first and then, between the two
        ends, the others: near and far pairs are equally frequent.
        """
        n_more = self.slices_per_sample - 1
        if n_more == 0 or not self._shuffle:
            return anchors[:, None] + np.arange(n_more + 1)
        room = self._last_partner[anchors] - anchors
        span = n_more + np.floor(draws[:, 0] * (room - n_more + 1)).astype(np.int64)
        index = np.empty((len(anchors), n_more + 1), np.int64)
        index[:, 0], index[:, -1] = anchors, anchors + span
        for k in range(1, n_more):
            low = index[:, k - 1] + 1
            choices = index[:, -1] - (n_more - 1 - k) - low
            index[:, k] = low + np.floor(draws[:, k] * choices).astype(np.int64)
        return index

    # Memory

    def _keep(self, window: _Window, following: _Window) -> None:
        if self._cache is None:
            self._cache = _SlabCache(self._load)
        self._cache.keep(window.slabs, following.slabs)

    def _load(self, pool: ThreadPoolExecutor, number: int) -> _HeldSlab:
        """Start decoding a slab, tile by tile."""
        slab = self._slabs[number]
        source = self._sources[slab.source]
        factor = 1 if self._crop == "random" else self.reduction
        y, x = (extent // factor for extent in source.plane.shape)
        held = np.empty((slab.n_slices, y, x), np.uint8)
        used = np.ones(slab.n_slices, bool)
        z = self.z[slab.first : slab.first + slab.n_slices]
        return _HeldSlab(
            held,
            [
                pool.submit(self._decode, slab, source.plane, factor, tile, held, used)
                for tile in cut_tiles(source.level, z, source.plane, factor)
            ],
        )

    def _decode(
        self, slab: Slab, square: Box, factor: int, tile: Box, out: np.ndarray, used: np.ndarray
    ) -> None:
        """Read a tile and write its pixels into the slab's squares."""
        source = self._sources[slab.source]
        data = read_classes(source.labels.url, source.level, tile)
        numbers = slab.first + np.flatnonzero(used)
        rows = self.z[numbers] - tile.start[0]
        inside = (rows >= 0) & (rows < tile.shape[0])
        target = out[
            :,
            (tile.start[1] - square.start[0]) // factor : (tile.stop[1] - square.start[0])
            // factor,
            (tile.start[2] - square.start[1]) // factor : (tile.stop[2] - square.start[1])
            // factor,
        ]
        odd = vote(data, rows[inside], self._table, factor, target, (numbers - slab.first)[inside])
        if odd >= 0:
            self._refuse(source, tile.start[0] + odd, data[odd])

    def _refuse(self, source: Source, z: int, data: np.ndarray) -> None:
        where = f"slice {z} of {source.labels.name!r} in {redact(source.labels.url)}"
        known = np.flatnonzero(self._table != ODD).tolist()
        odd = absent_values(data[~np.isin(data, [*known, UNANNOTATED])], known)
        if odd:
            raise ValueError(f"{where} holds {odd}")
        raise ValueError(
            f"{where} holds {np.count_nonzero(data == UNANNOTATED)} voxels that nobody has "
            f"annotated. Segment the volume first, or leave the slice out: exclude, z_range"
        )

    def _cut(self, index: np.ndarray, draws: np.ndarray, out: np.ndarray) -> None:
        """Copy the squares of some samples out of the cache."""
        assert self._cache is not None
        for sample, (row, draw) in enumerate(zip(index, draws, strict=True)):
            for k, number in enumerate(row):
                slab_number = int(self._slab_of[number])
                slab = self._slabs[slab_number]
                held = self._cache.get(slab_number)[number - slab.first]
                if self._crop == "centre":
                    out[sample, k] = held
                    continue
                side = self.resolution * self.reduction
                y, x = (int(d * (n - side + 1)) for d, n in zip(draw, held.shape, strict=True))
                cut = held[None, y : y + side, x : x + side]
                same = np.arange(256, dtype=np.uint8)
                first = np.zeros(1, np.int64)
                vote(cut, first, same, self.reduction, out[sample, k][None], first)


@dataclass
class _HeldSlab:
    """Squares that are there when all their tiles are."""

    squares: np.ndarray
    tiles: list[Future[None]]


class _SlabCache:
    """Decoded slabs, and threads that decode those that are wanted next.

    Readers and codecs release the interpreter, so threads overlap with one another and with the
    training.
    """

    def __init__(self, load: Any) -> None:
        self._load = load
        self._held: dict[int, _HeldSlab] = {}
        self._pool = ThreadPoolExecutor(max(2, min(4, machine_limits().cores)), "decode")

    def keep(self, current: Sequence[int], following: Sequence[int]) -> None:
        """Forget all other slabs, and start decoding those that are not there."""
        wanted = dict.fromkeys([*current, *following])
        for number in [n for n in self._held if n not in wanted]:
            for tile in self._held.pop(number).tiles:
                tile.cancel()
        for number in wanted:
            if number not in self._held:
                self._held[number] = self._load(self._pool, number)

    def get(self, number: int) -> np.ndarray:
        """Return the squares of a slab, when they are decoded."""
        held = self._held[number]
        try:
            while held.tiles:
                held.tiles[-1].result()
                held.tiles.pop()
        except BaseException:
            self._held.clear()  # others may have failed too: whoever asks again reads again
            raise
        return held.squares

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
