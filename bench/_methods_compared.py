"""Every method of tuning on one model and one task: what `bench tuning` measures, in pieces that a stopped run keeps.

The base: a LLaMA of 0.22 M weights that has read stories and a forum. The task: FACTS of the forum's questions, each
with an answer drawn at random, which nothing but the pairs themselves tells. So the answer's form can be learned by few
numbers, its words only by as many as hold them: 8 bits a question. All methods see the same batches in the same steps.
"""

import copy
import json
import random
import statistics
import tempfile
from pathlib import Path

SEEDS = (0, 1, 2, 3, 4)
RATES = (2e-3, 1e-2, 5e-2)  # factors of five, for every method
FACTS, UNSEEN = 128, 64  # questions that are learned, and others, whose answers nobody knows
STEPS, BATCH, SIZE = 150, 16, 8  # SIZE: rank, virtual tokens, inner width of an adapter and of the ladder
PRETRAIN_STEPS = 200
STEP_ROUNDS = 7
SHAPE = {"dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 512, "hidden_dim": 176}
RACE = ("full", "lora of rank 1", "lora", "prompt", "p-tuning-v2", "ladder", "adapter", "bitfit", "ia3", "qlora",
        "dora", "prefix", "p-tuning", "parallel-adapter", "rslora", "embeddings")
DIVERGED = 1e9  # in the place of a loss that left finite numbers, for which JSON has no word


def make_small():
    """Two steps of everything, to see that it runs."""
    globals().update(FACTS=8, UNSEEN=4, STEPS=2, BATCH=4, PRETRAIN_STEPS=2, STEP_ROUNDS=1)


def kept(path, make, *arguments):
    """[row] of the JSON file, or of what `make` gives, which is then put there."""
    if not path.exists():
        rows = [make(*arguments)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


# ---- the base and the task

def tokens_of(tokenizer, seed, n, split):
    """A row of tokens of the pretraining text."""
    import numpy as np

    from minillama.corpus import mixture
    from minillama.train.data import Tokens

    texts = [document.text for document in mixture(seed, n, split)]
    return Tokens(np.array([i for text in texts for i in tokenizer.encode(text, bos=True, eos=True)]),
                  tokenizer.vocab_size)


def tokenizer_of_all():
    from minillama.corpus import mixture
    from minillama.tokenizer import train_bpe

    return train_bpe([document.text for document in mixture(0, 900)], 512)


def base_of(out, tokenizer, width=SHAPE["dim"]):
    """The pretrained model, made once and kept in `out`; its feed-forward layers grow with the width."""
    import torch
    from torch.nn.functional import cross_entropy

    from minillama.attention import torch_attention
    from minillama.config import ModelConfig
    from minillama.train.data import Batches
    from minillama.train.learning_rate import learning_rate
    from minillama.train.optimizer import AdamW
    from minillama.train.training_run import train_step
    from minillama.transformer import Transformer

    path = Path(out) / "base.pt"
    torch.manual_seed(0)
    shape = SHAPE | {"dim": width, "hidden_dim": SHAPE["hidden_dim"] * width // SHAPE["dim"]}
    model = Transformer(ModelConfig(**shape), torch_attention)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    optimizer, batches = AdamW(model.parameters()), Batches(tokens_of(tokenizer, 0, 2500, "train"), 16, 64, 0)
    for step in range(PRETRAIN_STEPS):
        optimizer.lr = learning_rate(step, PRETRAIN_STEPS, 4e-3, warmup_steps=30)
        tokens_BT, targets_BT = batches(step)
        train_step(optimizer, [cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten())], 1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def questions_and_answers(seed):
    """{question: an answer drawn at random}: FACTS to be learned, then UNSEEN others."""
    from minillama.corpus import forum

    rng, made = random.Random(f"facts {seed}"), {}
    while len(made) < FACTS + UNSEEN:
        question = forum.GRAMMAR.sample(rng, "{question}")
        answer = forum.GRAMMAR.sample(rng, "First {get} a {tool}. Then {verb} the {object} {spot}.", question.chosen)
        made.setdefault(question.text, answer.text)
    return made


def example(seed):
    """A question with its answer."""
    return " ".join(next(iter(questions_and_answers(seed).items())))


def facts_of(seed, tokenizer):
    """([Sequence] of the questions to be learned, [Sequence] of the others)."""
    from minillama.train.sequence_loss import encode_segments
    from minillama.train.templates import BOS, EOS, Segment

    rows = [encode_segments([BOS, Segment(question), Segment(f" {answer}", learn=True), EOS], tokenizer)
            for question, answer in questions_and_answers(seed).items()]
    return rows[:FACTS], rows[FACTS:]


def exact_answers(model, sequences):
    """The share of answers that greedy decoding gives word for word: where each token, behind the right ones before
    it, is the likeliest."""
    import torch

    from minillama.collate import IGNORE, collate

    with torch.no_grad():
        tokens_BT, labels_BT = collate(sequences)
        targets_BT = labels_BT[:, 1:]
        right_BT = (model(tokens_BT)[:, :-1].argmax(-1) == targets_BT) | (targets_BT == IGNORE)
    return right_BT.all(1).float().mean().item()


# ---- the methods

def prepared(name, base, seed=0, size=SIZE):
    """A copy of the base with what the method adds; what is trained requires a gradient."""
    from minillama.peft.dora import DoRALinear
    from minillama.peft.lora import LoRAConfig, LoRALinear, add_lora
    from minillama.peft.methods import add_method
    from minillama.quant.quantize_linears import quantize_linears
    from minillama.train.resume import own_random_state
    from minillama.train.vocabulary import train_vocabulary

    model = copy.deepcopy(base)
    with own_random_state(seed, "cpu"):
        if name == "embeddings":
            train_vocabulary(model)
        elif name in ("prefix", "p-tuning-v2"):  # with the encoder of its paper, and without one
            add_method(model, "prefix", size, h=base.config.dim if name == "prefix" else 0)
        elif name in ("lora", "lora of rank 1", "rslora", "dora", "qlora"):
            if name == "qlora":
                quantize_linears(model)
            rank = 1 if name == "lora of rank 1" else size
            config = LoRAConfig(rank, 2.0 * rank, 0.0, ("attention.*", "feed_forward.*"), name == "rslora")
            add_lora(model, config, DoRALinear if name == "dora" else LoRALinear)
        elif name != "full":
            add_method(model, name, size)
    return model


def merges(name):
    """Whether the method's change goes into the weights; "" where the weights themselves are trained."""
    from minillama.peft.methods import METHODS

    if name in ("full", "embeddings"):
        return ""
    return "no" if METHODS.get("prefix" if name == "p-tuning-v2" else name, ("", ""))[1] else "yes"


def numbers_trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def file_bytes(name, model):
    """Size of what is saved: the weights of the whole model in fp32, or the tensors of an adapter's folder."""
    import torch

    from minillama.peft.adapter_file import save_adapter

    if name in ("full", "embeddings"):
        return 4 * model.config.n_parameters()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * parameter.requires_grad  # a LoRA that was never trained is not saved
        save_adapter(folder, model)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def step_bytes(model, sequences):
    """What one step of BATCH sequences holds beside the model, counted: bytes that autograd keeps for the backward
    pass, and with them 4 bytes of gradient and 8 of AdamW's averages for each number trained -> (the first, all)."""
    import torch

    from minillama.collate import collate
    from minillama.train.sequence_loss import model_loss

    kept_storages, known = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}
    known |= {b.untyped_storage().data_ptr() for b in model.buffers()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept_storages[storage.data_ptr()] = storage.nbytes(), tensor  # held: no other takes its place
        return tensor

    tokens_BT, labels_BT = collate(sequences[:BATCH])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model_loss(model, tokens_BT, labels_BT)
    activations = sum(size for size, _ in kept_storages.values()) if loss.requires_grad else 0
    return activations, activations + 12 * numbers_trained(model)


# ---- runs

def tuned_at(rate, name, base, facts, unseen, seed):
    """(the tuned model, mean of its last 25 training losses) of one run; (None, DIVERGED) if it left finite numbers."""
    from minillama.train.sft import SftConfig, fine_tune

    learner = prepared(name, base, seed)
    settings = SftConfig(steps=STEPS, batch_size=BATCH, max_lr=rate, warmup_steps=min(20, STEPS - 1),
                         eval_every=0, eval_sequences=16, seed=seed)
    try:
        history = fine_tune(learner, facts, unseen, settings, progress=False)
    except FloatingPointError:
        return None, DIVERGED
    return learner, statistics.mean([row["loss"] for row in history if "loss" in row][-25:])


def measured(name, rate, base, data, seed):
    """A row of what one run gave."""
    from minillama.train.perplexity import held_out_loss
    from minillama.train.sft import answer_loss

    facts, unseen, text = data
    learner, training_loss = tuned_at(rate, name, base, facts, unseen, seed) if rate else (base, 0.0)
    row = {"seed": seed, "method": name, "rate": rate, "training_loss": training_loss}
    if learner is None:
        return row
    forgot = held_out_loss(learner, text, 64) - held_out_loss(base, text, 64)
    return row | {"loss": answer_loss(learner, facts, 64), "exact": exact_answers(learner, facts),
                  "unseen": answer_loss(learner, unseen, 64), "forgot": forgot}


def race(out, seeds=SEEDS, names=RACE):
    """Rows of all runs: each method at every one of RATES on the first seed, and on the others at the one whose last
    training losses were least there."""
    tokenizer, rows = tokenizer_of_all(), []
    base, text = base_of(out, tokenizer), tokens_of(tokenizer, 0, 100, "held-out")
    data = {seed: (*facts_of(seed, tokenizer), text) for seed in seeds}
    for seed in seeds:
        rows += kept(Path(out) / f"{seed}-none-0.json", measured, "none", 0, base, data[seed], seed)
    for name in names:
        for seed in seeds:
            for rate in RATES if seed == seeds[0] else [chosen_rate(rows, name, seeds[0])]:
                rows += kept(Path(out) / f"{seed}-{name}-{rate}.json", measured, name, rate, base, data[seed], seed)
                print(rows[-1], flush=True)
    return rows


def chosen_rate(rows, name, seed=SEEDS[0]):
    """The rate whose last training losses were least on the seed that all rates ran on."""
    return min((row for row in rows if row["method"] == name and row["seed"] == seed),
               key=lambda row: row["training_loss"])["rate"]


def costs(out, names=RACE):
    """{method: what it costs}: numbers, bytes, and seconds of a step on one core, in turns of all methods."""
    import time

    import _rounds

    from minillama.collate import collate
    from minillama.train.optimizer import AdamW
    from minillama.train.sequence_loss import model_loss
    from minillama.train.training_run import train_step

    tokenizer = tokenizer_of_all()
    base, facts = base_of(out, tokenizer), facts_of(SEEDS[0], tokenizer)[0]
    tokens_BT, labels_BT = collate(facts[:BATCH])
    models = {name: prepared(name, base).train() for name in names}

    def step(model):
        optimizer = AdamW(model.parameters(), 1e-4, weight_decay=0.0)
        return lambda: train_step(optimizer, (model_loss(model, tokens_BT, labels_BT) for _ in range(1)), 1.0)

    def cpu_seconds(work):
        start = time.process_time()
        work()
        return time.process_time() - start

    rows = {}
    for name, model in models.items():
        saved, together = step_bytes(model, facts)
        rows[name] = {"trained": numbers_trained(model), "share": numbers_trained(model) / base.config.n_parameters(),
                      "saved_bytes": saved, "step_bytes": together, "file_bytes": file_bytes(name, model),
                      "merges": merges(name)}
    times = _rounds.alternate({name: step(model) for name, model in models.items()}, STEP_ROUNDS, cpu_seconds)
    return {name: row | {"step_seconds": statistics.median(times[name])} for name, row in rows.items()}
