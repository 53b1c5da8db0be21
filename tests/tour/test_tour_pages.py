"""Laws of the tour's pictures: what they show is what the model computes."""

import html
import math
import re
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import to_hex
from mutants import Mutant
from pictures import panels, parts, taken

from minillama.config import ModelConfig
from minillama.corpus.char_ngram import CharNgram, xz_bits_per_character
from minillama.corpus.forum import quality, threads
from minillama.plots import CONTEXT, CONTRAST, OURS
from minillama.tokenizer import train_bpe
from minillama.tour import report, tour_pages
from minillama.tour.tour_pages import attention_maps, curve
from minillama.train.data import Tokens
from minillama.transformer import Transformer


def test_attention_maps_are_probabilities_that_never_see_the_future_and_leave_the_model_as_it_was():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(24, 2, 4, 50, n_kv_heads=2, max_seq_len=32)).eval()
    ids = torch.randint(50, (1, 13))
    before, attends = model(ids), [block.attention.attend for block in model.layers]
    maps_LHTT = attention_maps(model, ids[0].tolist())
    assert maps_LHTT.shape == (2, 4, 13, 13)
    torch.testing.assert_close(maps_LHTT.sum(-1), torch.ones(2, 4, 13))
    assert (maps_LHTT.triu(1) == 0).all() and (maps_LHTT >= 0).all()
    assert torch.equal(model(ids), before) and [block.attention.attend for block in model.layers] == attends


def test_a_map_mixes_the_values_into_the_head_s_output():
    """The first layer's output, rebuilt from its map by hand: wo (map @ v), head by head."""
    torch.manual_seed(1)
    model = Transformer(ModelConfig(16, 1, 2, 20, max_seq_len=16)).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    layer, seen = model.layers[0].attention, []
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    maps_HTT = attention_maps(model, ids[0].tolist())[0]
    x_TD, out_TD = seen[0][0][0], seen[0][1][0]
    with torch.inference_mode():
        v_HTd = layer.wv(x_TD).view(5, 2, 8).transpose(0, 1)
        rebuilt = layer.wo((maps_HTT @ v_HTd).transpose(0, 1).flatten(1))
    torch.testing.assert_close(rebuilt, out_TD)


def test_the_curve_is_in_bits_per_character():
    tokens = flat_tokens(30, 60)
    history = [{"step": 0, "held_out_loss": math.log(4)}, {"step": 1, "loss": 9.0}, {"step": 2, "held_out_loss": 0.0}]
    steps, values = curve(history, tokens)
    # log(4) nats are 2 bits a token; 30 tokens spread over 60 characters: 1 bit a character
    assert steps == (0, 2) and values == (1.0, 0.0)


# ---- the pages

class Document(NamedTuple):
    text: str
    bits: float


def flat_tokens(n, characters):
    return Tokens(np.zeros(n, np.int64), 4, documents=1, characters=characters)


HISTORY = [{"step": 0, "held_out_loss": math.log(16)}, {"step": 3, "loss": 9.0, "seconds": 1.25},
           {"step": 6, "held_out_loss": math.log(2), "seconds": 2.5}]  # 4 bits a token, then 1; 2 characters a token


def test_the_corpus_page_shows_a_story_and_a_post_with_their_bits():
    documents = [Document("How do I sleep?", 8.25), Document("Once <upon> a time.", 30.04), Document("Twice.", 1.0),
                 Document("How do I eat?", 2.0)]
    assert parts(tour_pages.corpus_page(documents, 17.26, 3, 50))[2:] == [
        "Once <upon> a time.", "30.0 bits", "How do I sleep?", "8.2 bits",
        "4 documents to train on; 3 of the 50 held-out ones also occur there, by chance."]
    heading, sentence = parts(tour_pages.corpus_page(documents, 17.26, 3, 50))[:2]
    assert heading == "The corpus knows its own entropy" and "17.3 bits on average" in sentence


