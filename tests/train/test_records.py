"""Files of examples: three forms read alike, every slip named by file, line and field, nothing dropped unseen."""

import json
import os
from functools import partial

import pytest
from checkpoints import in_a_folder
from mutants import Mutant
from test_sequence_loss import FOUR_TURNS, Letters, by_character

from minillama.corpus.forum import GRAMMAR
from minillama.tokenizer import load_tokenizer
from minillama.train.records import LONGEST_RECORD, Record, encode_records, forum_records, read_records, segments_of
from minillama.train.sequence_loss import IGNORE, encode_segments
from minillama.train.templates import TEMPLATES, alpaca, question_answer, text_of

ALPACA = {"instruction": "Add them.", "input": "2, 3", "output": "5"}
MESSAGES = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                         {"role": "assistant", "content": "Hello \u2028 \U0001f999"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
ADDED = Record(({"role": "user", "content": "Add them."}, {"role": "assistant", "content": "5"}), "2, 3")


def written(folder, text, name="data.json"):
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_three_forms_in_json_and_jsonl_are_the_same_records(tmp_path):
    values = [ALPACA, MESSAGES, SHAREGPT]
    texts = [json.dumps(values), json.dumps(values, indent=2, ensure_ascii=False), "\ufeff" + json.dumps(values),
             "\n".join(map(json.dumps, values)), "\r\n\r\n".join(map(json.dumps, values)) + "\n\n",
             "\n".join(json.dumps(value, ensure_ascii=False) for value in values)]
    read = [read_records(written(tmp_path, text)) for text in texts]
    assert all(r == read[0] for r in read) and not read[0].skipped and not read[0].unused
    assert read[0].records[0] == ADDED
    assert list(read[0].records[1].messages) == MESSAGES["messages"]
    assert list(read[0].records[2].messages) == [{"role": "user", "content": "Hi"},
                                                 {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize("array", [False, True])
def test_a_record_of_more_than_a_mebibyte_is_refused_as_pairs_and_prompts_are(tmp_path, array):
    for letter in ("x", "\u20ac"):  # of one byte, and of three
        room = LONGEST_RECORD - len(json.dumps(ALPACA | {"output": ""}, ensure_ascii=False))
        for spare, fits in ((0, True), (1, False)):
            record = ALPACA | {"output": letter * (room // len(letter.encode())) + "x" * (
                room % len(letter.encode()) + spare)}
            lines = [json.dumps(value, ensure_ascii=False) for value in (ALPACA, record)]
            path = written(tmp_path, f"[{lines[0]},\n{lines[1]}]" if array else "\n".join(lines))
            if fits:
                assert len(read_records(path).records) == 2
                continue
            with pytest.raises(ValueError, match=f"data.json:2: a record of more than {LONGEST_RECORD} bytes"):
                read_records(path)
            assert len(read_records(path, skip_bad=True).skipped) == 1


BAD = [
    ({"instruction": "a"}, "field 'output' is missing"),
    ({"instruction": "a", "output": ""}, "field 'output' is blank"),
    ({"instruction": " \n", "output": "b"}, "field 'instruction' is blank"),
    ({"instruction": "a", "input": 3, "output": "b"}, "field 'input' is int"),
    ({"instruction": "a", "output": "\ud800"}, "field 'output' holds half a surrogate"),
    ({"prompt": "a"}, "fields ['prompt'] are of no known form"),
    (["a"], "a record is an object, not list"),
    ({"messages": []}, "field 'messages' must be a list"),
    ({"messages": ["Hi"]}, "messages[0] is str"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "field 'messages[0].role' is 'tool'"),
    ({"messages": [{"role": "user"}]}, "field 'messages[0].content' is missing"),
    ({"messages": MESSAGES["messages"][:2]}, "ending with assistant"),
    ({"messages": MESSAGES["messages"][:1]}, "ending with assistant"),
    ({"messages": MESSAGES["messages"][2:]}, "['assistant']"),
    ({"conversations": SHAREGPT["conversations"] + [{"from": "gpt", "value": None}]}, "[2].value' is NoneType"),
]


@pytest.mark.parametrize(("value", "said"), BAD, ids=[said for _, said in BAD])
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_a_bad_record_is_an_error_of_one_line_or_is_left_out_and_listed(value, said, form, tmp_path):
    values = [ALPACA, SHAREGPT, value, ALPACA]
    lines = list(map(json.dumps, values))
    path = written(tmp_path, "\n".join(lines) if form == "jsonl" else "[" + ",\n".join(lines) + "]")
    with pytest.raises(ValueError) as caught:
        read_records(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ") and said in message and "\n" not in message
    read = read_records(path, skip_bad=True)
    assert len(read.records) == 3 and read.skipped == [message]
    assert read.summary() == "3 records, 1 bad ones skipped"


@pytest.mark.parametrize(("text", "said"), [
    (json.dumps(ALPACA) + "\n{broken", ":2: not JSON"),
    (json.dumps(ALPACA) + '\n{"instruction": "a", "output": "b", "output": "c"}', ":2: field 'output' is given twice"),
    (f'[{json.dumps(ALPACA)},\n{{"instruction": "a", "output": "b", "output": "c"}}]', ":2: field 'output' is given"),
    (json.dumps(ALPACA, indent=1), ":1: not JSON"),
    ("[" + json.dumps(ALPACA) + ",\n" + json.dumps(ALPACA) + "\n", ":2: a comma or the closing ] is missing"),
    ("[" + json.dumps(ALPACA) + ",\n{'a': 1}]", ":2: the array is broken"),
    ("[" + json.dumps(ALPACA) + "]\n[]", ":1: "),
    ("", ": no record to learn from"),
    ("[]", ": no record to learn from"),
    (b"{}\n\xff\n", ":2: byte 0xff is not UTF-8"),
    ("[" * 100000, ":1: "),
])
def test_broken_files_end_in_one_line_that_names_the_place(text, said, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_records(path)
    assert str(caught.value).startswith(str(path)) and said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_bad_records_alone_is_an_error_even_when_they_may_be_skipped(tmp_path):
    with pytest.raises(ValueError, match="no record to learn from.*field 'output' is missing"):
        read_records(written(tmp_path, '{"instruction": "a"}'), skip_bad=True)


def test_fields_that_are_not_used_are_counted(tmp_path):
    turns = [turn | {"markdown": None} for turn in SHAREGPT["conversations"]]
    values = [ALPACA | {"id": 1, "text": "x"}, {"id": 2, "conversations": turns}, SHAREGPT]
    read = read_records(written(tmp_path, json.dumps(values)))
    assert read.unused == {"id": 2, "text": 1, "conversations[].markdown": 1} and len(read.records) == 3
    assert read.summary() == ("3 records, 0 bad ones skipped, fields not used: conversations[].markdown (1), id (2), "
                              "text (1)")


def test_a_record_is_worded_as_its_template_says():
    assert segments_of(ADDED, "alpaca") == alpaca("Add them.", "2, 3", "5")
    assert segments_of(Record(ADDED.messages), "alpaca") == alpaca("Add them.", output="5")
    assert segments_of(ADDED, "question_answer") == question_answer("Add them.\n\n2, 3", "5")
    twice = Record(ADDED.messages * 2)
    assert segments_of(twice, "question_answer") == question_answer("Add them.", "5") * 2
    for name in TEMPLATES:
        assert "Add them." in text_of(segments_of(twice, name))
    with pytest.raises(ValueError, match="no place for a system text"):
        segments_of(Record(tuple(MESSAGES["messages"])), "alpaca")
    with pytest.raises(ValueError, match="template 'gpt' is not known: choose one of question_answer, alpaca"):
        segments_of(ADDED, "gpt")


def test_an_answer_of_weight_0_is_read_and_not_learned(tmp_path):
    turns = [{**turn, "weight": 0} if place == 1 else turn for place, turn in enumerate(FOUR_TURNS)]
    for name in ("vicuna", "llama3", "chatml", "question_answer"):
        [record] = read_records(written(tmp_path, json.dumps({"messages": turns}))).records
        found, whole = segments_of(record, name), TEMPLATES[name](FOUR_TURNS)
        assert text_of(found) == text_of(whole)
        learned = [segment.text.strip() for segment in found if segment.learn]
        assert learned == [segment.text.strip() for segment in whole if segment.learn][2:]
    for weights, message in (([0] * 4, "every answer the weight 0"), ([0.5, 1, 1, 1], "weight' is 0.5: 0")):
        turns = [{**turn, "weight": weights[place // 2]} for place, turn in enumerate(FOUR_TURNS)]
        with pytest.raises(ValueError, match=message):
            read_records(written(tmp_path, json.dumps({"messages": turns})))


def test_four_turns_read_from_a_file_are_masked_right_token_by_token(tmp_path):
    path = written(tmp_path, json.dumps({"messages": FOUR_TURNS}))
    for name in ("vicuna", "llama3"):
        [sequence] = encode_records(read_records(path).records, name, Letters(), 1000).sequences
        assert (sequence.tokens, sequence.labels) == by_character(TEMPLATES[name](FOUR_TURNS), Letters())


def test_long_records_are_cut_and_those_without_an_answer_left_are_counted_out():
    records = [Record(({"role": "user", "content": "?" * n}, {"role": "assistant", "content": "abc"}))
               for n in (1, 20, 22, 23, 40)]
    whole = encode_segments(segments_of(records[1], "question_answer"), Letters())
    length = len(whole.tokens)
    for limit, lengths, cut, left_out in ((length, [length - 19, length, length, length], 2, 1),
                                          (length - 2, [length - 19, length - 2, length - 2], 2, 2)):
        encoded = encode_records(records, "question_answer", Letters(), limit)
        assert [len(s.tokens) for s in encoded.sequences] == lengths
        assert (encoded.cut, encoded.left_out) == (cut, left_out)
        assert all(any(label != IGNORE for label in s.labels) for s in encoded.sequences)
    with pytest.raises(ValueError, match="none of 5 records has an answer"):
        encode_records(records, "question_answer", Letters(), 9)


def test_forum_records_are_the_forums_own_and_a_function_of_seed_and_split():
    records = forum_records(0, 50)
    for record in records:
        question, answer = (message["content"] for message in record.messages)
        asked = GRAMMAR.parse(question, "{question}")
        GRAMMAR.parse(answer, "{answer}", asked.chosen)  # raises for an answer to another question
    assert forum_records(0, 60)[:50] == records
    assert forum_records(1, 50) != records and forum_records(0, 50, "held-out") != records


plant = partial(Mutant, "minillama.train.records")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_that_may_never_begin_and_a_device_without_end_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        for read in (read_records, load_tokenizer):
            with pytest.raises(ValueError, match="no regular file"):
                read(tmp_path / name)


MUTANTS = [
    plant("line + text.count(\"\\n\", counted, place)", "line", lambda: in_a_folder(partial(
        test_a_bad_record_is_an_error_of_one_line_or_is_left_out_and_listed, *BAD[0], "json"))),
    plant('text.split("\\n")', "text.splitlines()",
          lambda: in_a_folder(test_three_forms_in_json_and_jsonl_are_the_same_records)),
    plant("            skipped.append(one_line(message))\n", "            pass\n", lambda: in_a_folder(partial(
        test_a_bad_record_is_an_error_of_one_line_or_is_left_out_and_listed, *BAD[0], "jsonl"))),
    plant("        unused.update(names)\n", "", lambda: in_a_folder(test_fields_that_are_not_used_are_counted)),
    plant("cut += len(whole.tokens) > max_length", "cut += len(whole.tokens) >= max_length",
          test_long_records_are_cut_and_those_without_an_answer_left_are_counted_out),
    plant('"{answer}", question.chosen)', '"{answer}")',
          test_forum_records_are_the_forums_own_and_a_function_of_seed_and_split),
    plant("* (len(rest) // 2):", "* len(rest):", lambda: in_a_folder(
        test_three_forms_in_json_and_jsonl_are_the_same_records)),
    plant("if not rest or rest != ", "if not rest and rest != ", lambda: in_a_folder(partial(
        test_a_bad_record_is_an_error_of_one_line_or_is_left_out_and_listed, *BAD[11], "jsonl"))),
]
