"""What lies beside a network while it is trained, so that a killed training goes on?

For ``cells.keras``::

    cells.run.json      options, inputs, versions, patches, scores of the folds that are done
    cells.jsonl         one line per epoch
    cells.fold1.keras   the best network of a fold so far
    cells.state.npz     everything the fold under way needs to go on; gone when all is done
    cells.png           curves of loss and scores

Each is replaced at once, by a rename, except the log, which grows. A kill between log and state
leaves a line too many: :func:`rewrite_log` takes it out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvdask.errors import DamagedData
from cvdask.networks.files import network_path, read_array_file


@dataclass(frozen=True)
class RunFiles:
    """Where everything goes: see the module.

    Parameters
    ----------
    out : Path
        The network.
    stem : Path
        The same without ``.keras``.
    """

    out: Path
    stem: Path

    @classmethod
    def beside(cls, out: str | os.PathLike[str]) -> RunFiles:
        """Name the files of a network.

        Raises
        ------
        ValueError
            When it is not a local ``.keras`` file.
        """
        path = network_path(out)
        return cls(path, path.with_suffix(""))

    def _with(self, ending: str) -> Path:
        return self.stem.with_name(self.stem.name + ending)

    @property
    def record(self) -> Path:
        """What the run is, and the results of its folds."""
        return self._with(".run.json")

    @property
    def log(self) -> Path:
        """One line per epoch."""
        return self._with(".jsonl")

    @property
    def state(self) -> Path:
        """Where the fold under way stands."""
        return self._with(".state.npz")

    @property
    def curves(self) -> Path:
        """Picture of the log."""
        return self._with(".png")

    def fold(self, number: int) -> Path:
        """Return where the best network of a fold lies."""
        return self._with(f".fold{number}.keras")

    def leftovers(self) -> list[Path]:
        """Return the temporary files of these networks that a kill has left.

        The pattern is narrow: beside ``net.keras`` a ``net.large.keras`` may be in training now.
        """
        name = re.compile(rf"{re.escape(self.stem.name)}(\.fold\d+)?\.[0-9a-f]{{32}}\.partial")
        return [path for path in self.stem.parent.iterdir() if name.fullmatch(path.name)]


@dataclass
class FoldState:
    """Where a fold stands, beside its arrays; saved after every epoch.

    Parameters
    ----------
    fold : int
        Its number, from 1.
    epoch, step : int
        How many are over.
    seconds : float
        Spent so far.
    best_score : float, or None
        Mean F1 of the network that is kept; None where validation shows no class at all.
    best_epoch : int
        When that was, from 1; 0 while none is kept.
    largest_batch : int
        Crops that go through the network at once.
    stopped : str
        Why the fold ended before its time; empty if it did not.
    records : list of dict
        The fold's lines of the log.
    """

    fold: int
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    best_epoch: int = 0
    largest_batch: int = 0
    stopped: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)


def save_state(path: Path, state: FoldState, arrays: Mapping[str, Sequence[Any]]) -> None:
    """Write numbers and arrays to one file, at once; no pickle.

    Parameters
    ----------
    path : Path
    state : FoldState
    arrays : mapping of str to sequence of keras.Variable
        By what they belong to, such as the optimizer.
    """
    named = {
        f"{kind}{i}": variable.numpy()
        for kind, variables in arrays.items()
        for i, variable in enumerate(variables)
    }
    text = np.frombuffer(json.dumps(asdict(state), allow_nan=False).encode(), np.uint8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, state=text, **named)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_state(path: Path, fold: int, arrays: Mapping[str, Sequence[Any]]) -> FoldState | None:
    """Fill the variables from a saved state; None where there is none of this fold.

    Raises
    ------
    ValueError
        When the file is damaged, or does not hold the variables of this network and optimizer.
    """
    if not path.exists():
        return None
    try:
        saved = read_array_file(path)
        state = FoldState(**json.loads(saved["state"].tobytes()))
    except (DamagedData, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no state of a training: {error!r}. Remove the file to start the fold "
            f"over"
        ) from error
    if state.fold != fold:
        return None
    for kind, variables in arrays.items():
        for i, variable in enumerate(variables):
            value = saved.get(f"{kind}{i}", np.zeros(0))
            if value.shape != tuple(variable.shape):
                raise ValueError(
                    f"{path} must hold the variables of the training that goes on. Received "
                    f"for {variable.path}: shape {value.shape} instead of "
                    f"{tuple(variable.shape)}. Remove the file to start the fold over"
                )
            variable.assign(value)
    return state


def rewrite_log(path: Path, fold: int, records: Sequence[Mapping[str, Any]]) -> None:
    """Leave the lines of earlier folds and these of this fold, none that a kill left behind."""
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A kill can cut the last line in two.
        whole = [line for line in lines if line.endswith("\n")]
        earlier = [line for line in whole if json.loads(line)["fold"] < fold]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. Remove it to go on without it") from error
    text = "".join(earlier) + "".join(json.dumps(record) + "\n" for record in records)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
