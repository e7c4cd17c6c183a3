"""`fastglow plot`: what the curves hold, what the picture shows, and the command."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fastglow.cli import main
from fastglow.errors import FastglowError
from fastglow.train.curve_plots import plot_runs
from fastglow.train.curves import MAX_POINTS, Curve, choose_scale, read_curves, reduce_curve, smooth
from fastglow.train.history import HistoryWriter

SPEED = "items per second (mel frames; WaveGlow: samples)"
TITLES = ["loss", "gradient norm", "learning rate", SPEED]


def step(i, **more):
    return {
        "loss": 1 / i,
        "grad_norm": 2.0,
        "learning_rate": 1e-3 if i < 6 else 1e-4,
        "items_per_second": 100.0 + i,
        **more,
    }


def make_run(folder, n, values=step, validate_every=0):
    folder.mkdir(parents=True)
    with HistoryWriter(folder / "log.jsonl") as writer:
        writer.write("run", 0, 0, {})
        for i in range(1, n + 1):
            writer.write("train", 0, i, values(i))
            if validate_every and i % validate_every == 0:
                writer.write("validation", 0, i, {"loss": 2 / i})
    return folder


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def points(axes, label=None):
    """The points of the panel's only line, or of the one whose label begins with `label`."""
    lines = [line for line in axes.lines if label is None or str(line.get_label()).startswith(label)]
    assert len(lines) == 1, [line.get_label() for line in axes.lines]
    return [(float(x), float(y)) for x, y in zip(*lines[0].get_data(), strict=True)]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def drawn(figure, path):
    figure.savefig(path, format="png", dpi=50)
    return imread(path)


def test_curves_are_the_records_that_count(tmp_path):
    with HistoryWriter(tmp_path / "log.jsonl") as writer:
        for begin, end in ((0, 5), (3, 6)):
            writer.write("run", 0, begin, {"world_size": 1})
            for i in range(begin + 1, end + 1):
                values = {"loss": 10.0 * begin + i, "text": "x", "flag": True}
                writer.write("train", 0, i, values | ({"late": math.nan} if i == 5 else {}))
            writer.write("validation", 0, end, {"loss": 0.5 * end})
    run = read_curves(tmp_path)
    assert run.name == tmp_path.name and run.iteration == 6 and run.begun == [0, 3]
    assert run.train.keys() == {"loss", "late"}
    np.testing.assert_array_equal(run.train["loss"], [[1, 2, 3, 4, 5, 6], [1, 2, 3, 34, 35, 36]])
    np.testing.assert_array_equal(run.train["late"], [[5], [math.nan]])
    np.testing.assert_array_equal(run.validation["loss"], [[6], [3]])
    assert run.summary == f"{tmp_path.name}, 6 iterations, lowest validation loss 3.0000 at iteration 6"


@pytest.mark.parametrize(
    "n", [1, 2, MAX_POINTS, MAX_POINTS + 1, 2 * MAX_POINTS - 1, 2 * MAX_POINTS, 7 * MAX_POINTS + 3]
)
def test_many_points_become_ranges_and_medians(n):
    values = np.random.default_rng(n).standard_normal(n)
    iterations = np.arange(5, n + 5)
    reduced = reduce_curve(Curve(iterations, values))
    assert len(reduced.middle) <= MAX_POINTS
    groups = [range(i, min(i + reduced.size, n)) for i in range(0, n, reduced.size)]
    assert len(groups) == len(reduced.middle)
    for got, of in ((reduced.low, min), (reduced.high, max), (reduced.middle, np.median)):
        np.testing.assert_array_equal(got, [of([values[i] for i in group]) for group in groups])
    np.testing.assert_array_equal(reduced.iterations, [(group[0] + group[-1]) / 2 + 5 for group in groups])
    if n <= MAX_POINTS:
        np.testing.assert_array_equal(reduced.middle, values)


