"""Find and measure objects with cellmap-analyze, blockwise in one process, as its commands do.

``measure.py`` runs this in an environment of its own, which has cellmap-analyze and no cvdask:
``python cellmap_peer.py ARRAY OUT BLOCK``. It prints the seconds, the processor's seconds and the
number of objects as JSON. Its table is not written: it fills one row of a data frame after another,
which would be most of the time where there are many objects.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from cellmap_analyze.analyze.measure import Measure
from cellmap_analyze.process.connected_components import ConnectedComponents


def main() -> None:
    array, out, block = sys.argv[1], sys.argv[2], int(sys.argv[3])
    logging.disable(logging.CRITICAL)
    started, cpu = time.perf_counter(), time.process_time()
    components = ConnectedComponents(
        input_path=array,
        output_path=f"{out}/objects.zarr/objects",
        intensity_threshold_minimum=1,
        connectivity=3,
        num_workers=1,
        chunk_shape=(block,) * 3,
    )
    components.get_connected_components()
    labelled, labelled_cpu = time.perf_counter() - started, time.process_time() - cpu
    measured = Measure(f"{out}/objects.zarr/objects/s0", f"{out}/measured", num_workers=1)
    measured.measure()
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "cpu": time.process_time() - cpu,
                "label_seconds": labelled,
                "label_cpu": labelled_cpu,
                "objects": len(measured.measurements),
            }
        )
    )


if __name__ == "__main__":
    main()
