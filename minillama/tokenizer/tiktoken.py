"""Llama 3's tokenizer file: one line per token, its bytes in base64 and its rank, which is its id.

256 special tokens follow the last rank. A pair of neighbours ranks by the id of what they join to, and a word that
is in the table is one token at once: some tokens cannot be built by joining.
Source: meta-llama/llama-models, models/llama3/tokenizer.py.
"""

import base64
import binascii
import re

from .byte_bpe import LLAMA3_WORDS, ByteBpeTokenizer

BEGIN, END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
SPECIALS = [BEGIN, END, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", PAD, "<|step_id|>",
            "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"]
SPECIALS += [f"<|reserved_special_token_{2 + n}|>" for n in range(256 - len(SPECIALS))]
FOREIGN = {50256: "GPT-2", 151643: "Qwen", 199998: "GPT-4o", 200000: "Llama 4"}  # by the number of their ranks
FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,9}\r?(\n|$)")


def looks_like_tiktoken(data):
    """Whether the first line is base64, a space and a rank."""
    return FIRST_LINE.match(data[:1000]) is not None


def read_tiktoken(data):
    """The tokenizer in the bytes of such a file. ValueError for a damaged line, a gap in the ranks, a missing byte."""
    ids = {}
    for number, line in enumerate(data.splitlines(), 1):
        token, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(token, validate=True)
        except binascii.Error as error:
            raise ValueError(f"line {number} of the tokenizer file is not base64 ({error}): fetch it again") from None
        if not token or not re.fullmatch(rb"\d{1,9}", rank) or token in ids:
            raise ValueError(f"line {number} of the tokenizer file, {line[:40]!r}, is not a new token and its rank")
        ids[token] = int(rank)
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"the {len(ids)} ranks of the tokenizer file do not count from 0 up without a gap")
    if owner := FOREIGN.get(len(ids)):
        raise ValueError(f"{len(ids)} ranks are those of {owner}, whose text is not cut into words as Llama 3's is")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ids]:
        raise ValueError(f"the tokenizer file has no token for the byte 0x{missing[0]:02X}: it is cut short")
    specials = {name: len(ids) + n for n, name in enumerate(SPECIALS)}
    return ByteBpeTokenizer(ids, specials, [LLAMA3_WORDS], bos=BEGIN, eos=END, pad=PAD, file=data)
