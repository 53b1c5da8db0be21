"""A curriculum: stages are trained on in their order, each for its share of the steps, also when the run is killed."""

import json
from dataclasses import replace
from functools import partial

import pytest
from checkpoints import in_a_folder
from mutants import Mutant
from test_command_line import model_folder, run, tokenizer_file
from test_sft import CONFIG, HELD_OUT, TRAIN, a_model, some
from test_training_commands import SHORT
from tiny_run import Killed, kill_after, one_thread, same_weights, without_times

from minillama.train.sft import FineTuning, SequenceBatches, fine_tune, stage_ends

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
FIXTURES = (model_folder, tokenizer_file)  # of test_cli, used here by name
STAGES = (5, 3, 2)


def tuned(model, **options):
    return fine_tune(model, TRAIN, HELD_OUT, CONFIG, progress=False, **options)


def test_each_stage_gets_its_share_of_the_steps_and_at_least_one():
    for counts in ([1], [7], [3, 3], [30, 10, 1], [1, 1, 98], [98, 1, 1], [1, 50, 1, 50]):
        for steps in (len(counts), len(counts) + 1, 13, 100, 997):
            ends = stage_ends(counts, steps)
            lengths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
            assert ends[-1] == steps and min(lengths) >= 1 and len(ends) == len(counts)
            if steps >= 100:  # rounding, and the one step that a tiny stage is given, move an end by little
                shares = [steps * count / sum(counts) for count in counts]
                assert all(abs(a - b) <= 1.5 for a, b in zip(lengths, shares, strict=True))
    with pytest.raises(ValueError, match="2 steps for 3 stages"):
        stage_ends([1, 1, 1], 2)


@pytest.mark.parametrize("pack_length", [0, 9])
def test_a_stage_draws_from_its_own_sequences_in_an_order_of_its_own(pack_length):
    config = replace(CONFIG, steps=20, batch_size=2, grad_accumulation=2, pack_length=pack_length)
    drawn = FineTuning(a_model(), TRAIN, HELD_OUT, config, None, STAGES)
    first = 0
    for sequences, begin, end in ((TRAIN[:5], 0, 10), (TRAIN[5:8], 10, 16), (TRAIN[8:], 16, 20)):
        alone = SequenceBatches(sequences, 4, config.seed, pack_length)
        for step in range(begin, end):
            rows = [row.tokens.tolist() for row in drawn.batches(step)]
            assert rows == [row.tokens.tolist() for row in alone(step - first)]
        first = end


def test_one_stage_is_no_stages():
    models = [a_model() for _ in range(2)]
    histories = [tuned(model, stages=stages) for model, stages in zip(models, ((), (10,)), strict=True)]
    assert same_weights(*models) and without_times(histories[0]) == without_times(histories[1])


def test_a_curriculum_broken_off_anywhere_ends_like_one_that_was_not(tmp_path):
    whole = a_model()
    history = tuned(whole, stages=STAGES)
    for after in range(7):
        with pytest.raises(Killed):
            tuned(kill_after(after, a_model()), folder=tmp_path / str(after), stages=STAGES)
        model = a_model()
        resumed = tuned(model, folder=tmp_path / str(after), stages=STAGES, resume=True)
        assert same_weights(model, whole) and without_times(resumed) == without_times(history)
    mixed = a_model()
    tuned(mixed)
    assert not same_weights(mixed, whole)


def test_other_stages_are_not_resumed(tmp_path):
    tuned(a_model(), folder=tmp_path, stages=STAGES)
    for other in ((), (3, 5, 2)):
        with pytest.raises(ValueError, match="cannot resume: stages is "):
            tuned(a_model(), folder=tmp_path, stages=other, resume=True)


@pytest.mark.parametrize("stages", [(5, 3), (10, 0), (5, 6, -1)])
def test_stages_that_do_not_add_up_are_refused(stages):
    with pytest.raises(ValueError, match="add up to the 10 sequences"):
        tuned(a_model(), stages=stages)


def test_easy_first_is_seen_in_the_order_of_learning():
    """Short questions in the first stage, long ones in the second: until its end no long row is drawn."""
    easy, hard = some(8)[::4], some(8)[3::4]
    run = FineTuning(a_model(), easy + hard, HELD_OUT, replace(CONFIG, steps=12), None, (len(easy), len(hard)))
    lengths = [{len(row.tokens) for row in run.batches(step)} for step in range(12)]
    assert lengths == [{5}] * 6 + [{11}] * 6


def test_files_given_in_order_are_the_stages(model_folder, tmp_path, capsys):
    paths = []
    for name, numbers in (("easy", range(1, 21)), ("hard", range(40, 50))):
        rows = [{"instruction": f"Count to {n}.", "output": str(n)} for n in numbers]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("sft", "--model", model_folder, "--data", *paths, *SHORT, "--steps", "6")
    code, _, err = run(capsys, *words, "--out", tmp_path / "out")
    assert code == 0 and f"{paths[0]}: 20 records" in err and f"{paths[1]}: 10 records" in err
    assert f"{paths[0]}: learned up to step 4\n{paths[1]}: learned up to step 6\n" in err
    code, _, err = run(capsys, *words, "--out", tmp_path / "out2", "--steps", "1", "--warmup-steps", "0")
    assert code == 2 and "1 steps for 2 stages" in err


plant = partial(Mutant, "minillama.train.sft")
MUTANTS = [
    plant("self.ends[stage - 1] if stage else 0", "0",
          lambda: test_a_stage_draws_from_its_own_sequences_in_an_order_of_its_own(0)),
    plant("bisect_right(self.ends, step)", "bisect_right(self.ends, step - 1)",
          test_easy_first_is_seen_in_the_order_of_learning),
    plant("steps - (len(counts) - 1 - stage)", "steps", test_each_stage_gets_its_share_of_the_steps_and_at_least_one),
    plant('if len(stages) > 1 else None', 'if False else None',
          lambda: in_a_folder(test_other_stages_are_not_resumed)),
]
