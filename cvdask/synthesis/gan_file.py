"""What does a trained generator need besides its weights, and how is it read without trusting it?

One ``.keras`` file, a zip archive of two members::

    cvdask.json         a Gan, in JSON           read first
    model.weights.h5    arrays, uncompressed     one dataset per array of the generator

1. :func:`save` writes it, whole or not at all.
2. :func:`describe` reads ``cvdask.json`` alone and returns a :class:`Gan`, without a network
   framework.
3. :func:`load` reads the arrays too; :meth:`Gan.generator` makes slices with them.

No network is deserialised: the architecture, a few integers and words, says which arrays there have
to be, and sizes are compared before anything is allocated. What is kept is the moving average of
the generator, not the discriminator.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from cvdask.networks.archive import (
    digest,
    find_member,
    open_archive,
    open_file,
    own_member,
    read_member,
)
from cvdask.synthesis.architecture import Architecture, parameters
from cvdask.volume.objects import normalize_url, redact, write_object

if TYPE_CHECKING:
    from cvdask.synthesis.generator import Generator

METADATA = "cvdask.json"
WEIGHTS = "model.weights.h5"
FORMAT = 1
KIND = "gan"
MEAN_STYLE = "mean_style"

# Far above what a run records, far below what hurts.
LARGEST_METADATA = 16 * 2**20
# What HDF5 adds to the arrays: under 2 KiB for each of some two hundred.
LARGEST_OVERHEAD = 16 * 2**20
# Zip archives state times; this one makes the same network the same file.
NO_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Gan:
    """A trained generator as a value.

    Parameters
    ----------
    architecture : Architecture
    classes : mapping of int to str
        Value of a class in a label image, 1 to 254, and its name; background, 0, is not among
        them. Channel 0 is background, channel k the k-th smallest value.
    colors : mapping of int to str
        ``#rrggbb`` of classes that have one.
    voxel_size_nm : (z, y, x)
        Of the slices it makes.
    places : (first, last)
        Range of places that it was trained on, within 0 and 1.
    run : mapping
        Where it comes from, JSON-ready: options, versions, seed, inputs, distances.
    digest : str
        sha256 of the file it was read from; empty for none.
    weights : mapping of str to array, optional
        Arrays of the generator, and ``mean_style``; None where only the description was read.

    Raises
    ------
    ValueError
        When classes and channels, or numbers, do not fit.
    """

    architecture: Architecture
    classes: Mapping[int, str]
    colors: Mapping[int, str]
    voxel_size_nm: tuple[float, float, float]
    places: tuple[float, float] = (0.0, 1.0)
    run: Mapping[str, Any] = field(default_factory=dict)
    digest: str = field(default="", compare=False)
    weights: Mapping[str, np.ndarray] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for value, name in self.classes.items():
            if type(value) is not int or not 0 < value < 255 or not isinstance(name, str):
                raise ValueError(
                    f"a class has a value from 1 to 254 and a name. Received: {value!r}: {name!r}"
                )
        if len(self.classes) != self.architecture.n_channels - 1:
            raise ValueError(
                f"the generator makes {self.architecture.n_channels} channels, background and "
                f"{self.architecture.n_channels - 1} classes. Received: {dict(self.classes)}"
            )
        if not set(self.colors) <= {0, *self.classes}:
            raise ValueError(
                f"colours belong to classes, {sorted(self.classes)}. Received: "
                f"{sorted(self.colors)}"
            )
        size = tuple(map(float, self.voxel_size_nm))
        if len(size) != 3 or not all(math.isfinite(one) and one > 0 for one in size):
            raise ValueError(
                f"voxel_size_nm is three lengths above 0, along z, y, x. Received: {size}"
            )
        first, last = map(float, self.places)
        if not 0 <= first <= last <= 1:
            raise ValueError(f"places lie between 0 and 1, ascending. Received: {self.places}")
        fix = object.__setattr__
        fix(self, "classes", dict(sorted(self.classes.items())))
        fix(self, "colors", dict(sorted(self.colors.items())))
        fix(self, "voxel_size_nm", size)
        fix(self, "places", (first, last))
        fix(self, "run", dict(self.run))

    @property
    def values(self) -> tuple[int, ...]:
        """Value in a label image of each channel, background first."""
        return (0, *self.classes)

    @property
    def resolution(self) -> int:
        """Voxels of a slice along y and x."""
        return self.architecture.resolution

    @property
    def n_slices(self) -> int:
        """Slices from place 0 to place 1."""
        return self.architecture.n_slices

    @property
    def preset(self) -> str:
        """Which layers it has."""
        return self.architecture.preset

    @property
    def continuity(self) -> str:
        """``order``: independent slices; ``volume``: one latent makes a whole stack."""
        return self.architecture.continuity

    @property
    def n_latent(self) -> int:
        """Numbers of a latent."""
        return self.architecture.n_latent

    def generator(self, batch_size: int = 16) -> Generator:
        """Return what makes slices on this process's device. Starts the network framework.

        Parameters
        ----------
        batch_size : int
            Slices per call.

        Raises
        ------
        ValueError
            When only the description was read.
        """
        if self.weights is None:
            raise ValueError("only the description was read: use load, which reads the arrays too")
        from cvdask.synthesis.generator import Generator

        arrays = {name: one for name, one in self.weights.items() if name != MEAN_STYLE}
        return Generator(self.architecture, arrays, self.weights[MEAN_STYLE], batch_size)

    def as_dict(self) -> dict[str, Any]:
        """Return what describes it as JSON-ready values."""
        return {
            "architecture": self.architecture.as_dict(),
            "classes": {str(value): name for value, name in self.classes.items()},
            "colors": {str(value): color for value, color in self.colors.items()},
            "voxel_size_nm": list(self.voxel_size_nm),
            "places": list(self.places),
            "run": dict(self.run),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Gan:
        """Return what :meth:`as_dict` wrote.

        Raises
        ------
        ValueError
            When a field is missing, unknown, of another type or not as the class wants it.
        """
        kinds = {
            "architecture": dict,
            "classes": dict,
            "colors": dict,
            "voxel_size_nm": list,
            "places": list,
            "run": dict,
        }
        if set(values) != set(kinds):
            raise ValueError(
                f"a generator has the fields {sorted(kinds)}. Received: {sorted(map(str, values))}"
            )
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise ValueError(
                    f"{name} has another type. Received: {type(values[name]).__name__}"
                )
        for name in ("classes", "colors"):
            if not all(
                key.isascii() and key.isdigit() and len(key) <= 3 and isinstance(text, str)
                for key, text in values[name].items()
            ):
                raise ValueError(f"{name} are texts by number. Received: {values[name]}")
        for name, length in (("voxel_size_nm", 3), ("places", 2)):
            numbers = values[name]
            if len(numbers) != length or not all(type(one) in (int, float) for one in numbers):
                raise ValueError(f"{name} is {length} numbers. Received: {numbers}")
        return cls(
            architecture=Architecture.from_dict(values["architecture"]),
            classes={int(key): name for key, name in values["classes"].items()},
            colors={int(key): color for key, color in values["colors"].items()},
            voxel_size_nm=tuple(values["voxel_size_nm"]),
            places=tuple(values["places"]),
            run=values["run"],
        )


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array in a file."""
    shapes = {name: one.shape for name, one in parameters(architecture, "generator").items()}
    return {**shapes, MEAN_STYLE: (architecture.latent,)}


