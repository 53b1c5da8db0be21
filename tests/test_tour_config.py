"""The tour's settings and files are held against what it needs before it sets out."""

import json

import pytest

from minillama.tour import tour
from minillama.tour_config import TourConfig, check_inputs


@pytest.mark.parametrize(("wrong", "message"), [
    ({"steps": 30}, "steps is 30: it must be a whole number from 31"),
    ({"text_steps": 20}, "text_steps is 20"), ({"text_dim": 33}, "text_dim is 33: it must be a multiple of 32"),
    ({"seed": -1}, "seed is -1"), ({"text_max_lr": 1e40}, "text_max_lr is 1e.40"), ({"documents": 5}, "documents is 5"),
    ({"kernels": "cudda"}, "kernels 'cudda' are not known")])
def test_a_setting_that_cannot_be_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        TourConfig(**wrong)


def test_what_needs_more_memory_than_there_is_is_refused_with_the_estimate():
    with pytest.raises(ValueError, match="a corpus of 1000000000 documents needs 3814.70 GiB"):
        check_inputs(TourConfig(documents=10**9))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("text", b"caf\xe9\n" * 2000, "text:1: byte 0xe9"), ("text", b"short\n", "text: 6 bytes of text: give 4000"),
    ("text", b" \n" * 9000, "no text in there"), ("sft", b'{"instruction": "a"}\n', "sft:1: field 'output' is missing"),
    ("preferences", b'{"prompt": "a"}', 'preferences:1: "chosen" is missing'),
    ("preferences", json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}).encode(), "1 pairs leave the")])
def test_files_are_read_before_anything_is_trained_or_written(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    given = {"text": [tmp_path / name]} if name == "text" else {name: tmp_path / name}
    with pytest.raises(ValueError, match=message):
        tour(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("pairs", "last", "message"), [
    (15, "Where?", "do not fill a batch of 16"), (60, "What is it? " * 99, "the longest prompt leaves")])
def test_pairs_of_no_use_to_the_last_stages_are_refused_before_the_first_is_trained(tmp_path, pairs, last, message):
    (tmp_path / "text.txt").write_text("".join(f"A line of text, number {n}.\n" for n in range(400)))
    few = TourConfig(text_steps=31, progress=False)
    prompts = [f"Where is {n}?" for n in range(pairs)] + [last]
    rows = [{"prompt": prompt, "chosen": "Here.", "rejected": "No."} for prompt in prompts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        tour(tmp_path / "out", [tmp_path / "text.txt"], few, None, tmp_path / "pairs.jsonl")
    assert not (tmp_path / "out" / "stages").exists()
