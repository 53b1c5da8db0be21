"""Requests and answers in the form of OpenAI's API (platform.openai.com/docs/api-reference), and what goes beyond it.

Beyond it: `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids` and `adapter_scale`; `echo` of a prompt with
`logprobs`, as its older completions had it; with each token its `id`, `rank` and `entropy`; the prompt's tokens.

Several prompts, and `n` choices of each, are the rows of one batch, MOST_ROWS at most. Their draws are as
`sampling.row_chances` has them: the first choice of a prompt is what it gets alone with the same seed, and choice i the
i-th draw of that seed, whatever n is (not what another seed gives). Equal prompts count as choices of one another.
"""

import dataclasses
import time

from minillama.chat import Conversation
from minillama.config_checks import MOST, SEEDS, Range, check
from minillama.engine import MOST_ROWS
from minillama.generate import prompt_ids
from minillama.peft.lora import lora_layers
from minillama.web.request_guard import Refused

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
COMMON = {*SAMPLING, "model", "stream", "max_tokens", "stop", "seed", "n", "user", "adapter_scale", "stop_token_ids",
          "logprobs"}
KNOWN = {"chat": COMMON | {"messages", "top_logprobs", "max_completion_tokens"}, "text": COMMON | {"prompt", "echo"},
         "inspect": {"model", "tokens", "said", "adapter_scale"}}
MOST_TOP, MOST_STOPS, MOST_MESSAGES = 20, 16, 1000
MOST_TOKENS = 4096  # of several rows together, each as long as it may become; the context's length where that is more


@dataclasses.dataclass
class Loaded:
    """A model in memory, and how it answers where a request does not say."""

    name: str
    model: object
    tokenizer: object
    template: str
    sampling: object
    max_new_tokens: int = 256
    seed: int = 0
    system: str = ""
    factors: dict = dataclasses.field(default_factory=dict)  # LoRA's B of each layer, as it was learned

    def __post_init__(self):
        self.factors = {name: layer.B.detach().clone() for name, layer in lora_layers(self.model).items()}

    def scale_adapter(self, scale):
        """Add `scale` times what the adapter learned; ValueError where there is none that is a sum (LoRA's)."""
        if scale != 1 and not self.factors:
            raise ValueError("this model has no adapter of LoRA's kind to scale: give chat an --adapter")
        for name, layer in lora_layers(self.model).items():
            layer.B.data.copy_(self.factors[name] * scale)

    def described(self):
        """One entry of /v1/models."""
        c, kept = self.model.config, getattr(self.model, "cache_dtype", None) or self.model.tok_embeddings.weight.dtype
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "minillama", "template": self.template,
                "context": c.max_seq_len, "layers": c.n_layers, "adapter": bool(self.factors), "system": self.system,
                "kv_bytes_per_token": 2 * c.n_layers * c.n_kv_heads * c.head_dim * kept.itemsize,
                "temperature": self.sampling.temperature, "top_k": self.sampling.top_k, "top_p": self.sampling.top_p,
                "seed": self.seed, "max_tokens": self.max_new_tokens}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request, checked: what `token_facts.answers` takes, and how the answer is wanted."""

    prompts: list  # of lists of ids
    n: int  # choices of each
    max_new_tokens: int
    sampling: object
    stop: tuple
    seed: int
    stop_ids: set
    n_top: int | None  # how many of the likeliest tokens beside each; None: no logprobs
    stream: bool
    echo: bool = False

    @property
    def rows(self):
        """The prompts of all choices, in the order of their `index`."""
        return [ids for ids in self.prompts for _ in range(self.n)]


def value_of(body, name, kind, allowed=None, otherwise=None):
    """A field of the request, of that type and within `allowed`; `otherwise` where it is absent or null."""
    value = body.get(name)
    if value is None:
        return otherwise
    check(name, value, kind, allowed)
    return kind(value)


def check_names(body, kind):
    """Refuse what this server would have to ignore."""
    strange = sorted(set(body) - KNOWN[kind])
    if strange:
        known = ", ".join(sorted(KNOWN[kind]))
        raise Refused(400, f"{strange[0][:40]!r} is not known here: leave it out, or choose from {known}")


def read_asked(body, kind, loaded):
    """The request `body` of a kind, "chat" or "text", to the model `loaded` -> `Asked`; ValueError or TypeError."""
    check_names(body, kind)
    stop = body.get("stop")
    stop = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > MOST_STOPS or not all(isinstance(word, str) and word for word in stop):
        raise Refused(400, f"stop must be a text or up to {MOST_STOPS} texts, none of them empty")
    changes = {name: value_of(body, name, type(getattr(loaded.sampling, name))) for name in SAMPLING}
    sampling = dataclasses.replace(loaded.sampling, **{name: value for name, value in changes.items()
                                                       if value is not None})
    most = value_of(body, "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens", int,
                    Range(0, MOST), loaded.max_new_tokens)
    n = value_of(body, "n", int, Range(1, MOST_ROWS), 1)
    prompts, stops, stop_ids = (read_chat if kind == "chat" else read_prompts)(body, loaded, most, n)
    context, rows = loaded.model.config.max_seq_len, len(prompts) * n
    tokens = min(context, max(map(len, prompts)) + most)
    if rows > 1 and rows * tokens > max(context, MOST_TOKENS):
        raise Refused(400, f"{rows} rows of up to {tokens} tokens are more than the {max(context, MOST_TOKENS)} that "
                           "are answered at once: choose a smaller max_tokens, or ask for fewer")
    stop_ids = set(read_ids(body, "stop_token_ids", loaded)) if body.get("stop_token_ids") is not None else stop_ids
    return Asked(prompts, n, most, sampling, (*stops, *stop), value_of(body, "seed", int, Range(0, SEEDS), loaded.seed),
                 stop_ids, read_n_top(body, kind), value_of(body, "stream", bool, None, False),
                 value_of(body, "echo", bool, None, False) if kind == "text" else False)


def read_n_top(body, kind):
    """How many rivals each token comes with; None where no logprobs are asked for."""
    if kind == "text":
        return value_of(body, "logprobs", int, Range(0, MOST_TOP))
    wanted = value_of(body, "logprobs", bool, None, False)
    return value_of(body, "top_logprobs", int, Range(0, MOST_TOP), 0) if wanted else None


def read_chat(body, loaded, most, n):
    """([prompt], texts that stop, ids that stop) of a conversation: as `chat` puts the same messages to the model."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_MESSAGES:
        raise Refused(400, f"messages must be a list of 1 to {MOST_MESSAGES}")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) \
                or message.get("role") not in ("system", "user", "assistant"):
            raise Refused(400, "each message needs a role (system, user or assistant) and a content that is text")
    if messages[-1]["role"] != "user":
        raise Refused(400, f"the last message is of role {messages[-1]['role']!r}: it must be the user's")
    conversation = Conversation(loaded.tokenizer, loaded.template)
    conversation.messages = [{"role": message["role"], "content": message["content"]} for message in messages]
    context = loaded.model.config.max_seq_len
    ids = conversation.prompt(context - min(most, context // 2))
    return [ids], conversation.stop_texts(), conversation.stop_ids()


def read_prompts(body, loaded, most, n):
    """(prompts, no texts, ids that stop) of a text or a list of ids to go on from, as `generate` reads it, or of a list
    of either."""
    prompt = body.get("prompt", "")
    several = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)) else [prompt]
    if len(several) * n > MOST_ROWS:
        raise Refused(400, f"{len(several)} prompts with {n} choices each are more than the {MOST_ROWS} rows that are "
                           "answered at once: ask for fewer")
    if any(type(one) is not type(several[0]) for one in several):
        raise Refused(400, "the prompts must all be texts, or all lists of tokens")
    prompts = [prompt_ids(loaded.tokenizer, one) if isinstance(one, str) else
               read_ids({"prompt": one}, "prompt", loaded) for one in several]
    if not all(prompts):
        raise Refused(400, "a prompt holds no token: give at least one")
    return prompts, (), loaded.tokenizer.end_ids


