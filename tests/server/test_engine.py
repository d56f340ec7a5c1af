"""Flower's database as the coordinator's SuperLink opens it; a whole SuperLink is in test_up.py."""

import pytest
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from sqlalchemy import event, text
from sqlalchemy.pool import Pool

from server.engine import PRAGMAS, set_pragmas
from server.long_poll import HOLD_S

SUPERNODE_TIMEOUT_S = 30


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


def test_a_question_for_tasks_that_was_held_and_meets_a_busy_database_is_answered_before_flower_gives_it_up():
    assert HOLD_S + int(PRAGMAS["busy_timeout"]) / 1000 < SUPERNODE_TIMEOUT_S
