"""Laws of benchmark files: the same rows in whatever form, and a hostile file is one line."""

import json
import math
import sys

import pytest
from benchmark_files import read_rows, read_split, split_of, subject_of
from benchmark_tasks import TASKS
from mutants import Mutant

ROWS = [{"goal": "a, \"b\"\nc", "sol1": "x", "sol2": "y", "label": "1"},
        {"goal": "目标\u2028e", "sol1": "u", "sol2": "v", "label": "0"}]


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_form_gives_the_same_rows_and_says_where_they_stand(tmp_path):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    cells = 'goal,sol1,sol2,label\n"a, ""b""\nc",x,y,1\n目标\u2028e,u,v,0\n'
    forms = {"a.jsonl": "\n".join(lines), "b.json": "[\n" + ",\n".join(lines) + "]", "c.csv": "\ufeff" + cells,
             "d.csv": cells.replace("\n目", "\r\n目")}
    for name, text in forms.items():
        rows = read_rows(written(tmp_path / name, text))
        assert [row.fields for row in rows] == ROWS, name
        ends = {".jsonl": (1, 2), ".json": (2, 3), ".csv": (2, 4)}["." + name.split(".")[1]]
        assert [row.place for row in rows] == [f"{tmp_path / name}:{line}" for line in ends]


def test_files_without_a_header_have_the_columns_of_mmlu(tmp_path):
    (row,) = read_rows(written(tmp_path / "x_test.csv", 'Why?,1,2,3,"4, 5",B\n'))
    assert row.fields == {"question": "Why?", "A": "1", "B": "2", "C": "3", "D": "4, 5", "answer": "B"}


def test_empty_lines_and_files_that_a_system_hides_are_no_questions(tmp_path):
    written(tmp_path / "piqa" / "val.csv", "goal,n\r\na,2\r\n\r\n")
    written(tmp_path / "piqa" / "._val.csv", b"\xff\x00")
    assert [row.fields for row in read_split(tmp_path, "piqa", ("val",))] == [{"goal": "a", "n": "2"}]
    assert read_rows(written(tmp_path / "a.jsonl", "\n\r\n")) == read_rows(written(tmp_path / "b.csv", "")) == []
    (row,) = read_rows(written(tmp_path / "c.txt", "It was.\r\nSo."))
    assert row.fields == {"text": "It was.\r\nSo."}


def test_a_cell_of_a_csv_holds_a_list_as_json_and_labels_may_be_numbers(tmp_path):
    """Each benchmark may come in each form: also those whose rows hold lists."""
    choices = {"text": ["ice", 40, "rain"], "label": [1, 2, 3]}
    quoted = json.dumps(choices).replace('"', '""')
    written(tmp_path / "obqa" / "test.csv", f'\ufeffid,question_stem,choices,answerKey\r\n7,Hot is,"{quoted}",2\r\n')
    written(tmp_path / "obqa" / ".ipynb_checkpoints" / "test.csv", b"\xff")
    written(tmp_path / "arc_easy" / "test.jsonl", json.dumps({"question": "Q", "choices": choices, "answerKey": 2}))
    written(tmp_path / "hellaswag" / "val.csv", 'activity_label,ctx_a,ctx_b,endings,label\nx,y,z,"[""a"",""b""]",1\n')
    written(tmp_path / "text" / "test.csv", "page\nIt was.\n")
    for name, split, answers, gold in (("obqa", "test", ("ice", "40", "rain"), 1), ("text", "test", (), 0),
                                       ("arc_easy", "test", ("ice", "40", "rain"), 1),
                                       ("hellaswag", "val", ("a", "b"), 1)):
        (row,) = read_split(tmp_path, name, (split,))
        question = TASKS[name].ask(row)
        assert (question.answers, question.gold) == (answers, gold), name
    for cell, told in (("['a' 'b']", "in a CSV as JSON"), ("[]", "list of two texts or more"), ("null", "is 'null'")):
        path = written(tmp_path / "h.csv", f'activity_label,ctx_a,ctx_b,endings,label\nx,y,z,"{cell}",1\n')
        with pytest.raises(ValueError, match=f"h.csv:2: field 'endings' .*{told}"):
            TASKS["hellaswag"].ask(*read_rows(path))


def test_labels_that_come_apart_are_put_in(tmp_path):
    path = written(tmp_path / "valid.jsonl", '{"goal": "a"}\n{"goal": "b", "label": 7}\n')
    written(tmp_path / "valid-labels.lst", "1\n0\n")
    assert [row.fields["label"] for row in read_rows(path)] == ["1", 7]
    written(tmp_path / "valid-labels.lst", "1\n")
    with pytest.raises(ValueError, match=r"valid-labels.lst: 1 labels for 2 questions"):
        read_rows(path)


