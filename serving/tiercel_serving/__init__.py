"""What runs inside Triton: pure functions over NumPy arrays, and one thin adapter to Triton."""
