"""What does a trained network need besides its weights, and how is it read without trusting it?

One ``.keras`` file holds a trained network: a zip archive as Keras writes it, so that Keras alone
can open it, with one more member of ours::

    metadata.json       Keras' version          not read here
    config.json         Keras' network          not read here: it can name any class there is
    model.weights.h5    arrays, uncompressed    read last, array by array
    cvdask.json         a UNet, in JSON         read first

1. :func:`save` writes it, whole or not at all.
2. :func:`describe` reads ``cvdask.json`` alone and returns a :class:`UNet`: a small value that can
   be looked at, compared and sent to workers, without Keras.
3. :func:`load` builds the network from the architecture in there, which is a preset and five
   integers, and copies the arrays in. It never looks at ``config.json``; nothing that stands in a
   file is executed.

Sizes are compared before anything is allocated: the archive holds its arrays uncompressed, their
bytes have to fit the number of parameters, and every array the shape that the network gives it.
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from cvdask.networks.archive import digest as digest
from cvdask.networks.archive import (
    find_member,
    open_archive,
    open_file,
    own_member,
    read_member,
)
from cvdask.segmentation.unet import Architecture, build, n_parameters
from cvdask.volume.colors import UNANNOTATED
from cvdask.volume.objects import normalize_url, redact, write_object

if TYPE_CHECKING:
    import keras

METADATA = "cvdask.json"
WEIGHTS = "model.weights.h5"
FORMAT = 1

# Far above what a run records, far below what hurts.
LARGEST_METADATA = 16 * 2**20

# What HDF5 adds to the arrays: under 2 KiB for each of some hundred layers.
LARGEST_OVERHEAD = 16 * 2**20


@dataclass(frozen=True)
class UNet:
    """A trained network as a value: what prediction and evaluation need to know, without weights.

    Parameters
    ----------
    architecture : Architecture
    classes : mapping of int to str
        Value of a class in the annotations, 1 to 254, and its name; background, 0, is not among
        them. Channel 0 of the output is background, channel k the k-th smallest value.
    mean, sd : float
        Normalisation of the input, in grey values: (image − mean) / sd.
    voxel_size_nm : (z, y, x)
        Of the images it was trained on.
    image_dtype : str
        Likewise, such as ``uint8``.
    run : mapping
        Where it comes from, JSON-ready: options, versions, seed, inputs, scores.

    Raises
    ------
    ValueError
        When there are not as many classes as the output has channels, a value or a name does not
        fit or comes twice, or a number is not finite or not positive where it has to be.

    Examples
    --------
    >>> unet = UNet(
    ...     Architecture(n_classes=3),
    ...     {7: "z_disc", 2: "mitochondria"},
    ...     120.0,
    ...     31.0,
    ...     (40, 10, 10),
    ...     "uint8",
    ... )
    >>> unet.classes
    {2: 'mitochondria', 7: 'z_disc'}
    >>> unet.values
    (0, 2, 7)
    """

    architecture: Architecture
    classes: Mapping[int, str]
    mean: float
    sd: float
    voxel_size_nm: tuple[float, float, float]
    image_dtype: str
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value, name in self.classes.items():
            if type(value) is not int or not 0 < value < UNANNOTATED:
                raise ValueError(
                    f"a class has a value from 1 to {UNANNOTATED - 1}: 0 is background, "
                    f"{UNANNOTATED} not annotated. Received: {value!r} for {name!r}"
                )
            if not isinstance(name, str) or not name:
                raise ValueError(f"a class has a name. Received: {name!r} for value {value}")
        if len(set(self.classes.values())) != len(self.classes):
            raise ValueError(f"every class has a name of its own. Received: {dict(self.classes)}")
        if len(self.classes) != self.architecture.n_classes - 1:
            raise ValueError(
                f"the network has {self.architecture.n_classes} outputs, background and "
                f"{self.architecture.n_classes - 1} classes. Received {len(self.classes)} classes: "
                f"{dict(self.classes)}"
            )
        mean, sd = _number("mean", self.mean), _number("sd", self.sd)
        if sd <= 0:
            raise ValueError(f"sd, in grey values, must be above 0. Received: {self.sd}")
        size = tuple(_number("voxel_size_nm", value) for value in self.voxel_size_nm)
        if len(size) != 3 or min(size) <= 0:
            raise ValueError(
                f"voxel_size_nm is three lengths above 0, along z, y, x. Received: {size}"
            )
        try:
            dtype = np.dtype(self.image_dtype)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind not in "iuf":
            raise ValueError(
                f"image_dtype names an integer or a floating-point type, such as uint8. Received: "
                f"{self.image_dtype!r}"
            )
        fix = object.__setattr__
        fix(self, "classes", dict(sorted(self.classes.items())))
        fix(self, "mean", mean)
        fix(self, "sd", sd)
        fix(self, "voxel_size_nm", size)
        fix(self, "image_dtype", dtype.name)
        fix(self, "run", dict(self.run))

    @property
    def upright(self) -> bool:
        """Whether the training kept the direction of the tissue: its crops were not turned."""
        return bool(self.run.get("options", {}).get("upright", False))

    @property
    def values(self) -> tuple[int, ...]:
        """Value in a label image of each channel of the output, background first."""
        return (0, *self.classes)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        classes = {str(value): name for value, name in self.classes.items()}
        return {**asdict(self), "classes": classes, "voxel_size_nm": list(self.voxel_size_nm)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNet:
        """Return the network that :meth:`as_dict` wrote.

        Raises
        ------
        ValueError
            When a field is missing, unknown, of another type or not as the class wants it.
        """
        kinds = {
            "architecture": dict,
            "classes": dict,
            "mean": (int, float),
            "sd": (int, float),
            "voxel_size_nm": list,
            "image_dtype": str,
            "run": dict,
        }
        if set(values) != set(kinds):
            raise ValueError(
                f"a network has the fields {sorted(kinds)}. Received: {sorted(map(str, values))}"
            )
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):  # type: ignore[arg-type]
                raise ValueError(
                    f"{name} has another type. Received: {type(values[name]).__name__}"
                )
        if not all(key.isascii() and key.isdigit() for key in values["classes"]):
            raise ValueError(f"classes are numbered. Received: {sorted(values['classes'])}")
        return cls(
            architecture=Architecture.from_dict(values["architecture"]),
            classes={int(key): name for key, name in values["classes"].items()},
            mean=values["mean"],
            sd=values["sd"],
            voxel_size_nm=tuple(values["voxel_size_nm"]),
            image_dtype=values["image_dtype"],
            run=values["run"],
        )


def _number(name: str, value: Any) -> float:
    """Return a finite number as a float, or say which one is not."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{name} is a number. Received: {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite. Received: {number}")
    return number


