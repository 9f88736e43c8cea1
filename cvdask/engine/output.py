"""How does a stage write a volume so that it is complete, resumable or not there?

1. :func:`begin` looks at the destination, refuses or clears it, and creates the volumes.
2. :func:`fill` runs a function over the blocks and seals the levels it wrote: their manifests are
   recorded in the volume's attributes, so a later run passes them by.
3. ``store.publish`` shows the volume to readers, when all its levels are sealed.

Kill it anywhere, call it again: the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cvdask.engine.blockwise import run
from cvdask.engine.ledger import Ledger, Record, standing
from cvdask.engine.plan import Plan, Summary, note_summary
from cvdask.volume.boxes import Block
from cvdask.volume.objects import (
    delete_object,
    delete_tree,
    is_remote,
    list_objects,
    read_object,
    redact,
)
from cvdask.volume.store import (
    Level,
    Volume,
    create,
    hide,
    level_exists,
    read_attributes,
    update_attributes,
)

Standing = Literal["new", "begun", "complete"]


def begin(
    volumes: Sequence[Volume],
    provenance: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Standing:
    """Look at the destination of a stage and create its volumes where they are not there yet.

    Parameters
    ----------
    volumes : sequence of Volume
        What the stage writes together, described. The first decides.
    provenance : mapping
        Stage, options and inputs: what has to agree for a run to go on with what is there.
    resume, overwrite : bool
        See :func:`cvdask.engine.ledger.standing`.
    dry_run : bool
        Look and refuse, but change nothing.

    Raises
    ------
    FileExistsError
        When the destination holds something else.
    """
    main = volumes[0]
    where = f"{main.url}/{main.group}".rstrip("/")
    existing = find_existing(main)
    state = standing(where, existing, provenance, resume=resume, overwrite=overwrite)
    if state == "new" and existing is not None and overwrite:
        check_replaceable(main, existing)
    if dry_run:
        return state
    if state == "new":
        if existing is not None:
            clear_outputs(volumes)
        for volume in volumes:
            create(volume, provenance)
    elif state == "begun":
        for volume in volumes:
            # A kill in the middle leaves a volume without metadata, or without its first level.
            if not read_attributes(volume.url, labels=_label_name(volume)) or not level_exists(
                volume.url, volume.levels[0]
            ):
                create(volume, provenance)
    return state


def fill(
    volumes: Sequence[Volume],
    plan: Plan,
    function: Callable[[Block], Record | None],
    *,
    remember: Callable[[Iterator[Record]], Mapping[str, Any]] | None = None,
    level: int = 0,
    **where: Any,
) -> Summary:
    """Write one level of each volume, block by block, and seal it.

    Parameters
    ----------
    volumes : sequence of Volume
        Created; all written by the same blocks.
    plan : Plan
        Over blocks made of whole shards of every volume.
    function : callable
        Writes a block and returns ``{"shards": {level path: digests}, …}``.
    remember : callable, optional
        Turns the records of all blocks, in order, into attributes of the first volume.
    level : int
        Which level.
    **where
        ``client``, ``workers``, ``resources``, ``mask``, ``retries`` of :func:`run`.

    Returns
    -------
    Summary
        With all blocks resumed where an earlier run had sealed the level.
    """
    levels = [volume.levels[level] for volume in volumes]
    main = volumes[0]
    ledger = Ledger(main.url, levels[0].path)
    if is_sealed(main, level):
        sweep(volumes, [])
        ledger.clear()
        summary = Summary(plan.stage, len(plan.grid), n_resumed=len(plan.grid))
        note_summary(summary)
        return summary
    summary = run(function, plan, ledger=ledger, **where)
    sweep(volumes, levels)
    # Another client may have come to the end first, and have cleared markers of blocks that this
    # one did: what it has sealed is whole, what could be sealed now would not be.
    if not is_sealed(main, level):
        _seal(volumes, levels, ledger, remember)
    ledger.clear()
    return summary


def is_sealed(volume: Volume, level: int = 0) -> bool:
    """Tell whether a level is written to its last block and its manifest is recorded."""
    own = read_attributes(volume.url, labels=_label_name(volume))
    return volume.levels[level].path in own.get("digests", {})


def _seal(
    volumes: Sequence[Volume],
    levels: Sequence[Level],
    ledger: Ledger,
    remember: Callable[[Iterator[Record]], Mapping[str, Any]] | None,
) -> None:
    """Record what was written, one level of each volume."""
    digests = ledger.seal(levels)
    remembered = dict(remember(ledger.records())) if remember else {}
    # The first volume last: it is the one that tells a later run that all are sealed.
    for volume, written in reversed(list(zip(volumes, levels, strict=True))):
        update_attributes(
            volume,
            digests={written.path: digests[written.path]},
            **(remembered if volume is volumes[0] else {}),
        )


def sweep(volumes: Sequence[Volume], levels: Sequence[Level]) -> None:
    """Remove temporary files that a killed writer left on a local disk.

    Only beside the metadata of these volumes and within these levels: another stage may be writing
    other parts of the same sample now.
    """
    sample = Path(volumes[0].url)
    if is_remote(volumes[0].url):
        return
    folders = {sample / "tables"}
    for volume in volumes:
        group = sample / volume.group
        folders |= {group, group.parent} if volume.group else {group}
    leftovers = [path for folder in folders for path in folder.glob("*.partial")]
    leftovers += [path for level in levels for path in (sample / level.path).rglob("*.partial")]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


def clear_outputs(volumes: Sequence[Volume]) -> None:
    """Delete volumes, their metadata last.

    They are hidden from readers first and stay recognisable as ours to the end, so that a kill in
    between leaves nothing that looks whole, and the same command can be run again.
    """
    for volume in volumes:
        hide(volume)
    for volume in volumes:
        prefix = f"{volume.group}/".lstrip("/")
        keys = [key.removeprefix(prefix) for key in list_objects(volume.url, prefix)]
        for folder in sorted({key.partition("/")[0] for key in keys if "/" in key}):
            delete_tree(volume.url, prefix + folder)
        for key in keys:
            if "/" not in key and key != "zarr.json":
                delete_object(volume.url, prefix + key)
        delete_tree(volume.url, volume.group)


def _label_name(volume: Volume) -> str | None:
    return volume.name if volume.is_labels else None


def find_existing(volume: Volume) -> Mapping[str, Any] | None:
    """Return our metadata at a destination, {} for something foreign, None for nothing."""
    own = read_attributes(volume.url, labels=_label_name(volume))
    if own:
        return own
    if volume.group:
        prefix = f"{volume.group}/"
        names = [read_object(volume.url, prefix + name) for name in ("zarr.json", ".zgroup")]
        return {} if any(name is not None for name in names) else None
    if is_remote(volume.url):
        return {} if next(list_objects(volume.url, ""), None) is not None else None
    path = Path(volume.url)
    return {} if path.exists() and (path.is_file() or any(path.iterdir())) else None


def check_replaceable(volume: Volume, existing: Mapping[str, Any]) -> None:
    """Refuse to delete what is no Zarr store: a mistyped path must not cost a home folder.

    Raises
    ------
    FileExistsError
        With what to do instead.
    """
    if existing or volume.group:
        return
    if all(read_object(volume.url, name) is None for name in ("zarr.json", ".zgroup", ".zarray")):
        raise FileExistsError(
            f"only a Zarr store is overwritten. {redact(volume.url)} holds something else: "
            f"remove it yourself, or give another destination"
        )
