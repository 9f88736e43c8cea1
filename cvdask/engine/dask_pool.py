"""Calls on the workers of a Dask cluster.

What a worker cannot load must not travel as Dask's own message: the worker drops the connection
over it, comes back, is sent it again, and the caller waits for ever. So

1. :class:`DaskPool` asks scheduler and workers for their version of cvdask before it sends
   anything, and asks those who come later where nothing has ended for a while;
2. function and arguments travel as bytes, which :func:`_carry_out` loads inside the call: what
   is not installed there is then an error of that call.
"""

from __future__ import annotations

import concurrent.futures
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

# Who waits looks again after so long, for the case that nobody is left to tell.
LISTEN_SECONDS = 5
# An error names so many workers.
NAMED = 5


class DaskPool:
    """Run calls on the workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
    resources : mapping, optional
        What each call needs of a worker, such as ``{"GPU": 1}``.
    n_slots : int, optional
        Slots to count on where more workers will come; by default those of the workers there.

    Raises
    ------
    ValueError
        When no worker offers the resources: such a call would wait for ever. When the scheduler or
        a worker has another version of cvdask, or none.
    """

    def __init__(
        self,
        client: Client,
        resources: Mapping[str, float] | None = None,
        n_slots: int | None = None,
    ) -> None:
        address = client.scheduler.address if client.scheduler else "a closed connection"
        there = client.scheduler_info(n_workers=-1)["workers"]
        able = [worker for worker in there.values() if _offers(worker, resources or {})]
        if not able:
            offered = sorted({name for w in there.values() for name in w.get("resources", {})})
            raise ValueError(
                f"no worker of {address} offers {dict(resources or {})}. "
                f"{len(there)} workers are there, offering {offered or 'no resources'}"
                if resources
                else f"the cluster at {address} has no workers yet"
            )
        check_versions(client)
        self._asked = set(there)
        self.client = client
        self.slots = n_slots or sum(int(w["nthreads"]) for w in able)
        granted = [int(w["memory_limit"] / w["nthreads"]) for w in able if w["memory_limit"]]
        self.worker_bytes = min(granted, default=2**62)
        self.dashboard = client.dashboard_link
        self._resources = dict(resources) if resources else None
        self._news = threading.Condition()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Submit a call. Its key is new every time: two calls are never taken for one."""
        from dask.utils import funcname
        from distributed.protocol.pickle import dumps

        awaited = [arg for arg in args if _is_awaited(arg)]
        order = dumps((function, [_Awaited if _is_awaited(arg) else arg for arg in args]))
        key = f"{funcname(function)}-{uuid.uuid4().hex}"
        future = self.client.submit(
            _carry_out, order, *awaited, key=key, pure=False, resources=self._resources
        )
        # Its state alone: who holds a future keeps its call on the cluster, also after a run that
        # was given up.
        loop = self.client.loop
        assert loop is not None  # it runs, since the call was submitted
        loop.add_callback(self._tell, future._state)
        return future

    async def _tell(self, state: Any) -> None:
        """Tell those who wait that a call has ended."""
        await state.wait()
        with self._news:
            self._news.notify_all()

    def wait(self, futures: Iterable[Any]) -> set[Any]:
        """Wait for the first.

        Each call is watched once, when it is submitted: ``distributed.wait`` watches all of them
        anew each time, which takes it a fifth of a second for a thousand.

        Raises
        ------
        ValueError
            When nothing ends, and a worker that came meanwhile has another version of cvdask.
        """
        waited = list(futures)
        while not (ended := self._listen(waited)):
            self._ask_newcomers()
        if any(one.cancelled() for one in ended):
            raise concurrent.futures.CancelledError
        return ended

    def _listen(self, futures: Iterable[Any]) -> set[Any]:
        """Wait a while for the first; return none where none has ended."""
        with self._news:
            return self._news.wait_for(
                lambda: {one for one in futures if one.status != "pending"}, LISTEN_SECONDS
            )

    def _ask_newcomers(self) -> None:
        there = set(self.client.scheduler_info(n_workers=-1)["workers"])
        if not there <= self._asked:
            check_versions(self.client)
        self._asked = there


def check_versions(client: Client) -> None:
    """Refuse a cluster whose scheduler or workers have another version of cvdask, or none.

    Dask asks them itself, so that those without it can answer too.

    Raises
    ------
    ValueError
    """
    here = version("cvdask")
    answers = client.get_versions(packages=["cvdask"])
    assert isinstance(answers, dict)  # the client is not an asynchronous one
    seen = {"the scheduler": answers["scheduler"], **answers["workers"]}
    there = {name: answer["packages"]["cvdask"] or "none" for name, answer in seen.items()}
    others = {name: found for name, found in there.items() if found != here}
    if not others:
        return
    named = ", ".join(f"{name} has {found}" for name, found in list(others.items())[:NAMED])
    more = f" and {len(others) - NAMED} more differ" if len(others) > NAMED else ""
    raise ValueError(
        f"scheduler and workers need the version of cvdask that is here, {here}. Received: "
        f"{named}{more}. Install that version where they run"
    )


class _Awaited:
    """Stands for an argument that Dask puts in: the result of another call."""


def _is_awaited(arg: Any) -> bool:
    """Tell a future, or a list of them, from what is known already."""
    from distributed import Future

    return isinstance(arg, Future) or (isinstance(arg, list) and any(map(_is_awaited, arg)))


def _carry_out(order: bytes, *awaited: Any) -> Any:
    """Load a function with its arguments on a worker, and call it."""
    from distributed.protocol.pickle import loads

    try:
        function, args = loads(order)
    except Exception as error:
        raise ValueError(
            "a worker must be able to load what it is to run, with the packages that are "
            f"installed where it runs. Received: {type(error).__name__}: {error}. Install there "
            "what is installed here"
        ) from error
    results = iter(awaited)
    return function(*(next(results) if arg is _Awaited else arg for arg in args))


def _offers(worker: Mapping[str, Any], resources: Mapping[str, float]) -> bool:
    offered = worker.get("resources", {})
    return all(offered.get(name, 0) >= amount for name, amount in resources.items())
