"""What the tokenizer makes of the rows reaches the plan: as a refusal, or as a warning with lines."""

from __future__ import annotations

import pytest

from maas_client import planning
from maas_client.errors import DatasetError, Problem
from maas_client.plan import DataPlan
from maas_client.spec import remarks
from maas_client.spec.dataset import DatasetReport
from maas_client.spec.inputs import Lines, TokenCount
from maas_client.spec.job import FineTuningJob, ModelInput
from maas_client.spec.limits import Limits, local_limits
from maas_client.targets import runner

MODEL = "azureml://registries/azureml/models/Phi-3-medium-4k-instruct/versions/1"
HOSTED = Limits(target="azure", model=None, honoured=frozenset(), hosts=True)
ROWS = planning.Rows(
    DataPlan("/rows.jsonl", DatasetReport("/rows.jsonl", "chat_completion", 9, 1, "0")), None
)
DATA = ROWS.training


@pytest.fixture
def job() -> FineTuningJob:
    return FineTuningJob.model_validate(
        {
            "type": "finetuning",
            "task": "chat_completion",
            "model_provider": "custom",
            "model": {"path": MODEL, "type": "mlflow_model"},
            "training_data": {"path": "rows.jsonl", "type": "uri_file"},
            "outputs": {"registered_model": {"name": "m", "type": "mlflow_model"}},
        }
    )


@pytest.mark.parametrize("code", ["no_loss", "row"])
def test_a_hosted_job_is_refused_only_for_rows_without_a_trained_token(
    job: FineTuningJob, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    problem = Problem("it has no place for tools", line=4, code=code)

    def refuse(*_: object, **__: object) -> None:
        raise DatasetError("rows.jsonl: line 4 cannot be trained", problems=(problem,))

    monkeypatch.setattr(runner, "count_tokens", refuse)
    if code == "row":
        [warning] = planning.count(job, HOSTED, ROWS, None, trains=False).warnings
        assert "line 4: it has no place for tools" in warning
    else:
        with pytest.raises(DatasetError):
            planning.count(job, HOSTED, ROWS, None, trains=False)
    here = local_limits(ModelInput(path=MODEL))
    with pytest.raises(DatasetError):
        planning.count(job, here, ROWS, None, trains=True)


def test_a_runners_refusal_keeps_its_lines() -> None:
    raised = DatasetError("bad", problems=(Problem("no place", line=3, hint="fold"),))
    error = runner._error(raised.to_json())
    assert isinstance(error, DatasetError)
    assert error.problems == raised.problems


def test_a_plan_says_what_is_odd_about_rows_and_where() -> None:
    tokens = TokenCount(
        90,
        9,
        50,
        3,
        "",
        cut_answers=Lines.of([4]),
        open_ends=Lines.of([1, 2]),
        deaf_ends=Lines.of(range(1, 10)),
        system_rows=Lines.of([7]),
        spelled=Lines.of([8]),
    )
    here = list(
        remarks.on_tokens("training_data", DATA, tokens, local_limits(ModelInput(path=MODEL)))
    )
    assert "inside what should be learned" in here[0]
    assert "1 row (line 4)" in here[0]
    assert here[1].endswith("behind the last answer: 2 rows.")
    assert here[2].endswith("learn to stop: 2 rows (lines 1, 2).")
    assert here[3].endswith("9 rows (lines 1, 2, 3, 4, 5, …).")
    assert here[4].endswith("and become it: 1 row (line 8).")
    assert "it is put before the first user turn" in here[5]
    assert len(here) == 6
    *_, hosted = remarks.on_tokens("training_data", DATA, tokens, HOSTED)
    assert "it may be lost" in hosted
    made = DataPlan("/made.jsonl", DATA.report, converted_from="/rows.csv")
    assert next(remarks.on_tokens("training_data", made, tokens, HOSTED)).startswith(
        "training_data (/made.jsonl): cut"
    )