def save(unet: UNet, model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write a network to one file; who reads sees the old file or the new one.

    What is written is the network of ``unet.architecture`` in float32 with the weights of
    ``model``: neither an optimizer's state nor the precision it was trained in.

    Parameters
    ----------
    unet : UNet
    model : keras.Model
        From :func:`cvdask.segmentation.unet.build`, of the same architecture, not folded.
    path : path or URL
        Ends in ``.keras``.

    Raises
    ------
    ValueError
        When the path ends in anything else, the model's weights are those of another
        architecture, or ``run`` cannot be written as JSON.
    """
    url = normalize_url(path)
    parent, _, name = url.rpartition("/")
    if not name.endswith(".keras"):
        raise ValueError(
            f"a network is kept in a file that ends in .keras. Received: {redact(url)}"
        )
    try:
        metadata = json.dumps({"format": FORMAT, **unet.as_dict()}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record of a run is JSON-ready values only: {error}") from error
    clean = build(unet.architecture)
    own = [weight.shape for weight in clean.weights]
    given = [tuple(weight.shape) for weight in model.weights]
    if own != given:
        raise ValueError(
            f"the model must be that of the architecture it is saved with, which has {len(own)} "
            f"arrays with {clean.count_params()} numbers. Received: {len(given)} arrays with "
            f"{model.count_params()} numbers"
        )
    clean.set_weights(model.get_weights())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        clean.save(file)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(METADATA, metadata)
        write_object(parent or "/", name, file.read_bytes())


def describe(path: str | os.PathLike[str]) -> UNet:
    """Read what a file says about its network. Neither the weights nor Keras are loaded.

    Parameters
    ----------
    path : path or URL

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When the file is damaged, was not written by :func:`save`, or holds what cannot be.
    """
    where = redact(normalize_url(path))
    with open_file(path) as file:
        return _read_metadata(open_archive(file, where), where)


def load(path: str | os.PathLike[str], *, precision: str = "float32") -> tuple[UNet, keras.Model]:
    """Read a network with its weights.

    It is built from the validated architecture; of what the file holds, only numbers are used.

    Parameters
    ----------
    path : path or URL
    precision : str
        As in :func:`cvdask.segmentation.unet.build`.

    Returns
    -------
    unet : UNet
    model : keras.Model
        Not compiled.

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
        unet = _read_metadata(archive, where)
        n_bytes = 4 * n_parameters(unet.architecture)  # float32
        stored = find_member(archive, WEIGHTS, where).file_size
        if not n_bytes <= stored <= n_bytes + LARGEST_OVERHEAD:
            raise ValueError(
                f"{where}: the arrays of this architecture take {n_bytes} bytes and at most "
                f"{LARGEST_OVERHEAD} around them. Received: {WEIGHTS} of {stored} bytes. The file "
                f"is damaged or was not written by cvdask"
            )
        weights = read_member(archive, WEIGHTS, where)
    model = build(unet.architecture, precision=precision)
    _fill(model, weights, where)
    return unet, model


# ---------------------------------------------------------------------------------------------
# The archive


def _read_metadata(archive: zipfile.ZipFile, where: str) -> UNet:
    size = find_member(archive, METADATA, where).file_size
    if size > LARGEST_METADATA:
        raise ValueError(
            f"{where}: {METADATA} takes at most {LARGEST_METADATA} bytes. Received: {size}"
        )
    try:
        values = json.loads(read_member(archive, METADATA, where))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {METADATA} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError(
            f"{where}: {METADATA} must hold a network in format {FORMAT}, the one this version of "
            f"cvdask reads"
        )
    try:
        return UNet.from_dict(values)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {METADATA} does not describe a network: {error}") from error


# ---------------------------------------------------------------------------------------------
# The arrays


def _fill(model: keras.Model, weights: bytes, where: str) -> None:
    """Copy the arrays of an HDF5 file into a model.

    Keras writes one group per layer, ``layers/<class>_<number>/vars``, with the layer's name as an
    attribute and its arrays under numbers.
    """
    try:
        with h5py.File(io.BytesIO(weights), "r") as file:
            layers = own_member(file, "layers", h5py.Group)
            groups = {}
            for key in layers:
                arrays = own_member(own_member(layers, key, h5py.Group), "vars", h5py.Group)
                groups[str(arrays.attrs.get("name"))] = arrays
            for layer in model.layers:
                if layer.weights:
                    layer.set_weights(_arrays(groups, layer))
    except (ValueError, OSError, KeyError, RuntimeError, TypeError) as error:
        # h5py has no error class of its own: a damaged file raises any of these.
        raise ValueError(
            f"{where}: {WEIGHTS} does not hold the arrays of its architecture: {error}"
        ) from error


def _arrays(groups: Mapping[str, Any], layer: keras.layers.Layer) -> list[np.ndarray]:
    """Read the arrays of one layer, each with the shape the layer gives it."""
    if layer.name not in groups:
        raise ValueError(f"layer {layer.name} is missing")
    arrays = []
    for number, weight in enumerate(layer.weights):
        dataset = own_member(groups[layer.name], str(number), h5py.Dataset)
        name = f"{layer.name}/{weight.name}"
        if dataset.is_virtual or dataset.external or dataset.chunks:
            raise ValueError(
                f"{name} must lie in the file itself, in one piece, as Keras writes it"
            )
        if dataset.shape != tuple(weight.shape) or dataset.dtype != np.float32:
            raise ValueError(
                f"{name} is {tuple(weight.shape)} float32. Received: {dataset.shape} "
                f"{dataset.dtype}"
            )
        array = dataset[()]
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite. Received: {array.size} numbers, some not")
        arrays.append(array)
    return arrays
