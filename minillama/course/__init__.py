"""Lessons in the terminal, as notebooks and as a book, and the grader of their exercises.

A lesson is a plain Python file in `lessons/`, cut into cells (`lesson`). `stepper` runs it cell by cell, `book` and
`notebook` write it as pages, `check` and `grader` judge a learner's answer. Read `lesson` first.
"""

FLOOR = 2  # imports from its own floor or a lower one
