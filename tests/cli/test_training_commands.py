"""Laws of `sft` and `chat`: files in, a model or an adapter out, and a talk through pipes."""

import json

import pytest
import torch
from test_command_line import model_folder, run, tokenizer_file

from minillama.checkpoint import load_model
from minillama.peft.lora import lora_layers
from minillama.peft.lora_file import load_lora

FIXTURES = (model_folder, tokenizer_file)  # of test_cli, used here by name
SHORT = ("--steps", "2", "--warmup-steps", "1", "--batch-size", "2", "--held-out-fraction", "0.3", "--max-length", "64",
         "--template", "question_answer")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "lessons.jsonl"
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(1, 20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_sft_leaves_what_chat_talks_with(method, model_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    sft = ("sft", "--model", model_folder, "--data", data, "--out", out, "--method", method, *SHORT)
    code, said, err = run(capsys, *sft)
    assert (code, said) == (0, "") and "19 records, 0 bad ones skipped" in err and "held-out loss" in err
    if method == "full":
        assert load_model(out)[1] is not None
        words = ("--model", out)
    else:
        base = load_model(model_folder)[0]
        load_lora(out, base)
        assert any(layer.B.any() for layer in lora_layers(base).values())
        words = ("--model", model_folder, "--adapter", out, *(["--load-4bit"] if method == "qlora" else []))
    words = ("chat", *words, "--temperature", "2", "--max-new-tokens", "5")  # else it may end at once, and say nothing
    code, said, err = run(capsys, *words, stdin="Count to 3.\n/history\n/exit\nno\n")
    assert code == 0 and "user: Count to 3.\n" in said and "user: no" not in said
    code, _, err = run(capsys, *sft)
    assert code == 2 and "--resume" in err


@pytest.mark.parametrize(("flags", "dtype"), [
    ("--method full", torch.float32), ("--method embeddings", torch.float32), ("--method lora", torch.float16),
    ("--method lora --modules-to-save embed_tokens", torch.float32),
    ("--method full --dtype bfloat16", torch.bfloat16)])
def test_weights_that_learn_are_float32_and_those_under_an_adapter_stay_as_stored(flags, dtype, model_folder, data,
                                                                                  tmp_path, capsys, monkeypatch):
    def stop(model, *_, **__):
        raise ValueError(f"it holds {model.layers[0].attention_norm.weight.dtype}")

    assert run(capsys, "convert", model_folder, tmp_path / "half", "--to", "meta", "--dtype", "float16")[0] == 0
    monkeypatch.setattr("minillama.cli.training_commands.fine_tune", stop)
    code, _, err = run(capsys, "sft", "--model", tmp_path / "half", "--data", data, "--out", tmp_path / "out", *SHORT,
                       *flags.split())
    assert code == 2 and err.splitlines()[-1].endswith(f"it holds {dtype}")


@pytest.mark.parametrize(("flags", "dtype", "kind"), [
    ([], None, None), (["--dtype", "bfloat16"], torch.bfloat16, None), (["--load-8bit"], None, "int8"),
    (["--load-4bit", "--dtype", "float16"], torch.float16, "nf4")])
def test_what_loading_is_said_to_need_is_what_the_model_then_holds(flags, dtype, kind, model_folder, capsys,
                                                                       monkeypatch):
    needed = []
    monkeypatch.setattr("minillama.cli.model_arguments.require_memory",
                        lambda size, *words: needed.append(size) or "enough")
    assert run(capsys, "generate", "--model", model_folder, "--max-new-tokens", "1", *flags)[0] == 0
    state = load_model(model_folder, dtype=dtype, quantize=kind)[0].state_dict()
    held = sum({tensor.data_ptr(): tensor.nbytes for tensor in state.values()}.values())  # a tied table counts once
    assert needed[0] == pytest.approx(held, rel=0 if kind is None else 0.1)  # the estimate knows no tables of scales


def test_a_merged_adapter_speaks_as_the_two_parts_do(model_folder, data, tmp_path, capsys):
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    assert run(capsys, "sft", "--model", model_folder, "--data", data, "--out", adapter, *SHORT)[0] == 0
    words = ("merge", "--model", model_folder, "--adapter", adapter, "--out", out)
    assert run(capsys, *words)[0] == 0
    beside, merged = load_model(model_folder)[0].eval(), load_model(out)[0].eval()
    plain = beside(torch.arange(1, 12)[None])
    load_lora(adapter, beside)
    tokens_BT = torch.arange(1, 12)[None]
    assert (merged(tokens_BT) - beside(tokens_BT)).abs().max() < 1e-5
    assert (merged(tokens_BT) - plain).abs().max() > 1e-4, "the adapter does nothing: this test could not fail"
    assert run(capsys, "generate", "--model", out, "--max-new-tokens", "2")[0] == 0
    code, _, err = run(capsys, *words)
    assert code == 2 and "already holds a model" in err


def test_bad_records_stop_it_or_are_listed(model_folder, data, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(data.read_text() + '{"instruction": "Count to 20."}\n')
    words = ("sft", "--model", model_folder, "--data", path, "--out", tmp_path / "out", *SHORT)
    code, _, err = run(capsys, *words)
    assert code == 2 and err.splitlines()[-1] == f"minillama: error: {path}:20: field 'output' is missing"
    code, _, err = run(capsys, *words, "--skip-bad")
    assert code == 0 and f"{path}:20: field 'output' is missing" in err and "19 records, 1 bad ones skipped" in err


@pytest.mark.parametrize(("flags", "said"), [
    (("--held-out-fraction", "2"), "--held-out-fraction is 2.0: it must be a number"),
    (("--held-out-fraction", "0.00001"), "leave the held-out side of a file empty"),
    (("--max-length", "3"), "has an answer that begins within 3 tokens"),
    (("--rank", "0"), "--rank is 0: it must be a whole number from 1"),
    (("--steps", "0"), "steps"),
    (("--data", "nowhere"), "nowhere"),
])
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_written(flags, said, model_folder, data, tmp_path,
                                                                         capsys):
    out = tmp_path / "out"
    code, _, err = run(capsys, "sft", "--model", model_folder, "--data", data, "--out", out, *SHORT, *flags)
    assert code == 2 and said in err.splitlines()[-1] and not out.exists()


@pytest.mark.parametrize(("kind", "flag"), [("--nf4", "--load-4bit"), ("--int8", "--load-8bit")])
def test_a_quantized_folder_speaks_as_the_model_quantized_on_loading(kind, flag, model_folder, data, tmp_path, capsys):
    few = tmp_path / "few"
    plain = ["--no-fit-scales"] if kind == "--nf4" else []  # loading in 4 bits takes absmax for scales
    code, said, err = run(capsys, "quantize", model_folder, few, kind, *plain)
    assert (code, said) == (0, "") and f"quantized: {kind[2:]}" in err and f"generate --model {few}" in err
    code, said, _ = run(capsys, "info", few)
    assert code == 0 and f"quantized: {kind[2:]}" in said and "tokenizer: 320 pieces" in said
    words = ("--prompt", "Llama", "--temperature", "0", "--max-new-tokens", "8")
    told = run(capsys, "generate", "--model", few, *words)
    assert told[0] == 0 and told[1].startswith("Llama")
    assert run(capsys, "generate", "--model", model_folder, flag, *words)[:2] == told[:2]
    assert run(capsys, "generate", "--model", few, flag, *words)[:2] == told[:2]
    answers = [run(capsys, "chat", "--max-new-tokens", "5", *model, stdin="Count to 3.\n")
               for model in (("--model", few), ("--model", model_folder, flag))]
    assert answers[0][0] == 0 and answers[0][1] == answers[1][1]
    other = "--load-8bit" if flag == "--load-4bit" else "--load-4bit"
    for wrong, reason in ((("generate", "--model", few, other), "is quantized already"),
                          (("quantize", few, tmp_path / "x", kind), "is quantized already"),
                          (("quantize", model_folder, few, kind), "few exists"),
                          (("quantize", model_folder, tmp_path / "x", "--int8", "--block-size", "32"),
                           "belongs to --nf4"),
                          (("sft", "--model", few, "--data", data, "--out", tmp_path / "x", "--method", "full"),
                           "attach an adapter to it"),
                          (("merge", "--model", few, "--adapter", "none", "--out", tmp_path / "x"), "cannot change")):
        code, _, err = run(capsys, *wrong)
        assert code == 2 and reason in err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_an_adapter_is_tuned_on_a_quantized_folder_as_on_the_model_quantized_on_loading(model_folder, data, tmp_path,
                                                                                       capsys):
    """alpaca-lora's recipe: r 8, alpha 16, dropout 0.05 on q and v of an int8 base."""
    recipe = ("--rank", "8", "--alpha", "16", "--dropout", "0.05", "--targets", "attention.wq", "attention.wv")
    assert run(capsys, "quantize", model_folder, tmp_path / "few", "--int8")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "few").iterdir()}
    for out, model in (("a", ("--model", tmp_path / "few")), ("b", ("--model", model_folder, "--load-8bit"))):
        assert run(capsys, "sft", *model, "--data", data, "--out", tmp_path / out, *SHORT, *recipe)[0] == 0
    adapters = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in "ab"]
    assert adapters[0] == adapters[1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "few").iterdir()} == before
    model = load_model(tmp_path / "few")[0]
    load_lora(tmp_path / "a", model)
    assert {name.rpartition(".")[2] for name in lora_layers(model)} == {"wq", "wv"}
    assert run(capsys, "chat", "--model", tmp_path / "few", "--adapter", tmp_path / "a", "--max-new-tokens", "3",
               stdin="Count to 3.\n")[0] == 0


