"""Benchmarks of compiled features against their alternatives: ``python -m benchmarks.features``.

::

    plan            sizes and repeats
    cases           fitted workflows, and rows to transform
    timing          calls in one process, in interleaved rounds
    against         the compiled program and Workflow.transform
    one_row         the same for one row of a trained run
    lookups         direct tables and plain gathers, hash lookups and pandas, cost by vocabulary size
    opening         ten million strings: seconds to open, private memory of an instance
    merlin_systems  Merlin Systems in an environment of its own
    served          Tiercel and Merlin Systems in one Triton
    run             all of the above
    report, plot    limits, tables, JSON, a plot
    command         the command line

Nothing is imported here, so that the measured processes import only what they need.
"""
