"""A task's metric over answers that were said and answers that are right, by the field's libraries.

Fractions are from 0 to 1; BLEU and chrF are from 0 to 100, as sacrebleu has them.
"""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maas_client.errors import RunnerError
from maas_client.spec.tasks import tags_of

Scores = dict[str, float]
Accepted = Sequence[Sequence[str]]
"""For each row, every answer that counts as right; the first is the trained one."""

_LIBRARIES: Mapping[str, str] = {
    "text_classification": "sklearn",
    "text_summarization": "rouge_score",
    "text_translation": "sacrebleu",
    "token_classification": "seqeval",
}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLEU_WORDS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}
"""How BLEU finds words where no spaces are; 13a elsewhere, as WMT does."""


def require(task: str) -> None:
    """Whether the library that the task's metric comes from is here, before anything is generated.

    Raises:
        RunnerError: it is not; the hint names the extra.
    """
    library = _LIBRARIES.get(task)
    if library is None:
        return
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise RunnerError(
            f"{task} is measured with {library}, which is not installed",
            hint='pip install "maas-finetune[evaluate]"',
        ) from error


def score(task: str, said: Sequence[str], accepted: Accepted, *, language: str = "") -> Scores:
    """The task's metrics.

    Args:
        task: one whose rows are questions and answers.
        said: the model's answers.
        accepted: the right ones.
        language: of a translation, its target.
    """
    if task == "text_translation":
        return _translation(said, accepted, language)
    return _BY_TASK[task](said, accepted)


def _classification(said: Sequence[str], accepted: Accepted) -> Scores:
    from sklearn.metrics import accuracy_score, f1_score

    right = [answers[0] for answers in accepted]
    given = [_first_line(answer) for answer in said]
    # What is no label at all is wrong for the row's label, and not one more class to average over.
    labels = sorted(set(right))
    f1 = {
        f"f1_{average}": float(
            f1_score(right, given, labels=labels, average=average, zero_division=0)
        )
        for average in ("macro", "weighted")
    }
    return {"accuracy": float(accuracy_score(right, given)), **f1}


def _first_line(answer: str) -> str:
    return next(iter(answer.strip().splitlines()), "").strip()


def _answering(said: Sequence[str], accepted: Accepted) -> Scores:
    """SQuAD's: the best over the accepted answers, averaged over the rows."""
    exact, overlap = 0.0, 0.0
    for answer, right in zip(said, accepted, strict=True):
        exact += max(_plain(answer) == _plain(one) for one in right)
        overlap += max(_overlap(_plain(answer).split(), _plain(one).split()) for one in right)
    return {"exact_match": exact / len(said), "f1": overlap / len(said)}


def _plain(answer: str) -> str:
    """Lower case, without punctuation and articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def _overlap(said: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the words that both have."""
    if not said or not right:
        return float(list(said) == list(right))
    both = (Counter(said) & Counter(right)).total()
    return 2 * both / (len(said) + len(right))


def _summarization(said: Sequence[str], accepted: Accepted) -> Scores:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(list(kinds), use_stemmer=True)
    found = [scorer.score(right[0], answer) for answer, right in zip(said, accepted, strict=True)]
    return {kind: sum(each[kind].fmeasure for each in found) / len(found) for kind in kinds}


def _translation(said: Sequence[str], accepted: Accepted, language: str) -> Scores:
    from sacrebleu import corpus_bleu, corpus_chrf

    right = [[answers[0] for answers in accepted]]
    words = _BLEU_WORDS.get(language.replace("_", "-").partition("-")[0], "13a")
    return {
        "bleu": float(corpus_bleu(list(said), right, tokenize=words).score),
        "chrf": float(corpus_chrf(list(said), right).score),
    }


def _tagging(said: Sequence[str], accepted: Accepted) -> Scores:
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    right = [tags_of(answers[0], like=answers[0]) for answers in accepted]
    given = [
        tags_of(answer, like=answers[0]) for answer, answers in zip(said, accepted, strict=True)
    ]
    measured: Mapping[str, Callable[..., Any]] = {
        "f1": f1_score,
        "precision": precision_score,
        "recall": recall_score,
    }
    entities = {
        name: float(measure(right, given, zero_division=0)) for name, measure in measured.items()
    }
    return {**entities, "token_accuracy": float(accuracy_score(right, given))}


_BY_TASK: Mapping[str, Callable[[Sequence[str], Accepted], Scores]] = {
    "text_classification": _classification,
    "question_answering": _answering,
    "text_summarization": _summarization,
    "token_classification": _tagging,
}
