"""How accurate each model family is as it is served: trained, exported, judged, several seeds each.

``python -m benchmarks.accuracy`` (``make accuracy``) writes JSON, plots, and ``docs/accuracy.md``. A cell is
a data set, a family and a seed; a finished one in the file is not run again while its recipe is the same.
"""
