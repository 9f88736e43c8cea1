"""From a microscope's files to a volume.

1. ``volume.sources`` examines the headers: shape, type, voxel size, gaps, truncated pages. What is
   wrong is said now.
2. The store's shards decide the slabs: deep enough to fill shards, small enough for memory.
3. Each task decodes its own slab, fills or refuses bad slices, converts, and writes whole shards.
   Nobody ever holds the stack.
4. Sums over a few pixels of each slice tell, in the end, which slices are blank or do not look like
   their neighbours.
5. The coarser levels follow; the volume is shown; everything is read back and compared.

A label image beside the raw goes the same way into ``labels/<name>``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cvdask import __version__
from cvdask.engine.cluster import Pool, connect
from cvdask.engine.ledger import Record
from cvdask.engine.output import begin, fill
from cvdask.engine.plan import Plan, Summary, check_plans
from cvdask.volume.boxes import Box, Grid
from cvdask.volume.colors import PALETTE, UNANNOTATED
from cvdask.volume.objects import is_remote, normalize_url, redact
from cvdask.volume.pyramid import build_levels, plan_level, plan_levels
from cvdask.volume.slabs import Conversion, Damaged, SlabJob, write_image_slab, write_label_slab
from cvdask.volume.slice_statistics import SliceSums, find_suspects
from cvdask.volume.sources import Source, SourceError, examine
from cvdask.volume.store import (
    Volume,
    check_voxel_size,
    describe,
    open_volume,
    publish,
    storage_shapes,
)
from cvdask.volume.verify import Verification, verify

# Bytes of a slab: what a task holds of the source. A few per worker fit any node.
SLAB_BYTES = 2**28
# A band of rows, where the source can be read by rows.
BAND_ROWS = 512


@dataclass(frozen=True)
class Ingested:
    """What :func:`ingest` wrote and found.

    Parameters
    ----------
    volume : Volume
        The image, or the label image that was added to a sample.
    summaries : tuple of Summary
        One per array that was filled from a source.
    slices : mapping
        ``missing``, ``damaged``, ``blank``, ``outliers``: z of the slices concerned, with what was
        done about them.
    verification : Verification, or None
        What was read back; None where it was not asked for.
    warnings : tuple of str
        What the user should know.
    """

    volume: Volume
    summaries: tuple[Summary, ...] = ()
    slices: Mapping[str, Any] | None = None
    verification: Verification | None = None
    warnings: tuple[str, ...] = ()


def ingest(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    voxel_nm: Sequence[float] | float | None = None,
    labels: str | os.PathLike[str] | None = None,
    label_name: str = "annotations",
    as_labels: str | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    label_slices: Sequence[int] | None = None,
    dataset: str | None = None,
    pattern: str | None = None,
    channel: int | None = None,
    dtype: str | None = None,
    value_range: tuple[float, float] | None = None,
    damaged: Damaged = "refuse",
    bad_slices: Sequence[int] = (),
    n_levels: int | None = None,
    check: bool = True,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Ingested | list[Plan]:
    """Turn microscope files into a volume.

    Parameters
    ----------
    source : str or path
        A multi-page or OME-TIFF, a folder of numbered slices (TIFF, PNG, JPEG), MRC, HDF5, NIfTI,
        Zarr or N5.
    out : str or path
        Sample to write; with ``as_labels``, an existing sample.
    voxel_nm : float or sequence of float, optional
        Voxel size, one or three (z, y, x); by default what the file states.
    labels : str or path, optional
        Label image of the same voxels, in any of the formats.
    label_name : str
        Name of its label image in the sample.
    as_labels : str, optional
        ``source`` itself is a label image: add it to the sample ``out`` under this name.
    classes : sequence of str, or mapping of int to str, optional
        Names of the label values; a sequence names 1, 2, 3 …
    label_slices : sequence of int, optional
        The label image holds just these slices z of the image, in order (sparse annotation); all
        others become 255, not annotated.
    dataset, pattern, channel
        Which array of an HDF5 or Zarr file, which files of a folder, which channel: see
        :func:`cvdask.volume.sources.examine`.
    dtype : {"uint8", "uint16"}, optional
        Type to convert to, together with ``value_range``. Recorded in the provenance.
    value_range : (low, high), optional
        Values that become 0 and the largest integer; what lies outside is clipped.
    damaged : {"refuse", "hole", "interpolate"}
        What to do about missing and unreadable slices, and those named by ``bad_slices``: end with
        an error; leave them zero and declare them; fill them from the nearest good slices.
    bad_slices : sequence of int
        Slices z to be treated like damaged ones.
    n_levels : int, optional
        Levels of the pyramid; by default until a level fits 64 voxels along each axis.
    check : bool
        Read everything back in the end and compare with what was read from the source.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans and write nothing.

    Returns
    -------
    Ingested
        Or, with ``dry_run``, the list of plans.

    Raises
    ------
    SourceError, ValueError
        Bad input, before work.
    FileExistsError
        When something else lies at ``out``.
    BlocksFailed
        When parts could not be read or written; all others are done.
    """
    options = _check_options(dtype, value_range, damaged, as_labels, labels)
    examined = examine(source, dataset=dataset, pattern=pattern, channel=channel)
    _check_places(examined, out, as_labels)
    names = _class_names(classes)
    jobs, warnings = _jobs(
        examined,
        out,
        voxel_nm=voxel_nm,
        labels=labels,
        label_name=as_labels or label_name,
        as_labels=as_labels is not None,
        names=names,
        label_slices=label_slices,
        conversion=options,
        damaged=damaged,
        bad_slices=tuple(sorted(set(bad_slices))),
    )
    provenance = {
        "stage": "ingest",
        "version": __version__,
        "options": {
            "voxel_size_nm": [list(job.volume.voxel_size_nm or ()) for job in jobs],
            "classes": {str(value): name for value, name in names.items()},
            "label_slices": list(label_slices) if label_slices is not None else None,
            "dtype": options.dtype or None,
            "value_range": list(value_range) if value_range else None,
            "damaged": damaged,
            "bad_slices": sorted(set(bad_slices)),
            "n_levels": n_levels,
        },
        "inputs": [_input(job) for job in jobs],
    }
    full = [_with_levels(job.volume, n_levels) for job in jobs]
    volumes = [job.volume for job in jobs]
    ways = {"resume": resume, "overwrite": overwrite}
    state = begin(volumes, provenance, dry_run=True, **ways)
    plans = [plan_ingest(job) for job in jobs]
    all_plans = [*plans, *(plan for volume in full for plan in _pyramid_plans(volume))]
    if dry_run:
        return all_plans
    if state == "complete":
        return Ingested(_open(jobs[0].volume), warnings=(*warnings, "already complete"))
    summaries = []
    with connect(client, workers=workers) as pool:
        if state == "new":
            check_plans(all_plans, pool.slots, pool.worker_bytes)
        begin(volumes, provenance, **ways)
        for job, plan in zip(jobs, plans, strict=True):
            summaries.append(_fill(job, plan, pool))
        for volume in full:
            build_levels(volume, client=pool)
        # The first volume last: readers who see the image see its labels too.
        for volume in reversed(full):
            publish(volume)
        volume = _open(jobs[0].volume)
        checked = verify(volume, client=pool) if check else None
    assert checked is None or isinstance(checked, Verification)
    slices = volume.attributes.get("slices", {})
    return Ingested(
        volume, tuple(summaries), slices, checked, (*warnings, *_slice_warnings(slices))
    )


def plan_ingest(job: SlabJob) -> Plan:
    """Plan one array: blocks are slabs of whole shards, as wide as the source is read."""
    volume, source = job.volume, job.source
    level = volume.levels[0]
    shape = level.shape
    rows = level.shard_shape[1] if source.row_access else shape[1]
    grid = Grid(shape, (level.shard_shape[0], rows, shape[2]))
    itemsize = np.dtype(source.dtype).itemsize
    return Plan(
        stage=f"ingest {level.path}",
        grid=grid,
        output=volume.url,
        read_bytes=Box.whole(shape).size * itemsize,
        write_bytes=level.nbytes,
        task_bytes=2 * grid.largest_read * (itemsize + volume.dtype.itemsize),
        stored_bytes=int(level.nbytes * (0.1 if volume.is_labels else 0.95)),
        notes={
            "source": redact(source.path),
            "format": source.kind,
            "dtype": f"{source.dtype} → {volume.dtype}",
            "missing_slices": len(source.missing),
            "damaged_slices": len(source.damaged),
        },
    )


def _fill(job: SlabJob, plan: Plan, pool: Pool) -> Summary:
    remember = partial(_remember_labels, job) if job.volume.is_labels else partial(_remember, job)
    work = write_label_slab if job.volume.is_labels else write_image_slab
    return fill([job.volume], plan, partial(work, job), remember=remember, client=pool)


# ---------------------------------------------------------------------------------------------
# Before work: options, places, jobs


def _check_options(
    dtype: str | None,
    value_range: tuple[float, float] | None,
    damaged: str,
    as_labels: str | None,
    labels: object,
) -> Conversion:
    if damaged not in ("refuse", "hole", "interpolate"):
        raise ValueError(
            f"damaged slices are treated by refuse, hole or interpolate. Received: {damaged!r}"
        )
    if as_labels is not None and labels is not None:
        raise ValueError("as_labels says that the source is a label image; labels names another")
    if (dtype is None) != (value_range is None):
        raise ValueError(
            f"a conversion needs both dtype and value_range. Received: {dtype} and {value_range}"
        )
    if dtype is None or value_range is None:
        return Conversion("")
    if dtype not in ("uint8", "uint16"):
        raise ValueError(f"images are converted to uint8 or uint16. Received: {dtype}")
    low, high = (float(v) for v in value_range)
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"a value range needs a finite low < high. Received: {low}, {high}")
    if as_labels is not None:
        raise ValueError("label images keep their values; give no dtype and value_range")
    return Conversion(dtype, low, high)


def _check_places(source: Source, out: str | os.PathLike[str], as_labels: str | None) -> None:
    if is_remote(os.fspath(out)):
        return
    target, origin = Path(normalize_url(out)).resolve(), Path(source.path).resolve()
    if target == origin or (origin.is_dir() and origin in target.parents):
        raise ValueError(
            f"the destination must not lie inside the source. Received: {target} in {origin}. Give "
            f"a destination elsewhere"
        )
    if target in origin.parents and as_labels is None:
        raise ValueError(
            f"the source must not lie inside the destination. Received: {origin} in {target}. Give "
            f"a destination elsewhere"
        )


def _class_names(classes: Sequence[str] | Mapping[int, str] | None) -> dict[int, str]:
    if classes is None:
        return {}
    if isinstance(classes, Mapping):
        names = {int(value): str(name) for value, name in classes.items()}
    else:
        names = {value: str(name) for value, name in enumerate(classes, start=1)}
    if UNANNOTATED in names or any(value < 1 for value in names):
        raise ValueError(
            f"classes are numbered from 1; 0 is background and {UNANNOTATED} not annotated. "
            f"Received: {sorted(names)}"
        )
    if len(set(names.values())) != len(names) or not all(names.values()):
        raise ValueError(f"classes need different, non-empty names. Received: {names}")
    return names


def _jobs(
    source: Source,
    out: str | os.PathLike[str],
    *,
    voxel_nm: Sequence[float] | float | None,
    labels: str | os.PathLike[str] | None,
    label_name: str,
    as_labels: bool,
    names: Mapping[int, str],
    label_slices: Sequence[int] | None,
    conversion: Conversion,
    damaged: Damaged,
    bad_slices: tuple[int, ...],
) -> tuple[list[SlabJob], list[str]]:
    """Describe the arrays to be filled, image first, and what the user should know of them."""
    warnings: list[str] = []
    jobs: list[SlabJob] = []
    label_source = source if as_labels else (examine(labels) if labels is not None else None)
    if as_labels:
        image = open_volume(out)
    else:
        spacing = _voxel_size(source, voxel_nm, warnings)
        kind = conversion.dtype or _image_type(source)
        chunk, shard = _shapes(source, np.dtype(kind).itemsize)
        image = describe(
            out,
            shape=source.shape,
            dtype=kind,
            voxel_size_nm=spacing,
            chunk_shape=chunk,
            shard_shape=shard,
        )
        _check_bad_slices(source, damaged, bad_slices)
        used = replace(conversion, dtype=kind)
        jobs.append(SlabJob(source, image, used, damaged, bad_slices))
    if label_source is not None:
        jobs.append(_label_job(label_source, image, label_name, names, label_slices))
    elif names or label_slices is not None:
        raise ValueError("classes and label_slices describe a label image: give labels too")
    return jobs, warnings


def _label_job(
    source: Source,
    image: Volume,
    name: str,
    names: Mapping[int, str],
    label_slices: Sequence[int] | None,
) -> SlabJob:
    """Describe the label image; it must fit the voxels of the image."""
    if np.dtype(source.dtype).kind not in "ui":
        raise SourceError(
            f"{source.path}: label images hold integers. Received: {source.dtype}. Save them as "
            f"uint8, uint16 or uint32"
        )
    placed = tuple(int(z) for z in label_slices) if label_slices is not None else None
    if placed is None and source.shape != image.shape:
        raise SourceError(
            f"a label image has the shape of its image, {image.shape}. Received: {source.shape} in "
            f"{source.path}. For single annotated slices give their z with label_slices"
        )
    if placed is not None:
        bad = [z for z in placed if not 0 <= z < image.shape[0]]
        if len(placed) != source.shape[0] or len(set(placed)) != len(placed) or bad:
            raise SourceError(
                f"label_slices names a different z between 0 and {image.shape[0] - 1} for each of "
                f"the {source.shape[0]} slices of {source.path}. Received: {list(placed)}"
            )
        if source.shape[1:] != image.shape[1:]:
            raise SourceError(
                f"annotated slices have the height and width of the image, {image.shape[1:]}. "
                f"Received: {source.shape[1:]} in {source.path}"
            )
    _check_bad_slices(source, "refuse", ())
    if image.voxel_size_nm is None:
        raise ValueError(f"{image.name} states no voxel size, so labels cannot be placed on it")
    # The same slabs as the image, so that a sample's arrays share their geometry.
    chunk, shard = _shapes(replace(source, shape=_triple(image.shape)), 1)
    volume = describe(
        image.url,
        shape=image.shape,
        dtype=source.dtype if np.dtype(source.dtype).kind == "u" else f"u{source.dtype}",
        voxel_size_nm=image.voxel_size_nm,
        labels=name,
        classes=names,
        colors={value: PALETTE[(value - 1) % len(PALETTE)] for value in names},
        chunk_shape=chunk,
        shard_shape=shard,
    )
    return SlabJob(source, volume, Conversion(volume.dtype.name), "refuse", (), placed)


def _triple(shape: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = shape
    return z, y, x


def _shapes(source: Source, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose chunks and shards so that a slab of the source fits SLAB_BYTES."""
    slab_bytes = SLAB_BYTES
    if source.row_access:  # a task reads bands of rows, not whole slices
        slab_bytes = SLAB_BYTES * max(1, source.shape[1] // BAND_ROWS)
    return storage_shapes(source.shape, itemsize, slab_bytes=slab_bytes)


def _voxel_size(
    source: Source, voxel_nm: Sequence[float] | float | None, warnings: list[str]
) -> tuple[float, float, float]:
    if voxel_nm is None:
        if source.voxel_size_nm is None:
            raise ValueError(
                f"{source.path} states no voxel size. Give it in nm, z y x: --voxel-nm 5 5 5"
            )
        return source.voxel_size_nm
    spacing = check_voxel_size(voxel_nm)
    stated = source.voxel_size_nm
    if stated is not None and not np.allclose(stated, spacing, rtol=0.01):
        warnings.append(
            f"the file states voxels of {stated} nm (z, y, x); {spacing} nm were used as asked for"
        )
    return spacing


def _image_type(source: Source) -> str:
    if source.dtype not in ("uint8", "uint16", "float32"):
        raise SourceError(
            f"images are kept as uint8, uint16 or float32. Received: {source.dtype} in "
            f"{source.path}. Convert it with a recorded range: --dtype uint16 --range LOW HIGH"
        )
    return source.dtype


def _check_bad_slices(source: Source, damaged: str, bad_slices: Sequence[int]) -> None:
    outside = [z for z in bad_slices if not 0 <= z < source.shape[0]]
    if outside:
        raise ValueError(f"bad slices lie between 0 and {source.shape[0] - 1}. Received: {outside}")
    if bad_slices and damaged == "refuse":
        raise ValueError("bad slices are left as holes or interpolated: say which with damaged")
    known = [
        *(f"z = {z}: missing, a gap in the numbering" for z in source.missing),
        *(f"z = {z}: {reason}" for z, reason in source.damaged),
    ]
    if known and damaged == "refuse":
        shown = "\n".join(f"  {line}" for line in known[:20])
        more = f"\n  … and {len(known) - 20} more" if len(known) > 20 else ""
        raise SourceError(
            f"{source.path}: {len(known)} of {source.shape[0]} slices are missing or damaged. Mend "
            f"the source, or say --damaged hole or --damaged interpolate\n{shown}{more}"
        )


def _input(job: SlabJob) -> dict[str, Any]:
    source = job.source
    return {
        "path": redact(source.path),
        "format": source.kind,
        "dataset": source.dataset,
        "channel": source.channel,
        "shape": list(source.shape),
        "dtype": source.dtype,
        "fingerprint": source.fingerprint,
        "into": job.volume.levels[0].path,
    }


def _with_levels(volume: Volume, n_levels: int | None) -> Volume:
    finest = volume.levels[0]
    return replace(volume, levels=(finest, *plan_levels(finest, n_levels)))


def _pyramid_plans(volume: Volume) -> Iterator[Plan]:
    for fine, coarse in zip(volume.levels, volume.levels[1:], strict=False):
        yield plan_level(volume.url, fine, coarse)


def _open(volume: Volume) -> Volume:
    return open_volume(volume.url, labels=volume.name if volume.is_labels else None)


# ---------------------------------------------------------------------------------------------
# Afterwards: what the slices look like


def _remember(job: SlabJob, records: Iterator[Record]) -> Mapping[str, Any]:
    """Gather what is known of the slices: a few numbers for each."""
    sums = SliceSums(job.source.shape[0])
    damaged: dict[str, str] = {}
    for record in records:
        sums.add(record["sums"])
        damaged |= record["damaged"]
    blank, outliers = find_suspects(sums)
    return {
        "slices": {
            "treatment": job.damaged,
            "missing": list(job.source.missing),
            "damaged": {str(z): damaged[z] for z in sorted(damaged, key=int)},
            "blank": blank,
            "outliers": outliers,
        }
    }


def _remember_labels(job: SlabJob, records: Iterator[Record]) -> Mapping[str, Any]:
    if job.label_slices is None:
        return {}
    return {"slices": {"annotated": sorted(job.label_slices)}}


def _slice_warnings(slices: Mapping[str, Any]) -> Iterator[str]:
    treatment = slices.get("treatment")
    done = {"hole": "left as holes", "interpolate": "interpolated"}.get(str(treatment), "")
    bad = [*slices.get("missing", []), *map(int, slices.get("damaged", {}))]
    if bad:
        yield f"{len(bad)} missing or damaged slices were {done}: z = {_shown(sorted(bad))}"
    if slices.get("blank"):
        yield f"{len(slices['blank'])} slices are blank: z = {_shown(slices['blank'])}"
    if slices.get("outliers"):
        yield (
            f"{len(slices['outliers'])} slices do not look like their neighbours: z = "
            f"{_shown(slices['outliers'])}. Look at them; --bad-slices with --damaged replaces them"
        )


def _shown(numbers: Sequence[int], most: int = 12) -> str:
    text = ", ".join(map(str, numbers[:most]))
    return text + (" …" if len(numbers) > most else "")
