"""What is done to Flower's database between its SuperLinks; a SuperLink at work is in test_up.py."""

import sqlite3
from contextlib import closing

import pytest

from server.authority import found
from server.home import Home
from server.superlink import PAGE_BYTES, Superlink


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "federation")
    found(home, name="lungs", address="127.0.0.1:9443", sites=())
    return home


def test_what_a_run_has_left_unused_in_flowers_database_goes_back_to_the_disk(home):
    database = home.folder("link") / "state.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE node (id); CREATE TABLE objects (content);")
        connection.execute("INSERT INTO node VALUES (7)")
        connection.execute("INSERT INTO objects VALUES (zeroblob(5000000))")
        connection.execute("DELETE FROM objects")

    Superlink(home).prepare()

    assert database.stat().st_size < 10 * PAGE_BYTES
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT id FROM node").fetchall() == [(7,)]


def test_flowers_database_has_pages_for_large_objects_from_the_first(home):
    Superlink(home).prepare()

    with closing(sqlite3.connect(home.folder("link") / "state.db")) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; CREATE TABLE node (id);")  # as Flower does
        assert connection.execute("PRAGMA page_size").fetchone() == (PAGE_BYTES,)


def test_a_damaged_database_is_left_to_flower_to_complain_of(home, caplog):
    (home.folder("link") / "state.db").write_bytes(b"no database" * 1000)

    Superlink(home).prepare()

    assert "stays as large as it is" in caplog.text
