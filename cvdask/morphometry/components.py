"""Which voxels belong to which object? A volume of labels, connected components of one class.

1. A :class:`Survey` finds the objects and how large each is: see ``survey``.
2. :func:`number_part` leaves out the small ones of each part and lists the others in the order of
   their first voxels: their place is their label.
3. :func:`write_block` finds the objects of a block again and writes their labels. Nothing is kept
   between the passes but the lists, so it can be interrupted anywhere.

Labels equal those of ``scipy.ndimage.label`` on the whole volume, put in the order of the first
voxel in z, y, x order; they depend on nothing else.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from cvdask import __version__
from cvdask.engine.cluster import connect
from cvdask.engine.ledger import Ledger
from cvdask.engine.output import begin, fill, is_sealed
from cvdask.engine.plan import Plan, check_plans
from cvdask.morphometry.block_objects import paint
from cvdask.morphometry.partials import KEY, N_VOXELS
from cvdask.morphometry.runs import CONNECTIVITIES
from cvdask.morphometry.survey import (
    Numbering,
    Survey,
    carry_out,
    describe_survey,
    first_of_chain,
    numbering,
    plan_survey,
    read_objects,
    survey_block_shape,
    total_rows,
)
from cvdask.volume.boxes import Block, Box
from cvdask.volume.classes import class_values, measured_box, named_values, open_classes
from cvdask.volume.objects import delete_tree
from cvdask.volume.pyramid import build_levels, plan_level, plan_levels
from cvdask.volume.scratch import read_arrays, write_arrays
from cvdask.volume.store import (
    Volume,
    describe,
    open_volume,
    publish,
    update_attributes,
    volume_digest,
    write_box,
)

# Below the label image that is written, outside of its arrays: removed in the end.
SCRATCH = ".cvdask/survey"
# Voxels of 2×2×2 of which no two are neighbours: so many objects at most, by connectivity.
OBJECTS_PER_CELL = {6: 4, 18: 2, 26: 1}


def label(
    volume: Volume | str,
    *,
    labels: str = "classes",
    class_: str | int,
    name: str | None = None,
    connectivity: int = 26,
    min_voxels: int = 1,
    n_levels: int | None = None,
    box: Box | str | None = None,
    block_shape: Sequence[int] | None = None,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Volume | list[Plan]:
    """Label the connected components of a class.

    Parameters
    ----------
    volume : Volume or str
        The sample.
    labels : str
        Label image of classes.
    class_ : str or int
        Name or value of the class.
    name : str, optional
        Label image to write; by default the name of the class.
    connectivity : {6, 18, 26}
        Neighbours of a voxel: through faces; and edges; and corners.
    min_voxels : int
        Smaller objects become background, after all blocks have been put together; the others
        are numbered without gaps.
    n_levels : int, optional
        Levels of the pyramid; by default until a level fits 64 voxels along each axis.
    box : Box or str, optional
        Only these voxels, as ``z0:z1,y0:y1,x0:x1``; background elsewhere.
    block_shape : sequence of int, optional
        Voxels z, y, x of a block, which becomes a shard of the result; labels do not depend on it.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans and write nothing.

    Returns
    -------
    Volume
        uint32, or uint64 where there may be more objects than that holds; ``.attributes`` has the
        number of objects. With ``dry_run`` the plans.

    Raises
    ------
    ValueError
        When the class or the label image is absent, or an option breaks its rule.
    FileExistsError
        When another label image of that name is there.
    BlocksFailed
        When blocks could not be read, or hold values that are no class.

    Warns
    -----
    UserWarning
        When there is no object.
    """
    image = open_classes(volume, labels)
    region = measured_box(image, box)
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"the connectivity is 6, 18 or 26. Received: {connectivity}")
    if min_voxels < 1:
        raise ValueError(f"an object has at least 1 voxel. Received: min_voxels={min_voxels}")
    values = class_values(image, class_)
    if len(values) != 1:
        raise ValueError(f"the objects of one class are labelled at a time. Received: {class_!r}")
    output = _describe_output(image, values[0], name, connectivity, block_shape)
    survey = describe_survey(
        image,
        region,
        class_=values,
        connectivity=connectivity,
        block_shape=output.levels[0].shard_shape,
        scratch=(image.url, f"{output.group}/{SCRATCH}"),
        full=False,
    )
    provenance = {
        "stage": "label",
        "version": __version__,
        "options": {
            "labels": labels,
            "class": values[0],
            "connectivity": connectivity,
            "min_voxels": min_voxels,
            "n_levels": n_levels,
            "box": str(region),
            "block_shape": list(survey.block_shape),
        },
        "inputs": [{"volume": f"labels/{labels}", "digest": volume_digest(image)}],
    }
    full = replace(output, levels=(*output.levels, *plan_levels(output.levels[0], n_levels)))
    writing = _plan_writing(survey, output)
    pairs = zip(full.levels[:-1], full.levels[1:], strict=True)
    plans = [
        *plan_survey(survey),
        writing,
        *(plan_level(full.url, fine, coarse) for fine, coarse in pairs),
    ]
    ways = {"resume": resume, "overwrite": overwrite}
    state = begin([output], provenance, dry_run=True, **ways)
    if dry_run:
        return plans
    if state == "complete":
        # What another client has left that came late to the same output.
        delete_tree(output.url, f"{output.group}/{SCRATCH.partition('/')[0]}")
        Ledger(output.url, output.levels[0].path).clear()
        return open_volume(output.url, labels=output.name)
    with connect(client, workers=workers) as pool:
        check_plans(plans, pool.slots, pool.worker_bytes)
        begin([output], provenance, **ways)
        if not is_sealed(output):
            survey = carry_out(survey, pool, partial(number_part, min_voxels))
            numbers = numbering(survey)
            update_attributes(output, objects=numbers.totals[1], small_objects=numbers.n_small)
            job = _Writing(survey, numbers, output)
            fill([output], writing, partial(write_block, job), client=pool)
        else:
            # A kill after the level was sealed has left its markers.
            Ledger(output.url, output.levels[0].path).clear()
        build_levels(full, client=pool)
    delete_tree(output.url, f"{output.group}/{SCRATCH.partition('/')[0]}")
    publish(full)
    written = open_volume(output.url, labels=output.name)
    if not written.attributes["objects"]:
        warnings.warn(
            f"no object of {output.name} within {region}: every voxel of the label image is 0",
            stacklevel=2,
        )
    return written


def _describe_output(
    image: Volume,
    value: int,
    name: str | None,
    connectivity: int,
    block_shape: Sequence[int] | None,
) -> Volume:
    source = image.levels[0]
    if name is None:
        name = named_values(image).get(value, str(value))
    if name == image.name:
        raise ValueError(
            f"the objects need a label image of their own: give another name than {name!r}"
        )
    shape = tuple(block_shape) if block_shape is not None else survey_block_shape(source)
    most = math.prod(-(-n // 2) for n in source.shape) * OBJECTS_PER_CELL[connectivity]
    assert image.voxel_size_nm is not None
    return describe(
        image.url,
        shape=source.shape,
        dtype="uint32" if most < 2**32 else "uint64",
        voxel_size_nm=image.voxel_size_nm,
        labels=name,
        chunk_shape=shape if block_shape is not None else source.chunk_shape,
        shard_shape=shape,
    )


def _plan_writing(survey: Survey, output: Volume) -> Plan:
    grid = survey.grid
    itemsize = np.dtype(survey.level.dtype).itemsize
    level = output.levels[0]
    return Plan(
        stage=f"label {level.path}",
        grid=grid,
        output=output.url,
        read_bytes=survey.region.size * itemsize,
        write_bytes=level.nbytes,
        task_bytes=grid.largest_read * (itemsize + 8 + 2 * output.dtype.itemsize),
        stored_bytes=level.nbytes // 20,
    )


@dataclass(frozen=True)
class _Writing:
    """What a task needs to write labels; holds no voxels."""

    survey: Survey
    numbers: Numbering
    output: Volume


def number_part(min_voxels: int, survey: Survey, part: Block) -> dict[str, Any]:
    """List the objects of a part that are large enough, by their first voxels."""
    rows, _ = total_rows(survey, part.index)
    keys = rows[rows[:, N_VOXELS] >= min_voxels, KEY]
    key = survey.key("numbered", part.index)
    write_arrays(survey.scratch_url, {key: {"keys": keys}})
    return {"objects": [0, len(keys)], "small": len(rows) - len(keys)}


@lru_cache(maxsize=4)
def _numbered_keys(survey: Survey, part: int) -> np.ndarray:
    return read_arrays(survey.scratch_url, survey.key("numbered", part))[0]["keys"]


def labels_of(survey: Survey, numbers: Numbering, keys: np.ndarray) -> np.ndarray:
    """Return the label of each object by the key of its first voxel; 0 for those left out."""
    labels = np.zeros(len(keys), np.int64)
    parts = survey.part(keys)
    for part in np.unique(parts):
        own = parts == part
        listed = _numbered_keys(survey, int(part))
        if not len(listed):
            continue
        places = np.minimum(np.searchsorted(listed, keys[own]), len(listed) - 1)
        found = listed[places] == keys[own]
        labels[own] = np.where(found, places + 1 + numbers.before[part][1], 0)
    return labels


def write_block(job: _Writing, block: Block) -> dict[str, Any]:
    """Write the labels of a block."""
    survey, level = job.survey, job.output.levels[0]
    box = survey.box(block)
    runs, keys, _, _ = read_objects(survey, box)
    whole = first_of_chain(survey, block, keys)
    labels = labels_of(survey, job.numbers, whole).astype(level.dtype)
    data = np.zeros(block.write.shape, level.dtype)
    paint(runs.rows, runs.start, runs.stop, runs.label, labels, data[box.within(block.write)])
    return {"shards": {level.path: write_box(job.output.url, level, block.write, data)}}
