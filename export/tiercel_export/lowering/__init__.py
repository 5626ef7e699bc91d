"""Lowering: from the operators of a fitted NVTabular graph to typed column expressions.

Each family of operators has one file. ``table.py`` is the one literal table of them all: which are compiled,
which are compiled and total, and which are refused and why.
"""