def test_pretrain_by_blanks_leaves_a_model_that_generate_lets_fill_them(tokenizer_file, tmp_path, capsys):
    text, out = tmp_path / "texts", tmp_path / "out"
    text.mkdir()
    for n in range(40):
        (text / f"{n}.txt").write_text(f"The cat number {n} sat on the mat. It was a good cat.", encoding="utf-8")
    words = ("pretrain", "--text", text, "--tokenizer", tokenizer_file, "--out", out, "--objective", "blank")
    sizes = ("--steps", "3", "--warmup-steps", "1", "--eval-windows", "2")
    code, _, err = run(capsys, *words, *sizes, "--seq-len", "19")
    assert code == 2 and "seq_len 19" in err.replace("--seq-len", "seq_len")
    assert run(capsys, *words, *sizes, "--seq-len", "40")[0] == 0
    model, tokenizer = load_model(out)
    assert model.config.vocab_size == tokenizer.vocab_size and "[gMASK]" in tokenizer.special_tokens
    whole, parts = tokenizer.encode("The cat sat on the mat."), tokenizer.encode("The [MASK] sat on the mat.",
                                                                                allowed_special="all")
    place = parts.index(tokenizer.special_tokens["[MASK]"])
    rest = len(parts) - place - 1
    assert whole[:place] == parts[:place] and whole[-rest:] == parts[-rest:]  # as training cut it
    code, said, err = run(capsys, "generate", "--model", out, "--prompt", "The [MASK] sat.", "--max-new-tokens", "3")
    assert code == 0 and said.startswith("The") and said.endswith("sat.") and "[MASK]" not in said
    code, _, err = run(capsys, "pretrain", "--text", text, "--model", out, "--out", tmp_path / "more", *sizes)
    assert code == 2 and "objective causal" in err.splitlines()[-1]
    assert_it_is_not_read_from_left_to_right(out, tmp_path, capsys)


