"""Benchmarks of single stages, some against other software: ``python -m benchmarks.stages``.

::

    ordering      every reorder step on synthetic candidates, three of them against pyversity
    filters       exact search under filters
    users         reads of users from release and store
    rules         five rules and a long history
    tradeoff      the accuracy that each step costs, and the diversity that it gains (a command of its own)
    run           all of the above except tradeoff
    report, plot  limits, tables, JSON, a plot
    command       the command line
"""
