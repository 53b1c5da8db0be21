"""Exercise 02, solved: write every text with few pieces, digits kept apart."""
import re

BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def split_digits(text):
    """Cut a text so that every digit 0 to 9 stands alone and all else stays together: a list of str."""
    return re.findall(r"[0-9]|[^0-9]+", text)


def encode(text, vocabulary):
    """Known characters as themselves, others as the bytes of their UTF-8."""
    pieces = []
    for character in text:
        if character in vocabulary:
            pieces.append(character)
        else:
            pieces += [f"<0x{byte:02X}>" for byte in character.encode("utf-8")]
    return pieces


def decode(pieces):
    """The text again: every piece as bytes, read as UTF-8 in one go."""
    data = b""
    for piece in pieces:
        match = BYTE.fullmatch(piece)
        data += bytes([int(match[1], 16)]) if match else piece.encode("utf-8")
    return data.decode("utf-8", errors="replace")
