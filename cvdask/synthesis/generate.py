"""How does a trained generator become any number of label volumes?

1. :func:`generate` reads what the model says of itself, decides where in z the slices lie, and
   begins an ensemble: one ordinary sample for each volume.
2. A block is a slab of slices of one volume, a layer of whole shards. A worker draws what its
   slices start from, keyed by seed, volume and slice, never by worker or attempt; makes them in
   calls of one fixed shape; and writes the likeliest class of each voxel::

       volume 0    [ slab 0 ][ slab 1 ][ slab 2 ]      continuity "order": every slice has a latent
       volume 1    [ slab 3 ][ slab 4 ][ slab 5 ]      of its own; "volume": a volume has one

   All slices of a volume have the same noise: it does not change along z, so neighbours in the
   order of slices are more alike, and volumes differ.
   While one thread of a worker makes slices, the others write.
3. When all blocks are done, every sample gets its manifests and is shown to readers, then the
   ensemble.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask import __version__
from cvdask.engine.blockwise import run
from cvdask.engine.cluster import Pool, connect, machine_limits
from cvdask.engine.dask_pool import DaskPool
from cvdask.engine.ledger import Ledger
from cvdask.engine.plan import Plan, check_plan
from cvdask.networks.device import prepare_framework
from cvdask.synthesis import gan_file
from cvdask.synthesis.gan_file import Gan
from cvdask.volume.boxes import Block, Box, Grid
from cvdask.volume.colors import PALETTE
from cvdask.volume.ensemble import (
    Ensemble,
    begin_ensemble,
    member_names,
    open_ensemble,
    publish_ensemble,
)
from cvdask.volume.objects import delete_tree, is_remote, normalize_url, redact
from cvdask.volume.store import (
    Volume,
    create,
    describe,
    level_exists,
    publish,
    read_attributes,
    write_box,
)

if TYPE_CHECKING:
    from cvdask.synthesis.generator import Generator

LABELS = "classes"
# Slices of a block: shards of whole slices, this deep.
SLAB = 32
# Below the ensemble, outside of its members: removed in the end.
SCRATCH = ".cvdask/generate"
# Streams of chance of one seed.
LATENT, NOISE = 1, 2
# Bytes of a call for each voxel of a slice: features and their successor, at the finest resolution.
CALL_BYTES = 512
# Two blocks share a GPU: one is made while the other is written.
GPU_PER_TASK = 0.5

# A device computes one block at a time; other threads of the process write meanwhile.
_device = threading.Lock()


@dataclass(frozen=True)
class _Job:
    """What a task needs besides its block; holds no data."""

    model: str
    digest: str
    threads: int
    batch_size: int
    continuity: str
    n_latent: int
    places: tuple[float, ...]
    n_volumes: int
    seed: int
    truncation: float
    mix: tuple[int, int] | None
    interpolate_to: int | None
    values: tuple[int, ...]
    url: str
    members: tuple[str, ...]
    image: Volume
    labels: Volume


def generate(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    volumes: int = 1,
    slices: int | None = None,
    seed: int = 0,
    truncation: float = 1.0,
    z_range: tuple[int, int] | None = None,
    mix_seed: int | None = None,
    mix_layer: int | None = None,
    interpolate_to: int | None = None,
    batch_size: int = 16,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Ensemble | list[Plan]:
    """Make an ensemble of label volumes with a trained generator.

    Parameters
    ----------
    model : str or path
        A ``.keras`` file of ``train_gan``. Every worker reads it.
    out : str or path
        Where the ensemble is written.
    volumes, slices : int
        How many volumes, and slices of each; by default as many slices as lie in ``z_range``.
    seed : int
        The same seed gives the same bytes, on any number of workers.
    truncation : float
        1 is the whole variety of the training; less draws what is made towards its mean, 0 is the
        mean itself.
    z_range : (int, int), optional
        Places, counted in slices from the first that was trained on: first, and one past the last;
        by default all that were trained on. A generator of volumes makes slices one behind the
        other, from the first; one of independent slices spreads them over the range.
    mix_seed, mix_layer : int, optional
        Styles of coarse layers come from ``seed``, those from ``mix_layer`` on from ``mix_seed``;
        by default the finer half of the layers.
    interpolate_to : int, optional
        Volumes go in equal steps from ``seed`` to this seed: the same slices, step by step
        changed into others.
    batch_size : int
        Slices of a call.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plan and write nothing.

    Returns
    -------
    Ensemble
        Every member has the label image ``classes``, and as image the classes in grey. With
        ``dry_run`` the plan.

    Raises
    ------
    ValueError
        When a number breaks its rule, or places outside those trained on are asked for.
    FileExistsError
        When something else lies at ``out``.
    BlocksFailed
        When blocks could not be made or written.

    Warns
    -----
    UserWarning
        When slices are independent of each other: they have no order before ``order`` has run.
    """
    gan = gan_file.describe(model)
    _check_options(volumes, seed, truncation, batch_size)
    mix = _mixing(gan, mix_seed, mix_layer, interpolate_to, volumes)
    places = slice_places(gan, slices, z_range)
    url = normalize_url(out)
    members = member_names(volumes)
    image, labels = _describe_member(gan, f"{url}/{members[0]}", len(places))
    provenance = {
        "stage": "generate",
        "version": __version__,
        "options": {
            "volumes": volumes,
            "slices": len(places),
            "places": [places[0], places[-1]],
            "seed": seed,
            "truncation": truncation,
            "mix": list(mix) if mix else None,
            "interpolate_to": interpolate_to,
            "continuity": gan.continuity,
            "crop": gan.run.get("options", {}).get("crop", "centre"),
            "batch_size": batch_size,
        },
        "inputs": [
            {"model": normalize_url(model).rpartition("/")[2], "digest": f"sha256:{gan.digest}"}
        ],
    }
    ways = {"resume": resume, "overwrite": overwrite}
    job = _Job(
        normalize_url(model), gan.digest, 1, batch_size, gan.continuity, gan.n_latent, places,
        volumes, seed, truncation, mix, interpolate_to, gan.values, url, members, image, labels,
    )  # fmt: skip
    plan = plan_generate(job)
    state = begin_ensemble(url, members, provenance, dry_run=True, **ways)
    if dry_run:
        return [plan]
    ensemble = Ensemble(url, members)
    if state != "complete":
        notices = _notices(gan)
        for notice in notices:
            warnings.warn(notice, stacklevel=2)
        with connect(client, workers=workers) as opened:
            pool = _on_gpus(opened)
            check_plan(plan, pool.slots, pool.worker_bytes)
            begin_ensemble(url, members, provenance, **ways)
            _create_members(job, provenance)
            ledger = Ledger(url, SCRATCH)
            work = partial(_generate_block, replace(job, threads=_threads(pool)))
            run(work, plan, ledger=ledger, client=pool)
        _publish_members(job, ledger)
        publish_ensemble(ensemble, warnings=notices)
    delete_tree(url, SCRATCH.partition("/")[0])
    return open_ensemble(url)


# ---------------------------------------------------------------------------------------------
# Before work


def _check_options(volumes: int, seed: int, truncation: float, batch_size: int) -> None:
    if volumes < 1:
        raise ValueError(f"at least one volume is made. Received: {volumes}")
    if seed < 0:
        raise ValueError(f"a seed is a whole number from 0. Received: {seed}")
    if not 0 <= truncation <= 1:
        raise ValueError(f"truncation lies between 0 and 1. Received: {truncation}")
    if batch_size < 1:
        raise ValueError(f"a call makes at least one slice. Received: {batch_size}")


def _mixing(
    gan: Gan, mix_seed: int | None, mix_layer: int | None, interpolate_to: int | None, volumes: int
) -> tuple[int, int] | None:
    """Return the seed of the finer layers and the first of them; None without mixing."""
    n_layers = gan.architecture.n_layers
    if interpolate_to is not None and (mix_seed is not None or volumes < 2 or interpolate_to < 0):
        raise ValueError(
            f"interpolation goes from seed to seed over at least two volumes, without mixing. "
            f"Received: interpolate_to {interpolate_to}, {volumes} volumes, mix_seed {mix_seed}"
        )
    if mix_seed is None:
        if mix_layer is not None:
            raise ValueError(f"mix_layer {mix_layer} says where mix_seed begins: give that too")
        return None
    layer = n_layers // 2 if mix_layer is None else mix_layer
    if not 0 < layer < n_layers or mix_seed < 0:
        raise ValueError(
            f"styles are mixed from a layer between 1 and {n_layers - 1} on, with a seed from 0. "
            f"Received: layer {layer}, seed {mix_seed}"
        )
    return mix_seed, layer


def slice_places(
    gan: Gan, slices: int | None, z_range: tuple[int, int] | None
) -> tuple[float, ...]:
    """Decide where in z the slices of a volume lie: places, from 0 to 1.

    Parameters
    ----------
    gan : Gan
        Knows on which places it was trained, and how many slices lie between them.
    slices, z_range
        As in :func:`generate`.

    Raises
    ------
    ValueError
        When places outside those trained on are asked for.
    """
    steps = gan.n_slices - 1
    trained = tuple(place * steps for place in gan.places)  # in slices
    first, stop = z_range or (round(trained[0]), round(trained[1]) + 1)
    told = f"The generator was trained on slices {trained[0]:g} to {trained[1]:g}"
    if not first < stop or first < trained[0] - 0.5 or stop - 1 > trained[1] + 0.5:
        raise ValueError(
            f"slices are made where the generator was trained, it knows nothing of other places. "
            f"{told}. Received: z_range {first}:{stop}"
        )
    n = stop - first if slices is None else slices
    if n < 1:
        raise ValueError(f"a volume has at least one slice. Received: {n}")
    if gan.continuity == "volume":
        if n > stop - first:
            raise ValueError(
                f"slices of a volume lie one behind the other, where the generator was trained. "
                f"{told}; {stop - first} lie in z_range {first}:{stop}. Received: {n} slices"
            )
        numbers = np.arange(first, first + n, dtype=np.float64)
    else:
        numbers = np.linspace(first, stop - 1, n)
    # Rounding must not carry a place out of the range.
    return tuple(float(p) for p in np.clip(numbers / max(1, steps), *gan.places).astype(np.float32))


def _notices(gan: Gan) -> list[str]:
    if gan.continuity == "volume":
        return []
    return [
        "the generator makes independent slices: neighbours do not continue each other before "
        "cvdask order has put them in order"
    ]


def _describe_member(gan: Gan, url: str, n_slices: int) -> tuple[Volume, Volume]:
    """Describe a sample: the image, and the label image on it."""
    side = gan.resolution
    slab = min(SLAB, n_slices)
    chunk = (slab, min(256, side), min(256, side))
    colors = {
        value: gan.colors.get(value, PALETTE[(number - 1) % len(PALETTE)])
        for number, value in enumerate(gan.values)
        if number
    }
    common: dict[str, Any] = {
        "shape": (n_slices, side, side),
        "dtype": "uint8",
        "voxel_size_nm": gan.voxel_size_nm,
        "chunk_shape": chunk,
        "shard_shape": (slab, side, side),
    }
    labels = describe(url, labels=LABELS, classes=gan.classes, colors=colors, **common)
    return describe(url, **common), labels


def plan_generate(job: _Job) -> Plan:
    """Plan the ensemble: blocks are slabs of one volume. As small for a thousand as for one."""
    level = job.image.levels[0]
    slice_voxels = level.shape[1] * level.shape[2]
    grid = Grid((job.n_volumes, *level.shape), (1, *level.shard_shape))
    n_channels = len(job.values)
    return Plan(
        stage="generate",
        grid=grid,
        output=job.url,
        write_bytes=2 * level.nbytes * job.n_volumes,
        task_bytes=slice_voxels
        * (4 * level.shard_shape[0] + job.batch_size * (CALL_BYTES + 8 * n_channels)),
        # Measured: labels take 2 to 5 % of their bytes, and their grey image as much.
        stored_bytes=int(0.1 * level.nbytes * job.n_volumes),
        notes={
            "volumes": job.n_volumes,
            "slices": level.shape[0],
            "places": [job.places[0], job.places[-1]],
            "continuity": job.continuity,
        },
    )


def _on_gpus(pool: Pool) -> Pool:
    """Narrow a cluster down to its workers with a GPU, where there are any."""
    if not isinstance(pool, DaskPool):
        return pool
    workers = pool.client.scheduler_info(n_workers=-1)["workers"].values()
    if not any(worker.get("resources", {}).get("GPU") for worker in workers):
        return pool
    return DaskPool(pool.client, {"GPU": GPU_PER_TASK})


def _threads(pool: Pool) -> int:
    """Return the cores that one call may use: processes share them, threads take turns."""
    cores = machine_limits().cores
    return max(1, cores // pool.slots) if isinstance(pool, DaskPool) else cores


# ---------------------------------------------------------------------------------------------
# Making slices


@lru_cache(maxsize=1)
def _generator(model: str, digest: str, threads: int, batch_size: int) -> Generator:
    """Load the generator, once per process."""
    prepare_framework(threads)
    gan = gan_file.load(model)
    if gan.digest != digest:
        raise ValueError(
            f"every worker must find the model that the run began with, {digest[:12]}…. Received "
            f"at {redact(model)}: {gan.digest[:12]}…"
        )
    return gan.generator(batch_size)


def _generate_block(job: _Job, block: Block) -> dict[str, Any]:
    number, z0 = block.write.start[:2]
    z1 = block.write.stop[1]
    with _device:
        generator = _generator(job.model, job.digest, job.threads, job.batch_size)
        channels = np.concatenate(
            [
                make_slices(job, generator, number, range(z, min(z + job.batch_size, z1)))
                for z in range(z0, z1, job.batch_size)
            ]
        )
    box = Box(block.write.start[1:], block.write.stop[1:])
    url = f"{job.url}/{job.members[number]}"
    values = np.array(job.values, np.uint8)
    shards = {}
    for volume, table in ((job.image, grey_values(len(values))), (job.labels, values)):
        level = volume.levels[0]
        digests = write_box(url, level, box, table[channels])
        shards[f"{job.members[number]}/{level.path}"] = digests
    return {"shards": shards}


def grey_values(n_channels: int) -> np.ndarray:
    """Spread channels over grey, so that any viewer shows something.

    >>> grey_values(4)
    array([  0,  85, 170, 255], dtype=uint8)
    """
    return np.round(np.linspace(0, 255, n_channels)).astype(np.uint8)


def make_slices(job: _Job, generator: Generator, number: int, slices: Sequence[int]) -> np.ndarray:
    """Make some slices of one volume: (n, R, R) uint8 channel numbers.

    Their numbers decide what they are; how many are made at once does not.
    """
    places = np.array([job.places[z] for z in slices], np.float32)
    # Along an interpolation all volumes start from the same numbers.
    drawn = 0 if job.interpolate_to is not None else number
    latents = _latents(job, job.seed, drawn, slices)
    style = generator.styles(latents, places, job.truncation)
    if job.mix is not None:
        other_seed, layer = job.mix
        other = generator.styles(_latents(job, other_seed, drawn, slices), places, job.truncation)
        n_layers = generator.architecture.n_layers
        own = np.arange(n_layers)[:, None] < layer
        style = np.where(own, style[:, None], other[:, None])  # (n, n_layers, W)
    elif job.interpolate_to is not None:
        to = _latents(job, job.interpolate_to, drawn, slices)
        share = np.float32(number / (job.n_volumes - 1))
        style = (1 - share) * style + share * generator.styles(to, places, job.truncation)
    seed = np.random.default_rng([job.seed, NOISE, drawn, 0]).integers(0, 2**32, dtype=np.uint32)
    probabilities = generator.synthesise(style, np.repeat(seed, len(slices)))
    return probabilities.argmax(axis=-1).astype(np.uint8)


def _latents(job: _Job, seed: int, number: int, slices: Sequence[int]) -> np.ndarray:
    """Draw the latents of slices: one for each, or one for all of a continuous volume."""
    rows = [
        np.random.default_rng([seed, LATENT, number, z]).standard_normal(job.n_latent, np.float32)
        for z in ([0] * len(slices) if job.continuity == "volume" else slices)
    ]
    return np.stack(rows)


# ---------------------------------------------------------------------------------------------
# Members


def _member(job: _Job, number: int) -> tuple[Volume, Volume]:
    url = f"{job.url}/{job.members[number]}"
    return replace(job.image, url=url), replace(job.labels, url=url)


def _create_members(job: _Job, provenance: Mapping[str, Any]) -> None:
    """Write the metadata of all samples that are not there yet; the client does."""
    for number in range(job.n_volumes):
        for volume in _member(job, number):
            name = volume.name if volume.is_labels else None
            begun = read_attributes(volume.url, labels=name)
            if not begun or not level_exists(volume.url, volume.levels[0]):
                create(volume, {**provenance, "member": job.members[number]})


def _publish_members(job: _Job, ledger: Ledger) -> None:
    """Record what was written and show the samples to readers, label images first."""
    _remove_leftovers(job.url)
    paths = {
        (name, volume.levels[0].path): replace(
            volume.levels[0], path=f"{name}/{volume.levels[0].path}"
        )
        for name in job.members
        for volume in (job.image, job.labels)
    }
    digests = ledger.seal(list(paths.values()))
    for number, name in enumerate(job.members):
        image, labels = _member(job, number)
        for volume in (labels, image):
            path = volume.levels[0].path
            publish(volume, digests={path: digests[f"{name}/{path}"]})


def _remove_leftovers(url: str) -> None:
    """Remove temporary files that a killed writer left on a local disk."""
    if not is_remote(url):
        for leftover in Path(url).rglob("*.partial"):
            leftover.unlink(missing_ok=True)
