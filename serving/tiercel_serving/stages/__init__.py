"""The stages of the served graph: functions from named arrays to named arrays. ``table.py`` lists them."""
