"""The hand-written safetensors reader and writer, against the reference library and against hostile files."""

import json
import struct

import pytest
import torch
from mutants import Mutant

from minillama.checkpoint.safetensors import (
    DTYPES,
    read_safetensors,
    write_safetensors,
    write_safetensors_stream,
)


def sample():
    torch.manual_seed(0)
    tensors = {tag: torch.randint(0, 2, (3, 5)).to(dtype) for tag, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 7), "prime": torch.randn(13),
                "strided": torch.randn(4, 6).t(), "ü \"quoted\"": torch.randn(2, 1, 3).to(torch.bfloat16)}
    return tensors


def same(left, right):
    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype and left[name].shape == right[name].shape
        and torch.equal(left[name].contiguous().flatten().view(torch.uint8),
                        right[name].contiguous().flatten().view(torch.uint8)) for name in left)


def file_of(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_what_is_written_is_read_back(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", sample(), {"format": "pt"})
    assert same(read_safetensors(tmp_path / "a.safetensors"), sample())
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])["__metadata__"] == {"format": "pt"}


def test_the_file_equals_the_reference_librarys_byte_for_byte(tmp_path):
    theirs = pytest.importorskip("safetensors.torch", reason="safetensors is the oracle of the file form")
    tensors = {name: tensor.contiguous() for name, tensor in sample().items()}
    theirs.save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    write_safetensors(tmp_path / "ours.safetensors", tensors, {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert same(read_safetensors(tmp_path / "theirs.safetensors"), tensors)
    assert same(theirs.load_file(tmp_path / "ours.safetensors"), tensors)


def test_an_unpadded_header_is_read_although_its_tensors_are_unaligned(tmp_path):
    values = torch.tensor([1.0, -2.5, 3.25])
    for padding in range(8):
        header = b'{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}' + b" " * padding
        path = file_of(tmp_path / f"{padding}", header, values.numpy().tobytes())
        assert torch.equal(read_safetensors(path)["x"], values)


def test_changing_a_tensor_leaves_the_file_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": torch.ones(1000)})
    read_safetensors(path)["x"].zero_()
    assert torch.equal(read_safetensors(path)["x"], torch.ones(1000))


def test_a_tensor_with_a_map_of_its_own_is_the_same_and_outlives_the_others(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"byte": torch.ones(3, dtype=torch.uint8), "x": torch.arange(300_000.0),
               "y": torch.arange(600_000).half()}
    write_safetensors(path, tensors)
    found = read_safetensors(path)
    assert same(found, tensors)
    kept = found.pop("y")
    del found
    kept[0] = 7
    assert torch.equal(kept[1:], tensors["y"][1:]) and torch.equal(read_safetensors(path)["y"], tensors["y"])


def test_a_file_of_no_tensors_or_only_empty_ones_is_read(tmp_path):
    write_safetensors(tmp_path / "none", {})
    write_safetensors(tmp_path / "empty", {"x": torch.zeros(0, 3), "y": torch.zeros(2, 0)})
    assert read_safetensors(tmp_path / "none") == {}
    shapes = {name: tuple(tensor.shape) for name, tensor in read_safetensors(tmp_path / "empty").items()}
    assert shapes == {"x": (0, 3), "y": (2, 0)}


def entry(begin, end, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


HOSTILE = {
    "header longer than the file": (b"{}", b"", 2**63),
    "header over the limit": (b"{}", b"", 100_000_001),
    "not JSON": (b"{'x': 1}", b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "nested beyond the parser": (b"[" * 200_000, b"", None),
    "a list": ([1], b"", None),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None),
    "a name twice": (b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                     b'"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a", None),
    "an entry that is no object": ({"x": 3}, b"", None),
    "a missing field": ({"x": {"dtype": "U8", "shape": [1]}}, b"a", None),
    "a further field": ({"x": {**entry(0, 1), "file": "/etc/passwd"}}, b"a", None),
    "an unknown dtype": ({"x": entry(0, 1, dtype="F7")}, b"a", None),
    "a dtype that is a list": ({"x": entry(0, 1, dtype=["U8"])}, b"a", None),
    "a negative size": ({"x": entry(0, 1, [-1, -1])}, b"a", None),
    "a size that is a float": ({"x": entry(0, 1, [1.0])}, b"a", None),
    "a size that is true": ({"x": entry(0, 1, [True])}, b"a", None),
    "sizes beyond any memory": ({"x": entry(0, 0, [0, 2**62, 2**62])}, b"", None),
    "a shape larger than its bytes": ({"x": entry(0, 4, [2**40])}, b"abcd", None),
    "bytes more than the shape": ({"x": entry(0, 4, [1], "F16")}, b"abcd", None),
    "negative offsets": ({"x": {**entry(0, 1), "data_offsets": [-1, 0]}}, b"a", None),
    "offsets reversed": ({"x": {**entry(0, 1), "data_offsets": [1, 0]}}, b"a", None),
    "three offsets": ({"x": {**entry(0, 1), "data_offsets": [0, 1, 1]}}, b"a", None),
    "an end beyond the file": ({"x": entry(0, 5)}, b"abcd", None),
    "an overlap": ({"x": entry(0, 3), "y": entry(2, 4)}, b"abcd", None),
    "the same bytes twice": ({"x": entry(0, 4), "y": entry(0, 4)}, b"abcd", None),
    "a hole": ({"x": entry(0, 1), "y": entry(2, 4)}, b"abcd", None),
    "a hole at the start": ({"x": entry(1, 4)}, b"abcd", None),
    "bytes left over": ({"x": entry(0, 3)}, b"abcd", None),
    "a bool that is neither": ({"x": entry(0, 1, dtype="BOOL")}, b"\x02", None),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_refused_with_a_reason(tmp_path, what):
    header, data, length = HOSTILE[what]
    path = file_of(tmp_path / "bad.safetensors", header, data, length)
    with pytest.raises(ValueError, match="bad.safetensors: "):
        read_safetensors(path)


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    write_safetensors(tmp_path / "whole", {"x": torch.arange(6), "y": torch.ones(3)})
    content = (tmp_path / "whole").read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut short" if length < data_start else "the file is damaged"):
            read_safetensors(tmp_path / "cut")


def test_the_limits_themselves_are_allowed_and_one_more_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x"
    assert read_safetensors(file_of(path, {"x": entry(0, 1, [1] * 64)}, b"a"))["x"].dim() == 64
    assert read_safetensors(file_of(path, {"x": entry(0, 0, [0, 2**60 - 1])}))["x"].shape == (0, 2**60 - 1)
    assert read_safetensors(file_of(path, {"x": entry(0, 2, dtype="BOOL")}, b"\0\1"))["x"].tolist() == [False, True]
    for wrong, data in ((entry(0, 1, [1] * 65), b"a"), (entry(0, 0, [0, 2**60]), b"")):
        with pytest.raises(ValueError, match="has shape"):
            read_safetensors(file_of(path, {"x": wrong}, data))
    text = json.dumps({"x": entry(0, 1)}).encode()
    monkeypatch.setattr("minillama.checkpoint.safetensors.MAX_HEADER_BYTES", len(text))
    assert read_safetensors(file_of(path, text, b"a"))["x"].tolist() == [97]
    with pytest.raises(ValueError, match=f"header of {len(text) + 1} bytes"):
        read_safetensors(file_of(path, text + b" ", b"a"))
    for short in (b"", b"\0" * 7):
        path.write_bytes(short)
        with pytest.raises(ValueError, match=f"in a file of {len(short)} "):
            read_safetensors(path)


def test_a_large_tensor_that_lies_askew_is_read(tmp_path):
    values = torch.arange(2**18, dtype=torch.float32)  # 1 MiB: enough for a map of its own, where it is aligned
    for padding in range(4):
        header = b'{"x":{"dtype":"F32","shape":[262144],"data_offsets":[0,1048576]}}' + b" " * padding
        path = file_of(tmp_path / f"{padding}", header, values.numpy().tobytes())
        assert torch.equal(read_safetensors(path)["x"], values)


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="complex128"):
        write_safetensors(tmp_path / "a", {"x": torch.zeros(1, dtype=torch.complex128)})
    with pytest.raises(TypeError, match="str"):
        write_safetensors(tmp_path / "a", {"x": torch.zeros(1)}, {"step": 3})
    with pytest.raises(ValueError, match="__metadata__"):
        write_safetensors(tmp_path / "a", {"__metadata__": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def in_a_folder(law, *arguments):
    def run():
        import tempfile
        from pathlib import Path
        with tempfile.TemporaryDirectory() as folder:
            law(Path(folder), *arguments)
    return run


def refuses(what):
    return in_a_folder(test_a_hostile_file_is_refused_with_a_reason, what)


def test_a_stream_in_any_order_makes_the_same_file_and_a_wrong_one_none(tmp_path):
    tensors = sample()
    planned = {name: tensor.to("meta") for name, tensor in tensors.items()}
    write_safetensors(tmp_path / "whole", tensors, {"format": "pt"})
    write_safetensors_stream(tmp_path / "streamed", planned, reversed(tensors.items()), {"format": "pt"})
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()
    first, *others = tensors.items()
    for made in (others, [first, first, *others], [(first[0], first[1][:0]), *others],
                 [("other", first[1]), *tensors.items()], [(first[0], first[1].double()), *others]):
        with pytest.raises(ValueError, match="planned"):
            write_safetensors_stream(tmp_path / "wrong", planned, made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "whole"]


def check_limits():
    with pytest.MonkeyPatch.context() as patch:
        in_a_folder(test_the_limits_themselves_are_allowed_and_one_more_is_refused, patch)()


SAFETENSORS = "minillama.checkpoint.safetensors"
MUTANTS = [
    *(Mutant(SAFETENSORS, right, wrong, check_limits) for right, wrong in (
        ("len(shape) > 64", "len(shape) > 65"), ("len(shape) > 64", "len(shape) >= 64"), (">= 2**60:", "> 2**60:"),
        ("(raw > 1)", "(raw >= 1)"), ("length > min(", "length >= min("))),
    Mutant("minillama.checkpoint.safetensors", "count=end - begin, offset=slack)", "count=end - begin, offset=0)",
           in_a_folder(test_a_tensor_with_a_map_of_its_own_is_the_same_and_outlives_the_others)),
    Mutant(SAFETENSORS, "length > min(size - 8, MAX_HEADER_BYTES)", "length > MAX_HEADER_BYTES",
           in_a_folder(test_a_file_cut_at_any_byte_is_refused)),
    Mutant(SAFETENSORS, "if len(result) != len(pairs):", "if False:", refuses("a name twice")),
    Mutant(SAFETENSORS, "if offsets[1] - offsets[0] != wanted:", "if offsets[1] - offsets[0] < wanted:",
           refuses("bytes more than the shape")),
    Mutant(SAFETENSORS, "if begin != position:", "if begin > position:", refuses("an overlap")),
    Mutant(SAFETENSORS, "if begin != position:", "if begin < position:", refuses("a hole")),
    Mutant(SAFETENSORS, "if position != data_bytes:", "if position > data_bytes:",
           refuses("bytes left over")),
    Mutant(SAFETENSORS, "type(value) is int and value >= 0", "isinstance(value, int) and value >= 0",
           refuses("a size that is true")),
    Mutant(SAFETENSORS, "bool((raw > 1).any())", "False", refuses("a bool that is neither")),
    Mutant(SAFETENSORS, "filter(None, shape)", "shape", refuses("sizes beyond any memory")),
    Mutant(SAFETENSORS, "if raw.storage_offset() % dtype.itemsize:", "if False:",
           in_a_folder(test_an_unpadded_header_is_read_although_its_tensors_are_unaligned)),
    Mutant(SAFETENSORS, "shared=False", "shared=True",
           in_a_folder(test_changing_a_tensor_leaves_the_file_alone)),
    Mutant(SAFETENSORS, "(-_RANKS[tensors[name].dtype], name)", "name",
           in_a_folder(test_the_file_equals_the_reference_librarys_byte_for_byte)),
    Mutant(SAFETENSORS, "(-len(text) % 8)", "(len(text) % 8)",
           in_a_folder(test_the_file_equals_the_reference_librarys_byte_for_byte)),
    Mutant(SAFETENSORS, ".contiguous().flatten()", ".as_strided((tensor.numel(),), (1,))",
           in_a_folder(test_what_is_written_is_read_back)),
]
