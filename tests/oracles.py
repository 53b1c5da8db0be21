"""Oracles: formulas of the papers as plain float64 loops, with no tensor library and nothing of minillama.

Numbers in, numbers out (lists where a formula has many); slow on purpose. One section per subject.
"""

import math

# --- small pieces


def log_sigmoid(x):
    """log(1 / (1 + exp(-x))) without overflow on either side."""
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def mean(numbers):
    return math.fsum(numbers) / len(numbers)


def variance(numbers, unbiased=False):
    centre = mean(numbers)
    return math.fsum((x - centre) ** 2 for x in numbers) / (len(numbers) - (1 if unbiased else 0))


def clip(x, low, high):
    return low if x < low else high if x > high else x


def real(rows, mask):
    """The entries of `rows` whose mask is true, in reading order."""
    return [x for row, keep in zip(rows, mask, strict=True) for x, k in zip(row, keep, strict=True) if k]


# --- next-token loss


def log_softmax(logits):
    top = max(logits)
    log_sum = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - log_sum for x in logits]


def token_losses(logits, labels):
    """-log p of each learned token of one sequence: logits[t] scores label t + 1; -100 is not learned."""
    return [-log_softmax(logits[t - 1])[labels[t]] for t in range(1, len(labels)) if labels[t] != -100]


# --- preferences


def preference_loss(chosen, rejected, margin=0.0):
    """arXiv 2203.02155 eq. 1, with the margin of 2307.09288 eq. 2, one pair."""
    return -log_sigmoid(chosen - rejected - margin)


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta, flipped=0.0):
    """arXiv 2305.18290 eq. 7, one pair; `flipped`: probability that the label is the wrong way round."""
    inside = beta * (policy_chosen - reference_chosen) - beta * (policy_rejected - reference_rejected)
    return -(1 - flipped) * log_sigmoid(inside) - flipped * log_sigmoid(-inside)


# --- advantages (one answer: lists of its real tokens only)


def gae(rewards, values, gamma, lam):
    """arXiv 1506.02438 eq. 16 as the double sum; the value after the last token is 0."""
    after = list(values[1:]) + [0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return discounted_return(deltas, gamma * lam)


def discounted_return(rewards, gamma):
    length = len(rewards)
    return [math.fsum(gamma ** (s - t) * rewards[s] for s in range(t, length)) for t in range(length)]


# --- PPO


def whiten(numbers, keep_mean=False, unbiased=False, epsilon=1e-8):
    centre, spread = mean(numbers), math.sqrt(variance(numbers, unbiased) + epsilon)
    return [(x - centre) / spread + (centre if keep_mean else 0.0) for x in numbers]


def policy_objective(log_prob, old_log_prob, advantage, epsilon):
    """arXiv 1707.06347 eq. 7, one token (to be maximised)."""
    ratio = math.exp(log_prob - old_log_prob)
    return min(ratio * advantage, clip(ratio, 1 - epsilon, 1 + epsilon) * advantage)


def value_error(value, old_value, wanted, epsilon):
    clipped = old_value + clip(value - old_value, -epsilon, epsilon)
    return 0.5 * max((value - wanted) ** 2, (clipped - wanted) ** 2)


def kl_sample(log_p, log_q, estimator):
    """Schulman's three estimates of KL(p || q) from one sample of p."""
    log_ratio = log_q - log_p
    return {"k1": -log_ratio, "k2": 0.5 * log_ratio**2, "k3": math.exp(log_ratio) - 1 - log_ratio}[estimator]


def entropy(logits):
    return -math.fsum(math.exp(x) * x for x in log_softmax(logits))


def next_kl_coefficient(coefficient, kl, target, episodes, horizon):
    """arXiv 1909.08593, section 2.2, with the step scaled as episodes / horizon."""
    return coefficient * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)


# --- forward pass (lists of numbers; a vector is a list, a matrix a list of rows)


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def rms_norm(x, weight, epsilon):
    """arXiv 1910.07467 eq. 4, one vector, with epsilon under the root."""
    length = math.sqrt(math.fsum(v * v for v in x) / len(x) + epsilon)
    return [v / length * w for v, w in zip(x, weight, strict=True)]


