"""The whole way, from a config to a report: which stages, of which samples, and what is left to do?

1. ``schema`` holds the tables and keys that a config may have; ``lines`` finds where they stand.
2. ``config`` reads a config and checks all of it before any work.
3. ``things`` are what stages hand on; ``steps`` lays out one step for each stage of each sample,
   with what it needs and what it makes.
4. ``run`` plans every step, then takes them, passing by what is complete. ``record`` keeps two runs
   apart and writes down what happened; ``scores`` keeps what ``evaluate`` and ``distance`` found.
5. ``init`` writes a config to begin with.
"""
