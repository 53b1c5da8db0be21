"""Little worlds that the defaults of feedback were not chosen on: their texts, answers, pairs, and what is good.

A question asks about a few things; an answer is a row of sentences, each of a kind, in a fixed order. A sentence has a
worth, and the quality of an answer is the sum of what its sentences are worth, less one for each sentence that does not
belong there. `kitchen` values modesty, measures and naming the dish; `harbour` values bare facts: time and place;
`teahouse`, in Chinese, the number of guests, and asking back. `errands` is a numbered list, whose order is good or bad.
`meter` has short answers with numbers, `refuge` long ones in Spanish: no default was chosen on these two.
"""

import itertools
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

SLOT = re.compile(r"\{(\w+)\}")
SENTENCE = re.compile(r"\S[^.!?。！？]*[.!?。！？]?")
MALFORMED = -1  # what is wrong costs, each time


class World(NamedTuple):
    """question: a template; named: the slots that an answer may repeat; words: {slot: options}; kinds: {kind of
    sentence: ({template: its worth}, probability that an answer has one)}, in the order of an answer."""

    question: str
    named: tuple
    words: dict
    kinds: dict
    space: str = " "  # between sentences

    def questions(self):
        """{text: {slot: word}} of all questions."""
        return questions_of(self.question, self.words)

    def answer(self, asked, rng):
        """An answer as the world's people give it, good and bad."""
        said = [rng.choice(list(templates)) for templates, share in self.kinds.values() if rng.random() < share]
        return self.space.join(SLOT.sub(lambda slot: asked.get(slot[1]) or rng.choice(self.words[slot[1]]), template)
                               for template in said)

    def judged(self, asked, answer):
        """(quality, whether the answer is malformed): malformed is what nobody there could have answered so."""
        found, quality, malformed, last = set(), 0, False, -1
        for sentence in SENTENCE.findall(" ".join(answer.split())):
            place, worth = self.kind(asked, sentence)
            if place is None or place in found:
                quality, malformed = quality + MALFORMED, True
                continue
            found.add(place)
            malformed, last = malformed or place < last, max(place, last)
            quality += worth
        core = list(self.kinds).index("core")
        return (quality, malformed) if core in found else (quality + MALFORMED, True)

    def kind(self, asked, sentence):
        """(its place in an answer, its worth); (None, 0) of what nobody says."""
        for place, (templates, _) in enumerate(self.kinds.values()):
            for template, worth in templates.items():
                if re.fullmatch(self.pattern(asked, template), sentence.rstrip()):
                    return place, worth
        return None, 0

    def pattern(self, asked, template):
        """A sentence's regular expression: what the question named has to be the same, all else may be any word."""
        parts = SLOT.split(template)
        return "".join(re.escape(part) if i % 2 == 0 else re.escape(asked[part]) if part in self.named
                       else f"(?:{'|'.join(map(re.escape, self.words[part]))})" for i, part in enumerate(parts))


def questions_of(question, words):
    """All ways to fill the slots of a question, {text: {slot: word}}."""
    slots = SLOT.findall(question)
    rows = (dict(zip(slots, chosen, strict=True)) for chosen in itertools.product(*(words[slot] for slot in slots)))
    return {question.format(**row): row for row in rows}


KITCHEN = World(
    "What should I serve with a {taste} {dish} on {day}?", ("dish",),
    {"taste": ["smoky", "bitter", "sweet", "salty", "mild", "spicy", "sour", "plain"],
     "dish": ["stew", "omelette", "salad", "pudding", "curry", "soup", "roast", "pancake", "noodle", "risotto", "pie",
              "fritter", "casserole", "dumpling", "trout", "quiche"],
     "day": ["Monday", "Friday", "Sunday", "Easter"],
     "measure": ["two spoons", "half a cup", "a pinch", "three slices"],
     "side": ["parsley", "yoghurt", "lentils", "ginger", "almonds", "mustard", "rice", "beans"],
     "when": ["at noon", "while it is hot", "before guests arrive", "after it has cooled"]},
    {"opening": ({"Perhaps this helps.": 1, "Only one idea from me.": 1, "Hello there.": 0,
                  "Everyone praises my food.": -1, "I have won prizes for this.": -1}, 0.8),
     "core": ({"Put {measure} of {side} on the {dish} {when}.": 2, "Put some {side} on the {dish} {when}.": 1,
               "Put {measure} of {side} on the plate.": 0, "Put some {side} on the plate.": -1}, 1.0),
     "why": ({"It makes the {dish} taste less dull.": 1, "Nobody knows why.": -1}, 0.5),
     "end": ({"Enjoy the meal.": 1, "I would try it once.": 1, "That will do.": 0, "Come to my restaurant.": -1,
              "Buy my book of recipes.": -1}, 0.8)})

