// The top bar and the rail: state, problems, stage, scan, vitals. Each is drawn from one status.

import { $, alarm, clockTime, duration, el, fixed, grouped, icon, put, roughly, setIcon, tell } from "./dom.js";

const WORD = { fault: "FAULT", warning: "WARNING", note: "NOTE" };
const SHAPE = { fault: "fault", warning: "warn", note: "note" };
const RANK = ["fault", "warning", "note"];
const OLD_CONTACT_S = 1;
const local = new Map(); // problems only the page can see, by key
const axes = new Map();
let drawnProblems = "";
let drawnPlans = "";
let drawnState = null;
let newScan = false; // the form is shown although there is a last scan
let scanRefused = null; // why the box did not begin the scan that was asked for last
const SCAN_FORM = $("scan-why").textContent;

/** Show the form for another scan in the place of the last one. */
export function askForScan() {
  newScan = true;
}

/** Say at the form why a scan did not begin, or take it back with null. */
export function refuseScan(words) {
  scanRefused = words;
}

/** Add a problem of the page itself, or take it back with null. */
export function setLocalProblem(key, problem) {
  if (problem === null) local.delete(key);
  else if (local.get(key)?.title !== problem.title || local.get(key).what_to_do !== problem.what_to_do) local.set(key, { key, severity: "fault", since_utc: new Date().toISOString(), ...problem });
}

/** Draw everything. `lost` is why the status may not be true, or null; `stale` whether live frames have stopped. */
export function update(status, lost, stale) {
  setLocalProblem("frames", stale ? { title: "No new frame", what_to_do: "Check the camera and its cable, then restart the live view." } : null);
  setLocalProblem("link", lost && { title: lost, what_to_do: "Check that superlens runs on the box, and the network. The page reconnects by itself." });
  document.body.toggleAttribute("data-lost", Boolean(lost));
  bar(status, lost, stale);
  problems(status);
  stage(status.stage, status.camera !== null);
  guard(status.interlock);
  scan(status);
  vitals(status, stale);
  plans(status.engine);
}

function bar(status, lost, stale) {
  const word = lost ? "–" : status.state;
  const doubted = lost || stale;
  const state = status.state.toLowerCase();
  $("state").dataset.state = doubted ? "doubted" : state;
  setIcon($("state"), doubted ? "clock" : state);
  put("state-word", word);
  put("state-note", lost ? "no link to the box" : stale ? "no new frame" : status.note);
  put("name", status.name);
  $("sim").hidden = status.simulated.length === 0;
  put("sim-what", ` ${status.simulated.join(", ")}`);
  $("sim").title = status.camera?.microscope ?? "";
  const title = `${document.hidden ? "–" : lost ? "NO LINK" : word} · ${status.name} · superlens microscope`;
  if (document.title !== title) document.title = title;
  if (drawnState !== null && drawnState !== word) {
    const fault = status.problems.find((problem) => problem.severity === "fault");
    if (lost) alarm(lost);
    else if (status.state === "FAULT") alarm(`Fault. ${fault?.title ?? status.start_error ?? status.note}`);
    else tell(`State: ${status.state}`);
  }
  drawnState = word;
}

