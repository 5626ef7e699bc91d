"""The heavy commands of ``tiercel``; :mod:`tiercel_serving.commands` says how one is written."""