def save(gan: Gan, path: str | os.PathLike[str]) -> None:
    """Write a generator to one file; who reads sees the old file or the new one.

    The same generator and record make the same bytes.

    Parameters
    ----------
    gan : Gan
        With its weights.
    path : path or URL
        Ends in ``.keras``.

    Raises
    ------
    ValueError
        When the path ends in anything else, the weights are not those of the architecture or not
        finite, or ``run`` cannot be written as JSON.
    """
    url = normalize_url(path)
    parent, _, name = url.rpartition("/")
    if not name.endswith(".keras"):
        raise ValueError(
            f"a network is kept in a file that ends in .keras. Received: {redact(url)}"
        )
    weights = gan.weights or {}
    shapes = _shapes(gan.architecture)
    if {key: array.shape for key, array in weights.items()} != shapes:
        raise ValueError(
            f"the architecture has {len(shapes)} arrays. Received: {len(weights)}, or of other "
            f"shapes"
        )
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        group = file.create_group("generator")
        for key in shapes:
            array = np.ascontiguousarray(weights[key], np.float32)
            if not np.isfinite(array).all():
                raise ValueError(f"{key} must be finite. Received: {array.size} numbers, some not")
            group.create_dataset(_dataset(key), data=array)
    try:
        described = {"format": FORMAT, "kind": KIND, **gan.as_dict()}
        metadata = json.dumps(described, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record of a run is JSON-ready values only: {error}") from error
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(METADATA, NO_TIME), metadata)
        archive.writestr(zipfile.ZipInfo(WEIGHTS, NO_TIME), held.getvalue())
    write_object(parent or "/", name, out.getvalue())


