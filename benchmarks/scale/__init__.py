"""Benchmarks of large catalogues, by cost and recall: ``python -m benchmarks.scale``.

::

    sizes         sizes of the catalogues, and the index types to try
    made_up       the generator of synthetic data: items in clusters, heavy users, text ids
    parts         the arguments of ``build_release``
    exporting     an export in a process of its own: seconds, peak memory
    opening       a further instance: seconds to its first answer, its private memory
    answering     whole answers in process, and what a heavy user costs a batch
    searching     recall and latency of each index type under each mask, against an exact scan
    serving       answers over gRPC
    run           all of the above
    report, plot  limits, tables, JSON, a plot
    command       the command line

Nothing is imported here, so that the processes that export and open import only what they need.
"""
