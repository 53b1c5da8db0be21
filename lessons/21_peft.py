# %% [markdown] question
# # 21 · Other ways to tune few parameters
# Covers: `minillama/peft/methods.py`, `tests/peft/test_methods.py`, `docs/tuning.md`
# Needs: 18, 20
# Time: 20 s
# Teaches: delta tuning, adapters, prefix, prompt and P-tuning, BitFit, IA3, ladder, soft prompts
# Paper: [Ding et al. 2022](https://arxiv.org/abs/2203.06904), section 3
#
# **Question.** LoRA is one way to tune few parameters of a frozen model. What other
# ways are there, what does each cost, and which one fits your data and your memory?
#
# | symbol | in code | shape | meaning |
# |---|---|---|---|
# | $h$ | `h` | (D,) | what a layer puts out |
# | $W$ | `W` | (m, D) or (D, m) | a thin matrix that is trained |
# | $m$ | `m` | | inner width of an adapter |
# | $P$ | `soft` | (n, D) | a soft prompt: $n$ trained vectors |
# | $E$ | `table` | (V, D) | the embedding table: one vector for each word |
# | $K$, $V$ | | (T, d) | keys and values of a text in one layer |

# %% taxonomy
import torch

from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.peft.methods import METHODS, add_method
from minillama.transformer import Transformer


def small(seed=0):
    torch.manual_seed(seed)
    shape = ModelConfig(64, 2, 4, 512, hidden_dim=128)
    return Transformer(shape, torch_attention)


def change(name, model):
    if name == "lora":
        add_lora(model, LoRAConfig(8, targets=("attention.*", "feed_forward.*")))
    elif name != "full":
        add_method(model, name)
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def branch(name, trained):
    if all(n.endswith(".bias") for n, _ in trained):
        return "specification"
    merges = name == "lora" or not METHODS[name][1]
    return "reparameterization" if merges else "addition"

# %% table
base, text = small(), torch.arange(12)[None]
counts, moved, branches = {}, {}, {}
for name in ("lora", *METHODS):
    model = small()
    trained = change(name, model)
    branches[name] = branch(name, trained)
    counts[name] = sum(p.numel() for _, p in trained)
    moved[name] = (model(text) - base(text)).abs().max().item()
for name in sorted(counts, key=branches.get):
    print(f"{branches[name]:18} {name:16} {counts[name]:6,} parameters, "
          f"output moved at the start: {moved[name]:.2g}")

# %% [markdown] formula
# The paper sorts methods of *delta tuning* into three branches, and the code above does
# so by looking at what each one trains:
#
# - **Addition**: new parts beside the frozen ones, with a nonlinearity or with tokens
#   of their own. They stay parts: nothing to merge.
# - **Specification**: some of the parameters are chosen, here biases (*BitFit*). LLaMA
#   has none, so they are added openly, all zero.
# - **Reparameterization**: the change of a weight, written in fewer numbers: LoRA, and
#   IA3, which scales rows or columns. These merge.
#
# An adapter stands *in series*: it reads what a layer has put out. LoRA stands *in
# parallel*: it reads what the layer reads, and has nothing between its two matrices.
# $$h \leftarrow h + W_{up}\, \max(0, W_{down} h)$$
# ascii: h <- h + W_up max(0, W_down h)
#
# Fewer weights train, but the computation does **not** shrink, as is often written: the
# forward pass has all the old work and the new. Only a training step gets cheaper, for
# no gradient of the frozen weights is computed.

# %% flops
from torch.utils.flop_counter import FlopCounterMode


def flops(name):
    model = small().train()
    change(name, model)
    with FlopCounterMode(display=False) as forward:
        loss = model(text).logsumexp(-1).mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


work = {name: flops(name) for name in ("full", "lora", "adapter", "ladder")}
for name, (forward, backward) in work.items():
    print(f"{name:8} forward {forward / work['full'][0]:.0%}, "
          f"backward {backward / work['full'][1]:.0%} of full tuning's operations")

# %% picture
from minillama.plots import CONTEXT, CONTRAST, OURS, figure, show

extra = work["lora"][0] / work["full"][0] - 1
picture, axes = figure(f"Few weights train, {extra:.0%} more work in a forward pass")
box = {"boxstyle": "round,pad=0.5", "facecolor": "none"}
for x, y, words, colour in ((0.12, 0.5, "W (frozen)", CONTEXT),
                            (0.4, 0.36, "A", OURS), (0.4, 0.64, "B", OURS),
                            (0.75, 0.25, "W (frozen)", CONTEXT),
                            (0.75, 0.5, "W down, relu", CONTRAST),
                            (0.75, 0.75, "W up", CONTRAST)):
    axes.text(x, y, words, ha="center", va="center", color=colour,
              bbox=box | {"edgecolor": colour})
for x, y, words in ((0.26, 0.06, "x, read by both"), (0.75, 0.06, "x"),
                    (0.26, 0.94, "LoRA: the sum of both"),
                    (0.75, 0.94, "adapter: plus W's output")):
    axes.text(x, y, words, ha="center", va="center", color=CONTEXT)
for start, end in (((0.22, 0.11), (0.12, 0.42)), ((0.3, 0.11), (0.4, 0.28)),
                   ((0.4, 0.44), (0.4, 0.56)), ((0.12, 0.58), (0.22, 0.88)),
                   ((0.4, 0.72), (0.3, 0.88)), ((0.75, 0.11), (0.75, 0.17)),
                   ((0.75, 0.33), (0.75, 0.42)), ((0.75, 0.58), (0.75, 0.67)),
                   ((0.75, 0.83), (0.75, 0.88))):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": CONTEXT})
axes.axis("off")
show(picture, "LoRA in parallel with a frozen weight, an adapter in series behind it")

