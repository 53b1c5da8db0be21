"""Requests that wait are answered beside one another, each as it is alone; no one's end or absence delays another."""

import asyncio
import random
from functools import partial
from types import SimpleNamespace

import pytest
from mutants import Mutant
from test_engine_decoding import lively_model
from test_row_batch import SAMPLINGS, compiled
from web_server import CONFIG, Bytes, made_loaded

from minillama.chat import ChatSampling
from minillama.web.protocol import Loaded, Writer, read_asked
from minillama.web.request_guard import Refused
from minillama.web.server import begin
from minillama.web.token_facts import answers
from minillama.web.worker import MOST_UNREAD, Turn, Worker

WORDS = ["once upon", "a", "the sea, the sea", "", "zz top", "x" * 90]


def exact_loaded(seed=0):
    return Loaded("exact", lively_model(CONFIG, seed=seed), Bytes(), "vicuna", ChatSampling(), 12)


def turn_of(loaded, body):
    """(what is asked, its turn) of a request for text."""
    asked = read_asked(body, "text", loaded)
    return asked, Turn(loaded, 1.0, lambda: begin(asked, loaded), len(asked.rows), max(map(len, asked.prompts)),
                       asked.max_new_tokens)


async def all_pieces(turn):
    return [piece async for pieces in turn.news() for piece in pieces]


def asked_at_random(chance):
    sampling = chance.choice(SAMPLINGS)
    return {"prompt": chance.sample(WORDS, chance.randint(1, 2)), "n": chance.randint(1, 2),
            "seed": chance.randrange(9), "max_tokens": chance.randint(0, 25),
            "temperature": sampling.temperature, "top_p": sampling.top_p,
            "stop": chance.sample(["e", "th", "\n", "a"], chance.randint(0, 2)), "logprobs": chance.choice([None, 2])}


def choices(asked, loaded, pieces):
    return Writer("text", asked, loaded).whole(pieces)["choices"]


@compiled
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_requests_beside_one_another_get_to_the_last_digit_what_each_gets_alone(seed):
    """Lengths, ends and settings of many kinds, rows that come and go: texts, ends and facts are equal."""
    loaded, chance = exact_loaded(seed), random.Random(seed)
    most_beside = []

    async def serve():
        worker = Worker()
        worker.step = lambda: most_beside.append(len(worker.batch.rows)) or Worker.step(worker)
        tasks = []
        for body in bodies:
            asked, turn = turn_of(loaded, body)
            tasks.append((asked, asyncio.create_task(all_pieces(worker.ask(turn)))))
            await asyncio.sleep(chance.choice([0, 0.003]))
        return [(asked, await task) for asked, task in tasks]

    bodies = [asked_at_random(chance) for _ in range(12)]
    for asked, pieces in asyncio.run(serve()):
        alone = list(answers(loaded.model, loaded.tokenizer, asked.rows, asked.max_new_tokens, asked.sampling,
                             asked.stop, asked.seed, asked.stop_ids, asked.n_top))
        assert choices(asked, loaded, pieces) == choices(asked, loaded, alone)
    assert max(most_beside) > 4


@compiled
def test_one_request_does_not_wait_for_the_end_of_another_nor_for_who_has_left():
    loaded = exact_loaded()

    async def serve():
        worker, order = Worker(), []

        async def ask(name, most, leave=False):
            _, turn = turn_of(loaded, {"prompt": name, "max_tokens": most, "temperature": 5, "stop_token_ids": []})
            news = worker.ask(turn).news()
            async for _ in news:
                if leave:
                    break
            await news.aclose()
            order.append(name)
            return turn

        long, short, gone = await asyncio.gather(ask("long", 400), ask("short", 3), ask("gone", 400, leave=True))
        assert order[-1] == "long" and worker.turns == []
        assert gone.rows[0].made <= 4 and long.rows[0].made == 400

    asyncio.run(serve())


