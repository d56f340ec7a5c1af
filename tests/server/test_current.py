"""Which run goes on, who follows it, and that it is taken up when nobody does."""

import threading
import time

import pytest

from fedgan.errors import HomeError
from server.authority import found
from server.cli import main
from server.current import CurrentRun
from server.home import Home


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "federation")
    found(home, name="federation", address="127.0.0.1:9443", sites=())
    return home


def test_a_run_goes_on_until_it_is_ended_even_when_nobody_follows_it_any_more(home, tmp_path):
    run = CurrentRun(home)
    before = run.path

    with run.followed(tmp_path / "first"):
        pass
    left = run.path
    run.end()

    assert (before, left, run.path) == (None, tmp_path / "first", None)


def test_only_one_process_follows_a_run_and_another_is_told_which(home, tmp_path):
    with (
        CurrentRun(home).followed(tmp_path / "first"),
        pytest.raises(HomeError, match=r"run first of the federation federation is on; .* fed-server stop"),
        CurrentRun(home).followed(tmp_path / "second"),
    ):
        pass

    assert CurrentRun(home).path == tmp_path / "first"


def test_stop_ends_the_run_and_says_how_to_go_on(home, tmp_path, capsys):
    words = ["stop", "--home", str(home.path)]
    with CurrentRun(home).followed(tmp_path / "first"):
        stopped = main(words)

    again = main(words)

    said = capsys.readouterr()
    assert (stopped, again) == (0, 1)
    assert f"fed-server --resume {tmp_path / 'first'}" in said.out
    assert "no run of the federation federation is on" in said.err


@pytest.mark.slow
def test_a_run_that_nobody_follows_is_taken_up(home, tmp_path):
    run, until = CurrentRun(home), threading.Event()
    with run.followed(tmp_path / "first"):
        pass
    log, deadline = home.path / "logs/run.log", time.monotonic() + 120

    keeper = threading.Thread(target=run.keep_followed, args=(until,))
    keeper.start()
    while not (log.exists() and log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    until.set()
    keeper.join()

    assert f"training in {tmp_path / 'first'}" in log.read_text()
