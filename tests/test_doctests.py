"""The worked examples in the docstrings give the answers that they show."""

import doctest
import importlib
import pkgutil

import pytest

import minillama

MODULES = sorted(name for _, name, _ in pkgutil.walk_packages(minillama.__path__, "minillama.")
                 if not name.rsplit(".", 1)[-1].startswith("_"))  # neither __main__, which runs, nor compiled libraries
# as modules of the package, but for where they stand
MODULES += ["lessons.cleaning", "lessons.minhash", "lessons.other_feedback"]


@pytest.mark.parametrize("name", MODULES)
def test_worked_examples_are_right(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_worked_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 5
