import json
import subprocess
import sys

import pytest

from fedgan.audit import Audit, broken_links
from fedgan.errors import RunFolderError


def recorded(path, events=3):
    for number in range(events):
        Audit(path).record("round kept", round=number)
    return path


def test_each_event_follows_from_the_one_before(tmp_path):
    path = recorded(tmp_path / "audit.jsonl")

    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert broken_links(path) == []


@pytest.mark.parametrize("harm", ["change", "remove", "swap"])
def test_a_changed_removed_or_moved_line_shows(tmp_path, harm):
    path = recorded(tmp_path / "audit.jsonl")
    lines = path.read_text().splitlines()
    first, second, third = lines
    harmed = {
        "change": [first.replace('"round": 0', '"round": 7'), second, third],
        "remove": [first, third],
        "swap": [second, first, third],
    }[harm]

    path.write_text("\n".join(harmed) + "\n")

    assert broken_links(path)


def test_a_line_that_a_crash_left_unfinished_breaks_the_chain_for_itself_alone(tmp_path):
    path = recorded(tmp_path / "audit.jsonl")
    path.write_bytes(path.read_bytes()[:-9])

    recorded(path, events=2)

    assert broken_links(path) == [3]


def test_events_longer_than_what_is_read_at_a_time_are_chained_too(tmp_path):
    path = tmp_path / "audit.jsonl"

    for length in (10_000, 1, 5_000, 4_096):
        Audit(path).record("long", told="x" * length)

    assert broken_links(path) == []


def test_an_audit_that_cannot_be_written_says_what_to_do(tmp_path):
    with pytest.raises(RunFolderError, match="free the disk, then resume"):
        Audit(tmp_path / "absent" / "audit.jsonl").record("round kept")


def test_several_processes_may_write_at_a_time(tmp_path):
    path = tmp_path / "audit.jsonl"
    code = """
import sys
from pathlib import Path
from fedgan.audit import Audit

for number in range(20):
    Audit(Path(sys.argv[1])).record("event", number=number)
"""

    writing = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]

    assert [process.wait(120) for process in writing] == [0, 0, 0]
    assert len(path.read_bytes().splitlines()) == 60
    assert broken_links(path) == []