def describe(path: str | os.PathLike[str]) -> Gan:
    """Read what a file says about its generator; neither weights nor a framework are loaded.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When the file is damaged, was not written by :func:`save`, or holds what cannot be.
    """
    where = redact(normalize_url(path))
    with open_file(path) as file:
        gan = _read_metadata(open_archive(file, where), where)
    return replace(gan, digest=digest(path))


def load(path: str | os.PathLike[str]) -> Gan:
    """Read a generator with its weights.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When the file is damaged, was not written by :func:`save`, or its arrays are not those of
        its architecture.
    """
    where = redact(normalize_url(path))
    with open_file(path) as file:
        archive = open_archive(file, where)
        gan = _read_metadata(archive, where)
        shapes = _shapes(gan.architecture)
        n_bytes = 4 * sum(map(math.prod, shapes.values()))  # float32
        stored = find_member(archive, WEIGHTS, where).file_size
        if not n_bytes <= stored <= n_bytes + LARGEST_OVERHEAD:
            raise ValueError(
                f"{where}: the arrays of this architecture take {n_bytes} bytes and at most "
                f"{LARGEST_OVERHEAD} around them. Received: {WEIGHTS} of {stored} bytes. The file "
                f"is damaged or was not written by cvdask"
            )
        data = read_member(archive, WEIGHTS, where)
    return replace(gan, digest=digest(path), weights=_read_arrays(data, shapes, where))


def _dataset(name: str) -> str:
    """Name an array inside the file: a slash would make groups of it."""
    return name.replace("/", ".")


def _read_metadata(archive: zipfile.ZipFile, where: str) -> Gan:
    size = find_member(archive, METADATA, where).file_size
    if size > LARGEST_METADATA:
        raise ValueError(
            f"{where}: {METADATA} takes at most {LARGEST_METADATA} bytes. Received: {size}"
        )
    try:
        values = json.loads(read_member(archive, METADATA, where))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {METADATA} cannot be read: {error}") from error
    if not isinstance(values, dict) or (values.pop("format", None), values.pop("kind", None)) != (
        FORMAT,
        KIND,
    ):
        raise ValueError(
            f"{where}: {METADATA} must hold a generator in format {FORMAT}, the one this version "
            f"of cvdask reads. It was not written by cvdask train-gan"
        )
    try:
        return Gan.from_dict(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: {METADATA} does not describe a generator: {error}") from error


def _read_arrays(
    data: bytes, shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, np.ndarray]:
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            group = own_member(file, "generator", h5py.Group)
            return {name: _read_array(group, name, shape) for name, shape in shapes.items()}
    except (ValueError, OSError, KeyError, RuntimeError, TypeError) as error:
        # h5py has no error class of its own: a damaged file raises any of these.
        raise ValueError(
            f"{where}: {WEIGHTS} does not hold the arrays of its architecture: {error}"
        ) from error


def _read_array(group: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    dataset = own_member(group, _dataset(name), h5py.Dataset)
    if dataset.is_virtual or dataset.external or dataset.chunks:
        raise ValueError(f"{name} must lie in the file itself, in one piece")
    if dataset.shape != shape or dataset.dtype != np.float32:
        raise ValueError(f"{name} is {shape} float32. Received: {dataset.shape} {dataset.dtype}")
    array: np.ndarray = dataset[()]
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite. Received: {array.size} numbers, some not")
    return array
