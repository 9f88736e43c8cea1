"""Machine code is kept between processes, and never outlives the sources it was made from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cvdask.compiled as compiled_module

BASE = """
from kernels.compiled import compiled

@compiled("int64(int64)")
def inner(n):
    return n + {step}
"""
CALLER = """
from kernels.base import inner
from kernels.compiled import compiled

@compiled()
def outer(n):
    return 10 * inner(n)
"""


def run_outer(folder: Path) -> tuple[int, int]:
    """Call ``outer(1)`` in a fresh process; return its value and how often it was compiled."""
    program = """
from kernels.caller import outer
print(outer(1), sum(outer.stats.cache_misses.values()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    value, misses = map(int, done.stdout.split())
    return value, misses


def test_a_kernel_is_compiled_again_when_one_that_it_calls_has_changed(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(compiled_module.__file__, package / "compiled.py")
    (package / "caller.py").write_text(CALLER)
    (package / "base.py").write_text(BASE.format(step=1))
    assert run_outer(tmp_path) == (20, 1)
    assert run_outer(tmp_path) == (20, 0)  # from the cache
    (package / "base.py").write_text(BASE.format(step=5))
    assert run_outer(tmp_path) == (60, 1)
