// --- what was recorded: spans in typed arrays, and the lanes that they are in ---------------------

const STATUSES = ["ok", "running", "cancelled", "error", "killed"];
const GLYPHS = ["", "", "⊘", "!", "✕"];

const data = JSON.parse(document.getElementById("data").textContent);
const strings = data.strings;
const LENGTH = Math.max(1, data.length);

// A span is a number: first the calls, then the processes. Times are microseconds.
const callCount = data.calls.queued.length;
const processCount = data.processes.length;
const spanCount = callCount + processCount;
const queued = new Float64Array(spanCount); // of a process: when it was created
const start = new Float64Array(spanCount);
const end = new Float64Array(spanCount); // when it left its worker
const over = new Float64Array(spanCount); // when the application had the result
const seconds = new Float64Array(callCount);
const status = new Uint8Array(spanCount);
const func = new Int32Array(spanCount); // numbers of strings
const pool = new Int32Array(spanCount); // -1 for a process of its own
const errors = new Int32Array(spanCount);
const items = new Int32Array(spanCount);
const worker = new Int32Array(spanCount); // which of `processes`, or -1
const ran = new Uint8Array(spanCount); // 0 for a call that left the queue unrun
const shade = new Uint8Array(strings.length);

const processes = data.processes.map((row, number) => ({
  number, id: row[0], name: strings[row[1]], pid: row[2], pool: row[3], startMethod: strings[row[4]],
  func: row[5], created: row[6], started: row[7], ready: row[8], stop: row[9], exited: row[10],
  exitcode: row[11], status: row[12], error: row[13], calls: 0,
}));

function readCalls() {
  const byId = new Map(processes.map((process) => [process.id, process]));
  const calls = data.calls;
  let time = 0;
  for (let i = 0; i < callCount; i++) {
    time += calls.queued[i];
    queued[i] = time;
    start[i] = time + calls.wait[i];
    ran[i] = calls.run[i] >= 0 ? 1 : 0;
    over[i] = start[i] + calls.over[i];
    end[i] = ran[i] ? start[i] + calls.run[i] : over[i];
    seconds[i] = calls.worker[i];
    status[i] = calls.status[i];
    func[i] = calls.func[i];
    pool[i] = calls.pool[i];
    errors[i] = calls.error[i];
    items[i] = calls.items[i];
    worker[i] = -1;
    if (ran[i]) {
      let process = byId.get(calls.process[i]);
      if (!process) { // there were too many spans, and it was forgotten
        process = {
          number: processes.length, id: calls.process[i], name: "(forgotten worker)", pid: null,
          pool: pool[i], startMethod: "", func: 0, created: 0, started: 0, ready: 0, stop: -1,
          exited: -1, exitcode: null, status: 1, error: 0, calls: 0, forgotten: true,
        };
        byId.set(process.id, process);
        processes.push(process);
      }
      worker[i] = process.number;
      process.calls++;
    }
  }
}

function readProcesses() {
  for (let number = 0; number < processCount; number++) {
    const process = processes[number];
    const i = callCount + number;
    const exited = process.exited < 0 ? LENGTH : process.exited;
    queued[i] = start[i] = process.created;
    end[i] = over[i] = exited;
    status[i] = process.status;
    func[i] = process.func;
    pool[i] = process.pool;
    errors[i] = process.error;
    items[i] = 1;
    worker[i] = number;
    ran[i] = 1;
  }
}

readCalls();
readProcesses();
data.calls = data.processes = null;

// Different functions that go well are told apart by shades of one colour.
(() => {
  let next = 0;
  const seen = new Set();
  for (let i = 0; i < callCount; i++) {
    if (!seen.has(func[i])) {
      seen.add(func[i]);
      shade[func[i]] = next++ % 3;
    }
  }
})();

const isCall = (i) => i < callCount;
const processOf = (i) => (worker[i] < 0 ? null : processes[worker[i]]);

function shortName(name) {
  return name.replace(/<locals>\./g, "").split(".").pop() || name;
}

const shortNames = strings.map(shortName);

