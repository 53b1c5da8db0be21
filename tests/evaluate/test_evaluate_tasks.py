"""Laws of the benchmarks' forms: each row becomes the texts of its specification, and a bad one is named."""

import json
import math
import re
from pathlib import Path

import pytest
from benchmark_files import Row
from benchmark_lookalikes import LANGUAGES, write_lookalikes
from benchmark_tasks import SUBJECTS, TASKS, groups_of, read_task, title_of
from mutants import Mutant

ARC = {"question": {"stem": "Hot?", "choices": [{"text": "ice", "label": "1"}, {"text": "fire", "label": "2"},
                                                {"text": "rain", "label": "3"}]}, "answerKey": "2"}
HUB_ARC = {"question": "Hot?", "choices": {"text": ["ice", "fire", "rain"], "label": ["1", "2", "3"]}, "answerKey": "2"}
EXAM = {"question": " Why? ", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "C"}
HELLASWAG = {"activity_label": "Tying [header] it", "ctx_a": "She sits. [title] Then", "ctx_b": "she",
             "endings": [" ties [substeps] it.", "sings."], "label": "1"}
ASKED = [  # task, row, texts before the answers, answers, the right one
    ("boolq", {"passage": "P.", "question": "is it", "answer": True}, "P.\nQuestion: is it?\nAnswer:", ["no", "yes"],
     1),
    ("boolq", {"passage": "P.", "question": "is it", "label": 0}, "P.\nQuestion: is it?\nAnswer:", ["no", "yes"], 0),
    ("piqa", {"goal": "G", "sol1": "x", "sol2": "y", "label": 1}, "Question: G\nAnswer:", ["x", "y"], 1),
    ("siqa", {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
     "Q: C. Q?\nA:", ["a", "b", "c"], 2),
    ("hellaswag", HELLASWAG, "Tying it: She sits.. Then She", ["ties it.", "sings."], 1),
    ("winogrande", {"sentence": "The cup or the _ broke. Ah.", "option1": "jar", "option2": "lid", "answer": "2"},
     ["The cup or the jar", "The cup or the lid"], ["broke. Ah."] * 2, 1),
    ("arc_easy", ARC, "Question: Hot?\nAnswer:", ["ice", "fire", "rain"], 1),
    ("arc_challenge", HUB_ARC, "Question: Hot?\nAnswer:", ["ice", "fire", "rain"], 1),
    ("obqa", {**HUB_ARC, "question_stem": "Hot is"}, "Hot is", ["ice", "fire", "rain"], 1),
    ("mmlu", EXAM, "Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:", list("ABCD"), 2),
    ("mmlu", {"question": "Why?", "choices": list("abcd"), "answer": 3}, "Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:",
     list("ABCD"), 3),
    ("cmmlu", {**EXAM, "Question": "何故？", "question": None, "Answer": "A", "answer": None},
     "何故？\nA. a\nB. b\nC. c\nD. d\n答案：", list("ABCD"), 0),
    ("gsm8k", {"question": "2 + 5?", "answer": "So.\n#### 7"}, ["Question: 2 + 5?\nAnswer:"], ["So.\n#### 7"], 0),
    ("triviaqa", {"question": "Who", "answer": {"value": "Kim", "aliases": ["Kim", "kim!"]}},
     ["Question: Who?\nAnswer:"], ["Kim", "kim!"], 0),
    ("triviaqa", {"question": "Who", "answer": "Kim"}, ["Question: Who?\nAnswer:"], ["Kim"], 0),
    ("mmlu", {**EXAM, "answer": 2.0}, "Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:", list("ABCD"), 2),
    ("text", {"page": " It was.\n"}, [" It was.\n"], [], 0)]


def test_a_row_becomes_the_texts_that_its_benchmark_is_published_with():
    for name, row, texts, answers, gold in ASKED:
        found = TASKS[name].ask(Row(row, "f:1"))
        texts = [texts] * len(answers) if isinstance(texts, str) else texts
        assert (list(found.texts), list(found.answers), found.gold) == (texts, answers, gold), name


@pytest.mark.parametrize(("name", "changed", "told"), [
    ("boolq", {"passage": "P", "question": "q", "answer": "maybe"}, "field 'answer' is 'maybe': expected one of 0, 1"),
    ("boolq", {"passage": "P", "question": "q"}, "field 'label' is missing: a file without answers"),
    ("piqa", {"goal": "G", "sol1": "x", "sol2": "y", "label": -1}, "field 'label' is '-1': expected one of 0, 1"),
    ("piqa", {"goal": "G", "sol1": " ", "sol2": "y", "label": 1}, "field 'sol1' is blank"),
    ("siqa", {"context": 1.5, "question": ["q"], "answerA": "a", "answerB": "b", "answerC": "c"},
     "field 'question' is '.*q.*': expected a text"),
    ("hellaswag", {"endings": "a"}, "field 'endings' is 'a': expected a list of two texts"),
    ("hellaswag", {**HELLASWAG, "label": "2"}, "field 'label' is '2': expected one of 0, 1$"),
    ("winogrande", {"sentence": "No blank."}, "field 'sentence' is 'No blank.': expected a _"),
    ("arc_easy", {**HUB_ARC, "answerKey": "D"}, "field 'answerKey' is 'D': expected one of 1, 2, 3"),
    ("arc_easy", {**HUB_ARC, "choices": {"text": ["a"], "label": ["A", "B"]}}, "field 'choices' is .*as many labels"),
    ("obqa", {"question_stem": "Q", "choices": None}, "field 'choices' is 'null': expected two texts"),
    ("mmlu", {**EXAM, "answer": "E"}, "field 'answer' is 'E': expected one of A, B, C, D"),
    ("mmlu", {**EXAM, "choices": ["a"]}, "field 'choices' is .*: expected 4 texts"),
    ("mmlu", {**EXAM, "choices": ["a", "b", ["c"], "d"]}, "field 'choices' is .*c.*: expected a text"),
    ("mmlu", {**EXAM, "subject": ["s"]}, "field 'subject' is .*s.*: expected a text"),
    ("piqa", {"goal": math.nan, "sol1": "x", "sol2": "y", "label": 1}, "field 'goal' is 'NaN': expected a text"),
    ("piqa", {"goal": "g", "sol1": "x", "sol2": "\ud800", "label": 1}, "field 'sol2' holds half a surrogate pair"),
    ("piqa", {"goal": "g", "sol1": "x", "sol2": "y", "label": math.nan}, "field 'label' is 'NaN': expected one of 0"),
    ("piqa", {"goal": "g", "sol1": "x", "sol2": "y", "label": ""}, "field 'label' is '': expected one of 0, 1"),
    ("winogrande", {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "12"}, "field 'answer' is '12'"),
    ("piqa", {"goal": "g", "sol1": "x", "sol2": "y", "label": True}, "field 'label' is 'true': expected one of 0, 1"),
    ("hellaswag", {**HELLASWAG, "endings": ["one"]}, "field 'endings' is .*: expected a list of two texts"),
    ("hellaswag", {**HELLASWAG, "endings": ["one", "[header]"]}, "field 'endings' is .*: expected a list of two"),
    ("arc_easy", {**HUB_ARC, "choices": {"text": ["a"], "label": ["2"]}}, "field 'choices' is .*: expected two texts"),
    ("arc_easy", {**HUB_ARC, "choices": {"text": [], "label": []}}, "field 'choices' is .*: expected two texts"),
    ("arc_easy", {**HUB_ARC, "choices": {"text": ["a", "b"], "label": [1, None]}}, "field 'choices' is .*null.*: exp"),
    ("arc_easy", {**HUB_ARC, "choices": {"text": ["a", True], "label": [1, 2]}}, "field 'choices' is 'true': expected"),
    ("arc_easy", {**HUB_ARC, "choices": {"text": ["a", "b"], "label": ["2", "2"]}}, "field 'choices'.*that differ"),
    ("gsm8k", {"question": "q", "answer": "seven"}, "field 'answer' is 'seven': expected a text that ends in ####"),
    ("triviaqa", {"question": "q", "answer": []}, "field 'answer' is .*: expected a text, a list of texts"),
    ("triviaqa", {"question": "q"}, "field 'answer' is 'null': expected a text, a list of texts"),
    ("text", {"text": "  "}, "field 'text' is blank: expected a text")])
def test_a_bad_row_is_one_line_that_names_its_place_field_value_and_what_is_allowed(name, changed, told):
    with pytest.raises(ValueError, match=f"^f.jsonl:7: {told}") as error:
        TASKS[name].ask(Row(changed, "f.jsonl:7"))
    assert "\n" not in str(error.value)


def test_the_page_of_forms_names_each_task_with_the_fields_that_it_reads():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    forms = {name: line for line in page.splitlines() if line.startswith("| `")
             for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert list(forms) == list(TASKS)
    for name, row, *_ in ASKED:
        read = Reading(row)
        TASKS[name].ask(Row(read, "f:1"))
        for field in read.names - {"B", "C", "answerB"}:  # named as `A` to `D`
            assert f"`{field}`" in forms[name], (name, field)


class Reading(dict):
    """A row that remembers which of its fields were read."""

    def get(self, name, otherwise=None):
        self.names = getattr(self, "names", set()) | ({name} if super().get(name) is not None else set())
        return super().get(name, otherwise)


def test_one_file_alone_shows_no_question_its_own_answer(tmp_path):
    row = {"goal": "G", "sol1": "x", "sol2": "y", "label": 1}
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps({**row, "goal": f"G{i}"}) + "\n" for i in range(9)))
    assert len(read_task(tmp_path, "piqa", 0)) == 9
    with pytest.raises(ValueError, match="piqa: 0 examples for .*, fewer than --shots 2: give them, or --shots 0"):
        read_task(tmp_path, "piqa", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "piqa.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="piqa: no question in a file of the split val or dev: name one so"):
        read_task(tmp_path / "empty", "piqa")


def test_examples_stand_in_front_with_their_answers_and_exams_say_what_they_are_about(tmp_path):
    for language in LANGUAGES:
        write_lookalikes(tmp_path, seed=1, n=3, language=language, names=("mmlu", "cmmlu", "piqa", "winogrande"))
        plain, shown = (read_task(tmp_path, "piqa", shots) for shots in (0, 2))
        for bare, full in zip(plain, shown, strict=True):
            front = full.texts[0].removesuffix(bare.texts[0])
            assert front.count("Question: ") == 2 == front.count("\n\n") and full.texts[0].endswith(bare.texts[0])
        assert shown[0].texts != plain[0].texts and shown == read_task(tmp_path, "piqa", 2)
        (one, *_) = read_task(tmp_path, "winogrande", 1)
        assert one.texts[0].count("\n\n") == 1 and "_" not in one.texts[0]
    mmlu, cmmlu = read_task(tmp_path, "mmlu"), read_task(tmp_path, "cmmlu", limit=2)
    assert mmlu[0].texts[0].startswith("The following are multiple choice questions (with answers) about abstract "
                                       "algebra.\n\n") and mmlu[0].texts[0].count("\n\n") == 6
    assert cmmlu[0].texts[0].startswith("以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n")
    assert len(mmlu) == 9 and len(cmmlu) == 4 and {one.subject for one in cmmlu} == {"agronomy", "arts"}
    with pytest.raises(ValueError, match="piqa: 12 examples for .* fewer than --shots 13"):
        read_task(tmp_path, "piqa", 13)


def test_subjects_are_those_of_the_exams_with_their_groups():
    counts = {name: len(set().union(*groups.values())) for name, groups in SUBJECTS.items()}
    assert counts == {"mmlu": 57, "ceval": 52, "cmmlu": 67}
    assert (groups_of("mmlu", "abstract_algebra"), title_of("mmlu", "abstract_algebra")) == (
        ["STEM"], "abstract algebra")
    assert (groups_of("ceval", "law"), title_of("ceval", "law")) == (["humanities"], "法学")
    assert (groups_of("mmlu", "my_own"), title_of("mmlu", "my_own")) == ([""], "my own")
    # of CMMLU's five groups one, what is particular to China, holds subjects of the others too
    assert {name: len(subjects) for name, subjects in SUBJECTS["cmmlu"].items()} == {
        "STEM": 17, "humanities": 13, "social science": 22, "other": 15, "China specific": 15}
    assert groups_of("cmmlu", "ancient_chinese") == ["social science", "China specific"]
    assert title_of("cmmlu", "agronomy") == "农学"


def _mutant(old, new, law):
    return Mutant("benchmark_tasks", old, new, law)


MUTANTS = [
    _mutant('("no", "yes"), label_of(row', '("yes", "no"), label_of(row',
            test_a_row_becomes_the_texts_that_its_benchmark_is_published_with),
    _mutant(", blank=True).capitalize()", ", blank=True)",
            test_a_row_becomes_the_texts_that_its_benchmark_is_published_with),
    _mutant('.replace(" [title]", ". ")', "", test_a_row_becomes_the_texts_that_its_benchmark_is_published_with),
    _mutant("(after.strip(),) * 2", "(after,) * 2",
            test_a_row_becomes_the_texts_that_its_benchmark_is_published_with),
    _mutant('("1", "2", "3", "A", "B", "C")) % 3', '("0", "1", "2", "A", "B", "C", "3")) % 3',
            test_a_row_becomes_the_texts_that_its_benchmark_is_published_with),
]
