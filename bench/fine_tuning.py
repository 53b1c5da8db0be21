"""LoRA and QLoRA: seconds of a step and peak memory of the process, beside peft, transformers and bitsandbytes.

Each contender is a process of its own that loads the same file, hangs an adapter of rank 8 on all linear layers but the
head, and makes one step of AdamW whenever it is told to; memory is the most that was ever resident, Python and all.
Every token is learned, so ours, whose head reads only what is learned, is spared nothing by that.
"""

import json
import subprocess
import sys
import tempfile

import _rounds  # before torch: it speaks to OpenMP

RANK, ALPHA, LR = 8, 16.0, 2e-4
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_model(folder, small):
    """Random weights in Hugging Face's form, fp32."""
    import torch

    from minillama.checkpoint.huggingface import write_huggingface
    from minillama.checkpoint.weights import from_model
    from minillama.config import preset
    from minillama.transformer import Transformer

    torch.manual_seed(0)
    config = preset("tiny", dim=128, head_dim=32, hidden_dim=256) if small else preset("stories110m")
    write_huggingface(folder, from_model(Transformer(config)))
    return config


def our_step(folder, quantized, tokens_BT, backend="cpu"):
    """A function that makes one update and returns the loss before it."""
    from minillama.backends import use_kernels
    from minillama.checkpoint import load_model
    from minillama.peft.lora import LoRAConfig, add_lora
    from minillama.train.optimizer import AdamW
    from minillama.train.sequence_loss import model_loss
    from minillama.train.training_run import train_step

    model = use_kernels(load_model(folder, quantize="nf4" if quantized else None)[0], backend).train()
    add_lora(model, LoRAConfig(RANK, ALPHA, 0.0, ("attention.*", "feed_forward.*")))
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], LR, weight_decay=0.0)
    return lambda: train_step(optimizer, (model_loss(model, tokens_BT, tokens_BT) for _ in range(1)), 1.0)[0].item()


def their_step(folder, quantized, tokens_BT):
    """The same update by peft over transformers, with bitsandbytes' NF4 where quantized; torch's fused AdamW."""
    import peft
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    few = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                          bnb_4bit_compute_dtype=torch.float32) if quantized else None
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=few)
    model = peft.get_peft_model(base, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LAYERS),
                                                      task_type="CAUSAL_LM")).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step():
        optimizer.zero_grad()
        loss = model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    return step


def contend(whose, quantized, length, folder):
    """A child: a line in, a step and a line {"loss", "seconds", "peak": bytes} out."""
    import torch

    from minillama.system.memory import peak_memory

    torch.set_num_threads(int(_rounds.os.environ["OMP_NUM_THREADS"]))
    vocabulary = json.loads(_rounds.Path(folder, "config.json").read_text())["vocab_size"]
    tokens_BT = torch.randint(vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    step = {"ours": our_step, "peer": their_step}[whose](folder, quantized, tokens_BT)
    for _ in sys.stdin:
        losses = []
        took = _rounds.seconds(lambda losses=losses: losses.append(step()))
        print(json.dumps({"loss": losses[0], "seconds": took, "peak": peak_memory()}), flush=True)


class Contender:
    """A child that is told to make steps; `answers` keeps what it said."""

    def __init__(self, *words):
        self.process = subprocess.Popen([sys.executable, __file__, "--contend", *map(str, words)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.answers = []

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender died: run `{' '.join(self.process.args)}` and type a line to see why")
        self.answers.append(json.loads(line))
        return self.answers[-1]["seconds"]

    def end(self):
        self.process.communicate()


def compare(what, quantized, length, folder, config, rounds, with_peer):
    """The rows of one method: time of a step, and memory."""
    contenders = {whose: Contender(whose, quantized, length, folder)
                  for whose in ("ours", *(["peer"] if with_peer else []))}
    times = _rounds.alternate({name: contender.step for name, contender in contenders.items()}, rounds,
                              measure=lambda step: step())
    answers = {name: contender.answers for name, contender in contenders.items()}
    for contender in contenders.values():
        contender.end()
    first, bound = [rows[0]["loss"] for rows in answers.values()], 1e-2 if quantized else 1e-4
    if max(first) - min(first) > bound:  # the rows of q and k lie otherwise, so that groups of 256 scales differ
        raise SystemExit(f"the first losses differ, {first}: nothing is told")
    size = f"{config.n_parameters() / 1e6:.1f} M weights, 1 x {length} tokens, rank {RANK}"
    peaks = {name: [rows[-1]["peak"] / 2**20] for name, rows in answers.items()}
    return [_rounds.Row(f"{what}: a step, fp32", size, "s", times["ours"], times.get("peer"), more_is_better=False),
            _rounds.Row(f"{what}: most memory resident", size, "MiB", peaks["ours"], peaks.get("peer"),
                        more_is_better=False)]


def main(argv=None):
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--contend"]:
        whose, quantized, length, folder = words[1:]
        return contend(whose, quantized == "True", int(length), folder)
    chosen = _rounds.options(__doc__, words)
    peers = [_rounds.has_peer(name) for name in ("peft", "transformers", "bitsandbytes")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = write_model(folder, chosen.small)
        for what, quantized, length in (("LoRA", False, 256), ("QLoRA, NF4 in double quantization", True, 64)):
            length = length // 8 if chosen.small else length
            rows += compare(what, quantized, length, folder, config, chosen.rounds, all(peers[:3 if quantized else 2]))
    _rounds.show(rows)


if __name__ == "__main__":
    main()