def test_only_what_is_exact_and_asks_the_same_of_one_model_is_merged():
    one, other = made_loaded(0), made_loaded(1)
    worker = Worker()

    def fits(loaded, scale, exact, n_rows=1, longest=5, most=5):
        worker.turns = [Turn(one, 1.0, None)]
        worker.batch = type("Held", (), {"exact": exact, "rows": []})()
        return worker.fits(Turn(loaded, scale, None, n_rows, longest, most))

    assert fits(one, 1.0, True) and not fits(one, 1.0, False)
    assert not fits(other, 1.0, True) and not fits(one, 0.5, True)
    assert fits(one, 1.0, True, 8) and not fits(one, 1.0, True, 9)
    assert fits(one, 1.0, True, 8, 300, 212) and not fits(one, 1.0, True, 8, 300, 213)


def test_an_error_ends_its_own_request_and_no_other():
    loaded = made_loaded()

    async def serve():
        worker = Worker()
        worker.fits = lambda turn: True  # also beside the first
        turns = [turn_of(loaded, {"prompt": "a", "max_tokens": 20})[1] for _ in range(3)]
        turns[1].begin = lambda: 1 / 0
        first, bad, last = await asyncio.gather(*(all_pieces(worker.ask(turn)) for turn in turns),
                                                return_exceptions=True)
        assert isinstance(bad, ZeroDivisionError) and first[-1].finish == last[-1].finish == "length"

    asyncio.run(serve())


def test_who_never_reads_is_let_go():
    """The last thing that a late reader finds says why; an end that comes in time is an end."""
    async def read(n_told):
        turn, found = Turn(made_loaded(), 1.0, None), []
        for piece in [*range(n_told), None]:
            turn.tell(piece)
        assert turn.closed == (n_told > MOST_UNREAD) and turn.told.qsize() == MOST_UNREAD + 1
        try:
            async for pieces in turn.news():
                found += pieces
        finally:
            assert found == list(range(MOST_UNREAD))

    asyncio.run(asyncio.wait_for(read(MOST_UNREAD), 1))
    for n_told in (MOST_UNREAD + 1, 3 * MOST_UNREAD):
        with pytest.raises(Refused, match=f"ended because {MOST_UNREAD} pieces of it lay unread"):
            asyncio.run(asyncio.wait_for(read(n_told), 1))


def test_who_leaves_while_waiting_is_never_begun():
    loaded = made_loaded()

    async def serve():
        worker = Worker()
        turns = [turn_of(loaded, {"prompt": "a", "max_tokens": 3})[1] for _ in range(3)]
        asked = [asyncio.create_task(all_pieces(worker.ask(turn))) for turn in turns]
        turns[0].closed = turns[1].closed = True
        assert (await asked[2])[-1].finish == "length" and turns[0].rows == turns[1].rows == []

    asyncio.run(asyncio.wait_for(serve(), 2))


def test_a_step_that_fails_ends_every_row_with_one_error_each_and_the_next_request_is_answered(monkeypatch):
    loaded = exact_loaded()

    async def serve():
        worker = Worker()
        worker.fits = lambda turn: True  # also beside the first
        turns = [turn_of(loaded, {"prompt": "a", "max_tokens": most, "temperature": 5})[1] for most in (5, 9, 9)]
        with monkeypatch.context() as patch:
            patch.setattr("minillama.kv_cache.KVCache.keep_rows", lambda cache, rows: 1 / 0)
            found = await asyncio.gather(*(all_pieces(worker.ask(turn)) for turn in turns), return_exceptions=True)
        assert [type(one) for one in found] == [list, ZeroDivisionError, ZeroDivisionError]
        assert all(turn.told.empty() for turn in turns)
        assert (await all_pieces(worker.ask(turn_of(loaded, {"prompt": "b", "max_tokens": 3})[1])))[-1].finish

    asyncio.run(asyncio.wait_for(serve(), 2))


class LoopBehind:
    """An event loop that does what it is asked only when told, or with `at_once` on the spot."""

    def __init__(self, at_once=None):
        self.asked, self.at_once = [], at_once

    def call_soon_threadsafe(self, call):
        self.asked.append(call)
        if self.at_once:
            call()
            self.at_once()


