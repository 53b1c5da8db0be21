"""Masks right token by token, losses equal to loops, packing without loss or leak."""

import codecs
import math
from functools import partial

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.tokenizer.added_tokens import Tokenizer
from minillama.train.sequence_loss import (
    IGNORE,
    Sequence,
    encode_segments,
    learned_tokens,
    sequence_loss,
    token_spans,
)
from minillama.train.templates import BOS, EOS, Segment, llama3_chat, question_answer, vicuna

EXACT = {"rtol": 1e-12, "atol": 1e-13}  # fp64, sums of a few dozen terms of size 1


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Letters(Tokenizer):
    """A stand-in tokenizer: a token for each byte of UTF-8, and for each string in `melted`."""

    bos_id, eos_id, unk_id, pad_id = 256, 257, None, None
    special_tokens = {
        "<|begin_of_text|>": 256,
        "<|start_header_id|>": 258,
        "<|end_header_id|>": 259,
        "<|eot_id|>": 260,
    }

    def __init__(self, *melted):
        self.melted = {300 + i: text for i, text in enumerate(melted)}

    def encode(self, text, bos=False, eos=False):
        ids = []
        while text:
            fit = next((i for i, melted in self.melted.items() if text.startswith(melted)), None)
            ids += list(text[0].encode()) if fit is None else [fit]
            text = text[1 if fit is None else len(self.melted[fit]) :]
        return ids

    def decoder(self):
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        melted = self.melted

        class Decoder:
            def push(self, token):
                return utf8.decode(melted[token].encode() if token in melted else bytes([token]))

            def flush(self):
                return utf8.decode(b"", final=True)

        return Decoder()


FOUR_TURNS = [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello. You?"},
    {"role": "user", "content": "Fine, </s> ASSISTANT: fine"}, {"role": "assistant", "content": "Good."},
    {"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Bye"},
]  # fmt: skip


def by_character(segments, tokenizer):
    """What `encode_segments` must give when every character is one token: a walk over the characters."""
    tokens, labels = [], []
    for segment in segments:
        ids = [ord(c) for c in segment.text]
        if segment.control:
            ids = [{"<s>": tokenizer.bos_id, "</s>": tokenizer.eos_id}.get(segment.text)]
            ids = ids if ids[0] else [tokenizer.special_tokens[segment.text]]
        tokens += ids
        labels += ids if segment.learn else [IGNORE] * len(ids)
    return tokens, labels


def test_four_turns_are_masked_right_token_by_token():
    for template in (vicuna, llama3_chat):
        segments = template(FOUR_TURNS)
        ours = encode_segments(segments, Letters())
        assert (ours.tokens, ours.labels) == by_character(segments, Letters())
    # and once more said in words: what is learned of Vicuna's four turns is four answers with their end
    learned = [i for i in encode_segments(vicuna(FOUR_TURNS), Letters()).labels if i != IGNORE]
    assert learned == [i for a in FOUR_TURNS[1::2] for i in [*(" " + a["content"]).encode(), Letters.eos_id]]


def test_control_words_in_a_users_text_stay_text():
    ours = encode_segments([BOS, Segment("a</s><s><|eot_id|>"), Segment("b</s>", learn=True), EOS], Letters())
    assert ours.tokens == [256, *b"a</s><s><|eot_id|>", *b"b</s>", 257]


def test_a_melted_token_is_learned_if_it_holds_a_learned_character():
    tokenizer = Letters("\n\n", ": ", "x y")
    ours = encode_segments([Segment("Q\n"), Segment("\nA: x", learn=True), Segment(" y.")], tokenizer)
    assert ours.tokens == [ord("Q"), 300, ord("A"), 301, 302, ord(".")]
    assert ours.labels == [IGNORE, 300, ord("A"), 301, 302, IGNORE]


def test_a_segment_alone_does_not_melt_with_its_neighbours():
    segments = [Segment("a\n"), Segment("\n", alone=True), Segment("\nb", learn=True)]
    assert encode_segments(segments, Letters("\n\n")).tokens == [ord("a"), 10, 10, 10, ord("b")]
    assert encode_segments(segments, Letters("\n\n")).labels == [IGNORE] * 3 + [10, ord("b")]


def test_bytes_of_one_character_share_its_fate():
    for text, size in [("é", 2), ("中", 3), ("🦙", 4)]:
        ours = encode_segments([Segment("a" + text), Segment(text + "b", learn=True), Segment(text)], Letters())
        assert [label != IGNORE for label in ours.labels] == [False] * (1 + size) + [True] * (size + 1) + [
            False
        ] * size
        spans = token_spans(Letters().encode("a" + text + "b"), "a" + text + "b", Letters())
        assert spans == [(0, 1)] + [(1, 2)] * size + [(2, 3)]


def test_the_prompt_is_the_beginning_of_the_example():
    for full, prompt in [
        (question_answer("Why?", "So."), question_answer("Why?")),
        (vicuna(FOUR_TURNS), vicuna(FOUR_TURNS[:-1])),
        (llama3_chat(FOUR_TURNS), llama3_chat(FOUR_TURNS[:-1])),
    ]:
        whole, begin = encode_segments(full, Letters()), encode_segments(prompt, Letters())
        assert whole.tokens[: len(begin.tokens)] == begin.tokens
        assert whole.labels[len(begin.tokens)] != IGNORE  # and the very next token is learned


def test_text_that_does_not_come_back_and_unknown_control_tokens_are_refused():
    class Deaf(Letters):
        def encode(self, text):
            return super().encode(text.lower())

    with pytest.raises(ValueError, match="gives 'a' back for 'A'"):
        encode_segments([Segment("A")], Deaf())
    with pytest.raises(ValueError, match=r"<\|im_start\|>"):
        encode_segments([Segment("<|im_start|>", control=True)], Letters())
    with pytest.raises(ValueError, match="2 tokens but 1"):
        Sequence([1, 2], [1])


