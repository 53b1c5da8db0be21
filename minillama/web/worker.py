"""The one thread in which models run: requests take their turns in the order in which they came, beside one another
where that changes nothing (`RowBatch.exact`)."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from minillama.engine import MOST_ROWS
from minillama.web.protocol import MOST_TOKENS
from minillama.web.request_guard import Refused
from minillama.web.row_batch import RowBatch

MOST_WAITING = 16  # requests, beside those that are answered
MOST_UNREAD = 1024  # pieces of an answer; one that is not read to here is ended


class Turn:
    """A request on its way. begin() gives, in the model's thread, (what is told at once, the rows that join the batch):
    n_rows of them, each with a prompt of up to `longest` tokens and up to `most` more."""

    def __init__(self, loaded, scale, begin, n_rows=0, longest=0, most=0):
        self.loaded, self.scale, self.begin = loaded, scale, begin
        self.n_rows, self.longest, self.most = n_rows, longest, min(most, loaded.model.config.max_seq_len)
        self.rows, self.told, self.closed = [], asyncio.Queue(), False

    @property
    def over(self):
        """Whether none of its rows goes on."""
        return not any(row.left for row in self.rows)

    def tell(self, one):
        """Let whoever asked know this, an error among it; None: that was all. Where too much lies unread, that is told
        instead, and is all."""
        if self.closed:
            return
        if one is not None and self.told.qsize() >= MOST_UNREAD:
            self.closed = True
            one = Refused(408, f"the answer was ended because {MOST_UNREAD} pieces of it lay unread: read faster")
        self.told.put_nowait(one)

    async def news(self):
        """Yield lists of what was told since the last one; raise the error that came instead."""
        try:
            while True:
                found = [await self.told.get()]
                while not self.told.empty():
                    found.append(self.told.get_nowait())
                if pieces := [one for one in found if one is not None and not isinstance(one, Exception)]:
                    yield pieces
                if isinstance(found[-1], Exception):
                    raise found[-1]
                if found[-1] is None:
                    return
        finally:
            self.closed = True


class Worker:
    """Runs `Turn`s. Its state belongs to the event loop; `begin` and the batch's steps happen in the model's thread."""

    def __init__(self):
        self.thread, self.waiting, self.turns, self.batch, self.task = ThreadPoolExecutor(1), deque(), [], None, None
        self.on_its_way = deque()  # of the model's thread to the event loop: what the turns are told of a step

    def ask(self, turn):
        """Let a turn wait for the model; `Refused` where too many do already."""
        self.waiting = deque(one for one in self.waiting if not one.closed)
        if len(self.waiting) >= MOST_WAITING + (not self.turns):
            raise Refused(429, f"{MOST_WAITING} requests are waiting already: ask again later")
        self.waiting.append(turn)
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self.work())
        return turn

    async def work(self):
        """Let in the first of those that wait if it fits, and continue all rows by a token, until nobody waits."""
        loop = asyncio.get_running_loop()
        while self.waiting or self.turns:
            self.waiting = deque(one for one in self.waiting if not one.closed)
            if self.waiting and self.fits(self.waiting[0]):
                new = self.waiting.popleft()
                self.turns.append(new)
                await self.run(self.begin, [new])
            if self.turns:
                await self.run(lambda: self.steps(loop), self.turns)

    async def run(self, work, turns):
        """Do this in the model's thread and tell what comes of it; an error ends these turns."""
        try:
            told = await asyncio.get_running_loop().run_in_executor(self.thread, work)
        except Exception as error:
            told = [(turn, error) for turn in turns]
            self.turns = [turn for turn in self.turns if turn not in turns]
        for turn, one in told:
            turn.tell(one)
        for turn in self.turns:
            for row in turn.rows if turn.closed else ():
                row.left = 0
            if turn.over:
                turn.tell(None)
        self.turns = [turn for turn in self.turns if not turn.over]

    def fits(self, turn):
        """Whether a turn may begin: beside others only if it asks the same of a model whose rows are exact, and all
        rows together have no more places than one request may ask for."""
        if not self.turns:
            return True
        if not self.batch.exact or any((one.loaded, one.scale) != (turn.loaded, turn.scale) for one in self.turns):
            return False
        rows, context = self.batch.rows, turn.loaded.model.config.max_seq_len
        longest = max([turn.longest, *(len(row.ids) + row.made for row in rows)])
        count, room = turn.n_rows + len(rows), longest + max([turn.most, *(row.left for row in rows)])
        return count <= MOST_ROWS and count * room <= max(context, MOST_TOKENS)

    def begin(self):
        """Start the newest turn, in the model's thread: [(turn, what it tells)]."""
        turn = self.turns[-1]
        if len(self.turns) == 1:
            turn.loaded.scale_adapter(turn.scale)
            self.batch = RowBatch(turn.loaded.model)
        at_once, rows = turn.begin()
        for row in rows:
            row.turn = turn
        first = self.batch.join(rows)
        turn.rows = rows
        return [*((turn, one) for one in at_once), *((turn, piece) for _, piece in first if piece is not None)]

    def steps(self, loop):
        """Continue the rows in the model's thread, each step told as the next begins, until a turn is over, another
        waits, or the loop is a step behind: [(turn, what it tells)] of the last. So most steps need no thread to wait
        for the other."""
        told = self.step()
        while not self.waiting and not self.on_its_way and not any(turn.closed or turn.over for turn in self.turns):
            self.on_its_way.append(told)
            loop.call_soon_threadsafe(self.deliver)
            told = self.step()
        return told

    def deliver(self):
        """Tell the turns of one step, in the event loop."""
        for turn, one in self.on_its_way.popleft():
            turn.tell(one)

    def step(self):
        """Continue the rows by a token, in the model's thread: [(turn, what it tells)]."""
        return [(row.turn, piece) for row, piece in self.batch.step() if piece is not None]
