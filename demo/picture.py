"""timeline.svg: what each process did when, and how long requests took meanwhile."""
import analysis
import svg

WIDTH, LEFT, RIGHT = 1640, 180, 250
COLOURS = {"update luod": "#0072B2", "update service": "#009E73", "kill worker": "#D55E00", "kill keeper": "#B0578D",
           "kill service": "#8a6d00"}
WHAT = {"update luod": "luoctl update luod", "update service": "luoctl update service",
        "kill worker": "SIGKILL luod worker", "kill keeper": "SIGKILL luod keeper", "kill service": "SIGKILL luo-cache"}
LANES = {"luod keeper": ("#5a6b7d", "#93a3b3"), "luod worker": ("#3f6fa3", "#86abd1"),
         "luo-cache": ("#2f8a5b", "#83c3a2"), "redis-server": ("#8a8a8a", "#b8b8b8")}
OUTAGE = "#c62828"
LATENCY = {"low": 0.02, "high": 10_000.0}  # ms


def draw(demo, clients, probe, redis, redis_trace, report):
    zoomed = [(kind, pick(demo.events, kind)) for kind in COLOURS if any(e.name == kind for e in demo.events)]
    canvas = svg.Canvas(WIDTH, 1007)
    end = max([demo.ended, *(redis_trace.end[-1:] or [0])])
    time = svg.Axis(0.0, (end - demo.began) / 1e9, LEFT, WIDTH - RIGHT)
    place = lambda at: time((at - demo.began) / 1e9)

    size = report["keys"] * report["value_bytes"] / (1 << 20)
    canvas.text(30, 38, "A cache under load, while everything under it is replaced", 22, font_weight="bold")
    canvas.text(30, 60, f"{report['verify']['requests']:,} verified requests and {report['redis_benchmark']['completed_requests']:,} of "
                f"redis-benchmark · {report['failed_requests']} failed · {report['keys_lost']} keys lost · "
                f"{report['keys']:,} keys, {size:.0f} MiB · {report['machine']['processors']} processors · seed {report['seed']}", 13, svg.SOFT)

    y = event_rows(canvas, demo.events, report, place, 96)
    y = lanes(canvas, demo, redis, place, y + 14)
    y = latencies(canvas, demo, clients, redis, redis_trace, time, place, y + 26)
    zooms(canvas, zoomed, clients, probe, report, y + 62)
    return canvas.finish()


