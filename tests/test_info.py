"""Laws of `info`: what it says about this machine is what the libraries themselves say."""

import re

import torch
from mutants import Mutant

from minillama.config import PRESETS
from minillama.info import describe, devices
from minillama.kernels import built_backends
from minillama.memory import GIB, available_bytes, weights_bytes
from minillama.tokenizer import default_backend


def test_versions_backends_and_threads_are_the_real_ones():
    text = describe()
    assert torch.__version__ in text and f"threads: {torch.get_num_threads()}" in text
    assert f"tokenizer backend: {default_backend()}" in text
    assert f"kernel backends built: {', '.join(built_backends())}" in text
    assert devices()[0] == "cpu" and any("cuda" in name for name in devices()) == torch.cuda.is_available()


def test_a_star_stands_where_a_size_fits_and_nowhere_else():
    free, text = available_bytes(), describe()
    for name in [name for name in PRESETS if "b" in name]:
        cells = re.search(rf"^{name} +(.*)$", text, flags=re.M)[1]
        found = re.findall(r"([\d.]+)( \*)?", cells)
        for (shown, star), kind in zip(found, ("fp16", "int8", "nf4"), strict=True):
            needed = weights_bytes(PRESETS[name], kind)
            assert float(shown) == round(needed / GIB, 1)
            if free is None or abs(needed - free) > 0.1 * free:  # the free memory moves between two looks
                assert bool(star) == (free is not None and needed < free), (name, kind)


MUTANTS = [
    Mutant("minillama.info", "needed < free", "needed > free", test_a_star_stands_where_a_size_fits_and_nowhere_else),
]
