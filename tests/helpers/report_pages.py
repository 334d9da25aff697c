"""A page with a section of every kind, and text that means harm."""

import math

from uncertune.report import (
    AnswerRow,
    Answers,
    Column,
    Curves,
    Facts,
    Frame,
    Page,
    Series,
    Table,
    Token,
    TokenDocument,
    Tokens,
)

ARMS = ("mle", "masked_mle", "masked_mle_distill")
HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 2">',
    "</style><!--",
    "' onmouseover='window.hacked = 3' x='",
    '" onfocus="window.hacked = 4" autofocus tabindex="1',
    "{{ 7 * 7 }}{% raw %}",
    "&lt;&#60;",
    "]]>",
    "\ufffd\ufffd",
    "\u202eoverride",
    "\x00\x1b[31m",
    "\ud800",
    "שלום",
    "https://example.com/pixel.png",
)


def hostile_text() -> str:
    return " ".join(HOSTILE)


def table() -> Table:
    columns = (
        Column("gsm8k", "GSM8K, exact match", "higher", 1, percent=True),
        Column("ifeval", "IFEval, strict prompt", "higher", 1, percent=True),
        Column("mmlu", "MMLU", "higher", 1, percent=True),
        Column("loss", "Held-out loss, nats", "lower", 3),
        Column("kl", "KL from base, nats", "lower", 3),
        Column("seconds", "Training time, s", None, 0),
    )
    rows = (
        {"arm": "base", "gsm8k": 0.0142, "ifeval": 0.193, "mmlu": 0.2561, "loss": 2.114, "kl": 0.0},
        {"arm": "mle", "gsm8k": 0.0233, "ifeval": 0.171, "mmlu": 0.2498, "loss": 1.644, "kl": 0.412, "seconds": 1312},
        {"arm": "masked_mle", "gsm8k": 0.025, "ifeval": 0.18, "mmlu": 0.2561, "loss": math.nan, "kl": None},
        {"arm": "masked_mle_distill", "gsm8k": 0.0267, "ifeval": 0.201, "mmlu": "n/a", "loss": 1.7, "kl": 0.2},
    )
    return Table("What each arm learnt", "Means over three seeds.", columns, rows, "arm", "base")


def curves(title: str) -> Curves:
    series = tuple(
        Series(name, tuple(range(0, 101, 10)), tuple(2 - 0.01 * arm * x for x in range(11)))
        for arm, name in enumerate(ARMS)
    )
    return Curves(title, "Over response tokens.", "training step", "nats", series)


def document(title: str, text: tuple[str, ...], moments: tuple[str, ...] = ("start", "middle", "end")) -> TokenDocument:
    """Six prompt tokens without a score, then ``text``; at moment m every third token from the m-th is selected."""
    prompt = tuple(Token(word, None, False, False) for word in ("User", ":", " why", " is", " it", "?\n"))
    frames = tuple(
        Frame(label, prompt + tuple(Token(word, 0.25 + i / 4, i % 3 == m, True) for i, word in enumerate(text)))
        for m, label in enumerate(moments)
    )
    return TokenDocument(title, frames)


def sample_page() -> Page:
    words = tuple(f" word{i}" for i in range(60))
    text = hostile_text()
    return Page(
        f"A comparison {text}",
        f"What came of it. {text}",
        (
            Facts(f"The run {text}", (("Model", "smollm2-135m"), (f"Hostile {text}", text))),
            table(),
            curves("Loss"),
            curves("Distance"),
            Tokens(
                "Which tokens are trained on",
                f"Coloured by loss. {text}",
                (document("Plain", words), document(f"Hostile {text}", HOSTILE + words), document("Third", words)),
            ),
            Answers(
                "What the models say",
                f"Greedy decoding. {text}",
                (*ARMS, text),
                (
                    AnswerRow(
                        "How many?", "3", {ARMS[0]: "3", ARMS[1]: "4", ARMS[2]: text}, {ARMS[0]: True, ARMS[1]: False}
                    ),
                    AnswerRow(text, "", dict.fromkeys(ARMS, "x" * 300), None),
                ),
            ),
        ),
    )
