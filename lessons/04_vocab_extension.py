# %% [markdown] question
# # 04 · A second language
# Covers: `minillama/tokenizer/extend.py`, `minillama/train/vocabulary.py`, `tests/tokenizer/test_extend.py`
# Needs: 01, 02
# Time: 40 s
# Teaches: vocabulary extension, merging tokenizers, new rows at both ends, mean start, staged training
# Paper: [Cui et al. 2023](https://arxiv.org/abs/2304.08177), section 2
#
# **Question.** LLaMA was trained on English above all, and its vocabulary shows it: of
# 32,000 pieces only some 700 are Chinese characters. All other Chinese characters it
# must spell byte by byte, three tokens each. How does it learn Chinese without
# forgetting English?
#
# Chinese-LLaMA's answer has three steps. Add pieces to the vocabulary. Give the model a
# row for each of them, at both its ends. Then train, in two stages; the first of them
# its authors later advised against, and we shall see what it is worth.
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $V$ | `V` | | pieces of the old vocabulary |
# | $n$ | `n` | | pieces that are added |
# | $E$ | `tok_embeddings` | (V, 64) | the table: row $i$ is the vector of piece $i$ |
# | $W$ | `output` | (V, 64) | the head: row $i$ scores piece $i$ as the next token |
# | $p_0$, $p$ | | | probability of a next token, before and after the growth |

# %% tokenizers
from lessons import chinese_stories
from minillama.corpus import stories
from minillama.tokenizer import train_bpe

english = [story.text for story in stories.documents(0, 1400)]
chinese = [story.text for story in chinese_stories.documents(0, 1200)]
unseen = [story.text for story in chinese_stories.documents(1, 30)]
told = [story.text for story in stories.documents(1, 30)]  # unseen, English
mixed = [text for i in range(400) for text in (*chinese[3 * i:3 * i + 3],
                                               english[1000 + i])]
print(unseen[0])  # In May, Da Ming plants a blue seed by the pond. He waits 61 days ...

old = train_bpe(english[:1000], 450)  # what the English model was trained with
other = train_bpe(chinese, 600)  # knows Chinese words


def tokens_per_character(tokenizer, texts=unseen):
    return sum(len(tokenizer.encode(text)) for text in texts) / len("".join(texts))


before = tokens_per_character(old)
print(f"{before:.2f} tokens a character; the first character takes",
      [old.id_to_piece(i) for i in old.encode(unseen[0])[1:4]])

# %% [markdown] merge
# **The merge.** The pieces that the old vocabulary lacks are put behind it, so every
# old piece keeps its number. For LLaMA and 20,000 Chinese pieces, of which it knew
# 2,047, that makes
# $$32000 + (20000 - 2047) = 49953$$
# ascii: 32000 + (20000 - 2047) = 49953
#
# Each piece has a *score*, which decides what is joined first. LLaMA's own are zero and
# below; the new ones get scores above, and so go first. (Chinese-LLaMA gave all of them
# zero. Of equal scores its encoder joins the leftmost pair. Programs that follow an
# ordered list of merges cannot do that.)
#
# **A trap.** LLaMA cuts numbers into single digits (lesson 02). A tokenizer trained
# without that rule has pieces like `20` and `23`, and in the merge they win: 2023 is
# two tokens again. Chinese-LLaMA took 594 such pieces along. `split_digits=True` leaves
# them out.
#
# **Characters alone.** Ziya, another Chinese LLaMA, added single characters alone, to
# 39,410 pieces in all. None of these characters needs bytes any more, and none takes
# less than a token.

# %% naive
from minillama.tokenizer.extend import extend_tokenizer
from minillama.tokenizer.sentencepiece import Piece

known = {piece.text for piece in old.pieces}
appended = [piece.text for piece in other.pieces if piece.text not in known]
new = extend_tokenizer(old, other.pieces, split_digits=True)
V, n = old.vocab_size, len(appended)
assert [piece.text for piece in new.pieces] == [p.text for p in old.pieces] + appended
assert new.encode(english[0]) == old.encode(english[0])  # English is cut as before

careless = extend_tokenizer(old, [Piece("17")])  # a piece of two digits comes along
for merged in (new, careless):
    print("17 is", [merged.id_to_piece(i) for i in merged.encode("17")])
