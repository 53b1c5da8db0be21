"""The tour on somebody else's task: `tour --text FILE --sft FILE.jsonl --preferences FILE.jsonl`.

Each file takes the place of its part of the forum: the text that is learned, the answers that the model is tuned on,
the pairs that say what is good. Without --text the base is the forum's; without --sft the preferred answers of the
pairs are what it is tuned on. What needs the forum's ground truth is skipped, and the report says why.
"""

import zlib
from dataclasses import replace

from minillama.evaluate.copying import diagnose_records
from minillama.evaluate.diagnosis import diagnose_tuning, require_ends
from minillama.evaluate.held_out import answer_tokens, split_by_prompt
from minillama.rlhf.preferences import read_pairs
from minillama.rlhf.train_reward import encode_pairs
from minillama.tour.tour_pages import before_after_page
from minillama.tour.tour_rlhf import ASKED, REWARD, Feedback, feedback_stages, prompts_of
from minillama.tour.tour_sft import FULL, TEMPLATE, Lessons, answers, tune_or_load
from minillama.train.data import question_held_out
from minillama.train.records import Record, encode_records, read_records
from minillama.train.sft import answer_loss, with_steps

OWN_SFT = replace(FULL, steps=None)  # as many as the answers want


def own_stages(report, model, tokenizer, sft=None, preferences=None):
    """Fine-tuning on the answers of a file, reward model and PPO on the pairs of another; all that can be said of them
    without a ground truth."""
    records, pairs = own_files(sft, preferences)
    report.say(f"  your answers: {len(records)} of {sft or f'the preferred answers of {preferences}'}")
    model = own_sft_stage(report, model, tokenizer, records)
    report.skip("LoRA, QLoRA", "they are compared bit by bit where the entropy of the answers is known, on the forum")
    if not pairs:
        report.skip("reward model, PPO", "what is good has to be said by your pairs: --preferences FILE.jsonl")
        return
    tokenizer.save(report.out / "tokenizer.model")
    feedback_stages(report, model, tokenizer, own_feedback(pairs, tokenizer, model.config.max_seq_len))


def own_files(sft, preferences):
    """(records to tune on, pairs), as the files give them."""
    pairs = read_pairs(preferences) if preferences else []
    records = read_records(sft).records if sft else [
        Record(({"role": "user", "content": pair.prompt}, {"role": "assistant", "content": pair.chosen}))
        for pair in pairs]
    return records, pairs


def check_lengths(tokenizer, context, sft, preferences):
    """Make of the files what the last stages will make of them, once a tokenizer is there, before any training."""
    records, pairs = own_files(sft, preferences)
    own_answers(records, tokenizer, context)
    if pairs:
        made = own_feedback(pairs, tokenizer, context)
        if len(made.pairs) < REWARD.batch_size:
            raise ValueError(f"{preferences}: {len(pairs)} pairs, of which {len(made.pairs)} are to be learned, do not "
                             f"fill a batch of {REWARD.batch_size}: give more")
        encode_pairs(made.pairs + made.held_out, tokenizer, max_seq_len=context)


def own_answers(records, tokenizer, context):
    """(records to train on and held-out ones, split by their questions as pairs are; their sequences), each a pair."""
    parts = [], []
    for record in records:
        parts[question_held_out(f"{record.question} {record.input}", 0.1)].append(record)
    if not all(parts):
        raise ValueError(f"{len(records)} answers leave one side of the split empty: give some to 50 questions or more")
    return parts, require_ends([encode_records(part, TEMPLATE, tokenizer, context) for part in parts], context)


def own_sft_stage(report, model, tokenizer, records):
    """Full tuning on the user's records, held to its own start -> the tuned model."""
    parts, (train, held_out) = own_answers(records, tokenizer, model.config.max_seq_len)
    lessons = Lessons(train, held_out, [], float("nan"))
    before = answer_loss(model, held_out)
    full = tune_or_load(report, "sft", model, tokenizer, lessons, with_steps(OWN_SFT, len(train)))
    questions = [record.question for record in parts[1][:ASKED]]
    made = answers(full.model, tokenizer, questions)
    report.advise(diagnose_tuning(full.history), diagnose_records(records, parts[1][:ASKED], made))
    report.measure("your answers", full.loss < before, n=len(held_out), before=before, after=full.loss)
    report.pages.append(before_after_page(list(zip(questions[:4], answers(model, tokenizer, questions[:4]), made[:4],
                                                   strict=True))))
    return full.model


def own_feedback(pairs, tokenizer, context):
    """The user's pairs as a `Feedback`: a tenth of the prompts is held out, and asked in the exam."""
    train, held_out = split_by_prompt(pairs, 0.1)
    practice, asked = (list(dict.fromkeys(pair.prompt for pair in part)) for part in (train, held_out))
    room = context - max(map(len, prompts_of(practice + asked, tokenizer)))
    if room < 2:
        raise ValueError(f"the longest prompt leaves {max(room, 0)} of {context} tokens for its answer: shorten it")
    return Feedback(train, held_out, practice, asked[:ASKED], {"pairs": zlib.crc32(repr(pairs).encode())},
                    max_new_tokens=answer_tokens(pairs, tokenizer, room))