function nameOf(i) {
  if (isCall(i)) return strings[func[i]] || "(call)";
  return processOf(i).name;
}

function labelOf(i) {
  if (!isCall(i)) {
    const process = processOf(i);
    return process.func ? shortNames[process.func] : process.name;
  }
  const name = shortNames[func[i]];
  return items[i] > 1 ? `${name} ×${items[i]}` : name;
}

// --- looking for a time in sorted arrays -----------------------------------------------------------

/** The first index from which on `array` is at least `value`. */
function lowerBound(array, value) {
  let low = 0, high = array.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (array[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}

/** Spans in order of their start, so that those in a range of time are found by bisection. */
class Track {
  constructor(spans) {
    this.spans = Int32Array.from(spans).sort((a, b) => start[a] - start[b] || a - b);
    this.starts = Float64Array.from(this.spans, (i) => start[i]);
    // The latest end so far: sorted, even where spans overlap.
    this.ends = new Float64Array(this.spans.length);
    let latest = -Infinity;
    this.spans.forEach((i, k) => { latest = Math.max(latest, end[i]); this.ends[k] = latest; });
  }

  /** From and to which position spans may touch the time from t0 to t1. */
  range(t0, t1) {
    return [lowerBound(this.ends, t0), lowerBound(this.starts, t1)];
  }
}

/** How many calls of a pool waited, as steps. */
class Queue {
  constructor(calls) {
    const come = Float64Array.from(calls, (i) => queued[i]).sort();
    const go = Float64Array.from(calls, (i) => (ran[i] ? start[i] : over[i])).sort();
    const count = come.length + go.length;
    this.times = new Float64Array(count);
    this.lengths = new Int32Array(count);
    this.peak = 0;
    for (let a = 0, b = 0, k = 0; k < count; k++) {
      if (a < come.length && come[a] <= go[b]) this.times[k] = come[a++]; else this.times[k] = go[b++];
      this.lengths[k] = a - b;
      if (a - b > this.peak) this.peak = a - b;
    }
  }

  at(time) {
    const k = lowerBound(this.times, time);
    return k ? this.lengths[k - 1] : 0;
  }
}

// --- lanes --------------------------------------------------------------------------------------------

/** Put spans into as few rows as do not overlap. */
function packed(spans, most = Infinity) {
  const rows = [];
  const ends = [];
  for (const i of [...spans].sort((a, b) => start[a] - start[b] || a - b)) {
    let row = ends.findIndex((last) => last <= start[i]);
    if (row < 0) row = rows.length < most ? rows.length : most - 1;
    (rows[row] ||= []).push(i);
    ends[row] = Math.max(ends[row] ?? 0, end[i]);
  }
  return rows;
}

/** Give processes lanes: each its own, except that those of one name follow each other. */
function processRows(members, pack) {
  const spans = (list) => list.map((process) => callCount + process.number);
  if (pack) return packed(spans(members)).map((row) => row.map((i) => processOf(i)));
  const byName = new Map();
  for (const process of members) {
    if (!byName.has(process.name)) byName.set(process.name, []);
    byName.get(process.name).push(process);
  }
  const rows = [];
  for (const same of byName.values()) {
    rows.push(...packed(spans(same)).map((row) => row.map((i) => processOf(i))));
  }
  return rows;
}

const HEIGHTS = { group: 30, queue: 34, left: 20, lane: 25 };

function makeLanes(pack, folded) {
  const lanes = [];
  const add = (kind, lane) => lanes.push({ kind, height: HEIGHTS[kind], ...lane });
  const lifeOf = (row) => row.filter((process) => !process.forgotten);

  const own = processes.filter((process) => process.pool < 0);
  if (own.length) {
    add("group", { key: "processes", label: "Processes", note: own.length.toLocaleString("en"), folded: folded.has("processes") });
    if (!folded.has("processes")) {
      for (const row of processRows(own, pack)) {
        const track = new Track(row.map((process) => callCount + process.number));
        add("lane", { label: laneLabel(row, pack), note: laneNote(row), processes: row, track, life: null });
      }
    }
  }

  const pools = new Map();
  for (let i = 0; i < callCount; i++) {
    if (!pools.has(pool[i])) pools.set(pool[i], { calls: [], workers: [] });
    pools.get(pool[i]).calls.push(i);
  }
  for (const process of processes) {
    if (process.pool < 0) continue;
    if (!pools.has(process.pool)) pools.set(process.pool, { calls: [], workers: [] });
    pools.get(process.pool).workers.push(process);
  }
  const callsOf = new Map(processes.map((process) => [process.number, []]));
  for (let i = 0; i < callCount; i++) if (ran[i]) callsOf.get(worker[i]).push(i);
  for (const [name, { calls, workers }] of pools) {
    const key = `pool ${name}`;
    add("group", {
      key, label: `Pool ${strings[name]}`, folded: folded.has(key),
      note: `${workers.length} worker${workers.length === 1 ? "" : "s"}, ${calls.length.toLocaleString("en")} calls`,
    });
    if (folded.has(key)) continue;
    const queue = new Queue(calls);
    add("queue", { label: "waiting", note: `at most ${queue.peak.toLocaleString("en")}`, queue, pool: name });
    const left = calls.filter((i) => !ran[i]);
    packed(left, 5).forEach((row, number) => {
      add("left", { label: number ? "" : "never ran", note: number ? "" : `${left.length}`, track: new Track(row), processes: [] });
    });
    for (const row of processRows(workers, pack)) {
      const track = new Track(row.flatMap((process) => callsOf.get(process.number)));
      const life = new Track(lifeOf(row).map((process) => callCount + process.number));
      add("lane", { label: laneLabel(row, pack), note: laneNote(row), processes: row, track, life });
    }
  }
  let y = 0;
  for (const lane of lanes) { lane.y = y; y += lane.height; }
  return { lanes, height: y };
}

function laneLabel(row, pack) {
  return pack && row.length > 1 ? `${row[0].name}, …` : row[0].name;
}

function laneNote(row) {
  if (row.length > 1) return `${row.length} in turn`;
  return row[0].pid === null ? "" : `${row[0].pid}`;
}

// --- words -----------------------------------------------------------------------------------------------

function duration(us) {
  if (us < 0) return "-";
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${precise(us / 1e3)} ms`;
  if (us < 60e6) return `${precise(us / 1e6)} s`;
  const minutes = Math.floor(us / 60e6);
  const rest = Math.round((us - minutes * 60e6) / 1e6);
  return minutes < 60 ? `${minutes} min ${rest} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function precise(value) {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** A time in full. */
const moment = (us) => (us < 1e6 ? `${(us / 1e3).toFixed(3)} ms` : `${(us / 1e6).toFixed(6)} s`);

function clockTime(us) {
  const time = new Date(data.began * 1000 + us / 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}.${String(time.getMilliseconds()).padStart(3, "0")}`;
}

// --- searching --------------------------------------------------------------------------------------------

/** Return 1 for each span that has all words of a text in its names, status, pid or error. */
function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return null;
  const found = new Uint8Array(spanCount).fill(1);
  for (const word of words) {
    const only = word.match(/^status:(.+)$/);
    const inString = strings.map((string) => !only && string.toLowerCase().includes(word));
    const inStatus = STATUSES.map((name) => (only ? name === only[1] : name.includes(word)));
    const inProcess = processes.map((process) => !only && (process.name.toLowerCase().includes(word)
      || String(process.pid) === word || inString[process.func] || inString[process.error]));
    for (let i = 0; i < spanCount; i++) {
      if (!found[i]) continue;
      const p = worker[i];
      found[i] = inStatus[status[i]] || inString[func[i]] || inString[errors[i]]
        || (pool[i] >= 0 && inString[pool[i]])
        || (p >= 0 && (isCall(i) ? processWord(p, word, only) : inProcess[p])) ? 1 : 0;
    }
  }
  return found;
}

function processWord(p, word, only) {
  const process = processes[p];
  return !only && (process.name.toLowerCase().includes(word) || String(process.pid) === word);
}
