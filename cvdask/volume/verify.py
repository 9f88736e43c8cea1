"""Is every voxel still what was written?

1. Each shard of each level is read back and decoded, so that every checksum is compared.
2. The digest of its voxels is compared with the manifest that was recorded while writing; the
   manifest with its own digest in the volume's metadata.
3. What does not agree is listed by its key in the store: damaged, missing, or unexpected.

Volumes of others have no manifest; for them, readability is all that can be checked, and said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cvdask.engine.blockwise import reduce
from cvdask.engine.cluster import connect
from cvdask.engine.plan import Plan, Summary
from cvdask.errors import DamagedData
from cvdask.volume.boxes import Block
from cvdask.volume.objects import object_exists, read_object, redact
from cvdask.volume.store import (
    MANIFEST,
    Level,
    Volume,
    digest_shard,
    open_volume,
    read_box,
    read_manifest,
    shard_key,
)


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Parameters
    ----------
    n_shards : mapping of level path to int
        Shards that were read back.
    faults : mapping of store key to str
        Shards that are not what was written, and why.
    unsealed : tuple of str
        Levels without a manifest: read back, with nothing to compare with.
    summaries : tuple of Summary
        One per level.
    """

    n_shards: Mapping[str, int]
    faults: Mapping[str, str]
    unsealed: tuple[str, ...] = ()
    summaries: tuple[Summary, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as JSON-ready values."""
        return {
            "ok": self.ok,
            "n_shards": dict(self.n_shards),
            "faults": dict(self.faults),
            "levels_without_manifest": list(self.unsealed),
            "seconds": sum(summary.seconds for summary in self.summaries),
        }


def verify(
    volume: Volume | str,
    *,
    client: Any = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> Verification | list[Plan]:
    """Read a sample back, all levels of the image and of its label images.

    Parameters
    ----------
    volume : Volume or str
        A sample. A :class:`Volume` of a label image checks that label image alone.
    client, workers
        Where it runs: see :func:`cvdask.engine.cluster.connect`.
    dry_run : bool
        Return the plans and read nothing.

    Returns
    -------
    Verification
        Look at ``.ok`` and ``.faults``.

    Raises
    ------
    BlocksFailed
        When shards could not be read for a reason other than damage, such as a lost connection.
    """
    if isinstance(volume, str):
        volume = open_volume(volume)
    names = [] if volume.is_labels else volume.label_names()
    parts = [volume, *(open_volume(volume.url, labels=name) for name in names)]
    plans = [(part, level, plan_verify(part, level)) for part in parts for level in part.levels]
    if dry_run:
        return [plan for _, _, plan in plans]
    n_shards: dict[str, int] = {}
    faults: dict[str, str] = {}
    unsealed, summaries = [], []
    with connect(client, workers=workers) as pool:
        for part, level, plan in plans:
            sealed = level.path in part.attributes.get("digests", {})
            if sealed and not _manifest_intact(part, level):
                faults[f"{redact(part.url)}/{level.path}/{MANIFEST.format(layer='*')}"] = (
                    "damaged: these are not the digests that were recorded. The shards of this "
                    "level were read back, with nothing to compare them with"
                )
                sealed = False
            check = partial(_check_shard, part.url, level, sealed)
            outcome: tuple[Any, Summary] = reduce(check, _merge, plan, client=pool)
            found, summary = outcome
            n_shards[level.path] = len(plan.grid)
            faults.update(found or {})
            summaries.append(summary)
            if not sealed:
                unsealed.append(level.path)
    return Verification(n_shards, faults, tuple(unsealed), tuple(summaries))


def _manifest_intact(volume: Volume, level: Level) -> bool:
    """Tell whether a level's manifest is the one whose digest its volume's metadata records."""
    n_layers = -(-level.shape[0] // level.shard_shape[0])
    digest = hashlib.sha256()
    for layer in range(n_layers):
        key = f"{level.path}/{MANIFEST.format(layer=layer)}"
        digest.update(read_object(volume.url, key) or b"")
    return digest.hexdigest() == volume.attributes["digests"][level.path]


def plan_verify(volume: Volume, level: Level) -> Plan:
    """Plan one level: blocks are its shards."""
    size = level.shards.largest_read * volume.dtype.itemsize
    return Plan(
        stage=f"verify {level.path}",
        grid=level.shards,
        output=volume.url,
        read_bytes=level.nbytes,
        task_bytes=3 * size,
    )


def _check_shard(url: str, level: Level, sealed: bool, block: Block) -> dict[str, str]:
    """Return what is wrong with one shard: nothing, or its key and the reason."""
    key = shard_key(level, block.write)
    where = f"{redact(url)}/{level.path}/{key}"
    expected = _manifest(url, level, key) if sealed else None
    try:
        data = read_box(url, level, block.write)
    except DamagedData as error:
        return {where: f"damaged: {error}"}
    if not sealed:
        return {}
    if expected is None:
        # Blocks outside a mask are never written and read as zero.
        return {where: "unexpected: it is not in the manifest"} if data.any() else {}
    if digest_shard(level, data) == expected:
        return {}
    if not object_exists(url, f"{level.path}/{key}"):
        return {where: "missing: the manifest records voxels that are not zero"}
    return {where: "differs: readable, but not the voxels that were written"}


def _manifest(url: str, level: Level, key: str) -> str | None:
    return read_manifest(url, level, int(key.split("/")[1])).get(key)


def _merge(parts: list[dict[str, str]]) -> dict[str, str]:
    return {key: reason for part in parts for key, reason in part.items()}
