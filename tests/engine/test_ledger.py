"""Do markers tell exactly which blocks are done, and manifests nothing of how they were done?"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvdask.engine.ledger import READ_AHEAD, Ledger, Record, standing
from cvdask.volume.store import Level, read_manifest

# Four layers of one shard each.
LEVEL = Level("0", (32, 8, 8), "uint8", (8, 8, 8), (8, 8, 8), (1.0, 1.0, 1.0))


def record(number: int, path: str = "0") -> Record:
    return {"shards": {path: {f"c/{number}/0/0": f"{number:016x}"}}}


# Small cases, written out


def test_markers_say_which_blocks(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "0")
    assert ledger.done(3).tolist() == [False, False, False]
    ledger.mark({2: {"n": 20}, 1: {"n": 10}})
    ledger.mark({5: {}, 7: {"n": 70}})
    assert ledger.done(9).tolist() == [False, True, True, False, False, True, False, True, False]
    assert list(ledger.records()) == [
        {"block": 1, "n": 10},
        {"block": 2, "n": 20},
        {"block": 5},
        {"block": 7, "n": 70},
    ]
    files = sorted((tmp_path / "0/.cvdask/done").iterdir())
    # A run of blocks without gaps is known from its name alone.
    assert files[0].name == "000000000001-000000000002-2.jsonl"
    assert files[1].name.startswith("000000000005-000000000007-2-")
    assert files[0].read_text() == '{"block":1,"n":10}\n{"block":2,"n":20}\n'
    ledger.clear()
    assert not ledger.done(9).any()
    assert list(ledger.records()) == []


def test_some_markers_are_read_ahead_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(str(tmp_path), "0")
    for number in range(0, 100, 2):
        ledger.mark({number: {"n": number}})
    read: list[str] = []
    keep = Ledger._read
    monkeypatch.setattr(Ledger, "_read", lambda own, name: (read.append(name), keep(own, name))[1])
    records = ledger.records()
    first, second = next(records), next(records)
    assert len(read) <= READ_AHEAD + 2
    rest = [record["block"] for record in records]
    assert [first["block"], second["block"], *rest] == list(range(0, 100, 2))
    assert len(read) == 50


def test_manifests_have_a_line_for_every_shard(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "0")
    ledger.mark({n: record(n) for n in (1, 2)})
    ledger.mark({0: record(0), 3: record(3)})
    sealed = ledger.seal([LEVEL])
    lines = [f"{n:016x}  c/{n}/0/0\n".encode() for n in range(4)]
    for n in range(4):
        assert (tmp_path / f"0/.cvdask/manifest/{n}.xxh3").read_bytes() == lines[n]
        assert read_manifest(str(tmp_path), LEVEL, n) == {f"c/{n}/0/0": f"{n:016x}"}
    assert sealed == {"0": hashlib.sha256(b"".join(lines)).hexdigest()}
    # A run that is killed now seals again, to the same.
    assert ledger.done(4).all()
    assert ledger.seal([LEVEL]) == sealed


def test_blocks_of_several_layers_and_several_levels(tmp_path: Path) -> None:
    labels = Level("labels/a/0", (32, 8, 8), "uint8", (8, 8, 8), (8, 8, 8), (1.0, 1.0, 1.0))
    ledger = Ledger(str(tmp_path), "0")
    for block, layers in ((0, (0, 1)), (1, (2, 3))):
        shards = {
            level.path: {f"c/{z}/0/0": f"{z}{level.path}" for z in layers}
            for level in (LEVEL, labels)
        }
        ledger.mark({block: {"shards": shards}})
    assert set(ledger.seal([LEVEL, labels])) == {"0", "labels/a/0"}
    for level in (LEVEL, labels):
        for z in range(4):
            found = read_manifest(str(tmp_path), level, z)
            assert found == {f"c/{z}/0/0": f"{z}{level.path}"}


# Invariants


@given(
    st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=12), max_size=8),
)
def test_any_batches_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, batches: list[set[int]]
) -> None:
    # Batches may overlap: a block whose worker died after its marker is run again.
    ledger = Ledger(str(tmp_path_factory.mktemp("ledger")), "labels/a/0")
    for batch in batches:
        ledger.mark({n: {"n": 10 * n} for n in batch})
    expected = sorted(set().union(*batches))
    assert np.flatnonzero(ledger.done(31)).tolist() == expected
    assert list(ledger.records()) == [{"block": n, "n": 10 * n} for n in expected]


@given(st.permutations(range(4)), st.sets(st.integers(1, 3)))
def test_manifests_do_not_show_batches(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cuts: set[int]
) -> None:
    ledger = Ledger(str(tmp_path_factory.mktemp("ledger")), "0")
    bounds = [0, *sorted(cuts), 4]
    for first, stop in itertools.pairwise(bounds):
        ledger.mark({n: record(n) for n in order[first:stop]})
    manifests = b"".join(f"{n:016x}  c/{n}/0/0\n".encode() for n in range(4))
    assert ledger.seal([LEVEL]) == {"0": hashlib.sha256(manifests).hexdigest()}


# What lies at the destination

ASKED = {"stage": "label", "options": {"seed": 1, "shape": (3, 4)}, "inputs": []}
SAME = {"stage": "label", "options": {"seed": 1, "shape": [3, 4]}, "inputs": []}
OTHER = {"stage": "label", "options": {"seed": 0, "kind": "a"}, "inputs": ["b"]}


@pytest.mark.parametrize(
    ("existing", "options", "expected"),
    [
        (None, {}, "new"),
        (None, {"resume": True}, "new"),
        ({"provenance": SAME, "state": "begun"}, {}, "begun"),
        ({"provenance": SAME, "state": "begun"}, {"resume": True}, "begun"),
        ({"provenance": SAME, "state": "complete"}, {}, "complete"),
        ({"provenance": SAME, "state": "complete"}, {"overwrite": True}, "new"),
        ({"provenance": OTHER, "state": "begun"}, {"overwrite": True}, "new"),
        ({}, {"overwrite": True}, "new"),
    ],
)
def test_standing(existing: Any, options: dict[str, bool], expected: str) -> None:
    assert standing("/cell.zarr", existing, ASKED, **options) == expected


@pytest.mark.parametrize(
    ("existing", "options", "said"),
    [
        ({}, {}, r"https://host/cell\.zarr.*--overwrite"),
        ({}, {"resume": True}, r"cell\.zarr.*--overwrite"),
        ({"provenance": OTHER, "state": "complete"}, {}, r"options\.seed: 0 → 1.*--overwrite"),
        ({"provenance": OTHER, "state": "begun"}, {"resume": True}, r"inputs: \['b'\] → \[\]"),
        ({"provenance": {**SAME, "version": 2}}, {}, "version: 2 → None"),
    ],
)
def test_refusals_name_what_differs(existing: Any, options: dict[str, bool], said: str) -> None:
    where = "https://me:hunter2@host/cell.zarr"
    with pytest.raises(FileExistsError, match=said) as caught:
        standing(where, existing, ASKED, **options)
    assert "hunter2" not in str(caught.value)
