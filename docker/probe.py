"""Container probe: one real inference with a deadline. Exit code 0 if it is answered, else 1.

``tiercel health`` without the rest of the command: python3 probe.py HOST:PORT SECONDS
"""

import sys

from tiercel_client import Recommender

if __name__ == "__main__":
    try:
        with Recommender(sys.argv[1]) as recommender:
            recommender.health(timeout_s=float(sys.argv[2]))
    except Exception as error:
        sys.exit(f"{sys.argv[1]}: {error}")