HARBOUR = World(
    "When does the {size} {vessel} for {port} leave?", ("vessel", "port"),
    {"size": ["old", "white", "fast", "narrow", "crowded", "new"],
     "vessel": ["ferry", "steamer", "barge", "cutter", "trawler", "yacht"],
     "port": ["Lisbon", "Bergen", "Odessa", "Genoa", "Cork", "Hull", "Riga", "Malta", "Turku", "Brest"],
     "hour": ["six", "nine", "eleven", "four", "seven", "ten"], "half": ["sharp", "thirty"],
     "pier": ["north pier", "fish market", "lighthouse", "customs house", "second dock", "long bridge"]},
    {"greeting": ({"Ahoy my friend!": -1, "What a lovely morning!": -1, "Listen.": 0}, 0.5),
     "doubt": ({"I may be mistaken.": -1, "Somebody told me so.": -1, "The list says this.": 1}, 0.6),
     "core": ({"The {vessel} to {port} leaves at {hour} {half} from the {pier}.": 3,
               "The {vessel} to {port} leaves at {hour}.": 2, "It leaves from the {pier}.": 1,
               "It leaves some day.": -1}, 1.0),
     "fare": ({"Tickets are sold at the {pier}.": 1, "Tickets cost more than they should.": -1}, 0.4),
     "chatter": ({"My uncle sailed once.": -1, "The gulls are loud today.": -1}, 0.5)})

# The number of guests is named first: a pot for each is right, another number is wrong.
TEAHOUSE = World(
    "我们{guests}位客人{when}想喝{tea}，怎么点？", ("guests", "tea"),
    {"guests": ["两", "三", "四", "五", "六", "七", "八", "九"],
     "when": ["早上", "中午", "下午", "晚上", "雨天", "周末"],
     "tea": ["龙井", "普洱", "红茶", "花茶", "白茶", "乌龙", "毛峰", "黑茶", "麦茶", "菊花茶"],
     "pots": ["两", "三", "四", "五", "六", "七", "八", "九"], "cake": ["绿豆糕", "桂花糕", "瓜子", "花生"],
     "yuan": ["二十", "四十", "六十", "八十"]},
    {"opening": ({"您好！": 1, "请坐。": 1, "听着。": 0, "快说！": -1, "又来了！": -1}, 0.8),
     "core": ({"{guests}位客人请点{guests}壶{tea}。": 3, "请点{pots}壶{tea}。": 1, "请点{pots}壶。": 0,
               "随便点。": -1}, 1.0),
     "cake": ({"再来一盘{cake}，一共{yuan}元。": -1, "{cake}今天不要钱。": 1}, 0.5),
     "end": ({"要浓一点吗？": 1, "坐窗边好吗？": 1, "就这样。": 0, "先付钱！": -1, "不好喝别怪我。": -1}, 0.8)}, "")


METER = World(
    "House {house}: {meter} at {value}?", ("meter", "value"),
    {"house": ["12", "27", "35", "48", "51", "64", "79", "83", "96", "108"], "meter": ["gas", "water", "heat", "power"],
     "value": ["140", "255", "318", "407", "562", "689", "731", "876", "904", "990", "1023", "1547"],
     "days": ["5", "10", "20", "30"]},
    {"core": ({"{meter} {value}, all right.": 3, "{meter}, all right.": 1, "All right.": 0, "Whatever.": -2}, 1.0),
     "next": ({"Read again in {days} days.": 1, "Never ask again.": -1}, 0.5),
     "end": ({"Thank you.": 1, "Bye.": 0, "Hurry up.": -1}, 0.7)})

REFUGE = World(
    "¿Cómo llego de {town} al refugio {hut} con {weather}?", ("town", "weather", "hut"),
    {"town": ["Benasque", "Bielsa", "Torla", "Sallent", "Jaca", "Ansó"],
     "hut": ["Estós", "Pineta", "Góriz", "Respomuso", "Lizara", "Linza", "Bachimaña", "Viadós"],
     "weather": ["niebla", "nieve", "lluvia", "viento", "calor", "hielo", "sol", "tormenta"],
     "mark": ["puente", "molino", "lago", "pinar", "collado"], "hours": ["dos", "tres", "cuatro", "cinco", "seis"],
     "thing": ["un mapa", "una manta", "una linterna", "unas gafas"], "drink": ["agua", "té", "caldo"]},
    {"greeting": ({"Buenos días y bienvenido a la montaña.": 1, "Escuche.": 0, "Otra vez la misma pregunta.": -1}, 0.7),
     "core": ({"Desde {town} siga la senda del {mark} hasta {hut}.": 2, "Siga la senda del {mark} hasta {hut}.": 1,
               "Siga la senda del {mark}.": 0, "Busque usted mismo el camino.": -1}, 1.0),
     "time": ({"Con {weather} tardará unas {hours} horas.": 1, "Nadie sabe cuánto se tarda.": -1}, 0.6),
     "gear": ({"Lleve {thing} y {drink} en la mochila.": 1, "No hace falta llevar nada.": -1}, 0.6),
     "end": ({"¿Quiere que avise al guarda?": 1, "Eso es todo.": 0, "No me llame más.": -1}, 0.7)})


