"""The ``where`` of a manifest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgan.cohort.selection import parse_where
from fedgan.errors import SettingsError

COLUMNS = ("file", "view", "age")


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ("age == 8", ["b"]),
        ("age >= 8.5", ["a", "c"]),
        ("age != 8 and view == 'PA'", ["a"]),
        ("age < 10 or view == 'AP' and age > -1", ["b", "c"]),
        ("not (view == 'PA')", ["c"]),
        ('view > "B"', ["a", "b"]),
        ("(age > 7\n and age < 20)", ["b"]),
    ],
)
def test_rows_are_taken_by_comparison(where, taken):
    rows = [
        {"file": "a", "view": "PA", "age": "70"},
        {"file": "b", "view": "PA", "age": "8"},
        {"file": "c", "view": "AP", "age": "30"},
    ]

    takes = parse_where(where, COLUMNS)

    assert [row["file"] for row in rows if takes(row)] == taken


@pytest.mark.parametrize(
    "where",
    [
        "", "age", "age = 3", "age ==", "ages == 3", "age == view", "1 == age", "0 < age < 9", "age == True",
        "age + 1 == 2", "age in (1, 2)", "__import__('os')", "age == __import__('os')", "age.real == 1", "lambda: 1",
        "age == 1; view == 2", "age == b'1'", "age == None", "(" * 300 + "age == 1" + ")" * 300, "age == '\0'",
    ],
)  # fmt: skip
def test_anything_but_comparisons_of_columns_is_refused_naming_the_columns(where):
    with pytest.raises(SettingsError, match="file, view, age"):
        parse_where(where, COLUMNS)


@given(st.text(st.sampled_from("age view=!<>'\"()and or not 1.-,[]{}:*\n"), max_size=30))
def test_no_text_does_more_than_be_refused(where):
    try:
        takes = parse_where(where, COLUMNS)
    except SettingsError:
        return

    assert takes({"file": "a", "view": "PA", "age": "1"}) in (True, False)


def test_a_number_asked_of_a_cell_without_one_is_an_error():
    takes = parse_where("age > 3", COLUMNS)

    with pytest.raises(ValueError, match="age is '', not a number"):
        takes({"file": "a", "view": "PA", "age": ""})
