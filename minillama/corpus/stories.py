"""Endless tiny stories from a seed, each with its exact number of bits.

Seven plots, a child who wants something, an animal who helps. Most words are free choices, which a small model can
learn in a minute; a few return later (the name, the toy, the animal), which it can only learn by looking back.
"""

import random

from minillama.corpus.grammar import Grammar

GIRLS = ["Lily", "Mia", "Rose", "Zoe"]
BOYS = ["Tom", "Ben", "Max", "Leo"]

RULES = {
    "story": ["{lost}", "{cake}", "{night}", "{friendless}", "{boats}", "{seed}", "{letter}"],
    "lost": [
        "One {weather} morning, {hero} could not find {her} {state} {colour} {toy}. {She} looked {place} "
        "and found {number} {treasure}. Then came a {manner} {friend}. \"Look {other_place},\" said the "
        "{friend}. And there was the {toy}! {She} {ended}."],
    "cake": [
        "Today {hero} wanted to make a {colour} cake for {her} {relative}. {She} had {number} {fruit} and "
        "{treat}, but no {butter}. Then came a {manner} {friend}. \"Take mine,\" said the {friend}. They "
        "worked {place} until {late}. It was the best cake of all."],
    "night": [
        "At night came the {wind}, and {hero} was afraid. {She} took a {state} {colour} {toy} and hid "
        "{place}. Then came a {manner} {friend}. \"I am afraid too,\" said the {friend}. They counted "
        "{number} {treasure} and fell asleep. In the morning, {treat} lay by the {toy}."],
    "friendless": [
        "Once {hero} had a {state} {colour} {toy}, but no friend. {She} sold the {toy} for {treat}. Then "
        "came a {manner} {friend}. \"I am hungry,\" said the {friend}. They shared it {place} and counted "
        "{number} {treasure} until {late}. Now {hero} has a friend."],
    "boats": [
        "Every {evening}, {hero} counted {number} boats {place}. One {weather} night, a boat was lost. "
        "{She} lit a {state} {colour} lamp. Then came a {manner} {friend}. \"I can swim,\" said the {friend}, "
        "and took it over the {water}. At last the boat came home, full of {fruit}."],
    "seed": [
        "In {month}, {hero} planted a {colour} seed {place}. {She} waited {number} days, but nothing grew. "
        "Then came a {manner} {friend}. \"Sing to it,\" said the {friend}. {She} sang about {treasure} until "
        "{late}. Now there is a tree full of {fruit}, and the {friend} {lives}."],
    "letter": [
        "On {day}, {hero} had a letter. \"Come {place},\" it said, \"and bring {number} {fruit}.\" There sat a "
        "giant, {alone}, and {she} was afraid. Then came a {manner} {friend}. \"He only wants to play,\" said "
        "the {friend}. They all played with a {colour} {toy} until {late}."],

    "hero | she | her": [f"{name} | she | her" for name in GIRLS] + [f"{name} | he | his" for name in BOYS],
    "friend": ["owl", "fox", "hen", "toad", "mole", "goat", "bear", "duck"],
    "manner": ["wise", "kind", "gruff", "sleepy", "jolly", "tiny", "polite", "proud"],
    "toy": ["kite", "drum", "ball", "bell", "hat", "boat", "lamp", "book"],
    "state": ["rusty", "muddy", "heavy", "new"],
    "colour": ["red", "blue", "green", "yellow", "silver", "golden", "purple", "striped"],
    "weather": ["rainy", "windy", "snowy", "foggy"],
    "number": [str(number) for number in range(11, 100)],
    "treasure": ["shells", "stones", "feathers", "acorns", "buttons", "stars", "sheep", "moths"],
    "fruit": ["pears", "plums", "apples", "lemons", "figs", "nuts", "berries", "cherries"],
    "treat": ["a bun", "a cookie", "some tea", "some pie", "some jam", "some honey", "some cheese", "some soup"],
    "butter": ["butter", "flour", "sugar", "milk"],
    "place": ["by the well", "behind the mill", "in the barn", "near the pond", "under the bridge", "on the hill",
              "at the gate", "beside the church"],
    "other_place": ["under the bed", "behind the stove", "on the shelf", "up the chimney"],
    "relative": ["mother", "father", "sister", "uncle"],
    "wind": ["wind", "thunder", "rain", "snow"],
    "water": ["waves", "rocks", "reeds", "ice"],
    "evening": ["evening", "summer", "autumn", "winter"],
    "day": ["Monday", "Tuesday", "Friday", "Sunday"],
    "month": ["March", "April", "May", "June"],
    "late": ["midnight", "supper", "morning", "the stars came out"],
    "alone": ["all alone", "reading a map", "knitting socks", "eating soup"],
    "lives": ["lives in it", "guards it", "sleeps under it", "sings to it"],
    "ended": ["danced all the way home", "ran all the way home", "laughed until supper", "never lost it again"],
}

GRAMMAR = Grammar(RULES, start="{story}")
entropy_bits, log2_probability = GRAMMAR.entropy_bits, GRAMMAR.log2_probability  # of a story, of all on average


def documents(seed, n):
    """`n` stories as `Document(text, bits)`; the same seed gives the same stories on every machine."""
    return GRAMMAR.documents(random.Random(f"stories {seed}"), n)
