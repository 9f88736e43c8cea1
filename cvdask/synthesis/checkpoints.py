"""What lies beside a generator while it is trained, so that a killed training goes on?

For ``cell.keras``::

    cell.run.json         options, inputs, versions, architecture, constants of the training
    cell.jsonl            one line per report
    cell.samples/         one picture per report, real slices beside generated ones
    cell.best.keras       the best generator so far
    cell.state.npz        everything the training needs to go on
    cell.previous.npz     the same, one report earlier

The last three are gone when all is done. A state is arrays and JSON, no pickle, and carries a
digest of all of it: a damaged one is told from a whole one, and the previous one is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.errors import DamagedData
from cvdask.networks.files import network_path, read_array_file


@dataclass(frozen=True)
class GanFiles:
    """Where everything goes: see the module.

    Parameters
    ----------
    out : Path
        The generator.
    """

    out: Path

    @classmethod
    def beside(cls, out: str | os.PathLike[str]) -> GanFiles:
        """Name the files of a generator.

        Raises
        ------
        ValueError
            When it is not a local ``.keras`` file.
        """
        return cls(network_path(out))

    def _with(self, ending: str) -> Path:
        return self.out.with_name(self.out.stem + ending)

    @property
    def record(self) -> Path:
        """What the run is."""
        return self._with(".run.json")

    @property
    def log(self) -> Path:
        """One line per report."""
        return self._with(".jsonl")

    @property
    def samples(self) -> Path:
        """Folder of pictures."""
        return self._with(".samples")

    @property
    def best(self) -> Path:
        """The best generator so far."""
        return self._with(".best.keras")

    @property
    def state(self) -> Path:
        """Where the training stands."""
        return self._with(".state.npz")

    @property
    def previous(self) -> Path:
        """Where it stood one report earlier."""
        return self._with(".previous.npz")


@dataclass
class Standing:
    """How far a training is, beside its arrays.

    Parameters
    ----------
    step, n_images : int
        That are over.
    seconds : float
        Spent so far.
    best_distance : float, or None
        Of the generator that is kept.
    best_score : float, or None
        Its distance and what else counts: see ``judge.score``.
    best_step : int
        When that was; 0 while none is kept.
    largest : int
        Samples that go through the networks at once; 0 is all.
    records : list of dict
        Lines of the log.
    """

    step: int = 0
    n_images: int = 0
    seconds: float = 0.0
    best_distance: float | None = None
    best_score: float | None = None
    best_step: int = 0
    largest: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)


def save_state(files: GanFiles, standing: Standing, arrays: Mapping[str, np.ndarray]) -> None:
    """Write where a training stands, at once; what was there becomes the previous one."""
    text = json.dumps(asdict(standing), allow_nan=False).encode()
    held = {"standing": np.frombuffer(text, np.uint8), **arrays}
    partial = files.state.with_name(files.state.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **{**held, "digest": np.frombuffer(_digest(held), np.uint8)})  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    if files.state.exists():
        os.replace(files.state, files.previous)
    os.replace(partial, files.state)


def load_state(
    files: GanFiles, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Standing, dict[str, np.ndarray]] | None:
    """Read where a training stands; None where it has not reported yet.

    Parameters
    ----------
    files : GanFiles
    shapes : mapping of str to tuple of int
        The arrays that there have to be.

    Raises
    ------
    ValueError
        When there are states, and all are damaged.

    Warns
    -----
    UserWarning
        When the newest is damaged and the previous one is used.
    """
    faults = []
    for path in (files.state, files.previous):
        if not path.exists():
            continue
        try:
            found = _read(path, shapes)
        except (ValueError, DamagedData, TypeError) as error:
            faults.append(f"{path.name}: {error}")
            continue
        if faults:
            warnings.warn(
                f"{'; '.join(faults)}. The training goes on from {path.name}, of step "
                f"{found[0].step}",
                stacklevel=3,
            )
        return found
    if faults:
        raise ValueError(
            f"a training goes on from its last state or the one before. Received: "
            f"{'; '.join(faults)}. Use --overwrite to start over"
        )
    return None


def _read(
    path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Standing, dict[str, np.ndarray]]:
    held = read_array_file(path)
    names = {"standing", "digest", *shapes}
    if set(held) != names:
        raise ValueError(f"it holds other arrays: {sorted(set(held) ^ names)}")
    digest = held.pop("digest").tobytes()
    if digest != _digest(held):
        raise ValueError("its digest is another than that of its arrays")
    for name, shape in shapes.items():
        if held[name].shape != shape:
            raise ValueError(f"{name} is {shape}. Received: {held[name].shape}")
    standing = Standing(**json.loads(held.pop("standing").tobytes()))
    return standing, held


def _digest(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the sha256 of names, types, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.digest()


def rewrite_log(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Leave these lines, and none that a kill left behind."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.replace(partial, path)
