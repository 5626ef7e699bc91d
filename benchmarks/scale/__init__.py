"""What a large catalogue costs, and whether it is served right: ``python -m benchmarks.scale``.

::

    sizes         how large everything is, and which index types are tried
    made_up       the generator: items in clusters, heavy users, text ids
    parts         what a team would bring to ``build_release``
    exporting     an export in a process of its own: seconds, peak memory
    opening       a further instance: seconds to its first answer, its private memory
    answering     whole answers in process, and what a heavy user costs a batch
    searching     recall and latency of each index type under each mask, beside an exact scan
    run           all of it in turn
    report, plot  limits, tables, JSON, a picture
    command       what is typed

Nothing is imported here: the processes that export and open import what these need and no more.
"""
