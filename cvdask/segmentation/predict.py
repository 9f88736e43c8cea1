"""From a trained network to a segmented volume: every voxel's class, the same whatever the blocks.

1. ``segmentation.tiling`` chooses the blocks: whole slices where they fit, else tiles with a halo.
2. One worker loads the network before anything is written: a damaged file ends the command there,
   and a reduced precision is compared with float32: by its scores on the patches that the training
   validated on, or, where those cannot be found, on a few slices of this volume.
3. A task reads the box it will write and the network's halo around it, in y and x, from multiples
   of the network's stride. Slices are classified one by one, a batch per call; planes across y and
   x too where that is wanted, and their probabilities averaged. The task writes its own box, whole
   shards, and nothing else.
4. The coarser levels follow; the label image is shown to readers when all is there.

Within the halo the network sees what it would see in the whole slice, and what it imagines beyond
reaches no pixel that is kept. So only rounding can differ, and the class only where two are equally
likely to the last digits.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cvdask import __version__
from cvdask.engine.blockwise import Mask
from cvdask.engine.cluster import Pool, connect
from cvdask.engine.dask_pool import DaskPool
from cvdask.engine.ledger import Record
from cvdask.engine.output import begin, fill
from cvdask.engine.plan import Plan
from cvdask.errors import DamagedData
from cvdask.networks.device import has_gpu
from cvdask.segmentation import model_file
from cvdask.segmentation.forward import (
    BFLOAT16_FLAGS,
    PRECISIONS,
    RUNTIMES,
    Network,
    NetworkSettings,
    Quantised,
    load_network,
    quantise_network,
    supports_bfloat16,
    supports_int8,
)
from cvdask.segmentation.openvino_graph import check_openvino
from cvdask.segmentation.patches import Patch, read_patch
from cvdask.segmentation.quantise import INT8_FLAGS, check_quantiser
from cvdask.segmentation.tiling import (
    ALONG_Z,
    CPU_BATCH_PIXELS,
    GPU_BATCH_PIXELS,
    output_shapes,
    plan_segment,
    read_window,
)
from cvdask.segmentation.unet import Architecture
from cvdask.volume.boxes import Block, Box
from cvdask.volume.colors import PALETTE
from cvdask.volume.objects import (
    delete_object,
    is_remote,
    normalize_url,
    read_json,
    read_object,
    redact,
    write_json,
    write_object,
)
from cvdask.volume.ome import label_name
from cvdask.volume.pyramid import build_levels, plan_level, plan_levels
from cvdask.volume.store import (
    Level,
    Volume,
    describe,
    open_volume,
    publish,
    read_attributes,
    read_box,
    volume_digest,
    write_box,
)

if TYPE_CHECKING:
    from cvdask.segmentation.model_file import UNet

# Two tasks share a GPU: while one computes, the other reads or writes.
GPU_PER_TASK = 0.5
# Slices that a reduced precision is compared on, and the extent of what is taken of each.
COMPARED_SLICES = 3
COMPARED_EXTENT = 512
# Slices that int8 takes the ranges of its numbers from.
CALIBRATION_SLICES = 8
# Planes across y and x look like slices where voxels are this nearly as high as wide.
MOST_ANISOTROPIC = 1.25
AXES = {"z": (0,), "zyx": (0, 1, 2)}
# An image this many standard deviations off the training's grey values was never what is meant.
FAR_OFF = 10.0


@dataclass(frozen=True)
class _Job:
    """What a task needs besides its block."""

    image: Volume
    outputs: tuple[Volume, ...]
    network: NetworkSettings
    architecture: Architecture
    region: Box
    mask: Volume | None
    batch_size: int
    axes: tuple[int, ...]


def segment(
    volume: Volume | str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    name: str = "classes",
    probabilities: bool = False,
    tta: bool = False,
    axes: str = "z",
    precision: str = "float32",
    runtime: str = "keras",
    max_changed: float = 0.005,
    max_loss: float = 0.005,
    roi: Box | str | None = None,
    mask: Volume | str | None = None,
    z_range: tuple[int, int] | None = None,
    batch_size: int | None = None,
    block_yx: tuple[int, int] | None = None,
    gpu: bool | None = None,
    client: Any = None,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Volume | list[Plan]:
    """Classify every voxel of a volume with a trained network.

    Parameters
    ----------
    volume : Volume, str or path
        The sample; the label image is added to it.
    model : str or path
        File of :func:`cvdask.train_unet`. Every worker must find it at this place.
    name : str
        Name of the label image.
    probabilities : bool
        Write the probability p of every class as well, as round(255 p) in a label image
        ``<name>_p_<class>`` of one level.
    tta : bool
        Test-time augmentation: average the probabilities over the flipped slice, and where voxels
        are as high as wide and the training was not ``upright``, over the slice turned by 90° as
        well. Takes 4 or 8 times as long.
    axes : {"z", "zyx"}
        Planes that the network sees: slices, or planes across y and x as well, with the mean of
        their probabilities. Needs voxels that are about as deep as they are wide, and takes three
        times as long and more, since blocks then have a halo in z as well.
    precision : {"float32", "bfloat16", "int8"}
        ``bfloat16`` multiplies with 8 instead of 24 significant bits, on processors and GPUs that
        have it; ``int8`` with integers of 8 bits, on processors that have them (extra ``int8``).
        Elsewhere float32 is used, with a warning.
    runtime : {"keras", "openvino"}
        What computes on a CPU: the backend of Keras, or OpenVINO (extra ``int8``), which is faster
        for wide networks such as ``paper``. The results differ by rounding.
    max_loss : float
        What a reduced precision may lose in mean F1, 0 to 1, on the patches that the training
        validated on; beyond, it is refused.
    max_changed : float
        Where those patches are not to be found or are altered: the share of voxels, 0 to 1, that it
        may classify otherwise than float32, on three slices of this volume.
    roi : Box or str, optional
        Region to segment, as a box or as ``z0:z1,y0:y1,x0:x1``. The rest stays 0.
    mask : Volume or str, optional
        Label image of this sample: only where it is not 0. The rest stays 0.
    z_range : tuple of int, optional
        First slice and one past the last, within ``roi`` where both are given.
    batch_size : int, optional
        Slices per call of the network; by default about a million pixels, eight on a GPU.
    block_yx : tuple of int, optional
        Height and width of a block. By default the largest that the memory of a worker holds.
    gpu : bool, optional
        True: only workers that offer the resource ``GPU``. None: those, where any does.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`. One task per process computes at
        a time, on all its cores or its GPU; with several threads (``"threads"``, or workers of two
        threads), others read and write meanwhile.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`. An interrupted run is always continued.
    dry_run : bool
        Return the plans and write nothing.

    Returns
    -------
    Volume
        The label image, with class names and colours. What a user should know of the run is in
        ``.attributes["warnings"]``. With ``dry_run`` the list of plans.

    Raises
    ------
    ValueError
        Before anything is written: when an option breaks its rule, the model file is damaged or
        was trained for other images, or the reduced precision loses or changes too much.
    MemoryError
        When no block fits a worker.
    FileExistsError
        When something else lies at ``labels/<name>``.
    BlocksFailed
        When blocks could not be read, classified or written; all others are done.

    Warns
    -----
    UserWarning
        When the voxel size is not the training's, the precision is not there, or a device's memory
        ran out so that smaller batches were used. Recorded with the label image.
    """
    _check_options(
        precision, runtime, {"max_changed": max_changed, "max_loss": max_loss}, batch_size, block_yx
    )
    image = volume if isinstance(volume, Volume) else open_volume(volume)
    model_url = normalize_url(model)
    unet = model_file.describe(model_url)
    notices = _check_fit(unet, image)
    region = _region(image, roi, z_range)
    masked = _open_mask(image, mask, name)
    spacing = image.voxel_size_nm
    assert spacing is not None
    across = _check_axes(axes, image)
    # A quarter turn shows an image like those of the training only where voxels are as high as
    # wide, and where the training turned its crops.
    turnable = np.isclose(spacing[1], spacing[2], rtol=0.01) and not unet.upright
    n_views = (8 if turnable else 4) if tta else 1
    outputs = describe_outputs(image, unet.classes, name, probabilities, block_yx)
    main = outputs[0]
    full = replace(main, levels=(main.levels[0], *plan_levels(main.levels[0])))
    digest = model_file.digest(model_url)
    provenance = {
        "stage": "segment",
        "version": __version__,
        "options": {
            "name": name,
            "probabilities": probabilities,
            "n_views": n_views,
            "axes": axes,
            "precision": precision,
            **({} if runtime == "keras" else {"runtime": runtime}),
            "region": str(region),
            "block_yx": list(block_yx) if block_yx else None,
            "batch_size": batch_size,
        },
        "inputs": [
            {"volume": image.name, "digest": volume_digest(image)},
            {"model": model_url.rpartition("/")[2], "digest": f"sha256:{digest}"},
            *([{"mask": masked.name, "digest": volume_digest(masked)}] if masked else []),
        ],
    }
    ways = {"resume": resume, "overwrite": overwrite}
    state = begin(outputs, provenance, dry_run=True, **ways)
    if state == "complete" and not dry_run:
        return open_volume(image.url, labels=name)
    with connect(client, workers=workers) as opened:
        pool = _with_gpus(opened, gpu)
        begun_with = _begun_with(main) if state == "begun" else _Choices()
        used = begun_with.prediction.get("precision", precision)
        plan = plan_segment(
            image.levels[0],
            unet.architecture,
            outputs,
            region=region,
            worker_bytes=pool.worker_bytes,
            batch_size=batch_size,
            batch_pixels=GPU_BATCH_PIXELS if _expects_gpu(pool) else CPU_BATCH_PIXELS,
            block_yx=begun_with.block_yx or _block_extents(block_yx, main.levels[0]),
            depth=begun_with.depth,
            tta=n_views > 1,
            axes=across,
        )
        if dry_run:
            pairs = zip(full.levels, full.levels[1:], strict=False)
            return [plan, *(plan_level(image.url, fine, coarse) for fine, coarse in pairs)]
        asked = NetworkSettings(model_url, digest, used, n_views, *_sharing(pool), runtime=runtime)
        job = _Job(
            image,
            outputs,
            asked,
            unet.architecture,
            region,
            masked,
            plan.notes["batch_size"],
            across,
        )
        probe, data = pool.submit(_probe, job, begun_with.prediction, bool(gpu)).result()
        notices += _judge(probe, precision, max_changed, max_loss)
        for notice in notices:
            warnings.warn(notice, stacklevel=2)
        begin(outputs, provenance, **ways)
        quantised = begun_with.quantised
        if not begun_with.prediction:
            # The choices last: where they are, all that was chosen is there.
            quantised = _remember_quantised(main, data) if data else None
            _remember_choices(main, plan, probe)
        job = replace(
            job, network=replace(asked, precision=probe["precision"], quantised=quantised)
        )
        fill(
            outputs,
            plan,
            partial(_segment_block, job),
            remember=partial(_remember, probe),
            client=pool,
            mask=_engine_mask(masked),
        )
        delete_object(main.url, _choices_key(main))
        delete_object(main.url, _quantised_key(main))
        late = _late_notices(read_attributes(main.url, labels=name), plan)
        for notice in late:
            warnings.warn(notice, stacklevel=2)
        build_levels(full, client=pool)
    for other in outputs[1:]:
        publish(other)
    # The classes last: readers who see them see the probabilities too.
    publish(full, warnings=[*notices, *late])
    return open_volume(image.url, labels=name)


# ---------------------------------------------------------------------------------------------
# Before work: options, fit, outputs


def _check_options(
    precision: str,
    runtime: str,
    limits: Mapping[str, float],
    batch_size: int | None,
    block_yx: tuple[int, int] | None,
) -> None:
    if precision not in PRECISIONS:
        raise ValueError(
            f"networks are run in {' or '.join(PRECISIONS)}. Received: {precision!r}. Those with "
            f"fewer bits are faster, where the processor has them"
        )
    if runtime not in RUNTIMES:
        raise ValueError(f"networks are run by {' or '.join(RUNTIMES)}. Received: {runtime!r}")
    if runtime == "openvino":
        check_openvino()
    if precision == "int8":
        check_quantiser()
    for name, limit in limits.items():
        if not 0 <= limit <= 1:
            raise ValueError(f"{name} lies between 0 and 1. Received: {limit}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"a batch holds at least one slice. Received: {batch_size}")
    for axis, extent in zip("yx", block_yx or (), strict=False):
        if extent < 1:
            raise ValueError(f"a block has at least one voxel. Received along {axis}: {extent}")


def _check_axes(axes: str, image: Volume) -> tuple[int, ...]:
    """Return the axes that planes lie across; refuse those that would show another tissue."""
    if axes not in AXES:
        raise ValueError(f"planes lie across {' or '.join(AXES)}. Received: {axes!r}")
    assert image.voxel_size_nm is not None
    z, y, x = image.voxel_size_nm
    if axes != "z" and max(z, y, x) > MOST_ANISOTROPIC * min(z, y, x):
        raise ValueError(
            f"planes across y and x look like slices only where no side of a voxel is more than "
            f"{MOST_ANISOTROPIC:g} times another. Received: {z:g} × {y:g} × {x:g} nm in "
            f"{image.name}. Leave it at --axes z"
        )
    return AXES[axes]


def _check_fit(unet: UNet, image: Volume) -> list[str]:
    """Refuse an image that the network was not trained for; return what the user should know."""
    if image.is_labels:
        raise ValueError(f"an image is segmented. Received: the label image {image.name!r}")
    if image.voxel_size_nm is None:
        raise ValueError(f"{image.name} states no voxel size, so labels cannot be placed on it")
    if unet.architecture.in_channels != 1:
        raise ValueError(
            f"a volume has one channel. Received: a model for {unet.architecture.in_channels}. "
            f"Train one on images like this one"
        )
    if unet.image_dtype != image.dtype.name:
        raise ValueError(
            f"a model takes images of the type it was trained on, {unet.image_dtype}. Received: "
            f"{image.dtype.name} in {image.name}. Ingest it with that type and a recorded range "
            f"(--dtype, --range), or train on images like this one"
        )
    _check_grey_values(unet, image)
    trained, here = unet.voxel_size_nm[1:], image.voxel_size_nm[1:]
    if np.allclose(trained, here, rtol=0.01):
        return []
    return [
        f"the model was trained on voxels of {trained[0]:g} × {trained[1]:g} nm (y × x), these "
        f"have {here[0]:g} × {here[1]:g} nm: things look larger or smaller to it. Check the result"
    ]


def _check_grey_values(unet: UNet, image: Volume) -> None:
    """Refuse images on another scale, such as 0 to 1 for a network trained on 0 to 255."""
    middle = [
        (max(0, (n - COMPARED_EXTENT) // 2), min(n, (n + COMPARED_EXTENT) // 2))
        for n in image.shape[1:]
    ]
    for z in _spread(Box.whole(image.shape)):
        box = Box((z, middle[0][0], middle[1][0]), (z + 1, middle[0][1], middle[1][1]))
        try:
            part = image.read(box)
        except DamagedData:
            continue  # its block will be listed with the others
        if part.min() == part.max():
            continue  # blank: says nothing about the scale
        off = abs(float(part.mean(dtype=np.float64)) - unet.mean) / unet.sd
        if not off <= FAR_OFF:
            raise ValueError(
                f"grey values must be on the scale of the training: mean {unet.mean:.4g}, standard "
                f"deviation {unet.sd:.4g}. Received: mean {part.mean(dtype=np.float64):.4g} in "
                f"slice z = {z} of {image.name}, {off:.1f} standard deviations off. Ingest the "
                f"image with the same conversion as the training's"
            )


def _spread(region: Box, n_wanted: int = COMPARED_SLICES) -> list[int]:
    """Choose a few slices of a region, spread over z.

    >>> _spread(Box((0, 0, 0), (20, 8, 8)))
    [3, 10, 16]
    """
    first, n_slices = region.start[0], region.shape[0]
    places = (2 * i + 1 for i in range(n_wanted))
    return sorted({first + n_slices * place // (2 * n_wanted) for place in places})


def _region(image: Volume, roi: Box | str | None, z_range: tuple[int, int] | None) -> Box:
    """Return the voxels that are wanted."""
    whole = Box.whole(image.shape)
    region = Box.parse(roi, image.shape) if isinstance(roi, str) else roi or whole
    if not whole.contains(region) or region.size == 0:
        raise ValueError(
            f"the region must hold at least one voxel and lie inside the volume {whole}. "
            f"Received: {region}"
        )
    if z_range is None:
        return region
    first, last = z_range
    if not 0 <= first < last <= image.shape[0]:
        raise ValueError(
            f"z_range names slices of the volume, 0 <= first < last+1 <= {image.shape[0]}. "
            f"Received: {first}:{last}"
        )
    cut = region.intersect(Box((first, 0, 0), (last, *image.shape[1:])))
    if cut.size == 0:
        raise ValueError(f"z_range {first}:{last} and the region {region} share no slice")
    return cut


def _open_mask(image: Volume, mask: Volume | str | None, name: str) -> Volume | None:
    if mask is None:
        return None
    opened = image.label(mask) if isinstance(mask, str) else mask
    if opened.url == image.url and opened.group == f"labels/{name}":
        raise ValueError(f"a mask cannot be what is written. Received for both: {name!r}")
    if opened.shape != image.shape:
        raise ValueError(
            f"a mask has the shape of its image, {image.shape}. Received: {opened.shape} of "
            f"{opened.name}"
        )
    return opened


def _engine_mask(mask: Volume | None) -> Mask | None:
    return None if mask is None else Mask(mask.url, mask.levels[0], (1, 1, 1))


def describe_outputs(
    image: Volume,
    classes: Mapping[int, str],
    name: str,
    probabilities: bool,
    block_yx: tuple[int, int] | None = None,
) -> tuple[Volume, ...]:
    """Describe the label image, and one for the probabilities of each class. Writes nothing.

    Parameters
    ----------
    image : Volume
    classes : mapping of int to str
        Names of the label values, without the background.
    name : str
    probabilities : bool
        Whether the latter are wanted.
    block_yx : tuple of int, optional
        Extent of the shards in y and x.

    Raises
    ------
    ValueError
        When two classes would share a name, or a shard cannot be cut into chunks.
    """
    level = image.levels[0]
    chunk, shard = output_shapes(level.shape, level.chunk_shape, block_yx)
    values = sorted(classes)
    names = [label_name(f"{name}_p_{classes[value]}") for value in values]
    if probabilities and len(set(names)) < len(names):
        raise ValueError(f"the probabilities of different classes need names. Received: {names}")
    common: dict[str, Any] = {
        "shape": level.shape,
        "dtype": "uint8",
        "voxel_size_nm": level.voxel_size_nm,
        "chunk_shape": chunk,
        "shard_shape": shard,
    }
    colors = {value: PALETTE[(value - 1) % len(PALETTE)] for value in values}
    described = [describe(image.url, labels=name, classes=classes, colors=colors, **common)]
    if probabilities:
        described += [describe(image.url, labels=one, **common) for one in names]
    return tuple(
        replace(one, levels=(replace(one.levels[0], origin_nm=level.origin_nm),))
        for one in described
    )


# ---------------------------------------------------------------------------------------------
# Blocks of a run


def _block_extents(block_yx: tuple[int, int] | None, level: Level) -> tuple[int, int] | None:
    """Return the blocks that a user asked for: the shards were cut to them."""
    return None if block_yx is None else (level.shard_shape[1], level.shard_shape[2])


# Markers of a begun run name blocks by number, which means something in one grid only. So what was
# chosen for a begun run is kept beside its markers: another machine, or another number of workers,
# has another memory and other instructions and would choose otherwise. The ranges of an int8
# network are a choice too.


@dataclass(frozen=True)
class _Choices:
    """What a run was begun with; nothing for one that is yet to begin.

    Parameters
    ----------
    block_yx : (y, x), or None
        Extent of its blocks, in voxels; None also where all of them are done.
    depth : int, or None
        The same along z.
    prediction : mapping
        What :func:`_probe` found.
    quantised : Quantised, or None
        The network of an int8 run.
    """

    block_yx: tuple[int, int] | None = None
    depth: int | None = None
    prediction: Mapping[str, Any] = field(default_factory=dict)
    quantised: Quantised | None = None


def _choices_key(main: Volume) -> str:
    return f"{main.levels[0].path}/.cvdask/blocks.json"


def _begun_with(main: Volume) -> _Choices:
    kept = read_json(main.url, _choices_key(main))
    if kept is None:
        # Before the first block, or after the last: then the prediction has been recorded.
        recorded = read_attributes(main.url, labels=main.name).get("prediction", {})
        return _Choices(prediction=recorded)
    quantised = None
    if kept["prediction"]["precision"] == "int8":
        data = read_object(main.url, _quantised_key(main))
        if data is None:
            raise DamagedData(
                f"a run in int8 goes on with the network that it was begun with. Received: none at "
                f"{redact(main.url)}/{_quantised_key(main)}. Start over with --overwrite"
            )
        quantised = _quantised_at(main, data)
    extents = (int(kept["y"]), int(kept["x"]))
    return _Choices(extents, int(kept["z"]), kept["prediction"], quantised)


def _remember_choices(main: Volume, plan: Plan, prediction: Mapping[str, Any]) -> None:
    extents = dict(zip("zyx", plan.grid.block_shape, strict=True))
    write_json(main.url, _choices_key(main), {**extents, "prediction": dict(prediction)})


def _quantised_key(main: Volume) -> str:
    return f"{main.levels[0].path}/.cvdask/int8"


def _quantised_at(main: Volume, data: bytes) -> Quantised:
    return Quantised(main.url, _quantised_key(main), hashlib.sha256(data).hexdigest())


def _remember_quantised(main: Volume, data: bytes) -> Quantised:
    write_object(main.url, _quantised_key(main), data)
    return _quantised_at(main, data)


# ---------------------------------------------------------------------------------------------
# Where it runs


def _offers_gpu(pool: DaskPool) -> bool:
    workers = pool.client.scheduler_info(n_workers=-1)["workers"].values()
    return any(worker.get("resources", {}).get("GPU") for worker in workers)


def _with_gpus(pool: Pool, gpu: bool | None) -> Pool:
    """Narrow a cluster down to its workers with a GPU, where there are any."""
    if isinstance(pool, DaskPool) and (gpu or (gpu is None and _offers_gpu(pool))):
        return DaskPool(pool.client, {"GPU": GPU_PER_TASK})
    return pool


def _expects_gpu(pool: Pool) -> bool:
    """Guess, without starting a framework, whether networks run on a GPU there."""
    if isinstance(pool, DaskPool):
        return _offers_gpu(pool)
    return any(Path(driver).exists() for driver in ("/proc/driver/nvidia/version", "/dev/kfd"))


def _sharing(pool: Pool) -> tuple[int, int]:
    """Return threads per worker process, and worker processes per machine."""
    if not isinstance(pool, DaskPool):
        return pool.slots, 1
    workers = pool.client.scheduler_info(n_workers=-1)["workers"].values()
    hosts = [worker["host"] for worker in workers]
    return min(int(worker["nthreads"]) for worker in workers), max(map(hosts.count, hosts))


# ---------------------------------------------------------------------------------------------
# On the workers


def _probe(
    job: _Job, known: Mapping[str, Any], gpu: bool
) -> tuple[Mapping[str, Any], bytes | None]:
    """Load the network on a worker and see how it will run: device, precision, what that changes.

    Parameters
    ----------
    job : _Job
    known : mapping
        What was found when the run was begun: it goes on like that. Empty for a new run.
    gpu : bool

    Returns
    -------
    found, data
        What is to be remembered, and the int8 network where one was made.

    Raises
    ------
    ValueError
        When the model file is damaged, or a GPU was asked for and is not there, or is there where
        the processor was asked for.
    """
    settings = _usable(job.network)
    exact = load_network(replace(settings, precision="float32"))
    if gpu and not has_gpu():
        raise ValueError("a GPU was asked for, and the framework on this worker sees none")
    if has_gpu() and settings.runtime == "openvino":
        raise ValueError(
            "runtime openvino computes on the processor, and this worker has a GPU, which is "
            "faster. Leave the runtime out"
        )
    if known:
        return known, None
    found: dict[str, Any] = {"device": "gpu" if has_gpu() else "cpu"}
    found["precision"] = settings.precision
    if settings.runtime != "keras":
        found["runtime"] = settings.runtime
    data = None
    if settings.precision == "float32":
        return found, data
    if settings.precision == "int8":
        parts = [images[0] for _, images, _ in _samples(job, CALIBRATION_SLICES)]
        data, reduced = quantise_network(settings, np.stack(parts))
    else:
        reduced = load_network(settings)
    scores = [_validation_score(network, job.image) for network in (exact, reduced)]
    if None in scores:
        found["changed_share"] = round(_changed_share(job, reduced, exact), 6)
    else:
        found["f1_float32"], found[f"f1_{settings.precision}"] = (
            round(cast(float, score), 6) for score in scores
        )
    return found, data


def _usable(settings: NetworkSettings) -> NetworkSettings:
    """Return the settings this machine can run: float32 where it has no instructions for less."""
    supported = {"bfloat16": supports_bfloat16, "int8": supports_int8}.get(settings.precision)
    if supported is not None and not supported():
        return replace(settings, precision="float32", quantised=None)
    return settings


def _samples(job: _Job, n_slices: int) -> Iterator[tuple[Box, np.ndarray, tuple[slice, ...]]]:
    """Read the middle of some slices of the region, with what the network sees around it.

    Yields the box that counts, the images (1, Y, X), and where in them the box lies. Slices that
    cannot be read are passed over: their blocks will be listed with the others.
    """
    region = job.region
    start, stop = [], []
    for axis in (1, 2):
        middle = (region.start[axis] + region.stop[axis]) // 2
        start.append(max(region.start[axis], middle - COMPARED_EXTENT // 2))
        stop.append(min(region.stop[axis], middle + COMPARED_EXTENT // 2))
    places = _spread(region, n_slices)
    damages = []
    for z in places:
        kept = Box((z, *start), (z + 1, *stop))
        window = read_window(job.image.shape, kept, job.architecture)
        try:
            images = read_box(job.image.url, job.image.levels[0], window)
        except DamagedData as error:
            damages.append(error)
            continue
        yield kept, images, kept.within(window)
    if len(damages) == len(places):
        raise damages[0]


def _changed_share(job: _Job, reduced: Network, exact: Network) -> float:
    """Return the share of voxels that a reduced precision classifies otherwise, on a few slices."""
    changed = total = 0
    for kept, images, inner in _samples(job, COMPARED_SLICES):
        one, other = (network.classify(images).classes[inner] for network in (reduced, exact))
        changed += int(np.count_nonzero(one != other))
        total += kept.size
    return changed / total


def _validation_score(network: Network, image: Volume) -> float | None:
    """Return the mean F1 on the patches that the training validated on.

    None where the training has not recorded any, or they are not where they were, or not the same.
    A model file may come from anywhere: of the places it names, only those on a local disk and the
    volume at hand are looked at.
    """
    # Late: it loads the network framework, which has been loaded where a network is.
    from cvdask.segmentation.train import confusion_matrix, f1_scores

    run, values = network.unet.run, network.unet.values
    confusion = np.zeros((len(values), len(values)), np.int64)
    try:
        patches = [Patch(**described) for described in run.get("validation", ())]
        recorded = {one["path"]: one for one in run.get("inputs", ())}
        for url, labels in {(patch.volume_url, patch.labels) for patch in patches}:
            sample = open_volume(url) if url == image.url or not is_remote(url) else None
            if sample is None or recorded[url] != {
                "path": url,
                "digest": volume_digest(sample),
                "labels": labels,
                "labels_digest": volume_digest(sample.label(labels)),
            }:
                return None
        for patch in patches:
            grey, target = read_patch(patch, values[1:])
            predicted = network.predict(grey[None])[0].argmax(-1)  # (S, S)
            confusion += confusion_matrix(target, predicted, len(values))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    # A class that the patches do not show has no score, or 0 for the first voxel taken for it.
    by_class = zip(f1_scores(confusion)[1:], confusion.sum(1)[1:], strict=True)
    scores = [score for score, n_voxels in by_class if n_voxels]
    return float(np.mean(scores)) if scores else None


def _judge(
    probe: Mapping[str, Any], precision: str, max_changed: float, max_loss: float
) -> list[str]:
    """Refuse a precision that loses or changes too much; say so where it is not there.

    A run that goes on elsewhere says the same: what it leaves must not tell of the interruption.
    """
    if probe["precision"] != precision:
        missing = " or ".join(sorted({"bfloat16": BFLOAT16_FLAGS, "int8": INT8_FLAGS}[precision]))
        return [
            f"the processor that the run was begun on has no {precision} instructions ({missing})"
            f"{', and there is no GPU' if precision == 'bfloat16' else ''}: "
            f"{probe['precision']} was used"
        ]
    score = probe.get(f"f1_{precision}")
    if score is not None and probe["f1_float32"] - score > max_loss:
        raise ValueError(
            f"{precision} may lose at most {max_loss:.4f} of the F1 on the training's validation "
            f"patches. Received: {score:.4f} instead of {probe['f1_float32']:.4f}. Use float32, or "
            f"allow more with --max-loss"
        )
    changed = probe.get("changed_share", 0.0)
    if changed > max_changed:
        raise ValueError(
            f"{precision} may give at most {max_changed:.2%} of the voxels another class than "
            f"float32. Received: {changed:.2%} on slices of this volume. Use float32, or allow "
            f"more with --max-changed"
        )
    return []


def _segment_block(job: _Job, block: Block) -> Record:
    """Read, classify and write one block; remember what did not go as planned."""
    kept = block.write.intersect(job.region)
    wanted = None
    if job.mask is not None:
        wanted = read_box(job.mask.url, job.mask.levels[0], kept) != 0
    arrays = [np.zeros(block.write.shape, np.uint8) for _ in job.outputs]
    record: Record = {}
    if wanted is None or wanted.any():
        window = read_window(job.image.shape, kept, job.architecture, job.axes)
        image = read_box(job.image.url, job.image.levels[0], window)  # (Z, Y, X)
        inner = kept.within(window)
        settings = _usable(job.network)
        network = load_network(settings)
        options: dict[str, Any] = {"probabilities": len(arrays) > 1}
        if job.axes == ALONG_Z:
            found = network.classify(image, job.batch_size, **options)
        else:
            found = network.classify_across(image, inner, job.axes, job.batch_size, **options)
            inner = (slice(None),) * 3
        parts = [found.classes, *(() if found.probabilities is None else found.probabilities)]
        for array, whole in zip(arrays, parts, strict=True):
            part = whole[inner]
            array[kept.within(block.write)] = part if wanted is None else part * wanted
        if found.batch_size < job.batch_size:
            record["batch_size"] = found.batch_size
        if settings != job.network:
            record["precision"] = settings.precision
    record["shards"] = {
        volume.levels[0].path: write_box(volume.url, volume.levels[0], block.write, array)
        for volume, array in zip(job.outputs, arrays, strict=True)
    }
    return record


def _remember(prediction: Mapping[str, Any], records: Iterator[Record]) -> dict[str, Any]:
    """Return how networks ran, and what did not go as planned on any block, as attributes."""
    sizes: list[int] = []
    n_lower = 0
    for record in records:
        sizes += [record["batch_size"]] if "batch_size" in record else []
        n_lower += "precision" in record
    remembered: dict[str, Any] = {"prediction": dict(prediction)}
    if sizes:
        remembered["smallest_batch"] = min(sizes)
    if n_lower:
        remembered["n_blocks_float32"] = n_lower
    return remembered


def _late_notices(attributes: Mapping[str, Any], plan: Plan) -> list[str]:
    notices = []
    if "smallest_batch" in attributes:
        notices.append(
            f"the memory of a device ran out with batches of {plan.notes['batch_size']} slices: "
            f"{attributes['smallest_batch']} were used. Give --batch-size "
            f"{attributes['smallest_batch']} next time"
        )
    if "n_blocks_float32" in attributes:
        notices.append(
            f"{attributes['n_blocks_float32']} of {len(plan.grid)} blocks were computed in "
            f"float32, by workers whose processor lacks the instructions"
        )
    return notices
