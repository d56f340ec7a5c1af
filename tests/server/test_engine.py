"""Flower's database as the coordinator's SuperLink opens it; a whole SuperLink is in test_up.py."""

import pytest
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from sqlalchemy import event, text
from sqlalchemy.pool import Pool

from server.engine import PRAGMAS, set_pragmas


@pytest.fixture
def _as_in_the_engine():
    event.listen(Pool, "checkout", set_pragmas)
    yield
    event.remove(Pool, "checkout", set_pragmas)


@pytest.mark.usefixtures("_as_in_the_engine")
def test_flowers_database_waits_longer_than_flower_says_keeps_little_and_does_not_overwrite_what_it_deletes():
    store = SqlObjectStore(":memory:")
    store.initialize()

    with store.session() as session:
        found = {name: session.scalar(text(f"PRAGMA {name}")) for name in PRAGMAS}

    assert found == {"busy_timeout": 20_000, "secure_delete": 2, "cache_size": -8000}  # 2 is FAST
