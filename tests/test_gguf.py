"""The GGUF container: what llama.cpp's own Python package writes we read, and a damaged file is refused."""

import math

import numpy as np
import pytest
import torch
from checkpoints import in_a_folder
from mutants import Mutant
from test_gguf_blocks import numbers, package

from minillama.checkpoint.gguf import read_gguf, write_gguf
from minillama.checkpoint.gguf_llama import read_gguf_llama


def test_the_file_of_the_package_is_read_setting_by_setting(tmp_path):
    path = tmp_path / "model.gguf"
    writer = package().GGUFWriter(path, "llama")
    writer.add_uint32("one", 7)
    writer.add_int8("minus", -3)
    bounds = {f"{sign}int{bits}": (2**bits - 1 if sign else -2**(bits - 1))
              for bits in (8, 16, 32, 64) for sign in ("u", "")}
    for kind, value in bounds.items():
        getattr(writer, f"add_{kind}")(kind, value)
    writer.add_float32("half", 0.5)
    writer.add_array("numbers", [-1, 2, 2**31 - 1])
    writer.add_float64("pi", math.pi)
    writer.add_bool("yes", True)
    writer.add_string("text", "\u4f60\u597d")
    writer.add_array("strings", ["a", "", "c"])
    writer.add_array("floats", [0.5, -1.5])
    matrix, vector = numbers(64 * 32), np.arange(3, dtype=np.float32)
    writer.add_tensor("matrix", matrix)
    writer.add_tensor("vector", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    settings, tensors = read_gguf(path)
    assert settings == {"general.architecture": "llama", "one": 7, "minus": -3, "pi": math.pi, "yes": True,
                        "half": 0.5, **bounds,
                        "numbers": [-1, 2, 2**31 - 1], "text": "\u4f60\u597d", "strings": ["a", "", "c"],
                        "floats": [0.5, -1.5]}
    assert tensors["matrix"].shape == matrix.shape and np.array_equal(tensors["matrix"].read().numpy(), matrix)
    assert tensors["vector"].shape == (3,) and np.array_equal(tensors["vector"].read().numpy(), vector)


def test_a_damaged_file_gets_one_clear_line(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, {"a": 1, "general.architecture": "llama"}, [("m", (2, 32), 8, lambda: torch.ones(2, 32))])
    good = path.read_bytes()
    count, entry = good.index(b"GGUF") + 8, good.index(b"m" + b"\x02\0\0\0")
    for content, message in (
            (b"GGML" + good[4:], "does not begin with 'GGUF'"), (good[:4] + b"\1" + good[5:], "version 1: read"),
            (good[:4] + b"\0\0\0\3" + good[8:], "big-endian.*gguf-convert-endian"), (good[:4] + bytes(4), "version 0"),
            (good[:20], "takes"), (good[:-40], "cut short"),
            (good[:count] + b"\xff" * 8 + good[count + 8:], "do not fit"),
            (good[:entry + 5] + b"\x1f" + good[entry + 6:], "multiples of 32"),  # rows of 31
            (good[:entry + 21] + b"\x17" + good[entry + 22:], "m is of type IQ4_XS; read here are F32.*llama-quantize"),
            (good[:entry + 21] + b"\xf0" + good[entry + 22:], "m is of type number 240; read here are F32"),
            (good[:entry + 25] + b"\x20" + good[entry + 26:], "lies at 32 to 100"),
            (good[:24] + b"\xff" * 8 + good[32:], "takes 18446744073709551615 bytes")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_gguf(path)
    path.write_bytes(good)
    with pytest.raises(ValueError, match="m is no tensor of a LLaMA"):
        read_gguf_llama(path)


def test_version_2_is_read_like_version_3(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, {"a": 1}, [("m", (3, 32), 8, lambda: torch.ones(3, 32))])
    path.write_bytes(b"GGUF\2" + path.read_bytes()[5:])
    settings, tensors = read_gguf(path)
    assert settings == {"a": 1} and torch.allclose(tensors["m"].read(), torch.ones(3, 32), rtol=2**-10)  # fp16's step


def test_the_packages_big_endian_file_is_told_as_such(tmp_path):
    writer = package().GGUFWriter(tmp_path / "big.gguf", "llama", endianess=package().GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="big-endian"):
        read_gguf(tmp_path / "big.gguf")


def test_tensors_that_overlap_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, {}, [(name, (8,), 0, lambda: torch.ones(8)) for name in ("first", "other")])
    content = bytearray(path.read_bytes())
    offset = content.index(b"other") + 5 + 4 + 8 + 4
    assert content[offset] == 32
    content[offset] = 0
    path.write_bytes(content)
    with pytest.raises(ValueError, match="other lies at 0 to 32"):
        read_gguf(path)


GGUF = "minillama.checkpoint.gguf"
MUTANTS = [
    *(Mutant(GGUF, right, wrong, lambda: in_a_folder(test_the_file_of_the_package_is_read_setting_by_setting))
      for right, wrong in (('2: "H"', '2: "h"'), ('3: "h"', '3: "H"'), ('0: "B"', '0: "b"'), ('10: "Q"', '10: "q"'))),
    Mutant(GGUF, "n_axes)[::-1]", "n_axes)",
           lambda: in_a_folder(test_the_file_of_the_package_is_read_setting_by_setting)),
    Mutant(GGUF, "or offset < end ", "", lambda: in_a_folder(test_tensors_that_overlap_are_refused)),
]
