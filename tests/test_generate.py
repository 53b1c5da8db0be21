"""Generation: the text of a full recomputation, cut where it must be, streamed without half characters."""

import codecs
from types import SimpleNamespace

import pytest
import torch
from mutants import Mutant

from minillama.collate import pad_rows, real_tokens
from minillama.config import ModelConfig
from minillama.generate import generate_text, generate_tokens, prefill
from minillama.kv_cache import KVCache
from minillama.sampling import Sampling
from minillama.tokenizer.added_tokens import Tokenizer
from minillama.transformer import Transformer

CONFIG = ModelConfig(24, 2, 4, 259, n_kv_heads=2, hidden_dim=32, max_seq_len=40)
BOS, EOS = 256, 257


class ByteTokenizer(Tokenizer):
    """Ids are UTF-8 bytes; 256 begins and 257 ends a text."""

    vocab_size, bos_id, eos_id = 259, BOS, EOS

    def encode(self, text, bos=False, eos=False):
        return [BOS] * bos + list(text.encode()) + [EOS] * eos

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def decoder(self):
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return SimpleNamespace(push=lambda token: decoder.decode(bytes([token] if token < 256 else [])),
                               flush=lambda: decoder.decode(b"", final=True))


class Scripted(torch.nn.Module):
    """A model that wants to say `script` after a prompt of n tokens, whatever they are."""

    def __init__(self, n, script, max_seq_len=1000):
        super().__init__()
        self.config = ModelConfig(2, 1, 1, 259, max_seq_len=max_seq_len)
        self.tok_embeddings, self.cache_dtype = torch.nn.Embedding(259, 2), None
        self.n, self.script = n, script

    def hidden_states(self, tokens_BT, cache):
        cache.advance(tokens_BT.shape[1])
        wanted = torch.tensor(self.script[cache.length - self.n])
        return torch.nn.functional.one_hot(wanted, 259).float().expand(*tokens_BT.shape, 259)

    def logits(self, hidden_BTV):
        return hidden_BTV


def pieces(script, **settings):
    """What `generate_text` yields for a model that says `script` (bytes, text or ids) and then for ever 'z'."""
    ids = list(script.encode() if isinstance(script, str) else script) + [ord("z")] * 300
    return list(generate_text(Scripted(1, ids), ByteTokenizer(), "", **({"max_new_tokens": 300} | settings)))


def lively_model(seed=0):
    """Large random weights: its greedy text wanders instead of repeating one token."""
    torch.manual_seed(seed)
    model = Transformer(CONFIG)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = torch.randn_like(weight) * weight.shape[-1] ** -0.5 * 2
    return model


def column(steps, row=0):
    return [step[row] for step in steps if step[row] is not None]


def greedy_by_recomputation(model, prompt, n):
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt):]


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_greedy_text_is_the_argmax_of_full_recomputation(chunk):
    for seed, prompt in enumerate([[BOS], [1, 2, 3, 4, 5, 6, 7], [200] * 13]):
        model = lively_model(seed)
        wanted = greedy_by_recomputation(model, prompt, 20)
        assert len(set(wanted)) > 5, "a text that repeats itself would prove little"
        assert column(generate_tokens(model, [prompt], 20, chunk=chunk)) == wanted


@pytest.mark.parametrize("chunk", [1, 2, 512])
def test_a_batch_of_unequal_prompts_says_what_each_says_alone(chunk):
    model, prompts = lively_model(), [[BOS], [9, 8, 7, 6, 5], [1, 2, 3], [0, 0]]
    steps = list(generate_tokens(model, prompts, 15, chunk=chunk))
    for row, prompt in enumerate(prompts):
        assert column(steps, row) == column(generate_tokens(model, [prompt], 15))


@pytest.mark.parametrize("n", [0, 1, 7])
def test_it_makes_as_many_tokens_as_asked_and_no_more(n):
    assert len(list(generate_tokens(lively_model(), [[BOS], [1, 2]], n))) == n
    assert pieces("abcdefghij", max_new_tokens=n) == list("abcdefg"[:n])


def test_a_stop_id_ends_its_row_and_is_the_last_thing_it_yields():
    model, prompts = lively_model(), [[BOS], [9, 8, 7]]
    free = list(generate_tokens(model, prompts, 12))
    said, other = column(free, 0), column(free, 1)
    at = next(n for n in range(2, 11) if said[n] not in said[:n] + other)
    steps = list(generate_tokens(model, prompts, 12, stop_ids={said[at]}))
    assert column(steps, 0) == said[:at + 1] and column(steps, 1) == other
    assert [step[0] for step in steps[at + 1:]] == [None] * (11 - at)
    alone = list(generate_tokens(model, [prompts[0]], 12, stop_ids={said[at]}))
    assert len(alone) == at + 1, "no step follows the end of the last row"