after = tokens_per_character(new)
print(f"{V} + {n} = {new.vocab_size} pieces; {after:.2f} tokens a character")
singles = [piece for piece in other.pieces if len(piece.text) == 1]
signs = extend_tokenizer(old, singles)
single = tokens_per_character(signs)
print(f"characters alone: {signs.vocab_size} pieces; {single:.2f} tokens a character")
for seed in (2, 3):  # and on two other draws of unseen stories
    texts = [story.text for story in chinese_stories.documents(seed, 30)]
    assert 3.1 > tokens_per_character(old, texts) > 4 * tokens_per_character(new, texts)
    assert tokens_per_character(new, texts) < 0.7
    assert 1 < tokens_per_character(signs, texts) < 1.1

# %% [markdown] formula
# **The rows.** The model needs $n$ new rows in $E$, or it cannot read the new pieces,
# and $n$ in $W$, or it can never say them. What numbers should stand there? We take the
# mean of the old rows.
#
# In the head this has a reason. Scores become probabilities by the softmax: $e$ to the
# power of each score, divided by the sum over all pieces. A mean row's score is the
# mean of the $V$ old scores, and $e$ to the power of a mean is never more than the mean
# of the powers. So each new piece adds at most one $V$-th of the old sum, and all $n$
# together stretch it by $1 + n/V$ at most. So every old token $w$ keeps at least
# $V/(V + n)$ of its old probability: 64 % in LLaMA's case. In natural logarithms, whose
# unit is the *nat*:
# $$\ln\, p(w) \ge \ln\, p_0(w) - \ln\, (1 + n/V)$$
# ascii: ln p(w) >= ln p0(w) - ln(1 + n/V)

# %% model
import copy

import torch

from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.train.vocabulary import grow_vocabulary
from minillama.transformer import Transformer

torch.manual_seed(0)
base = Transformer(ModelConfig(64, 2, 4, V, hidden_dim=128), torch_attention)
grown = copy.deepcopy(base)
grow_vocabulary(grown, V + n)
for part in ("tok_embeddings", "output"):
    rows = getattr(base, part).weight.detach()
    ours = torch.cat([rows, rows.mean(0, keepdim=True).expand(n, -1)])
    assert torch.equal(getattr(grown, part).weight, ours)
sample = torch.tensor([old.encode(english[0], bos=True)])
with torch.no_grad():
    lost = base(sample).log_softmax(-1) - grown(sample).log_softmax(-1)[..., :V]
bound = torch.tensor(1 + n / V).log()
assert lost.max() <= bound + 1e-5
print(f"nats that an old token lost: {lost.max():.3f} at most, allowed {bound:.3f}")

# %% [markdown] experiment
# **Experiment.** A small LLaMA learns English stories. Then it gets Chinese ones, with
# one English story for every three, so that it does not forget. Stage 1 trains the two
# tables alone; the layers between them stay as they are. Stage 2 also trains adapters,
# small matrices beside every linear layer (LoRA, lesson 20). A second run does the same
# with the old vocabulary, which sees Chinese as bytes. Tokens differ in size, so we
# compare nats per *character*: the losses of all tokens, added up, divided by the
# number of characters.
#
# **Is stage 1 needed?** Chinese-LLaMA's 7B had it, with $E$ alone. Its authors found
# that it converges slowly; their 13B began with stage 2, and they came to advise that
# for everyone short of time. So a third run spends all its steps in stage 2. We do all
# three from three English models, each with random numbers of its own.

# %% train
import numpy as np
from torch.nn.functional import cross_entropy

from minillama.train.data import Batches, Tokens
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW, clip_gradients
from minillama.train.perplexity import model_nats
from minillama.train.vocabulary import train_vocabulary


def row(texts, tokenizer):
    ids = [i for text in texts for i in tokenizer.encode(text, bos=True, eos=True)]
    return Tokens(np.array(ids), tokenizer.vocab_size)


def train(model, tokens, steps, max_lr, tokenizer=None):
    """With a tokenizer: the nats a character of unseen Chinese after every 20 steps."""
    trained, curve = [p for p in model.parameters() if p.requires_grad], []
    optimizer, batches = AdamW(trained, weight_decay=0.0), Batches(tokens, 16, 48, 0)
    for step in range(steps):
        optimizer.lr = learning_rate(step, steps, max_lr, warmup_steps=10)
        tokens_BT, targets_BT = batches(step)
        loss = cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(trained, 1.0)
        optimizer.step()
        if tokenizer and step % 20 == 19:
            curve.append(nats(model, tokenizer, unseen))
    return curve

# %% stages
def nats(model, tokenizer, texts):
    return model_nats(model, row(texts, tokenizer), 64)[0] / sum(map(len, texts))


