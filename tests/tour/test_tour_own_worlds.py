"""Laws of the little worlds of bench/own_tasks.py, and of the split: no stage learns what another is examined on."""

import itertools
import json
import random
import sys
from pathlib import Path

import pytest

from minillama.cli.training_commands import read_and_split
from minillama.evaluate.held_out import split_by_prompt, split_prompts
from minillama.rlhf.preferences import read_pairs, read_prompts
from minillama.tokenizer import train_bpe
from minillama.tour.tour_own import own_answers, own_feedback, own_files

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import _worlds  # noqa: E402


@pytest.fixture(scope="module", params=list(_worlds.WORLDS))
def brought(request, tmp_path_factory):
    """(world's name, the folder with its files)."""
    folder = tmp_path_factory.mktemp(request.param)
    _worlds.write_files(folder, request.param, posts=60, records=300, pairs=300)
    return request.param, folder


def test_no_question_of_an_exam_is_in_anything_that_a_stage_learns(brought):
    """By the tour and by the commands: fine-tuning, reward model and PPO hold out the same questions, a tenth."""
    name, folder = brought
    records, pairs = own_files(folder / "sft.jsonl", folder / "pairs.jsonl")
    tokenizer = train_bpe([pair.prompt + pair.chosen for pair in pairs], 400, hard_vocab_limit=False, progress=False)
    parts, _ = own_answers(records, tokenizer, 256)
    task = own_feedback(pairs, tokenizer, 256)
    arguments = type("Arguments", (), {"data": [folder / "sft.jsonl"], "skip_bad": False, "held_out_fraction": 0.1})
    (by_command,), left = read_and_split(arguments)
    train, held_out = split_by_prompt(read_pairs(folder / "pairs.jsonl"), 0.1)
    practice, asked = split_prompts(read_prompts(folder / "pairs.jsonl"), 0.1)
    learned = [{record.question for record in parts[0]}, {pair.prompt for pair in task.pairs}, set(task.practice),
               {record.question for record in by_command}, {pair.prompt for pair in train}, set(practice)]
    exams = [{record.question for record in parts[1]}, {pair.prompt for pair in task.held_out}, set(task.asked),
             {record.question for record in left}, {pair.prompt for pair in held_out}, set(asked)]
    assert all(exams) and not set.union(*learned) & set.union(*exams)
    assert 0.04 < len(set.union(*exams)) / len(set.union(*learned, *exams)) < 0.2


@pytest.mark.parametrize("name", _worlds.WORLDS)
def test_what_a_world_says_is_well_formed_and_what_is_wrong_costs(name):
    world, rng = _worlds.WORLDS[name], random.Random(name)
    asked = world.questions()
    assert len(asked) >= 300
    others = iter(asked)
    for _ in range(100):
        question = rng.choice(list(asked))
        answer = world.answer(asked[question], rng)
        quality, malformed = world.judged(asked[question], answer)
        assert not malformed and -6 <= quality <= 6
        assert world.judged(asked[question], answer + " Bananas fly.") == (quality - 1, True)
        sentence = _worlds.SENTENCE.match(answer)[0].strip()
        assert world.judged(asked[question], f"{answer} {sentence}") == (quality - 1, True), "said twice"
    assert world.judged(asked[next(others)], "") == (-1, True), "nothing is said of what was asked"


def test_another_things_name_is_no_answer():
    asked = _worlds.HARBOUR.questions()["When does the old ferry for Cork leave?"]
    assert _worlds.HARBOUR.judged(asked, "The ferry to Cork leaves at six.") == (2, False)
    for wrong in ("The barge to Cork leaves at six.", "The ferry to Hull leaves at six."):
        assert _worlds.HARBOUR.judged(asked, wrong) == (-2, True)


def test_steps_are_numbered_and_their_order_is_good_or_bad():
    asked = _worlds.ERRANDS.questions()["My lamp in the hall is wet, what now?"]
    for answer, wanted in (("1) pull the plug; 2) open the lamp; 3) close it. Is it still wet?", (4, False)),
                           ("1) close it; 2) open the lamp; 3) pull the plug. Is it still wet?", (0, False)),
                           ("1) pull the plug; 2) close it.", (2, False)), ("1) close it. Good luck.", (-1, False)),
                           ("1) pull the plug; 3) close it.", (1, True)), ("1) open the fan; 2) close it.", (-2, True)),
                           ("1) pull the plug; 2) turn off the power.", (0, True)),
                           ("1) pull the plug; 2) close it. Is it still hot?", (1, True)), ("1) close it", (-2, True))):
        assert _worlds.ERRANDS.judged(asked, answer) == wanted, answer


def test_the_right_number_is_the_question_s_own():
    asked = _worlds.TEAHOUSE.questions()["我们三位客人雨天想喝红茶，怎么点？"]
    for answer, wanted in (("三位客人请点三壶红茶。", (3, False)), ("请点三壶红茶。", (1, False)),
                           ("四位客人请点四壶红茶。", (-2, True)), ("您好！请点三壶。要浓一点吗？", (2, False))):
        assert _worlds.TEAHOUSE.judged(asked, answer) == wanted, answer


def test_the_guests_and_the_tea_of_a_question_are_tokens_of_its_answer(tmp_path):
    """Whole phrases, the pieces that SentencePiece's rules give so small a text, share none: nothing can be copied."""
    _worlds.write_files(tmp_path, "teahouse", posts=3000, records=1, pairs=1)
    texts, words = [path.read_text() for path in sorted((tmp_path / "text").iterdir())], _worlds.TEAHOUSE.words
    for split in (True, False):
        tokenizer = train_bpe(texts, 1024, hard_vocab_limit=False, split_unspaced=split, progress=False)
        for guests, tea in itertools.product(words["guests"], words["tea"]):
            asked, answered = (set(tokenizer.encode(text)) for text in (
                f"我们{guests}位客人雨天想喝{tea}，", f"{guests}位客人请点{guests}壶{tea}。"))
            assert ({guests, *tea} <= {tokenizer.decode([i]) for i in asked & answered}) is split


def test_pairs_are_right_wrong_by_their_share_or_turned_round(tmp_path):
    for wrong, inverted, share in ((0.0, False, 1.0), (0.2, False, 0.8), (0.0, True, 0.0), (0.2, True, 0.2)):
        made = _worlds.pairs_of(_worlds.KITCHEN, 3, 400, wrong, inverted)
        asked = _worlds.KITCHEN.questions()
        right = [_worlds.KITCHEN.judged(asked[pair["prompt"]], pair["chosen"])[0]
                 > _worlds.KITCHEN.judged(asked[pair["prompt"]], pair["rejected"])[0] for pair in made]
        assert abs(sum(right) / 400 - share) <= 4 * (0.2 * 0.8 / 400) ** 0.5 * (wrong > 0)
    _worlds.write_files(tmp_path, "harbour", posts=5, records=4, pairs=3)
    assert len((tmp_path / "text" / "0.txt").read_text().splitlines()) == 5
    assert [len((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("sft", "pairs")] == [4, 3]
    assert set(json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])) == {"prompt", "chosen", "rejected"}
