// The parts of a report. Each adds what it finds damaged to `faults` and shows the rest.
#pragma once
#include "inspect/report.h"
#include "kho/pages.h"
#include "kho/snapshot.h"
#include "kho/vmalloc.h"
#include "medium/kernel_records.h"

namespace luo::inspect {

std::string hex(std::uint64_t number);

Json heap_of(const kho::Snapshot& arena, bool all);

/// `root`: of a PageTracker.
Json pages_of(const kho::Snapshot& arena, kho::Ref<kho::PagesRecord> root, bool all, std::vector<Error>& faults);

/// `root`: of PreservedMemory.
Json memory_of(const kho::Snapshot& arena, kho::Ref<kho::PreservedRoot> root, std::vector<Error>& faults);

/// The engine's records, from root slot 0 of an arena with luod's layout.
Json engine_of(const kho::Snapshot& arena, std::vector<Error>& faults);
/// The daemon's, from root slot 1 and the control page.
Json daemon_of(const kho::Snapshot& arena, std::vector<Error>& faults);
/// The kernel medium's.
Json kernel_of(const kho::Snapshot& arena, kho::Ref<medium::KernelRoot> at, std::vector<Error>& faults);

/// Runs through a list by its records' `next`; no further than it says it is long. `next_of(record)` is the place
/// after it. Stops at the first record that is not there, and says so.
template <class T, class NextOf, class Visit>
void walk_list(const kho::Snapshot& arena, std::string_view what, kho::Ref<T> first, std::uint64_t count,
               std::vector<Error>& faults, NextOf next_of, Visit visit) {
  std::uint64_t n = 0;
  for (kho::Ref<T> at = first; at; ++n) {
    auto record = arena.get(at);
    if (!record)
      return faults.push_back(std::move(record).error().during(fmt::format("{} {} at {:#x}", what, n, at.at)));
    if (n == count)
      return faults.push_back({EBADMSG, fmt::format("{}: more of them than the {} it counts", what, count)});
    if (!visit(at, *record)) return;
    at = next_of(*record);
  }
  if (n != count) faults.push_back({EBADMSG, fmt::format("{}: {} of them, it counts {}", what, n, count)});
}

}  // namespace luo::inspect
