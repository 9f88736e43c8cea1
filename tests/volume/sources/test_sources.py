"""What is recognised, and what is refused before any format is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cvdask.volume.sources import SourceError, examine


def test_a_path_that_is_not_there(tmp_path: Path):
    with pytest.raises(SourceError, match=r"nothing\.tif"):
        examine(tmp_path / "nothing.tif")


def test_an_address_is_refused_without_its_secrets():
    with pytest.raises(SourceError, match="s3:/") as refused:
        examine("s3://key:secret@bucket/a.tif")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gz", "a.czi"])
def test_an_unknown_format_names_the_known_ones(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"whatever it is")
    with pytest.raises(SourceError, match=r"b'whatever'.*\.tif.*\.mrc.*zarr"):
        examine(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.mrc", "a.h5", "a.nii", "a.nii.gz"])
def test_a_wrong_mark_under_a_known_name(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"whatever it is")
    with pytest.raises(SourceError, match=r"b'whatever'.*wrong extension"):
        examine(tmp_path / name)


def test_the_mark_counts_and_not_the_name(tmp_path: Path):
    tifffile.imwrite(tmp_path / "a.dat", np.zeros((4, 5), np.uint8))
    assert examine(tmp_path / "a.dat").kind == "tiff"


@pytest.mark.parametrize(
    ("options", "value"), [({"dataset": "raw"}, "'raw'"), ({"pattern": "*"}, r"'\*'")]
)
def test_options_that_would_do_nothing(tmp_path: Path, options: dict[str, Any], value: str):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8))
    with pytest.raises(SourceError, match=value):
        examine(tmp_path / "a.tif", **options)


def test_optional_readers_are_imported_late_and_named_when_missing(tmp_path: Path):
    program = """
        import sys
        from cvdask.volume.sources import SourceError, examine
        optional = ("mrcfile", "h5py", "nibabel", "tensorstore", "zarr")
        early = [name for name in optional if name in sys.modules]
        assert early == [], early
        for name in optional:
            sys.modules[name] = None
        for file in sys.argv[1:]:
            try:
                examine(file)
            except SourceError as error:
                print(error)
    """
    head = {"a.mrc": bytes(208) + b"MAP " + bytes(900), "b.h5": b"\x89HDF\r\n\x1a\n",
            "c.nii": bytes(344) + b"n+1\0"}  # fmt: skip
    for name, data in head.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "d.n5").mkdir()
    (tmp_path / "d.n5/attributes.json").write_text('{"dimensions": [1, 1, 1]}')
    files = [str(tmp_path / name) for name in (*head, "d.n5")]
    code = "\n".join(line[8:] for line in program.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line, package in zip(lines, ("mrcfile", "h5py", "nibabel", "tensorstore"), strict=True):
        assert f"the package {package}: pip install 'cvdask[formats]'" in line
