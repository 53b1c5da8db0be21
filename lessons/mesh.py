"""What training on a mesh of D x K processes costs, on paper: D share the model out (`sharded`), K cut every matrix
(`tensor_parallel`). Bytes that a process holds, bytes that it sends in a step, and their share of the step's time.

An all-gather or reduce-scatter of n bytes among N processes sends n (N - 1) / N from each, an all-reduce twice that
(ring algorithms; arXiv 1910.02054, section 7). Tests hold the formulas to the bytes that small runs send, counted.
"""

from minillama.checkpoint.meta import COLUMNS, ROWS
from minillama.checkpoint.weights import expected_shapes
from minillama.system.memory import activation_bytes

LINKS = {  # bytes a second, one way, that a process can send: the makers' figures
    "nvlink4": 450e9, "nvlink3": 300e9, "pcie4": 32e9, "infiniband-ndr": 50e9, "infiniband-hdr": 25e9,
    "ethernet-100": 12.5e9, "ethernet-10": 1.25e9}


def held_numbers(config, shards, cut):
    """(numbers of the blocks, of the rest) that a process holds of the weights, padding included: FSDP gives every
    process as many rows, rounded up, of each tensor that is left to it by the cut of its matrices."""
    counts = [0, 0]
    for name, (rows, *columns) in expected_shapes(config).items():
        part, width = name.removesuffix(".weight").rpartition(".")[2], columns[0] if columns else 1
        rows = -(-rows // cut) if part in ROWS else rows
        width = -(-width // cut) if part in (*COLUMNS, "tok_embeddings") else width
        counts[not name.startswith("layers.")] += -(-rows // shards) * width
    return counts


def training_bytes(config, shards=1, cut=1):
    """Bytes of weights, gradients and AdamW's two averages, all fp32, that a process holds between steps."""
    return 16 * sum(held_numbers(config, shards, cut))


def step_traffic(config, shards, cut, batches, tokens, size=4, recompute=False):
    """{what: bytes that a process sends in a step} of so many batches of so many tokens each, which its group learns
    one after another; the tokens of a row are a multiple of `cut`. size: bytes of a weight and of an activation;
    gradients are fp32. recompute: gradient checkpointing. gloo's tables; NCCL sends 1 / cut of the embedding's."""
    blocks, rest = held_numbers(config, shards, cut)
    others = shards - 1  # what a process holds goes to each of them, and as much comes back
    ring = (cut - 1) / cut
    stream = tokens * config.dim  # numbers of the residual stream
    # A block gathers it twice and adds it up twice, each way; what it computes again ends before its second sum.
    moved = (config.n_layers * (8 + 3 * recompute) + 2) * stream  # 2: before the head
    gains = 2 * 4 * (2 * config.n_layers + 1) * config.dim  # bytes of the norms' gradients, summed once a step
    table = -(-config.vocab_size // cut) * cut * tokens + 2 * stream  # the head; the embedding, on both ways
    return {"weights": others * batches * (2 * blocks + rest) * size, "gradients": others * (blocks + rest) * 4,
            "sums": ring * (batches * moved * size + gains),
            "tables": ring * batches * table * size}


def kept_bytes(config, rows, tokens, cut):
    """The least that a step keeps for its way back, in 16 bits, blocks computed again: of each block's input a process
    has its share of the tokens; the scores of the vocabulary it has whole."""
    return (activation_bytes(config, rows, -(-tokens // cut), 2, vocabulary=False, recompute=True)
            + 8 * rows * tokens * config.vocab_size)


def ppo_training_bytes(config, shards=1):
    """Bytes that a process holds between the steps of `ppo --shard`: `training_bytes` of a policy and of a value model
    that learn whole, and the weights of the reference and of a reward model, all of one shape, fp32."""
    return 2 * training_bytes(config, shards) + 8 * sum(held_numbers(config, shards, 1))


def ppo_traffic(config, shards, passes, updates, looks=1, size=4):
    """{what: bytes that a process sends in an iteration of `ppo --shard`}, as `step_traffic`, all of whose weights
    learn. passes: forward passes of the sampling, one for the prompts and one for each token of the longest answer but
    one; updates: of both models; looks: of the trust region at what the last of them led to."""
    blocks, rest = held_numbers(config, shards, 1)
    others, head = shards - 1, 0 if config.tie_embeddings else -(-config.vocab_size // shards) * config.dim
    judged = rest + config.dim  # with the row that reads the score, or the value; its bias is one number more
    weights = {"sampling": passes * blocks + rest,
               # the policy's log-probabilities when it has sampled and when it begins to learn, the reference's
               "judging": (3 + looks) * (blocks + rest) + 2 * (blocks + judged) + 1,
               "learning": updates * (4 * blocks + rest + judged + 1)}
    gradients = updates * (2 * blocks + rest + judged + 1 - head)  # the value model does not use its body's head
    return {**{what: others * size * count for what, count in weights.items()}, "gradients": others * 4 * gradients}


def describe_ppo(config, shards, tokens, updates=4):
    """Lines about an iteration of `ppo --shard` whose longest answer has so many tokens."""
    traffic = ppo_traffic(config, shards, tokens, updates, size=2)
    return [f"ppo on {shards} shards: {ppo_training_bytes(config, shards) / 2**30:.1f} GiB a process for policy, value "
            f"model, reference and reward model (alone: {ppo_training_bytes(config) / 2**30:.1f})",
            f"sent in an iteration of {tokens} answer tokens and {updates} updates: "
            + ", ".join(f"{name} {count / 2**30:.2f} GiB" for name, count in traffic.items())]


def communication_share(config, shards, cut, batches, tokens, link, flops, size=2, recompute=False):
    """The share of a step's time that goes to sending, where nothing is sent while computing: 6 FLOPs a weight and
    token (arXiv 2001.08361, section 2.1), 8 with `recompute`, at `flops` a second and process, and the bytes over a
    link of LINKS."""
    computing = (6 + 2 * recompute) * config.n_parameters() * batches * tokens / cut / flops
    sending = sum(step_traffic(config, shards, cut, batches, tokens, size, recompute).values()) / LINKS[link]
    return sending / (sending + computing)


def describe_mesh(config, shards, cut, rows, tokens, link="nvlink3", flops=0.4 * 312e12):
    """Lines about a step of `rows` x `tokens` for each group, on processes of `flops` a second (an A100's 312e12 in
    bf16, at the 40 % that is usual)."""
    traffic = step_traffic(config, shards, cut, 1, rows * tokens, 2, recompute=True)
    held, kept = training_bytes(config, shards, cut), kept_bytes(config, rows, tokens, cut)
    share = communication_share(config, shards, cut, 1, rows * tokens, link, flops, recompute=True)
    return [f"mesh {shards} x {cut}: {held / 2**30:.1f} GiB a process for weights, gradients and optimizer "
            f"(alone: {training_bytes(config) / 2**30:.1f})",
            f"a copy of {held * 3 / 4 / 2**30:.1f} GiB in main memory while a checkpoint is written",
            f"activations of {rows} x {tokens} tokens, blocks computed again: at least {kept / 2**30:.1f} GiB",
            "sent in a step (gradients in fp32, all else in 16 bits): "
            + ", ".join(f"{name} {count / 2**30:.2f} GiB" for name, count in traffic.items()),
            f"over {link} ({LINKS[link] / 1e9:g} GB/s): {share:.0%} of the step's time, were nothing overlapped"]
