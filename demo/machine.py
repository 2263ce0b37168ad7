"""On what a measurement was made."""
import os
import platform


def describe():
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo", encoding="utf-8") as info:
        memory_kib = int(info.readline().split()[1])
    return {"processors": os.cpu_count(), "model": model, "memory_bytes": memory_kib * 1024,
            "kernel": platform.release()}
