"""Many volumes of one kind, handed on as one: what is in an ensemble, and where?

An ensemble is a Zarr group whose members are ordinary samples, so that whatever works on a volume
works on each of them::

    virtual.zarr/                this module: state, provenance, names of the members
        0000/                    a sample: image, labels/classes …
        0001/
        tables/                  what was measured over all of them

1. :func:`begin_ensemble` looks at the destination and writes the group, not yet complete.
2. Members are written like any volume; :func:`publish_ensemble` says that all are there.
3. :func:`open_ensemble` gives an :class:`Ensemble`: its members one by one, or all of them as one
   lazy array ``(volume, z, y, x)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cvdask.engine.ledger import standing
from cvdask.engine.output import Standing, check_replaceable, clear_outputs, find_existing
from cvdask.volume.boxes import AXES, Box
from cvdask.volume.objects import normalize_url, read_json, redact, write_json
from cvdask.volume.store import SEGMENT, Level, Volume, open_volume, read_attributes, read_box

if TYPE_CHECKING:
    import xarray

KIND = "ensemble"


@dataclass(frozen=True)
class Ensemble:
    """Samples of one shape: a description, cheap to hand to any worker.

    Parameters
    ----------
    url : str
        Normalised location of the group.
    members : tuple of str
        Names of the samples, in order.
    attributes : mapping
        Our own metadata of the whole: ``provenance`` …

    Examples
    --------
    >>> ensemble = Ensemble("/data/virtual.zarr", ("0000", "0001"))
    >>> len(ensemble), ensemble.member_url(1)
    (2, '/data/virtual.zarr/0001')
    """

    url: str
    members: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its folder."""
        return redact(self.url).rpartition("/")[2]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> Volume:
        """Open a member by number."""
        return open_volume(self.member_url(number))

    def __iter__(self) -> Iterator[Volume]:
        """Open one member after the other."""
        return (self[number] for number in range(len(self)))

    def member_url(self, number: int) -> str:
        """Return where a member lies."""
        return f"{self.url}/{self.members[number]}"

    def to_xarray(self, labels: str | None = "classes", level: int = 0) -> xarray.DataArray:
        """Return a lazy view of all members: ``(volume, z, y, x)``, in dask chunks.

        Reads the metadata of the first member only; reading a member of another shape is an error.

        Parameters
        ----------
        labels : str, optional
            Name of a label image; None for the image.
        level : int
            0 is the finest.

        Returns
        -------
        xarray.DataArray
            Coordinates: names of the members, and centres of voxels in µm.
        """
        import dask.array
        import xarray

        first = self[0] if labels is None else self[0].label(labels)
        single = first.to_xarray(level)
        stack = _LazyStack(self, first.level(level))
        data = dask.array.from_array(
            stack, chunks=(1, *stack.level.shard_shape), asarray=False, fancy=False
        )
        coordinates = {"volume": ("volume", list(self.members))} | {
            axis: single.coords[axis] for axis in AXES
        }
        return xarray.DataArray(
            data, dims=("volume", *AXES), coords=coordinates, name=first.name, attrs=single.attrs
        )


@dataclass(frozen=True)
class _LazyStack:
    """What dask needs to know of one level of all members, picklable and free of handles."""

    ensemble: Ensemble
    level: Level

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.ensemble), *self.level.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.level.dtype)

    @property
    def ndim(self) -> int:
        return 4

    def __getitem__(self, key: tuple[int | slice, ...]) -> np.ndarray:
        """Read by integers and slices with positive steps: all that dask asks for."""
        # A dimension that an integer picks stays, of length 1, until all has been read.
        ranges = [
            range(extent)[part]
            if isinstance(part, slice)
            else range(extent)[part : part + 1 or None]
            for part, extent in zip(key, self.shape, strict=True)
        ]
        bounds = [(r.start, r[-1] + 1) if len(r) else (0, 0) for r in ranges[1:]]
        box = Box(tuple(low for low, _ in bounds), tuple(high for _, high in bounds))
        steps = tuple(slice(None, None, r.step) for r in ranges[1:])
        data = np.empty([len(r) for r in ranges], self.dtype)
        for place, number in enumerate(ranges[0]):
            data[place] = read_box(self.ensemble.member_url(number), self.level, box)[steps]
        return data[tuple(slice(None) if isinstance(part, slice) else 0 for part in key)]


