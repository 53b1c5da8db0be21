"""Checks of exercise 30: rows keep their elements, columns spread over all banks, fours stay together."""

from minillama.course.exercise import Wrong

HINTS = {
    "rows": (
        "All 32 elements of a row need places of their own, from 0 to 31.",
        "An operation that can be undone never sends two columns to one place.",
    ),
    "columns": (
        "For a fixed column the place must depend on the row, and differ for all 32 rows.",
        "Adding the row modulo 32 would do; so does an operation on the bits of row and column.",
    ),
    "fours": (
        "In row 4 the elements 0, 1, 2, 3 must stay neighbours in their order, starting at a multiple of 4.",
        "The exclusive or of two numbers changes only those bits that are set in the row.",
    ),
}


def _places(learner):
    table = [[learner.place(row, column) for column in range(32)] for row in range(32)]
    for row, places in enumerate(table):
        for column, got in enumerate(places):
            if not isinstance(got, int) or not 0 <= got < 32:
                raise Wrong(f"place({row}, {column}) is {got!r}, wanted a whole number from 0 to 31", 0)
    return table


def check_rows(learner):
    for row, places in enumerate(_places(learner)):
        if len(set(places)) < 32:
            raise Wrong(f"two elements of row {row} share a place", 1)


def check_columns(learner):
    table = _places(learner)
    for column in range(32):
        banks = {table[row][column] for row in range(32)}
        if len(banks) < 32:
            raise Wrong(f"the 32 elements of column {column} lie in {len(banks)} banks", 0 if len(banks) == 1 else 1)


def check_fours(learner):
    table = _places(learner)
    for row in range(0, 32, 4):
        for first in range(0, 32, 4):
            start = table[row][first]
            if start % 4 or table[row][first:first + 4] != [start, start + 1, start + 2, start + 3]:
                raise Wrong(f"elements {first} to {first + 3} of row {row} lie in {table[row][first:first + 4]}",
                            0 if start % 4 else 1)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("column ^ row", "column", "columns", 0),
    ("column ^ row", "column | row", "rows", 1),
    ("column ^ row", "column + row", "rows", 0),
    ("column ^ row", "column ^ (row // 4)", "columns", 1),
    ("column ^ row", "(row - column) % 32", "fours", 1),
]
