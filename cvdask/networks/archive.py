"""How is an archive of arrays read without trusting it?

A ``.keras`` file is a zip archive. What we read of it lies there once and uncompressed, so that its
size is known before anything is allocated; inside its HDF5 member, arrays lie in that very file.
Nothing is executed.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from typing import Any

import h5py

from cvdask.volume.objects import is_remote, normalize_url, read_object, redact


def digest(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file, as 64 hexadecimal digits.

    Raises
    ------
    FileNotFoundError
        When there is none.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader | io.BytesIO:
    """Open a local file, or fetch a remote one.

    Raises
    ------
    FileNotFoundError
        When there is none.
    """
    url = normalize_url(path)
    if not is_remote(url):
        try:
            return open(url, "rb")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no network at {url}") from error
    parent, _, name = url.rpartition("/")
    data = read_object(parent, name)
    if data is None:
        raise FileNotFoundError(f"there is no network at {redact(url)}")
    return io.BytesIO(data)


def open_archive(file: io.BufferedReader | io.BytesIO, where: str) -> zipfile.ZipFile:
    """Read the archive's directory; ``where`` names the file in messages."""
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{where} is no .keras file, or a damaged one: {error}") from error


def find_member(archive: zipfile.ZipFile, name: str, where: str) -> zipfile.ZipInfo:
    """Find a member: there exactly once, as it is, so that its size is that of its bytes."""
    found = [member for member in archive.infolist() if member.filename == name]
    if len(found) != 1:
        raise ValueError(
            f"{where} must hold {name} once. Received: {len(found)} times, among "
            f"{len(archive.infolist())} members. It was not written by cvdask"
        )
    (member,) = found
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(
            f"{where} must hold {name} uncompressed and unencrypted, as Keras writes it. Received: "
            f"method {member.compress_type}, flags {member.flag_bits}"
        )
    return member


def read_member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """Read a member whole, which compares its checksum."""
    try:
        return archive.read(find_member(archive, name, where))
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(f"{where}: {name} is damaged: {error}") from error


def own_member(group: Any, key: str, kind: type) -> Any:
    """Return a member of a group that lies in this very file, where links could lead anywhere."""
    link = group.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        what = "nothing" if link is None else type(link).__name__
        raise ValueError(f"{group.name}/{key} must be in the file itself. Received: {what}")
    value = group[key]
    if not isinstance(value, kind):
        raise ValueError(
            f"{group.name}/{key} must be a {kind.__name__}. Received: {type(value).__name__}"
        )
    return value
