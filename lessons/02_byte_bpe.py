# %% [markdown] question
# # 02 · Bytes and digits
# Covers: `minillama/tokenizer/byte_bpe.py`, `tests/tokenizer/test_byte_bpe.py`
# Needs: 01
# Time: 30 s
# Teaches: UTF-8, byte fallback, byte-level BPE, the split pattern, single digits, round trip
# Paper: [LLaMA 2023](https://arxiv.org/abs/2302.13971), section 2.1
#
# **Question.** Unicode, the list that gives every character a number, holds over
# 150,000 characters, and more every year. How can a vocabulary of a few thousand pieces
# write every one?
#
# A computer stores any text as bytes, and there are only 256 of those. A tokenizer that
# knows the 256 bytes can write everything; rare characters take more pieces. (Below, a
# byte is written by two digits in base 16, from 00 to ff, and a character's number by
# U+ and such digits.) A rule that turns characters into bytes is a *code*: UTF-8,
# UTF-16 and GBK are three.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $V$ | `len(spelling)` | | how many different tokens there are |
# | $M$ | `len(spelling) - 256` | | how many of them were made by joining |
# | $s$, bytes($s$) | `text` | | a text, and how many bytes it has |
# | $n(s)$ | `len(ids)` | | its length in tokens |

# %% bytes
for character in "a", "é", "汉", "🦙":
    utf8, utf16 = character.encode("utf-8"), character.encode("utf-16-le")
    gbk = character.encode("gbk", "ignore")
    print(f"U+{ord(character):05X}  UTF-8 {utf8.hex(' '):12}  "
          f"UTF-16 {utf16.hex(' '):12}  GBK {gbk.hex(' ') or '-'}")
han = "一个小女孩在河边看见一只白鹅"
assert len(han.encode("utf-8")) == 3 * len(han)
assert len(han.encode("gbk")) == 2 * len(han)

# %% [markdown] utf8
# **One character, many spellings.** UTF-8 takes 1 byte for ASCII (English letters,
# digits, common marks), 2 for most other alphabets of Europe and the Near East, 3 for
# nearly all of Chinese, Japanese and Korean, 4 for most emoji. It is what tokenizers
# use. "A Chinese character has two bytes" is true in GBK, an older Chinese code.
# "Unicode has two bytes a character" means UTF-16, and even there it fails beyond
# character number FFFF: the llama above has four.

# %% naive
from collections import Counter


def replace(ids, pair, new):
    out, place = [], 0
    while place < len(ids):
        joined = tuple(ids[place:place + 2]) == pair
        out.append(new if joined else ids[place])
        place += 2 if joined else 1
    return out


ids = list(b"aaabdaaabac")  # 97 is "a"
spelling = {byte: bytes([byte]) for byte in range(256)}
for new in (256, 257, 258):
    pairs = Counter(zip(ids, ids[1:], strict=False))
    best = max(pairs, key=pairs.get)
    ids = replace(ids, best, new)
    spelling[new] = spelling[best[0]] + spelling[best[1]]
    print(f"{new} = {spelling[new].decode()}   {ids}")

# %% [markdown] formula
# This is lesson 01 again, with the bytes as its alphabet. So
# $$V = 256 + M, \qquad n(s) \le \text{bytes}(s)$$
# ascii: V = 256 + M;  n(s) <= bytes(s)
#
# and no text is ever without an encoding. Two families build on the 256 bytes; the
# formula is the first one's:
#
# - **Byte-level BPE** (GPT-2, Llama 3) joins bytes from the start, as above. First a
#   *split pattern* cuts the text into words, numbers and punctuation; no token crosses
#   a cut.
# - **Byte fallback** (LLaMA, Llama 2) joins characters. Only a character that is not in
#   the vocabulary is spelled in bytes. A space is written `▁`, and one is put before
#   the text, so that its first word looks like any other. That may cost one token more
#   than there are bytes: $n(s) \le \text{bytes}(s) + 1$. So 汉, 3 bytes, is 4 tokens.
#
# They differ in **digits**. LLaMA keeps every digit single: 12345 is five tokens
# (behind the `▁`). Llama 3 cuts numbers into groups of up to three from the left: 12345
# is 123 and 45.

# %% module
import random

from minillama.tokenizer import ByteBpeTokenizer, train_bpe
from minillama.tokenizer.byte_bpe import LLAMA3_WORDS

by_bytes = ByteBpeTokenizer({b: i for i, b in spelling.items()}, {}, [LLAMA3_WORDS])
assert by_bytes.encode("aaabdaaabac") == ids == [258, 100, 258, 97, 99]
print(by_bytes.split("I've 12345 llamas!"))

# so short a text has no 300 pieces in it: without the hard limit, fewer will do
fallback = train_bpe(["the old goat and the old hen"], 300, hard_vocab_limit=False)
assert [fallback.id_to_piece(i) for i in fallback.encode("汉")] \
    == ["▁", "<0xE6>", "<0xB1>", "<0x89>"]
draw = random.Random(0).randrange
for _ in range(10000):  # any characters; D800 to DFFF are none, and ▁ means a space
    codes = [draw(0x110000) >> draw(17) for _ in range(draw(9))]
    text = "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000 and c != 0x2581)
    utf8 = len(text.encode("utf-8"))
    for tokenizer, most in ((by_bytes, utf8), (fallback, utf8 + 1)):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text and len(tokens) <= most
