"""Dense models: torch modules → ONNX files, and what runs both for comparison."""
