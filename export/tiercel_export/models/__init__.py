"""Dense models: torch modules and ONNX graphs → the files of their engines, and running both to compare."""