def test_the_tokenizer_page_cuts_a_text_as_the_tokenizer_does():
    tokenizer = train_bpe(["low lower lowest"], 300, hard_vocab_limit=False)
    text = "low 12"
    page = tour_pages.tokenizer_page(tokenizer, text)
    cut = [html.unescape(piece) for piece in re.findall('<span class="token"[^>]*>(.*?)</span>', page)]
    assert cut == [tokenizer.id_to_piece(i).replace("\u2581", " ") for i in tokenizer.encode(text)] and cut[0] == " low"
    heading, sentence, _, last = parts(page)
    assert heading == "Text becomes tokens" and f"{tokenizer.vocab_size} pieces" in sentence
    assert last.startswith(f"6 characters, {len(cut)} tokens.")


def test_the_page_of_pretraining_shows_the_fall_to_the_entropy(monkeypatch):
    pictures = taken(monkeypatch, report)
    heading, sentence, figure, last = parts(tour_pages.pretrain_page(HISTORY, flat_tokens(30, 60), [1, 2, 3], 5.0))
    assert heading == "Pretraining: predict the next token" and last.startswith("6 steps in 4 seconds.")
    assert sentence.startswith("From 2.00 bits") and "down to 0.500" in sentence and "holds 0.250" in sentence
    assert figure == "[Held-out loss from 2.00 to 0.500 bits per character; entropy 0.250]"
    ((picture, _),) = pictures
    (shown,) = panels(picture)
    assert shown["title"] == "Pretraining falls towards the entropy of the corpus"
    assert shown["lines"][0] == ([0, 6], [2.0, 0.5], OURS, "-") and shown["lines"][1][1] == [0.25, 0.25]
    assert [words for words, *_ in shown["texts"]] == ["held-out", "entropy: no model can be below"]
    assert picture.axes[0].get_yscale() == "log"


def test_heads_are_shown_from_the_nearest_sighted_to_the_farthest_with_how_far_they_look(monkeypatch):
    """Four heads that look exactly 0, 1, 2 and 3 tokens back, the first tokens at the first."""
    pictures, asked = taken(monkeypatch, report), []
    T = 5
    maps_LHTT = torch.stack([torch.eye(T)[(torch.arange(T) - back).clamp(min=0)] for back in (3, 0, 2, 1)])
    monkeypatch.setattr(tour_pages, "attention_maps", lambda *given: asked.append(given) or
                        maps_LHTT.view(2, 2, T, T))
    tokenizer = train_bpe(["low lower lowest"], 300, hard_vocab_limit=False)
    page = tour_pages.attention_page("model", tokenizer, "low lower 12", shown=T)
    ids = tokenizer.encode("low lower 12")
    assert asked == [("model", [1, *ids[:T - 1]])]
    reach = {back: sum(min(back, t) for t in range(T)) / T for back in range(4)}  # 0, 0.8, 1.4, 1.8
    ((picture, alt),) = pictures
    *maps, _ = picture.axes  # the last is the colour bar
    named = [axes.get_title("left") or axes.get_title() for axes in maps]
    assert named == ["layer 0, head 1: 0.0 back", f"layer 1, head 0: {reach[2]:.1f} back", "layer 0, head 0: 1.8 back"]
    for axes, map_TT in zip(maps, (maps_LHTT[1], maps_LHTT[2], maps_LHTT[0]), strict=True):
        assert (torch.tensor(axes.get_images()[0].get_array()) == map_TT).all()
    assert [tick.get_text() for tick in picture.axes[0].get_xticklabels()][:2] == ["<s>", "_low"]
    assert picture.get_suptitle() == "Near-sighted and far-sighted heads"
    assert alt == "Attention maps of three heads that look 0.0, 1.4, 1.8 tokens back"
    heading, sentence, _ = parts(page)
    assert heading == "Where the heads look" and "look 0.0 to 1.8 tokens back on average" in sentence


def test_the_attention_page_shows_26_tokens_unless_told_otherwise(monkeypatch):
    seen = []
    monkeypatch.setattr(tour_pages, "attention_maps", lambda model, ids: seen.append(ids) or
                        torch.eye(len(ids)).expand(1, 3, -1, -1))
    tokenizer = train_bpe(["low lower lowest"], 300, hard_vocab_limit=False)
    tour_pages.attention_page(None, tokenizer, "x" * 40)
    assert [len(ids) for ids in seen] == [26]