def test_smoothing():
    line = np.arange(100.0)
    smoothed, width = smooth(line)
    assert width == 5
    np.testing.assert_array_equal(smoothed[:98], line[:98])  # a straight line stays one, from its first point on
    spiked = line.copy()
    spiked[[30, 60]] = 1e30, -1e30
    np.testing.assert_allclose(smooth(spiked)[0], smoothed, atol=1)
    assert smooth(np.array([3.0]))[0] == [3.0]


def test_the_scale():
    noise = np.random.default_rng(0).uniform(1, 2, 1000)
    plain = choose_scale([noise])
    assert not plain.logarithmic and plain.left_out == ""
    assert plain.bottom < noise.min() and plain.top > noise.max()
    wide = choose_scale([np.geomspace(0.1, 60, 1000)])
    assert wide.logarithmic and wide.bottom < 0.1 and wide.top > 60 and wide.left_out == ""
    # Extreme values are left out and named; a rate begins at zero.
    start = np.concatenate([[900.0, 50.0], noise])
    clipped = choose_scale([start])
    assert clipped.logarithmic and 2 < clipped.top < 4 and clipped.left_out == "up to 900"
    assert choose_scale([start], clips=False).top > 900
    below = choose_scale([np.concatenate([-noise, [-77.0]])])
    assert not below.logarithmic and -4 < below.bottom < -2 and below.left_out == "down to -77"
    rate = choose_scale([start], from_zero=True)
    assert (rate.logarithmic, rate.bottom, rate.left_out) == (False, 0, "up to 900") and rate.top < 4
    # What is constant, or a single point, has room around it.
    for values in ([3.0], [3.0] * 50, [0.0], [-2.0, -2.0], [1e-9]):
        scale = choose_scale([np.array(values)])
        assert scale.bottom < values[0] < scale.top and scale.left_out == ""
    # A spike in a constant value is not left out: there is no usual range.
    assert choose_scale([np.array([5.0] * 200 + [6.0])]).top > 6
    assert choose_scale([]) is choose_scale([np.zeros(0)]) is None


@pytest.mark.parametrize("n", [1, 2])
def test_few_points_are_all_shown(tmp_path, n):
    figure = plot_runs([read_curves(make_run(tmp_path / "run", n, validate_every=1))])
    drawn(figure, tmp_path / "x.png")
    shown = panels(figure)
    assert list(shown) == TITLES
    every = list(range(1, n + 1))
    assert points(shown["loss"], "training") == [(i, 1 / i) for i in every]
    assert points(shown["loss"], "validation") == [(i, 2 / i) for i in every]
    assert legend(shown["loss"]) == ["training", f"validation (lowest: {2 / n:g} at {n})"]
    assert points(shown[SPEED]) == [(i, 100 + i) for i in every]
    for axes in shown.values():
        assert all(line.get_marker() == "o" for line in axes.lines)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            x, y = line.get_data()
            assert ((left < x) & (x < right)).all() and ((bottom < y) & (y < top)).all()
        ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
        assert set(every) <= set(ticks) and all(tick == int(tick) for tick in ticks)
    assert shown[SPEED].get_ylim()[0] == 0


def test_a_run_of_some_hundred_iterations(tmp_path):
    figure = plot_runs([read_curves(make_run(tmp_path / "run", 300, validate_every=100))])
    loss = panels(figure)["loss"]
    assert loss.get_yscale() == "log"
    assert legend(loss) == ["training (median of 13 values)", "validation (lowest: 0.006667 at 300)"]
    faint, smoothed, validation = loss.lines
    np.testing.assert_array_equal(faint.get_ydata(), 1 / np.arange(1, 301))
    assert faint.get_alpha() < 0.5 and faint.get_linewidth() < smoothed.get_linewidth()
    np.testing.assert_array_equal(validation.get_data(), [[100, 200, 300], [0.02, 0.01, 2 / 300]])
    # Set values are drawn as steps, of which the corners suffice.
    rate = panels(figure)["learning rate"].lines[0]
    assert rate.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(rate.get_data(), [[1, 5, 6, 300], [1e-3, 1e-3, 1e-4, 1e-4]])


