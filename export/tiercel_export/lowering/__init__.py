"""Lowering: from the operators of a fitted NVTabular graph to typed column expressions.

One file for each family of operators; ``table.py`` is the one literal table that names them all, with
what is compiled, what is compiled and total, and what is refused and why.
"""
