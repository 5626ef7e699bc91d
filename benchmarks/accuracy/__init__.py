"""Accuracy of each model family as served, after training with several seeds and export.

``python -m benchmarks.accuracy`` (``make accuracy``) writes JSON, plots, and ``docs/accuracy.md``. A cell is
a data set, a family and a seed. A finished cell in the file is not run again unless its recipe changes.
"""
