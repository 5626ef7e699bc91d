"""What compiled features cost, beside what is used otherwise: ``python -m benchmarks.features``.

::

    plan            how large everything is
    cases           fitted workflows, and rows to ask about
    timing          calls in one process, in interleaved rounds
    against         the compiled program and Workflow.transform
    one_row         the same for one row of a trained run
    lookups         direct tables and bare gathers, hash lookups and pandas, flatness
    opening         ten million strings: seconds to open, private memory of an instance
    merlin_systems  Merlin Systems in an environment of its own
    served          Tiercel and Merlin Systems in one Triton
    run             all of it in turn
    report, plot    limits, tables, JSON, a picture
    command         what is typed

Nothing is imported here: the processes that are measured import what these need and no more.
"""
