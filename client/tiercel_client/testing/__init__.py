"""Fake transports, for an application's unit tests without a server.

>>> from tiercel_client import Recommender
>>> from tiercel_client.testing import FakeTransport
>>> transport = FakeTransport(items={1: "Heat", 2: "Fargo", 3: "Alien"}, users={42: [3, 1]})
>>> recommender = Recommender(transport=transport)
>>> [item.title for item in recommender.recommend(42)]
['Alien', 'Heat']
>>> [item.title for item in recommender.recommend(7, k=1)]  # an unknown user gets the first items
['Heat']

A fake can be made to fail, and it records all requests:

>>> from tiercel_client import ServerFull
>>> transport.fail(ServerFull("the queue is full"), times=1)
>>> recommender.recommend(42).count  # repeated after a short delay
2
>>> transport.requests[-1].inputs["user_id"].tolist()
[[42]]
"""

from __future__ import annotations

from .fake import STAGES, AsyncFakeTransport, FakeServer, FakeTransport

__all__ = ["STAGES", "AsyncFakeTransport", "FakeServer", "FakeTransport"]