def rope(x, position, theta=10000.0):
    """arXiv 2104.09864 eq. 13 for each pair (x[2i], x[2i + 1]) of one head, one token."""
    out = []
    for i in range(len(x) // 2):
        angle = position * theta ** (-2 * i / len(x))
        a, b = x[2 * i], x[2 * i + 1]
        out += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
    return out


def softmax(scores):
    top = max(scores)
    parts = [math.exp(x - top) for x in scores]
    total = math.fsum(parts)
    return [p / total for p in parts]


def attend(q, keys, values, sees):
    """arXiv 1706.03762 eq. 1, one query over lists of keys and values; sees[j]: may it see key j."""
    seen = [j for j in range(len(keys)) if sees[j]]
    width = len(values[0]) if values else len(q)
    if not seen:
        return [0.0] * width
    weights = softmax([dot(q, keys[j]) / math.sqrt(len(q)) for j in seen])
    return [dot(weights, [values[j][c] for j in seen]) for c in range(width)]


def attention(q, k, v, sees):
    """q[b][h][t], k and v[b][kv head][s], sees(b, t, s); neighbours share a kv head (arXiv 2305.13245)."""
    group = len(q[0]) // len(k[0])
    return [[[attend(query, k[b][h // group], v[b][h // group], [sees(b, t, s) for s in range(len(k[b][0]))])
              for t, query in enumerate(head)] for h, head in enumerate(row)] for b, row in enumerate(q)]


GATE_FUNCTIONS = {  # arXiv 2002.05202 section 2, with the exact GELU
    "glu": lambda x: 1 / (1 + math.exp(-x)),
    "bilinear": lambda x: x,
    "reglu": lambda x: max(0.0, x),
    "geglu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "swiglu": lambda x: x / (1 + math.exp(-x)),
}


def gated_linear_unit(x, w_gate, w_up, w_down, gate):
    """arXiv 2002.05202 eq. 6, one vector; matrices as rows of weights, one row per output."""
    hidden = [GATE_FUNCTIONS[gate](dot(g, x)) * dot(u, x) for g, u in zip(w_gate, w_up, strict=True)]
    return [dot(row, hidden) for row in w_down]


def llama_logits(weights, tokens, n_layers, n_heads, n_kv_heads, epsilon, theta=10000.0):
    """arXiv 2302.13971 section 2.2, one text. weights: Meta's names -> nested lists. Scores at each place."""
    stream = [weights["tok_embeddings.weight"][token] for token in tokens]
    width = len(weights["layers.0.attention.wq.weight"]) // n_heads
    for n in range(n_layers):
        w = {name.removeprefix(f"layers.{n}."): value for name, value in weights.items()}
        normed = [rms_norm(x, w["attention_norm.weight"], epsilon) for x in stream]

        def heads(name, count, turn, normed=normed, w=w):
            rows = [[dot(row, x) for row in w[f"attention.{name}.weight"]] for x in normed]
            parts = [[row[h * width:(h + 1) * width] for row in rows] for h in range(count)]
            return [[rope(x, t, theta) if turn else x for t, x in enumerate(head)] for head in parts]

        q, k, v = heads("wq", n_heads, True), heads("wk", n_kv_heads, True), heads("wv", n_kv_heads, False)
        mixed = attention([q], [k], [v], lambda b, t, s: s <= t)[0]
        joined = [[c for head in mixed for c in head[t]] for t in range(len(tokens))]
        stream = [[a + dot(row, j) for a, row in zip(x, w["attention.wo.weight"], strict=True)]
                  for x, j in zip(stream, joined, strict=True)]
        normed = [rms_norm(x, w["ffn_norm.weight"], epsilon) for x in stream]
        fed = [gated_linear_unit(x, *(w[f"feed_forward.{m}.weight"] for m in ("w1", "w3", "w2")), "swiglu")
               for x in normed]
        stream = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(stream, fed, strict=True)]
    final = [rms_norm(x, weights["norm.weight"], epsilon) for x in stream]
    return [[dot(row, x) for row in weights["output.weight"]] for x in final]


# --- sampling


def penalised(logits, seen, penalty):
    """arXiv 1909.05858 section 4.1 with the sign rule: a seen token's score only ever falls."""
    return [(x / penalty if x > 0 else x * penalty) if i in seen else x for i, x in enumerate(logits)]


def smallest_nucleus(probabilities, p):
    """arXiv 1904.09751 eq. 2 by trying every subset: how many tokens the smallest set of mass p or more has."""
    places = range(len(probabilities))
    numbers = range(1 << len(probabilities))  # the bits of a number say who is in
    subsets = ([probabilities[i] for i in places if bits >> i & 1] for bits in numbers)
    return min(len(subset) for subset in subsets if math.fsum(subset) >= p)


def next_token_probabilities(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seen=(), penalty=1.0):
    """Penalty, temperature, top-k, top-p, min-p, in this order; no ties in `logits`."""
    logits = [x / temperature for x in penalised(logits, seen, penalty)]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[:top_k] if top_k else order
    shares = dict(zip(kept, softmax([logits[i] for i in kept]), strict=True))
    if top_p < 1:
        kept = kept[:smallest_nucleus([shares[i] for i in kept], top_p)]
    kept = [i for i in kept if shares[i] >= min_p * shares[order[0]]]
    total = math.fsum(shares[i] for i in kept)
    return [shares[i] / total if i in kept else 0.0 for i in range(len(logits))]
