"""The wire format of Protocol Buffers, as far as a SentencePiece model needs it.

A message is a row of fields; a field is a varint key (number * 8 + wire type) and a value. Every length is checked
against what is left before anything is taken, so a truncated or hostile file ends in a ValueError.
"""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}


def _read_varint(data, at):
    """Seven bits a byte, lowest first; the top bit says that more follow. Returns (value, next position)."""
    if at < len(data) and data[at] < 0x80:  # nearly always
        return data[at], at + 1
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError(f"the message ends inside a varint at byte {at}: the file is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift >= 70:
            raise ValueError(f"a varint at byte {at - 10} has more than 10 bytes: not a protobuf message")


def read_fields(data):
    """Split a message into [(number, wire type, value)]: int for varints, bytes for the rest, order kept."""
    fields, at, end = [], 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {at}: not a protobuf message")
        if wire == VARINT:
            value, at = _read_varint(data, at)
        elif wire == BYTES or wire in _FIXED:
            size, at = _read_varint(data, at) if wire == BYTES else (_FIXED[wire], at)
            if size > end - at:
                raise ValueError(f"field {number} at byte {at} claims {size} bytes, {end - at} are left: "
                                 "the file is cut off or not a protobuf message")
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"wire type {wire} of field {number} at byte {at} is not supported (0, 1, 2, 5 are)")
        fields.append((number, wire, value))
    return fields


def _varint(value):
    if 0 <= value < 0x80:
        return bytes((value,))
    value &= 0xFFFFFFFFFFFFFFFF  # negative numbers are written as their 64-bit complement
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_fields(fields):
    """The message of [(number, wire type, value)], the inverse of `read_fields`."""
    out = bytearray()
    for number, wire, value in fields:
        out += _varint(number << 3 | wire)
        if wire == VARINT:
            out += _varint(value)
        elif wire == BYTES:
            out += _varint(len(value))
            out += value
        else:
            out += value
    return bytes(out)


def int32_of(value):
    """A varint as int32: protobuf keeps the low 32 bits."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
