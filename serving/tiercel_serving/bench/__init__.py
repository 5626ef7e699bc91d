"""Latency and throughput of a served release: ``tiercel bench``."""

from .perf_analyzer import find_perf_analyzer
from .python_client import PythonClient
from .report import format_report
from .run import OpenLoops, run_bench

__all__ = ["OpenLoops", "PythonClient", "find_perf_analyzer", "format_report", "run_bench"]
