"""Where networks lie, and what is said when they do not."""

from __future__ import annotations

import pytest

from cvdask.networks.archive import digest
from cvdask.networks.files import existing_record, network_path, write_json_file


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
