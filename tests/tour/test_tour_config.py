"""The tour's settings and files are held against what it needs before it sets out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import Mutant

from minillama.tour import tour_config
from minillama.tour.tour import TourReport, tour
from minillama.tour.tour_config import TourConfig, check_inputs, code_digest
from minillama.transformer import Transformer

PACKAGE = Path(__file__).parents[2] / "minillama"


@pytest.mark.parametrize(("wrong", "message"), [
    ({"steps": 30}, "steps is 30: it must be a whole number from 31"),
    ({"text_steps": 30}, "text_steps is 30"), ({"text_dim": 33}, "text_dim is 33: it must be a multiple of 32"),
    ({"seed": -1}, "seed is -1"), ({"text_max_lr": 1e40}, "text_max_lr is 1e.40"),
    ({"documents": 99}, "documents is 99"),
    ({"kernels": "cudda"}, "kernels 'cudda' are not known")])
def test_a_setting_that_cannot_be_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        TourConfig(**wrong)
    TourConfig(steps=31, text_steps=31, documents=100, text_dim=32, text_max_lr=1e-12)


@pytest.mark.parametrize("dim", [32, 96, 160])
def test_the_model_of_real_text_has_heads_of_32_and_the_parameters_of_eight_thirds_of_its_width(dim):
    """4 layers: attention 4 D^2, feed-forward 3 D F with F = 8 D / 3 to the next multiple of 8, two norms D each; one
    table V D, used twice, and the last norm."""
    shape = TourConfig(text_dim=dim).text_shape(101)
    hidden = min(range(0, 999, 8), key=lambda width: abs(3 * width - 8 * dim))
    assert (shape.head_dim, shape.n_kv_heads, shape.max_seq_len) == (32, dim // 32, 256)
    assert shape.n_parameters() == 4 * (4 * dim**2 + 3 * dim * hidden + 2 * dim) + 101 * dim + dim


@pytest.mark.parametrize(("steps", "every"), [(31, 2), (40, 3), (600, 50), (1205, 100)])
def test_a_training_is_looked_at_a_dozen_times(steps, every):
    training = TourConfig(seed=7).pretraining(steps, 3e-3)
    assert (training.steps, training.max_lr, training.seed, training.eval_every) == (steps, 3e-3, 7, every)



def test_what_needs_more_memory_than_there_is_is_refused_with_the_estimate():
    with pytest.raises(ValueError, match="a corpus of 1000000000 documents needs 3814.70 GiB"):
        check_inputs(TourConfig(documents=10**9))


def test_each_estimate_is_held_against_the_memory_that_is_free(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_bytes(b"a line of text\n" * 300)
    asked = []
    monkeypatch.setattr(tour_config, "require_memory", lambda needed, what: asked.append((needed, what)))
    config = TourConfig(text_dim=96, documents=1000)
    check_inputs(config, [tmp_path / "text.txt"])
    weights = sum(p.numel() for p in Transformer(config.text_shape(1024)).parameters())
    assert asked == [(1000 * 4096, "a corpus of 1000 documents"), (16 * weights, "a model of text_dim 96"),
                     (4 * 300 * 15, "the text")]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("text", b"caf\xe9\n" * 2000, "text:1: byte 0xe9"), ("text", b"short\n", "text: 6 bytes of text: give 4000"),
    ("text", b" \n" * 9000, "no text in there"), ("sft", b'{"instruction": "a"}\n', "sft:1: field 'output' is missing"),
    ("preferences", b'{"prompt": "a"}', "preferences:1: field 'chosen' is missing"),
    ("preferences", json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}).encode(), "1 pairs leave the")])
def test_files_are_read_before_anything_is_trained_or_written(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr("minillama.tour.tour.TourReport", None)  # nobody sets out
    (tmp_path / name).write_bytes(content)
    given = {"text": [tmp_path / name]} if name == "text" else {name: tmp_path / name}
    with pytest.raises(ValueError, match=message):
        tour(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("pairs", "last", "message"), [
    (15, "Where then?", "do not fill a batch of 16"), (60, "What is it? " * 99, "the longest prompt leaves")])
def test_pairs_of_no_use_to_the_last_stages_are_refused_before_the_first_is_trained(tmp_path, pairs, last, message):
    (tmp_path / "text.txt").write_text("".join(f"A line of text, number {n}.\n" for n in range(400)))
    few = TourConfig(text_steps=31, progress=False)
    prompts = [f"Where is {n}?" for n in range(pairs)] + [last]
    rows = [{"prompt": prompt, "chosen": "Here.", "rejected": "No."} for prompt in prompts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        tour(tmp_path / "out", [tmp_path / "text.txt"], few, None, tmp_path / "pairs.jsonl")
    assert not (tmp_path / "out" / "stages").exists()


def edited(package, old, new, name="rms_norm.py"):
    """Replace `old`, which stands once in a file of the copied package."""
    text = (package / name).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (package / name).write_text(text.replace(old, new), encoding="utf-8")


def digest_of(package):
    return code_digest.__wrapped__(package)


@pytest.mark.parametrize(("old", "new", "same"), [
    ("    scale = torch.rsqrt(", "\n    # a comment, and an empty line\n    scale = torch.rsqrt(", True),
    ("keepdim=True) + eps)", "keepdim=True)\n                        + eps)", True),
    ("keepdim=True) + eps)", "keepdim=True) - eps)", False), ("eps: float = 1e-5", "eps: float = 1e-6", False)])
def test_the_digest_of_the_code_changes_with_what_is_computed_and_not_with_comments(tmp_path, old, new, same):
    (tmp_path / "parts").mkdir()
    for name in ("rms_norm.py", "rope.py"):
        shutil.copy(PACKAGE / name, tmp_path)
    before = digest_of(tmp_path)
    edited(tmp_path, old, new)
    assert (digest_of(tmp_path) == before) is same


@pytest.mark.parametrize("name", ["parts/new.py", "_ops.so", "_C.pyd", "parts/table.txt", "known.json"])
def test_the_digest_of_the_code_knows_every_folder_and_what_is_no_python(tmp_path, name):
    (tmp_path / "parts").mkdir()
    digests = [digest_of(tmp_path)]
    for content in (b"1", b"2"):
        (tmp_path / name).write_bytes(content)
        digests.append(digest_of(tmp_path))
    assert len(set(digests)) == 3 and {len(digest) for digest in digests} == {8}
    (tmp_path / "left.pyc").write_bytes(b"3")
    assert digest_of(tmp_path) == digests[-1]


STAGE = """from minillama.config import ModelConfig
from minillama.tokenizer import train_bpe
from minillama.tour.tour import TourConfig, TourReport, train_or_load
text = "the old goat and the old hen, " * 40
tokenizer = train_bpe([text], 280, hard_vocab_limit=False)
tokenizer.save("tokenizer.model")
config = TourConfig(progress=False)
shape = ModelConfig(32, 1, 2, tokenizer.vocab_size, hidden_dim=32)
train_or_load(TourReport("out", config), "pretrain", shape, tokenizer, "tokenizer.model", ([text] * 9, [text]),
              config.pretraining(31, 1e-3))
