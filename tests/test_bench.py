"""The bench: how figures are made and judged. What they come to is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import SECTIONS, title_of
from bench.chart import LONGEST, MET, MISSED, Bar, Panel, comparable, draw, in_columns, of_goals
from bench.document import HEADING, with_figures
from bench.figures import Figure, Goal, count, median, ratio, tail
from bench.report import Section, figure_of, save, section_of, table
from bench.stalls import Tick

ROOT = Path(__file__).parent.parent


def section(*figures, fault=""):
    return Section("s", "9. A section", 1.0, figures, fault)


def test_a_median_comes_with_its_quartiles():
    figure = median("m", [5, 1, 2, 3, 4], "ms")
    assert (figure.low, figure.value, figure.high) == (2, 3, 4)


def test_one_value_has_no_spread():
    figure = median("m", [7], "ms")
    assert (figure.low, figure.value, figure.high) == (7, 7, 7)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1000), (50, 2000), (75, 2500), (100, 3000)])
def test_a_tail_lies_between_the_times_next_to_it(percent, expected):
    assert tail("t", [3, 1, 2], percent).value == expected


def test_a_ratio_is_of_medians_and_its_spread_is_of_pairs():
    figure = ratio("r", ours=[1, 2, 30], theirs=[1, 1, 10])
    assert figure.value == 2
    assert (figure.low, figure.high) == (1.5, 2.5)


@pytest.mark.parametrize(
    ("sign", "met"),
    [
        ("<=", [True, True, False]),
        ("<", [True, False, False]),
        (">=", [False, True, True]),
        ("==", [False, True, False]),
    ],
)
def test_a_goal_is_met_or_not(sign, met):
    assert [Figure("f", value, "ms", goal=Goal(sign, 2)).met for value in (1, 2, 3)] == met


def test_a_wrong_count_fails_the_bench_and_a_slow_time_does_not():
    slow = Figure("slow", 9, "ms", goal=Goal("<=", 1))
    assert not section(slow).failed
    assert section(slow, count("too many", 2, goal=Goal("==", 1))).failed
    assert section(fault="it broke").failed


def test_the_table_says_what_is_missed():
    lines = table(
        [
            section(
                Figure("quick", 0.5, "ms", 0.25, 0.75, Goal("<=", 1)),
                Figure("slow", 1234.5, "ms", goal=Goal("<=", 1)),
            ),
        ]
    ).splitlines()
    assert lines[0] == "9. A section (1 s)"
    assert lines[1].split() == ["quick", "0.5", "ms", "0.25", "to", "0.75", "<=", "1", "yes"]
    assert lines[2].split() == ["slow", "1234", "ms", "<=", "1", "NO"]


def test_a_figure_is_the_same_after_json():
    figure = count("c", 3, goal=Goal("==", 3), note="by operation")
    assert figure_of(json.loads(json.dumps(figure._asdict()))) == figure


def test_the_document_has_the_figures_that_were_saved(tmp_path):
    measured = section(
        Figure("a", 1.5, "ms", 1, 2, Goal("<=", 1)), count("c", 3, goal=Goal("==", 3))
    )
    save([measured], {}, tmp_path / "r.json", quick=False)
    (told,) = json.loads((tmp_path / "r.json").read_text())["sections"]
    assert section_of(told) == measured
    document = with_figures(f"Words.\n{HEADING}old figures", table([section_of(told)]))
    assert document.startswith(f"Words.\n{HEADING}\n```\n9. A section")
    assert "old" not in document


def test_a_panel_compares_what_has_the_same_unit():
    figures = [Figure("a", 1, "ms"), Figure("b", 2, "ms"), Figure("c", 3, "MB")]
    assert [figure.name for figure in comparable(figures)] == ["a", "b"]
    assert comparable(figures[1:]) == comparable([]) == []


def test_in_the_picture_a_goal_is_1_and_less_is_better():
    panel = of_goals(
        [
            section(
                Figure("time", 5, "ms", 4, 6, Goal("<=", 10)),
                Figure("rate", 0.5, "ratio", 0.25, 0.8, Goal(">=", 1)),
                Figure("without", 1, "ms"),
                count("exact", 3, goal=Goal("==", 3)),
            ),
        ]
    )
    assert [tuple(bar) for bar in panel.bars] == [
        ("9. time", 0.5, 0.4, 0.6, MET),
        ("9. rate", 2, 1.25, 4, MISSED),
    ]


@pytest.mark.parametrize(
    ("value", "goal", "used"),
    [
        (-1, Goal("<=", 5), 0),
        (500, Goal("<=", 5), LONGEST),
        (0, Goal(">=", 1), LONGEST),
        (-1, Goal(">=", 1), LONGEST),
        (0, Goal("<=", 0), 0),
        (9, Goal("<=", 0), LONGEST),
        (9, Goal("==", 0), LONGEST),
    ],
)
def test_in_the_picture_nothing_is_shorter_than_none_or_endless(value, goal, used):
    (bar,) = of_goals([section(Figure("f", value, "ms", goal=goal))]).bars
    assert (bar.value, bar.low, bar.high) == (used, used, used)


@pytest.mark.parametrize("values", [[0, 0], [-1, 0], [-1, 100], [0, 100], [1, 100], [5]])
def test_a_picture_is_drawn_of_whatever_came(tmp_path, values):
    figures = [Figure(str(value), value, "ms") for value in values]
    broken, limited = section(fault="it broke"), section(Figure("f", 0, "ms", goal=Goal("<=", 1)))
    assert draw([section(*figures), broken, limited], tmp_path / "p.png")
    assert not draw([broken], tmp_path / "none.png")


def test_panels_keep_their_order_in_columns_of_about_one_height():
    panels = [Panel(str(n), "ms", [Bar("b", 1, 1, 1, MET)] * n) for n in (30, 2, 9, 9, 30)]
    assert [[panel.title for panel in column] for column in in_columns(panels)] == [
        ["30"],
        ["2", "9", "9"],
        ["30"],
    ]


@pytest.mark.parametrize(
    ("tick", "late"),
    [
        pytest.param(Tick(11.0, 11.3, waits=0.0), 0.3, id="it had a core all the time"),
        pytest.param(Tick(11.0, 11.3, waits=0.1), 0.2, id="it waited for a core meanwhile"),
        pytest.param(Tick(11.0, 11.1, waits=0.2), 0.0, id="it waited for a core before, too"),
    ],
)
def test_a_tick_is_late_by_the_time_that_it_did_not_wait_for_a_core(tick, late):
    assert tick.late == pytest.approx(late)


def test_sections_are_numbered_in_their_order():
    numbers = [int(title_of(name).partition(".")[0]) for name in SECTIONS]
    assert numbers == list(range(1, len(SECTIONS) + 1))


def test_a_section_run_by_hand_leaves_figures_and_a_picture(tmp_path):
    command = [sys.executable, "-m", "bench", "dispatch", "--quick", "--out", tmp_path / "r.json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "process_status of a running process, p99" in ended.stdout
    (only,) = json.loads((tmp_path / "r.json").read_text())["sections"]
    assert all(figure["value"] > 0 for figure in only["figures"])
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_section_is_refused_with_those_that_there_are():
    command = [sys.executable, "-m", "bench", "speed"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "dispatch" in ended.stderr
