"""The settings of the tour."""

from dataclasses import dataclass

from minillama.bounds import MOST, check_config, number, seed


@dataclass(frozen=True)
class TourConfig:
    """What may be changed. Work is counted in steps, so that results do not depend on the machine's speed."""

    steps: int = number(800, 1, MOST)  # of pretraining on the procedural corpus
    text_steps: int = number(600, 1, MOST)  # of pretraining on real text
    text_dim: int = number(128, 32, 2**16)  # width of the model of real text, a multiple of 32
    text_max_lr: float = number(5e-3, 0, 10)  # its highest learning rate; a longer run wants a lower one
    documents: int = number(12000, 1, MOST)  # of the procedural corpus
    seed: int = seed()
    kernels: str = "torch"  # what computes attention and RoPE in both pretrainings, a name of backends.BACKENDS
    alternatives: bool = False  # the other ways to learn from feedback too, three minutes more
    progress: bool = True  # progress bars

    def __post_init__(self):
        check_config(self)