# %% [markdown] prompts
# **Prompts, hard and soft.** A hard prompt is words: rows of $E$, searched for by a
# person (*prompt learning*). *Prompt tuning* trains the vectors $P$ themselves, which
# need be no words. *P-tuning* lets a small network write $P$. *Prefix tuning* and
# *P-tuning v2* train keys and values in every layer:
# $$\text{attention}(Q, [P_K; K], [P_V; V])$$
# ascii: attention(Q, [P_K; K], [P_V; V])
#
# Here $Q$ is the text's queries, $P_K$ and $P_V$ the trained keys and values before its
# own. Even keys that are all zero take a part of softmax's weight: a new prefix is not
# its base, as the first table shows. A soft prompt speaks once, at the input, and only
# through frozen layers. That is why it is weak in a small model, and why P-tuning v2
# speaks in every layer.

# %% train
import copy
import itertools

from torch.nn.functional import cross_entropy

from minillama.corpus import forum, mixture
from minillama.peft.prompt_tuning import add_prompt
from minillama.tokenizer import train_bpe
from minillama.train.optimizer import AdamW

mixed = [document.text for document in mixture(0, 900)]
tokenizer = train_bpe(mixed, 512)


def rows(texts, T=40):
    ids = [i for text in texts for i in tokenizer.encode(text, bos=True, eos=True)]
    return torch.tensor(ids[:len(ids) // T * T]).view(-1, T)


def loss_on(model, tokens):
    return cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(model, tokens, steps, rate):
    optimizer = AdamW(model.parameters(), rate, weight_decay=0.0)
    for _, batch in zip(range(steps), itertools.cycle(tokens.split(16)), strict=False):
        optimizer.zero_grad()
        loss_on(model, batch).backward()
        optimizer.step()
    return model.eval()

# %% words
polite = [document.text for document in forum.documents(5, 1500)
          if "Good question!" in document.text or "Happy to help!" in document.text]
base = train(small(), rows(mixed), 150, 6e-3)
data = rows(polite)
learn, unseen = data[:-30], data[-30:]
soft_model = copy.deepcopy(base)
add_prompt(soft_model, 8)
train(soft_model, learn, 60, 0.05)
soft, table = soft_model.virtual_tokens.embedding, base.tok_embeddings.weight
nearest = torch.cdist(soft.detach(), table).argmin(1)
hard_model, words = copy.deepcopy(base), nearest.tolist()
add_prompt(hard_model, 8, words)
with torch.no_grad():
    put_before = torch.cat([nearest.expand(30, 8), unseen], 1)
    same = hard_model(unseen) - base(put_before)[:, 8:]
    nats = {name: loss_on(model, unseen).item() for name, model in
            (("no prompt", base), ("soft", soft_model), ("words", hard_model))}
print("nearest pieces:", [tokenizer.decode([i]) for i in words])
print({name: round(value, 3) for name, value in nats.items()})

# %% ladder
def kept_bytes(name):
    model, kept = small(), {}
    change(name, model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.hidden_states(torch.zeros(4, 64, dtype=torch.int64))
    return sum(size for size, _ in kept.values())


kept = kept_bytes("ladder") / kept_bytes("lora")
print(f"kept for the backward pass: a ladder {kept:.0%} of what LoRA keeps")

# %% [markdown] exercise
# **Memory.** LoRA trains few numbers, but gradients still pass through every layer, so
# activations are kept. A *ladder* is a narrow network beside the model that reads its
# layers: no gradient enters the base.
#
# **All methods on one task.** `bench tuning` had each method learn 128 questions whose
# answers were drawn at random, with equal steps and one search for the rate. The figure
# reads its record; `docs/tuning.md` has all columns and names a method for your data
# and memory.
#
# **Exercise.** Write attention behind a prefix, an adapter and the nearest words in
# `lessons/exercises/ex21_peft.py`. Then `python3 run.py check 21`.

# %% closing
import json

from minillama.course.lesson import ROOT

path = ROOT / "bench" / "tuning.json"
record = json.loads(path.read_text())["methods"]
found = {row["method"]: row for row in record["summary"] if row["trained"]}
exact = {name: sum(row["exact"]) / len(row["exact"]) for name, row in found.items()}
picture, axes = figure("Answers by heart need parameters to hold them",
                       "trainable parameters, % of the model", "answers known, %")
for name, row in found.items():
    place, colour = (100 * row["share"], 100 * exact[name]), OURS
    axes.plot(*place, "o", color=colour)
    if name in ("full", "lora", "prompt", "ladder", "bitfit", "lora of rank 1"):
        axes.annotate(name, place, (4, 5), textcoords="offset points", color=colour)
axes.set(xscale="log", xlim=(0.1, 300), ylim=(-5, 110))
show(picture, f"Full tuning knows {exact['full']:.0%}, LoRA {exact['lora']:.0%}, "
     f"a soft prompt {exact['prompt']:.0%} of the answers")
assert set(branches.values()) == {"addition", "specification", "reparameterization"}
assert work["full"][0] < work["lora"][0] and work["lora"][1] < work["full"][1]
assert moved["lora"] == moved["adapter"] == moved["ladder"] == 0 < moved["prefix"]
assert same.abs().max() < 1e-3 and nats["soft"] < min(nats["no prompt"], nats["words"])
assert kept <= 0.6 and exact["full"] > exact["lora of rank 1"] > exact["prompt"]
print(f"You should see: a soft prompt at {nats['soft']:.2f} nats, its nearest words at "
      f"{nats['words']:.2f}; a ladder keeps {kept:.0%} (below 60); of random answers "
      f"full tuning knows {exact['full']:.0%}, a prompt {exact['prompt']:.0%}")
