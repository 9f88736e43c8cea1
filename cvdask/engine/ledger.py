"""Which blocks are done? Markers in the store, so that any run can go on where another ended.

1. A worker writes its blocks, then one marker for the batch: never before the data it attests.
2. :meth:`Ledger.done` lists the markers (names alone say which blocks) when a run starts.
3. When all blocks are done, :meth:`Ledger.seal` writes the manifests of what was written, which do
   not depend on batches, order or interruptions, and removes the markers.

:func:`standing` decides beforehand whether an existing output is to be begun, resumed or left.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from cvdask.errors import DamagedData
from cvdask.volume.objects import (
    delete_tree,
    list_objects,
    read_object,
    redact,
    write_object,
)
from cvdask.volume.store import Level, write_manifest

Record = dict[str, Any]
# Markers that are read at the same time: an object store takes a while for each, and there may be
# a million.
READ_AHEAD = 16


@dataclass(frozen=True)
class Ledger:
    """The markers of one stage on one output.

    Parameters
    ----------
    url : str
        The sample.
    path : str
        Array below which the markers lie, such as ``0`` or ``labels/classes/0``. They are kept
        beside the chunks, where readers of Zarr do not look.
    """

    url: str
    path: str

    @property
    def _prefix(self) -> str:
        return f"{self.path}/.cvdask/done"

    def mark(self, records: Mapping[int, Record]) -> None:
        """Attest that blocks are done, with what is to be remembered of each.

        Parameters
        ----------
        records : mapping of block number to JSON-ready record
            At least one.
        """
        numbers = sorted(records)
        lines = [json.dumps({"block": n, **records[n]}, separators=(",", ":")) for n in numbers]
        name = f"{numbers[0]:012d}-{numbers[-1]:012d}-{len(numbers)}"
        if numbers[-1] - numbers[0] + 1 != len(numbers):
            # Batches with gaps may agree in these three and hold other blocks.
            name += f"-{hashlib.sha256(str(numbers).encode()).hexdigest()[:16]}"
        data = ("\n".join(lines) + "\n").encode()
        write_object(self.url, f"{self._prefix}/{name}.jsonl", data)

    def done(self, n_blocks: int) -> np.ndarray:
        """Return which blocks have a marker.

        Returns
        -------
        (n_blocks,) bool
        """
        done = np.zeros(n_blocks, bool)
        for name in self._names():
            first, last, count = self._parse(name)
            if last - first + 1 == count:
                done[first : last + 1] = True
            else:
                done[[record["block"] for record in self._read(name)]] = True
        return done

    def records(self) -> Iterator[Record]:
        """Yield the record of every done block once, in block order, one marker at a time."""
        last_seen = -1
        held: dict[int, Record] = {}
        for name, found in self._markers():
            first = self._parse(name)[0]
            for number in sorted(n for n in held if n < first):
                last_seen = number
                yield held.pop(number)
            held |= {r["block"]: r for r in found if r["block"] > last_seen}
        for number in sorted(held):
            yield held[number]

    def seal(self, levels: Sequence[Level]) -> dict[str, str]:
        """Turn the markers into one manifest per level.

        Markers stay until :meth:`clear`: a run that is killed in between seals again.

        Returns
        -------
        dict of str to str
            sha256 of the manifest of each level, by its path.
        """
        paths = {level.path: level for level in levels}
        hashes = {path: hashlib.sha256() for path in paths}
        layers: dict[str, dict[int, dict[str, str]]] = {path: {} for path in paths}

        def flush(path: str, below: float) -> None:
            for layer in sorted(n for n in layers[path] if n < below):
                digests = layers[path].pop(layer)
                hashes[path].update(write_manifest(self.url, paths[path], layer, digests))

        for record in self.records():
            for path, digests in record.get("shards", {}).items():
                for key, digest in digests.items():
                    layer = int(key.split("/")[1])
                    layers[path].setdefault(layer, {})[key] = digest
                # Blocks come in z order, so a layer is whole once a later block starts below it.
                flush(path, min((int(key.split("/")[1]) for key in digests), default=0))
        for path in paths:
            flush(path, float("inf"))
        return {path: value.hexdigest() for path, value in hashes.items()}

    def clear(self) -> None:
        """Remove the markers."""
        delete_tree(self.url, self._prefix)

    def _names(self) -> list[str]:
        keys = list_objects(self.url, self._prefix + "/")
        return sorted(key.rpartition("/")[2] for key in keys if key.endswith(".jsonl"))

    @staticmethod
    def _parse(name: str) -> tuple[int, int, int]:
        first, last, count = name.removesuffix(".jsonl").split("-")[:3]
        return int(first), int(last), int(count)

    def _markers(self) -> Iterator[tuple[str, list[Record]]]:
        """Yield the markers in order, and read those that follow meanwhile."""
        names = iter(self._names())
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            coming: deque[tuple[str, Future[list[Record]]]] = deque()
            while True:
                for name in islice(names, READ_AHEAD - len(coming)):
                    coming.append((name, pool.submit(self._read, name)))
                if not coming:
                    return
                name, found = coming.popleft()
                yield name, found.result()

    def _read(self, name: str) -> list[Record]:
        data = read_object(self.url, f"{self._prefix}/{name}") or b""
        try:
            return [json.loads(line) for line in data.decode().splitlines()]
        except (ValueError, RecursionError) as error:
            raise DamagedData(
                f"{redact(self.url)}/{self._prefix}/{name} is damaged: {error}. Run the same "
                f"command with --overwrite"
            ) from error


def standing(
    where: str,
    existing: Mapping[str, Any] | None,
    provenance: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Literal["new", "begun", "complete"]:
    """Decide how a stage meets what lies at its destination.

    Parameters
    ----------
    where : str
        The destination, for messages.
    existing : mapping, or None
        Our own metadata found there: empty for something that is not ours, None for nothing.
    provenance : mapping
        What this run would record: stage, options, inputs.
    resume, overwrite : bool
        What the caller asked for.

    Returns
    -------
    "new", "begun" or "complete"
        ``new`` also when it is to be overwritten: the caller deletes what is there.

    Raises
    ------
    FileExistsError
        When something lies there that is not the begun or finished output of the same inputs and
        options, and ``overwrite`` was not asked for.
    """
    if existing is None or overwrite:
        return "new"
    found = existing.get("provenance")
    if not found:
        raise FileExistsError(
            f"{redact(where)} exists and was not made by cvdask. Give another destination, or "
            f"--overwrite to replace it"
        )
    if found != json.loads(json.dumps(provenance)):
        changed = ", ".join(_differences(found, json.loads(json.dumps(provenance))))
        advice = (
            "--resume needs the same inputs and options"
            if resume
            else "Give another destination, the same options, or --overwrite to start over"
        )
        raise FileExistsError(
            f"{redact(where)} was made for other inputs or options ({changed}). {advice}"
        )
    return "complete" if existing.get("state") == "complete" else "begun"


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Name what differs between two JSON values, as ``option: old → new``.

    >>> _differences({"options": {"seed": 0}}, {"options": {"seed": 1}})
    ['options.seed: 0 → 1']
    >>> _differences({"inputs": [{"path": "a"}]}, {"inputs": [{"path": "b"}]})
    ['inputs[0].path: a → b']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            inner = f"{name}.{key}" if name else key
            found += _differences(old.get(key), new.get(key), inner)
        return found
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(v, dict) for v in old):
        if len(old) != len(new):
            return [f"{name}: {len(old)} → {len(new)}"]
        pairs = enumerate(zip(old, new, strict=True))
        return [found for i, (a, b) in pairs for found in _differences(a, b, f"{name}[{i}]")]
    return [] if old == new else [f"{name}: {old} → {new}"]
