"""From the clients' records to what an event did to them."""
import array
import bisect
import dataclasses
import os
import struct

RECORD = struct.Struct("=QQHHHBB")  # TraceRecord of trace.h
CLOSED, PIPELINED, FRESH, IDLE, PROBE = range(5)


@dataclasses.dataclass
class Event:
    """One thing that was done, from `start` (before it) to `end` (after it was done, or its effect seen)."""
    name: str
    start: int
    end: int
    bytes_carried: int = 0
    requests: int = 0
    failed: int = 0
    lost: int = 0
    pause_ns: int = 0        # the longest request of a client that waits for each answer
    luod_pause_ns: int = 0   # the same for a client of luod
    control_ns: int = 0      # the same as pause_ns in a window of the same length in which nothing was done
    luod_control_ns: int = 0
    control: tuple = (0, 0)  # that window


class Trace:
    """Records in order of their end."""

    def __init__(self, path):
        rows = []
        if os.path.exists(path):
            with open(path, "rb") as file:
                data = file.read()
            data = data[:len(data) - len(data) % RECORD.size]
            rows = sorted((start + duration, start, requests, failed, role, lost)
                          for start, duration, _lane, requests, failed, role, lost in RECORD.iter_unpack(data))
        self.end = array.array("Q", (row[0] for row in rows))
        self.start = array.array("Q", (row[1] for row in rows))
        self.requests = array.array("H", (row[2] for row in rows))
        self.failed = array.array("H", (row[3] for row in rows))
        self.role = array.array("B", (row[4] for row in rows))
        self.lost = array.array("B", (row[5] for row in rows))
        durations = (end - start for end, start in zip(self.end, self.start))
        self.longest = max(durations, default=0)

    def __len__(self):
        return len(self.end)

    def overlapping(self, start, end):
        """Indices of the requests that were under way at some time in [start, end]."""
        first = bisect.bisect_left(self.end, start)
        last = bisect.bisect_right(self.end, end + self.longest)
        return (i for i in range(first, last) if self.start[i] <= end)

    def ended_in(self, start, end):
        return range(bisect.bisect_left(self.end, start), bisect.bisect_left(self.end, end))


def percentile(values, part):
    """Nearest rank; 0 for none."""
    ordered = sorted(values)
    if not ordered:
        return 0
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * part // 100) - 1))]


def summary_ms(values_ns):
    to_ms = [value / 1e6 for value in values_ns]
    return {"median": round(percentile(to_ms, 50), 3), "p99": round(percentile(to_ms, 99), 3),
            "max": round(max(to_ms, default=0), 3)}


def longest(trace, window, roles):
    return max((trace.end[i] - trace.start[i] for i in trace.overlapping(*window) if trace.role[i] in roles), default=0)


def attribute(events, clients, probe):
    """Fills in what the records say about each event. Events do not overlap and are in order of time."""
    for number, event in enumerate(events):
        window = (event.start, event.end)
        until = events[number + 1].start if number + 1 < len(events) else 1 << 63
        for i in clients.overlapping(*window):
            event.requests += clients.requests[i]
        for i in clients.ended_in(event.start, until):
            event.failed += clients.failed[i]
            event.lost += clients.lost[i]
        event.pause_ns = longest(clients, window, (CLOSED,))
        event.luod_pause_ns = longest(probe, window, (PROBE,))
        quiet_from = events[number - 1].end if number > 0 else event.start - 300_000_000
        length = min(event.end - event.start, (event.start - quiet_from) // 2)
        middle = (event.start + quiet_from) // 2
        event.control = (middle - length // 2, middle + length // 2)
        event.control_ns = longest(clients, event.control, (CLOSED,))
        event.luod_control_ns = longest(probe, event.control, (PROBE,))


def event_reports(events):
    """The report's "events": one entry for each kind, in order of first appearance in `NAMES`."""
    reports = []
    for name in dict.fromkeys(event.name for event in sorted(events, key=lambda e: e.name)):
        own = [event for event in events if event.name == name]
        reports.append({
            "name": name,
            "count": len(own),
            "requests": sum(event.requests for event in own),
            "failed_requests": sum(event.failed for event in own),
            "keys_lost": sum(event.lost for event in own),
            "pause_ms": summary_ms([event.pause_ns for event in own]),
            "bytes_carried": max((event.bytes_carried for event in own), default=0),
            "luod_pause_ms": summary_ms([event.luod_pause_ns for event in own]),
            "control_ms": summary_ms([event.control_ns for event in own]),
            "luod_control_ms": summary_ms([event.luod_control_ns for event in own]),
            "duration_ms": summary_ms([event.end - event.start for event in own]),
        })
    return reports
