"""Who listens to a bell hears each ring at once, and is held up by none that gets lost."""

import threading
import time

from fedgan.bell import Bell, ring

LONG_S = 60.0


def listening(path):
    """Return a bell whose first wait is over."""
    bell = Bell(path)
    bell.wait(LONG_S)
    return bell


def waited_s(bell, most_s):
    began = time.monotonic()
    bell.wait(most_s)
    return time.monotonic() - began


def test_a_ring_ends_the_wait_of_who_listens(tmp_path):
    bell = listening(tmp_path / "bell")
    ringing = threading.Timer(0.2, ring, [tmp_path / "bell"])

    ringing.start()
    took_s = waited_s(bell, LONG_S)

    ringing.join()
    assert 0.1 < took_s < LONG_S / 2


def test_a_ring_between_two_waits_is_heard_once(tmp_path):
    bell = listening(tmp_path / "bell")

    ring(tmp_path / "bell")
    heard_s, after_s = waited_s(bell, LONG_S), waited_s(bell, 0.2)

    assert heard_s < LONG_S / 2
    assert after_s >= 0.2


def test_two_rings_close_together_are_two(tmp_path):
    bell = listening(tmp_path / "bell")

    took_s = []
    for _ in range(5):
        ring(tmp_path / "bell")
        took_s.append(waited_s(bell, LONG_S))

    assert max(took_s) < LONG_S / 2


def test_who_begins_to_listen_does_not_miss_what_rang_before(tmp_path):
    ring(tmp_path / "bell")

    assert waited_s(Bell(tmp_path / "bell"), LONG_S) < LONG_S / 2


def test_a_bell_that_cannot_be_rung_holds_nobody_up_for_longer_than_said(tmp_path):
    bell = listening(tmp_path / "nowhere" / "bell")

    ring(tmp_path / "nowhere" / "bell")

    assert 0.2 <= waited_s(bell, 0.2) < LONG_S / 2
