"""Requests in OpenAI's form: read with the server's own defaults, refused where a field would be ignored."""

from functools import partial

import pytest
from mutants import Mutant
from web_server import Bytes, made_loaded

from minillama.chat import Conversation
from minillama.config import ModelConfig
from minillama.generate import prompt_ids
from minillama.web.protocol import Writer, read_asked
from minillama.web.request_guard import Refused
from minillama.web.token_facts import Piece

LOADED = made_loaded()
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"}]


def test_what_is_not_said_is_as_the_server_was_started():
    asked = read_asked({"prompt": "x"}, "text", LOADED)
    assert asked.sampling == LOADED.sampling and (asked.max_new_tokens, asked.seed) == (12, 0)
    assert (asked.stop, asked.n_top, asked.stream, asked.echo) == ((), None, False, False)
    asked = read_asked({"prompt": "x", "temperature": 1, "top_p": 0.5, "stop": "a", "seed": 3, "logprobs": 0},
                       "text", LOADED)
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k) == (1.0, 0.5, 0)
    assert (asked.stop, asked.seed, asked.n_top) == (("a",), 3, 0)


def test_a_conversation_is_put_as_chat_puts_it():
    asked = read_asked({"messages": MESSAGES, "stop": ["b"]}, "chat", LOADED)
    conversation = Conversation(Bytes(), "vicuna", [*MESSAGES])
    assert asked.rows == [conversation.prompt(512)] and asked.stop == (*conversation.stop_texts(), "b")
    assert asked.stop_ids == conversation.stop_ids()
    assert asked.rows[0][:20] == read_asked({"messages": MESSAGES[:1]}, "chat", LOADED).rows[0][:20]


@pytest.mark.parametrize(("kind", "name"), [("chat", "tools"), ("chat", "echo"), ("text", "messages"),
                                            ("text", "best_of"), ("chat", "presence_penalty")])
def test_what_would_be_ignored_is_refused_by_its_name(kind, name):
    with pytest.raises(Refused, match=name):
        read_asked({"messages": MESSAGES, name: 1} if kind == "chat" else {"prompt": "x", name: 1}, kind, LOADED)


def test_an_answer_is_counted_and_joined():
    fact = {"id": 7, "token": "a", "logprob": -1.0, "rank": 1, "entropy": 2.0, "top_logprobs": []}
    pieces = [Piece("He", (fact,)), Piece("y", (fact, fact)), Piece("", (), "length")]
    found = Writer("chat", read_asked({"messages": MESSAGES}, "chat", LOADED), LOADED).whole(pieces)
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "Hey"}
    assert found["choices"][0]["finish_reason"] == "length" and found["choices"][0]["logprobs"] is None
    assert found["usage"]["completion_tokens"] == 3
    assert found["usage"]["total_tokens"] == 3 + found["usage"]["prompt_tokens"]


def test_prompts_are_rows_in_their_order_with_their_choices_side_by_side():
    def rows(**body):
        return read_asked(body, "text", LOADED).rows

    one, two = prompt_ids(Bytes(), "ab"), prompt_ids(Bytes(), "c")
    assert rows(prompt="ab") == rows(prompt=["ab"]) == rows(prompt=one) == rows(prompt=[one]) == [one]
    assert rows(prompt=["ab", "c"], n=2) == rows(prompt=[one, two], n=2) == [one, one, two, two]
    assert read_asked({"messages": MESSAGES, "n": 3}, "chat", LOADED).rows == \
        read_asked({"messages": MESSAGES}, "chat", LOADED).rows * 3


@pytest.mark.parametrize(("body", "word"), [
    ({"prompt": ["a"] * 9}, "9 prompts"), ({"prompt": ["a"] * 3, "n": 3}, "8 rows"), ({"prompt": []}, "no token"),
    ({"prompt": [[1], []]}, "no token"), ({"prompt": ["a", [1]]}, "all be texts"), ({"prompt": [1, "a"]}, "'a'"),
    ({"prompt": [[1], 2]}, "all be texts"), ({"prompt": [[[1]]]}, "whole number"), ({"prompt": [True]}, "True"),
    ({"prompt": "a", "n": 9}, "n is 9"), ({"prompt": "a", "n": True}, "n is True")])
def test_rows_that_are_too_many_or_of_two_kinds_are_refused(body, word):
    with pytest.raises((Refused, ValueError, TypeError), match=word):
        read_asked(body, "text", LOADED)


def test_rows_together_have_no_more_tokens_than_one_long_text():
    wide = made_loaded(config=ModelConfig(8, 1, 1, 259, max_seq_len=1000))
    body = {"prompt": [[1] * 24] * 4, "max_tokens": 1000}
    assert len(read_asked(body, "text", wide).rows) == 4  # 4 times the context is 4,000
    with pytest.raises(Refused, match="5 rows of up to 1000 tokens are more than the 4096"):
        read_asked({**body, "prompt": [[1] * 24] * 5}, "text", wide)
    assert len(read_asked({**body, "prompt": [[1] * 24] * 8, "max_tokens": 488}, "text", wide).rows) == 8
    with pytest.raises(Refused, match="8 rows of up to 513 tokens"):
        read_asked({**body, "prompt": [[1] * 24] * 8, "max_tokens": 489}, "text", wide)


def test_choices_are_told_apart_and_their_prompt_is_counted_once():
    fact = {"id": 7, "token": "a", "logprob": -1.0, "rank": 1, "entropy": 2.0, "top_logprobs": []}
    pieces = [Piece("He", (fact,)), Piece("Y", (fact, fact), None, 1), Piece("y", (fact,), "stop"),
              Piece("", (), "length", 1)]
    asked = read_asked({"prompt": [1, 2, 3], "n": 3}, "text", LOADED)
    writer = Writer("text", asked, LOADED)
    found = writer.whole(pieces)
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in found["choices"]] == \
        [(0, "Hey", "stop"), (1, "Y", "length"), (2, "", None)]
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert [writer.chunk(piece)["choices"][0]["index"] for piece in pieces] == [0, 1, 0, 1]


plant = partial(Mutant, "minillama.web.protocol")
MUTANTS = [
    plant("(*stops, *stop)", "tuple(stop)", test_a_conversation_is_put_as_chat_puts_it),
    plant("return [ids], conversation.stop_texts(), conversation.stop_ids()",
          "return [ids], conversation.stop_texts(), loaded.tokenizer.end_ids - {257}",
          test_a_conversation_is_put_as_chat_puts_it),
    plant("    check_names(body, kind)\n    stop", "    stop",
          lambda: test_what_would_be_ignored_is_refused_by_its_name("chat", "tools")),
    plant("pieces[-1].finish", "pieces[0].finish", test_an_answer_is_counted_and_joined),
    plant("if piece.index == index]", "]", test_choices_are_told_apart_and_their_prompt_is_counted_once),
    plant("map(len, self.asked.prompts)", "map(len, rows)",
          test_choices_are_told_apart_and_their_prompt_is_counted_once),
    plant("rows * tokens > max(", "tokens > max(", test_rows_together_have_no_more_tokens_than_one_long_text),
    plant("for ids in self.prompts for _ in range(self.n)", "for _ in range(self.n) for ids in self.prompts",
          test_prompts_are_rows_in_their_order_with_their_choices_side_by_side),
]
