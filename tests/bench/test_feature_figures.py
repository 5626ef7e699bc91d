"""One row through the compiled workflow and through NVTabular."""

from types import SimpleNamespace

import pytest

pytest.importorskip("nvtabular")

from benchmarks.features.one_row import LIMIT, measure_feature_program


def test_both_ways_are_timed_on_the_same_workflow(tmp_path):
    from small_release import small_frames, small_workflow

    users, items, interactions = small_frames()
    workflow = small_workflow(users, items, interactions, tmp_path)
    run = SimpleNamespace(
        load_workflow=lambda: workflow,
        users=users,
        items=items,
        train=interactions,
        user_id="user_id",
        item_id="item_id",
    )
    figures = measure_feature_program(run, seconds=0.05)
    assert [figure.part for figure in figures] == ["user", "item", "both"]
    user, item, both = figures
    assert both.columns == user.columns + item.columns == len(workflow.output_schema.column_names)
    # The limit itself is for a quiet machine; even a busy one is nowhere near this.
    assert all(figure.ratio > LIMIT / 5 for figure in figures)
