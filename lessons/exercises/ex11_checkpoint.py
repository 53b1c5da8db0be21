"""Exercise 11: read the header of a safetensors file that may be hostile, and find what is wrong.

The file: 8 bytes N (unsigned, little-endian), N bytes of JSON, then the tensors' bytes.
The JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {...}};
offsets count from the end of the header. The solution is in lessons/solutions/.
"""

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1}  # per number


def read_header(data):
    """The tensors' entries, and how many bytes of tensors follow the header.

    data: bytes, the whole file. Returns (entries, data_bytes): a dict without "__metadata__" (which need not be
    there), and a whole number. ValueError where the file has fewer than 8 bytes, or the header would end behind it.
    """
    raise NotImplementedError("your code here")


def wrong_tensor(entries, data_bytes):
    """The name of the first tensor, in the order of the dict, whose place cannot be right; None if all can.

    It can be right if begin and end lie in the data (0 to data_bytes) and end - begin is exactly what its shape
    and dtype need. A shape of [] is one number. Dtypes are those of BYTES.
    """
    raise NotImplementedError("your code here")