function problems(status) {
  const list = [...local.values(), ...status.problems];
  if (status.start_error) {
    list.push({ key: "start", severity: "fault", title: "The instrument did not start", what_to_do: status.start_error, since_utc: "" });
  }
  list.sort((a, b) => RANK.indexOf(a.severity) - RANK.indexOf(b.severity) || b.since_utc.localeCompare(a.since_utc));
  const key = JSON.stringify(list);
  if (key === drawnProblems) return; // a list drawn anew would lose a reader's place
  drawnProblems = key;
  const items = list.map(({ key: problem, severity, title, what_to_do: act, since_utc: since }) => {
    const when = since ? el("span", "when num", clockTime(new Date(since))) : "";
    const item = el("li", "", icon(SHAPE[severity]), el("div", "", when, el("span", "sevword", WORD[severity]), el("b", "", title)), el("p", "", act));
    item.dataset.sev = SHAPE[severity];
    if (problem === "interlock") item.append(resetButton());
    return item;
  });
  if (items.length === 0) {
    const item = el("li", "", icon("ok"), el("div", "", el("b", "", "No problems")));
    item.dataset.sev = "ok";
    items.push(item);
  }
  $("probs").replaceChildren(...items);
  const worst = list.length ? list[0].severity : "ok";
  const noun = list.length === 0 ? "No problems" : `problem${list.length > 1 ? "s" : ""}`;
  const text = list.length === 0 ? noun : `${list.length} ${noun}`;
  put("bell-count", list.length ? String(list.length) : "");
  put("bell-word", noun);
  $("bell").setAttribute("aria-label", list.length ? `${text}, worst: ${WORD[worst].toLowerCase()}` : text);
  $("bell-sev").dataset.sev = SHAPE[worst] ?? "ok";
  setIcon($("bell-sev"), SHAPE[worst] ?? "ok");
  put("h-note", list.length ? text : "");
}

/** What only a person may do, after a look; app.js hears its click. */
function resetButton() {
  const button = el("button", "btn", "Reset after looking at the sphere");
  button.type = "button";
  button.dataset.act = "reset";
  return button;
}

// ---------- stage ----------
function axisRow(name) {
  const part = (cls) => el("i", cls);
  const travel = el("div", "travel", part("soft"), part("lo"), part("hi"), part("tgt"), part("at"));
  const wanted = el("span", "cmd num");
  const measured = el("span", "meas num");
  travel.setAttribute("role", "meter");
  travel.setAttribute("aria-label", `${name} travel`);
  $("axes").append(el("div", "axis", el("b", "", name), wanted, measured, el("span", "unit", "µm"), travel));
  const row = { travel, wanted, measured, target: travel.querySelector(".tgt"), at: travel.querySelector(".at") };
  axes.set(name, row);
  return row;
}

function stage(stageStatus, opened) {
  $("axes").hidden = stageStatus === null;
  if (stageStatus === null) {
    lamp("unknown", "idle", opened ? "No stage" : "Not read", "–");
    servo(null);
    put("gcs-text", opened ? "this source has no stage" : "–");
    return;
  }
  let worstNm = null;
  for (const { name, measured_um: measured, target_um: target, low_um: low, high_um: high } of stageStatus.axes) {
    const row = axes.get(name) ?? axisRow(name);
    const place = (um) => `${Math.max(0, Math.min(100, ((um - low) / (high - low)) * 100))}%`;
    row.wanted.textContent = `set ${fixed(target, 3)}`;
    row.measured.textContent = fixed(measured, 3);
    row.at.hidden = measured === null;
    row.target.hidden = target === null;
    if (measured !== null) row.at.style.left = place(measured);
    if (target !== null) row.target.style.left = place(target);
    row.travel.setAttribute("aria-valuemin", low);
    row.travel.setAttribute("aria-valuemax", high);
    row.travel.setAttribute("aria-valuenow", measured ?? low);
    row.travel.setAttribute("aria-valuetext", `measured ${fixed(measured, 3)} µm, set ${fixed(target, 3)}, from ${low} to ${high}`);
    if (measured !== null && target !== null) worstNm = Math.max(worstNm ?? 0, Math.abs(measured - target) * 1000);
  }
  const error = worstNm === null ? "–" : worstNm < 1000 ? `${worstNm.toFixed(0)} nm` : `${(worstNm / 1000).toFixed(1)} µm`;
  const settled = stageStatus.on_target;
  if (settled === null) lamp("off", "warn", "Unknown", "–");
  else lamp(settled ? "on" : "move", settled ? "ok" : "moving", settled ? "On target" : "Moving", error);
  servo(stageStatus.servo_on);
  $("gcs").toggleAttribute("data-bad", Boolean(stageStatus.error));
  put("gcs-text", stageStatus.error ?? "none");
  $("gcs").title = stageStatus.error ?? "";
}

