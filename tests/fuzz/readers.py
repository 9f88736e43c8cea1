"""What reads bytes that others may have written? A good example for each, and how it is read.

Every reader is called as a stage calls it and returns what a user would get, so that two results
can be compared.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import mrcfile
import nibabel
import numpy as np
import tensorstore
import tifffile
import zarr

import cvdask
from cvdask.comparison.compare import open_comparison
from cvdask.comparison.report import page
from cvdask.comparison.samples import open_table as open_table_of_sample
from cvdask.engine.cluster_options import VARIABLE, read_options
from cvdask.errors import DamagedData
from cvdask.morphometry.tables import complete_parts, open_table
from cvdask.networks.files import existing_record
from cvdask.pipeline.config import read_config
from cvdask.segmentation import model_file, run_files
from cvdask.synthesis import checkpoints, gan_file
from cvdask.synthesis.architecture import Architecture, initialise
from cvdask.volume.boxes import Box
from cvdask.volume.ensemble import create_ensemble, open_ensemble, publish_ensemble
from cvdask.volume.info import info
from cvdask.volume.parquet import read_table, table_metadata, write_table
from cvdask.volume.scratch import read_arrays, write_arrays
from cvdask.volume.sources import examine, read
from cvdask.volume.store import open_volume
from cvdask.volume.verify import Verification, verify
from tests.comparison.cells import objects, write_cell
from tests.pipeline.configs import WHOLE
from tests.samples import random_voxels, write_sample

DEPLOY = Path(__file__).parents[2] / "deploy"
VOXELS = random_voxels((6, 12, 20), "uint8", seed=1)
# Most voxels that are read of what a header declares.
MOST_VOXELS = 2**18


@dataclass(frozen=True)
class Reader:
    """A kind of file, and what makes and reads it.

    Parameters
    ----------
    write : callable
        Writes a good example below a folder.
    read : callable
        Reads it there, as a user would.
    sealed : tuple of str
        Patterns of the files that carry digests: damage to them must not pass for data.
    cost : int
        How many times longer than others it takes.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    sealed: tuple[str, ...] = ()
    cost: int = 1

    def seals(self, name: str) -> bool:
        """Tell whether a file carries digests of all that is read of it."""
        return any(fnmatch.fnmatch(name, pattern) for pattern in self.sealed)


# ---------------------------------------------------------------------------------------------
# Microscope files


def write_tiff(folder: Path, **options: Any) -> None:
    tifffile.imwrite(folder / "a.tif", VOXELS, **{"photometric": "minisblack", **options})


def write_pictures(folder: Path, suffix: str) -> None:
    (folder / "slices").mkdir()
    encode = {"png": imagecodecs.png_encode, "jpg": imagecodecs.jpeg8_encode}[suffix]
    for z, image in enumerate(VOXELS):
        (folder / f"slices/s{z}.{suffix}").write_bytes(encode(image))


def write_mrc(folder: Path) -> None:
    with mrcfile.new(folder / "a.mrc", VOXELS.astype("i2")) as file:
        file.voxel_size = (50, 60, 300)


def write_nifti(folder: Path, suffix: str) -> None:
    nibabel.save(
        nibabel.Nifti1Image(VOXELS.T, np.diag([0.005, 0.006, 0.03, 1])), folder / f"a.{suffix}"
    )


def write_hdf5(folder: Path, **options: Any) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        found = file.create_dataset("volumes/raw", data=VOXELS, **options)
        found.attrs["element_size_um"] = (0.03, 0.006, 0.005)


def write_zarr(folder: Path, version: Any, **options: Any) -> None:
    """Write two levels of an OME-Zarr image of another program."""
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    scale = {"type": "scale", "scale": [0.03, 0.006, 0.005]}
    levels = [{"path": path, "coordinateTransformations": [scale]} for path in ("0", "1")]
    image = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": levels}]}
    attributes = image if version == 2 else {"ome": {"version": "0.5", **image}}
    group = zarr.create_group(folder / "a.zarr", zarr_format=version, attributes=attributes)
    for path in ("0", "1"):
        group.create_array(path, data=VOXELS, chunks=(3, 4, 20), **options)


def write_n5(folder: Path) -> None:
    described = {
        "dimensions": list(VOXELS.shape[::-1]),
        "blockSize": [8, 8, 8],
        "dataType": "uint8",
    }
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": f"{folder}/a.n5/raw/"},
        "metadata": {**described, "compression": {"type": "gzip"}},
    }
    tensorstore.open(spec, create=True, open=True).result()[...] = VOXELS.T


def read_source(name: str, folder: Path) -> Any:
    source = examine(folder / name)
    box = Box.whole(source.shape)
    if box.size > MOST_VOXELS:
        box = box.intersect(Box((0, 0, 0), (16, 64, 64)))
    voxels, reasons = read(source, box)
    assert (voxels.shape, voxels.dtype.name) == (box.shape, source.dtype)
    assert set(reasons) <= set(range(box.shape[0]))
    if reasons:
        raise DamagedData(f"{source.path}: {reasons}")
    return voxels