def test_a_full_context_ends_the_text_cleanly():
    model, prompt = lively_model(), [BOS, 1, 2, 3]
    steps = column(generate_tokens(model, [prompt], 1000))
    # 40 places hold the prompt and 36 tokens; the scores at the last place give one more
    assert len(steps) == 37 and steps[:20] == greedy_by_recomputation(model, prompt, 20)
    assert len(column(generate_tokens(model, [[BOS] * 40], 5))) == 1


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    model, settings = lively_model(), Sampling(temperature=1.5, top_k=50)
    texts = [list(generate_tokens(model, [[BOS], [5, 6]], 15, settings, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_drawing_does_not_touch_the_callers_random_numbers():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    list(generate_tokens(Scripted(1, [1, 2, 3]), [[BOS]], 2, Sampling()))
    torch.manual_seed(7)
    assert torch.equal(before, torch.get_rng_state())


def test_the_repetition_penalty_knows_the_prompt_and_what_was_said():
    model, prompt = lively_model(), [1, 2, 3]
    never_again = Sampling(temperature=0.0, repetition_penalty=1e3)  # any seen token falls to 0 or far below
    ids = column(generate_tokens(model, [prompt, [4]], 30, never_again))
    assert len(set(ids + prompt)) == 33
    assert column(generate_tokens(model, [prompt], 30, never_again)) == ids, "padding was not said"


def test_eos_and_bos_end_a_text_and_are_not_shown():
    for end in (BOS, EOS):
        assert "".join(pieces([*b"hello", end, *b"more"])) == "hello"
    assert "".join(pieces([*b"hi", EOS, *b"!", 10], stop_ids={10})) == "hi!", "stop_ids replaces both"


@pytest.mark.parametrize(("script", "stop", "shown"), [
    ("one STOP two", ("STOP",), "one "),
    ("STOP at once", ("STOP",), ""),
    ("STO STOQ ST then STOP", ("STOP",), "STO STOQ ST then "),
    ("aab", ("ab",), "a"),  # the start must be looked for again one letter on
    ("ababac.", ("abac",), "ab"),
    ("x\n\ny", ("\n\n", "END"), "x"),
    ("the END.\n\n", ("\n\n", "END"), "the "),
    ("abc", ("bc", "abcd"), "a"),  # the first to be complete
    ("smile 🦙!", ("🦙",), "smile "),
], ids=repr)
def test_a_stop_string_is_never_shown_however_it_is_split(script, stop, shown):
    streamed = pieces(script, stop=stop)  # byte by byte, then in pieces of two to ten letters
    assert "".join(streamed) == shown and "" not in streamed
    for size in range(2, 11):
        said = [script[at:at + size] for at in range(0, len(script), size)]
        tokenizer = ByteTokenizer()
        tokenizer.decoder = lambda said=said: SimpleNamespace(push=lambda i: said[i] if i < 250 else "", flush=str)
        model = Scripted(1, [*range(len(said)), EOS])
        assert "".join(generate_text(model, tokenizer, stop=stop)) == shown, said


def test_what_looks_like_a_stop_string_is_shown_once_it_is_none():
    assert pieces("xSTOy", stop=("STOP",), max_new_tokens=5) == ["x", "STOy"]
    assert "".join(pieces("xSTO", stop=("STOP",), max_new_tokens=4)) == "xSTO", "at the end, too"
    assert "".join(pieces([*b"xSTO", EOS], stop=("STOP",))) == "xSTO"


def test_streaming_shows_whole_characters_only():
    text = "aé好🦙z"
    assert pieces(text, max_new_tokens=len(text.encode())) == list(text)
    cut = text.encode()[:-2]  # in the middle of the last llama
    assert "".join(pieces(cut, max_new_tokens=len(cut))) == "aé好\N{REPLACEMENT CHARACTER}"


def test_a_character_begun_in_the_prompt_is_finished_by_the_text():
    class Halved(ByteTokenizer):
        def encode(self, text, bos=False, eos=False):
            return [BOS, *"é".encode()[:1]]

    script = [*"é".encode()[1:], ord("!")]
    assert list(generate_text(Scripted(2, script), Halved(), "?", max_new_tokens=2)) == ["é", "!"]


def test_the_streamed_pieces_are_the_decoded_text():
    model, tokenizer = lively_model(), ByteTokenizer()
    ids = column(generate_tokens(model, [tokenizer.encode("Once", bos=True)], 30, stop_ids={BOS, EOS}))
    streamed = "".join(generate_text(model, tokenizer, "Once", max_new_tokens=30))
    assert streamed == tokenizer.decode(ids) and len(streamed) > 5


def test_prefill_gives_the_scores_after_the_last_token():
    model, tokens = lively_model(), torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    with torch.no_grad():
        wanted = model(tokens)[:, -1]
        for chunk in (1, 2, 7, 100):
            assert (prefill(model, tokens, KVCache(CONFIG, 1, 7), chunk) - wanted).abs().max() < 1e-5


def test_left_padding_ends_all_prompts_together():
    prompts = [[1, 2, 3], [4], [5, 6]]
    assert pad_rows(prompts, left=True).tolist() == [[1, 2, 3], [0, 0, 4], [0, 5, 6]]
    assert (~real_tokens(prompts, left=True)).sum(-1).tolist() == [0, 2, 1]


def test_no_gradient_is_recorded_and_the_caller_keeps_its_own_mode():
    model = lively_model()
    steps = generate_tokens(model, [[BOS]], 3)
    next(steps)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), "between two steps"
    model(torch.tensor([[1]])).sum().backward()


@pytest.mark.parametrize(("prompts", "settings", "message"), [
    ([[1, 259]], {}, "the prompt holds the id 259 and this model knows 0 to 258"),
    ([[1, 2], [-1]], {}, "the prompt holds the id -1"),
    ([[]], {}, "holds no token"),
    ([], {}, "holds no token"),
    ([[1] * 41], {}, "the prompt has 41 tokens and this model attends over 40: shorten it"),
    ([[1]], {"max_new_tokens": -1}, "max_new_tokens is -1"),
    ([[1]], {"chunk": 0}, "chunk is 0"),
])
def test_impossible_requests_are_refused(prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        list(generate_tokens(lively_model(), prompts, **({"max_new_tokens": 3} | settings)))


@pytest.mark.parametrize("stop", ["END", ("END", "")])
def test_stop_strings_that_would_stop_everywhere_are_refused(stop):
    with pytest.raises(ValueError, match="give a tuple of strings, none of them empty"):
        pieces("abc", stop=stop)


def _recomputed():
    test_greedy_text_is_the_argmax_of_full_recomputation(512)


def _batched():
    test_a_batch_of_unequal_prompts_says_what_each_says_alone(2)


def _stop(script, stop, shown):
    return lambda: test_a_stop_string_is_never_shown_however_it_is_split(script, stop, shown)


MUTANTS = [
    Mutant("minillama.generate", "return model.logits(hidden_BTD[:, -1:])[:, -1]",
           "return model.logits(hidden_BTD[:, :1])[:, -1]", _recomputed),
    Mutant("minillama.generate", "tokens_BT = next_B[:, None]", "tokens_BT = tokens_BT[:, -1:]", _recomputed),
    Mutant("minillama.collate", "(T - len(row), 0) if left", "(0, T - len(row)) if left", _batched),
    Mutant("minillama.generate", "pad_B if pad_B.any() else None", "None", _batched),
    Mutant("minillama.generate", "said[row] not in stop_ids and", "",
           test_a_stop_id_ends_its_row_and_is_the_last_thing_it_yields),
    Mutant("minillama.generate", "config.max_seq_len - len(prompt) + 1)", "config.max_seq_len - len(prompt))",
           test_a_full_context_ends_the_text_cleanly),
    Mutant("minillama.sampling", "f\"{seed} {copies", "f\"{copies",
           test_the_same_seed_gives_the_same_text_and_another_seed_another),
    Mutant("minillama.generate", "        seen_BV.scatter_(1, tokens_BT, True)", "        pass",
           test_the_repetition_penalty_knows_the_prompt_and_what_was_said),
    Mutant("minillama.generate", '"" if token in stop_ids else decoder.push(token)', "decoder.push(token)",
           test_eos_and_bos_end_a_text_and_are_not_shown),
    Mutant("minillama.generate", "        decoder.push(known)  # so", "        pass  # so",
           test_a_character_begun_in_the_prompt_is_finished_by_the_text),
    Mutant("minillama.generate", "text[:min(found)[1]]", "text",
           _stop("one STOP two", ("STOP",), "one ")),
    Mutant("minillama.generate", "(start + len(word), start) for", "(start, start) for",
           _stop("abcd", ("bc", "abcd"), "a")),
    Mutant("minillama.generate", "return text[:len(text) - waiting], text[len(text) - waiting:], False",
           "return text, \"\", False", _stop("one STOP two", ("STOP",), "one ")),
    Mutant("minillama.generate", "waiting = max(", "waiting = min(", _stop("ababac.", ("abac",), "ab")),
    Mutant("minillama.generate", "yield shown + (\"\" if stopped else held)", "yield shown",
           test_what_looks_like_a_stop_string_is_shown_once_it_is_none),
    Mutant("minillama.generate", "held + decoder.flush()", "held", test_streaming_shows_whole_characters_only),
    Mutant("minillama.generate", "tokens_BT >= config.vocab_size", "tokens_BT > config.vocab_size",
           lambda: test_impossible_requests_are_refused([[1, 259]], {}, "the id 259")),
]