def test_the_talk_page_shows_five_answers_and_the_mean_of_all():
    question, (first, *_) = threads("talk", 1)[0]
    answers = [(question, f"Number {i}.") for i in range(6)] + [(question, first.text)]
    mean = sum(quality(*pair) for pair in answers) / 7
    heading, sentence, *quotes, last = parts(tour_pages.talk_page(answers))
    assert quotes == [f"{question}Number {i}." for i in range(5)] and heading == "It talks" and "0.7" in sentence
    assert f"The mean of 7 answers is {mean:+.2f}" in last and mean != 0


def test_levels_are_of_two_three_and_five_characters_and_of_xz_with_and_without_the_rest():
    split = ["abcabcabd " * 9, "bcabda"], ["abcabc", "abd"]
    levels = tour_pages.text_levels(split)
    train, held_out = "\n".join(split[0]), "\n".join(split[1])
    assert list(levels) == ["2 characters of context", "3 characters of context", "5 characters of context",
                            "xz -9, having read the rest", "xz -9 alone"]
    wanted = [CharNgram(order).fit(train).bits_per_character(held_out) for order in (3, 4, 6)]
    assert list(levels.values()) == [*wanted, xz_bits_per_character(held_out, train), xz_bits_per_character(held_out)]


def test_three_openings_of_six_words_are_continued_each_with_a_seed_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(tour_pages, "generate_text", lambda *given, **named: asked.append((given, named)) or
                        iter(["so ", "on"]))
    long = [" ".join(f"{letter}{i}" for i in range(13)) for letter in "abcd"]
    short = " ".join(f"s{i}" for i in range(12))
    made = tour_pages.continuations("model", "tokenizer", [short, *long])
    assert made == [(f"{letter}0 {letter}1 {letter}2 {letter}3 {letter}4 {letter}5", "so on") for letter in "abc"]
    assert [given[:4] for given, _ in asked] == [("model", "tokenizer", text, 60) for text, _ in made]
    assert [named for _, named in asked] == [{"seed": i} for i in range(3)]
    assert {(given[4].temperature, given[4].top_p) for given, _ in asked} == {(0.7, 0.95)}


def test_the_page_of_real_text_sets_the_model_beside_the_others_and_names_the_best(monkeypatch):
    pictures = taken(monkeypatch, report)
    levels = {"2 characters of context": 3.5, "xz -9 alone": 2.25, "xz -9": 4.0}
    page = tour_pages.text_page("your text", HISTORY, flat_tokens(30, 60), levels, 1.75, [("It was", " a <day>")])
    claim = "1.75 bits per character on your text, against 2.25 by the best of the others (xz -9 alone)"
    assert parts(page)[:5] == [
        "The same on real text: your text", f"{claim}. Fewer bits mean better guesses of the next character.",
        f"[{claim}]", "[Held-out loss from 2.00 to 0.50 bits per character in 6 steps]", "It was a <day>"]
    (bars, curves), (shown,) = ([picture for picture, _ in pictures]), panels(pictures[1][0])
    assert [bar.get_width() for bar in bars.axes[0].patches] == [1.75, 3.5, 2.25, 4.0]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars.axes[0].patches] == [OURS, CONTRAST, CONTEXT, CONTEXT]
    assert [tick.get_text() for tick in bars.axes[0].get_yticklabels()] == ["minillama", *levels]
    (of_bars,) = panels(bars)
    assert (of_bars["title"], of_bars["x"]) == ("The fewer, the better guessed",
                                               "bits per character of unseen text, your text")
    assert shown["title"] == "It learns your text" and shown["lines"][0] == ([0, 6], [2.0, 0.5], OURS, "-")
    assert shown["lines"][1][1] == [2.25, 2.25] and shown["texts"][1][0] == "xz -9 alone: 2.25"
    assert curves.axes[0].get_yscale() == "linear"


MUTANTS = [
    Mutant("minillama.tour.tour_pages", "layer.attend = attend", "pass",
           test_attention_maps_are_probabilities_that_never_see_the_future_and_leave_the_model_as_it_was),
    Mutant("minillama.tour.tour_pages", "tokens.characters / math.log(2)", "tokens.characters",
           test_the_curve_is_in_bits_per_character),
    Mutant("minillama.tour.tour_pages", "return attention(q_BHTd, k_BKSd, v_BKSd, **options)",
           "return attention(q_BHTd, k_BKSd, 0 * v_BKSd, **options)",
           test_a_map_mixes_the_values_into_the_head_s_output),
]