def assert_it_is_not_read_from_left_to_right(out, tmp_path, capsys):
    """Every command that would do so says in one line that the model fills blanks, and writes nothing; a folder that
    does not name its objective is known by its tokens, and one that is converted, quantized or trained on keeps it."""
    assert run(capsys, "convert", out, tmp_path / "meta", "--to", "meta")[0] == 0
    assert run(capsys, "quantize", tmp_path / "meta", tmp_path / "few", "--nf4")[0] == 0
    old = json.loads((out / "params.json").read_text())
    assert all(json.loads((folder / "params.json").read_text())["objective"] == "blank"
               for folder in (out, tmp_path / "meta", tmp_path / "few"))
    assert run(capsys, "generate", "--model", tmp_path / "few", "--prompt", "The [MASK].")[0] == 0
    rows, new = tmp_path / "rows.jsonl", tmp_path / "new"
    rows.write_text("".join(json.dumps({"prompt": f"Is it {n}?", "chosen": "yes", "rejected": "no",
                                        "instruction": f"Is it {n}?", "output": "yes"}) + "\n" for n in range(30)))
    for folder in (tmp_path / "meta", tmp_path / "few", out):
        for words in (("chat", "--model", folder), ("chat", "--model", folder, "--web", "--record", new),
                      ("sft", "--model", folder, "--data", rows, "--out", new),
                      ("reward", "--model", folder, "--pairs", rows, "--out", new),
                      ("ppo", "--model", folder, "--reward", folder, "--prompts", rows, "--out", new),
                      ("convert", folder, new, "--to", "hf"), ("convert", folder, new, "--to", "gguf")):
            if folder == tmp_path / "few" and words[0] in ("reward", "ppo", "convert"):
                continue  # refused as a quantized one
            code, said, err = run(capsys, *words)
            assert code == 2 and not said and not new.exists(), words
            assert "fills blanks" in err.splitlines()[-1] or "it fills the [MASK] of a text" in err.splitlines()[-1]
        code, said, _ = run(capsys, "info", folder)
        assert code == 0 and "generate: yes\nchat, sft: no, it fills blanks\n" in said
        for each in (tmp_path / "few", out):  # from now on they do not say it themselves
            told = json.loads((each / "params.json").read_text())
            (each / "params.json").write_text(json.dumps({k: v for k, v in told.items() if k != "objective"}))
    assert load_model(out)[0].config.objective == "blank"
    (tmp_path / "meta" / "params.json").write_text(json.dumps({**old, "objective": "spans"}))
    code, _, err = run(capsys, "generate", "--model", tmp_path / "meta")
    assert code == 2 and "objective is 'spans': it must be one of causal, blank" in err.splitlines()[-1]


def test_only_a_unigram_tokenizer_draws_segmentations(tokenizer_file, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the owl and the hen")
    code, _, err = run(capsys, "pretrain", "--text", tmp_path / "text.txt", "--tokenizer", tokenizer_file, "--out",
                       tmp_path / "run", "--subword-sampling", "0.1")
    assert code == 2 and "of type bpe: only a unigram model draws segmentations" in err.splitlines()[-1]
    assert not (tmp_path / "run" / "train.bin").exists()