def read_ids(body, name, loaded):
    """A list of ids of the vocabulary, not more than the context holds."""
    ids, config = body.get(name), loaded.model.config
    if not isinstance(ids, list) or len(ids) > config.max_seq_len:
        raise Refused(400, f"{name} must be a list of at most {config.max_seq_len} tokens")
    for index in ids:
        check(name, index, int, Range(0, config.vocab_size - 1))
    return ids


class Writer:
    """The answer to one request in the protocol's form: `chunk` by chunk, or `whole`."""

    def __init__(self, kind, asked, loaded):
        self.kind, self.asked, self.loaded = kind, asked, loaded
        self.head = {"id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{time.monotonic_ns():x}",
                     "created": int(time.time()), "model": loaded.name}

    def chunk(self, piece):
        """A `Piece` as one event of the stream."""
        choice = {"index": piece.index, "logprobs": self.logprobs(piece.tokens), "finish_reason": piece.finish}
        choice.update({"delta": {"content": piece.text}} if self.kind == "chat" else {"text": piece.text})
        kind = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self.head, "object": kind, "choices": [choice]}

    def whole(self, pieces):
        """All pieces as one answer, with what was counted: a prompt once, also where it has several choices."""
        rows = self.asked.rows
        choices = [self.choice(index, [piece for piece in pieces if piece.index == index])
                   for index in range(len(rows))]
        told = sum(len(piece.tokens) for piece in pieces) - self.asked.echo * sum(map(len, rows))
        usage = {"prompt_tokens": sum(map(len, self.asked.prompts)), "completion_tokens": told}
        return {**self.head, "object": "chat.completion" if self.kind == "chat" else "text_completion",
                "choices": choices, "usage": {**usage, "total_tokens": sum(usage.values())}}

    def choice(self, index, pieces):
        """One of the choices, of all its pieces; none have come where the answer was broken off."""
        text, tokens = "".join(piece.text for piece in pieces), [fact for piece in pieces for fact in piece.tokens]
        choice = {"index": index, "logprobs": self.logprobs(tokens),
                  "finish_reason": pieces[-1].finish if pieces else None}
        return {**choice, **({"message": {"role": "assistant", "content": text}} if self.kind == "chat"
                             else {"text": text})}

    def logprobs(self, tokens):
        """The facts of tokens in the form of this kind of answer; None where they were not asked for."""
        if self.asked.n_top is None:
            return None
        if self.kind == "chat":
            return {"content": list(tokens)}
        return {"tokens": [fact["token"] for fact in tokens], "facts": list(tokens),
                "token_logprobs": [fact.get("logprob") for fact in tokens],
                "top_logprobs": [{top["token"]: top["logprob"] for top in fact["top_logprobs"]} or None
                                 for fact in tokens]}
