"""Laws of `filter` and `tokenizer extend`: every record comes out on one side or the other, with its reason counted; a
model with another's pieces learns them by its two tables."""

import json

import pytest
import torch
from checkpoints import model_of
from test_command_line import model_folder, run, tokenizer_file

from minillama.checkpoint import load_model
from minillama.checkpoint.convert import save_with_tokenizer
from minillama.config import ModelConfig
from minillama.tokenizer import load_tokenizer

FIXTURES = (model_folder, tokenizer_file)  # of test_cli, used here by name
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
    code, _, err = run(capsys, *words)
    assert code == 2 and "kept.jsonl exists: choose another place, or remove it first" in err
    out.unlink()
    assert run(capsys, *words, "--blacklist", "birds", "--max-words", "6")[0] == 0
    assert {row["reason"] for row in rows(rejected)} >= {"blacklisted word", "too long", "too short"}


def test_a_file_of_rejected_records_is_written_anew_and_any_other_stays(data, tmp_path, capsys):
    other = written(tmp_path / "kept.rejected.jsonl", GOOD)
    before = other.read_bytes()
    words = ("filter", "--data", data, "--out", tmp_path / "kept.jsonl")
    code, _, err = run(capsys, *words)
    assert code == 2 and "no filter made it: give another file as --rejected" in err and other.read_bytes() == before
    other.unlink()
    assert run(capsys, *words)[0] == 0
    first = other.read_bytes()
    (tmp_path / "kept.jsonl").unlink()  # as if killed between the two
    assert first and run(capsys, *words)[0] == 0 and other.read_bytes() == first


@pytest.mark.parametrize(("flags", "said"), [
    (("--similarity", "2"), "similarity is 2.0"),
    (("--rejected", "kept.jsonl"), "must be different files"),
    (("--out", "data.jsonl"), "data.jsonl is what --data reads"),
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


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chinese")
    text = "\u732b\u5934\u9e70\u548c\u6bcd\u9e21\u57281999\u5e74\u76f8\u9047\u3002" * 20
    rows = [{"instruction": f"\u732b\u5934\u9e70 {n}?", "output": f"\u6bcd\u9e21 {n}"} for n in range(20)]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return folder / "text.txt", folder / "other.model", written(folder / "rows.jsonl", rows), text


def test_a_tokenizer_is_extended_into_a_tokenizer_and_a_model_into_a_model(tokenizer_file, model_folder, chinese,
                                                                          tmp_path, capsys):
    text_file, other, rows, text = chinese
    assert run(capsys, "tokenizer", "train", "--text", text_file, "--vocab-size", "290", "--out", other)[0] == 0
    words = ("tokenizer", "extend", "--add", other, "--split-digits")
    code, said, err = run(capsys, *words, "--model", tokenizer_file, "--out", tmp_path / "new.model")
    old, new = load_tokenizer(tokenizer_file), load_tokenizer(tmp_path / "new.model")
    count = new.vocab_size - old.vocab_size
    assert (code, said) == (0, "") and f"320 pieces and {count} new ones of 290 make {new.vocab_size}\n" in err
    assert count > 10 and len(new.encode(text)) < len(old.encode(text)) / 3
    assert run(capsys, *words, "--model", model_folder, "--out", tmp_path / "model")[0] == 0
    before, model = load_model(model_folder)[0], load_model(tmp_path / "model")[0]
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == (tmp_path / "new.model").read_bytes()
    tokens_BT = torch.arange(1, 12)[None]
    torch.testing.assert_close(model(tokens_BT)[..., :320], before(tokens_BT), rtol=0, atol=1e-5)
    code, _, err = run(capsys, *words, "--model", model_folder, "--out", tmp_path / "model")
    assert code == 2 and "already holds a model" in err
    sft = ("sft", "--model", tmp_path / "model", "--data", rows, "--out", tmp_path / "stage1", "--method", "embeddings",
           "--steps", "3", "--warmup-steps", "1", "--held-out-fraction", "0.3", "--template", "question_answer")
    assert run(capsys, *sft)[0] == 0
    learned = load_model(tmp_path / "stage1")[0].state_dict()
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, learned[name])} == {
        "tok_embeddings.weight", "output.weight"}


def test_the_digits_that_a_merge_joins_are_told(tokenizer_file, chinese, tmp_path, capsys):
    other = tmp_path / "joined.model"
    from minillama.tokenizer import train_bpe

    train_bpe([chinese[3]], 290, split_digits=False).save(other)
    words = ("tokenizer", "extend", "--model", tokenizer_file, "--add", other, "--out")
    code, _, err = run(capsys, *words, tmp_path / "1.model")
    assert code == 0 and "hold digits in company (--split-digits leaves them out)" in err
    code, _, err = run(capsys, *words, tmp_path / "2.model", "--split-digits")
    assert code == 0 and "digits in company" not in err
    other.write_bytes(b"\x0a\x05nothing")
    code, _, err = run(capsys, *words, tmp_path / "3.model")
    assert code == 2 and f"error: {other}: " in err


def test_a_byte_level_tokenizer_and_its_model_are_extended_too(chinese, tmp_path, capsys):
    text_file, _, _, text = chinese
    other, byte_level = tmp_path / "zh.model", tmp_path / "tokenizer.json"
    (tmp_path / "english.txt").write_text("the owl and the hen met at the mill in the morning of a day in may " * 9)
    train = ("tokenizer", "train", "--vocab-size", "275", "--text")
    assert run(capsys, *train, text_file, "--out", other)[0] == 0
    assert run(capsys, *train, tmp_path / "english.txt", "--type", "byte", "--out", byte_level)[0] == 0
    words = ("tokenizer", "extend", "--special-tokens", "<|im_start|>", "<|im_end|>", "--model")
    code, _, err = run(capsys, *words, byte_level, "--add", other, "--out", tmp_path / "new.json")
    old, new = load_tokenizer(byte_level), load_tokenizer(tmp_path / "new.json")
    assert code == 0 and f"make {new.vocab_size}" in err and "special: <|im_start|> <|im_end|>" in err
    assert "digits in company" not in err
    assert len(new.encode(text)) < len(old.encode(text)) / 2 and new.added["<|im_end|>"].id == new.vocab_size - 1
    save_with_tokenizer(tmp_path / "model", model_of(ModelConfig(16, 1, 2, 275, hidden_dim=16)), old)
    assert run(capsys, *words, tmp_path / "model", "--out", tmp_path / "wider")[0] == 0
    before, (model, tokenizer) = load_model(tmp_path / "model")[0], load_model(tmp_path / "wider")
    assert tokenizer.vocab_size == model.config.vocab_size == 277 and tokenizer.encode(text) == old.encode(text)
    tokens_BT = torch.arange(1, 12)[None]
    torch.testing.assert_close(model(tokens_BT)[..., :275], before(tokens_BT), rtol=0, atol=1e-5)


@pytest.mark.parametrize("words, said", [((), "nothing to add: give --add T.model, --special-tokens TEXT, or both"),
                                         (("--special-tokens", "<s>"), "the special token '<s>' is empty")])
def test_what_adds_nothing_is_refused(words, said, tokenizer_file, tmp_path, capsys):
    code, _, err = run(capsys, "tokenizer", "extend", "--model", tokenizer_file, "--out", tmp_path / "x", *words)
    assert code == 2 and said in err and not (tmp_path / "x").exists()
