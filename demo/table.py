"""The report, and the table that says the same to people."""
import analysis


def make_report(options, demo, results, redis, clients, machine):
    events = analysis.event_reports(demo.events)
    verify, probe, benchmark = results["verify"], results["probe"], results["redis_benchmark"]
    pauses_ms = [(end - start) / 1e6 for start, end in redis["pauses"]]
    failed = verify["failed_requests"] + len(benchmark["complaints"]) + probe["failed_calls"]
    quiet = [clients.end[i] - clients.start[i] for event in demo.events for i in clients.overlapping(*event.control)
             if clients.role[i] == analysis.CLOSED]
    return {
        "events": events,
        "redis": {"pause_ms": round(analysis.percentile(pauses_ms, 50), 1), "bytes": redis["bytes"],
                  "restarts_ms": [round(pause, 1) for pause in pauses_ms], "failed_requests": redis["failed_requests"]},
        "failed_requests": failed,
        "keys_lost": verify["keys_lost"],
        "baseline": {"latency_ms": analysis.summary_ms(quiet),
                     "pause_ms": analysis.summary_ms([event.control_ns for event in demo.events])},
        "verify": verify, "luod_client": probe, "redis_benchmark": benchmark,
        "keys": options.keys, "value_bytes": options.value, "connections": options.connections, "rounds": options.rounds,
        "seed": options.seed, "seconds": round((demo.ended - demo.began) / 1e9, 1), "machine": machine,
    }


def mib(count):
    return f"{count / (1 << 20):.0f} MiB"


def row(cells, widths):
    return "  ".join(f"{cell:<{width}}" if number == 0 else f"{cell:>{width}}" for number, (cell, width) in
                     enumerate(zip(cells, widths)))


def show(report):
    head = ["event", "count", "requests", "failed", "lost", "median", "p99", "max", "quiet max", "luod p99", "carried"]
    rows = []
    for event in report["events"]:
        pause, luod = event["pause_ms"], event["luod_pause_ms"]
        rows.append([event["name"], event["count"], event["requests"], event["failed_requests"], event["keys_lost"],
                     f"{pause['median']:.1f}", f"{pause['p99']:.1f}", f"{pause['max']:.1f}",
                     f"{event['control_ms']['max']:.1f}", f"{luod['p99']:.1f}", mib(event["bytes_carried"])])
    redis = report["redis"]
    rows.append(["redis restart", len(redis["restarts_ms"]), "", redis["failed_requests"], "",
                 f"{redis['pause_ms']:.1f}", "", f"{max(redis['restarts_ms']):.1f}", "", "", mib(redis["bytes"])])
    cells = [[str(cell) for cell in line] for line in [head, *rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    print("\npauses in ms as clients saw them: the longest request under way while it happened")
    print("(quiet max: the same where nothing happened; luod p99: for a client of luod itself)\n")
    for number, line in enumerate(cells):
        print(row(line, widths))
        if number == 0:
            print("  ".join("-" * width for width in widths))
    verify, benchmark = report["verify"], report["redis_benchmark"]
    print(f"\nverifying client: {verify['requests']} requests, {verify['failed_requests']} failed, "
          f"{verify['keys_lost']} keys lost, {verify['wrong_values']} wrong values, {verify['resets']} connections lost")
    print(f"redis-benchmark:  {benchmark['completed_requests']} requests in completed runs, {len(benchmark['complaints'])} errors")
    print(f"client of luod:   {report['luod_client']['calls']} calls, {report['luod_client']['failed_calls']} failed, "
          f"{report['luod_client']['files_lost']} files lost")
    for text in [*verify["complaints"], *benchmark["complaints"], *report["luod_client"].get("complaints", [])][:10]:
        print(f"  ! {text}")
