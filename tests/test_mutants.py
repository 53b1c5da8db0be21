"""Every law that declares a mutant is shown to fail on it: a test that cannot fail proves nothing."""

import importlib
import signal
from pathlib import Path

import pytest
from conftest import SECONDS_OF_A_QUICK_TEST
from mutants import Mutant, planted

BROKEN_MUTANT = (NameError, SyntaxError, ImportError)  # the mutant itself is wrong, not caught by the law

HELD = set()  # laws seen to hold on the true code, once for all mistakes that they are to catch


def collect():
    found = []
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        if path.name != "test_mutants.py" and "MUTANTS" in path.read_text(encoding="utf-8"):
            found += [(path.stem, mutant) for mutant in importlib.import_module(path.stem).MUTANTS]
    return found


@pytest.mark.parametrize(("file", "mutant"), [pytest.param(f, m, id=f"{f}-{m.name}") for f, m in collect()])
def test_a_planted_mistake_turns_its_law_red(file, mutant):
    if mutant.law not in HELD:
        mutant.law()  # the law holds on the true code
        HELD.add(mutant.law)
    with planted(mutant):
        try:
            mutant.law()
        except BROKEN_MUTANT:
            raise
        except (Exception, SystemExit, pytest.fail.Exception):
            return
    pytest.fail(f"{file}: the law still passes with {mutant.name}")


def test_a_mutant_whose_text_is_gone_is_reported():
    absent = "no such text"
    with pytest.raises(ValueError, match="0 times"):
        with planted(Mutant("minillama.system.files", absent, "", lambda: None)):
            pass


def test_a_planted_mistake_is_taken_out_again():
    from minillama.system.files import atomic_write

    mutant = Mutant("minillama.system.files", 'not in ("wb", "w")', 'in ("wb", "w")', lambda: None)
    before = atomic_write.__wrapped__.__code__
    with planted(mutant):
        assert atomic_write.__wrapped__.__code__ is not before
    assert atomic_write.__wrapped__.__code__ is before


def test_long_texts_that_differ_fail_without_a_list_of_their_lines(monkeypatch):
    monkeypatch.setenv("CI", "true")  # where pytest would list every difference, in more than quadratic time
    page = "\n".join(f"<td>{number}</td>" for number in range(600))
    other = page.replace("<td>7", "<td> 7")
    with pytest.raises(AssertionError) as told:
        assert page == other
    assert len(str(told.value)) < 1000


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM, which Windows lacks")
def test_a_quick_test_that_hangs_is_stopped():
    seconds = signal.getitimer(signal.ITIMER_REAL)[0]
    assert 0 < seconds <= SECONDS_OF_A_QUICK_TEST
    with pytest.raises(pytest.fail.Exception, match=f"more than {SECONDS_OF_A_QUICK_TEST} s"):
        signal.raise_signal(signal.SIGALRM)
