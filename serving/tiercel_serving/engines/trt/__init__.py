"""TensorRT and TensorRT-RTX: one builder and one runner, over the module of either."""
