"""Can this metadata of a Zarr array be believed?

It is looked at as JSON, before zarr sees it: what it declares is bounded, and codecs that would
build or run what the file says are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# A chunk is the least that can be decoded, so a header that declares more than this would make
# any reader allocate it. 2 GiB is also the limit of blosc and of one array in many libraries.
LARGEST_CHUNK_BYTES = 2**31
# The same for a shard's table of chunks, which has 16 bytes for each; ours have a few kilobytes.
LARGEST_TABLE_BYTES = 2**28

# Codecs that only ever turn bytes into numbers. Object codecs (pickle, json2, vlen-*) run or build
# what the file says and are refused.
SAFE_CODECS = {
    *("bytes", "transpose", "sharding_indexed", "zstd", "blosc", "gzip", "crc32c"),
    *("zlib", "lz4", "lzma", "bz2", "delta", "shuffle", "bitround", "packbits", "fletcher32"),
    *("crc32", "adler32", "zfpy", "pcodec", "fixedscaleoffset", "quantize", "astype"),
}


def check_array_metadata(where: str, metadata: Mapping[str, Any]) -> None:
    """Refuse what would allocate, run or build more than numbers, before zarr looks at it."""
    table_bytes = 0
    try:
        shape = [int(v) for v in metadata["shape"]]
        if "zarr_format" in metadata and metadata["zarr_format"] == 2:
            dtype = metadata["dtype"]
            chunk = [int(v) for v in metadata["chunks"]]
            parts = [metadata.get("compressor"), *(metadata.get("filters") or ())]
            codecs = [str(part["id"]) for part in parts if part]
        else:
            dtype = metadata["data_type"]
            chunk = [int(v) for v in metadata["chunk_grid"]["configuration"]["chunk_shape"]]
            shard = chunk
            codecs, chunk = _codec_names(metadata["codecs"], chunk)
            table_bytes = 16 * math.prod(-(-s // c) for s, c in zip(shard, chunk, strict=True))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"the array metadata of {where} is malformed: {error!r}") from error
    try:
        kind = np.dtype(dtype) if isinstance(dtype, str) else np.dtype(object)
    except (TypeError, ValueError):  # the second where it is no text that can be written
        kind = np.dtype(object)
    if kind.kind not in "buif" or kind.itemsize > 8:
        raise ValueError(f"voxels must be integers or floats. Received: {dtype!r} at {where}")
    if min(shape, default=0) < 1 or min(chunk, default=0) < 1 or len(shape) != len(chunk):
        raise ValueError(
            f"shape and chunks must be positive. Received: {shape}, {chunk} at {where}"
        )
    unsafe = [name for name in codecs if name.removeprefix("numcodecs.") not in SAFE_CODECS]
    if unsafe:
        raise ValueError(
            f"codec {', '.join(unsafe)} of {where} is not supported. Supported: "
            f"{', '.join(sorted(SAFE_CODECS))}"
        )
    if table_bytes > LARGEST_TABLE_BYTES:
        raise ValueError(
            f"the chunk table of a shard must not exceed {LARGEST_TABLE_BYTES} bytes, since it is "
            f"read whole. Received: shards {shard} of chunks {chunk}, {table_bytes} bytes, at "
            f"{where}"
        )
    chunk_bytes = math.prod(chunk) * kind.itemsize
    if chunk_bytes > LARGEST_CHUNK_BYTES:
        raise ValueError(
            f"a chunk must not exceed {LARGEST_CHUNK_BYTES} bytes, since reading one voxel "
            f"decodes it whole. Received: chunks {chunk} of {kind}, {chunk_bytes} bytes, at {where}"
        )


def _codec_names(codecs: Sequence[Any], chunk: list[int]) -> tuple[list[str], list[int]]:
    """Flatten a Zarr 3 codec list, and find the chunk that is decoded at once."""
    names = []
    for codec in codecs:
        name = codec if isinstance(codec, str) else str(codec["name"])
        names.append(name)
        if name == "sharding_indexed":
            inner, chunk = _codec_names(
                codec["configuration"]["codecs"],
                [int(v) for v in codec["configuration"]["chunk_shape"]],
            )
            names += inner
    return names, chunk
