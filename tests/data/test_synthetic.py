import hashlib
import re
import subprocess
import sys
from itertools import islice

import pytest

from uncertune.data import stories
from uncertune.data.general import GENERAL_PROMPTS, GENERAL_TEXT
from uncertune.data.synthetic import LEVELS, check_answer, split_of, word_problems
from uncertune.errors import UserError

STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+) ([a-z ]+?)( left)?\.$")
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
MANY = 4000


@pytest.fixture(scope="module")
def problems():
    return list(islice(word_problems(seed=0), MANY))


def test_the_worked_steps_give_the_answer(problems):
    for problem in problems:
        *steps, final = problem.solution.split("\n")
        assert len(steps) == problem.level
        before = None
        for step in steps:
            left, sign, right, result = (part for part in STEP.search(step).groups()[:4])
            assert OPERATIONS[sign](int(left), int(right)) == int(result) > 0, step
            assert before in (None, int(left)), "a step works on with the last one's result"
            before = int(result)
        assert final == f"#### {problem.answer}" == f"#### {before}"
        assert check_answer(problem.solution, problem.answer)
        assert not check_answer(problem.solution, problem.answer + 1)


def test_every_number_of_a_solution_is_in_the_question_or_follows(problems):
    for problem in problems:
        told = set(map(int, re.findall(r"\d+", problem.question)))
        if "half" in problem.question:
            told.add(2)
        for step in problem.solution.split("\n")[:-1]:
            left, _, right, result = STEP.search(step).groups()[:4]
            assert {int(left), int(right)} <= told, problem
            told.add(int(result))


def test_grammar(problems):
    singular_nouns = {*stories.TOYS, *stories.FRUIT, *stories.BAKED, *stories.FLOWERS, *stories.SCHOOL, "dollar", "box"}
    plurals = {stories.plural(noun) for noun in singular_nouns}
    for problem in problems:
        assert problem.question.endswith("?")
        assert "  " not in problem.question
        for text in (problem.question, problem.solution):
            for number, word in re.findall(r"(?<![\d/*+-] )\b(\d+) (toy cars?|[a-z]+)\b", text):
                if word in singular_nouns:
                    assert number == "1", text
                elif word in plurals:
                    assert number != "1", text
        for sentence in re.findall(r"[^.?]+[.?]", problem.question):
            assert sentence.strip()[0].isupper() or sentence.strip()[0].isdigit()


def test_nobody_gives_away_more_than_was_told_of_them(problems):
    """A friend whose belongings were counted out takes no further part: the numbers could not be true."""
    for problem in problems:
        compared = re.match(r"(\w+) has \d+ [a-z ]+, and \w+ has \S+ (times|as|fewer)", problem.question)
        if compared:
            assert not re.search(rf"{compared[1]} gives", problem.question)


def test_levels_are_balanced_and_questions_varied(problems):
    by_level = {level: [p for p in problems if p.level == level] for level in LEVELS}
    assert all(len(some) > MANY / 4 for some in by_level.values())
    assert len({p.question for p in problems}) > 0.99 * MANY
    shapes = {re.sub(r"\d+|[A-Z][a-z]+", "_", p.question) for p in by_level[1]}
    assert len(stories.OPENINGS) >= 12
    assert len(shapes) > 60
    assert len({p.question.split()[0] for p in problems}) > 30


@pytest.mark.parametrize("level", LEVELS)
def test_one_level_only(level):
    assert {p.level for p in islice(word_problems(3, level), 50)} == {level}


def test_train_and_test_never_share_a_question():
    seen = {"train": set(), "test": set()}
    for seed in (0, 1, 2):
        for split, questions in seen.items():
            some = [p.question for p in islice(word_problems(seed, 1, split=split), 1000)]
            assert {split_of(question) for question in some} == {split}
            questions.update(some)
    assert not seen["train"] & seen["test"]


def _digest(seed):
    text = "\n".join(p.question + p.solution for p in islice(word_problems(seed), 200))
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_seed_gives_the_same_problems_in_another_process():
    code = (
        "import hashlib; from itertools import islice; from uncertune.data.synthetic import word_problems; "
        "text = '\\n'.join(p.question + p.solution for p in islice(word_problems(7), 200)); "
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == _digest(7) != _digest(8)


def test_messages(problems):
    assert problems[0].messages() == [
        {"role": "user", "content": problems[0].question},
        {"role": "assistant", "content": problems[0].solution},
    ]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("So it is 12.\n#### 12", True),
        ("#### 12.", True),
        ("#### $12", True),
        ("####12", True),
        ("#### **12**", True),
        ("#### 12 apples", True),
        ("#### 12.00", True),
        ("#### 3\nno, wait\n#### 12", True),
        ("#### 12\n#### 3", False),
        ("#### 1,2", False),
        ("#### 12.5", False),
        ("#### 12,000", False),
        ("#### -12", False),
        ("#### 121", False),
        ("####", False),
        ("#### twelve", False),
        ("The answer is 12.", False),
        ("", False),
    ],
)
def test_check_answer(text, right):
    assert check_answer(text, 12) is right


def test_check_answer_reads_thousands_and_signs():
    assert check_answer("#### 1,234,567.", 1234567)
    assert check_answer("#### $1,200", 1200)
    assert check_answer("#### -$5", -5)
    assert check_answer("#### 0", 0)


@pytest.mark.parametrize(("arguments", "value"), [({"level": 4}, "4"), ({"split": "dev"}, "'dev'")])
def test_what_is_refused_at_once(arguments, value):
    with pytest.raises(UserError) as caught:
        word_problems(**arguments)
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def test_problems_are_short(problems, smollm2_tokenizer):
    lengths = [len(smollm2_tokenizer(p.question + p.solution)["input_ids"]) for p in problems[:600]]
    assert max(lengths) < 130
    assert 60 < sum(lengths) / len(lengths) < 90


def test_general_prompts_and_text():
    assert len(set(GENERAL_PROMPTS)) == 24
    assert all(10 < len(prompt) < 140 for prompt in GENERAL_PROMPTS)
    assert len(set(GENERAL_TEXT)) == 12
    assert all(60 <= len(text.split()) <= 90 for text in GENERAL_TEXT)
    assert not any("  " in text or text != text.strip() for text in (*GENERAL_TEXT, *GENERAL_PROMPTS))