print("10,000 random strings came back letter for letter, from both")

# %% [markdown] experiment
# **Experiment: why single digits?** A tiny LLaMA learns to add from 3,000 of the 10,000
# sums 00 + 00 to 99 + 99, and is asked others that it has never seen. In one run each
# digit is a token: `4 7 + 3 8 = 0 8 5`. In the other each whole number is one:
# `47 + 38 = 85`. The second text is shorter (and has one answer token to learn from
# where the first has three), but to the model the numbers are 199 names without any
# resemblance. That 47 and 48 are neighbours must be learned from examples. Here `+` and
# `=` are tokens too; only the tokens after `=` count as the answer.
#
# One run of each takes some seconds. `02_byte_bpe.json` holds the same for seeds 0, 1
# and 2; `REMAKE=1 python3 lessons/02_byte_bpe.py` measures them again.

# %% data
import torch
from torch.nn.functional import cross_entropy

from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW, clip_gradients
from minillama.transformer import Transformer

STEPS = 600


def sums(single):
    """All 10,000 sums in random order, and how many tokens a result has."""
    pairs = torch.cartesian_prod(torch.arange(100), torch.arange(100))
    order = torch.randperm(10000, generator=torch.Generator().manual_seed(0))
    a, b = pairs[order].T
    plus, equals = torch.full_like(a, 10), torch.full_like(a, 11)
    if not single:  # tokens 0 to 198 are numbers, 199 is + and 200 is =
        return torch.stack([a, plus + 189, b, equals + 189, a + b], 1), 1
    c = a + b
    left = a // 10, a % 10, plus, b // 10, b % 10, equals
    return torch.stack([*left, c // 100, c // 10 % 10, c % 10], 1), 3


# %% measure
def learn(single, seed):
    """Share of 1,000 unseen sums that come out right, after every 50 steps."""
    rows, n = sums(single)
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(64, 2, 4, int(rows.max()) + 1, hidden_dim=128,
                                    max_seq_len=16), torch_attention)
    optimizer, right = AdamW(model.parameters()), []
    for step in range(STEPS):
        optimizer.lr = learning_rate(step, STEPS, 3e-3, warmup_steps=20)
        batch = rows[torch.randint(0, 3000, (64,))]
        logits, answers = model(batch[:, :-1])[:, -n:], batch[:, -n:]
        loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        if step % 50 == 49:
            with torch.no_grad():
                said = model(rows[3000:4000, :-1])[:, -n:].argmax(-1)
            same = (said == rows[3000:4000, -n:]).all(1)
            right.append(round(same.double().mean().item(), 3))
    return right


live = {"single": learn(True, seed=0), "whole": learn(False, seed=0)}
print({name: curve[-1] for name, curve in live.items()}, "of unseen sums are right")

# %% figure
import json
import os

from minillama.course.lesson import ROOT
from minillama.plots import CONTRAST, OURS, figure, label_end, show

path = ROOT / "lessons" / "02_byte_bpe.json"
if os.environ.get("REMAKE"):
    curves = {name: [learn(name == "single", seed) for seed in range(3)]
              for name in live}
    path.write_text(json.dumps(curves) + "\n")
stored = json.loads(path.read_text())
picture, axes = figure("Digit by digit, a tiny model learns to add", "training step",
                       "unseen sums that are right, %")
for name, colour in (("single", OURS), ("whole", CONTRAST)):
    for curve in stored[name]:
        xs, ys = range(50, STEPS + 1, 50), [100 * share for share in curve]
        axes.plot(xs, ys, color=colour, linewidth=1.2)
    label = "single\ndigits" if name == "single" else "whole\nnumbers"
    label_end(axes, xs, ys, label, colour)
axes.set(xlim=(0, 700), ylim=(0, 102))
ends = {name: [curve[-1] for curve in stored[name]] for name in stored}
show(picture, f"Unseen sums right, three seeds: by single digits {ends['single']}, "
     f"by whole numbers {ends['whole']}")

# %% [markdown] exercise
# With digits, 100 facts (ten digits by ten) and a rule for the carry are enough for any
# sum, and every example shows some of them. With whole numbers, each of the 10,000 sums
# is nearly a fact of its own. LLaMA pays for single digits with longer texts wherever
# numbers stand.
#
# **Exercise.** Write three functions. `split_digits` returns the parts of a text, each
# digit alone. `encode` returns its pieces, with byte fallback, and `decode` returns the
# text again. The checks throw random strings at them.
#
# Open `lessons/exercises/ex02_byte_bpe.py`, then run `python3 run.py check 2`.

# %% closing
for name in live:
    assert abs(live[name][-1] - stored[name][0][-1]) < 0.3  # other roundings
assert min(ends["single"]) > 0.6 and max(ends["whole"]) < 0.2
assert live["single"][-1] > 0.6 and live["whole"][-1] < 0.2
digits = [fallback.id_to_piece(i) for i in fallback.encode("12345")]
assert len(digits) == 1 + 5 and by_bytes.split("12345") == ["123", "45"]
print("You should see: 3 bytes a Han character; aaabdaaabac as 258 100 258 97 99; "
      f"unseen sums right: {live['single'][-1]:.0%} by single digits (above 60), "
      f"{live['whole'][-1]:.0%} by whole numbers (below 20)")