# ---------------------------------------------------------------------------------------------
# Volumes


def write_volume(folder: Path) -> None:
    write_sample(folder / "a.zarr", VOXELS)
    write_sample(folder / "a.zarr", VOXELS % 3, labels="classes", classes={1: "a", 2: "b"})


def read_volume(folder: Path) -> Any:
    """Read what is there, after its checksums were compared."""
    volume = open_volume(folder / "a.zarr")
    info(volume)
    parts = [volume, *map(volume.label, volume.label_names())]
    if any(level.box.size > MOST_VOXELS for part in parts for level in part.levels):
        return volume.read(Box((0, 0, 0), (1, 1, 1)))
    checked = verify(volume)
    assert isinstance(checked, Verification)
    if checked.faults:
        raise DamagedData("; ".join(f"{key}: {reason}" for key, reason in checked.faults.items()))
    return [part.read() for part in parts]


def write_members(folder: Path) -> None:
    ensemble = create_ensemble(folder / "a.zarr", 1, {"stage": "generate"})
    write_sample(folder / "a.zarr/0000", VOXELS)
    publish_ensemble(ensemble)


def read_members(folder: Path) -> Any:
    return [member.shape for member in open_ensemble(folder / "a.zarr")]


# ---------------------------------------------------------------------------------------------
# Tables and comparisons


def write_parts(folder: Path) -> None:
    import pyarrow as pa

    columns = objects(np.random.default_rng(0), 40)
    table = pa.table(columns).replace_schema_metadata({"cvdask": '{"stage": "measure"}'})
    (folder / "tables").mkdir()
    for part in ("whole.parquet", "parts.parquet/0.parquet", "parts.parquet/1.parquet"):
        write_table(str(folder), f"tables/{part}", table)
    complete_parts(f"{folder}/tables", "parts.parquet", {"stage": "measure"})


def read_parts(folder: Path) -> Any:
    """Read a table as its stage does, as a comparison does, and as it is when it is made again."""
    found: list[Any] = []
    for name in ("whole.parquet", "parts.parquet"):
        table = open_table(f"{folder}/tables", name)
        found.append(table.to_arrow())
        table_metadata(table.schema)
        other = open_table_of_sample(str(folder), f"tables/{name}")
        assert other is not None
        other.metadata()
        columns = [column for column in ("label", "volume_um3") if column in other.schema().names]
        found += other.batches(columns)
    read_table(f"{folder}/tables", "whole.parquet", ["label"])
    return [part.to_pydict() for part in found]


