"""Latency and throughput of a served release: ``tiercel bench``.

::

    measurement    one stretch of load, and medians over rounds
    perf_analyzer  finds or fetches perf_analyzer, runs it, reads its report
    python_client  a load loop in Python, for machines without perf_analyzer
    repository     both layouts and models that do nothing in one model repository
    bare           the same stages in one process, by stage
    machine        the processor, the system, the versions
    run            interleaved rounds on one server
    report         ratios, limits, tables, JSON
"""

from .perf_analyzer import PerfAnalyzer, find_perf_analyzer
from .python_client import PythonClient
from .report import BenchReport, format_report
from .run import run_bench

__all__ = [
    "BenchReport",
    "PerfAnalyzer",
    "PythonClient",
    "find_perf_analyzer",
    "format_report",
    "run_bench",
]
