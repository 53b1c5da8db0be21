"""A check that counts what a kernel does waits for the one that looks at its values."""

from test_exercise import CHECKS, RIGHT, course

from minillama.course import check
from minillama.course.grader import grade


def test_a_check_that_waits_for_another_is_to_do_until_that_one_passes(tmp_path):
    waiting = CHECKS.replace("WRONG = ", 'AFTER = {"double": "half"}\nWRONG = ', 1)
    for answer, verdicts in ((RIGHT.replace("/ 2", "/ 3"), ["fail"]), (RIGHT, ["ok", "ok"])):
        course(tmp_path, answer, checks=waiting)
        (result,), _ = grade(check.find(5, tmp_path)[2], [check.find(5, tmp_path)[0]])
        assert [one.verdict for one in result.results] == verdicts and result.checks == ["half", "double"]