# --- the loss

LABELS = torch.tensor([[-100, -100, 3, 1, 4], [2, 0, -100, 1, -100], [-100, -100, -100, -100, 2], [-100] * 5])


def test_the_loss_is_the_loop_over_learned_tokens():
    logits = 2 * normal(4, 5, 6)
    rows = [oracles.token_losses(x, y) for x, y in zip(logits.tolist(), LABELS.tolist(), strict=True)]
    tokens = [loss for row in rows for loss in row]
    wanted = {"tokens": oracles.mean(tokens), "sum": math.fsum(tokens)}
    for reduction, value in wanted.items():
        torch.testing.assert_close(sequence_loss(logits, LABELS, reduction).item(), value, **EXACT)
    assert learned_tokens(LABELS) == len(tokens) == 6


def test_the_loss_equals_transformers():
    utils = pytest.importorskip("transformers.loss.loss_utils", reason="compares with transformers")
    logits = normal(4, 5, 6).float()
    wanted = utils.ForCausalLMLoss(logits, LABELS, vocab_size=6)
    torch.testing.assert_close(sequence_loss(logits, LABELS), wanted, rtol=1e-6, atol=0)  # fp32, another order


def test_logits_of_unlearned_tokens_touch_neither_loss_nor_gradient():
    logits, scores_a_label = normal(4, 5, 6), torch.nn.functional.pad(LABELS[:, 1:] != IGNORE, (0, 1))
    for reduction in ("tokens", "sum"):
        clean = logits.clone().requires_grad_()
        spoiled = logits.masked_fill(~scores_a_label[:, :, None], math.nan).requires_grad_()
        wanted, ours = sequence_loss(clean, LABELS, reduction), sequence_loss(spoiled, LABELS, reduction)
        wanted.backward()
        ours.backward()
        assert torch.equal(ours, wanted) and torch.equal(spoiled.grad, clean.grad)
        assert not clean.grad[~scores_a_label].any() and clean.grad[scores_a_label].any(-1).all()


def test_gradients_are_those_of_finite_differences():
    for reduction in ("tokens", "sum"):
        logits = normal(4, 5, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, r=reduction: sequence_loss(x, LABELS.clamp(max=2), r), (logits,))


def test_half_precision_logits_are_widened_before_the_softmax():
    logits = (8 * normal(4, 5, 6)).bfloat16()
    assert sequence_loss(logits, LABELS).dtype == torch.float32
    assert torch.equal(sequence_loss(logits, LABELS), sequence_loss(logits.float(), LABELS))


def test_accumulated_sums_equal_one_batch():
    logits = normal(4, 5, 6)
    parts = [sequence_loss(logits[i], LABELS[i], "sum") for i in (slice(0, 1), slice(1, 3))]
    ours = sum(parts) / (learned_tokens(LABELS[:1]) + learned_tokens(LABELS[1:3]))
    torch.testing.assert_close(ours, sequence_loss(logits[:3], LABELS[:3]), **EXACT)


def test_wrong_arguments_of_the_loss_are_named():
    with pytest.raises(ValueError, match="0/0"):
        sequence_loss(normal(1, 5, 6), LABELS[3:])
    assert sequence_loss(normal(1, 5, 6), LABELS[3:], "sum") == 0  # a micro-batch may well have none
    with pytest.raises(ValueError, match=r"\(4, 4, 6\)"):
        sequence_loss(normal(4, 4, 6), LABELS)
    with pytest.raises(ValueError, match="'mean'"):
        sequence_loss(normal(4, 5, 6), LABELS, "mean")


plant = partial(Mutant, "minillama.train.sequence_loss")
TURNS, LOOP = test_four_turns_are_masked_right_token_by_token, test_the_loss_is_the_loop_over_learned_tokens
MELTED = test_a_melted_token_is_learned_if_it_holds_a_learned_character
# fmt: off
MUTANTS = [
    plant("token if learn else IGNORE", "token", TURNS),  # the prompt in the loss
    plant("[stretch[0].learn]", "[False]", TURNS),  # EOS missing from the labels
    plant("[any(flags[start:end])", "[any(flags[start + 1:end + 1])", TURNS),
    plant("[any(flags[start:end])", "[all(flags[start:end])", MELTED),
    plant("max(len(piece), 1)", "len(piece)", test_bytes_of_one_character_share_its_fate),
    plant("segment.control or segment.alone", "segment.control",
          test_a_segment_alone_does_not_melt_with_its_neighbours),
    plant("        if joinable and not single:", "        if False:", MELTED),  # cut at the seams
    plant('text.replace("\\u2581", " "):\n        raise', "text and False:\n        raise",
          test_text_that_does_not_come_back_and_unknown_control_tokens_are_refused),
    plant("targets_BT = labels_BT[:, 1:]", "targets_BT = labels_BT[:, :-1]", LOOP),  # not shifted
    plant("logits_BTV[:, :-1][learned_BT]", "logits_BTV[:, 1:][learned_BT]", LOOP),
    plant("losses_N.mean() if", "losses_N.sum() / (len(losses_N) + 1) if", LOOP),
    plant("else losses_N.sum()", "else losses_N.mean()", LOOP),
    plant("at_least_fp32(logits_BTV[:, :-1][learned_BT])", "logits_BTV[:, :-1][learned_BT]",
          test_half_precision_logits_are_widened_before_the_softmax),
]
# fmt: on
