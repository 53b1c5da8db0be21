// What was found, as sentences, and what was counted, as JSON; the library's interface for other languages.

#include <cstdlib>
#include <set>
#include <utility>

#include "profiler.h"

namespace simt {

// ---- places in the source

static std::map<const char*, std::string> known;

const char* stand_in(Where where) {
  static std::map<std::pair<const char*, int>, std::unique_ptr<char>> all;
  auto& one = all[{where.file, where.line}];
  if (!one) {
    one = std::make_unique<char>();
    known[one.get()] = text(where);
  }
  return one.get();
}

std::vector<std::string> places_of(const std::vector<const char*>& pcs) {
  std::vector<const char*> fresh;
  for (const char* pc : pcs)
    if (pc && !known.count(pc)) known[pc] = "", fresh.push_back(pc);
  for (size_t i = 0; i < fresh.size(); i += 1000)  // a command line has an end
    find_places({fresh.begin() + long(i), fresh.begin() + long(std::min(fresh.size(), i + 1000))}, known);
  std::vector<std::string> places;
  for (const char* pc : pcs) places.push_back(pc ? known[pc] : "");
  return places;
}

static std::string short_place(const std::string& place) { return place.substr(place.rfind('/') + 1); }

// ---- findings

static bool stopping = false;

uint3 Profiler::index_of(int t) const {
  const dim3 b = config->block;
  return {unsigned(t) % b.x, unsigned(t) / b.x % b.y, unsigned(t) / b.x / b.y};
}

Finding& Profiler::find(const char* kind, const void* pc, const void* other_pc, const std::string& text) {
  for (Finding& finding : findings)
    if (finding.pc == pc && finding.other_pc == other_pc && finding.kind == kind &&
        finding.kernel == (kernel ? kernel->name : ""))
      return ++finding.times, finding;
  findings.push_back({kind, text, static_cast<const char*>(pc), static_cast<const char*>(other_pc), {nullptr, 0},
                      blockIdx, kernel ? index_of(thread) : uint3{0, 0, 0}, kernel ? kernel->name : "", 1});
  return findings.back();
}

void Profiler::stop(const char* kind, const void* pc, const std::string& text) {
  static std::set<std::string> files;
  const std::string place = places_of({static_cast<const char*>(pc)})[0];
  const size_t colon = place.rfind(':');
  find(kind, pc, nullptr, text);
  stopping = true;
  const char* file = files.insert(place.substr(0, colon)).first->c_str();
  scheduler().fail(text, {file, colon == std::string::npos ? 0 : std::atoi(place.c_str() + colon + 1)});
}

void on_failure(const char* what, Where where) {
  if (!profiler.kernel) return;
  if (std::exchange(stopping, false)) return;
  const std::string text = what;
  const bool barrier = text.rfind("deadlock", 0) == 0 || text.find("different barriers") != std::string::npos;
  Finding& finding = profiler.find(barrier ? "barrier" : "stopped", nullptr, where.file + where.line, text);
  finding.where = where;
  finding.thread = scheduler().me().index;
}

std::string Profiler::distance(uintptr_t address) const {
  const auto words = [](uintptr_t count, const char* where, const std::string& name, uintptr_t size) {
    return std::to_string(count) + " bytes " + where + " " + name + " (" + std::to_string(size) + " bytes)";
  };
  uintptr_t nearest = 1 << 20;
  std::string text = "far from everything that the launch was given";
  const auto look = [&](uintptr_t begin, uintptr_t end, const std::string& name) {
    if (begin == end) return;
    if (address >= begin && address < end) {
      nearest = 0;
      text = words(address - begin, "into", name, end - begin);
    } else if (address < begin && begin - address < nearest) {
      nearest = begin - address;
      text = words(nearest, "before", name, end - begin);
    } else if (address >= end && address - end + 1 < nearest) {
      nearest = address - end + 1;
      text = words(address - end, "past the end of", name, end - begin);
    }
  };
  if (const Buffer* const was = freed_at(address))
    return words(address - was->begin, "into", was->name, was->end - was->begin) + ", which was freed";
  look(dynamic, dynamic + dynamic_bytes, "dynamic shared memory");
  for (const ThreadLocal& variable : thread_locals().variables)
    look(locals + variable.offset, locals + variable.offset + variable.bytes, variable.name);
  for (const Buffer& buffer : buffers) look(buffer.begin, buffer.end, buffer.name);
  return text;
}

// ---- JSON

static std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 32) out += c;
  }
  return out + "\"";
}

std::string text_of(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

static std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += (all.empty() ? "" : ",\n ") + part;
  return "[" + all + "]";
}

static std::string json_of(const Finding& finding) {
  const auto places = places_of({finding.pc, finding.where.file ? nullptr : finding.other_pc});
  const std::string place = finding.where.file ? text(finding.where) : places[0];
  const std::string who = finding.kernel.empty() ? "the host" : "kernel " + finding.kernel + ", block " +
                          text_of(finding.block) + ", thread " + text_of(finding.thread);
  std::string sentence = who + ", " + short_place(place) + ": " + finding.text;
  if (const size_t at = sentence.find("%1"); at != std::string::npos)
    sentence.replace(at, 2, short_place(places[1]));
  return "{\"kind\": " + quoted(finding.kind) + ", \"place\": " + quoted(place) + ", \"other\": " + quoted(places[1]) +
         ", \"times\": " + std::to_string(finding.times) + ", \"text\": " + quoted(sentence) + "}";
}

