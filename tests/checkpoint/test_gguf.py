"""The GGUF container: what llama.cpp's own Python package writes we read, and a damaged file is refused."""

import math
import struct

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


def test_numbers_that_stand_alone_are_the_files_own_memory_and_those_of_blocks_are_made(tmp_path):
    wanted = torch.arange(64.0).view(2, 32)
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"},
               [("plain", (2, 32), 0, lambda: wanted), ("halves", (2, 32), 1, lambda: wanted),
                ("blocks", (2, 32), 8, lambda: wanted)])
    for name, stored in read_gguf(tmp_path / "m.gguf")[1].items():
        one, other = stored.read(), stored.read()
        assert (one.data_ptr() == other.data_ptr()) == (name != "blocks")
        torch.testing.assert_close(one.float(), wanted, rtol=0, atol=0 if name != "blocks" else 63 / 254)


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


def a_file(settings=b"", n_settings=1, tensors=b"", n_tensors=0, data=b""):
    """GGUF of version 3 byte by byte, its data aligned to 32."""
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_settings) + settings + tensors
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


def text(raw):
    return struct.pack("<Q", len(raw)) + raw


def an_entry(shape, kind=0, offset=0):
    return text(b"t") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(("settings", "said"), [
    (text(b"\xff") + struct.pack("<IB", 0, 1), "a setting's name is not UTF-8"),
    (text(b"k") + struct.pack("<I", 8) + text(b"\xc3"), "k is not UTF-8"),
    (text(b"k") + struct.pack("<IB", 7, 2), "k holds a truth value that is neither 0 nor 1"),
    (text(b"k") + struct.pack("<IQ", 13, 0), "k has values of kind 13: known are 0 to 12"),
    (text(b"k") + struct.pack("<IIQ", 9, 9, 0), "k is an array of 0 values of kind 9"),
    (text(b"k") + struct.pack("<IIQ", 9, 8, 10**6), "k is an array of 1000000 values"),
    (text(b"k") + struct.pack("<IIQ", 9, 4, 10**18), "k takes 4000000000000000000 bytes"),
    *((text(b"general.alignment") + struct.pack("<II", 4, value), f"general.alignment is {value}")
      for value in (0, 4, 7, 24, 65537, 131072)),
    (text(b"general.alignment") + struct.pack("<If", 6, 32), "general.alignment is 32.0")],
                         ids=lambda value: value if isinstance(value, str) else "")
def test_a_setting_that_cannot_be_is_named(tmp_path, settings, said):
    (tmp_path / "x.gguf").write_bytes(a_file(settings, data=bytes(64)))
    with pytest.raises(ValueError, match=f"x.gguf: {said}"):
        read_gguf(tmp_path / "x.gguf")


def test_arrays_of_nothing_and_of_the_shortest_texts_are_read(tmp_path):
    arrays = text(b"a") + struct.pack("<IIQ", 9, 8, 0) + text(b"b") + struct.pack("<IIQ", 9, 7, 3) + b"\1\0\1"
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + arrays + text(b"c") + struct.pack("<IIQ", 9, 8, 2)
                     + text(b"") * 2)  # nothing behind it
    assert read_gguf(path) == ({"a": [], "b": [True, False, True], "c": ["", ""]}, {})


@pytest.mark.parametrize(("entry", "said"), [
    (an_entry(()), "shape ..: F32"), (an_entry((0,)), "shape .0."), (an_entry((4, 0)), "shape .0, 4."),
    (an_entry((1, 1, 1, 1, 1)), "5 axes: at most 4"), (an_entry((2**24, 2**24)), "has shape .16777216, 16777216."),
    (an_entry((2**24, 2**24 - 1)), "cut short"), (an_entry((4,), offset=4), "lies at 4 to 20"),
    (an_entry((17,)), "lies at 0 to 68 of 64 bytes")], ids=lambda value: value if isinstance(value, str) else "")
def test_a_tensor_that_cannot_be_is_named(tmp_path, entry, said):
    (tmp_path / "x.gguf").write_bytes(a_file(n_settings=0, tensors=entry, n_tensors=1, data=bytes(64)))
    with pytest.raises(ValueError, match=f"x.gguf: t .*{said}"):
        read_gguf(tmp_path / "x.gguf")


def test_a_tensor_may_have_four_axes_and_fill_the_file_to_its_end(tmp_path):
    values = torch.arange(16.0)
    for alignment in (8, 64, 65536):
        settings = text(b"general.alignment") + struct.pack("<II", 4, alignment)
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + settings + an_entry((2, 1, 4, 2))
        head = head.ljust(-(-len(head) // alignment) * alignment, b"\0")
        (tmp_path / "x.gguf").write_bytes(head + values.numpy().tobytes())
        found = read_gguf(tmp_path / "x.gguf")[1]["t"]
        assert torch.equal(found.read(), values.view(2, 4, 1, 2)) and not found.made


def test_version_2_is_read_like_version_3(tmp_path):
    path = tmp_path / "model.gguf"
    numbers = (torch.arange(96).view(3, 32) * 37 % 255 - 127) / 128.0
    numbers[:, 5] = 127 / 128  # each block's largest, so that its scale is 1/128 and Q8_0 holds all numbers exactly
    write_gguf(path, {"a": 1}, [("m", (3, 32), 8, lambda: numbers)])
    path.write_bytes(b"GGUF\2" + path.read_bytes()[5:])
    settings, tensors = read_gguf(path)
    assert settings == {"a": 1} and torch.equal(tensors["m"].read(), numbers)


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