class Errands(NamedTuple):
    """Numbered steps, each of a stage; good is the order of the stages, three steps, and to ask back about the
    fault; blame is bad."""

    question: str = "My {thing} in the {room} is {fault}, what now?"
    words: dict = {
        "thing": ["radio", "lamp", "kettle", "heater", "printer", "clock", "fan", "mixer", "pump", "drill"],
        "room": ["attic", "cellar", "office", "garage", "hall", "studio"],
        "fault": ["noisy", "slow", "hot", "dusty", "wet", "stuck", "loose", "silent"]}
    stages: tuple = (("pull the plug", "turn off the power"), ("open the {thing}", "take the lid off the {thing}"),
                     ("dry the inside", "oil the wheels", "tighten the screws"), ("close it", "put the lid back"))
    ends: dict = {"Is it still {fault}?": 1, "Good luck.": 0, "You broke it yourself.": -1}

    def questions(self):
        return questions_of(self.question, self.words)

    def answer(self, asked, rng):
        stages = rng.sample(range(4), rng.choice([1, 2, 3, 3, 4]))
        stages = sorted(stages) if rng.random() < 0.5 else stages
        steps = [f"{i}) {rng.choice(self.stages[stage])}" for i, stage in enumerate(stages, 1)]
        end = [rng.choice(list(self.ends))] * (rng.random() < 0.8)
        return " ".join(["; ".join(steps) + ".", *end]).format(**asked)

    def judged(self, asked, answer):
        listed, *rest = [sentence.strip() for sentence in SENTENCE.findall(" ".join(answer.split()))] or [""]
        ends = {end.format(**asked): worth for end, worth in self.ends.items()}
        quality = sum(ends.get(end, MALFORMED) for end in rest[:1]) + MALFORMED * len(rest[1:])
        said = {step.format(**asked): i for i, steps in enumerate(self.stages) for step in steps}
        steps = [part.partition(") ") for part in listed.removesuffix(".").split("; ")]
        stages = [said[step] for _, _, step in steps if step in said]
        if not stages:
            return quality + MALFORMED, True
        wrong = len(steps) - len(set(stages)) + (listed[-1:] != ".")
        wrong += [number for number, _, _ in steps] != [str(i) for i in range(1, len(steps) + 1)]
        ordered = len(stages) > 1 and 2 * (1 if stages == sorted(stages) else -1)
        malformed = bool(wrong or any(end not in ends for end in rest) or len(rest) > 1)
        return quality + ordered + min(len(set(stages)), 3) - 2 + MALFORMED * wrong, malformed


ERRANDS = Errands()
WORLDS = {"kitchen": KITCHEN, "harbour": HARBOUR, "teahouse": TEAHOUSE, "errands": ERRANDS, "meter": METER,
          "refuge": REFUGE}


def pairs_of(world, seed, n, wrong=0.0, inverted=False):
    """n dicts prompt, chosen, rejected: two answers of unequal quality, the better chosen, but for a share of them."""
    rng, asked, made = random.Random(f"pairs {seed}"), world.questions(), []
    while len(made) < n:
        question = rng.choice(list(asked))
        two = [world.answer(asked[question], rng) for _ in range(2)]
        (good, _), (bad, _) = (world.judged(asked[question], text) for text in two)
        if good == bad:
            continue
        turned = (good < bad) ^ inverted ^ (rng.random() < wrong)
        made.append({"prompt": question, "chosen": two[turned], "rejected": two[not turned]})
    return made


def write_files(folder, name, seed=0, posts=9000, records=2500, pairs=2400, wrong=0.0, inverted=False):
    """text/ (files of 30 posts), sft.jsonl and pairs.jsonl of the world of that name, as somebody would bring them."""
    folder, world = Path(folder), WORLDS[name]
    asked, rng = world.questions(), random.Random(f"{name} {seed}")
    said = [(question := rng.choice(list(asked)), world.answer(asked[question], rng))
            for _ in range(posts + records)]
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for i in range(0, posts, 30):
        (folder / "text" / f"{i}.txt").write_text("\n".join(" ".join(post) for post in said[i:min(i + 30, posts)]),
                                                   encoding="utf-8")
    for file, rows in (("sft", [{"instruction": q, "output": a} for q, a in said[posts:]]),
                       ("pairs", pairs_of(world, seed, pairs, wrong, inverted))):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
