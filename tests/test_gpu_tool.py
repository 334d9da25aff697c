"""Everything that a GPU is needed for, tried on the CPU: no line of ``tools.gpu`` first runs on the day."""

import csv
import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.contestants import CROSS_ENTROPY, DISTILLATION, FAMILY, MASKED
from tools.gpu import answers, files, mixture, tables
from tools.gpu.stages import STAGES, Place

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "tools.gpu", "--small", "--minutes", "20", "--output_dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = "".join(path.read_text()[-2000:] for path in sorted(out.glob("*/output.txt")))
    assert done.returncode == 0, done.stdout + done.stderr + said
    return out


def test_every_stage_is_done(results):
    summary = json.loads((results / "summary.json").read_text())
    assert [(one["stage"], one["outcome"]) for one in summary["stages"]] == [(one.name, "done") for one in STAGES]
    assert summary["machine"]["device"].startswith("CPU only")


def test_head_measures_every_contestant_that_can_run(results):
    with (results / "head" / "head-tiny-cpu-bfloat16.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    printed = (results / "head" / "output.txt").read_text()
    skipped = {line.split(": ")[1] for line in printed.splitlines() if line.startswith("skipped: ")}
    everyone = {contestant.name for contestant in CROSS_ENTROPY + MASKED + DISTILLATION + FAMILY}
    assert {row["contestant"] for row in rows} | skipped == everyone
    assert {"uncertune mle", "uncertune masked_mle 25 %", "uncertune masked_mle_distill 25 %"} <= everyone - skipped
    for race in ("cross-entropy", "distillation", "family"):
        best = min(float(r["ms"]) for r in rows if r["race"] == race and not r["contestant"].startswith("uncertune"))
        for row in rows:
            if row["race"] == race:
                assert float(row["to_best_peer"]) == pytest.approx(float(row["ms"]) / best, rel=0.1)
    assert all("torch" in row["versions"] and "--shapes tiny" in row["command"] for row in rows)
    assert (results / "head" / "head-tiny-cpu-bfloat16.png").stat().st_size > 10_000


def test_what_came_back_becomes_tables(results, tmp_path):
    tables.main([str(results / "results.zip"), "--docs", str(tmp_path / "docs"), "--keep", str(tmp_path / "results")])
    page = (tmp_path / "docs" / "gpu.md").read_text()
    assert "No GPU was used" in page
    assert page.count("\n## ") == len(STAGES)
    assert "| one process |" in page
    assert "TRL sft" in page
    sweep = json.loads((tmp_path / "results" / "gpu-gsm8k" / "sweep.json").read_text())
    assert {run["seed"] for run in sweep["runs"]} == {0, 1}
    assert "`results/gpu-gsm8k`" in page
    with zipfile.ZipFile(results / "results.zip") as archive:
        assert sum(one.file_size for one in archive.infolist()) < 16 * files.MIB


def test_the_page_is_that_of_the_results():
    assert tables.page(ROOT / "results" / "gpu") == (ROOT / "docs" / "results" / "gpu.md").read_text()


def test_commands_at_full_size_name_files_that_are_there(tmp_path):
    for stage in STAGES:
        for words in stage.commands(Place(tmp_path, tmp_path, small=False)):
            named = [word for word in words[1:] if word.startswith(("tests/", str(ROOT)))]
            assert all((ROOT / word).exists() for word in named), words
            module = words[words.index("-m") + 1]
            assert (
                module == "pytest" or (ROOT / module.replace(".", "/")).with_suffix(".py").exists() or "cli" in module
            )


def test_the_last_number_of_an_answer_counts(tmp_path):
    said = {"4 and 3 is 7.": "so 1,207 in all", "How many?": "none", "And now?": "first 5, then -2.50"}
    lines = [{"messages": [{"role": "user", "content": q}], "answer": a} for q, a in said.items()]
    (tmp_path / "base.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,), marks = answers.score(tmp_path, {"4 and 3 is 7.": 1207.0, "How many?": 3.0, "And now?": -2.5})
    assert marks == {"base": [True, False, True]}
    assert row["exact_match"] == pytest.approx(2 / 3, abs=1e-4)
    assert row["low"] == pytest.approx(0.0943, abs=1e-4)  # Clopper-Pearson of 2 of 3


@pytest.fixture
def ifeval(tmp_path):
    """A function that scores answers to prompts by ``answers.follow``: a rule and its arguments a prompt."""
    pytest.importorskip("lm_eval")

    def follow(rules, said):
        rows = [
            {"key": number, "prompt": prompt, "instruction_id_list": list(ids), "kwargs": [*ids.values()]}
            for number, (prompt, ids) in enumerate(rules.items())
        ]
        with gzip.open(tmp_path / "ifeval.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        folder = tmp_path / "came" / "answers" / "ifeval"
        folder.mkdir(parents=True, exist_ok=True)
        for name, texts in said.items():
            lines = [
                {"messages": [{"role": "user", "content": prompt}], "answer": text}
                for prompt, text in zip(rules, texts, strict=True)
            ]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return answers.follow(folder, str(tmp_path))

    return follow


def test_answers_to_ifeval_are_scored_by_lm_eval(ifeval):
    commas: dict[str, dict[str, object]] = {"punctuation:no_comma": {}}
    rules = {"Say it without commas.": commas}
    rules["No commas, in capitals."] = {**commas, "change_case:english_capital": {}}
    found, marks = ifeval(rules, {"base": ["One, two.", "THIS IS IT."], "mle": ["One and two.", "This is it."]})
    assert marks == {"base": [False, True], "mle": [True, False]}
    assert [(row["contestant"], row["strict"], row["loose"]) for row in found] == [
        ("base", 0.5, 0.5),
        ("mle", 0.5, 0.5),
    ]
    assert found[0]["low"] == pytest.approx(0.0126, abs=1e-4)  # Clopper-Pearson of 1 of 2


def test_a_rule_that_lm_eval_draws_is_the_same_each_time(ifeval):
    hashes = {"keywords:letter_frequency": {"letter": "#", "let_frequency": 4, "let_relation": "at least"}}
    answer = "aaaa cccc eeee gggg iiii kkkk mmmm oooo qqqq ssss uuuu wwww yyyy"
    marks = [ifeval({"Use # four times.": hashes}, {"base": [answer]})[1]["base"] for _ in range(12)]
    assert len({tuple(one) for one in marks}) == 1


def test_differences_of_runs_are_paired_by_problem_and_by_seed():
    right = {"base": "1100000000", "gsm8k-mle-s0": "1110000000", "gsm8k-mle-s1": "1111000000"}
    right |= {
        "gsm8k-mle-anchor_base-s0": "1111100000",
        "gsm8k-mle-anchor_base-s1": "1111100000",
        "gsm8k-dft-s7": "1" * 10,
    }
    right |= {"alpaca-mle-s0": "1000000000", "mixed-mle-s0": "1100000000"}
    marks = {name: [letter == "1" for letter in letters] for name, letters in right.items()}
    rows = answers.differences(marks)
    assert [row["trained_on"] for row in rows] == ["alpaca", "gsm8k", "gsm8k", "mixed", "mixed"]
    mle, anchor = rows[1:3]
    differences = [(one["trained_on"], one["less"], one["points"]) for one in rows if one["trained_on"] != "gsm8k"]
    assert differences == [("alpaca", "base", -10.0), ("mixed", "base", 0.0), ("mixed", "alpaca-mle", 10.0)]
    assert (mle["arm"], mle["less"], mle["points"], mle["by_seed"]) == ("mle", "base", 15.0, "+10.0 +20.0")
    assert (anchor["arm"], anchor["less"], anchor["points"]) == ("mle-anchor_base", "mle", 15.0)
    assert anchor["by_seed"] == "+20.0 +10.0"
    assert (anchor["low_of_seeds"], anchor["high_of_seeds"]) == (-48.5, 78.5)  # 15 ± 12.706 · 5
    assert (anchor["low"], anchor["high"]) == (-9.1, 39.1)  # Student's interval of 0, 0, 0, 0.5, 1, 0, 0, 0, 0, 0


def test_own_answers_are_mixed_into_the_rows_of_a_seed(tmp_path):
    rows = [{"instruction": f"Say {number}.", "output": str(number)} for number in range(400)]
    with gzip.open(tmp_path / "alpaca_52k.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    lines = [
        {
            "messages": [{"role": "user", "content": f"How many? {n}"}],
            "answer": f"{n}." if n < 7 else "9",
            "ended": n % 5 > 0,
        }
        for n in range(100)
    ]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    problems = [{"question": f"How many? {n}", "answer": f"So #### {n}"} for n in range(100)]
    with gzip.open(tmp_path / "gsm8k_train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in problems)
    mixture.main([str(own), "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "work" / "data")])
    files_of_seeds = [tmp_path / "work" / "data" / mixture.name(seed) for seed in mixture.SEEDS]
    written = [[json.loads(line)["messages"] for line in path.read_text().splitlines()] for path in files_of_seeds]
    assert {len(one) for one in written} == {256 + 64 + 64}
    assert written[0] != written[1]
    for one in written:
        assert [turns[-1]["content"] for turns in one[-64:]] == [str(number) for number in range(336, 400)]
        asked = [turns[0]["content"] for turns in one[256:320]]
        assert len(set(asked)) == 64
        assert all(int(words.split()[-1]) % 5 for words in asked), "an answer that was cut is no training row"
    (right,) = csv.DictReader((tmp_path / "work" / "data" / "own" / "scores.csv").read_text().splitlines())
    assert (right["answers"], right["exact_match"]) == ("100", "0.08")  # 0 to 6, and 9
    (student,) = (stage for stage in STAGES if stage.name == "student")
    commands = student.commands(Place(tmp_path / "out", tmp_path / "work", small=False))
    named = [words[words.index("--dataset_name") + 1] for words in commands if "--dataset_name" in words]
    assert named == [str(path) for path in files_of_seeds]


def test_files_travel_in_pieces(tmp_path):
    model, data, wheel = tmp_path / "m.gguf", tmp_path / "d.gz", tmp_path / "empty.whl"
    model.write_bytes(bytes(range(256)) * 100)
    data.write_bytes(b"abc")
    wheel.write_bytes(b"")
    sources = [(model, files.MODEL), (data, "data/d.gz"), (wheel, "wheels/empty.whl")]
    files.pack(sources, tmp_path / "gpu", limit=10_000)
    folders = list((tmp_path / "gpu").iterdir())
    inside = [[p for p in folder.rglob("*") if p.is_file() and p.name != files.MANIFEST] for folder in folders]
    sizes = [sum(path.stat().st_size for path in paths) for paths in inside]
    assert len(sizes) == 3
    assert max(sizes) <= 10_000
    assert list(files.unpack(tmp_path / "gpu", tmp_path / "out")) == []
    for source, name in sources:
        assert (tmp_path / "out" / name).read_bytes() == source.read_bytes()
    (tmp_path / "gpu" / "2" / f"{files.MODEL}.part001").write_bytes(b"x")
    assert "is damaged: smollm2-135m.gguf cannot be used" in next(files.unpack(tmp_path / "gpu", tmp_path / "again"))


def test_without_a_gpu_it_says_so(capsys):
    done = subprocess.run([sys.executable, "-m", "tools.gpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2)
    if done.returncode == 2:
        assert "no CUDA GPU here: use --small" in done.stderr
