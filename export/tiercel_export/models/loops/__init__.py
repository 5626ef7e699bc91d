"""ONNX graph → the list of loops that :mod:`tiercel_serving.engines.loops` runs for one user."""