def steps_of(loop, worker):
    """(what `steps` leaves to be told, of steps that tell their number; how many were made; the turn)."""
    turn, made = Turn(made_loaded(), 1.0, None), []
    turn.rows, worker.turns = [SimpleNamespace(left=9)], [turn]
    worker.step = lambda: [(turn, made.append(1) or len(made))]
    return [one for _, one in worker.steps(loop)], len(made), turn


def test_the_model_is_one_step_ahead_of_what_is_told_and_no_more():
    worker, loop = Worker(), LoopBehind()
    told, made, turn = steps_of(loop, worker)
    assert (told, made, len(loop.asked)) == ([2], 2, 1), "the second step came before the first was told"
    loop.asked[0]()
    assert turn.told.get_nowait() == 1 and turn.told.empty() and not worker.on_its_way


def test_steps_are_told_in_order_each_once_until_someone_waits():
    worker = Worker()
    loop = LoopBehind(lambda: worker.waiting.extend([None] * (len(loop.asked) >= 4)))
    told, made, turn = steps_of(loop, worker)
    assert (told, made) == ([5], 5)
    assert [turn.told.get_nowait() for _ in range(4)] == [1, 2, 3, 4] and turn.told.empty()


def test_a_turn_that_is_over_or_has_left_is_not_continued():
    for name, value in (("closed", True), ("rows", [])):
        worker = Worker()
        loop = LoopBehind(partial(end_and_wait, worker, name, value))
        assert steps_of(loop, worker)[:2] == ([2], 2)


def end_and_wait(worker, name, value):
    """The turn ends in this way; where it is continued nevertheless, someone waits a step later."""
    turn = worker.turns[0]
    worker.waiting.extend([None] * (getattr(turn, name) == value))
    setattr(turn, name, value)


plant = partial(Mutant, "minillama.web.worker")
AHEAD = test_the_model_is_one_step_ahead_of_what_is_told_and_no_more
IN_ORDER = test_steps_are_told_in_order_each_once_until_someone_waits
MUTANTS = [
    plant("not self.batch.exact or any(", "any(", test_only_what_is_exact_and_asks_the_same_of_one_model_is_merged),
    plant("count * room <= max(", "room <= max(", test_only_what_is_exact_and_asks_the_same_of_one_model_is_merged),
    plant("!= (turn.loaded, turn.scale)", "!= (turn.loaded, one.scale)",
          test_only_what_is_exact_and_asks_the_same_of_one_model_is_merged),
    plant("one is not None and self.told.qsize() >= MOST_UNREAD", "False", test_who_never_reads_is_let_go),
    plant("one is not None and self.told", "self.told", test_who_never_reads_is_let_go),
    plant("            one = Refused(", "            Refused(", test_who_never_reads_is_let_go),
    plant("self.turns:\n            self.waiting = deque(one for one in self.waiting if not one.closed)", "self.turns:",
          test_who_leaves_while_waiting_is_never_begun),
    plant("[(turn, error) for turn in turns]", "[(turn, error) for turn in self.turns]",
          test_an_error_ends_its_own_request_and_no_other),
    # a step ahead
    plant("not self.waiting and not self.on_its_way", "not self.waiting and len(self.on_its_way) < 2", AHEAD),
    plant("while not self.waiting and not self.on_its_way", "while False", AHEAD),
    plant("self.on_its_way.popleft()", "self.on_its_way[0]", AHEAD),
    plant("self.on_its_way.append(told)", "self.on_its_way.appendleft(told[:0])", IN_ORDER),
    plant("while not self.waiting and ", "while len(self.waiting) < 2 and ", IN_ORDER),
    plant("turn.closed or turn.over", "turn.over", test_a_turn_that_is_over_or_has_left_is_not_continued),
    plant("turn.closed or turn.over", "turn.closed", test_a_turn_that_is_over_or_has_left_is_not_continued),
]
