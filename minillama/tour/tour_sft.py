"""The tour's fine-tuning: the pretrained model becomes one that answers and stops, in full, by LoRA, and by QLoRA.

All three start from the same weights and see the same batches. The forum's grammar gives each held-out answer its
exact number of bits, so each ends beside the least that any model could need.
"""

import copy
import hashlib
import math
from dataclasses import asdict, dataclass, replace

import torch

from minillama.backends import use_kernels
from minillama.checkpoint import load_model
from minillama.checkpoint.convert import save_with_tokenizer
from minillama.corpus.forum import GRAMMAR, derivation
from minillama.peft.lora import LoRAConfig, add_lora, merge_lora, unmerge_lora
from minillama.peft.lora_file import CONFIG_FILE, load_lora, save_lora
from minillama.quant.quantize_linears import quantize_linears
from minillama.rlhf.rollout import prompts_of, sample_answers
from minillama.tour.tour_pages import before_after_page, nf4_page, tuning_page
from minillama.train.records import encode_records, forum_records
from minillama.train.resumable import METRICS_FILE
from minillama.train.resume import frozen_fingerprint, own_random_state, read_metrics
from minillama.train.sequence_loss import IGNORE
from minillama.train.sft import SftConfig, answer_loss, fine_tune
from minillama.train.training_run import STATE_FILE

TEMPLATE = "question_answer"  # the same in fine-tuning, reward model and reinforcement learning
RECORDS, HELD_OUT = 2400, 200  # 150 steps of 16 see each record once
FULL = SftConfig(steps=150, max_lr=2e-3, eval_every=25)
ADAPTER = replace(FULL, max_lr=5e-3)
LORA = LoRAConfig(rank=8, alpha=16.0, targets=("attention.*", "feed_forward.*"))  # all linear layers but the head
ASKED = 64  # held-out questions that the tuned model answers
# Bands: what five seeds gave (docs/tuning.md), and once the width of their range beyond it, rounded outward
FULL_EXCESS, LORA_EXCESS = 0.019, 0.017  # above the entropy, as a part of it
LORA_ABOVE_FULL = -0.003, 0.006  # nats a token
QLORA_FROM_LORA = 0.001  # nats a token, either way


@dataclass(frozen=True)
class Lessons:
    """What is learned and what it is measured on."""

    train: list  # of Sequence
    held_out: list  # of Sequence
    asked: list  # the held-out (question, answer) texts
    bits: float  # mean -log2 p(answer | question) of the held-out answers: the least any model needs on average

    def bits_of(self, loss):
        """Nats per learned token as bits per answer."""
        learned = sum(label != IGNORE for sequence in self.held_out for label in sequence.labels)
        return loss * learned / len(self.held_out) / math.log(2)


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model in eval mode, and the history of its training."""

    model: torch.nn.Module
    history: list

    @property
    def loss(self):
        """The last held-out loss, nats per learned token."""
        return [row["held_out_loss"] for row in self.history if "held_out_loss" in row][-1]


def fine_tuning_stages(report, model, tokenizer):
    """All three from the same pretrained model, which stays as it was -> the fully tuned model."""
    lessons = lessons_of(report.config.seed, tokenizer)
    full = sft_stage(report, model, tokenizer, lessons)
    lora = lora_stage(report, model, tokenizer, lessons, full)
    qlora_stage(report, model, tokenizer, lessons, full, lora)
    return full.model


def lessons_of(seed, tokenizer):
    """Questions and answers of the forum in one template, and the exact bits of the held-out answers."""
    train, held_out = (forum_records(seed, n, split) for n, split in ((RECORDS, "train"), (HELD_OUT, "held-out")))
    asked = [tuple(message["content"] for message in record.messages) for record in held_out]
    bits = sum(answer_bits(*pair) for pair in asked) / len(asked)
    sequences = [encode_records(part, TEMPLATE, tokenizer, 10**6).sequences for part in (train, held_out)]
    return Lessons(*sequences, asked, bits)


def answer_bits(question, answer):
    """-log2 p(answer | question) under the forum's grammar; ValueError for a text it could not have written."""
    return GRAMMAR.parse(answer, "{answer}", GRAMMAR.parse(question, "{question}").chosen).bits


def sft_stage(report, model, tokenizer, lessons):
    """Full tuning: every weight learns to answer in the template, and to stop."""
    before = lessons.bits_of(answer_loss(model, lessons.held_out))
    report.say(f"  fine-tuning: {len(lessons.train)} questions and answers in one template, loss on the answers alone "
               f"(minillama/train/sft.py)\n    before: {before:.1f} bits an answer")
    full = tune_or_load(report, "sft", model, tokenizer, lessons, FULL)
    bits = lessons.bits_of(full.loss)
    report.measure("fine-tuning", bits <= (1 + FULL_EXCESS) * lessons.bits, most=FULL_EXCESS, entropy=lessons.bits,
                   bits=bits, above=bits / lessons.bits - 1, before=before)
    questions = [question for question, _ in lessons.asked[:ASKED]]
    told = answers(full.model, tokenizer, questions)
    good = sum(ended and fits_question(question, text) for question, (text, ended) in zip(questions, told, strict=True))
    least = ASKED * 7 // 8
    report.measure("answers", good >= least, least=least, n=ASKED, good=good)
    untuned = answers(model, tokenizer, questions[:4])
    report.pages.append(before_after_page(list(zip(questions, untuned, told, strict=False))))
    return full


