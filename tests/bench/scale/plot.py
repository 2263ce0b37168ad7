"""The plots of docs/performance.md, from the report of run.py: `plot.py REPORT FOLDER`."""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent.parent / "demo"))

import svg  # noqa: E402 (white paper of its own: as readable on a dark page as on a light one)

COLOURS = {"create": "#0b6bcb", "preserve": "#c2410c", "preserve_many": "#e0a100", "retrieve_session": "#0e7490",
           "retrieve": "#7c3aed", "retrieve_many": "#be185d", "finish_session": "#4d7c0f"}
LEFT, RIGHT, TOP, HEIGHT, WIDTH = 70, 200, 70, 260, 900


def nice(value):
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def steps(low, high):
    """1, 2 and 5 of each decade."""
    return [m * 10.0 ** e for e in range(-3, 7) for m in (1, 2, 5) if low <= m * 10.0 ** e <= high]


def frame(canvas, across, up, words, unit):
    canvas.text(LEFT - 8, TOP - 8, unit, 11, svg.SOFT, "end")
    for value in steps(up.low, up.high):
        canvas.line(LEFT, up(value), WIDTH - RIGHT, up(value), svg.GRID)
        canvas.text(LEFT - 8, up(value) + 4, nice(value), 11, svg.SOFT, "end")
    for value in steps(across.low, across.high) if across.log else across.ticks(8):
        canvas.line(across(value), TOP + HEIGHT, across(value), TOP + HEIGHT + 4, svg.SOFT)
        canvas.text(across(value), TOP + HEIGHT + 17, nice(value), 11, svg.SOFT, "middle")
    canvas.line(LEFT, TOP + HEIGHT, WIDTH - RIGHT, TOP + HEIGHT, svg.SOFT)
    canvas.text(WIDTH - RIGHT, TOP + HEIGHT + 34, words, 11, svg.SOFT, "end")


def title(canvas, words, under):
    canvas.text(LEFT, 28, words, 16, svg.INK, font_weight="bold")
    canvas.text(LEFT, 48, under, 12, svg.SOFT)


def under(report):
    machine = report["machine"]
    if "emulated_by" in machine:
        return f"{machine['processors']} processor emulated by {machine['emulated_by']}, Linux {machine['kernel']}, {report['date']}"
    return (f"{machine['processors']} processors, Linux {machine['kernel']}, {report['date']}, "
            f"load average {report['load_average'][0]:.1f} before")


def calls(report, name, run):
    """What one call costs while the larger luod gets fuller, or emptier: medians along the way."""
    canvas = svg.Canvas(WIDTH, TOP + HEIGHT + 50)
    title(canvas, f"One call, {run['sessions']:,} sessions with {run['files_in_each']} files each", under(report))
    curves = {call: numbers["large"]["curve"] for call, numbers in run["calls"].items()}
    values = [y for curve in curves.values() for _, y in curve]
    most = run["sessions"] * run["files_in_each"]
    across = svg.Axis(0, most, LEFT, WIDTH - RIGHT)
    up = svg.Axis(min(values) * 0.7, max(values) * 1.4, TOP + HEIGHT, TOP, log=True)
    frame(canvas, across, up, "files preserved, retrieved or finished before it, or the same share of the sessions", "µs")
    for row, (call, curve) in enumerate(curves.items()):
        # Calls on sessions are counted in sessions; drawn where their share of all has been done.
        whole = run["sessions"] if call in ("create", "retrieve_session", "finish_session") else most
        canvas.polyline([(across(x * most / whole), up(y)) for x, y in curve], COLOURS.get(call, svg.INK), 1.6)
        y = TOP + 14 + row * 34
        canvas.line(WIDTH - RIGHT + 14, y - 4, WIDTH - RIGHT + 34, y - 4, COLOURS.get(call, svg.INK), 3)
        canvas.text(WIDTH - RIGHT + 40, y, call.replace("_", " "), 12)
        canvas.text(WIDTH - RIGHT + 40, y + 14, f"{run['calls'][call]['large']['median_us']:.2f} µs, "
                    f"{run['calls'][call]['ratio']:.2f} × at a tenth", 11, svg.SOFT)
    return canvas.finish()


def updates(report):
    """Pauses against what is held, all runs and both sides of each, beside the yardstick."""
    kinds = {"update luod": ("#c2410c", lambda side: side["update_luod"]["blackout_ms"]["median"]),
             "update simulated": ("#0b6bcb", lambda side: side["update_simulated"]["blackout_ms"]),
             "bare fork and exec": ("#4d7c0f", lambda side: side["update_luod"]["bare_running_ms"]["median"])}
    sides = [run[side] for run in report["runs"].values() for side in ("small", "large")]
    points = {kind: sorted((side["update_luod"]["descriptors"], of(side)) for side in sides)
              for kind, (_, of) in kinds.items()}
    canvas = svg.Canvas(WIDTH, TOP + HEIGHT + 50)
    title(canvas, "The longest call of a client during an update", under(report))
    xs = [x for some in points.values() for x, _ in some]
    ys = [y for some in points.values() for _, y in some]
    across = svg.Axis(min(xs) * 0.8, max(xs) * 1.2, LEFT, WIDTH - RIGHT, log=True)
    up = svg.Axis(min(ys) * 0.6, max(ys) * 1.6, TOP + HEIGHT, TOP, log=True)
    frame(canvas, across, up, "descriptors of luod: sessions and files", "ms")
    for row, (kind, (colour, _)) in enumerate(kinds.items()):
        canvas.dots([(across(x), up(y)) for x, y in points[kind]], colour, 4)
        y = TOP + 14 + row * 24
        canvas.dots([(WIDTH - RIGHT + 22, y - 4)], colour, 4)
        canvas.text(WIDTH - RIGHT + 34, y, kind, 12)
    return canvas.finish()


def draw(report, folder, prefix="scale"):
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, run in report["runs"].items():
        paths.append(folder / f"{prefix}-{name.replace(' ', '-')}.svg")
        paths[-1].write_text(calls(report, name, run))
    paths.append(folder / f"{prefix}-updates.svg")
    paths[-1].write_text(updates(report))
    return paths


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as text:
        for made in draw(json.load(text), pathlib.Path(sys.argv[2])):
            print(made)
