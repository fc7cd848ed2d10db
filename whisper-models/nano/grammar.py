"""What the nano model can hear: the grammar of its sentences, its voices, and who is kept out of training."""

import random
import zlib

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = (*DIGITS[1:], "ten")
ROOMS = ("kitchen", "bedroom", "garden", "office", "garage")
DEVICES = ("light", "fan", "heater", "radio")
OPENINGS = ("door", "window")
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
CITIES = ("London", "Paris", "Berlin", "Madrid", "Tokyo", "Boston")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PEOPLE = ("the doctor", "my mother", "the teacher")
GOODS = ("apples", "books", "flowers", "boxes")
MINUTES = ("thirty", "fifteen", "forty")
UNITS = ("minutes", "hours", "seconds")

TRAINING_SPEAKERS = ("george", "jackson", "nicolas")
HELD_OUT_SPEAKER = "lucas"
"""The FSDD speaker kept out of training; chosen before the first training run."""

HELD_OUT_FLITE = "slt"
HELD_OUT_ESPEAK = ("en-us+f4", "en-gb+m5")
"""Voices kept out of training altogether."""

FLITE_VOICES = ("awb", "kal16", "rms")
ESPEAK_VARIANTS = (
    *("", "+m1", "+m2", "+m3", "+m4", "+m6", "+m7", "+f1", "+f2", "+f3", "+f5", "+Andy", "+Annie", "+Alicia"),
    *("+linda", "+john", "+michael", "+Andrea", "+Mike", "+Lee", "+paul", "+steph", "+victor", "+belinda"),
)
ESPEAK_VOICES = tuple(accent + variant for accent in ("en-us", "en-gb") for variant in ESPEAK_VARIANTS)


def sentence(rng: random.Random) -> str:
    """One sentence of the grammar, punctuated."""
    one = rng.choice
    kinds = (
        lambda: f"turn {one(('on', 'off'))} the {one(COLOURS)} {one(DEVICES)} in the {one(ROOMS)}",
        lambda: f"{one(('open', 'close', 'check'))} the {one(ROOMS)} {one(OPENINGS)}",
        lambda: f"set a timer for {one(NUMBERS)} {one(UNITS)}",
        lambda: f"what is the weather in {one(CITIES)} {one(('today', 'tomorrow', 'on ' + one(DAYS)))}?",
        lambda: f"call {one(PEOPLE)} on {one(DAYS)} at {one(NUMBERS)}",
        lambda: "the code is " + " ".join(one(DIGITS) for _ in range(rng.randint(3, 6))),
        lambda: f"the train to {one(CITIES)} leaves at {one(NUMBERS)} {one(MINUTES)}",
        lambda: f"{one(PEOPLE)} bought {one(NUMBERS)} {one(COLOURS)} {one(GOODS)}",
    )
    return punctuate(one(kinds)())


def is_held_out(text: str) -> bool:
    """Whether a sentence is held out of training, for all voices: one in ten, by a hash of its text."""
    return zlib.crc32(text.encode()) % 10 == 0


def digit_string(digits: list[int]) -> str:
    """[7, 3, 1] → "Seven three one."."""
    return punctuate(" ".join(DIGITS[digit] for digit in digits))


def punctuate(text: str) -> str:
    """A capital at the start and a full stop at the end, where the text has no question mark."""
    text = text[0].upper() + text[1:]
    return text if text.endswith("?") else text + "."


def vocabulary() -> list[str]:
    """Every text a tokenizer must cover: enough sentences and digit strings to hold each word in each position."""
    rng = random.Random(0)
    return [sentence(rng) for _ in range(20000)] + [digit_string([d, d]) for d in range(10)]
