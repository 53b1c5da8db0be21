"""Inline PTX as C++: asm("mul.wide.u32 %0, %1, 4;" : "=l"(d) : "r"(i)) -> statements over csrc/simt/compat/ptx.h.

Names, types and modifiers are those of NVIDIA's PTX ISA 8.x. Each instruction and each of its modifiers must be known
here: anything else is UnsupportedPtx with the instruction's name, so nothing is translated by guess. Accepted without
effect: cache hints, .ftz, .approx (exact here), memory orders and fences (memory is in order).
"""

import re

from minillama.simt import ptx_instructions
from minillama.simt.ptx_tables import SPECIAL, TYPES, UnsupportedPtx

CONSTRAINTS = {"r": "uint32_t", "l": "uint64_t", "h": "uint16_t", "f": "float", "d": "double", "n": "", "c": "uint8_t"}


def split(text, mark):
    """Parts of `text` between `mark`s that stand in no bracket and no string."""
    parts, depth, quoted = [""], 0, False
    for place, letter in enumerate(text):
        if letter == '"' and text[place - 1: place] != "\\":
            quoted = not quoted
        depth += 0 if quoted else (letter in "([{") - (letter in ")]}")
        if letter == mark and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


class Statement:
    """One asm statement on its way to C++: its operands, the registers it declares, what has been emitted."""

    def __init__(self, body, name):
        template, *lists = split(re.sub(r"\\\n", " ", body), ":")
        literals = re.findall(r'"((?:\\.|[^"\\])*)"', template)
        if re.sub(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', "", template, flags=re.S).strip():
            raise UnsupportedPtx("whose text is put together by macros")
        text = "".join(literals).replace("\\n", "\n").replace("\\t", " ").replace("\\r", "").replace('\\"', '"')
        self.text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)
        self.name, self.before, self.body, self.after, self.registers = name, [], [], [], {}
        operands = [o for part in lists[:2] for o in split(part, ",") if o.strip()]
        self.operands = [self.operand(number, text.strip()) for number, text in enumerate(operands)]

    def operand(self, number, text):
        found = re.match(r'"([=+&]*)([a-z])"\s*\((.*)\)$', text, flags=re.S)
        if not found or found[2] not in CONSTRAINTS:
            raise UnsupportedPtx(f"with the operand {text}")
        kind, expression, name = CONSTRAINTS[found[2]], found[3], f"simt_{self.name}_{number}"
        if not found[1]:
            self.before.append(f"const auto {name} = simt::ptx::in<{kind or 'int64_t'}>({expression});")
        elif "+" in found[1]:
            self.before.append(f"auto {name} = simt::ptx::in<{kind}>({expression});")
        else:
            self.before.append(f"{kind} {name} = {{}};")
        if found[1]:
            self.after.append(f"simt::ptx::out({expression}, {name});")
        return name

    def value(self, text):
        """C++ of a register, special register or number."""
        text = text.strip()
        if found := re.fullmatch(r"%(\d+)", text):
            if int(found[1]) < len(self.operands):
                return self.operands[int(found[1])]
        elif text in self.registers:
            return self.registers[text]
        elif text.startswith("!"):
            return f"!{self.value(text[1:])}"
        elif text.lstrip("%") in SPECIAL:
            return SPECIAL[text.lstrip("%")]
        elif found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
            return (f"simt::ptx::as<float>(0x{found[1]}u)" if found[1] else f"simt::ptx::as<double>(0x{found[2]}ull)")
        elif re.fullmatch(r"[-+]?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return f"int64_t({text.rstrip('U')})"
        elif re.fullmatch(r"[-+]?\d+\.\d*([eE][-+]?\d+)?", text):
            return f"double({text})"
        raise UnsupportedPtx(f"with the operand {text}")

    def read(self, kind, text):
        return f"simt::ptx::as<{TYPES[kind]}>({self.value(text)})"

    def list(self, text):
        """Registers in braces, or one without."""
        return split(text.strip()[1:-1], ",") if text.strip().startswith("{") else [text]

    def array(self, kind, text):
        return "{" + ", ".join(self.read(kind, one) for one in self.list(text)) + "}"

    def write(self, target, value):
        return "" if target.strip() == "_" else f"simt::ptx::set({self.value(target)}, {value});"

    def pointer(self, space, kind, text, offset=0):
        """C++ of [register + number] as a pointer."""
        found = re.fullmatch(r"\s*\[\s*([^\]+]+?)\s*(?:\+\s*(-?\w+)\s*)?\]\s*", text)
        if not found:
            raise UnsupportedPtx(f"with the address {text}")
        where = f"{self.value(found[1])}"
        where = f"simt::ptx::shared({where})" if space else f"simt::ptx::generic({where})"
        return f"reinterpret_cast<{kind}*>({where} + ({found[2] or 0}) + {offset})"

    def declare(self, text):
        kind, names = re.match(r"\.reg\s*\.(\w+)\s+(.*)$", text, flags=re.S).groups()
        if kind not in TYPES:
            raise UnsupportedPtx(text)
        for name in names.split(","):
            ranged = re.fullmatch(r"\s*([%\w$]+)<(\d+)>\s*", name)
            for one in [f"{ranged[1]}{i}" for i in range(int(ranged[2]))] if ranged else [name.strip()]:
                self.registers[one] = f"simt_{self.name}_{re.sub(r'[^0-9A-Za-z]', '_', one)}_{len(self.registers)}"
                self.before.append(f"{TYPES[kind]} {self.registers[one]} = {{}};")

    def translate(self):
        """The C++ statement."""
        for text in self.text.split(";"):
            text = text.replace("%%", "%").strip().lstrip("{}").strip()
            if text.startswith(".reg"):
                self.declare(text)
            elif text:
                found = re.match(r"(?:@(!?[%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text, flags=re.S)
                if not found:
                    raise UnsupportedPtx(text.split()[0])
                done = ptx_instructions.translate(self, found[2], [a.strip() for a in split(found[3], ",")])
                self.body.append(f"if ({self.value(found[1])}) {{ {done} }}" if found[1] else done)
        return "do { " + " ".join([*self.before, *self.body, *self.after]) + " } while (0)"


def translate_asm(body, name):
    """C++ of what stands between the parentheses of asm(...); `name` makes its variables unlike others'."""
    return Statement(body, name).translate()
