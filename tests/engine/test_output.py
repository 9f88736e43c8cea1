"""Is an output complete, resumable, or not there, whatever happened to the run that wrote it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvdask.engine import output
from cvdask.engine.blockwise import Mask
from cvdask.engine.ledger import Record
from cvdask.engine.output import begin, fill
from cvdask.engine.plan import Plan
from cvdask.errors import BlocksFailed
from cvdask.volume.boxes import Block
from cvdask.volume.store import (
    Volume,
    create,
    describe,
    open_volume,
    publish,
    read_attributes,
)
from cvdask.volume.verify import Verification, verify
from tests.samples import write_sample
from tests.trees import tree_digest

PROVENANCE = {"stage": "draw", "options": {"seed": 1}, "inputs": []}
SHAPE = (16, 20, 24)


def described(url: Path, labels: str | None = None) -> Volume:
    return describe(
        url,
        shape=SHAPE,
        dtype="uint8",
        voxel_size_nm=10,
        labels=labels,
        chunk_shape=(4, 4, 4),
        shard_shape=(8, 8, 8),
    )


def plan(volume: Volume) -> Plan:
    return Plan("draw", volume.levels[0].shards, volume.url)


def draw(volumes: list[Volume], block: Block) -> Record:
    """Write the number of each block into it, plus one for every volume before."""
    shards = {}
    for n, volume in enumerate(volumes):
        data = np.full(block.write.shape, 1 + n + block.index, "uint8")
        shards[volume.levels[0].path] = volume.write(block.write, data)
    return {"shards": shards, "n": block.index}


def drawn(url: Path, *, client: Any = None, **options: Any) -> str:
    """Run a whole stage: an image and a label image, written by the same blocks."""
    volumes = [described(url), described(url, "copies")]
    state = begin(volumes, PROVENANCE, **options)
    if state != "complete":
        fill(volumes, plan(volumes[0]), partial(draw, volumes), client=client)
        for volume in reversed(volumes):
            publish(volume)
    return state


# Small cases, written out


def test_a_stage_from_nothing_to_complete(tmp_path: Path, client: Any) -> None:
    assert drawn(tmp_path, client=client) == "new"
    for labels, first in ((None, 1), ("copies", 2)):
        voxels = open_volume(tmp_path, labels=labels).read()
        assert voxels[0, 0, 0] == first
        assert voxels[-1, -1, -1] == first + 17
        assert set(read_attributes(tmp_path, labels=labels)["digests"]) == {
            "labels/copies/0" if labels else "0"
        }
    checked = verify(str(tmp_path))
    assert isinstance(checked, Verification)
    assert (checked.ok, checked.unsealed) == (True, ())
    assert list(tmp_path.rglob("done")) == []
    assert drawn(tmp_path) == "complete"


def test_looking_changes_nothing(tmp_path: Path) -> None:
    assert begin([described(tmp_path / "cell.zarr")], PROVENANCE, dry_run=True) == "new"
    assert list(tmp_path.iterdir()) == []
    drawn(tmp_path / "cell.zarr")
    before = tree_digest(tmp_path)
    volumes = [described(tmp_path / "cell.zarr")]
    assert begin(volumes, PROVENANCE, overwrite=True, dry_run=True) == "new"
    assert begin(volumes, PROVENANCE, dry_run=True) == "complete"
    assert tree_digest(tmp_path) == before


def test_what_blocks_say_is_remembered_once_in_order(tmp_path: Path, client: Any) -> None:
    volume = described(tmp_path)

    def remember(records: Iterator[Record]) -> Mapping[str, Any]:
        return {"numbers": [record["n"] for record in records]}

    begin([volume], PROVENANCE)
    fill([volume], plan(volume), partial(draw, [volume]), remember=remember, client=client)
    assert read_attributes(tmp_path)["numbers"] == list(range(18))


def test_a_sealed_level_is_passed_by(tmp_path: Path) -> None:
    volume = described(tmp_path)
    begin([volume], PROVENANCE)
    first = fill([volume], plan(volume), partial(draw, [volume]))
    assert (first.n_done, first.n_resumed) == (18, 0)

    def never(_: Block) -> Record:
        raise AssertionError("a sealed level was written again")

    again = fill([volume], plan(volume), never)
    assert (again.n_done, again.n_resumed, again.n_blocks) == (0, 18, 18)


def test_blocks_outside_a_mask_stay_unwritten(tmp_path: Path) -> None:
    wanted = np.zeros((2, 3, 3), "uint8")
    wanted[1, 2, 0] = 1
    mask = write_sample(tmp_path / "mask", wanted)
    volume = described(tmp_path / "cell.zarr")
    begin([volume], PROVENANCE)
    summary = fill(
        [volume],
        plan(volume),
        partial(draw, [volume]),
        mask=Mask(mask.url, mask.levels[0], (8, 8, 8)),
    )
    assert (summary.n_done, summary.n_empty) == (18, 17)
    expected = np.zeros(SHAPE, "uint8")
    expected[8:, 16:, :8] = 1 + 9 + 6
    np.testing.assert_array_equal(publish(volume).read(), expected)
    checked = verify(str(tmp_path / "cell.zarr"))
    assert isinstance(checked, Verification)
    assert checked.ok


# Interrupted


class Interrupted(BaseException):
    """What a kill looks like from inside: nothing below catches it."""


def stop(*_: object, **__: object) -> None:
    raise Interrupted


@pytest.mark.parametrize("step", ["create", "sweep", "run", "update_attributes"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_stop_between_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    drawn(tmp_path / "whole/cell.zarr")
    url = tmp_path / "stopped/cell.zarr"
    with monkeypatch.context() as patch:
        original, n_calls = getattr(output, step), 0

        def later(*arguments: Any, **options: Any) -> Any:
            nonlocal n_calls
            n_calls += 1
            if n_calls == call:
                raise Interrupted
            return original(*arguments, **options)

        patch.setattr(output, step, later)
        if call > 1 and step in ("run", "sweep"):
            drawn(url)  # it has only one
        else:
            with pytest.raises(Interrupted):
                drawn(url)
            with pytest.raises((ValueError, FileNotFoundError)):
                open_volume(url)
    drawn(url)
    assert tree_digest(url) == tree_digest(tmp_path / "whole/cell.zarr")


def test_a_stop_between_seal_and_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(tmp_path / "whole/cell.zarr")
    url = tmp_path / "stopped/cell.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("cvdask.engine.ledger.Ledger.clear", stop)
        with pytest.raises(Interrupted):
            drawn(url)
    assert list(url.rglob("*.jsonl")) != []
    drawn(url)
    assert tree_digest(url) == tree_digest(tmp_path / "whole/cell.zarr")


def test_finished_blocks_are_not_written_again(tmp_path: Path) -> None:
    volume = described(tmp_path)
    begin([volume], PROVENANCE)

    def fail_some(block: Block) -> Record:
        if block.index % 5 == 0:
            raise ArithmeticError(f"no {block.index}")
        return draw([volume], block)

    with pytest.raises(BlocksFailed, match="4 of 18") as caught:
        fill([volume], plan(volume), fail_some, retries=0)
    assert [failure.block for failure in caught.value.failures] == [0, 5, 10, 15]
    taken = []

    def count(block: Block) -> Record:
        taken.append(block.index)
        return draw([volume], block)

    assert begin([volume], PROVENANCE) == "begun"
    summary = fill([volume], plan(volume), count)
    assert taken == [0, 5, 10, 15]
    assert (summary.n_done, summary.n_resumed) == (4, 14)


def test_leftovers_of_killed_writers_are_removed_and_those_of_others_left(tmp_path: Path) -> None:
    volumes = [described(tmp_path), described(tmp_path, "copies")]
    begin(volumes, PROVENANCE)
    ours = ["zarr.1.partial", "0/c/0/1/2.3.partial", "labels/copies/0/c/0/0/0.4.partial"]
    theirs = ["labels/other/0/c/0/0/0.5.partial", "1/c/0/0/0.6.partial"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    fill(volumes, plan(volumes[0]), partial(draw, volumes))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.partial")}
    assert left == set(theirs)


# What lies there already


def test_labels_are_replaced_without_touching_the_rest(tmp_path: Path) -> None:
    write_sample(tmp_path, np.ones(SHAPE, "uint8"))
    write_sample(tmp_path, np.ones(SHAPE, "uint8"), labels="others")
    labels = described(tmp_path, "copies")
    for seed in (1, 2):
        provenance = {**PROVENANCE, "options": {"seed": seed}}
        begin([labels], provenance, overwrite=seed == 2)
        fill([labels], plan(labels), partial(draw, [labels]))
        publish(labels)
        with pytest.raises(FileExistsError, match=rf"copies.*seed: {seed} → 9"):
            begin([labels], {**PROVENANCE, "options": {"seed": 9}})
    assert open_volume(tmp_path).label_names() == ["copies", "others"]
    assert open_volume(tmp_path).read().all()
    assert open_volume(tmp_path, labels="others").read().all()


def test_labels_of_others_are_not_ours_to_resume(tmp_path: Path) -> None:
    write_sample(tmp_path, np.ones(SHAPE, "uint8"))
    (tmp_path / "labels/copies").mkdir(parents=True)
    (tmp_path / "labels/copies/zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(FileExistsError, match=r"labels/copies.*--overwrite"):
        begin([described(tmp_path, "copies")], PROVENANCE)


def test_a_volume_that_is_being_replaced_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(tmp_path)
    monkeypatch.setattr(output, "delete_tree", stop)
    with pytest.raises(Interrupted):
        begin([described(tmp_path)], PROVENANCE, overwrite=True)
    with pytest.raises(ValueError, match="not complete"):
        open_volume(tmp_path)
    monkeypatch.undo()
    assert begin([described(tmp_path)], PROVENANCE, overwrite=True) == "new"


def test_creation_overwrites_no_array(tmp_path: Path) -> None:
    create(described(tmp_path), PROVENANCE)
    with pytest.raises(ValueError, match="array exists"):
        create(described(tmp_path), PROVENANCE)
