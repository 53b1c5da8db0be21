"""minillama: LLaMA from scratch, made to be read, run and trusted.

`import minillama` does no work and imports nothing heavy; each concept is a module of its own
(`minillama.rope`, `minillama.attention`, ...), and the README holds the map.
"""

__version__ = "0.1.0"

# A module imports from its own floor or from a lower one. A room states its floor in its `__init__`; the modules beside
# this file stand on these, and the command line on top of all:
FLOORS = {"config_checks": 0, "plots": 0, "collate": 0, "rms_norm": 0, "rope": 0, "swiglu": 0, "kv_cache": 0,
          "config": 1, "sampling": 1, "attention": 1, "kernels": 1, "cuda_attention": 2, "transformer": 2,
          "generate": 3, "engine": 3, "backends": 3, "chat": 5, "__main__": 8}
