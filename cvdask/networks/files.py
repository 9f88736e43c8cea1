"""How does who reads a file beside a network see the old one or the new one, never half of one?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json_file(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, at once."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False))
    os.replace(partial, path)
