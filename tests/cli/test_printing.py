"""What people and programs are told."""

from __future__ import annotations

import warnings

import pytest

from cvdask.cli.printing import print_scores, tell_notes


def test_scores_stand_in_columns(capsys: pytest.CaptureFixture[str]):
    print_scores([["F1", "test", "mean ± sd"], ["z_discs", "0.5000", "0.5 ± 0.1"]])
    assert capsys.readouterr().out.splitlines() == [
        "F1         test  mean ± sd",
        "z_discs  0.5000  0.5 ± 0.1",
    ]


def test_a_note_is_told_once_and_at_once(capsys: pytest.CaptureFixture[str]):
    with tell_notes() as notes:
        for _ in range(2):
            warnings.warn("patches of 64 instead of 512", stacklevel=1)
        assert capsys.readouterr().err == "note: patches of 64 instead of 512\n"
        assert notes == ["patches of 64 instead of 512"]
        warnings.warn("s3://me:hunter2@host/cell.zarr has another voxel size", stacklevel=1)
    assert notes[1:] == ["s3://host/cell.zarr has another voxel size"]
    assert "hunter2" not in capsys.readouterr().err


def test_warnings_for_programmers_are_no_notes():
    with tell_notes() as notes, pytest.raises(DeprecationWarning, match="spam"):
        warnings.warn("spam is out", DeprecationWarning, stacklevel=1)
    assert notes == []


def test_warnings_are_as_before_afterwards():
    with tell_notes():
        pass
    with pytest.raises(UserWarning, match="patches"):
        warnings.warn("patches of 64 instead of 512", stacklevel=1)