"""


def test_other_code_is_another_folder_and_is_told_where_there_was_one(tmp_path, monkeypatch, capsys):
    report = TourReport(tmp_path, TourConfig())
    first = report.folder("a", steps=1)
    first.mkdir(parents=True)
    assert report.folder("a", steps=1) == first and capsys.readouterr().out == ""
    monkeypatch.setattr("minillama.tour.tour.code_digest", lambda: "another")
    assert report.folder("a", steps=1) != first and "a is trained anew" in capsys.readouterr().out
    report.folder("b", steps=1)
    assert capsys.readouterr().out == ""


@pytest.mark.long
def test_an_edit_of_the_model_in_a_copy_of_the_package_trains_a_stage_anew_and_says_why(tmp_path):
    package = tmp_path / "minillama"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))

    def walked():
        """What the stage says, in a process of its own."""
        done = subprocess.run([sys.executable, "-c", STAGE], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    assert walked() == ""
    edited(package, "    scale = torch.rsqrt(", "    # by its root mean square\n    scale = torch.rsqrt(")
    assert walked().startswith("found trained in"), "a comment computes nothing"
    edited(package, "keepdim=True) + eps)", "keepdim=True) + 2 * eps)")
    assert walked() == "the code of minillama has changed since an earlier tour: pretrain is trained anew"
    edited(package, "2 * eps", "eps")
    assert walked().startswith("found trained in"), "the first code is there again"
    weights = [path.read_bytes() for path in tmp_path.glob("out/stages/*/consolidated.00.pth")]
    assert len(weights) == 2 and weights[0] != weights[1]


def _digest_of_a_library():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        test_the_digest_of_the_code_knows_every_folder_and_what_is_no_python(Path(folder), "_ops.so")


def _digest_without_comments():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        test_the_digest_of_the_code_changes_with_what_is_computed_and_not_with_comments(
            Path(folder), "keepdim=True) + eps)", "keepdim=True)\n                        + eps)", True)


MUTANTS = [
    Mutant("minillama.tour.tour_config", 'in (".so", ".pyd", ".json", ".txt")', 'in (".pyd", ".json", ".txt")',
           _digest_of_a_library),
    Mutant("minillama.tour.tour_config", "ast.dump(ast.parse(path.read_bytes())).encode()", "path.read_bytes()",
           _digest_without_comments),
]
