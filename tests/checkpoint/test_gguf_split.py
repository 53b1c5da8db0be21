"""Split GGUF files: any part opens the whole model, as the gguf package wrote it, and no part of another gets in."""

import pytest
import torch
from checkpoints import assert_same_weights, in_a_folder, model_of
from mutants import Mutant
from test_gguf_blocks import package
from test_gguf_llama import CONFIG

from minillama.checkpoint import load_model
from minillama.checkpoint.gguf import read_gguf, write_gguf
from minillama.checkpoint.gguf_llama import write_gguf_llama
from minillama.checkpoint.gguf_split import read_gguf_parts
from minillama.checkpoint.weights import from_model


def cut(folder, parts, name="m", seed=0, **changes):
    """A model in so many files, an odd number of tensors in each; changes: (settings of) parts by number."""
    write_gguf_llama(folder / "whole.gguf", from_model(model_of(CONFIG, seed)))
    settings, tensors = read_gguf(folder / "whole.gguf")
    rows = [(key, tuple(t.shape), 0, lambda t=t: t.read().clone()) for key, t in tensors.items()]
    for place in range(parts):
        split = {"split.no": place, "split.count": parts, "split.tensors.count": len(rows)}
        given = (settings if place == 0 else {}) | split | changes.get(f"part{place}", {})
        write_gguf(folder / f"{name}-{place + 1:05}-of-{parts:05}.gguf", given, rows[place::parts])
    return [folder / f"{name}-{place + 1:05}-of-{parts:05}.gguf" for place in range(parts)]


def test_any_part_opens_the_whole(tmp_path):
    for parts in (2, 3, 7):
        for path in cut(tmp_path, parts):
            assert_same_weights(model_of(CONFIG), load_model(path)[0])


def test_the_parts_that_the_package_writes_are_joined(tmp_path):
    write_gguf_llama(tmp_path / "whole.gguf", from_model(model_of(CONFIG)))
    settings, tensors = read_gguf(tmp_path / "whole.gguf")
    writer = package().GGUFWriter(None, "llama", split_max_tensors=4)
    for key, value in settings.items():
        if key.startswith("llama."):
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.read().numpy())
    writer.write_header_to_file(tmp_path / "theirs.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("theirs-*.gguf"))
    assert len(parts) > 2
    for path in parts:
        assert_same_weights(model_of(CONFIG), load_model(path)[0])


def test_missing_and_foreign_parts_are_named(tmp_path):
    first, second, third = cut(tmp_path, 3)
    good = {path: path.read_bytes() for path in (first, second, third)}
    other = cut(tmp_path, 3, "n", 1, part1={"llama.block_count": 3}, part2={"split.no": 1})
    for path, content, message in ((second, None, "missing beside it: m-00002-of-00003.gguf; fetch"),
                                   (second, other[1].read_bytes(), "llama.block_count is not as in m-00001-of-00003"),
                                   (third, other[2].read_bytes(), "inside that it is part 2 of 3"),
                                   (third, other[0].read_bytes(), "inside that it is part 1 of 3"),
                                   (third, good[third][:1000], "cut short")):
        path.write_bytes(content) if content else path.unlink()
        for given in (first, third):
            with pytest.raises(ValueError, match=message):
                read_gguf_parts(given)
        path.write_bytes(good[path])
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ValueError, match="name them as they were, NAME-00001-of-00003.gguf"):
        read_gguf_parts(tmp_path / "renamed.gguf")


def test_counts_are_held_against_what_is_there(tmp_path):
    for change, message in (({"split.tensors.count": 22}, "split.tensors.count is 22"),
                            ({"split.no": "0"}, "'0'"), ({"split.count": 10**6}, "split.count is 1000000"),
                            ({"split.count": 3}, "name them as")):
        with pytest.raises(ValueError, match=message):
            read_gguf_parts(cut(tmp_path, 2, part0=change, part1={"split.tensors.count": 22})[0])
    paths = cut(tmp_path, 2)
    name = next(iter(read_gguf(paths[0])[1]))
    write_gguf(paths[1], {"split.no": 1, "split.count": 2}, [(name, (2,), 0, lambda: torch.ones(2))])
    with pytest.raises(ValueError, match=f"tensor {name} is not as in m-00001"):
        read_gguf_parts(paths[0])


SPLIT = "minillama.checkpoint.gguf_split"
MUTANTS = [
    Mutant(SPLIT, "range(1, count + 1)", "range(1, count)", lambda: in_a_folder(test_any_part_opens_the_whole)),
    Mutant(SPLIT, " and whole.get(key) != value]", " and False]",
           lambda: in_a_folder(test_missing_and_foreign_parts_are_named)),
    Mutant(SPLIT, " or found.keys() & tensors.keys():", ":",
           lambda: in_a_folder(test_counts_are_held_against_what_is_there)),
]
