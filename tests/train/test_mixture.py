"""Laws of mixtures: shares are kept, every row of a source is read once an epoch, a stopped run goes on bit for bit."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import Mutant
from tiny_run import CONFIG, a_model, a_row, killed_after, one_thread, same_weights, without_times
from tiny_run import Killed as Stopped

from minillama.cli.command_line import main
from minillama.train import perplexity
from minillama.train.data import Tokens
from minillama.train.mixture import (
    MixedBatches,
    Mixture,
    Source,
    find_sources,
    held_out_loss,
    read_shares,
    tell_epochs,
    write_sources,
)
from minillama.train.pretrain import pretrain

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "docs" / "examples" / "llama_shares.json"
ODD = (0.5133, 0.3, 0.1371, -1)  # no multiples of a thousandth; the last is what is left


def a_mixture(shares=ODD, lengths=(400, 61, 33, 1000)):
    """Sources that tell themselves by their ids: source s holds s, s + V, s + 2 V, ..., each once."""
    shares = [share if share > 0 else 1 - sum(each for each in shares if each > 0) for share in shares]
    rows = [Tokens(np.arange(n) * len(shares) + s, len(shares) * 1000) for s, n in enumerate(lengths)]
    return Mixture([Source(f"source {s}", share, []) for s, share in enumerate(shares)], rows)


def drawn_by(batches, first, end):
    """The sources of these draws."""
    return np.array([source for _, source, _ in batches.draws(first, end)])


def test_shares_are_kept_within_a_hundredth_of_each_after_100_000_draws():
    sources = read_shares(LLAMA)
    assert [round(100 * source.share, 9) for source in sources] == [67, 15, 4.5, 4.5, 4.5, 2.5, 2]
    for each in (Mixture(sources, [a_row(40) for _ in sources]), a_mixture()):
        counts = np.bincount(drawn_by(MixedBatches(each, 1, 7, 0), 0, 100_000))
        for source, count in zip(each.sources, counts, strict=True):
            assert abs(count / 100_000 / source.share - 1) < 0.01, source  # of the share, not of the whole


def test_after_any_number_of_draws_a_source_has_its_share_to_a_row_or_two():
    for mixture in (a_mixture(), a_mixture((0.97, 0.01, 0.015, -1)), a_mixture((1.0,), (50,))):
        shares = np.array([source.share for source in mixture.sources])
        sources = drawn_by(MixedBatches(mixture, 1, 7, 0), 0, 3000)
        counts = (sources[:, None] == np.arange(len(shares))).cumsum(0)
        exact = np.arange(1, 3001)[:, None] * shares
        assert (abs(counts - exact) <= 0.5 + shares * len(shares) / 2 + 1e-9).all()


def test_draws_are_the_same_however_they_are_asked_for():
    shares = (0.25, 0.5, -1)  # ties at every turn
    for mixture in (a_mixture(), a_mixture(shares, (60, 60, 60)), a_mixture((0.002, 0.9, -1), (60, 60, 60))):
        batches = MixedBatches(mixture, 1, 7, 0)
        whole = batches.draws(0, 700)
        assert len(whole) == 700 and whole == sorted(whole)
        for n in (1, 3, 64):
            assert [draw for i in range(0, 700, n) for draw in batches.draws(i, min(i + n, 700))] == whole
        for source in range(len(mixture.sources)):
            rows = [row for _, s, row in whole if s == source]
            assert rows == list(range(len(rows)))


def test_every_row_of_a_source_is_read_once_in_each_of_its_epochs():
    batches = MixedBatches(a_mixture(), 5, 7, 3)
    seen = Counter()
    for step in range(400):
        tokens_BT, targets_BT = batches(step)
        assert tokens_BT.shape == (5, 7) and torch.equal(tokens_BT[:, 1:], targets_BT[:, :-1])
        assert (tokens_BT % 4 == tokens_BT[:, :1] % 4).all()  # a row has one source
        seen.update(tokens_BT[:, 0].tolist())
    for s, rows in enumerate(batches.rows):
        times = [seen[4 * 7 * row + s] for row in range(rows.n_windows)]
        assert max(times) - min(times) <= 1 and sum(times) == (drawn_by(batches, 0, 2000) == s).sum()
    assert min(seen.values()) < max(seen.values()) // 5  # epochs differ: the small source was read often


def test_batches_depend_on_seed_and_step_alone():
    one, other = (MixedBatches(a_mixture(), 3, 7, 1) for _ in range(2))
    later = [one(step)[0] for step in (700, 3, 333)]
    assert all(torch.equal(a, other(step)[0]) for a, step in zip(later, (700, 3, 333), strict=True))
    assert not torch.equal(MixedBatches(a_mixture(), 3, 7, 2)(3)[0], later[1])


def test_epochs_are_those_that_are_read(capsys):
    config = replace(CONFIG, steps=500, batch_size=2, grad_accumulation=3)
    tell_epochs(a_mixture(), config)
    lines = capsys.readouterr().err.splitlines()
    batches = MixedBatches(a_mixture(), 6, config.seq_len, 0)
    counts = np.bincount(drawn_by(batches, 0, 3000))
    for source, rows, count, line in zip(a_mixture().sources, batches.rows, counts, lines, strict=True):
        assert line.startswith(f"{source.name}: {100 * source.share:g} % of 3,000 rows, ")
        assert float(line.split()[-5]) == pytest.approx(count / rows.n_windows, abs=2 / rows.n_windows + 0.005)
        assert line.endswith(f" epochs of {len(rows.tokens):,} tokens")
    tell_epochs(a_row(), config)
    assert capsys.readouterr().err == ""


def of_counting():
    return Mixture([Source("threes", 0.7, []), Source("fours", 0.3, [])], [a_row(400), a_row(90, step=4)])


def test_the_loss_of_a_mixture_is_that_of_its_sources_by_their_shares():
    model, each = a_model(), of_counting()
    losses = [perplexity.held_out_loss(model, tokens, 7, 0, 4) for tokens in each.tokens]
    assert held_out_loss(model, each, 7, 0, 4) == pytest.approx(0.7 * losses[0] + 0.3 * losses[1], rel=1e-12)
    assert held_out_loss(model, each.tokens[0], 7, 0, 4) == losses[0]


def test_a_run_on_a_mixture_broken_off_and_resumed_ends_with_the_same_bits(tmp_path):
    def run(folder, model, resume=False):
        config = replace(CONFIG, grad_accumulation=2)
        return model, pretrain(model, of_counting(), of_counting(), config, tmp_path / folder, resume, False)

    whole, history = run("whole", a_model(dropout=0.2))
    for after in (1, 9, 14):
        with pytest.raises(Stopped):
            run(str(after), killed_after(after))
        model, resumed = run(str(after), a_model(dropout=0.2), resume=True)
        assert same_weights(model, whole) and without_times(resumed) == without_times(history)


def test_another_mixture_cannot_go_on_with_a_run(tmp_path):
    pretrain(a_model(), of_counting(), of_counting(), CONFIG, tmp_path, progress=False)
    sources = [source._replace(share=0.5) for source in of_counting().sources]
    for changed in (of_counting()._replace(sources=sources), of_counting()._replace(tokens=[a_row(401), a_row(90)])):
        with pytest.raises(ValueError, match="train_tokens is .* --text or --shares"):
            pretrain(a_model(), changed, changed, CONFIG, tmp_path, resume=True, progress=False)


HOSTILE = [
    ('{"a": 60, "b": 39}', "99 together"), ('{"a": 60, "b": 60}', "120 together"), ('{"a": 101, "b": -1}', "101"),
    ('{"a": 0, "b": 100}', "share of 'a' is 0"), ('{"a": NaN, "b": 50}', "nan"), ('{"a": Infinity, "b": 50}', "inf"),
    ('{"a": 1e400, "b": 50}', "inf"), ('{"a": true, "b": 99}', "True"), ('{"a": "50", "b": 50}', "'50'"),
    ('{"a": {"b": 3}, "b": 50}', "share of 'a'"), ('{"a": 50, "a": 50}', "named twice"),
    ('{"a": 50, "./a": 50}', "named twice"), ('{"a": 50, "a/inner": 50}', "inside another"),
    ('{"a": 50, "nowhere": 50}', "nowhere"), ('{"a": 50, "empty": 50}', "empty: no text"),
    ('{"a": 50, "blank.txt": 50}', "blank.txt: no text"), ('{"a": 50, "": 50}', "inside another"),
    ("{}", "no shares"), ("[50, 50]", "no shares"), ("3", "no shares"), ("", "not JSON"), ('{"a": 50', "not JSON"),
    ("[" * 100_000, "not JSON"), (b"\xff\xfe{", "not JSON")]


@pytest.mark.parametrize(("text", "said"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_file_of_shares_is_refused_in_a_line_before_any_work(text, said, tmp_path, capsys):
    for name in ("a/inner", "b", "empty"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/a.txt", "a/inner/c.txt", "b/b.txt"):
        (tmp_path / name).write_text("Some text.\n")
    (tmp_path / "blank.txt").write_text(" \n")
    shares = tmp_path / "shares.json"
    shares.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        find_sources(None, shares)
    assert said in str(error.value) and "\n" not in str(error.value) and "/" in str(error.value)
    assert main(["pretrain", "--shares", str(shares), "--tokenizer", str(shares), "--out", str(tmp_path / "o")]) == 2
    assert not (tmp_path / "o").exists() and said in capsys.readouterr().err.splitlines()[-1]


def test_a_source_too_small_for_a_row_is_named():
    with pytest.raises(ValueError, match="'source 2' has 5 tokens"):
        MixedBatches(a_mixture(lengths=(40, 61, 5, 30)), 1, 7, 0)


def test_pretrain_takes_a_file_of_shares_and_tells_epochs(tmp_path, capsys):
    for name, words in (("poems", "roses are red"), ("laws", "nobody may sleep here")):
        (tmp_path / name).mkdir()
        for i in range(40):
            (tmp_path / name / f"{i}.txt").write_text(f"{i}: {words}, {i} times. " * 3)
    (tmp_path / "shares.json").write_text(json.dumps({"poems": 87.5, "laws": 12.5}))
    assert main(["tokenizer", "train", "--text", str(tmp_path / "poems"), str(tmp_path / "laws"), "--vocab-size",
                 "300", "--out", str(tmp_path / "t.model")]) == 0
    words = ["pretrain", "--shares", str(tmp_path / "shares.json"), "--tokenizer", str(tmp_path / "t.model"), "--out",
             str(tmp_path / "out"), "--steps", "4", "--warmup-steps", "1", "--seq-len", "16", "--batch-size", "2"]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert re.search("poems: 87.5 % of 8 rows, .* epochs of .*\nlaws: 12.5 % of 8 rows, .* epochs of", err)
    assert (tmp_path / "out" / "params.json").exists()
    assert main([*words, "--resume", "--steps", "6"]) == 0
    (tmp_path / "shares.json").write_text(json.dumps({"poems": 50, "laws": 50}))
    assert main([*words, "--resume"]) == 2 and "--shares" in capsys.readouterr().err


@pytest.mark.parametrize(("is_main", "wanted"), [(True, ["write", "met", "open"]), (False, ["met", "open"])])
def test_of_several_processes_one_writes_the_sources_and_all_open_them_behind(is_main, wanted, monkeypatch):
    done = []
    module = sys.modules[write_sources.__module__]
    for name, word in (("write_train_and_held_out", "write"), ("wait_for_all", "met"),
                       ("open_train_and_held_out", "open")):
        monkeypatch.setattr(module, name, lambda *_, word=word: done.append(word))
    monkeypatch.setattr(module, "is_main_process", lambda: is_main)
    write_sources("nowhere", [Source("", 1.0, [])], None)
    assert done == wanted


MUTANTS = [
    Mutant("minillama.train.mixture", "(row + 0.5) / share", "(row + 0.5) / share**0.9",
           test_after_any_number_of_draws_a_source_has_its_share_to_a_row_or_two),
    Mutant("minillama.train.mixture", "time * self.shares - 0.5", "time * self.shares + 0.5",
           test_draws_are_the_same_however_they_are_asked_for),
    Mutant("minillama.train.mixture", "time in (first - slack,", "time in (first,",
           test_draws_are_the_same_however_they_are_asked_for),
    Mutant("minillama.train.mixture", "self.draws(step * self.batch_size,", "self.draws(step,",
           test_every_row_of_a_source_is_read_once_in_each_of_its_epochs),
    Mutant("minillama.train.mixture", "source.share * perplexity", "perplexity",
           test_the_loss_of_a_mixture_is_that_of_its_sources_by_their_shares),
]
