"""The .model file: written and read byte for byte, refused with the reason, and never able to hurt."""

import pickle
import random
import struct

import pytest
from mutants import Mutant
from tokenizer_texts import hand_made, own_model, processor, real_text, tiny_model, train_oracle

from minillama.tokenizer import SentencePieceTokenizer, load_tokenizer, train_bpe
from minillama.tokenizer.protobuf import int32_of, read_fields, write_fields
from minillama.tokenizer.sentencepiece import Piece, append_pieces


def test_saving_and_pickling_keep_the_file_byte_for_byte(tmp_path):
    for model in (own_model(), tiny_model()):
        tokenizer = SentencePieceTokenizer(model)
        tokenizer.save(tmp_path / "copy.model")
        assert (tmp_path / "copy.model").read_bytes() == model == pickle.loads(pickle.dumps(tokenizer)).model
        assert load_tokenizer(tmp_path / "copy.model").pieces == tokenizer.pieces


def test_an_int32_is_the_low_half_of_its_varint_in_twos_complement():
    for number in (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 5, 2**64 - 1, 2**64 - 2**31):
        assert int32_of(number) == struct.unpack("<i", struct.pack("<Q", number)[:4])[0]


def test_reading_and_writing_all_fields_gives_the_file_back(weights):
    llama = (weights / "llama_tokenizer.model").read_bytes()

    def again(data, depth):
        return write_fields([(n, w, again(v, depth - 1) if depth and w == 2 else v) for n, w, v in read_fields(data)])

    assert again(llama, 0) == again(llama, 1) == llama


def test_appended_pieces_stand_last_and_unknown_fields_survive():
    model = tiny_model() + write_fields([(200, 2, b"left as it is"), (7, 0, 5), (9, 5, b"1234"), (11, 1, b"12345678")])
    longer = append_pieces(model, [Piece("zz"), Piece("<pad>", 0.0, 3)])
    tokenizer = SentencePieceTokenizer(longer)
    assert (tokenizer.id_to_piece(300), tokenizer.pad_id, tokenizer.vocab_size) == ("zz", 301, 302)
    kept = [field for field in read_fields(longer) if field[0] in (7, 9, 11, 200)]
    assert kept == [(200, 2, b"left as it is"), (7, 0, 5), (9, 5, b"1234"), (11, 1, b"12345678")]
    assert processor(longer).encode("zz") == tokenizer.encode("zz")


def test_sentencepiece_reads_our_file_and_we_read_its():
    theirs = train_oracle(real_text(30_000), 700)
    ours = train_bpe([real_text(30_000)], 700)
    assert processor(ours.model).encode("low 12") == SentencePieceTokenizer(theirs).encode("low 12")


def test_our_options_stand_in_the_fields_in_which_sentencepiece_writes_them():
    """All fields of the normalizer, and of the trainer those that we write, but for the size of the vocabulary."""
    theirs, ours = ({number: {(n, w): v for n, w, v in read_fields(value)} for number, _, value in read_fields(model)
                     if number in (2, 3)} for model in (train_oracle(real_text(20_000), 500), own_model()))
    assert ours[3] == {(2, 2): b"", (3, 0): 1, (5, 0): 1} | theirs[3]  # the defaults, which it leaves out
    shared = {key: value for key, value in ours[2].items() if key != (4, 0)}
    assert shared == {key: theirs[2][key] for key in shared} and len(shared) >= 5
    assert ours[2][4, 0] == 900


@pytest.mark.parametrize(("model", "message"), [
    (lambda: hand_made([Piece("a"), Piece("a")]), "stands twice"),
    (lambda: hand_made([Piece("<0x00>", 0.0, 6)], byte_fallback=False), "must say byte_fallback"),
    (lambda: hand_made([Piece("<0x0G>", 0.0, 6)]), "is a byte piece"),
    (lambda: hand_made([Piece("")]), "0 bytes"),
    (lambda: hand_made([Piece("x" * 8000)]), "8000 bytes"),
    (lambda: hand_made([Piece("<unk2>", 0.0, 2)]), "2 unknown pieces"),
    (lambda: hand_made([Piece("a\0b")]), "NUL"),
    (lambda: tiny_model()[:-3], "cut off"),
    (lambda: b"", "0 unknown pieces"),
    (lambda: write_fields([(2, 2, write_fields([(3, 0, 9)]))]), "is of type 9: only unigram, bpe, word, char are"),
])
def test_models_that_cannot_be_used_are_refused_with_the_reason(model, message):
    with pytest.raises(ValueError, match=message):
        SentencePieceTokenizer(model())


def test_wrong_arguments_are_named():
    tokenizer = SentencePieceTokenizer(tiny_model())
    for ids in ([300], [-1]):
        with pytest.raises(ValueError, match=r"ids 0 to 299"):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TypeError, match="not bytes"):
        tokenizer.encode(b"a")


def test_a_file_of_another_kind_is_refused_with_what_can_be_read(tmp_path):
    (tmp_path / "x").write_bytes(b"PK\3\4 not a tokenizer")
    with pytest.raises(ValueError, match="is no tokenizer we know"):
        load_tokenizer(tmp_path / "x")


def check_mutated_files(count, seed):
    """Flip, cut, insert and repeat bytes: each file is refused with ValueError or gives a tokenizer that works."""
    rng, loaded = random.Random(seed), 0
    for _ in range(count):
        data = bytearray(tiny_model())
        for _ in range(rng.randrange(1, 4)):
            place, what = rng.randrange(len(data)), rng.randrange(4)
            if what == 0:
                data[place] ^= 1 << rng.randrange(8)
            elif what == 1:
                data[place : place + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
            elif what == 2:
                del data[place:]
                data += rng.randbytes(rng.randrange(3))
            else:
                data[place:place] = data[place : place + rng.randrange(40)]
            data = data or bytearray(b"\n")
        try:
            tokenizer = SentencePieceTokenizer(bytes(data))
        except ValueError:
            continue
        loaded += 1
        ids = tokenizer.encode("low é 🦙 aaaa 2023 abab")
        assert all(0 <= index < tokenizer.vocab_size for index in ids) and isinstance(tokenizer.decode(ids), str)
    assert loaded > count // 50  # else the mutations are too coarse to test anything


def test_damaged_files_are_refused_or_work():
    check_mutated_files(500, seed=4)


@pytest.mark.long
def test_ten_thousand_damaged_files_are_refused_or_work():
    check_mutated_files(10_000, seed=5)


def test_a_truncated_file_is_told_apart_from_a_whole_one():
    with pytest.raises(ValueError, match="claims 5 bytes, 4 are left"):
        read_fields(b"\x0a\x05abcd")
    for cut in (1, 3, 50):
        with pytest.raises(ValueError, match="cut off"):
            SentencePieceTokenizer(tiny_model()[:-cut])


MUTANTS = [
    Mutant("minillama.tokenizer.protobuf", "if size > end - at:", "if False:",
           test_a_truncated_file_is_told_apart_from_a_whole_one),
    Mutant("minillama.tokenizer.protobuf", "out.append(value & 0x7F | 0x80)", "out.append(value & 0x7F)",
           test_appended_pieces_stand_last_and_unknown_fields_survive),
    Mutant("minillama.tokenizer.sentencepiece", "fields[:end] + [_piece_field", "fields[:1] + [_piece_field",
           test_appended_pieces_stand_last_and_unknown_fields_survive),
]
