"""How requests are sent: the transport interface, Triton over gRPC, and the meaning of its status codes."""
