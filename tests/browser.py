"""A real browser without a window, for tests of pages: what it shows, logs and asks for."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from tornado.websocket import websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; install it with: apt-get install chromium"
)
FLAGS = (
    "--headless", "--no-sandbox", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    # WebGL on the processor: machines that test have no graphics card.
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--remote-debugging-port=0",
)  # fmt: skip
SECONDS = 120


@dataclass
class Visit:
    """What a page did.

    Parameters
    ----------
    picture : (Y, X, 3) uint8
    complaints : list of str
        Errors and warnings on the console, and exceptions that nobody caught.
    requests : list of str
        URLs that were asked for, without data that was in the page.
    results : list
        What the expressions gave.
    """

    picture: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 3), np.uint8))
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)


def visit(
    url: str,
    profile: Path,
    *,
    width: int = 1280,
    height: int = 900,
    until: Callable[[np.ndarray], bool] = lambda picture: True,
    evaluate: tuple[str, ...] = (),
    dark: bool = False,
) -> Visit:
    """Open a page, look at it until it shows what it should, and evaluate expressions in it.

    Parameters
    ----------
    url : str
    profile : path
        A folder of the browser's own, not there yet.
    width, height : int
        Of the window.
    until : callable
        Takes the picture; the page is looked at again until this holds.
    evaluate : tuple of str
        JavaScript, evaluated in the end.
    dark : bool
        What the page is told that the reader prefers.

    Raises
    ------
    TimeoutError
        When it does not hold within two minutes.
    """
    assert CHROMIUM is not None
    with subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            return asyncio.run(
                asyncio.wait_for(
                    _visit(url, profile, (width, height), until, evaluate, dark), SECONDS
                )
            )
        finally:
            process.terminate()


async def _visit(
    url: str,
    profile: Path,
    size: tuple[int, int],
    until: Callable[[np.ndarray], bool],
    evaluate: tuple[str, ...],
    dark: bool,
) -> Visit:
    found = Visit()
    async with _connected(profile, found) as call:
        await _look(call, url, size, until, evaluate, dark, found)
    return found


async def _look(
    call: Callable[..., Any],
    url: str,
    size: tuple[int, int],
    until: Callable[[np.ndarray], bool],
    evaluate: tuple[str, ...],
    dark: bool,
    found: Visit,
) -> None:
    for domain in ("Page", "Runtime", "Log", "Network"):
        await call(f"{domain}.enable")
    await call(
        "Emulation.setDeviceMetricsOverride",
        width=size[0], height=size[1], deviceScaleFactor=1, mobile=False,
    )  # fmt: skip
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    await call("Emulation.setEmulatedMedia", features=[scheme])
    await call("Page.navigate", url=url)
    while True:
        ready = await call("Runtime.evaluate", expression="document.readyState")
        if ready["result"]["value"] == "complete":
            shot = await call("Page.captureScreenshot", format="png")
            found.picture = imagecodecs.png_decode(base64.b64decode(shot["data"]))[..., :3]
            if until(found.picture):
                break
        await asyncio.sleep(0.2)
    for expression in evaluate:
        answer = await call("Runtime.evaluate", expression=expression, returnByValue=True)
        found.results.append(answer["result"].get("value"))


@contextlib.asynccontextmanager
async def _connected(profile: Path, found: Visit) -> AsyncIterator[Callable[..., Any]]:
    """Connect to the browser's first page, and note what it logs and asks for."""
    address = profile / "DevToolsActivePort"
    while not address.exists() or len(address.read_text().splitlines()) < 2:
        await asyncio.sleep(0.05)
    port, path = address.read_text().splitlines()
    socket = await websocket_connect(
        f"ws://127.0.0.1:{port}{path}", max_message_size=2**28, ping_interval=None
    )
    numbers = itertools.count(1)
    answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
    session: dict[str, str] = {}

    async def listen() -> None:
        while (message := await socket.read_message()) is not None:
            told = json.loads(message)
            if "id" in told:
                answers.pop(told["id"]).set_result(told)
            else:
                _note(told["method"], told.get("params", {}), found)

    async def call(method: str, **parameters: Any) -> Any:
        number = next(numbers)
        answer = answers[number] = asyncio.get_running_loop().create_future()
        await socket.write_message(
            json.dumps({"id": number, "method": method, "params": parameters, **session})
        )
        told = await answer
        assert "error" not in told, (method, told["error"])
        return told["result"]

    listening = asyncio.ensure_future(listen())
    page = (await call("Target.createTarget", url="about:blank"))["targetId"]
    attached = await call("Target.attachToTarget", targetId=page, flatten=True)
    session["sessionId"] = attached["sessionId"]
    try:
        yield call
    finally:
        socket.close()
        await listening


def _note(method: str, told: dict[str, Any], found: Visit) -> None:
    if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
        found.complaints.append(str([one.get("value") for one in told["args"]]))
    elif method == "Runtime.exceptionThrown":
        found.complaints.append(str(told["exceptionDetails"]))
    elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
        found.complaints.append(told["entry"]["text"])
    elif method == "Network.requestWillBeSent":
        url = told["request"]["url"]
        if not url.startswith("data:"):
            found.requests.append(url)


def near(picture: np.ndarray, color: tuple[int, int, int], within: int = 12) -> int:
    """Count the pixels of about a colour."""
    return int((np.abs(picture.astype(int) - color) < within).all(axis=-1).sum())
