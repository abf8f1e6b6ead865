// The status page: puts its parts together, and turns buttons and keys into commands.

import { $, alarm, put, setIcon, tell } from "./dom.js";
import * as histogram from "./histogram.js";
import { command, listen, lost, sendStop } from "./link.js";
import * as live from "./live.js";
import * as panels from "./panels.js";

const PLATE_MS = 8000;
let status = JSON.parse(document.body.dataset.status);
let plateTimer = 0;
let toggledAt = 0;
let choosing = false; // an output was chosen and the box has not answered

// ---------- status ----------
const updatePanels = () => panels.update(status, lost(status), live.stale());

function show(next) {
  status = next;
  const down = status.start_error !== null;
  $("view-live").hidden = down;
  $("view-down").hidden = !down;
  if (down) put("down-error", status.start_error);
  live.update(status);
  offerOutputs(status.engine);
  updatePanels();
  histogram.setBitDepth(status.camera?.bit_depth);
  const running = !["IDLE", "FAULT"].includes(status.state);
  const act = !running ? "Start live" : status.state === "LIVE" ? "End live" : "End scan"; // STOP is the red one's word
  if ($("run-text").textContent !== act) {
    toggledAt = performance.now();
    $("run").dataset.job = running ? "stop" : "start";
    put("run-text", act);
    $("run").title = act;
    $("run").setAttribute("aria-label", act);
    setIcon($("run"), running ? "halt" : "start");
  }
}

/** A message on the image, in a place of its own: nothing moves for it. */
function plate(text, fault = false) {
  clearTimeout(plateTimer);
  put("plate", text);
  $("plate").dataset.sev = fault ? "fault" : "note";
  $("plate").hidden = false;
  (fault ? alarm : tell)(text);
  plateTimer = setTimeout(clearPlate, PLATE_MS);
}

function clearPlate() {
  clearTimeout(plateTimer);
  $("plate").hidden = true;
}

// ---------- commands ----------
/** Send a command; once it is done, what an earlier one left on the image no longer holds. */
async function ask(path, what = null) {
  const body = await command(path, what);
  clearPlate();
  return body;
}

async function stop() {
  try {
    await sendStop();
    clearPlate();
    panels.setLocalProblem("stop", null);
    tell("Stopped. Motion is held. Tiles taken are safe.");
  } catch (error) {
    panels.setLocalProblem("stop", { title: "STOP was not confirmed", what_to_do: `${error.message} Switch the stage controller off if it still moves.` });
    updatePanels();
    plate(`STOP was not confirmed. ${error.message}`, true);
  }
}

async function start() {
  try {
    await ask("/api/start");
  } catch (error) {
    plate(error.message, true);
  }
}

async function startScan(event) {
  event.preventDefault();
  const value = (id) => $(id).valueAsNumber;
  try {
    await ask("/api/start", { job: "scan", region_um: [value("scan-width"), value("scan-height")], overlap: value("scan-overlap") / 100 });
    panels.refuseScan(null);
  } catch (error) {
    panels.refuseScan(error.message);
  }
  updatePanels();
}

/** The list of what the model makes; absent where there is nothing to choose. */
function offerOutputs(engine) {
  const names = engine?.outputs ?? [];
  const list = $("output");
  $("outputs").hidden = names.length < 2;
  if ([...list.options].map(({ value }) => value).join() !== names.join()) list.replaceChildren(...names.map((name) => new Option(name)));
  if (engine && !choosing) list.value = engine.shown;
}

async function showOutput() {
  choosing = true; // a status from before the choice must not turn the list back
  try {
    await ask("/api/show", { output: $("output").value });
    tell(`Shown: ${$("output").value}`);
  } catch (error) {
    plate(error.message, true);
  }
  choosing = false;
}

async function snapshot() {
  try {
    const { paths } = await ask("/api/snapshot");
    plate(`Saved ${paths.slice(0, -1).join(", ")} and ${paths.at(-1)}`);
  } catch (error) {
    plate(error.message, true);
  }
}

