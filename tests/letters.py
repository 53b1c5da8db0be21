"""A tokenizer of letters and a template of nothing but question and answer, for the tests of `rlhf`."""

from minillama.tokenizer.added_tokens import Tokenizer
from minillama.train.templates import BOS, EOS, Segment


class Letters(Tokenizer):
    """A tokenizer of 30 letters; 0 to 2 are unknown, begin and end."""

    alphabet = "...abcdefghijklmnopqrstuvwxyz ?"
    vocab_size, bos_id, eos_id = len(alphabet), 1, 2

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [self.alphabet.index(letter) for letter in text] + [2] * eos

    def decode(self, ids):
        return "".join(self.alphabet[i] for i in ids)

    def decoder(self):
        class Decoder:
            push = staticmethod(lambda i: Letters.alphabet[i])
            flush = staticmethod(lambda: "")
        return Decoder()


def bare(prompt, answer=None):
    return [BOS, Segment(prompt)] + ([Segment(answer, learn=True), EOS] if answer is not None else [])
