"""Processes for lesson 38: `run(f, xs, ys)` computes f(link, x, y) in as many Python processes as there are xs.

TCP sockets on this machine's loopback join the processes. A `Link` sends tensors as their bare bytes, and counts them.
One fresh Python loads PyTorch, once for a lesson, and forks the processes of each run. A function of the lesson goes
there as its code, with the functions and values of the lesson that it uses.
"""

import atexit
import contextlib
import dis
import importlib
import io
import marshal
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
import types
from concurrent.futures import ThreadPoolExecutor

LIMIT = 120  # seconds, after which a process that waits for something that never comes is ended
_starter = []  # the fresh Python, once there is one


def run(function, *columns):
    """([what process 0, 1, ... returned], [bytes that each of them sent]); process r computes
    function(link, columns[0][r], columns[1][r], ...). RuntimeError with the traceback where a process fails."""
    calls = list(zip(*columns, strict=True))
    if not _starter or _starter[0].poll() is not None:
        _starter[:] = [_start()]
    question = _packed((function, calls))
    try:
        _write(_starter[0].stdin, question)
        answers = pickle.loads(_read(_starter[0].stdout))
    except BaseException:  # an interrupt, too: its answer, when it comes, must not be taken for the next one's
        _starter.pop().kill()
        raise
    for rank, (error, *_) in enumerate(answers):
        if error:
            raise RuntimeError(f"process {rank} of {len(calls)}: {error}")
    return [value for _, value, _ in answers], [sent for _, _, sent in answers]


class Link:
    """What a process has of the others: `rank` is its own number, `size` how many there are, `sent` the bytes that it
    gave away so far; `meeting` is where torch.distributed may let them meet."""

    def __init__(self, rank, listeners, meeting):
        self.rank, self.size, self.sent, self.meeting = rank, len(listeners), 0, meeting
        self._peers = {}
        for other in range(rank):  # the process with the larger number calls
            self._peers[other] = socket.create_connection(listeners[other].getsockname(), timeout=LIMIT)
            self._peers[other].sendall(bytes([rank]))
        while len(self._peers) < self.size - 1:
            connection = listeners[rank].accept()[0]
            connection.settimeout(LIMIT)
            self._peers[connection.recv(1)[0]] = connection
        self._sender = ThreadPoolExecutor(1)  # two processes that send to each other at once must not wait

    def send(self, tensor, to):
        """Send the numbers of a tensor to process `to`, without waiting for it."""
        data = tensor.detach().contiguous().numpy().tobytes()
        self.sent += len(data)
        self._sender.submit(self._peers[to].sendall, data)

    def receive(self, like, source):
        """Wait for a tensor from process `source` that has the shape and dtype of `like`."""
        import torch

        data = bytearray(like.numel() * like.element_size())
        view = memoryview(data)
        while len(view):
            count = self._peers[source].recv_into(view)
            if not count:
                raise ConnectionError(f"process {source} has ended")
            view = view[count:]
        return torch.frombuffer(data, dtype=like.dtype).view(like.shape) if data else like.clone()


class _Packer(pickle.Pickler):
    def reducer_override(self, value):
        if isinstance(value, types.ModuleType):
            return importlib.import_module, (value.__name__,)
        if isinstance(value, types.FunctionType) and value.__module__ == "__main__":
            used = {name: value.__globals__[name] for name in _names(value.__code__)
                    if name in value.__globals__ and name != value.__name__}
            return _function, (marshal.dumps(value.__code__), value.__defaults__, used)
        return NotImplemented


def _packed(value):
    buffer = io.BytesIO()
    _Packer(buffer).dump(value)
    return buffer.getvalue()


def _names(code):
    """Names that a function's code may look up outside of it, in nested functions too."""
    inside = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    found = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*map(_names, inside))


def _function(code, defaults, used):
    made = types.FunctionType(marshal.loads(code), {"__builtins__": __builtins__, "__name__": "lesson", **used},
                              argdefs=defaults)
    made.__globals__[made.__name__] = made
    return made


def _start():
    """The fresh Python that forks; it ends when this one does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    process = subprocess.Popen([sys.executable, "-m", "lessons.processes"], env=environment, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    atexit.register(_end, process)
    return process


def _end(process):
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.wait(LIMIT)


def _write(file, data):
    file.write(struct.pack("Q", len(data)) + data)
    file.flush()


def _read(file):
    """The next message of a pipe; EOFError where the other side has ended."""
    head = file.read(8)
    data = file.read(struct.unpack("Q", head)[0]) if len(head) == 8 else b""
    if len(head) < 8 or len(data) < struct.unpack("Q", head)[0]:
        raise EOFError("the other process has ended")
    return data


def _serve():
    """The fresh Python's whole life: read a function and its arguments, fork, hand back what came out."""
    import torch
    import torch._dynamo  # PyTorch loads it, for seconds, with the first gradient or optimizer: here, once for all
    import torch.distributed.fsdp  # noqa: F401

    torch.set_num_threads(1)
    asked, answered = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a lesson's function prints must not fall among the answers
    while True:
        try:
            question = _read(asked)
        except EOFError:
            return
        _write(answered, pickle.dumps(_in_processes(question)))


def _in_processes(question):
    """[(error or "", value, bytes sent)] of each process."""
    size, pipes = len(pickle.loads(question)[1]), []
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(size):
            reading, writing = os.pipe()
            if not (child := os.fork()):
                os.close(reading)
                _work(question, rank, listeners, f"file://{folder}/meeting", writing)
            os.close(writing)
            pipes.append((child, reading))
        for listener in listeners:
            listener.close()
        return [_answer(*pipe) for pipe in pipes]


def _answer(child, reading):
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    ended = os.waitpid(child, 0)[1]
    return pickle.loads(data) if data else (f"ended with status {ended}; after {LIMIT} s it is ended", None, 0)


def _work(question, rank, listeners, meeting, writing):
    """The life of one process; it never returns."""
    signal.alarm(LIMIT)
    try:
        link = Link(rank, listeners, meeting)
        function, calls = pickle.loads(question)
        answer = pickle.dumps(("", function(link, *calls[rank]), link.sent))
        link._sender.shutdown()
    except BaseException:
        answer = pickle.dumps((traceback.format_exc(), None, 0))
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(answer)
    os._exit(0)


if __name__ == "__main__":
    from lessons import processes

    processes._serve()