// One line may be several instructions. Where a race is found, "uninitialised" only says that a thread read too early, and
// where an index leaves its array, that nobody writes there.
static std::vector<Finding> merged(const std::vector<Finding>& findings) {
  std::set<std::string> racing;
  std::vector<Finding> kept;
  std::map<std::vector<std::string>, size_t> place_of;
  for (const Finding& finding : findings)
    if (finding.kind == "race" || finding.kind == "out of bounds")
      for (const std::string& place : places_of({finding.pc, finding.other_pc})) racing.insert(place);
  for (const Finding& finding : findings) {
    const bool known_place = finding.where.file;
    const auto places = places_of({finding.pc, known_place ? nullptr : finding.other_pc});
    const std::string place = known_place ? text(finding.where) : places[0];
    if (finding.kind == "uninitialised" && racing.count(place)) continue;
    const auto [known, fresh] = place_of.insert({{finding.kernel, finding.kind, place, places[1]}, kept.size()});
    if (fresh) kept.push_back(finding);
    else kept[known->second].times += finding.times;
  }
  return kept;
}

static std::string json_of(uint32_t number, const Site& site, const Counters& c, const Pattern& pattern) {
  std::string offsets;
  for (int i = 0; i < kWarp; ++i)
    offsets += (i ? "," : "") + (pattern.mask >> i & 1 ? std::to_string(pattern.offset[i]) : std::string("null"));
  static const char* const ops[] = {"load", "store", "atomic"};
  const std::pair<const char*, uint64_t> counts[] = {
      {"requests", c.requests}, {"lanes", c.lanes}, {"bytes", c.bytes}, {"sectors", c.sectors},
      {"ideal_sectors", c.ideal_sectors}, {"compulsory", c.compulsory}, {"wavefronts", c.wavefronts},
      {"conflicts", c.conflicts}};
  std::string all = "{\"site\": " + std::to_string(number) + ", \"place\": " + quoted(places_of({site.pc})[0]) +
                    ", \"op\": \"" + ops[int(site.op)] + "\", \"space\": \"" +
                    (site.space == kGlobal ? "global" : "shared") + "\", \"width\": " + std::to_string(site.bytes);
  for (const auto& [name, count] : counts) all += ", \"" + std::string(name) + "\": " + std::to_string(count);
  return all + ", \"offsets\": [" + offsets + "]}";
}

std::string Profiler::json() {
  std::vector<const char*> pcs;
  for (const auto& site : sites) pcs.push_back(site->pc);
  places_of(pcs);  // all at once
  std::vector<std::string> of_kernels, of_findings;
  for (const auto& [name, one] : kernels) {
    std::vector<std::string> of_sites, of_events, steps;
    for (const auto& [number, counted] : one.sites)
      of_sites.push_back(json_of(number, *sites[number], counted.first, counted.second));
    for (const auto& [place, events] : one.events)
      for (const auto& [what, event] : events)
        of_events.push_back("{\"place\": " + quoted(place.first + ":" + std::to_string(place.second)) + ", \"what\": " +
                            quoted(what) + ", \"times\": " + std::to_string(event.times) + ", \"lanes\": " +
                            std::to_string(event.lanes) + "}");
    for (const auto& [site, lanes] : one.timeline)
      steps.push_back("[" + std::to_string(site) + "," + std::to_string(lanes) + "]");
    of_kernels.push_back("{\"kernel\": " + quoted(name) + ", \"launches\": " + std::to_string(one.launches) +
                         ", \"grid\": " + quoted(text_of({one.grid.x, one.grid.y, one.grid.z})) + ", \"block\": " +
                         quoted(text_of({one.block.x, one.block.y, one.block.z})) + ", \"shared_bytes\": " +
                         std::to_string(one.shared_bytes) + ",\n \"accesses\": " + joined(of_sites) +
                         ",\n \"events\": " + joined(of_events) + ",\n \"timeline\": " + joined(steps) + "}");
  }
  for (const Finding& finding : merged(findings)) of_findings.push_back(json_of(finding));
  return "{\"kernels\": " + joined(of_kernels) + ",\n\"findings\": " + joined(of_findings) + "}";
}

void watch(const void* address, size_t bytes, const char* name) {
  if (!address || !bytes) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  profiler.buffers.push_back({begin, begin + bytes, name, {}});
}

uint64_t hash_of_watched(uint64_t hash) {
  for (const Buffer& one : profiler.buffers)
    hash = hash_of(hash, reinterpret_cast<const void*>(one.begin), one.end - one.begin);
  return profiler.buffers.empty() ? 0 : hash | 1;
}

void forget(const void* address) {
  auto& all = profiler.buffers;
  profiler.last_buffer = nullptr;
  for (size_t i = all.size(); i-- > 0;)
    if (all[i].begin == reinterpret_cast<uintptr_t>(address)) return void(all.erase(all.begin() + long(i)));
}

}  // namespace simt