def lora_stage(report, model, tokenizer, lessons, full):
    """LoRA: thin matrices beside every linear layer learn, the weights themselves stay."""
    lora = tune_or_load(report, "lora", model, tokenizer, lessons, ADAPTER)
    plain = answer_loss(lora.model, lessons.held_out)
    merge_lora(lora.model)
    moved = abs(answer_loss(lora.model, lessons.held_out) - plain)
    unmerge_lora(lora.model)
    share = sum(p.numel() for p in lora.model.parameters() if p.requires_grad) / model.config.n_parameters()
    bits, distance, (low, high) = lessons.bits_of(lora.loss), lora.loss - full.loss, LORA_ABOVE_FULL
    passed = bits <= (1 + LORA_EXCESS) * lessons.bits and low <= distance <= high and moved < 1e-5
    report.measure("LoRA", passed, most=LORA_EXCESS, low=low, high=high, bits=bits, above=bits / lessons.bits - 1,
                   distance=distance, share=share, moved=moved)
    return lora


def qlora_stage(report, model, tokenizer, lessons, full, lora):
    """QLoRA: the same adapters on a base of 4 bits a weight."""
    base = quantize_copy(model)
    before = lessons.bits_of(answer_loss(base, lessons.held_out))
    qlora = tune_or_load(report, "qlora", model, tokenizer, lessons, ADAPTER)
    frozen = [p for p in qlora.model.parameters() if not p.requires_grad]
    same = frozen_fingerprint(qlora.model) == frozen_fingerprint(base.requires_grad_(False))
    distance = qlora.loss - lora.loss
    passed = abs(distance) <= QLORA_FROM_LORA and same and all(p.grad is None for p in frozen)
    report.measure("QLoRA", passed, most=QLORA_FROM_LORA, distance=distance, base="unchanged" if same else "CHANGED")
    curves = {"full": full.history, "LoRA": lora.history, "QLoRA": qlora.history}
    report.pages += [tuning_page(curves, lessons, before), nf4_page(model)]
    return qlora


def tune_or_load(report, name, model, tokenizer, lessons, config):
    """`model` fine-tuned in one of the three ways, trained now or found in the stage's folder -> Tuned."""
    config = replace(config, seed=report.config.seed)
    learner = learner_of(name, model, config.seed)
    base = frozen_fingerprint(copy.deepcopy(model).requires_grad_(False))
    data = hashlib.sha256(repr((lessons.train, lessons.held_out)).encode()).hexdigest()
    folder = report.folder(name, train=asdict(config), lora=asdict(LORA), base=base, data=data)
    if report.is_done(folder, "params.json" if name == "sft" else CONFIG_FILE):
        history = read_metrics(folder / METRICS_FILE, config.steps, evaluated=True)
        if name == "sft":
            return Tuned(load_model(folder)[0].eval(), history)
        learner = copy_to_train(model) if name == "lora" else quantize_copy(model)
        load_lora(folder, learner)
        return Tuned(learner.eval(), history)
    history = fine_tune(learner, lessons.train, lessons.held_out, config, folder, (folder / STATE_FILE).exists(),
                        report.config.progress)
    if name == "sft":
        save_with_tokenizer(folder, learner, tokenizer)
    else:
        save_lora(folder, learner)
    return Tuned(learner, history)


def learner_of(name, model, seed):
    """A copy of the model to be trained: whole, or by fresh adapters on all its linear layers, quantized for QLoRA."""
    if name == "sft":
        return copy_to_train(model)
    learner = quantize_copy(model) if name == "qlora" else copy_to_train(model)
    with own_random_state(seed, "cpu"):
        add_lora(learner, LORA)
    return learner


def copy_to_train(model):
    """A copy to be trained, with the fused spelling of attention."""
    return use_kernels(copy.deepcopy(model).requires_grad_(True), "torch")


def quantize_copy(model):
    """A copy whose linear layers are NF4 with double quantization."""
    twin = copy_to_train(model)
    quantize_linears(twin)
    return twin


def answers(model, tokenizer, questions, max_new_tokens=64):
    """[(text, whether it ended by itself)]: answers sampled at temperature 0.7, all questions in one batch."""
    rollout = sample_answers(model, prompts_of(questions, tokenizer), tokenizer.eos_id, max_new_tokens, 0.7)
    return list(zip(map(str.strip, rollout.texts(tokenizer)), rollout.ended_B.tolist(), strict=True))


def fits_question(question, text):
    """Whether the forum could have answered this question so: the right verb, the right object, whole sentences."""
    asked = derivation(question, "{question}")
    return asked is not None and derivation(text, "{answer}", asked.chosen) is not None
