"""Pages about runs: their content, their independence of other files, and names from outside."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import prunus
from helpers.reports import HISTORY, Page, epoch, read_page, sample_run, summary, weights
from prunus import ArgumentError, ArgumentTypeError, CheckpointError, PrunusError
from prunus.recipes.run.directory import RunDirectory
from prunus.report import page as module
from prunus.report import write_report

LATENCIES: dict[str, Any] = {
    "rows": [
        {
            "batch": 1,
            "threads": 1,
            "times": {
                "dense": {"median_ms": 0.4, "quartile_1_ms": 0.39, "quartile_3_ms": 0.42},
                "sparse": {"median_ms": 0.1, "quartile_1_ms": 0.09, "quartile_3_ms": 0.11},
            },
            "errors": {"sparse": 1e-7},
            "replaced": ["1"],
            "disturbed": [],
        }
    ],
    "excluded": {"compact": "no neuron, channel, head or input is dead"},
    "parameters": {"dense": 114},
    "metrics": {"dense": 0.98},
    "below_floor": [],
    "bytes": {"dense": 456, "sparse": 300, "bound": 250.0},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page about a finished run with latencies."""
    run = sample_run(tmp_path_factory.mktemp("runs") / "run", finished=summary())
    RunDirectory(run).write_latencies(LATENCIES)
    return write_report(run)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page about a run whose names would break HTML, SVG or mathematical text."""
    evil = "<script>alert('x')</script>\"&$\\alpha$\x07\u202e\ud800"
    tensors = {f"{evil.encode('utf-8', 'replace').decode()}{k}": v for k, v in weights().items()}
    run = sample_run(
        tmp_path_factory.mktemp("runs") / "<b>&'run",
        recipe=evil,
        history=[*HISTORY, epoch("prune", 4, extra_metrics={evil: 1.0})],
        finished=summary(
            metric={"name": evil, "mode": "max", evil: evil},
            method_name=evil,
            layer_types={evil: {"prunable": 3, "nonzero": 1}, "b": {"prunable": 0, "nonzero": 0}},
            environment={evil: evil},
        ),
        tensors=tensors,
        settings={"floor": evil},
    )
    (row,) = LATENCIES["rows"]
    named = {**row, "times": {**row["times"], evil: row["times"]["sparse"]}, "disturbed": [evil]}
    RunDirectory(run).write_latencies({**LATENCIES, "rows": [named], "excluded": {evil: evil}})
    return write_report(run)


def test_page_is_written_into_the_directory_of_the_run(finished: Path) -> None:
    assert finished.name == "report.html"
    assert (finished.parent / "summary.json").exists()


def test_page_states_the_results(finished: Path) -> None:
    page = read_page(finished)
    for part in (
        "digits, seed 7",
        "method prunus: relevance (decoupled), iterative, fisher",
        "test accuracy 0.9638 dense 0.9722, −0.0084",
        "compression ratio 1.9× 60 of 114 parameters are non-zero",
        "sparsity 75.0%",
        "floor 0.9650 met: validation 0.9750",
        "Weights were removed in 2 epochs of 6.",
        "raise the training loss by 0.25 altogether",
        "1.weight 6×16 96 48 50.0%",
        "3.weight 2×6 12 6 50.0%",
        "1.bias 6 6 6 100%",
        "108 multiply-adds in the dense network, and 54 with the weights that are left: 2.0× ",
        "compact was not timed: no neuron",
        "prunus run digits --seed 7",
        "processor Planted",
    ):
        assert part in page.text, part
    assert "not finished" not in page.text


def test_page_has_its_figures_with_texts_for_those_who_cannot_see_them(finished: Path) -> None:
    page = read_page(finished)
    labels = [attributes["aria-label"] for attributes in page.all("svg")]
    assert all(attributes["role"] == "img" for attributes in page.all("svg"))
    # Each at two widths.
    assert labels[::2] == labels[1::2]
    beginnings = [label.split(":")[0].split(",")[0] for label in labels[::2]]
    assert beginnings == [
        "Line chart of the validation accuracy over 6 epochs",
        "Line chart of the loss over 6 epochs; it ends at 0.5000 in training and 0.6000 in "
        "validation.",
        "Chart of the fraction of non-zero elements of 2 tensors",
        "Map of the 16 input pixels",
        "Images of the weights of all 6 units in 1.weight",
        "Maps of where weights are left",
        "Bar chart of sizes",
        "Chart of the time of a batch",
    ]
    assert "0.4000" not in labels[-1]
    assert labels[-1].endswith("batch of 1, 1 thread: dense 0.400 ms, sparse 0.100 ms")
    assert "which 8 are read" in labels[6]


@pytest.mark.parametrize("name", ["finished", "hostile"])
def test_page_refers_to_nothing_outside(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    page = read_page(path)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "img", "base"}
    links = [
        (tag, value)
        for tag, attributes in page.tags
        for key, value in attributes.items()
        if key in ("href", "src", "xlink:href")
    ]
    foreign = [link for link in links if not link[1].startswith(("#", "data:"))]
    assert foreign == []
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert "http://" not in path.read_text()
    assert "https://" not in path.read_text()
    handlers = [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert handlers == []


def test_names_of_elements_are_unique_and_references_resolve(finished: Path) -> None:
    page = read_page(finished)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    text = finished.read_text()
    references = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    assert {one or other for one, other in references} <= set(names)
    assert references


def test_colors_of_figures_follow_the_theme(finished: Path) -> None:
    text = finished.read_text()
    styles = " ".join(attributes.get("style", "") for _, attributes in read_page(finished).tags)
    assert not re.search(r"(?:fill|stroke): #", styles)
    used = set(re.findall(r"var\(--([a-z]+)\)", styles))
    dark = text.split("prefers-color-scheme: dark", 1)[1].split("@media", 1)[0]
    assert {"blue", "orange", "muted", "ink"} <= used
    assert [name for name in used if f"--{name}: #" not in dark] == []


def test_names_from_files_stay_text(hostile: Path) -> None:
    page = read_page(hostile)
    shown = "<script>alert('x')</script>\"&$\\alpha$���"
    assert page.text.count(f"{shown}, seed 7") >= 1
    assert f"test {shown}" in page.text
    assert f"method {shown}: " in page.text
    assert f"floor {shown}" in page.text.replace(" (the recipe's: dense-0.01)", "")
    assert f"{shown} was not timed: {shown}." in page.text
    assert f"disturbed the timings of: {shown}." in page.text
    assert any(shown in attributes["aria-label"] for attributes in page.all("svg"))
    assert "<script" not in hostile.read_text().replace("&lt;script", "")
    assert not re.search("[\x00-\x08\x0e-\x1f\u202e]", hostile.read_text())


def test_unfinished_run_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", history=HISTORY[:4], tensors=weights())
    page = read_page(write_report(run))
    assert "This run is not finished: epoch 1 of 100 of the pruning is complete" in page.text
    assert f"Resume it with: prunus run digits --out {run} --resume" in page.text
    assert "validation metric 0.9700 after epoch 1 of the pruning" in page.text
    assert "1.weight 6×16 96 48 50.0%" in page.text
    assert "test accuracy" not in page.text


def test_run_without_an_epoch_has_a_page(tmp_path: Path) -> None:
    page = read_page(write_report(sample_run(tmp_path / "run", history=[])))
    assert "no epoch is complete yet" in page.text
    assert page.all("svg") == []
    assert "batch_size 32" in page.text


def test_values_that_are_not_finite_are_gaps_with_a_note(tmp_path: Path) -> None:
    history = [epoch("prune", number, validation=0.9) for number in range(1, 8)]
    history[2]["validation"] = history[3]["validation"] = float("nan")
    history[4]["loss"] = None
    history[1]["validation_loss"] = float("inf")
    page = read_page(write_report(sample_run(tmp_path / "run", history=history)))
    for note in (
        "The validation metric is not a finite number in 2 epochs, first in epoch 3 of the pruning",
        "The loss is not a finite number in 1 epoch, first in epoch 5",
        "The validation loss is not a finite number in 1 epoch, first in epoch 2",
    ):
        assert note in page.text
    drawn = " ".join(attributes.get("d", "") for attributes in page.all("path"))
    assert "nan" not in drawn.lower()
    assert "inf" not in drawn.lower()


def test_history_without_a_finite_value_has_a_page(tmp_path: Path) -> None:
    lost = {"validation": float("nan"), "loss": float("nan"), "validation_loss": None}
    run = sample_run(tmp_path / "run", history=[epoch("dense", 1, **lost)])
    assert "it ends at not a number" in read_page(write_report(run)).all("svg")[0]["aria-label"]


@pytest.mark.parametrize("name", ["floor", "predicted_cost", "lr", "seconds", "sparsity"])
def test_every_value_of_a_history_may_be_missing(tmp_path: Path, name: str) -> None:
    history = [*HISTORY[:4], {**HISTORY[4], name: float("nan")}, {**HISTORY[5], name: math.nan}]
    page = read_page(write_report(sample_run(tmp_path / "run", history=history)))
    assert "nan" not in page.text.lower().split()
    drawn = " ".join(attributes.get("d", "") for attributes in page.all("path"))
    assert "nan" not in drawn


def test_command_repeats_the_settings_that_differ(tmp_path: Path) -> None:
    chosen = {"lr": 0.01, "floor": None, "biases": False, "score": "magnitude"}
    page = read_page(write_report(sample_run(tmp_path / "a", history=[], settings=chosen)))
    options = "--set lr=0.01 --set floor=none --set score=magnitude --set biases=false"
    assert f"prunus run digits --seed 7 {options}" in page.text
    assert "lr 0.01 (the recipe's: 0.05)" in page.text


def test_several_runs_share_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [sample_run(tmp_path / name, history=HISTORY[:2]) for name in ("a", "b")]
    assert write_report([*runs, runs[0]]) == Path("report.html")
    page = read_page(Path("report.html"))
    assert page.text.count("2 results") == 2  # in the title and the heading
    targets = [attributes["href"] for attributes in page.all("a")]
    assert targets == ["#section-1", "#section-2"]
    assert [a["id"] for a in page.all("article")] == ["section-1", "section-2"]
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", history=HISTORY[:2])
    first = write_report(run, figures=tmp_path / "a").read_bytes()
    assert write_report(run, figures=tmp_path / "b").read_bytes() == first
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"
    )
    assert one == other
    assert {"digits-seed-7-training.svg", "digits-seed-7-training.pdf"} <= one.keys()
    assert all(content.startswith((b"%PDF", b"<?xml")) for content in one.values())


def test_page_that_would_be_too_large_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run(tmp_path / "run", history=[])
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(PrunusError, match="the page would have .* bytes, and may have 1,000"):
        write_report(run, figures=tmp_path / "figures")
    assert not (run / "report.html").exists()
    assert not (tmp_path / "figures").exists()


@pytest.mark.slow
def test_long_runs_of_large_networks_fit_a_page(tmp_path: Path) -> None:
    """A run of 2,000 epochs, each with a removal, and of 1,500 tensors."""
    history = [epoch("prune", n, sparsity=n / 2001, removed=1) for n in range(1, 2001)]
    tensors = {
        f"layers.{n}.some.longer.name.weight": weights()["1.weight"] + n for n in range(1500)
    }
    page = write_report(sample_run(tmp_path / "run", history=history, tensors=tensors))
    assert page.stat().st_size < 1_000_000
    assert "1,100 more tensors are listed by prunus inspect." in read_page(page).text


def test_wrong_arguments_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentTypeError, match=r"each of paths must be a path.*out must be a path"
    ):
        write_report([3], out=4)  # type: ignore[list-item,arg-type]
    with pytest.raises(ArgumentError, match="paths must name at least one run or study"):
        write_report([])
    with pytest.raises(
        PrunusError, match=r"there is no run or study in .*: it has neither config\.json nor study"
    ):
        write_report(tmp_path)
    run = sample_run(tmp_path / "run", history=[])
    with pytest.raises(PrunusError, match="is a directory: pass the path of a file"):
        write_report(run, tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sparse": {"validation": 1.0}}, "'test' is missing"),
        ({"metric": {"name": "a", "mode": "up"}}, 'mode must be "max" or "min", but is \'up\''),
        ({"layer_types": 3}, "'int' object has no attribute 'items'"),
        ({"nonzero": "many"}, "many"),
        ({"multiply_adds": {"dense": 1}}, "'sparse' is missing"),
    ],
)
def test_damaged_summary_is_rejected(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    run = sample_run(tmp_path / "run", history=[], finished=summary(**changes))
    with pytest.raises(CheckpointError, match=r"summary\.json is damaged: .*--resume") as raised:
        write_report(run)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"rows": []}', json.dumps({**LATENCIES, "date": "2026", "environment": 3})],
)
def test_damaged_latencies_are_rejected(tmp_path: Path, content: str) -> None:
    run = sample_run(tmp_path / "run", history=[], finished=summary())
    (run / "bench.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"bench\.json is damaged: .*`prunus bench`"):
        write_report(run)


@pytest.mark.slow
def test_command_writes_page_and_figures(tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", history=HISTORY)
    outcome = prunus(
        "report", run, "--out", tmp_path / "a/b.html", "--figures", tmp_path / "figures"
    )
    assert outcome.code == 0, outcome.err
    assert "digits, seed 7" in read_page(tmp_path / "a/b.html").text
    assert f"written to {tmp_path / 'a/b.html'}" in outcome.out
    assert len(list((tmp_path / "figures").iterdir())) == 4
    prunus("report", tmp_path / "no").refused("there is no run or study in")


def test_elements_of_the_helper_must_be_nested() -> None:
    page = Page()
    page.feed("<p><b>x</p></b>")
    assert page.mistakes == ["p"]
