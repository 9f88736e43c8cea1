"""How large is every object of a volume, and what shape has it? One row of a table for each.

1. A :class:`Survey` finds the objects and sums what is needed of each, in whole numbers: see
   ``survey``. Voxels are read once.
2. :func:`total_part` turns the sums of the objects of a part of the volume into measures: see
   ``shapes``.
3. :func:`write_part` numbers the objects and writes the part as parquet.

The table is the same, to the last bit, whatever the blocks and workers, and after any interruption.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask import __version__
from cvdask.engine.blockwise import run
from cvdask.engine.cluster import connect
from cvdask.engine.ledger import standing
from cvdask.engine.plan import Plan, check_plans
from cvdask.morphometry.distributions import draw_distributions
from cvdask.morphometry.partials import GREY_DIGIT, KEY, KIND, N_VOXELS, Layout
from cvdask.morphometry.runs import CONNECTIVITIES
from cvdask.morphometry.shapes import COLUMN_NOTES, CONTACT_NOTE, shape_columns
from cvdask.morphometry.survey import (
    Numbering,
    Survey,
    carry_out,
    describe_survey,
    numbering,
    plan_survey,
    total_rows,
)
from cvdask.morphometry.tables import (
    Table,
    complete_parts,
    delete_table,
    destination,
    existing_table,
    open_table,
)
from cvdask.volume.boxes import AXES, Block, Box
from cvdask.volume.classes import measured_box, named_values, open_classes
from cvdask.volume.objects import (
    delete_object,
    delete_tree,
    object_exists,
    write_json,
    write_parts,
)
from cvdask.volume.parquet import write_table
from cvdask.volume.scratch import read_checked, write_checked
from cvdask.volume.store import Level, Volume, open_volume, volume_digest

if TYPE_CHECKING:
    import pyarrow as pa

# Directions of objects are added up as whole numbers of this fraction.
FIBRE_SCALE = 2**20
# What lies beside a table: the same as text, and a picture of the distributions.
BESIDE = (".csv", ".png")


@dataclass(frozen=True)
class _Job:
    """What a task needs to turn sums into measures; holds no data."""

    voxel_size_um: tuple[float, float, float]
    connectivity: int
    min_voxels: int
    voxel_extent: bool
    names: tuple[str, ...]
    contact_names: tuple[str, ...]
    fibre: tuple[float, float, float] | str | None
    parent: str
    name: str
    metadata: str


def measure(
    volume: Volume | str,
    *,
    labels: str = "classes",
    class_: str | int | Sequence[str | int] | None = None,
    instances: bool = False,
    connectivity: int = 26,
    min_voxels: int = 1,
    intensity: bool = False,
    contacts: bool = False,
    fibre: str | Sequence[float] | None = None,
    voxel_extent: bool = False,
    out: str | None = None,
    csv: bool = False,
    chart: bool = True,
    box: Box | str | None = None,
    block_shape: Sequence[int] | None = None,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Table | list[Plan]:
    """Measure every object of a volume: size, surface, shape, place.

    Objects are connected components of classes, found and measured in one pass over the voxels; or
    the objects of an image of instances. Nothing but the table is written.

    Parameters
    ----------
    volume : Volume or str
        The sample.
    labels : str
        Label image of classes, or of instances.
    class_ : str, int or sequence, optional
        Names or values of the classes whose objects are measured; by default all but the
        background. Needed where the label image has no names.
    instances : bool
        Every value of the label image but 0 is an object, whether connected or not.
    connectivity : {6, 18, 26}
        Neighbours of a voxel: through faces; and edges; and corners. Of instances, which need not
        be connected, it is that of the Euler number alone.
    min_voxels : int
        Smaller objects are left out, after all blocks have been put together.
    intensity : bool
        Mean, standard deviation and range of the sample's image in each object; integers only.
    contacts : bool
        Area of the voxel faces that each object shares with every other class.
    fibre : {"z", "y", "x", "estimate"} or three numbers z, y, x, optional
        Direction of the muscle fibre: adds the angle to it of each object's longest axis.
        ``"estimate"`` takes the mean direction of the objects, by volume.
    voxel_extent : bool
        Count the extent of the voxels themselves in radii, as v² / 12.
    out : str, optional
        The table; by default ``tables/objects.parquet`` below the sample. A folder of parts where
        the volume is large.
    csv, chart : bool
        Write ``.csv`` and, of the distributions, ``.png`` beside it.
    box : Box or str, optional
        Only these voxels, as ``z0:z1,y0:y1,x0:x1``; objects are cut off at its faces.
    block_shape : sequence of int, optional
        Voxels z, y, x of a block; the result does not depend on it.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans and write nothing.

    Returns
    -------
    Table
        A row per object, in each part by class and label; see ``shapes`` for the measures. Labels
        count the objects of a class by their first voxel in z, y, x order, as :func:`label` numbers
        them; instances keep their own.
        Centroids are from the centre of voxel (0, 0, 0), radii those of the ellipsoid with the same
        moments; ``flatness`` and ``sparseness`` are infinite for objects one voxel thick.
        With ``dry_run`` the plans.

    Raises
    ------
    ValueError
        When a class or the label image is absent, classes are no integers, the voxel size is not
        stated, or an option breaks its rule.
    FileExistsError
        When something else lies at the destination.
    BlocksFailed
        When blocks could not be read, or hold values that are no class.

    Warns
    -----
    UserWarning
        When there is no object at all: the table is empty and has all columns.
    """
    image = open_classes(volume, labels)
    sample = volume if isinstance(volume, Volume) else open_volume(volume)
    region = measured_box(image, box)
    _check_options(connectivity, min_voxels, instances, contacts, class_)
    parent, name = destination(image.url, "objects", out)
    scratch = f".cvdask/{name}"
    survey = describe_survey(
        image,
        region,
        class_=class_,
        connectivity=None if instances else connectivity,
        image=_grey_level(sample, image) if intensity else None,
        contacts=contacts,
        block_shape=block_shape,
        scratch=(parent, scratch),
    )
    direction = _direction(fibre)
    provenance = {
        "stage": "measure",
        "version": __version__,
        "options": {
            "labels": labels,
            "classes": list(survey.kinds),
            "instances": instances,
            "connectivity": connectivity,
            "min_voxels": min_voxels,
            "intensity": intensity,
            "contacts": list(survey.contacts),
            "fibre": direction,
            "voxel_extent": voxel_extent,
            "box": str(region),
        },
        "inputs": [{"volume": f"labels/{labels}", "digest": volume_digest(image)}]
        + ([{"volume": "image", "digest": volume_digest(sample)}] if intensity else []),
    }
    plans = [*plan_survey(survey), _plan_table(survey)]
    # The result does not depend on blocks, but what other blocks have left cannot be continued.
    begun = {**provenance, "block_shape": list(survey.block_shape)}
    existing = existing_table(parent, name, scratch)
    complete = existing is not None and existing.get("state") == "complete"
    state = standing(
        f"{parent}/{name}",
        existing,
        provenance if complete else begun,
        resume=resume,
        overwrite=overwrite,
    )
    if dry_run:
        return plans
    if state == "complete":
        delete_tree(parent, scratch)
        table = open_table(parent, name)
        _write_beside(table, csv=csv, chart=chart, again=False)
        return table
    names = named_values(image)
    job = _Job(
        _micrometres(image),
        connectivity,
        min_voxels,
        voxel_extent,
        (labels, *(names.get(value, str(value)) for value in survey.kinds)),
        tuple(names.get(value, str(value)) for value in survey.contacts),
        direction,
        parent,
        name,
        json.dumps(
            {"provenance": provenance, "voxel_size_nm": list(image.voxel_size_nm or ())},
            ensure_ascii=False,
        ),
    )
    with connect(client, workers=workers) as pool:
        check_plans(plans, pool.slots, pool.worker_bytes)
        if state == "new":
            # What says that a run was begun goes first, then what it has left.
            delete_object(parent, f"{scratch}/begun.json")
            delete_tree(parent, scratch)
            if existing is not None and existing.get("provenance"):
                # They tell of objects that are no longer in the table.
                for ending in BESIDE:
                    delete_object(parent, _beside(name, ending))
            delete_table(parent, name)
            write_json(parent, f"{scratch}/begun.json", {"provenance": begun})
        survey = carry_out(survey, pool, partial(total_part, job))
        numbers = numbering(survey)
        job = _with_fibre(job, survey)
        run(
            partial(write_part, job, survey, numbers),
            plans[-1],
            ledger=survey.ledger("table"),
            client=pool,
        )
    if not sum(numbers.totals):
        warnings.warn(_no_object(survey, job, numbers), stacklevel=2)
    if survey.n_parts > 1:
        _write_empty(job, survey, numbers)
        complete_parts(parent, name, json.loads(job.metadata))
    table = open_table(parent, name)
    _write_beside(table, csv=csv, chart=chart, again=True)
    delete_tree(parent, scratch)
    return table


# ---------------------------------------------------------------------------------------------
# Before work


def _check_options(
    connectivity: int, min_voxels: int, instances: bool, contacts: bool, class_: object
) -> None:
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"the connectivity is 6, 18 or 26. Received: {connectivity}")
    if min_voxels < 1:
        raise ValueError(f"an object has at least 1 voxel. Received: min_voxels={min_voxels}")
    if instances and class_ is not None:
        raise ValueError(
            "instances have no classes: give class_ with a label image of classes, or instances "
            "without it"
        )
    if instances and contacts:
        raise ValueError("contacts are counted between classes: leave instances or contacts out")


def _grey_level(sample: Volume, labels: Volume) -> Level:
    if sample.dtype.kind not in "ui" or sample.dtype.itemsize > 2:
        raise ValueError(
            f"intensities are summed as whole numbers of 8 or 16 bits, or their order would change "
            f"them. Received: {sample.dtype}. Ingest the image with --dtype uint16 --range"
        )
    if sample.shape != labels.shape:
        raise ValueError(
            f"the image and {labels.name!r} must have the same voxels. Received: {sample.shape} "
            f"and {labels.shape}"
        )
    return sample.levels[0]


def _direction(fibre: str | Sequence[float] | None) -> tuple[float, float, float] | str | None:
    """Return the direction of the fibre as a unit vector z, y, x.

    >>> _direction("y"), _direction((0, 3, 4))
    ((0.0, 1.0, 0.0), (0.0, 0.6, 0.8))
    """
    if fibre is None or (isinstance(fibre, str) and fibre == "estimate"):
        return fibre
    parts: Sequence[Any] = fibre.split(",") if isinstance(fibre, str) else fibre
    try:
        if isinstance(fibre, str) and fibre in AXES:
            parts = [float(axis == fibre) for axis in AXES]
        z, y, x = (float(part) for part in parts)
        length = math.hypot(z, y, x)
        if not math.isfinite(length) or length == 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"the fibre runs along z, y or x, along three numbers z,y,x, or is to be found: "
            f"estimate. Received: {fibre!r}"
        ) from None
    return z / length, y / length, x / length


def _micrometres(labels: Volume) -> tuple[float, float, float]:
    assert labels.voxel_size_nm is not None
    z, y, x = (size / 1000 for size in labels.voxel_size_nm)
    return z, y, x


def _plan_table(survey: Survey) -> Plan:
    return Plan("table", survey.part_grid, f"{survey.scratch_url}/{survey.scratch}")


# ---------------------------------------------------------------------------------------------
# From sums to measures


def total_part(job: _Job, survey: Survey, part: Block) -> dict[str, Any]:
    """Turn the sums of the objects of a part into measures; the record says how many there are."""
    rows, moments = total_rows(survey, part.index)
    kept = rows[:, N_VOXELS] >= job.min_voxels
    rows, moments = rows[kept], moments[kept]
    order = np.lexsort((rows[:, KEY], rows[:, KIND]))
    rows, moments = rows[order], moments[order]
    columns = {
        "key": rows[:, KEY],
        "kind": rows[:, KIND],
        **shape_columns(
            rows,
            moments,
            job.voxel_size_um,
            survey.region,
            connectivity=job.connectivity,
            voxel_extent=job.voxel_extent,
        ),
        **_grey_columns(rows, survey.layout),
        **_contact_columns(rows, survey.layout, job),
    }
    _write_columns(survey.scratch_url, survey.key("measured", part.index), columns)
    counts = np.bincount(rows[:, KIND], minlength=len(survey.kinds) + 1)
    record: dict[str, Any] = {"objects": counts.tolist(), "small": int((~kept).sum())}
    if job.fibre == "estimate":
        record["directions"] = _directions(columns)
    return record


def _grey_columns(rows: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """Return mean, standard deviation and range of the grey values."""
    if not layout.intensity:
        return {}
    total, upper, lower, low, high = rows[:, layout.grey].T
    n = rows[:, N_VOXELS]
    # Python's integers: the squares of a large object overflow 64 bits.
    squares = upper.astype(object) * GREY_DIGIT + lower
    exact = (n * squares - total.astype(object) ** 2).astype(float)
    return {
        "intensity_mean": total / n,
        "intensity_sd": np.sqrt(exact) / n,
        "intensity_min": low,
        "intensity_max": high,
    }


def _contact_columns(rows: np.ndarray, layout: Layout, job: _Job) -> dict[str, np.ndarray]:
    """Return the area of the faces shared with each class."""
    faces = rows[:, layout.contacts].reshape(len(rows), layout.n_contacts, 3)
    z, y, x = job.voxel_size_um
    areas = np.array([y * x, z * x, z * y])
    return {
        f"contact_{name}_um2": (faces[:, k] * areas).sum(1)
        for k, name in enumerate(job.contact_names)
    }


def _directions(columns: Mapping[str, np.ndarray]) -> list[int]:
    """Add up n · v vᵀ of the longest axes as whole numbers, so that their order does not matter."""
    n = columns["n_voxels"].astype(object)
    axis = [columns[f"axis_1_{a}"] for a in AXES]
    pairs = zip(*np.triu_indices(3), strict=True)
    products = [np.rint(FIBRE_SCALE * axis[a] * axis[b]).astype(np.int64) for a, b in pairs]
    return [int((n * product.astype(object)).sum()) for product in products]


def _with_fibre(job: _Job, survey: Survey) -> _Job:
    """Fill the direction in that was to be estimated: the axis that most of the volume is along."""
    if job.fibre != "estimate":
        return job
    totals = [0] * 6
    for record in survey.ledger("total").records():
        totals = [a + b for a, b in zip(totals, record["directions"], strict=True)]
    matrix = np.zeros((3, 3))
    matrix[np.triu_indices(3)] = totals
    matrix = matrix + np.triu(matrix, 1).T
    z, y, x = np.linalg.eigh(matrix)[1][:, -1].tolist()
    sign = 1.0 if max((z, y, x), key=abs) > 0 else -1.0
    metadata = json.loads(job.metadata)
    metadata["fibre"] = [sign * z, sign * y, sign * x]
    direction = (sign * z, sign * y, sign * x)
    return replace(job, fibre=direction, metadata=json.dumps(metadata, ensure_ascii=False))


# ---------------------------------------------------------------------------------------------
# The table


def _write_columns(url: str, key: str, columns: Mapping[str, np.ndarray]) -> None:
    import pyarrow as pa

    table = pa.table(dict(columns))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_checked(url, key, sink.getvalue(), dense=True)


def _read_columns(url: str, key: str) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_file(io.BytesIO(read_checked(url, key))).read_all()


def write_part(job: _Job, survey: Survey, numbers: Numbering, part: Block) -> dict[str, Any]:
    """Number the objects of a part and write them as parquet."""
    if survey.n_parts > 1:
        if numbers.before[part.index] == numbers.before[part.index + 1]:
            return {"empty": True}
        file = f"{job.name}/part-{part.index:05d}.parquet"
    else:
        file = job.name
    measured = _read_columns(survey.scratch_url, survey.key("measured", part.index))
    write_table(job.parent, file, _numbered(job, measured, numbers.before[part.index]))
    return {}


def _numbered(job: _Job, measured: pa.Table, before: Sequence[int]) -> pa.Table:
    import pyarrow as pa

    kinds = measured["kind"].to_numpy()
    if len(job.names) == 1:
        label = measured["key"].to_numpy()
    else:
        # Rows lie by kind: the place within it, behind those of earlier parts.
        first = np.searchsorted(kinds, kinds, side="left")
        label = np.arange(len(kinds)) - first + np.array(before)[kinds] + 1
    names = pa.DictionaryArray.from_arrays(
        pa.array(kinds.astype(np.int32)), pa.array(list(job.names))
    ).cast(pa.string())
    columns = {"label": pa.array(label.astype(np.int64)), "class": names}
    columns |= {n: measured[n] for n in measured.column_names if n not in ("key", "kind")}
    if job.fibre is not None:
        along = sum(
            measured[f"axis_1_{a}"].to_numpy() * component
            for a, component in zip(AXES, job.fibre, strict=True)
        )
        degrees = np.degrees(np.arccos(np.clip(np.abs(along), 0, 1)))
        columns["angle_to_fibre_deg"] = pa.array(degrees)
    table = pa.table(columns)
    fields = [
        field.with_metadata({"description": COLUMN_NOTES.get(field.name, CONTACT_NOTE)})
        for field in table.schema
    ]
    return table.cast(pa.schema(fields, {"cvdask": job.metadata}))


def _write_empty(job: _Job, survey: Survey, numbers: Numbering) -> None:
    """Write a part without rows where there is no object, for the names of the columns."""
    if sum(numbers.totals) == 0:
        measured = _read_columns(survey.scratch_url, survey.key("measured", 0))
        table = _numbered(job, measured, numbers.before[0])
        write_table(job.parent, f"{job.name}/part-00000.parquet", table)


def _no_object(survey: Survey, job: _Job, numbers: Numbering) -> str:
    who = ", ".join(job.names[1:] or job.names)
    small = (
        f", but {numbers.n_small} smaller than {job.min_voxels} voxels" if numbers.n_small else ""
    )
    return f"no object of {who} within {survey.region}{small}: the table has no rows"


def _write_beside(table: Table, *, csv: bool, chart: bool, again: bool) -> None:
    """Write text and picture, unless they are there; ``again`` also then."""
    writers = zip(BESIDE, (csv, chart), (write_csv, draw_distributions), strict=True)
    for ending, wanted, write in writers:
        file = _beside(table.name, ending)
        if wanted and (again or not object_exists(table.parent, file)):
            write(table, file)


def _beside(name: str, ending: str) -> str:
    return name.removesuffix(".parquet") + ending


def write_csv(table: Table, file: str) -> None:
    """Write a table as text beside itself, part after part."""
    texts = (
        part.to_pandas().to_csv(index=False, header=number == 0).encode()
        for number, part in enumerate(table.batches())
    )
    write_parts(table.parent, file, texts)
