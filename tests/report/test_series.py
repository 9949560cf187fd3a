"""The long frame of all series."""

from __future__ import annotations

from lm_scale.report.ingest import Reading
from lm_scale.report.rates import Eval, Step
from lm_scale.report.rows import Row
from lm_scale.report.series import frame


def test_a_row_a_point_with_typed_columns_and_running_totals() -> None:
    steps = [
        *(Step(1, 1.5, 1.5, samples=4, tokens=400, loss=8.0), Step(2, 3.0, 1.5, 4, 400, loss=7.5, skipped=True)),
        Step(3, 4.5, 1.5, samples=4, tokens=400, loss=7.0, learning_rate=1e-3),
    ]
    own = Reading(Row(name="own", source="lm_scale"), steps, [Eval(3, 6.5, tokens_seen=800, final=True)])
    log_points = [Step(10, loss=5.0), Step(20, loss=4.0)]
    foreign = Reading(Row(name="log", source="hf_trainer_log", global_batch=8, seq_len=10), log_points)
    table = frame([own, foreign])
    assert table["run"].tolist() == ["own"] * 4 + ["log"] * 2
    assert table["kind"].tolist() == ["step"] * 3 + ["eval"] + ["step"] * 2
    assert table["tokens_seen"].tolist() == [400, 400, 800, 800, 800, 1600]
    assert table["samples_seen"].tolist()[:3] == [4, 4, 8]
    assert table["samples_seen"].tolist()[4:] == [80, 160]
    assert table["loss"].tolist() == [8.0, 7.5, 7.0, 6.5, 5.0, 4.0]
    assert table["elapsed_s"].isna().tolist() == [False] * 3 + [True] * 3
    assert table["final"].tolist()[3] is True
    assert {str(table[name].dtype) for name in ("step", "tokens_seen")} == {"Int64"}
    assert (str(table["loss"].dtype), str(table["skipped"].dtype)) == ("Float64", "boolean")


def test_a_log_that_does_not_state_its_batch_has_no_totals() -> None:
    table = frame([Reading(Row(name="log", source="hf_trainer_log"), [Step(10, loss=5.0)])])
    assert table["tokens_seen"].isna().all()
    assert table["samples_seen"].isna().all()


def test_no_series_is_an_empty_frame_with_the_same_columns() -> None:
    table = frame([Reading(Row(name="csv", source="csv"))])
    assert len(table) == 0
    assert str(table["step"].dtype) == "Int64"
