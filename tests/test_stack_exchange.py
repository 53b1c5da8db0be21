"""Laws of `stack-exchange`: votes become pairs, no question is in two files, and a hostile file is refused at once."""

import contextlib
import io
import json
import re
import sys
from html import escape

import pytest
import stack_exchange
from mutants import Mutant

BOMB = ('<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
        '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><posts><row Id="1" PostTypeId="1" Score="1" Body="&c;"/>'
        "</posts>")
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><posts>&a;</posts>'


def post(number, kind, votes, body, **more):
    facts = {"Id": number, "PostTypeId": kind, "Score": votes, "Body": body, **more}
    return "<row " + " ".join(f'{name}="{escape(str(value))}"' for name, value in facts.items()) + " />"


def dump(questions=60):
    """Each question has an accepted answer, a better voted one, one voted down and a tie; answers stand first."""
    rows = [post(7, 5, 1, "a tag's page"), post(9000, 1, 3, "nobody answers", Title="Alone?")]
    for n in range(1, questions + 1):
        for i, votes in enumerate((1, 9, -2, 1)):
            rows.append(post(1000 + 10 * n + i, 2, votes, f"<p>answer {i} to {n}</p>", ParentId=n))
        rows.append(post(n, 1, 5, f"<p>How <b>bold</b> is {n}?</p>", Title=f"Title {n}",
                         AcceptedAnswerId=1000 + 10 * n))
    return "<?xml version='1.0'?><posts>" + "\n".join(rows) + "</posts>"


def plain(html):
    return re.sub(r"<[^>]+>", "", html).strip()


def made(folder, text, *words, to_text=plain):
    (folder / "Posts.xml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as err:
        patch.setattr(stack_exchange, "markdown", lambda: to_text)
        code = stack_exchange.main(["--posts", str(folder / "Posts.xml"), "--out", str(folder / "out"), *words])
    return code, err.getvalue()


def lines(folder, name):
    return [json.loads(line) for line in (folder / "out" / name).read_text(encoding="utf-8").splitlines()]


def test_the_files_share_no_question_and_miss_none(tmp_path):
    assert made(tmp_path, dump(), "--held-out-fraction", "0.2")[0] == 0
    seen = [{record.get("instruction") or record["prompt"] for record in lines(tmp_path, name)}
            for name in stack_exchange.FILES]
    assert all(seen) and sum(map(len, seen)) == len(set.union(*seen)) == 60
    text = (tmp_path / "out" / "text.txt").read_text(encoding="utf-8")
    assert not any(question in text for question in seen[0]) and all(question in text for question in seen[1])
    assert not (tmp_path / "out" / "posts.db").exists()


def test_pairs_follow_the_votes_and_the_best_answer_is_learned(tmp_path):
    made(tmp_path, dump())
    pairs = lines(tmp_path, "pairs.jsonl") + lines(tmp_path, "held_out.jsonl")
    number = re.search(r"Title (\d+)", pairs[0]["prompt"])[1]
    assert pairs[0]["prompt"] == f"Title {number}\n\nHow bold is {number}?"
    mine = {(pair["chosen"][7], pair["rejected"][7]) for pair in pairs if pair["prompt"] == pairs[0]["prompt"]}
    assert mine == {("1", "0"), ("0", "2"), ("0", "3"), ("1", "2"), ("1", "3"), ("3", "2")}  # scores 2, 3, -1, 1
    assert all(record["output"].startswith("answer 1 to") for record in lines(tmp_path, "answers.jsonl"))


def test_a_longer_dump_moves_no_question(tmp_path):
    places = []
    for questions in (40, 60):
        folder = tmp_path / str(questions)
        folder.mkdir()
        made(folder, dump(questions))
        places.append({record["prompt"] for record in lines(folder, "prompts.jsonl")})
    assert places[0] < places[1]


def test_hostile_and_broken_files_are_one_line_and_leave_nothing(tmp_path):
    for text, message in ((BOMB, "document type"), (OUTSIDE, "document type"), ("<posts><row", "not XML"),
                          ("nothing", "not XML"), (dump()[:-30], "not XML"),
                          ("<posts>" + post("x", 1, 1, "b") + "</posts>", "no proper number"),
                          ('<posts><row Id="1" PostTypeId="1" Score="2"/></posts>', "no proper Body")):
        code, err = made(tmp_path, text)
        assert code == 2 and err.count("\n") == 1 and message in err, text[:60]
        assert not list((tmp_path / "out").iterdir())


def test_rows_come_before_the_file_is_read_to_its_end(tmp_path):
    (tmp_path / "Posts.xml").write_text(dump(9000) + "<broken", encoding="utf-8")
    assert next(stack_exchange.rows_of(tmp_path / "Posts.xml"))["Id"] == "7"


def test_shares_are_kept_over_many_questions():
    shares = (0.05, 0.38, 0.38, 0.19)
    parts = [stack_exchange.part_of(n, shares) for n in range(20_000)]
    for part, share in enumerate(shares):  # five standard errors of a share
        assert abs(parts.count(part) / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


def test_without_the_extra_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "markdownify", None)
    with pytest.raises(ValueError, match=r"minillama\[stack-exchange\]"):
        stack_exchange.markdown()


def test_html_becomes_markdown():
    pytest.importorskip("markdownify", reason="needs the extra `stack-exchange`")
    assert stack_exchange.markdown()("<h1>A</h1><p><b>b</b> <code>c</code></p>") == "# A\n\n**b** `c`"


MUTANTS = [
    Mutant("stack_exchange", "if place < total:", "if place > total:", test_shares_are_kept_over_many_questions),
]
