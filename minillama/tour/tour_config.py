"""The settings of the tour, all that can be found wrong before it sets out (it takes minutes), and the code it runs."""

import ast
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from minillama.backends import choose_operators
from minillama.config import ModelConfig
from minillama.config_checks import MOST, check_config, number, seed
from minillama.corpus.text_files import check_texts, files_below
from minillama.evaluate.held_out import split_by_prompt
from minillama.rlhf.preferences import read_pairs
from minillama.system.memory import require_memory
from minillama.train.pretrain import PretrainConfig
from minillama.train.records import read_records

TEXT_PIECES, TEXT_CONTEXT = 1024, 256  # vocabulary and context of the model of real text
LEAST_TEXT = 4000  # bytes: of pieces of up to 16, enough for a window to train on and some to hold out
DOCUMENT_MEMORY = 4096  # bytes that a document of the corpus takes, with what its grammar chose


@functools.cache
def code_digest(package=Path(__file__).parents[1]):
    """8 hex digits that tell whether the package still computes by the same code: of its Python files, comments and
    layout left out, its libraries and tables. Which of them a stage runs is not asked: any may decide its numbers.
    """
    found = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix == ".py":
            found.update(ast.dump(ast.parse(path.read_bytes())).encode())
        elif path.suffix in (".so", ".pyd", ".json", ".txt"):
            found.update(path.read_bytes())
    return found.hexdigest()[:8]


@dataclass(frozen=True)
class TourConfig:
    """What may be changed. Work is counted in steps, so that results do not depend on the machine's speed."""

    steps: int = number(800, 31, MOST)  # of pretraining on the procedural corpus
    text_steps: int | None = number(None, 31, MOST)  # of pretraining on real text; None: `text_stage` says
    text_dim: int = number(128, 32, 2**13)  # width of the model of real text, a multiple of 32
    text_max_lr: float | None = number(None, 1e-12, 10)  # its highest learning rate; None: likewise
    documents: int = number(12000, 100, MOST)  # of the procedural corpus
    rounds: int | None = number(None, 1, MOST)  # of PPO; None, as in the next two: what the task's own settings say
    ppo_lr: float | None = number(None, 1e-12, 10)  # the policy's highest learning rate
    kl_target: float | None = number(None, 1e-6, 1e6)  # nats of an answer that PPO's KL penalty steers to
    seed: int = seed()
    kernels: str = "torch"  # what computes attention and RoPE in both pretrainings, a name of backends.BACKENDS
    progress: bool = True  # progress bars

    def __post_init__(self):
        check_config(self)
        if self.text_dim % 32:
            raise ValueError(f"text_dim is {self.text_dim}: it must be a multiple of 32, the width of a head")
        choose_operators(self.kernels)

    def pretraining(self, steps, max_lr):
        """Of the forum or of real text."""
        return PretrainConfig(steps=steps, seq_len=128, max_lr=max_lr, seed=self.seed, eval_every=steps // 12)

    def text_shape(self, vocab_size):
        """The model of real text."""
        return ModelConfig(self.text_dim, 4, self.text_dim // 32, vocab_size, hidden_dim=8 * round(self.text_dim / 3),
                           max_seq_len=TEXT_CONTEXT, tie_embeddings=True)


def check_inputs(config, text=None, sft=None, preferences=None):
    """Read all files that were given, and estimate what the settings need; ValueError names what cannot be."""
    require_memory(config.documents * DOCUMENT_MEMORY, f"a corpus of {config.documents} documents")
    require_memory(16 * config.text_shape(TEXT_PIECES).n_parameters(), f"a model of text_dim {config.text_dim}")
    if text:
        check_texts(text)
        size = sum(path.stat().st_size for path in files_below(text))
        if size < LEAST_TEXT:
            raise ValueError(f"{', '.join(map(str, text))}: {size} bytes of text: give {LEAST_TEXT} or more")
        require_memory(4 * size, "the text")
    if sft:
        read_records(sft)
    if preferences:
        split_by_prompt(read_pairs(preferences), 0.1)
