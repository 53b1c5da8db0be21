"""What fewer bits cost in quality: nats a token on one fixed text, by real weights in fp32, int8 and NF4.

The linear layers alone are quantized, as `--load-8bit` and `--load-4bit` do. All forms read the same tokens, so that
their differences are paired: `more` is the mean of what each token costs more than in fp32, `error` its standard error.
--record writes bench/eight_bits.json; lesson 22 reads it. SmolLM2's weights come in 4 bits, so its rows say what a
second rounding costs.
"""

import datetime
import json
import math
import os
from pathlib import Path

import _rounds  # first: it speaks to OpenMP before torch loads
import torch

from minillama.backends import use_kernels
from minillama.checkpoint import load_model
from minillama.kernels import built_backends
from minillama.parity.real_weights import smollm2_path

RECORD = _rounds.ROOT / "bench" / "eight_bits.json"
FORMS = {"fp32": None, "int8": "int8", "NF4": "nf4"}
WINDOW = 256  # tokens that see one another
TEXT = """Once there was a small girl who lived near a big lake. Her name was Mia, and she had a brown dog. Every
morning they walked along the water and looked for pretty stones. One day the dog found an old wooden box under a tree.
It was very heavy, and the lid did not move. "Help me, please," said Mia. She pulled, and the dog pulled too, but the
box stayed shut. So they ran home and asked her father. He came with a long stick and a warm smile. He put the stick
under the lid and pushed with all his strength. The box opened with a loud sound. Inside there was no gold. There was
only a letter and a little bell. The letter said, "Who finds this bell may ring it once, and a friend will come."

Mia was happy and afraid at the same time. She did not want to ring the bell alone, because she did not know the
friend. Her father told her that she could wait until the next day. In the night it rained, and the wind was cold. In
the morning a young bird sat on the grass. Its wing was wet, and it could not fly. Mia gave it some bread and put it in
the box, on a soft cloth. Then she rang the bell, once, as the letter had said. A boy came around the lake. "I heard a
bell," he said. "My grandmother lost one like it many years ago." They dried the bird together, and in the afternoon it
flew away over the trees. From then on Mia and the boy looked for stones together, and the dog carried them home."""


@torch.no_grad()
def nats_of(model, ids):
    """The nats of each token but the first of every window."""
    found = []
    for window in torch.tensor(ids).split(min(WINDOW, model.config.max_seq_len)):
        if len(window) > 1:
            logits = model(window[None, :-1])[0]
            found.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none").double())
    return torch.cat(found)


def measure(path, text=TEXT):
    """{form: nats a token, perplexity, how much more than fp32, standard error of that} of a model."""
    rows, exact = {}, None
    for form, kind in FORMS.items():
        model, tokenizer = load_model(path, dtype=torch.float32, quantize=kind)
        use_kernels(model.eval(), "cpu" if "cpu" in built_backends() else "torch")
        nats = nats_of(model, tokenizer.encode(" ".join(text.split()), bos=True))
        exact = nats if exact is None else exact
        more = nats - exact
        rows[form] = {"nats": round(nats.mean().item(), 4), "perplexity": round(math.exp(nats.mean().item()), 3),
                      "more": round(more.mean().item(), 4),
                      "error": round(more.std().item() / math.sqrt(len(more)), 4), "tokens": len(nats)}
    return rows


def models():
    """{name: path} of the real weights that are here."""
    found = {"stories260K": Path(os.environ.get("MINILLAMA_WEIGHTS", "")) / "stories260K.bin",
             "SmolLM2-135M-Instruct": smollm2_path()}
    return {name: path for name, path in found.items() if path and Path(path).is_file()}


def main(argv=None):
    def add(parser):
        parser.add_argument("--record", action="store_true", help="write bench/eight_bits.json")

    chosen, record = _rounds.options(__doc__, argv, add), {}
    for name, path in models().items():
        if chosen.small and name != "stories260K":
            continue
        record[name] = measure(path)
        for form, row in record[name].items():
            print(f"{name:22} {form:5} {row}", flush=True)
    if not record:
        print("no real weights here: name their folder in MINILLAMA_WEIGHTS, or `run.py weights`")
    elif chosen.record and not chosen.small:
        RECORD.write_text(json.dumps({"date": datetime.date.today().isoformat(), "machine": _rounds.machine(),
                                      "models": record}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
