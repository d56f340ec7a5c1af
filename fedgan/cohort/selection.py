"""Which rows of a manifest are taken: a small, safe language of comparisons, read as Python but never run as such."""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence

from fedgan.errors import SettingsError

Cells = Mapping[str, str]
Selection = Callable[[Cells], bool]

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[str | float, str | float], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def parse_where(where: str, columns: Sequence[str]) -> Selection:
    """Return the test that ``where`` makes of a row's cells.

    A comparison sets a column against a number or a quoted text; comparisons are joined by ``and``, ``or``, ``not``
    and parentheses, read from the left, and stop as soon as the answer is known. The test raises ``ValueError`` where
    a number is asked of a cell that holds none.

    >>> elderly = parse_where("age != '' and age >= 65", ["file", "age"])
    >>> [elderly({"age": age}) for age in ("", "8", "70")]
    [False, False, True]

    Raises:
        SettingsError: ``where`` is not such an expression, or names a column that ``columns`` lacks.
    """
    try:
        return _test(ast.parse(where.strip(), mode="eval").body, columns)
    except (SyntaxError, ValueError, RecursionError) as mistake:
        reason = mistake.msg if isinstance(mistake, SyntaxError) else mistake
        raise SettingsError(
            f"where: {where!r} cannot be read: {reason}; write comparisons such as view == 'PA' and age >= 18. "
            f"The manifest's columns are {', '.join(columns)}"
        ) from None


def _test(node: ast.expr, columns: Sequence[str]) -> Selection:
    match node:
        case ast.BoolOp(op=joint, values=values):
            tests = [_test(value, columns) for value in values]
            join = all if isinstance(joint, ast.And) else any
            return lambda cells: join(test(cells) for test in tests)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            test = _test(operand, columns)
            return lambda cells: not test(cells)
        case ast.Compare(left=ast.Name(id=column), ops=[op], comparators=[operand]) if type(op) in _COMPARISONS:
            if column not in columns:
                raise ValueError(f"there is no column {column}")
            return _comparison(column, _COMPARISONS[type(op)], _literal(operand))
        case _:
            raise ValueError(f"{ast.unparse(node)} is not a comparison of a column with a number or a quoted text")


def _literal(node: ast.expr) -> str | float:
    match node:
        case ast.Constant(value=str() | int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case _:
            raise ValueError(f"{ast.unparse(node)} is neither a number nor a quoted text")


def _comparison(column: str, compare: Callable[[str | float, str | float], bool], wanted: str | float) -> Selection:
    if isinstance(wanted, str):
        return lambda cells: compare(cells[column], wanted)

    def test(cells: Cells) -> bool:
        try:
            number = float(cells[column])
        except ValueError:
            raise ValueError(f"where: {column} is {cells[column]!r}, not a number") from None
        return compare(number, wanted)

    return test
