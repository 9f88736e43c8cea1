"""Where networks lie, and what is said when they do not."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from cvdask.errors import DamagedData
from cvdask.networks.archive import digest
from cvdask.networks.files import (
    existing_record,
    network_path,
    read_array_file,
    write_json_file,
)


@pytest.mark.parametrize("out", ["net.h5", "net", "s3://bucket/net.keras"])
def test_networks_are_local_keras_files(out):
    with pytest.raises(ValueError, match=rf"\.keras.*{out}"):
        network_path(out)


def test_what_an_earlier_run_has_left(tmp_path):
    record, out = tmp_path / "net.run.json", network_path(tmp_path / "net.keras")
    assert existing_record(record, out) is None
    out.touch()
    assert existing_record(record, out) == {}
    write_json_file(record, {"state": "begun"})
    assert existing_record(record, out) == {"state": "begun"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.keras", "net.run.json"]


def test_a_network_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no network at .*none\.keras"):
        digest(tmp_path / "none.keras")


@pytest.mark.parametrize("number", [None, errno.EINVAL])
def test_a_damaged_archive_is_named(tmp_path, monkeypatch, number):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(3))
    if number is None:
        path.write_bytes(path.read_bytes()[:-30])
    else:  # what a place before the file's beginning comes to
        monkeypatch.setattr(np, "load", failing(OSError(number, "Invalid argument")))
    with pytest.raises(DamagedData, match=r"a\.npz is damaged"):
        read_array_file(path)


def test_a_machine_that_fails_is_not_called_damage(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(3))
    monkeypatch.setattr(np, "load", failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output") as error:
        read_array_file(path)
    assert not isinstance(error.value, DamagedData)


def failing(error):
    def fail(*_, **__):
        raise error

    return fail