def write_comparison(folder: Path) -> None:
    urls = []
    for seed in (0, 1):
        urls.append(str(folder / f"cell{seed}.zarr"))
        write_cell(Path(urls[-1]), objects(np.random.default_rng(seed), 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two cells are few
        cvdask.compare(*urls, out=str(folder / "out"), figures=False)
    # A figure as compare draws them, without the seconds that drawing takes.
    (folder / "out/figures").mkdir(exist_ok=True)
    (folder / "out/figures/a.png").write_bytes(imagecodecs.png_encode(VOXELS[0]))
    entry = '{"name": "a", "title": "A", "caption": "a", "sources": ["volumes.parquet"]}'
    (folder / "out/figures/index.json").write_text(f'{{"figures": [{entry}]}}')


def read_comparison(folder: Path) -> Any:
    comparison = open_comparison(str(folder / "out"))
    comparison.volumes()
    return page(comparison)


# ---------------------------------------------------------------------------------------------
# Networks, and what a training leaves

ARRAYS = {"generator": np.arange(40, dtype="f4"), "path_mean": np.float32(0.5)}


class Variable:
    """As much of a variable of Keras as a state needs."""

    def __init__(self, value: Any) -> None:
        self.value, self.path = np.asarray(value), "layer"

    shape = property(lambda self: self.value.shape)

    def numpy(self) -> Any:
        return self.value

    def assign(self, value: Any) -> None:
        self.value = value


def write_gan(folder: Path) -> None:
    small = {"resolution": 16, "width": 4, "max_width": 8, "latent": 8, "n_mapping": 2}
    architecture = Architecture(n_channels=2, n_slices=40, **small)
    weights = initialise(architecture, "generator", 0)
    weights[gan_file.MEAN_STYLE] = np.ones(8, np.float32)
    described = {"classes": {1: "mitochondria"}, "colors": {1: "#e69f00"}, "weights": weights}
    gan = gan_file.Gan(architecture, voxel_size_nm=(40.0, 10.0, 10.0), **described)
    gan_file.save(gan, folder / "a.keras")


def read_gan(folder: Path) -> Any:
    gan_file.describe(folder / "a.keras")
    gan = gan_file.load(folder / "a.keras")
    return {name: array.tolist() for name, array in (gan.weights or {}).items()}


def write_unet(folder: Path) -> None:
    # Late: the network framework takes seconds to load.
    from cvdask.segmentation import unet
    from tests.segmentation.networks import write_network

    write_network(folder / "a.keras", unet.Architecture(n_classes=3, base_width=4, depth=1))


def read_unet(folder: Path) -> Any:
    model_file.describe(folder / "a.keras")
    unet, model = model_file.load(folder / "a.keras")
    return [unet.as_dict(), [weight.tolist() for weight in model.get_weights()]]


def write_states(folder: Path) -> None:
    files = checkpoints.GanFiles.beside(folder / "a.keras")
    standing = checkpoints.Standing(3, 96, 4.5, 0.25, 3, 16, [{"step": 3}])
    checkpoints.save_state(files, standing, ARRAYS)
    state = run_files.FoldState(fold=1, epoch=2)
    run_files.save_state(folder / "b.state.npz", state, {"model": [Variable(ARRAYS["generator"])]})
    (folder / "a.run.json").write_text('{"state": "begun", "provenance": {"stage": "train-gan"}}')
    log = [{"fold": 1, "epoch": 1, "loss": 0.5}, {"fold": 2, "epoch": 1, "loss": 0.25}]
    run_files.rewrite_log(folder / "b.jsonl", 3, log)


def read_states(folder: Path) -> Any:
    shapes = {name: np.shape(array) for name, array in ARRAYS.items()}
    found = checkpoints.load_state(checkpoints.GanFiles.beside(folder / "a.keras"), shapes)
    variable = Variable(np.zeros(40, "f4"))
    state = run_files.load_state(folder / "b.state.npz", 1, {"model": [variable]})
    existing_record(folder / "a.run.json", folder / "a.keras")
    run_files.rewrite_log(folder / "b.jsonl", 3, [])
    arrays = {name: array.tolist() for name, array in found[1].items()} if found else {}
    return [arrays, state and asdict(state), variable.value.tolist()]


def write_scratch(folder: Path) -> None:
    write_arrays(str(folder), {"part": {"a": np.arange(99), "b": np.array([[1, -(2**40)]])}})


def read_scratch(folder: Path) -> Any:
    return {name: array.tolist() for name, array in read_arrays(str(folder), "part")[0].items()}


# ---------------------------------------------------------------------------------------------
# Configs


def write_config(folder: Path) -> None:
    (folder / "config.toml").write_text(WHOLE)


def write_cluster(folder: Path) -> None:
    (folder / "cluster.toml").write_bytes((DEPLOY / "slurm/cluster.toml").read_bytes())


READERS = {
    "tiff": Reader(write_tiff, partial(read_source, "a.tif")),
    "tiff of ImageJ": Reader(
        partial(write_tiff, imagej=True, metadata={"axes": "ZYX"}), partial(read_source, "a.tif")
    ),
    "tiff in tiles": Reader(
        partial(write_tiff, bigtiff=True, compression="lzw", tile=(16, 16), byteorder=">"),
        partial(read_source, "a.tif"),
    ),
    "tiff of JPEG": Reader(partial(write_tiff, compression="jpeg"), partial(read_source, "a.tif")),
    "ome-tiff": Reader(
        partial(write_tiff, ome=True, metadata={"axes": "ZYX"}, compression="zlib"),
        partial(read_source, "a.tif"),
    ),
    "png": Reader(
        partial(write_pictures, suffix="png"), partial(read_source, "slices"), ("*.png",)
    ),
    "jpeg": Reader(partial(write_pictures, suffix="jpg"), partial(read_source, "slices")),
    "mrc": Reader(write_mrc, partial(read_source, "a.mrc")),
    "nifti": Reader(partial(write_nifti, suffix="nii"), partial(read_source, "a.nii")),
    "nifti.gz": Reader(
        partial(write_nifti, suffix="nii.gz"), partial(read_source, "a.nii.gz"), ("*",)
    ),
    "hdf5": Reader(write_hdf5, partial(read_source, "a.h5")),
    "hdf5 in chunks": Reader(
        partial(write_hdf5, chunks=(3, 4, 20), compression="gzip", shuffle=True),
        partial(read_source, "a.h5"),
    ),
    "zarr 2": Reader(partial(write_zarr, version=2), partial(read_source, "a.zarr")),
    "zarr 3": Reader(
        partial(write_zarr, version=3, shards=(6, 12, 20)), partial(read_source, "a.zarr")
    ),
    "n5": Reader(write_n5, partial(read_source, "a.n5")),
    "ome-zarr 0.4": Reader(partial(write_zarr, version=2), read_volume),
    "volume": Reader(write_volume, read_volume, ("*/c/*", "*.xxh3")),
    "ensemble": Reader(write_members, read_members),
    "tables": Reader(write_parts, read_parts),
    "comparison": Reader(write_comparison, read_comparison),
    "gan": Reader(write_gan, read_gan),
    "unet": Reader(write_unet, read_unet, cost=20),
    "training": Reader(write_states, read_states, ("a.state.npz",)),
    "scratch": Reader(write_scratch, read_scratch, ("*",)),
    "config": Reader(write_config, lambda folder: read_config(folder / "config.toml").stages),
    "cluster": Reader(
        write_cluster, lambda folder: read_options({VARIABLE: str(folder / "cluster.toml")})
    ),
}
