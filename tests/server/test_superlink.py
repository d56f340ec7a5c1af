"""What Flower is told of sites, and what is done to its database; a SuperLink at work is in test_up.py."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fedgan.errors import EngineFailed
from fedgan.identity import new_key, request_signature
from server.authority import Enrolment, found
from server.home import Home
from server.registry import Registry
from server.superlink import PAGE_BYTES, Keys, Superlink


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


class Known:
    """As much of a SuperLink as is asked about nodes: which it has, and which keys it cannot register."""

    def __init__(self, *nodes, refuses=()):
        self.nodes = list(nodes)
        self.refuses = refuses

    def ask(self, *words):
        match words:
            case ("supernode", "list", _):
                return {"nodes": [{"node-id": str(node), "status": "offline"} for node in self.nodes]}
            case ("supernode", "register", file, _):
                if Path(file).stem in self.refuses:
                    raise EngineFailed("flwr supernode was refused: no")
                self.nodes.append(max(self.nodes, default=100) + 1)
                return {"node-id": str(self.nodes[-1])}
        raise AssertionError(words)


@pytest.fixture
def registry(home):
    """Two approved sites, of which Flower has not been told."""
    for site in ("A", "B"):
        enrolment, request = Enrolment(home), request_signature(new_key(), site)
        enrolment.receive(enrolment.invite(site).secret, request)
        enrolment.approve(site, request.decode())
    return Registry(home.sites)


def nodes_in(registry):
    return [entry.node for entry in registry.roll.sites.values()]


def test_sites_that_flower_lost_with_its_database_are_registered_anew(home, registry):
    Keys(home, Known(7), registry).tell()
    assert nodes_in(registry) == [8, 9]

    Keys(home, Known(9), registry).tell()

    assert nodes_in(registry) == [10, 9]


def test_a_site_that_flower_does_not_take_keeps_no_other_out(home, registry):
    with pytest.raises(EngineFailed):
        Keys(home, Known(refuses=("A",)), registry).tell()

    assert nodes_in(registry) == [None, 101]
