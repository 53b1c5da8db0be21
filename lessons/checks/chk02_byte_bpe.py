"""Checks of exercise 02: small cases by hand, then random strings there and back."""
import random

from minillama.course.exercise import Wrong, close

HINTS = {
    "split_digits": ("Each digit is a part of its own; everything between two digits is one part.",
                     "No part is empty, and the parts put together are the text.",
                     "Only 0 to 9: str.isdigit also says yes to characters such as ² and ٣."),
    "encode": ("A character outside the vocabulary becomes one piece for each byte of its UTF-8.",
               "The byte 10 is written <0x0A>: two hex digits, capital letters."),
    "decode": ("Collect the bytes first: one byte of a character says nothing by itself.",
               "A known character can be bytes as well: turn all pieces into bytes, put them together, decode once.",
               "Bytes that form no character become U+FFFD: bytes.decode has an argument for that."),
    "round_trip": ("Decoding what was encoded must give back any text, also empty ones and new lines.",),
}


def check_split_digits(learner):
    for text, wanted in (("", []), ("7", ["7"]), ("a12b", ["a", "1", "2", "b"]), ("12345", list("12345")),
                         ("in 2023, 47 hens", ["in ", "2", "0", "2", "3", ", ", "4", "7", " hens"])):
        got = learner.split_digits(text)
        if isinstance(got, list) and "" in got:
            raise Wrong(f"split_digits({text!r}) has an empty part: {got}", 1)
        close(f"split_digits({text!r})", got, wanted, 0, hint=0)
    close("split_digits('x²٣\\n')", learner.split_digits("x²٣\n"), ["x²٣\n"], 0, hint=2)


def check_encode(learner):
    known = set("abc汉")
    for text, wanted in (("", []), ("cab", ["c", "a", "b"]), ("汉", ["汉"]), ("字", ["<0xE5>", "<0xAD>", "<0x97>"]),
                         ("a🦙", ["a", "<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"])):
        close(f"encode({text!r})", learner.encode(text, known), wanted, 0, hint=0)
    close("encode of a new line", learner.encode("\n", known), ["<0x0A>"], 0, hint=1)


def check_decode(learner):
    try:
        got = learner.decode(["a", "<0xE5>", "<0xAD>", "<0x97>", "b"])
    except UnicodeDecodeError as error:
        raise Wrong(f"decode raised {error}", 0) from None
    close("decode of three bytes of one character", got, "a字b", 0, hint=0)
    close("decode of nothing", learner.decode([]), "", 0, hint=1)
    close("decode of a piece that only looks like a byte", learner.decode(["<", "0xE5>"]), "<0xE5>", 0, hint=1)
    try:
        got = learner.decode(["a", "<0xE5>", "b"])
    except UnicodeDecodeError as error:
        raise Wrong(f"decode of a lone byte raised {error}", 2) from None
    close("decode of a lone byte", got, "a\ufffdb", 0, hint=2)


def check_round_trip(learner):
    rng, known = random.Random(0), set("abcdefghijklmnopqrstuvwxyz é汉")
    for _ in range(3000):
        codes = [rng.randrange(0x110000) >> rng.randrange(17) for _ in range(rng.randrange(12))]
        text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        close(f"{text!r}, encoded and decoded", learner.decode(learner.encode(text, known)), text, 0, hint=0)
        close(f"parts of {text!r} put together", "".join(learner.split_digits(text)), text, 0, hint=0)


WRONG = [
    ('r"[0-9]|[^0-9]+", text', 'r"[0-9]+|[^0-9]+", text', "split_digits", 0),
    ('re.findall(r"[0-9]|[^0-9]+", text)', 're.split(r"([0-9])", text)', "split_digits", 1),
    ('r"[0-9]|[^0-9]+", text', 'r"[²0-9]|[^²0-9]+", text', "split_digits", 2),
    ("byte:02X", "byte:X", "encode", 1),
    ("byte:02X", "byte:02x", "encode", 0),
    ('character.encode("utf-8")]', 'character.encode("utf-16-le")]', "encode", 0),
    ('data += bytes([int(match[1], 16)])', 'data += chr(int(match[1], 16)).encode()', "decode", 0),
    (', errors="replace"', "", "decode", 2),
    ('r"[0-9]|[^0-9]+", text', 'r"[0-9]|[^0-9]", text', "split_digits", 0),
    ("if character in vocabulary:", "if character not in vocabulary:", "encode", 0),
    ("int(match[1], 16)", "int(match[1], 10)", "decode", 0),
    ('else piece.encode("utf-8")', 'else piece.encode("latin-1", "replace")', "round_trip", 0),
]
