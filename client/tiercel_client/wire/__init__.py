"""How requests travel: the seam, Triton over gRPC, and what its status codes mean."""
