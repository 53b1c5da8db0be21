"""minillama: LLaMA from scratch, made to be read, run and trusted.

`import minillama` does no work and imports nothing heavy; each concept is a module of its own
(`minillama.rope`, `minillama.attention`, ...), and the README holds the map.
"""

__version__ = "0.1.0"
