"""Mutants: a law is believed once a planted mistake makes its test fail.

A test file ends with a list `MUTANTS`; `test_mutants.py` plants each mistake in the loaded module, calls the law
and demands that it fails. The source text is replaced, the module compiled again, and the code objects of its
functions swapped in place, so that names imported elsewhere feel the mistake as well.
"""

import contextlib
import importlib
import inspect
import types
from dataclasses import dataclass
from typing import Callable

WRITTEN_BY_HAND = ("__post_init__", "__init__", "__call__", "__mul__", "__add__", "__sub__", "__matmul__",
                   "__contains__")


@dataclass(frozen=True)
class Mutant:
    """Replace `old` (which must occur exactly once in the module's source) by `new`; then `law()` must fail."""

    module: str
    old: str
    new: str
    law: Callable[[], None]

    @property
    def name(self):
        return f"{self.module.removeprefix('minillama.')}: {self.old.strip()!r} -> {self.new.strip()!r}"


@contextlib.contextmanager
def planted(mutant):
    """The module with the mistake in it; the original code is put back on leaving."""
    module = importlib.import_module(mutant.module)
    source = inspect.getsource(module)
    if source.count(mutant.old) != 1:
        raise ValueError(f"mutant of {mutant.module}: {mutant.old!r} occurs {source.count(mutant.old)} times, not once")
    wrong = types.ModuleType(mutant.module)
    wrong.__dict__.update({key: module.__dict__[key] for key in ("__file__", "__package__", "__spec__")})
    exec(compile(source.replace(mutant.old, mutant.new), module.__file__, "exec"), wrong.__dict__)
    undo = []
    _forget(module)
    try:
        _transplant(module, wrong, module.__name__, undo)
        yield module
    finally:
        for restore in reversed(undo):
            restore()
        _forget(module)


def _forget(module):
    """Empty the caches of its functions: what the right code has kept hides a mistake, and the reverse."""
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "cache_clear"):
            value.cache_clear()


def _transplant(ours, theirs, module_name, undo):
    """Give the functions, classes and plain constants of `ours` the code and values found in `theirs`."""
    for name, wrong in list(vars(theirs).items()):
        if name.startswith("__") and name not in WRITTEN_BY_HAND:
            continue
        right = vars(ours).get(name)
        right_code, wrong_code = _function(right), _function(wrong)
        if right_code is not None and wrong_code is not None:
            if right_code.__module__ == module_name:
                _swap(right_code, wrong_code, undo)
        elif inspect.isclass(right) and inspect.isclass(wrong):
            if right.__module__ == module_name and wrong is not right:
                _transplant(right, wrong, module_name, undo)
        elif isinstance(wrong, (int, float, str, bytes, tuple, list, dict, set, frozenset)) and wrong != right:
            undo.append(lambda ours=ours, name=name, right=right: setattr(ours, name, right))
            setattr(ours, name, wrong)


def _function(value):
    """The plain function behind a method, property, static method or decorator that used functools.wraps."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    value = inspect.unwrap(value) if callable(value) and not inspect.isclass(value) else value
    return value if isinstance(value, types.FunctionType) else None


def _swap(right, wrong, undo):
    if right.__code__.co_freevars != wrong.__code__.co_freevars:
        return
    saved = right.__code__, right.__defaults__, right.__kwdefaults__

    def restore():
        right.__code__, right.__defaults__, right.__kwdefaults__ = saved

    undo.append(restore)
    right.__code__, right.__defaults__, right.__kwdefaults__ = wrong.__code__, wrong.__defaults__, wrong.__kwdefaults__
