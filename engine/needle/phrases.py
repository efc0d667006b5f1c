"""The wordings needle is trained on: keys, needle and question sentences, fillers. Data only.

Slots: {k} key, {v} value, {t} what the value is ("magic number", "code"...).
"""

from pathlib import Path

_DATA = Path(__file__).parent / "data"
NOUNS: list[str] = (_DATA / "nouns.txt").read_text().split()
ADJECTIVES: list[str] = (_DATA / "adjectives.txt").read_text().split()

TYPES = [
    "magic number",
    "special magic number",
    "number",
    "secret number",
    "code",
    "secret code",
    "access code",
    "password",
    "passcode",
    "PIN",
    "key",
    "value",
    "id",
    "phone number",
    "order number",
    "serial number",
    "ticket number",
    "launch code",
    "door code",
    "account number",
    "vault combination",
    "reference number",
]

LINES = ["{k}: {v}", "{k} = {v}", '"{k}": "{v}",', '"{k}": {v},', "- {k}: {v}", "{k} -> {v}", "{k}: {v}."]

SENTENCES = [
    "One of the special magic numbers for {k} is: {v}.",
    "The special magic number for {k} is {v}.",
    "The {t} for {k} is {v}.",
    "The {t} for {k} is: {v}.",
    "The {t} of {k} is {v}.",
    "The {t} of the {k} is {v}.",
    "The {t} for the {k} is {v}.",
    "One of the {t}s for {k} is: {v}.",
    "Remember that the {t} for {k} is {v}.",
    "Please note: the {t} of {k} is {v}.",
    "By the way, the {t} for {k} is {v}.",
    "I wrote down that the {t} for the {k} is {v}, and nothing else.",
    "For {k} the {t} is {v}.",
    "For {k}, use the {t} {v}.",
    "{k} has the {t} {v}.",
    "Do not forget the {t} for {k}: {v}.",
    "The {k} has been given the {t} {v}.",
    "My {t} for {k} is {v}.",
]

SHORT_QUESTIONS = ["{k}?", "{k}:", "{k}", "{k} ="]

QUESTIONS = [
    "What is the {t} for {k}?",
    "What is the {t} of {k}?",
    "What is the {t} for the {k}?",
    "What is the {t} of the {k}?",
    "What's the {t} for {k}?",
    "Which {t} belongs to {k}?",
    "Which {t} does {k} have?",
    "What {t} was given for {k}?",
    "Tell me the {t} for {k}.",
    "Give me the {t} of {k}.",
    "Find the {t} for {k}.",
    "Find the {t} of {k} in the text above.",
    "According to the text, what is the {t} for {k}?",
    "What is the {t} for {k} mentioned in the provided text?",
    "What is the special magic number for {k} mentioned in the provided text?",
    "What is the {t} for {k} in the text above? Answer with the {t} only.",
    "Can you tell me the {t} for {k}?",
    "Please tell me what the {t} for {k} is.",
    "I forgot the {t} for {k}. What is it?",
    "Question: What is the {t} for {k}?",
    "What is the value of {k}?",
    "What is the value for {k}?",
    "Which value is stored under {k}?",
]

DISTANT_QUESTIONS = [q for q in QUESTIONS if len(q) - q.index("{k}") > 20]
"""Those that end long after the key: the hardest to learn on long haystacks."""

MANY_QUESTIONS = [
    "What are the {t}s for {k}?",
    "What are all the {t}s for {k} mentioned in the provided text?",
    "What are all the special magic numbers for {k} mentioned in the provided text?",
    "List the {t}s for {k}.",
    "Give me all {t}s of {k}.",
    "Tell me the {t}s for {k}.",
]

PREFIXES = [
    "The {t} for {k} is",
    "The {t} of {k} is",
    "The {t} for {k} mentioned in the provided text is",
    "The special magic number for {k} mentioned in the provided text is",
    "The answer is",
    "Answer:",
]

INTROS = [
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the numbers afterwards.",
    "Read the following text carefully. I will ask you about it afterwards.",
    "Here is a long text.",
    "Below is a list of keys and values.",
    "Extract the value corresponding to the specified key in the text below.",
    "Please read this:",
    "There is an important fact hidden in the text. Find it and memorize it.",
    "Context:",
    "Document:",
]

OUTROS = ["Question:", "Now answer this question.", "Based on the text above:", "End of the text."]

SYSTEMS = [
    "You are a helpful assistant.",
    "You answer questions about long texts.",
    "Answer with the value only.",
    "You are a careful reader. Give short answers.",
]

NOISE = [
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
]

VERBS = [
    "sees",
    "finds",
    "follows",
    "paints",
    "carries",
    "watches",
    "likes",
    "repairs",
    "builds",
    "hides",
    "holds",
    "crosses",
    "passes",
    "visits",
    "draws",
    "remembers",
    "forgets",
    "sells",
    "buys",
    "moves",
    "cleans",
    "opens",
    "closes",
    "touches",
    "describes",
    "guards",
    "admires",
    "brings",
    "keeps",
    "studies",
]
PLACES = [
    "in",
    "near",
    "behind",
    "under",
    "above",
    "beside",
    "beyond",
    "across",
    "around",
    "inside",
    "outside",
    "toward",
    "through",
]
TIMES = [
    "Today",
    "Yesterday",
    "Later",
    "In the morning",
    "At night",
    "Every day",
    "Last year",
    "Often",
    "Sometimes",
    "Meanwhile",
    "Soon",
    "After a while",
    "In those days",
    "Now and then",
]
CLAUSES = [
    "The {a} {n} {w} the {n} {p} the {a} {n}.",
    "{i}, the {n} {w} a {a} {n}.",
    "{i} the {a} {n} {w} the {n}, but nobody knows why.",
    "A {n} {p} the {n} {w} the {a} {n} and the {n}.",
    "There was a {a} {n} {p} the {n}.",
    "It is said that the {n} {w} every {a} {n} {p} the {n}.",
    "When the {n} is {a}, the {n} {w} it.",
    "He told us about the {n} and {m} {n}s.",
    "She had {m} {a} {n}s {p} the {n}.",
    "{i}, {m} people came to see the {a} {n}.",
    "We should have known that the {n} was {a}, not {a}.",
    "My friend {w} the {n}; I think it is {a}.",
    "The {n} of the {n} was never as {a} as the {n}.",
]

VT_LINES = ["VAR {x} = {y}", "{x} = {y}", "VAR {x} = VAR {y}", "VAR {x} = VAR {y}."]
VT_QUESTIONS = [
    "Find all variables that are assigned the value {v}.",
    "Find all variables that are assigned the value {v} in the text above.",
    "Which variables have the value {v}?",
]


def texts() -> list[str]:
    """Every wording, for building the vocabulary."""
    return [
        *TYPES,
        *LINES,
        *SENTENCES,
        *SHORT_QUESTIONS,
        *QUESTIONS,
        *MANY_QUESTIONS,
        *PREFIXES,
        *INTROS,
        *OUTROS,
        *SYSTEMS,
        *NOISE,
        *VERBS,
        *PLACES,
        *TIMES,
        *CLAUSES,
        *VT_LINES,
        *VT_QUESTIONS,
    ]
