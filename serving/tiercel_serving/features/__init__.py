"""The feature program: a fitted NVTabular workflow, compiled to a few vectorised NumPy steps.

``program.py`` is the interface for callers, and ``steps.py`` lists the steps. Neither needs pandas, NVTabular
or pickle.
"""

from .program import PROGRAM_FORMAT, FeatureProgram, InputColumn, OutputColumn

__all__ = ["PROGRAM_FORMAT", "FeatureProgram", "InputColumn", "OutputColumn"]
