"""Start, watch and stop a real Triton on this machine.

::

    with start_server("releases/movielens") as server:
        print(server.grpc_url)
"""

from .awake import keep_awake
from .process import TritonServer, start_server

__all__ = ["TritonServer", "keep_awake", "start_server"]