async function reset() {
  try {
    await ask("/api/reset");
    plate("The fault is reset. Nothing moves before the next start.");
  } catch (error) {
    plate(error.message, true);
  }
}

async function tryAgain() {
  put("again-note", "Starting.");
  try {
    await command("/api/start");
    put("again-note", "");
  } catch (error) {
    put("again-note", `Tried at ${new Date().toLocaleTimeString("en-GB")}: not started.`);
    if ($("down-more") && error.status === 503) location.reload(); // for the new lines of the log
  }
}

const JOBS = { start, stop, restart: () => stop().then(start) };

// ---------- buttons ----------
document.querySelector(".stop-form").addEventListener("submit", (event) => {
  event.preventDefault();
  stop();
});
$("run").addEventListener("click", () => {
  if (performance.now() - toggledAt > 500) JOBS[$("run").dataset.job ?? "start"](); // not a second click on what it was
});
$("veil-btn").addEventListener("click", () => JOBS[$("veil-btn").dataset.job]?.());
$("snap").addEventListener("click", snapshot);
$("output").addEventListener("change", showOutput);
$("scan-form").addEventListener("submit", startScan);
$("scan-new").addEventListener("click", () => {
  panels.askForScan();
  updatePanels();
});
$("probs").addEventListener("click", (event) => event.target.closest("[data-act=reset]") && reset());
$("again").addEventListener("click", tryAgain);
$("mode").addEventListener("change", (event) => live.setMode(event.target.value));
$("full").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.(); // the whole page, so that the bar with STOP comes along
});
document.addEventListener("fullscreenchange", () => document.body.toggleAttribute("data-full", Boolean(document.fullscreenElement)));

function openTab(name) {
  document.body.dataset.tab = name;
  for (const button of document.querySelectorAll(".dock button")) button.setAttribute("aria-pressed", button.dataset.tab === name);
}
for (const button of document.querySelectorAll(".dock button")) button.addEventListener("click", () => openTab(button.dataset.tab));
$("bell").addEventListener("click", (event) => {
  event.preventDefault();
  openTab("health");
  const place = $("view-live").hidden ? $("view-down") : $("problems");
  place.focus();
  place.scrollIntoView({ block: "nearest" });
});

// ---------- menu, theme, key list ----------
const showKeys = () => {
  $("menu").open = false;
  $("keys").show(); // not modal: STOP stays within reach
  $("keys").querySelector(".primary").focus();
};
$("keys-btn").addEventListener("click", showKeys);
document.addEventListener("click", (event) => {
  if ($("menu").open && !event.target.closest("#menu")) $("menu").open = false;
});

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  localStorage.setItem("superlens-theme", theme);
  $("theme").value = theme;
}
$("theme").addEventListener("change", (event) => setTheme(event.target.value));

// ---------- keys ----------
const KEYS = {
  c: snapshot,
  f: () => $("full").click(),
  p: () => $("bell").click(),
  "?": showKeys,
};

function escape() {
  if ($("keys").open) $("keys").close();
  else if ($("menu").open) $("menu").open = false;
  else stop();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (!event.repeat) escape();
    return;
  }
  if (event.key === " " && event.target === $("frame")) event.preventDefault(); // else the page scrolls
  if (event.repeat || !$("keys-on").checked || $("view-live").hidden) return;
  if (event.target.closest("input:not([type=radio]):not([type=checkbox]), select, textarea, dialog")) return;
  if (event.key === " ") {
    if (event.target === $("frame")) live.hold(true);
  } else if ("1234".includes(event.key)) document.querySelectorAll("[name=mode]")[event.key - 1].click();
  else KEYS[event.key.toLowerCase()]?.();
});
const release = () => live.hold(false);
document.addEventListener("keyup", (event) => event.key === " " && release());
addEventListener("blur", release);

// ---------- begin ----------
setTheme(localStorage.getItem("superlens-theme") ?? "auto");
live.begin();
histogram.begin();
show(status);
listen(show);
setInterval(updatePanels, 500); // a lost link brings no event of its own
