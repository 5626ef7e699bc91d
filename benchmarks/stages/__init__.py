"""What single stages cost beside their peers: ``python -m benchmarks.stages``. Today: the reorder steps.

::

    ordering      every reorder step on made-up candidates, and pyversity's forms of three of them
    report, plot  limits, a table, JSON, a picture
    command       what is typed
"""
