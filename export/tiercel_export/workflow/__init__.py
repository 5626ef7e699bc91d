"""A fitted NVTabular workflow → feature programs: cut, trace, schedule; and NVTabular as their oracle."""
