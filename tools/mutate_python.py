"""Faults of one place in a Python module: what a slip of the hand could have written there.

Annotations, docstrings, f-strings and the words of errors, warnings and prints are left alone, and so are decorators:
what stands there is read by people, or changes nothing that a test could see.
"""

import ast
import copy

COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
            ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
            ast.LShift: ast.RShift, ast.RShift: ast.LShift}
ANY_ORDER = {"min", "max", "print", "equal", "maximum", "minimum", "allclose", "gcd"}  # swapped arguments say the same
TELLING = {"print", "warn", "show"}


def faults_in(text):
    """[(start, end, replacement)], offsets in characters of the module's text."""
    finder = _Finder(text)
    finder.visit(ast.parse(text))
    return finder.found


def same_program(before, after):
    """Whether Python compiles both texts to the same code; SyntaxError where the second is none."""
    return _essence(compile(before, "m", "exec")) == _essence(compile(after, "m", "exec"))


def _essence(code):
    """A code object without its places in the text."""
    constants = [_essence(value) if hasattr(value, "co_code") else (type(value), repr(value))
                 for value in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_flags


class _Finder(ast.NodeVisitor):
    def __init__(self, text):
        self.text, self.found = text, []
        self.lines = text.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def place(self, line, column):
        """Offset in characters; ast counts columns in bytes of UTF-8."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def add(self, node, new):
        span = self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)
        self.found.append((*span, new if isinstance(new, str) else f"({ast.unparse(new)})"))

    def changed(self, node, **fields):
        """Plant a copy of the node with other fields."""
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        self.add(node, other)

    def negate(self, test):
        self.add(test, ast.UnaryOp(ast.Not(), test))

    # what is left alone

    def visit_JoinedStr(self, node):
        pass

    def visit_Assert(self, node):
        pass

    def visit_Raise(self, node):
        self.add(node, "pass")

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node):
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node):
        for statement in node.body:
            self.visit(statement)

    # statements

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant) or _name(node.value) in TELLING:
            return
        if isinstance(node.value, ast.Call):
            self.add(node, "pass")
        self.visit(node.value)

    def visit_Assign(self, node):
        if all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            self.add(node, "pass")
        self.visit(node.value)

    def visit_AugAssign(self, node):
        self.add(node, "pass")
        if type(node.op) in COMPUTED:
            other = ast.AugAssign(node.target, COMPUTED[type(node.op)](), node.value)
            self.add(node, ast.unparse(other))
        self.visit(node.value)

    def visit_Return(self, node):
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.add(node, "return None")
            self.visit(node.value)

    def visit_Continue(self, node):
        self.add(node, "pass")

    visit_Break = visit_Continue

    def visit_If(self, node):
        if "__name__" not in ast.unparse(node.test):
            self.negate(node.test)
            self.generic_visit(node)

    # expressions

    def visit_IfExp(self, node):
        self.negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node):
        for test in node.ifs:
            self.negate(test)
        self.generic_visit(node)

    def visit_Compare(self, node):
        for index, op in enumerate(node.ops):
            self.changed(node, ops=[*node.ops[:index], COMPARED[type(op)](), *node.ops[index + 1:]])
        self.generic_visit(node)

    def visit_BinOp(self, node):
        texts = [side for side in (node.left, node.right)
                 if isinstance(side, ast.JoinedStr) or isinstance(side, ast.Constant) and isinstance(side.value, str)]
        if type(node.op) in COMPUTED and not texts:
            self.changed(node, op=COMPUTED[type(node.op)]())
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        self.changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, (ast.Not, ast.USub)):
            self.add(node, node.operand)
        self.generic_visit(node)

    def visit_Constant(self, node):
        value = node.value
        if isinstance(value, bool):
            self.add(node, repr(not value))
        elif isinstance(value, int):
            for other in {value + 1, value - 1 if value > 0 else value + 1}:
                self.add(node, repr(other))
        elif isinstance(value, float):
            self.add(node, repr(value * 2 or 1.0))

    def visit_Slice(self, node):
        if node.step is None:
            self.changed_bound(node, lower=_plus(node.lower, 1))
            if node.upper is not None:
                self.changed_bound(node, upper=_plus(node.upper, 1))
        self.generic_visit(node)

    def changed_bound(self, node, **bound):
        other = ast.Slice(bound.get("lower", node.lower), bound.get("upper", node.upper))
        self.add(node, ast.unparse(other))

    def visit_Call(self, node):
        plain = not any(isinstance(argument, ast.Starred) for argument in node.args[:2])
        if len(node.args) > 1 and plain and _name(node) not in ANY_ORDER:
            first, second, *rest = node.args
            if ast.dump(first) != ast.dump(second):
                self.changed(node, args=[second, first, *rest])
        if _name(node) not in TELLING:
            self.generic_visit(node)


def _name(node):
    """The last word of what is called, "" for what is no call."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))


def _plus(bound, number):
    return ast.BinOp(bound, ast.Add(), ast.Constant(number)) if bound is not None else ast.Constant(number)
