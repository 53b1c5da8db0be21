"""llama2.c's tokenizer.bin: the same vocabulary as the .model it was made from, byte for byte both ways."""

import hashlib
import struct

import pytest
from checkpoints import in_a_folder
from mutants import Mutant
from test_llama2c import STORY_BYTES, STORY_SHA256

from minillama.checkpoint import load_model
from minillama.generate import generate_text
from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.llama2c_vocab import llama2c_vocab, looks_like_llama2c_vocab, read_llama2c_vocab


def records(*pieces):
    body = b"".join(struct.pack("<fi", score, len(text)) + text for text, score in pieces)
    return struct.pack("<i", max(len(text) for text, _ in pieces)) + body


SMALL = records((b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0), (b" a", -1.0), (b"b", -3.0), (b" ", -2.0),
                (b"a", -4.0), (b" ab", -0.5))


# where it may be cut: behind the fourth piece, and behind each that follows
WHOLE = {4 + sum(8 + size for size in (5, 5, 6, 2, *more)) for more in ((), (1,), (1, 1), (1, 1, 1))}


def test_the_kinds_of_pieces_are_told_from_their_places():
    tokenizer = read_llama2c_vocab(SMALL)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.encode("ab b", bos=True) == [1, 7, 5, 4]
    assert tokenizer.encode("z") == [5, 0]  # no byte pieces: unknown
    assert tokenizer.decode([1, 7, 5, 4, 2]) == "ab b"


def test_what_is_written_is_what_was_read(tmp_path):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(llama2c_vocab(read_llama2c_vocab(SMALL)))
    assert path.read_bytes() == SMALL
    trained = train_bpe(["the cat and the hat and the bat"] * 20, 280)
    path.write_bytes(llama2c_vocab(trained))
    assert load_tokenizer(path).pieces == trained.pieces


def test_a_damaged_file_gets_one_clear_line(tmp_path):
    path = tmp_path / "tokenizer.bin"
    for content in (SMALL[:-1], SMALL + b"\0", SMALL[:4], b"\x7f" + SMALL[1:], SMALL[:8] + b"\xff" * 4 + SMALL[12:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no tokenizer we know|not a"):
            load_tokenizer(path)
        with pytest.raises(ValueError, match="cut short"):
            read_llama2c_vocab(content)


def test_a_piece_that_is_no_text_is_named():
    with pytest.raises(ValueError, match=r"piece 3 \(b'\\xff\\xfe'\) is not UTF-8: not a llama2.c tokenizer.bin"):
        read_llama2c_vocab(records((b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0), (b"\xff\xfe", 0.0)))


def test_the_form_is_told_to_the_byte():
    assert looks_like_llama2c_vocab(SMALL)
    for end in range(len(SMALL)):
        assert looks_like_llama2c_vocab(SMALL[:end]) == (end in WHOLE), end
    four = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0), (b"a", 1.0)]
    assert looks_like_llama2c_vocab(records(*four)) and not looks_like_llama2c_vocab(records(*four[:3]))
    assert not looks_like_llama2c_vocab(records(*four, (b"", 0.0)))  # a piece of no bytes
    for longest in (5, 7):  # the first number is the longest piece's size, no less and no more
        assert not looks_like_llama2c_vocab(struct.pack("<i", longest) + records(*four)[4:])
    assert not looks_like_llama2c_vocab(b"\0" * 16)


def test_the_real_files_hold_what_the_model_files_hold(weights, tmp_path):
    exported, model = (load_tokenizer(weights / f"llama_tokenizer.{end}") for end in ("bin", "model"))
    assert exported.pieces == model.pieces and len(model.pieces) == 32000
    for name in ("llama_tokenizer.bin", "tok512.bin"):
        (tmp_path / name).write_bytes(llama2c_vocab(load_tokenizer(weights / name)))
        assert (tmp_path / name).read_bytes() == (weights / name).read_bytes()


def test_stories260k_tells_the_story_of_the_original_program(weights):
    model, tokenizer = load_model(weights / "stories260K.bin")  # tok512.bin lies beside it
    story = "".join(generate_text(model, tokenizer, "", 200)).encode()
    assert len(story) == STORY_BYTES and story.startswith(b"Once upon a time, there was a little girl named Lily.")
    assert hashlib.sha256(story).hexdigest() == STORY_SHA256


VOCAB = "minillama.tokenizer.llama2c_vocab"
MUTANTS = [
    *(Mutant(VOCAB, right, wrong, test_the_form_is_told_to_the_byte) for right, wrong in (
        ("len(data) < 4:", "len(data) < 3:"), ("- at < 8:", "- at < 7:"), ("0 < length", "0 <= length"),
        ("len(data) - at - 8)", "len(data) - at - 7)"), ("len(records) > 3", "len(records) > 2"),
        ("len(records) > 3", "len(records) > 4"), ("== longest else None", "<= longest else None"))),
    Mutant(VOCAB, 'text.replace(" ", SPACE), score, kind', "text, score, kind",
           test_the_kinds_of_pieces_are_told_from_their_places),
    Mutant(VOCAB, "text.strip(\"\\n\") if", "text if", test_the_kinds_of_pieces_are_told_from_their_places),
    Mutant(VOCAB, "max(map(len, texts))", "max(map(len, texts)) + 1",
           lambda: in_a_folder(test_what_is_written_is_what_was_read)),
]
