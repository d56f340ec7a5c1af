from importlib.metadata import version

import pytest

from server.cli import main


@pytest.mark.parametrize("arguments", [[], ["experiment=tiny"], ["--port", "9092"]])
def test_it_says_what_is_missing_and_what_works_today(arguments, capsys):
    code = main(arguments)

    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert "not there yet" in printed.err
    assert "fed-simulate" in printed.err


def test_help_says_the_same_and_succeeds(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    assert ended.value.code == 0
    assert "not there yet" in capsys.readouterr().out


def test_version_is_the_installed_one(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fedgan {version('fedgan')}\n"
