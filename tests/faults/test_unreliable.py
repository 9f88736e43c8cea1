"""Is a store whose answers break off asked again, and is an error told in the end?"""

from __future__ import annotations

from typing import Any

import obstore.exceptions
import pytest
from zarr.storage import ObjectStore

from cvdask.volume import objects as objects_module
from cvdask.volume.objects import read_object, write_object
from tests.faults.buckets import bucket, server

__all__ = ["bucket", "server"]  # fixtures

pytestmark = pytest.mark.faults


def test_an_answer_that_breaks_off_is_asked_for_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_object(bucket, "a", b"one")
    get, n_broken, calls = ObjectStore.get, 3, []

    async def broken(self: ObjectStore, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) <= n_broken:
            raise obstore.exceptions.GenericError("HTTP error: request or response body error")
        return await get(self, *arguments)

    monkeypatch.setattr(objects_module, "WAITS_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(ObjectStore, "get", broken)
    assert read_object(bucket, "a") == b"one"
    n_broken = 99
    with pytest.raises(OSError, match="response body error"):
        read_object(bucket, "a")
    assert len(calls) == 4 + 4