/** What may move, and the contact signal; a sample older than OLD_CONTACT_S is no longer one. */
function guard(interlock) {
  const { state = "–", why = null, contact_v: volts = null, set_point_v: wanted = null, contact_age_s: age } = interlock ?? {};
  const contact = wanted === null ? "no contact sensor" : `contact ${volts === null || age > OLD_CONTACT_S ? "–" : volts.toFixed(3)} V, set point ${wanted.toFixed(3)} V`;
  $("guard").toggleAttribute("data-bad", state === "fault");
  put("guard-text", interlock ? [state, contact].join(" · ") : "–");
  if ($("guard").title !== (why ?? "")) $("guard").title = why ?? "";
}

function lamp(kind, shape, word, error) {
  $("lamp").dataset.lamp = kind;
  setIcon($("lamp"), shape);
  put("lamp-t", word);
  put("lamp-e", error);
}

function servo(on) {
  $("servo").toggleAttribute("data-off", on === false);
  setIcon($("servo"), on === null ? "idle" : on ? "ok" : "warn");
  put("servo-t", on === null ? "Servo –" : on ? "Servo on" : "Servo off");
}

// ---------- scan ----------
function scan(status) {
  const run = status.scan;
  const scanning = run !== null && run.complete === null;
  if (scanning) newScan = false;
  if (scanning) scanRefused = null;
  const form = run === null || newScan;
  $("scan-run").hidden = form;
  $("scan-form").hidden = !form;
  $("scan-new").hidden = form || scanning;
  const why = status.stage === null && status.camera !== null ? "A replay has no stage." : "";
  $("scan-start").disabled = why !== "" || status.camera === null;
  $("scan-why").toggleAttribute("data-refused", scanRefused !== null);
  put("scan-why", scanRefused ?? (why || SCAN_FORM));
  put("scan-name", form ? "" : run.name);
  if (run === null) return;
  put("k-tile", grouped(run.done));
  put("k-all", grouped(run.tiles));
  put("k-pct", `${Math.floor((100 * run.done) / run.tiles)} %`);
  put("k-miss", grouped(run.missing));
  put("k-folder", run.folder);
  $("k-folder").title = run.folder;
  const end = run.eta_s === null ? null : new Date(Date.parse(status.box_utc) + 1000 * run.eta_s);
  put("k-eta", run.complete !== null ? "ended" : end === null ? "–" : `${clockTime(end)} · in ${roughly(run.eta_s)}`);
  $("k-prog").max = run.tiles;
  $("k-prog").value = run.done;
  const seal = $("seal");
  seal.hidden = run.complete === null;
  if (run.complete === null) return;
  const kind = run.complete ? "ok" : "warn";
  if (seal.dataset.kind === kind && seal.textContent.includes(run.folder)) return;
  seal.dataset.kind = kind;
  const words = run.complete ? "every tile is saved" : `${run.tiles - run.done} of ${run.tiles} tiles are not there`;
  seal.replaceChildren(icon(kind), el("span", "", el("b", "", run.complete ? "COMPLETE" : "NOT COMPLETE"), ` ${words}`));
}

// ---------- vitals ----------
function okTick() {
  const tick = icon("ok");
  tick.dataset.sev = "ok";
  return tick;
}

/** What runs: the back end, the file where it is not FP32, the arithmetic, and whether it stands in for another. */
function runs({ backend, precision, model_precision: file, fallback }) {
  const what = file === "fp32" || file === precision ? precision : `${file} in ${precision}`;
  return `${backend} ${what}${fallback ? ", for want of TensorRT" : ""}`;
}

const inMs = (seconds) => (seconds === null || seconds === undefined ? "not measured" : `${(seconds * 1000).toFixed(1)} ms`);