def test_parquet_is_read_where_there_is_pyarrow_and_else_a_line_says_what_to_do(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", b"PAR1 no such thing")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ValueError, match="a.parquet: parquet is read by pyarrow, which is not installed: `pip"):
            read_rows(path)
    pyarrow = pytest.importorskip("pyarrow", reason="an extra: pip install 'minillama[benchmarks]'")
    from pyarrow import parquet

    with pytest.raises(ValueError, match="a.parquet: no parquet file"):
        read_rows(path)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert [row.fields for row in read_rows(path)] == ROWS
    for changed, told in [
            ({"goal": None}, "field 'goal' is missing"), ({"goal": b"\xff"}, "field 'goal' is .*: expected a text"),
            ({"label": math.nan}, "field 'label' is 'NaN'"), ({"label": None}, "field 'label' is missing"),
            ({"sol1": ["x"]}, "field 'sol1' is .*: expected a text"), ({"sol1": 7, "label": 1.0}, None)]:
        parquet.write_table(pyarrow.Table.from_pylist([{**ROWS[0], **changed}]), path)
        (row,) = read_rows(path)
        if told is None:
            assert TASKS["piqa"].ask(row).answers == ("7", "y")
            continue
        with pytest.raises(ValueError, match=f"a.parquet:1: {told}"):
            TASKS["piqa"].ask(row)


def test_a_path_tells_split_and_subject(tmp_path):
    for path, split, subject in [
            ("mmlu/test/anatomy_test.csv", "test", "anatomy"), ("mmlu/dev/anatomy_dev.csv", "dev", "anatomy"),
            ("mmlu/high_school_us_history/test-00000-of-00001.parquet", "test", "high_school_us_history"),
            ("ceval/val/law_val.csv", "val", "law"), ("cmmlu/dev/arts.csv", "dev", "arts"),
            ("piqa/valid.jsonl", "val", ""), ("arc_easy/ARC-Easy-Test.jsonl", "test", "ARC-Easy"),
            ("boolq.jsonl", "", "")]:
        assert split_of(tmp_path.relative_to(tmp_path) / path) == split, path
        assert subject_of(tmp_path / path, path.split("/")[0].split(".")[0]) == subject, path


def test_the_first_split_that_is_there_is_read_in_its_first_form(tmp_path):
    written(tmp_path / "piqa" / "train.jsonl", '{"n": 1}')
    written(tmp_path / "piqa" / "dev.csv", "goal,n\na,2\n")
    written(tmp_path / "piqa" / "dev.jsonl", '{"n": 3}')
    assert [row.fields["n"] for row in read_split(tmp_path, "piqa", ("val", "dev"))] == [3]
    assert [row.fields["n"] for row in read_split(tmp_path, "piqa", ("train",))] == [1]
    assert read_split(tmp_path, "piqa", ("test",)) == []
    written(tmp_path / "obqa.jsonl", '{"n": 4}')
    assert [row.fields["n"] for row in read_split(tmp_path, "obqa", ("test", "val"))] == [4]
    with pytest.raises(ValueError, match=r"siqa: no such benchmark: put its files there \(.jsonl"):
        read_split(tmp_path, "siqa", ("val",))


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.jsonl", '{"a": 1}\n{"a": \n', r":2: not JSON"), ("a.jsonl", '{"a": 1}\n[2]\n', r":2: '\[2\]' is list"),
    ("a.jsonl", b'{"a": 1}\n{"b": "\xff"}', r":2: byte 0xff is not UTF-8"),
    ("a.csv", "question,A\na,b\nc\n", r":3: 1 cells, beginning with .*c.*: expected 2: question, A"),
    ("a.csv", 'question,A\n"a"b,c\n', r":2: no CSV"), ("a.csv", b"question\n\xe4\n", r":2: byte 0xe4 is not UTF-8"),
    ("a.csv", "question,A,A\nx,y,z\n", r":1: two columns are called 'A'"),
    ("a.csv", "question,A\nx," + "y" * (1 << 20) + "y\n", r":2: no CSV .field larger than field limit"),
    ("a.jsonl", '{"a": 1, "a": 2}', r":1: field 'a' is given twice"), ("a.jsonl", "7\n", r":1: '7' is int"),
    ("a.jsonl", '{"a": "' + "y" * (1 << 20) + '"}', r":1: a record of more than 1048576 bytes"),
    ("a.json", '[{"a": 1}\n{"a": 2}]', r":1: a comma or the closing"), ("a.jsonl", "[" * 99999, r":1: the array is"),
    ("a.jsonl", '{"data": [\n{"a": 1}]}', r":1: not JSON"), ("a.csv", b"\xff\xfea\0", r":1: byte 0xff is not UTF-8"),
    ("a.csv", "Why?,1,2\n", r":1: 3 cells, beginning with .*Why.*: expected 6: question, A, B, C, D, answer")])
def test_a_hostile_file_is_one_line_with_its_name_and_line(tmp_path, name, content, told):
    with pytest.raises(ValueError, match=told) as error:
        read_rows(written(tmp_path / name, content))
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def splits(tmp_path=None):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        test_the_first_split_that_is_there_is_read_in_its_first_form(Path(folder))


MUTANTS = [Mutant("benchmark_files", "    for split in splits:\n", "    for split in splits[:1]:\n", splits),
           Mutant("benchmark_files", '(".jsonl", ".json", ".parquet", ".csv", ".txt")', '(".csv", ".jsonl")', splits)]