def member_names(n_members: int) -> tuple[str, ...]:
    """Name members by their numbers.

    >>> member_names(2)
    ('0000', '0001')
    """
    return tuple(f"{number:04d}" for number in range(n_members))


def begin_ensemble(
    url: str | os.PathLike[str],
    members: Sequence[str],
    provenance: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Standing:
    """Look at the destination of an ensemble and write its group where it is not there yet.

    Parameters
    ----------
    url : str or path
    members : sequence of str
        Names of the samples; they are written afterwards.
    provenance : mapping
        Stage, options and inputs: what has to agree for a run to go on with what is there.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`.
    dry_run : bool
        Look and refuse, but change nothing.

    Raises
    ------
    ValueError
        When there is no member, or a name is none.
    FileExistsError
        When the destination holds something else.
    """
    if not members or len(set(members)) < len(members) or not all(map(SEGMENT.match, members)):
        raise ValueError(
            f"members have different names of letters, digits, '_', '-', '.' and '+', and there "
            f"is at least one. Received: {list(members)}"
        )
    root = Volume(normalize_url(url), "", ())
    existing = find_existing(root)
    state = standing(root.url, existing, provenance, resume=resume, overwrite=overwrite)
    if state == "new" and existing is not None:
        check_replaceable(root, existing)
    if dry_run or state != "new":
        return state
    if existing is not None:
        clear_outputs([root])
    own = {"kind": KIND, "state": "begun", "provenance": dict(provenance), "members": list(members)}
    _write_attributes(root.url, own)
    return state


def create_ensemble(
    url: str | os.PathLike[str], n_members: int, provenance: Mapping[str, Any], **options: bool
) -> Ensemble:
    """Begin an ensemble whose members are named by their numbers; see :func:`begin_ensemble`."""
    names = member_names(n_members)
    begin_ensemble(url, names, provenance, **options)
    return Ensemble(normalize_url(url), names, read_attributes(url))


def publish_ensemble(ensemble: Ensemble, **attributes: Any) -> Ensemble:
    """Say that all members are written.

    Parameters
    ----------
    ensemble : Ensemble
    **attributes
        Our own metadata to store beside.
    """
    own = {**read_attributes(ensemble.url), **attributes, "state": "complete"}
    _write_attributes(ensemble.url, own)
    return replace(ensemble, attributes=own)


def update_ensemble(ensemble: Ensemble, **attributes: Any) -> None:
    """Merge values into our own metadata of an ensemble; only the client does, one at a time."""
    _write_attributes(ensemble.url, {**read_attributes(ensemble.url), **attributes})


def is_ensemble(url: str | os.PathLike[str]) -> bool:
    """Tell whether an ensemble lies there, complete or only begun."""
    return read_attributes(url).get("kind") == KIND


def open_ensemble(url: str | os.PathLike[str]) -> Ensemble:
    """Open an ensemble. Reads its own metadata only.

    Raises
    ------
    FileNotFoundError
        When nothing lies there.
    ValueError
        When it is no ensemble, is not complete, or its metadata is malformed.
    """
    url = normalize_url(url)
    own = read_attributes(url)
    if own.get("kind") != KIND:
        if read_json(url, "zarr.json") is None:
            raise FileNotFoundError(f"there is no ensemble at {redact(url)}")
        raise ValueError(
            f"{redact(url)} is no ensemble. One is made by: cvdask generate --model gan.keras "
            f"OUT.zarr"
        )
    if own.get("state") != "complete":
        stage = own.get("provenance", {}).get("stage", "its stage")
        raise ValueError(
            f"{redact(url)} is not complete: {stage} has begun and not ended. Run the same command "
            f"again; it goes on where it was"
        )
    members = own.get("members")
    named = isinstance(members, list) and members and all(isinstance(m, str) for m in members)
    if not named or not all(map(SEGMENT.match, members)):  # type: ignore[arg-type]
        raise ValueError(f"the metadata of {redact(url)} is malformed: members {members!r}")
    return Ensemble(url, tuple(members), own)  # type: ignore[arg-type]


def _write_attributes(url: str, own: Mapping[str, Any]) -> None:
    """Write the group; attributes that others have put beside ours stay."""
    metadata = read_json(url, "zarr.json") or {}
    attributes = {**metadata.get("attributes", {}), "cvdask": dict(own)}
    attributes.pop("ome", None)  # of a volume that lay there before
    write_json(url, "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