def test_mixed_precision_and_the_time_split(tmp_path):
    def values(i):
        parts = {"seconds_data": 0.01, "seconds_model": 0.18, "seconds_optimizer": 0.01}
        skipped = i in (40, 70)
        found = {**parts, "loss_scale": 2.0 ** (16 - (i >= 40) - (i >= 70)), "skipped": int(skipped)}
        return step(i, **found, **({"loss": math.nan} if skipped else {}), flop_utilisation=0.4, mel_loss=0.1)

    figure = plot_runs([read_curves(make_run(tmp_path / "run", 100, values))])
    drawn(figure, tmp_path / "x.png")
    shown = panels(figure)
    assert list(shown) == ["loss", "mel loss", *TITLES[1:], "FLOP utilisation", "loss scale", "time of an iteration"]
    assert legend(shown["loss"]) == ["training (median of 5 values)", "not finite (2)"]
    assert [x for x, _ in points(shown["loss"], "not finite")] == [40, 70]
    assert legend(shown["loss scale"]) == ["2 updates skipped"]
    assert points(shown["loss scale"], "2 updates") == [(40, 2**15), (70, 2**14)]
    assert shown["loss scale"].get_yscale() == "log"
    assert legend(shown["time of an iteration"]) == ["data (5%)", "forward + backward (90%)", "optimizer (5%)"]
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in shown["time of an iteration"].collections]
    np.testing.assert_allclose(tops, [0.01, 0.19, 0.2])
    assert [text.get_text() for text in shown["FLOP utilisation"].get_yticklabels()][:2] == ["0 %", "10 %"]


def test_a_loss_that_is_never_finite(tmp_path):
    run = read_curves(make_run(tmp_path / "run", 3, lambda i: {"loss": math.inf}))
    assert legend(plot_runs([run]).axes[0]) == ["not finite (3)"]


def test_extreme_values(tmp_path):
    def values(i):
        extreme = {3: 1e308, 4: -1e308, 5: 10**400, 6: 1e90, 7: 1e-320, 8: 1e-90, 9: 1e99}
        return step(i, loss=extreme.get(i, 1.0), grad_norm=float(i % 3 == 0), learning_rate=0.0, seconds_data=0.0)

    figure = plot_runs([read_curves(make_run(tmp_path / "run", 40, values))])
    drawn(figure, tmp_path / "x.png")
    assert legend(panels(figure)["loss"])[-1] == "not finite (3)"


def test_a_log_without_what_is_drawn(tmp_path):
    run = read_curves(make_run(tmp_path / "run", 2, lambda i: {"temperature": 300.0}))
    with pytest.raises(FastglowError, match="run has no curves yet"):
        plot_runs([run])


