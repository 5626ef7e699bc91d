"""TensorRT and TensorRT-RTX: one builder and one runner, which work with the Python module of either."""
