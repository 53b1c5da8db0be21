"""CUDA text to C++ text, line by line the same: what C++ has no words for is rewritten, all else stays.

`translate` rewrites kernel<<<grid, block>>>(...), extern __shared__ arrays, shifts and inline PTX (see inline_ptx);
`translate_tree` does so for a file and all that it includes.
"""

import json
import os
import re
from pathlib import Path

from minillama.simt.inline_ptx import UnsupportedPtx, translate_asm


class Unsupported(RuntimeError):
    """The program uses a part of CUDA that the emulator does not have; the text names it and its line."""


def masked(text):
    """`text` with each character of comments and of string and character literals as a blank; newlines stay."""
    token = (r'//(?:\\\n|[^\n])*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"'
             r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'")
    return re.sub(token, lambda found: re.sub(r"[^\n]", " ", found[0]), text, flags=re.S)


def closing(code, start):
    """Where the bracket that opens at `start` closes. ValueError where it does not."""
    depth = 0
    for place in range(start, len(code)):
        depth += (code[place] in "([{") - (code[place] in ")]}")
        if depth == 0:
            return place
    raise ValueError(f"line {code.count(chr(10), 0, start) + 1}: {code[start]} is never closed")


def opening(code, place):
    """Where the bracket that closes at `place` opens; angle brackets count where they are outermost."""
    pairs, opened = {")": "(", "]": "[", "}": "{", ">": "<"}, []
    for at in range(place, -1, -1):
        if code[at] in ")]}" or (code[at] == ">" and opened in ([], ["<"] * len(opened)) and code[at - 1] != "-"):
            opened.append(pairs[code[at]])
        elif opened and code[at] == opened[-1]:
            opened.pop()
            if not opened:
                return at
    raise ValueError(f"line {code.count(chr(10), 0, place) + 1}: {code[place]} was never opened")


def near(code, place):
    """What stands before a place: as much as an expression may be long."""
    return code[max(0, place - 2000): place]


def kernel_start(code, place):
    """Where the kernel before `<<<` at `place` begins: it may be a::b<int, (N > 1)>, (*p), table[i], s->k, a##b."""
    while True:
        place = len(code[:place].rstrip())
        if code[place - 1: place] in (")", "]", ">"):
            last, place = code[place - 1], opening(code, place - 1)
            called = re.search(r"(\w+)\s*$", near(code, place))
            if last == ")" and (not called or called[1] in ("else", "return", "do", "if", "for", "while")):
                return place
            continue
        name = re.search(r"\w*$", near(code, place))[0]
        place -= len(name)
        joined = re.search(r"(::|\.|->|##)\s*$", near(code, place))
        if not name or not joined:
            return place
        place -= len(joined[0])
        if joined[1] == "::" and not re.search(r"[\w>]\s*$", near(code, place)):
            return place


def launches(code):
    """(place, removed characters, text) of the edits that make kernel<<<grid, block>>>(args) ordinary C++."""
    begins, ends = re.compile(r"<< ?<(?!<)"), re.compile(r">> ?>")  # nvcc takes << < too; a masked "" is two blanks
    edits, found = [], begins.search(code)
    while found:
        at, place = found.start(), found.end()
        begin = kernel_start(code, at)
        while not (end := ends.match(code, place)):
            if place >= len(code):
                raise ValueError(f"line {code.count(chr(10), 0, at) + 1}: <<< without its >>>")
            place = closing(code, place) + 1 if code[place] in "([{" else place + 1
        edits += [(begin, 0, "SIMT_KERNEL("), (at, len(found[0]), ")("), (place, len(end[0]), ")")]
        opened = code.find("(", place)
        arguments = code[opened: closing(code, opened)] if opened >= 0 else ""
        edits += [(opened + null.start(), 4, "nullptr") for null in re.finditer(r"\bNULL\b", arguments)]
        found = begins.search(code, place)
    return edits


def dynamic_shared(code):
    """Edits that give `extern __shared__ T name[];` the launch's dynamic shared memory."""
    edits = []
    for found in re.finditer(r"\bextern\b[^;{}]*?\b__shared__\b[^;{}]*;", code):
        bare = re.sub(r"\b(__align__|alignas|__attribute__)\s*\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|"
                      r"\bextern\b|\b__shared__\b|\\\n|\\$", " ", found[0])
        parts = re.fullmatch(r"\s*(.+?)\b(\w+)\s*\[\s*\]((?:\s*\[[^\[\]]*\])*)\s*;", bare, flags=re.S)
        if not parts:
            raise Unsupported(f"line {code.count(chr(10), 0, found.start()) + 1}: unsupported: {bare.strip()}")
        kind, name, rows = " ".join(parts[1].split()), parts[2], " ".join(parts[3].split())
        outer = re.sub(r"\b(namespace\b[^;{}()]*|extern\s*)\{", "  ", code[: found.start()])
        inside = outer.count("{") > outer.count("}") or found[0].count("\\\n")
        text = f"static const ::simt::program::DynamicShared<{kind}> {name};"
        if rows or inside:
            text = f"{kind} (*{name}){rows} = static_cast<{kind} (*){rows}>(::simt::dynamic_shared());"
        edits.append((found.start(), len(found[0]), text + "\n" * found[0].count("\n")))
    return edits


def inline_ptx(code, text):
    """Edits that turn inline PTX into C++. What is not known becomes a function that must not be called, so that unused
    wrappers do no harm and a used one is the compiler's error, with its line."""
    edits = []
    for found in re.finditer(r"\b(asm|__asm__|__asm)\b\s*(volatile|__volatile__)?\s*\(", code):
        end = closing(code, found.end() - 1) + 1
        source = text[found.start(): end]
        breaks = source.count("\\\n") * "\\\n" or source.count("\n") * "\n"
        try:
            new = translate_asm(text[found.end(): end - 1], f"{found.start()}")
        except UnsupportedPtx as refused:
            name, what = f"simt_ptx_{found.start()}", str(refused).replace("\\", "").replace('"', "'")
            new = (f'do {{ void {name}() __attribute__((error("unsupported: inline PTX {what}"))); {name}(); }} '
                   "while (0)")
        edits.append((found.start(), len(source), new + breaks))
    return edits


def words(code):
    """Edits of what g++ does not take: `__shared__ alignas(16)`; __noinline__, which no macro may be, as the standard
    library writes it in attributes; a cast to void* of the kernel in cudaLaunchKernel: its type is needed."""
    found = re.finditer(r"\b__shared__\s+(alignas)\b|(?<![(:])\b(__noinline__)\b(?!\s*\))"
                        r"|\bcudaLaunch(?:Cooperative)?Kernel\s*\(\s*(\(\s*(?:const\s+)?void\s*(?:const\s*)?\*\s*\)"
                        r"|reinterpret_cast\s*<\s*(?:const\s+)?void\s*\*\s*>)", code)
    new = {1: "__align__", 2: "__attribute__((noinline))", 3: ""}
    return [(one.start(one.lastindex), len(one[one.lastindex]), new[one.lastindex]) for one in found]


def device_bodies(code):
    """(start, end, text without preprocessor) of the bodies of functions and lambdas that are marked __global__ or
    __device__, or by a macro for these."""
    macros = re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[^\n({]*__(?:global|device)__[^\n({]*$", code, flags=re.M)
    code = re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", lambda line: re.sub(r"[^\n]", " ", line[0]), code, flags=re.M)
    for found in re.finditer(rf"\b({'|'.join(['__global__', '__device__', *macros])})\b", code):
        place, called = found.end(), False
        try:
            while place < len(code) and code[place] not in ";={" + "}":
                called |= code[place] == "("
                place = closing(code, place) + 1 if code[place] == "(" else place + 1
            end = closing(code, place) if called and code[place: place + 1] == "{" else 0
        except ValueError:  # brackets that #if and #else open twice
            continue
        if end and not re.search(r"\b(cout|cerr|\w*stream)\b", code[found.start(): end]):
            yield place, end, code[place:end]  # where text is written to streams, << is no shift


def within(spans, place):
    """Whether one of the spans holds the place."""
    return any(start <= place < end for start, end in spans)


def shifts(code):
    """Edits that make a << n and a >> n on the device what PTX's shl and shr are for every n, where C++ does not say
    what they are from the number's width on. `a << ptx_shift << n` keeps precedence and order, and C++ finds the types.
    A >> that may close two template lists, a <<= of a member (it may be a bit-field) and what macros hold stay."""
    edits = set()
    for start, _, body in device_bodies(code):
        for found in re.finditer(r"(?<![<>])(<<|>>)(?!\s?[<>])(=?)", body):
            at = start + found.start()
            before = near(code, at).rstrip()
            kept = before.endswith("operator") or (found[2] and re.search(r"(\.|->)\s*\w+$", before))
            if not kept and (found[1] == "<<" or open_angles(before) < 2):
                edits.add((at + len(found[0]), 0, f" ::simt::program::ptx_shift {found[0]}"))
    return sorted(edits)


def unset_variables(code):
    """Edits that tell the profiler of local variables of the device that are declared without a value, but for those
    that the next statement to name them sets, whatever else happens."""
    edits = set()
    for start, end, flat in device_bodies(code):
        while (rest := re.sub(r"\([^()]*\)", lambda found: "~" * len(found[0]), flat)) != flat:
            flat = rest  # what is in brackets declares nothing
        members = [(found.end(), closing(flat, found.end() - 1)) for found in
                   re.finditer(r"\b(?:struct|union|class|enum)\b[^;{}=]*\{", flat)]
        for found in re.finditer(r"(?<=[;{}])([^;{}]+);", flat):
            if not within(members, found.end()):
                rest = code[start + found.end(): end]
                unset = [(name, place) for name, place in declared(found[1]) if not set_next(name, rest)]
                edits |= {(start + found.start(1) + place, 0, " SIMT_LOCAL") for _, place in unset}
                edits |= {(start + found.end(), 0, f" SIMT_BEGINS({name})") for name, _ in unset}
    return sorted(edits)


def mark_restricted(code):
    """Edits that tell the profiler which pointers a kernel's author promises to be the only ones to their memory."""
    edits = []
    for found in re.finditer(r"\b__global__\b[^;{}]*?\b(?!__launch_bounds__)\w+\s*(\()", code):
        end = closing(code, found.start(1))
        names = re.findall(r"\b__restrict(?:__)?\s+(\w+)", code[found.start(1): end])
        if len(names) > 1 and (body := re.match(r"\)\s*{", code[end:])):
            edits.append((end + body.end(), 0, f" SIMT_DISTINCT({', '.join(names)})"))
    return edits


def declared(text):
    """(name, place behind it) of each variable without a value in a statement that declares some."""
    head = re.match(r"\s*((?:__align__|alignas)\s*~+\s*)?(?!(return|delete|goto|throw|case|else|using|typename|new"
                    r"|typedef|operator|friend|namespace|enum|struct|union|class)\b)((volatile|unsigned|signed|long|short)"
                    r"\s+)*[A-Za-z_]\w*(::\w+)*(\s*<[^=;]*>)?(?=[\s*])", text)
    parts = re.finditer(r"(?:[^,\[]|\[[^\]]*\])+", text[head.end():] if head else "")
    pattern = r"[\s*]*\b([A-Za-z_]\w*)((?:\s*\[[^\]]*\])*)\s*(=.*)?"
    names = [(re.fullmatch(pattern, part[0], flags=re.S), part.start()) for part in parts]
    if not all(one for one, _ in names) or re.search(r"\b(__shared__|__constant__|extern|static|constexpr)\b", text):
        return []
    return [(one[1], head.end() + start + one.end(2)) for one, start in names if not one[3]]


def set_next(name, rest):
    """Whether the next statement that names the variable gives it a value, and is reached in any case."""
    before, *after = re.split(rf"(?<![.>\w]){name}\b", rest, maxsplit=1)
    return not after or (re.match(r"\s*=(?!=)", after[0]) and (re.search(r"\bfor\s*\($", before) or not re.search(
        r"\b(if|else|while|do|for|switch|case|goto)\b|[?{}]|&&|\|\|", before)))


def open_angles(before):
    """How many < stand open where the expression `before` ends; what is in brackets does not count."""
    depth, flat = 0, []
    for letter in reversed(before):
        depth += (letter in ")]}") - (letter in "([{")
        if depth < 0 or (depth == 0 and letter == ";"):
            break
        flat += [letter] * (depth == 0)
    opened, closed = 0, 0
    for angle in reversed(re.sub(r"<<|>>|->|[<>]=|[^<>]", "", "".join(reversed(flat)))):
        opened += angle == "<" and closed == 0
        closed = max(0, closed + (1 if angle == ">" else -1))
    return opened


def translate(text, name):
    """C++ text of CUDA text, line by line the same; `name` is the file that messages will name."""
    code, out, at = masked(text), [f"#line 1 {json.dumps(str(name), ensure_ascii=False)}\n"], 0
    for place, length, new in sorted(launches(code) + dynamic_shared(code) + words(code) + shifts(code)
                                     + unset_variables(code) + mark_restricted(code) + inline_ptx(code, text)):
        if place < at:  # inside what another edit has already replaced
            continue
        out += [text[at:place], new]
        at = place + length
    return "".join(out) + text[at:]


def translate_tree(source, folders, target):
    """Translate `source` and all files it includes from its own folder or from `folders`; the path of the result."""
    seen = {}

    def visit(path):
        def include(found):
            near = [path.parent] if found[2] == '"' else []
            there = next((p for f in [*near, *folders] if (p := Path(os.path.normpath(f / found[3]))).is_file()), None)
            return f'{found[1]}"{visit(there)}"' if there else found[0]

        if path not in seen:
            seen[path] = target / f"{len(seen)}_{path.name}"
            text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\r\n", "\n")
            try:
                text = translate(text, path)
            except (ValueError, Unsupported) as wrong:
                raise type(wrong)(re.sub(r"^line (\d+)", lambda line: f"{path}:{line[1]}", str(wrong))) from wrong
            text = re.sub(r'^(\s*#\s*include\s*)(["<])([^">\n]+)[">]', include, text, flags=re.M)
            seen[path].write_text(text, encoding="utf-8")
        return seen[path]

    return visit(Path(source))
