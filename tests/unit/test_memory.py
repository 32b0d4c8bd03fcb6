"""The forecast of memory: what grows it, what spares it, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maas_client.errors import PlanError
from maas_client.plan import BaseInfo, DataPlan, Plan, TokenCount, make_plan, plan_from_json
from maas_client.spec.dataset import check
from maas_client.spec.limits import local_limits
from maas_client.spec.loading import parse_job
from maas_client.spec.memory import (
    Rows,
    Shape,
    Thrift,
    is_forecast,
    need,
    read_size,
    settle,
    thrifts,
)
from tests.conftest import JOB

MINI = Shape(3072, 8192, 32, 3072, 3072, 32_064, tied=False, stored="bfloat16")
ROWS = Rows(tokens=100_000, trained=25_000, longest=1024, a_step=8)
LORA = {"lora_r": 16, "lora_dropout": 0.0}
GIGA = 10**9


def total(thrift: Thrift, *, rows: Rows = ROWS, shape: Shape = MINI, **values: object) -> int:
    return need(shape, LORA | values, rows, thrift).total


def test_phi_3_minis_weights_are_counted_to_the_last() -> None:
    assert MINI.weights == 3_821_079_552


def test_more_of_anything_takes_more() -> None:
    usual = total(Thrift(1))
    assert total(Thrift(2)) > usual
    assert total(Thrift(1), lora_r=64) > usual
    assert total(Thrift(1), rows=replace(ROWS, longest=2048)) > usual
    assert total(Thrift(1), use_dora=True) > usual
    assert total(Thrift(1), shape=replace(MINI, layers=40)) > usual


def test_every_way_to_spare_spares() -> None:
    usual = total(Thrift(2))
    short = replace(ROWS, longest=64)
    assert total(Thrift(2, pass_tokens=0), rows=short) < total(Thrift(2), rows=short)
    assert total(Thrift(2, gradient_checkpointing=True)) < usual
    assert total(Thrift(2, streamed=True)) < usual * 0.6


def test_no_bound_changes_nothing_and_a_wide_one_neither() -> None:
    assert settle(MINI, LORA, ROWS, threads=2, most=None)[0] is None
    assert settle(MINI, LORA, ROWS, threads=2, most=100 * GIGA)[0] is None


@pytest.mark.parametrize("most", [30 * GIGA, 20 * GIGA, 12 * GIGA])
def test_the_way_that_is_taken_fits_and_no_quicker_one_does(most: int) -> None:
    thrift, parts, advice = settle(MINI, LORA, ROWS, threads=2, most=most)
    assert thrift is not None
    assert not advice
    assert parts.bound <= most
    ways = list(thrifts(2, LORA))
    assert all(total(way) * 1.1 > most for way in ways[: ways.index(thrift)])


def test_where_nothing_fits_the_settings_that_would_are_named() -> None:
    long = replace(ROWS, longest=4096)
    thrift, parts, advice = settle(MINI, LORA, long, threads=2, most=11 * GIGA)
    assert thrift is None
    assert parts.bound > 11 * GIGA
    length, bound = (words.split()[1] for words in advice.split(", or "))
    assert settle(MINI, LORA, long, threads=2, most=read_size(bound))[2] == ""
    cut = replace(long, longest=int(length))
    assert settle(MINI, LORA, cut, threads=2, most=11 * GIGA)[2] == ""
    longer = replace(long, longest=int(length) + 1)
    assert settle(MINI, LORA, longer, threads=2, most=11 * GIGA)[2] != ""


def test_what_would_change_the_result_is_not_among_the_ways() -> None:
    assert not any(way.gradient_checkpointing for way in thrifts(2, {"lora_dropout": 0.1}))
    assert not any(way.streamed for way in thrifts(2, {"merge_lora_weights": True}))
    assert not any(way.streamed for way in thrifts(2, {"init_lora_weights": "pissa"}))


def test_what_the_arithmetic_is_not_for_stays_unknown() -> None:
    assert is_forecast({})
    for other in ({"apply_lora": False}, {"load_in_4bit": True}, {"peft_method": "vera"}):
        assert not is_forecast(other)


@pytest.mark.parametrize(
    ("text", "count"),
    [("6GB", 6 * GIGA), ("1.5 GiB", 1_610_612_736), ("512mb", 512_000_000), ("4096", 4096)],
)
def test_a_size_is_read(text: str, count: int) -> None:
    assert read_size(text) == count


@pytest.mark.parametrize("text", ["", "six", "6 GB of it", "-1GB", "6PB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        read_size(text)


def planned(folder: Path, *, max_memory: int | None, shape: Shape | None = MINI) -> Plan:
    job = parse_job(JOB)
    file = folder / "train.jsonl"
    return make_plan(
        job,
        local_limits(job.model),
        training=DataPlan(str(file), check(file, job.task)),
        base=BaseInfo("folder", "weights", "0" * 64, shape=shape),
        tokens=TokenCount(30, 10, 12, 0, "a tokenizer", longest_kept=12),
        threads=2,
        max_memory=max_memory,
    )


def test_a_plan_records_the_forecast_the_bound_and_the_way(job_folder: Path) -> None:
    plan = planned(job_folder, max_memory=12 * GIGA)
    assert plan.thrift is not None
    assert plan.thrift.streamed
    assert plan.forecast.memory is not None
    assert plan.forecast.memory_bytes == sum(plan.forecast.memory.values())
    again = plan_from_json(plan.to_json())
    assert (again.thrift, again.max_memory, again.forecast) == (
        plan.thrift,
        plan.max_memory,
        plan.forecast,
    )


def test_a_bound_does_not_make_another_job(job_folder: Path) -> None:
    assert planned(job_folder, max_memory=12 * GIGA).meaning == (
        planned(job_folder, max_memory=None).meaning
    )


def test_a_bound_that_nothing_fits_is_refused_with_one_that_does(job_folder: Path) -> None:
    with pytest.raises(PlanError, match=r"--max-memory is 1\.00 GB; the run needs at least"):
        planned(job_folder, max_memory=GIGA)


def test_a_bound_on_what_is_not_forecast_is_refused(job_folder: Path) -> None:
    assert planned(job_folder, max_memory=None, shape=None).forecast.memory_bytes is None
    with pytest.raises(PlanError, match="not forecast"):
        planned(job_folder, max_memory=GIGA, shape=None)