def test_huge_logs_do_not_overload_the_picture(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    n = 50_000
    noise = np.random.default_rng(0).uniform(1, 2, n)
    with open(folder / "log.jsonl", "w") as file:
        for i in range(1, n + 1):
            values = {"loss": noise[i - 1], "learning_rate": 1e-3 / i, "grad_norm": math.nan if i % 2 else 1.0}
            group = "validation" if i % 5 == 0 else "train"
            file.write(json.dumps({"group": group, "epoch": 0, "iteration": i, "time": 0, **values}) + "\n")
    figure = plot_runs([read_curves(folder)])
    n_points = sum(len(line.get_xdata()) for axes in figure.axes for line in axes.lines)
    n_points += sum(len(p.vertices) for axes in figure.axes for c in axes.collections for p in c.get_paths())
    assert n_points < 20 * MAX_POINTS
    band = panels(figure)["loss"].collections[0].get_paths()[0].vertices[:, 1]
    training = noise[(np.arange(n) + 1) % 5 != 0]
    assert (band.min(), band.max()) == (training.min(), training.max())


def test_runs_are_compared(tmp_path):
    names = ["_first", "$second$", "third", "fourth"]
    folders = [make_run(tmp_path / name, 30 + 10 * i, validate_every=10) for i, name in enumerate(names)]
    runs = [read_curves(folder) for folder in folders]
    for n in (2, 4):
        figure = plot_runs(runs[:n])
        image = drawn(figure, tmp_path / "x.png")
        texts = figure.legends[0].get_texts()
        assert [text.get_text().strip() for text in texts] == [*names[:n], "validation"]
        assert not any(text.get_parse_math() for text in texts)
        loss = panels(figure)["loss"]
        assert loss.get_legend() is None
        validations = [line for line in loss.lines if line.get_linestyle() == "--"]
        assert [len(line.get_xdata()) for line in validations] == [3, 4, 5, 6][:n]
        assert len({line.get_color() for line in loss.lines}) == n
        assert loss.get_xlim()[1] > 30 + 10 * (n - 1)
        assert image.shape[0] > 300 and image[..., :3].min() < 0.5


def test_a_resumed_run_is_marked(tmp_path):
    folder = make_run(tmp_path / "run", 40)
    with HistoryWriter(folder / "log.jsonl") as writer:
        for begin in (20, 25):
            writer.write("run", 0, begin, {})
            for i in range(begin + 1, 31):
                writer.write("train", 0, i, step(i))
    loss = plot_runs([read_curves(folder)]).axes[0]
    assert legend(loss)[-1] == "resumed"
    assert [line.get_xdata()[0] for line in loss.lines if line.get_linestyle() == ":"] == [20, 25]


def test_the_command(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run", 5, validate_every=5)
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == (
        f"{run}/curves.png: run, 5 iterations, lowest validation loss 0.4000 at iteration 5\n"
    )
    assert imread(run / "curves.png").shape[1] == 1200
    monkeypatch.chdir(run)
    for place in (".", "log.jsonl"):
        (run / "curves.png").unlink()
        assert main(["plot", place]) == 0
        assert capsys.readouterr().out.startswith("curves.png: run, 5 iterations")
        assert sorted(path.name for path in run.iterdir()) == ["curves.png", "log.jsonl"]
    other = make_run(tmp_path / "other" / "run", 1)
    assert main(["plot", str(run), str(other), "-o", str(tmp_path / "both.png")]) == 0
    assert capsys.readouterr().out == (  # both are called run
        f"{tmp_path}/both.png: {run}, 5 iterations, lowest validation loss 0.4000 at iteration 5; "
        f"{other}, 1 iteration\n"
    )
    assert imread(tmp_path / "both.png").shape[1] == 1200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/absent"], "{tmp}/absent does not exist: pass the output folder"),
        (["{tmp}"], "{tmp} holds no log.jsonl: pass the output folder"),
        (["{tmp}/begun"], "{tmp}/begun has no curves yet: its log holds no iteration that counts"),
        (["{tmp}/run", "{tmp}/run"], "several runs are drawn in one picture: pass -o FILE.png"),
        (["{tmp}/run", "-o", "x.pdf"], "cannot write x.pdf: the picture is a PNG: pass -o x.png"),
        (["{tmp}/run", "-o", "{tmp}/absent/x.png"], "cannot write {tmp}/absent/x.png: there is no folder {tmp}/absent"),
        ([], "Missing argument 'RUN...'."),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, arguments, message):
    make_run(tmp_path / "run", 1)
    make_run(tmp_path / "begun", 0)
    before = sorted(tmp_path.rglob("*"))
    assert main(["plot", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fastglow: {message.format(tmp=tmp_path)}")
    assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plot", str(run)]) == 2
    assert capsys.readouterr().err == "fastglow: plots need matplotlib: pip install 'fastglow[plot]'\n"
    with pytest.raises(FastglowError, match="plots need matplotlib"):
        plot_runs([read_curves(run)])


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run", 1)
    (run / "curves.png").write_text("old")

    def full(figure, path, **options):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Figure, "savefig", full)
    assert main(["plot", str(run)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in run.iterdir() if path.suffix == ".png"} == {"curves.png": "old"}
    assert len(list(run.iterdir())) == 2
