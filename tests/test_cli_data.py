"""Laws of `filter`: every record comes out on one side or the other, unchanged, and every reason is counted."""

import json

import pytest
from test_cli import run

GOOD = [{"instruction": "Name three birds that cannot fly", "output": "Emu, kiwi, penguin.", "id": 7},
        {"conversations": [{"from": "human", "value": "Why is the sky blue at noon?"},
                           {"from": "gpt", "value": "\u2028 It scatters."}]},
        {"instruction": "Add these two numbers, please", "input": "2 and 3", "output": "5", "note": "\ud800"}]
BAD = [({"instruction": "Name three birds that can not fly", "output": "Emu."}, "too similar"),
       ({"instruction": "Hello there", "output": "Hi."}, "too short"),
       ({"instruction": "Draw a map of the town", "output": "No."}, "blacklisted word"),
       ({"instruction": "\u8bf7\u7ffb\u8bd1\u8fd9\u9996\u8bd7 a b c d", "output": "No."}, "not in English")]


def written(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture
def data(tmp_path):
    return written(tmp_path / "data.jsonl", [*GOOD, *(value for value, _ in BAD)])


def test_every_record_comes_out_on_one_side_unchanged_with_its_line_and_reason(data, tmp_path, capsys):
    out = tmp_path / "kept.jsonl"
    code, said, err = run(capsys, "filter", "--data", data, "--out", out)
    assert (code, said) == (0, "") and rows(out) == GOOD
    dropped = rows(tmp_path / "kept.rejected.jsonl")
    assert [(row["record"], row["reason"]) for row in dropped] == BAD
    assert [row["line"] for row in dropped] == [4, 5, 6, 7]
    assert dropped[0]["found"] == "ROUGE-L 0.769 with: Name three birds that cannot fly"  # 5 words of 6 and of 7
    assert f"{out}: 3 kept" in err and "4 dropped, 1 too similar, 1 too short, 1 blacklisted word, 1 not in En" in err


def test_a_pool_is_compared_with_and_flags_reach_the_rules(data, tmp_path, capsys):
    out, rejected = tmp_path / "kept.jsonl", tmp_path / "r.jsonl"
    pool = written(tmp_path / "pool.jsonl", GOOD[2:])
    words = ("filter", "--data", data, "--out", out, "--rejected", rejected, "--pool", pool)
    assert run(capsys, *words, "--blacklist", "--no-english", "--min-words", "2", "--similarity", "0.8")[0] == 0
    assert rows(out) == [*GOOD[:2], *(value for value, _ in BAD)]
    assert [row["record"] for row in rows(rejected)] == GOOD[2:]
    assert run(capsys, *words, "--blacklist", "birds", "--max-words", "6")[0] == 0
    assert {row["reason"] for row in rows(rejected)} >= {"blacklisted word", "too long", "too short"}


@pytest.mark.parametrize(("flags", "said"), [
    (("--similarity", "2"), "similarity is 2.0"),
    (("--rejected", "kept.jsonl"), "must be different files"),
    (("--out", "data.jsonl"), "must be different files"),
    (("--pool", "nowhere"), "nowhere"),
])
def test_what_cannot_be_is_refused_before_anything_is_written(flags, said, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "filter", "--data", "data.jsonl", "--out", "kept.jsonl", *flags)
    assert code == 2 and said in err.splitlines()[-1] and [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_unreadable_records_stop_it_or_are_listed(data, tmp_path, capsys):
    data.write_text(data.read_text() + '{"instruction": "Count to 20."}\n')
    words = ("filter", "--data", data, "--out", tmp_path / "kept.jsonl")
    code, _, err = run(capsys, *words)
    assert code == 2 and err.splitlines()[-1] == f"minillama: error: {data}:8: field 'output' is missing"
    code, _, err = run(capsys, *words, "--skip-bad")
    assert code == 0 and f"{data}:8: field 'output' is missing" in err and "7 records, 1 bad ones skipped" in err
