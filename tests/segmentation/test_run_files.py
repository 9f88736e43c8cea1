"""What lies beside a network: its names, and what a kill leaves."""

from __future__ import annotations

import json

import pytest

from cvdask.segmentation.run_files import RunFiles, rewrite_log


def test_names_are_those_of_the_network(tmp_path):
    files = RunFiles.beside(tmp_path / "a.b.keras")
    names = [p.name for p in (files.record, files.log, files.state, files.curves, files.fold(2))]
    assert names == ["a.b.run.json", "a.b.jsonl", "a.b.state.npz", "a.b.png", "a.b.fold2.keras"]


def test_only_the_networks_own_temporary_files_are_leftovers(tmp_path):
    """A training beside it may be writing a file of its own at this moment."""
    drawn = "0123456789abcdef" * 2
    own = {f"net.{drawn}.partial", f"net.fold12.{drawn}.partial"}
    others = {f"net.large.{drawn}.partial", f"network.{drawn}.partial", "net.fold1.keras"}
    for name in own | others:
        (tmp_path / name).touch()
    assert {path.name for path in RunFiles.beside(tmp_path / "net.keras").leftovers()} == own


@pytest.mark.parametrize("tail", ["", '{"fold": 2, "epoch": 2}\n', '{"fold": 2, "ep'])
def test_a_log_is_cut_back_to_what_the_state_knows(tmp_path, tail):
    log = tmp_path / "net.jsonl"
    known = [{"fold": 1, "epoch": 1}, {"fold": 2, "epoch": 1}]
    log.write_text("".join(json.dumps(one) + "\n" for one in known) + tail)
    rewrite_log(log, 2, known[1:])
    assert [json.loads(line) for line in log.read_text().splitlines()] == known