def learn(start, tokenizer, first):
    """Grow; `first` steps of stage 1, stage 2 up to 120; curve, and English after."""
    model, tokens = copy.deepcopy(start), row(mixed, tokenizer)
    grow_vocabulary(model, tokenizer.vocab_size)
    curve = [nats(model, tokenizer, unseen)]
    if first:
        train_vocabulary(model)  # stage 1: the two tables alone
        curve += train(model, tokens, first, 1e-2, tokenizer)
        pairs = zip(model.layers.parameters(), start.layers.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    add_lora(model, LoRAConfig(8, targets=("attention.*", "feed_forward.*")))
    train_vocabulary(model, alone=False)  # stage 2: adapters and the two tables
    curve += train(model, tokens, 120 - first, 1e-2, tokenizer)
    return curve, nats(model, tokenizer, told)


ends = []  # of each seed: nats by both stages, by stage 2 alone, as bytes; English
for seed in range(3):
    torch.manual_seed(seed)
    start = Transformer(base.config, torch_attention)
    train(start, row(english[:1000], old), 120, 8e-3)
    before_nats = nats(start, old, told)
    (pieces, english_after), straight = learn(start, new, 60), learn(start, new, 0)[0]
    spelled = learn(start, old, 60)[0]  # as bytes
    ends.append((pieces[-1], straight[-1], spelled[-1], english_after, before_nats))

# %% figure
from minillama.plots import CONTEXT, CONTRAST, ORACLE, OURS, figure, show

curves = {"bytes": spelled, "pieces": pieces}
for name, curve in curves.items():
    print(name, " ".join(f"{x:.2f}" for x in curve), "nats a character")
for staged, alone, as_bytes, *_ in ends:
    print(f"a seed: pieces {staged:.2f} by both stages, {alone:.2f} by stage 2 alone; "
          f"bytes {as_bytes:.2f}")
least = chinese_stories.entropy_bits() * np.log(2) / np.mean([len(s) for s in chinese])
factor = curves["bytes"][-1] / curves["pieces"][-1]
picture, axes = figure(f"Pieces of its own make Chinese {factor:.0f} times cheaper",
                       "training step", "nats per unseen character")
for (name, curve), colour in zip(curves.items(), (CONTRAST, OURS), strict=True):
    axes.plot(range(0, 121, 20), curve, color=colour, marker="o", ms=3)
    axes.annotate(f"as {name}: {curve[-1]:.2f}", (122, curve[-1]), color=colour,
                  va="center")
axes.axhline(least, color=ORACLE, linestyle="--", linewidth=1.2)
axes.annotate(f"entropy: {least:.2f}", (122, least * 0.93), color=ORACLE, va="top")
axes.axvline(60, color=CONTEXT, linewidth=1)
for place, words in ((4, "stage 1: tables"), (64, "stage 2: and adapters")):
    axes.annotate(words, (place, 55), color=CONTEXT)
axes.set(yscale="log", xlim=(0, 155), ylim=(0.17, 80), xticks=range(0, 121, 20))
ticks = 0.3, 1, 3, 10, 30
axes.set_yticks(ticks, map(str, ticks))
axes.minorticks_off()
show(picture, f"As bytes {curves['bytes'][-1]:.2f} nats a character, as pieces "
     f"{curves['pieces'][-1]:.2f}, entropy {least:.2f}")

# %% [markdown] exercise
# The loss begins so high because the model never saw Chinese. And the pieces win twice:
# a character is less than one guess in place of three, and a window of 48 tokens holds
# more than four times the text.
#
# Stage 1 was not needed: given all the steps in stage 2, each of the three models ends
# within 20 % of where it ends by both stages. As bytes, each ends at more than five
# times that.
#
# A margin note: 345 of Chinese-LLaMA's new pieces can never be used. The encoder builds
# a piece by joining two smaller ones, and for those no smaller ones are there.
#
# **Exercise.** Merge two vocabularies, digits kept apart, and grow a table, in
# `lessons/exercises/ex04_vocab_extension.py`. Then `python3 run.py check 4`.

# %% closing
bytes_end, pieces_end = (curve[-1] for curve in curves.values())
assert 3.1 > before > 4 * after and after < 0.7 and 1 < single < 1.1
for staged, alone, as_bytes, english_end, english_start in ends:  # of three seeds
    assert abs(alone / staged - 1) < 0.2 and staged < 0.6 and as_bytes > 5 * staged
    assert english_end < english_start + 0.1
assert curves["pieces"][3] < 2
print(f"You should see: {before:.2f} tokens a character become {after:.2f}; after "
      f"equal training {bytes_end:.2f} nats a character as bytes, {pieces_end:.2f} as "
      f"pieces (a fifth or less); English at {english_after:.2f} beside "
      f"{before_nats:.2f} before; with stage 1 and without it the same within 20 %")