function vitals({ state, engine, flow, rss_mb: rss, disk_free_mb: disk, uptime_s: uptime, version }, stale) {
  const captured = stale ? 0 : flow.capture_fps;
  const rows = [
    ["camera", captured === null ? (state === "IDLE" ? "ready" : "–") : `${captured.toFixed(1)} /s`, captured > 0],
    ["frames", grouped(flow.frames)],
    ["engine p50", inMs(engine?.engine_s.p50)],
    ["engine p99", inMs(engine?.engine_s.p99)],
    ["to JPEG p50", inMs(flow.latency_s.p50)],
    ["to JPEG p99", inMs(flow.latency_s.p99)],
    ["engine", engine === null ? "–" : runs(engine)],
    ["model file", engine === null ? "–" : engine.sha256.slice(0, 8)],
    ["memory", rss === null ? "not measured" : `${rss.toFixed(0)} MB`],
    ["disk", disk === null ? "not measured" : `${((disk * 1.048576) / 1000).toFixed(0)} GB free`],
    ["running for", duration(uptime)],
    ["version", version],
  ];
  const list = $("vitals");
  if (list.childElementCount === 0) {
    list.append(...rows.map(([name]) => el("div", name === "engine" ? "wide" : "", el("dt", "", name), el("dd", "", el("span")))));
  }
  rows.forEach(([name, text, good], i) => {
    const value = list.children[i].lastChild;
    const tick = value.querySelector("svg");
    if (good && !tick) value.prepend(okTick());
    if (!good && tick) tick.remove();
    if (value.lastChild.textContent !== text) value.lastChild.textContent = text;
    if (name === "engine" && value.title !== (engine?.note ?? "")) value.title = engine?.note ?? "";
  });
}

// ---------- what was measured of TensorRT ----------
/** A row for each precision that was measured, and one for what is being made; first, why another back end runs. */
function plans(engine) {
  const { candidates = [], building = null, fallback = false, note = null } = engine ?? {};
  const key = JSON.stringify([candidates, building, fallback, note, engine?.backend, engine?.model_precision]);
  if (key === drawnPlans) return;
  drawnPlans = key;
  $("plans").hidden = candidates.length === 0 && building === null && !fallback;
  const rows = fallback && note ? [whyRow(note)] : [];
  for (const one of candidates) rows.push(...planRows(one, engine));
  if (building) {
    const share = building.fraction === null ? "" : ` ${Math.floor(100 * building.fraction)} %`;
    rows.push(planRow(building.precision, [outcome("moving", "", `${building.phase}${share}`)]));
  }
  $("plans").tBodies[0].replaceChildren(...rows);
}

function planRows(one, { backend, model_precision: file }) {
  const runs = backend === "tensorrt" && one.precision === file;
  const [shape, severity, word] = runs ? ["ok", "ok", "runs"] : one.problem ? ["warn", "warn", one.psnr_db === null ? "not used" : "refused"] : ["idle", "", "slower"];
  const db = one.psnr_db === null ? "not measured" : one.psnr_db >= 200 ? "equal to FP32" : `${one.psnr_db.toFixed(1)} dB`;
  const figures = [one.median_s, one.psnr_db].every((figure) => figure === null) ? ["not measured"] : [inMs(one.median_s), db];
  const row = planRow(one.precision, [...figures.map((figure) => el("td", "", figure)), outcome(shape, severity, word)]);
  if (one.p99_s !== null) row.title = `99 of 100 frames within ${inMs(one.p99_s)}; dB: how near its pictures are to FP32's`;
  return one.problem ? [row, whyRow(one.problem)] : [row];
}

/** Name and cells, the first of which fills what the row has too few of. */
function planRow(precision, cells) {
  const head = el("th", "", precision);
  head.scope = "row";
  cells[0].colSpan = 4 - cells.length;
  return el("tr", "", head, ...cells);
}

function outcome(shape, severity, word) {
  const sign = icon(shape);
  sign.dataset.sev = severity;
  return el("td", "outcome", sign, word);
}

function whyRow(text) {
  const cell = el("td", "", el("p", "", text));
  cell.colSpan = 4;
  cell.title = text;
  return el("tr", "why", cell);
}