def pick(events, kind):
    """The event of this kind whose pause is the median one."""
    own = sorted((event for event in events if event.name == kind), key=lambda event: event.pause_ns)
    return own[len(own) // 2]


def event_rows(canvas, events, report, place, y):
    """One row of marks for each kind of event."""
    reports = {entry["name"]: entry for entry in report["events"]}
    for kind, colour in COLOURS.items():
        if kind not in reports:
            continue
        canvas.text(LEFT - 10, y + 4, WHAT[kind], 12, colour, "end", font_weight="bold")
        canvas.line(LEFT, y, WIDTH - RIGHT, y, svg.GRID)
        for event in events:
            if event.name == kind:
                canvas.rect(place(event.start), y - 7, max(1.6, place(event.end) - place(event.start)), 14, colour, rx=0.8)
        entry = reports[kind]
        canvas.text(WIDTH - RIGHT + 14, y + 4, f"× {entry['count']}, pause {entry['pause_ms']['median']:.1f} ms, "
                    f"at most {entry['pause_ms']['max']:.1f}", 12)
        y += 22
    return y


def lanes(canvas, demo, redis, place, y):
    """Which process did the job: a new block for each one that took over."""
    for lane, colours in LANES.items():
        if lane == "redis-server":
            runs, last = [], demo.redis_began
            for start, end in redis["pauses"]:
                runs.append({"from": last, "to": start})
                last = end
            runs.append({"from": last, "to": demo.redis_ended})
        else:
            runs = demo.generations.lanes.get(lane, [])
        canvas.text(LEFT - 10, y + 14, lane, 12, svg.INK, "end")
        for number, run in enumerate(runs):
            x, end = place(run["from"]), place(run["to"])
            canvas.rect(x, y, end - x, 20, colours[number % 2])
            if end - x > 26:
                canvas.text((x + end) / 2, y + 14, number + 1, 10, "#ffffff", "middle")
        if runs:
            canvas.text(WIDTH - RIGHT + 14, y + 14, f"{len(runs)} generation{'s' if len(runs) > 1 else ''}", 12, svg.SOFT)
        if lane == "redis-server":
            for start, end in redis["pauses"]:
                canvas.rect(place(start), y, place(end) - place(start), 20, OUTAGE, fill_opacity="0.25")
        y += 26
    return y


def latencies(canvas, demo, clients, redis, redis_trace, time, place, y):
    """For each few pixels of time: median, 99th percentile and the longest request."""
    height = 250
    axis = svg.Axis(LATENCY["low"], LATENCY["high"], y + height, y, log=True)
    canvas.text(30, y - 8, "How long requests took (clients that wait for each answer)", 14, font_weight="bold")
    frame(canvas, time, axis, LEFT, WIDTH - RIGHT, y, height, "s since the load began")
    for start, end in redis["pauses"]:
        canvas.rect(place(start), y, place(end) - place(start), height, OUTAGE, fill_opacity="0.13")
    for start, end in redis["pauses"]:
        canvas.text(min((place(start) + place(end)) / 2, WIDTH - RIGHT - 20), y + 16,
                    svg.milliseconds((end - start) / 1e6), 12, OUTAGE, "middle", font_weight="bold")
    for trace, colour in ((clients, "#2f8a5b"), (redis_trace, "#777777")):
        bins = {}
        for i in range(len(trace)):
            if trace.role[i] == analysis.CLOSED and trace.failed[i] == 0:
                bins.setdefault(int(place(trace.end[i]) // 3), []).append((trace.end[i] - trace.start[i]) / 1e6)
        middle, high, worst = [], [], []
        for x, values in sorted(bins.items()):
            values.sort()
            at = x * 3 + 1.5
            middle.append((at, axis(values[len(values) // 2])))
            high.append((at, axis(analysis.percentile(values, 99))))
            worst.append((at, axis(values[-1])))
        canvas.dots(worst, svg.INK, 1.4, 0.75)
        for line, width in ((high, 1.0), (middle, 1.8)):
            for piece in unbroken(line):
                canvas.polyline(piece, colour, width)
    x, at = WIDTH - RIGHT + 14, y + 8
    for words, kind in (("the longest of each moment", "dot"), ("99th percentile", 1.0), ("median", 1.8),
                        ("grey: of redis-server", None), ("redis-server restarting:", "box"), ("no answer", None)):
        if kind == "dot":
            canvas.dots([(x + 8, at)], svg.INK, 1.8)
        elif kind == "box":
            canvas.rect(x, at - 6, 16, 12, OUTAGE, fill_opacity="0.25")
        elif kind is not None:
            canvas.line(x, at, x + 16, at, "#2f8a5b", kind)
        canvas.text(x + 24, at + 4, words, 12, svg.SOFT)
        at += 20
    return y + height


def unbroken(points, gap=15):
    """Pieces of a line: where there is no answer there is none to draw."""
    piece = []
    for point in points:
        if piece and point[0] - piece[-1][0] > gap:
            yield piece
            piece = []
        piece.append(point)
    if piece:
        yield piece


def frame(canvas, across, up, left, right, y, height, label, count=10):
    for value in up.ticks():
        canvas.line(left, up(value), right, up(value), svg.GRID)
        canvas.text(left - 8, up(value) + 4, svg.milliseconds(value), 11, svg.SOFT, "end")
    for value in across.ticks(count):
        canvas.line(across(value), y + height, across(value), y + height + 4, svg.SOFT)
        canvas.text(across(value), y + height + 17, f"{value:g}", 11, svg.SOFT, "middle")
    canvas.line(left, y + height, right, y + height, svg.SOFT)
    canvas.text(right, y + height + 31, label, 11, svg.SOFT, "end")


def zooms(canvas, zoomed, clients, probe, report, y):
    """One event of each kind from near: every request is a dot at its start."""
    canvas.text(30, y - 12, "One of each from near: the event whose pause was the median (each dot is a request, where it began)", 14,
                font_weight="bold")
    height, gap = 230, 62
    width = (WIDTH - LEFT + 90 - 40 - gap * (len(zoomed) - 1)) / max(1, len(zoomed))
    left = LEFT - 90
    y += 16
    for kind, event in zoomed:
        length = (event.end - event.start) / 1e6
        margin = max(8.0, length * 0.35)
        across = svg.Axis(-margin, length + margin, left, left + width)
        up = svg.Axis(0.005, 1000.0, y + height, y, log=True)
        canvas.rect(across(0), y, across(length) - across(0), height, COLOURS[kind], fill_opacity="0.13")
        frame(canvas, across, up, left, left + width, y, height, "ms since it began", 6)
        canvas.text(left, y - 6, f"{WHAT[kind]}: {length:.0f} ms, pause {event.pause_ns / 1e6:.1f} ms", 12, COLOURS[kind], font_weight="bold")
        window = (event.start - int(margin * 1e6), event.end + int(margin * 1e6))
        for trace, role, colour, radius in ((clients, analysis.CLOSED, svg.INK, 1.1), (probe, analysis.PROBE, "#e0a100", 1.3)):
            points = [(across((trace.start[i] - event.start) / 1e6), up((trace.end[i] - trace.start[i]) / 1e6))
                      for i in trace.overlapping(*window) if trace.role[i] == role and trace.start[i] >= window[0]]
            canvas.dots(thin(points), colour, radius, 0.8)
        left += width + gap
    canvas.dots([(LEFT - 84, y + height + 50)], svg.INK, 2.2)
    canvas.text(LEFT - 76, y + height + 54, "a request of a client of luo-cache", 12, svg.SOFT)
    canvas.dots([(LEFT + 136, y + height + 50)], "#e0a100", 2.2)
    canvas.text(LEFT + 144, y + height + 54, "a request of a client of luod", 12, svg.SOFT)
    canvas.rect(LEFT + 330, y + height + 44, 16, 12, svg.SOFT, fill_opacity="0.2")
    canvas.text(LEFT + 352, y + height + 54, "from the command or the signal until it was done", 12, svg.SOFT)


def thin(points):
    """Drops dots that lie on others."""
    return list({(round(x * 2) / 2, round(y * 2) / 2): (x, y) for x, y in points}.values())
