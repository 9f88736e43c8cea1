"""How are kernels compiled, and when is what was compiled before still good?

numba compiles a function when it is first called and keeps the machine code beside the source. It
knows the code by the function's own file: a kernel that calls one of another module would go on
running the old one after that other file has changed, also across an upgrade of the package. So a
kernel's name, which is part of its file name in the cache, carries a digest of all sources of its
folder. Kernels call kernels of their own folder only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from numba import njit

Kernel = TypeVar("Kernel", bound=Callable[..., object])


@lru_cache
def _digest(folder: Path) -> str:
    sources = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def compiled(*signature: str) -> Callable[[Kernel], Kernel]:
    """Compile a function to machine code that runs without the GIL; a decorator.

    Parameters
    ----------
    *signature : str, optional
        numba's signature. It is compiled when its module is imported then, and once: otherwise
        numba compiles a function anew for every constant that somebody calls it with.
    """

    def decorate(function: Kernel) -> Kernel:
        folder = Path(function.__code__.co_filename).parent
        function.__qualname__ += f"-{_digest(folder)}"
        return njit(*signature, cache=True, nogil=True)(function)

    return decorate
