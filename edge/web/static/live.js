// The live image: draws the newest picture, says what it is and how old it is.

import { $, alarm, fixed, grouped, duration, lengthUm, put, setIcon } from "./dom.js";
import { boxNowMs, lost } from "./link.js";
import { refusal, reopen, watch } from "./video.js";

const frame = $("frame");
const view = $("view");
const paint = view.getContext("2d");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const STALE_S = 1; // and never less than two frame times

let status = null;
let picture = null; // {bitmap, exposedMs, arrivedMs, output}: what is on the canvas
let coming = null; // the newest part not yet decoded
let decoding = false;
let mode = "split";
let split = 50;
let peek = false; // Space is held: raw
let flickStep = 0; // with reduced motion Space turns the picture over instead of the clock
let painted = []; // {at, latencyMs} of the last second

/** The picture on view, for the histogram; null when there is none. */
export const shown = () => picture?.bitmap ?? null;

// ---------- pictures ----------
function arrived(part) {
  coming = part;
  if (!decoding) decode();
}

async function decode() {
  decoding = true;
  while (coming !== null) {
    const part = coming;
    coming = null;
    const arrivedMs = performance.now();
    try {
      const bitmap = await createImageBitmap(new Blob([part.jpeg], { type: "image/jpeg" }));
      await new Promise(requestAnimationFrame);
      picture?.bitmap.close();
      picture = { bitmap, arrivedMs, exposedMs: part.head["x-exposure-end-ns"] / 1e6, output: part.head["x-output"] };
      frame.dataset.index = part.head["x-frame-index"];
      nameOutput();
      draw();
      const now = boxNowMs();
      painted.push({ at: performance.now(), latencyMs: now === null ? null : now - picture.exposedMs });
    } catch {
      reopen(); // a picture that cannot be decoded; the stale rule covers the gap
    }
  }
  decoding = false;
}

function kindNow() {
  if (peek) return "raw";
  if (mode !== "flick") return mode;
  const step = calm.matches ? flickStep : Math.floor(performance.now() / 1000);
  return step & 1 ? "enh" : "raw";
}

function draw() {
  const kind = kindNow();
  if (frame.dataset.mode !== kind) frame.dataset.mode = kind;
  if (picture === null) return;
  const { bitmap } = picture;
  const width = bitmap.width / 2; // left half raw, right half enhanced, of the same instant
  const height = bitmap.height;
  if (view.width !== width || view.height !== height) {
    view.width = width;
    view.height = height;
  }
  const cut = Math.round(kind === "raw" ? width : kind === "enh" ? 0 : (width * split) / 100);
  if (cut > 0) paint.drawImage(bitmap, 0, 0, cut, height, 0, 0, cut, height);
  if (cut < width) paint.drawImage(bitmap, width + cut, 0, width - cut, height, cut, 0, width - cut, height);
}

function forget() {
  picture?.bitmap.close();
  picture = null;
  painted = [];
  paint.clearRect(0, 0, view.width, view.height);
}

// ---------- how old, and what to say ----------
const isRunning = () => ["LIVE", "SCANNING"].includes(status.state);

function ageS() {
  const now = boxNowMs();
  return (now === null ? performance.now() - picture.arrivedMs : now - picture.exposedMs) / 1000;
}

/** Whether the live view runs and yet its frames have stopped. */
export const stale = () => status?.state === "LIVE" && frame.hasAttribute("data-stale");

/** What covers the image now: {kind, icon, big, why, act, button, job}, or null when the image is live. */
function cover() {
  const cut = lost(status);
  const worst = status.problems.find((problem) => problem.severity === "fault");
  const latched = status.problems.some((problem) => problem.key === "interlock"); // then a start would be refused
  const start = { button: "Start live", job: "start" };
  if (!cut && status.state === "IDLE") {
    if (status.camera === null) return { kind: "none", icon: "cam", big: "STARTING", why: "The instrument is being opened.", act: "" };
    return { kind: "none", icon: "cam", big: "CAMERA READY", why: "Nothing is streaming.", act: "", ...start };
  }
  const age = picture === null ? null : ageS();
  const limit = Math.max(2 * (status.camera?.frame_time_s ?? 0), STALE_S);
  if (!cut && age !== null && age <= limit && isRunning()) return null;
  const kind = age === null ? "none" : "stale";
  const big = age === null ? (cut ? "NO LINK" : isRunning() ? "NO FRAME YET" : "NO IMAGE") : `LAST FRAME ${duration(Math.max(0, age))} AGO`;
  const about = { kind, icon: age === null ? "cam" : "clock", big };
  if (cut) return { ...about, why: cut, act: "It tries again by itself. What the page shows may no longer be true." };
  if (worst) return { ...about, why: worst.title, act: worst.what_to_do, ...(isRunning() || latched ? {} : start) };
  if (refusal() !== null) return { ...about, why: refusal(), act: "It tries again by itself." };
  const { frames, dropped } = status.flow;
  const why = `Frames received ${grouped(frames)}, dropped ${grouped(dropped)}.`;
  if (status.state === "SCANNING") return { ...about, why, act: "The scan waits for its next tile." };
  if (status.state === "PAUSED") return { ...about, why, act: "The instrument is paused." };
  if (status.state !== "LIVE") return { ...about, why, act: "", ...start };
  return { ...about, why, act: "Check the camera and its cable, then restart the live view.", button: "Restart live", job: "restart" };
}

function showCover(veil) {
  const kind = veil?.kind ?? null;
  const before = frame.dataset.veil ?? null;
  $("veil").hidden = kind === null;
  if (kind === null) delete frame.dataset.veil;
  else frame.dataset.veil = kind;
  frame.toggleAttribute("data-stale", kind === "stale");
  if (kind === "stale" && before === null) alarm(`The image is no longer live. ${veil.why}`);
  if (kind === null) return;
  $("veil").dataset.kind = kind;
  setIcon($("veil"), veil.icon);
  put("veil-big", veil.big);
  put("veil-why", veil.why);
  put("veil-do", veil.act);
  $("veil-btn").hidden = !veil.button;
  put("veil-btn", veil.button ?? "");
  $("veil-btn").dataset.job = veil.job ?? "";
}

function showStats() {
  const cut = lost(status);
  const covered = frame.dataset.veil !== undefined;
  const now = performance.now();
  painted = painted.filter(({ at }) => now - at <= 1000);
  const rate = (fps) => (cut ? "–" : covered ? "0.0" : fixed(fps, 1));
  put("s-cap", rate(status.flow.capture_fps));
  put("s-inf", rate(status.flow.inference_fps));
  put("s-dis", covered ? "0.0" : fixed(painted.length, 1));
  const known = painted.map(({ latencyMs }) => latencyMs).filter((ms) => ms !== null).sort((a, b) => a - b);
  put("s-lat", covered || known.length === 0 ? "–" : known[known.length >> 1].toFixed(0));
  put("s-drop", cut ? "–" : grouped(status.flow.dropped));
  put("s-gap", cut ? "–" : grouped(status.flow.gaps));
}

/** Ten times a second, also when no event and no picture comes: that is when the stale rule matters. */
function tick() {
  if (status === null || $("view-live").hidden) return;
  if (!lost(status) && status.state === "IDLE" && picture !== null) forget();
  if (mode === "flick") draw();
  showCover(cover());
  showStats();
}

// ---------- what is known of the frame: shape, scale, field, model ----------
export function update(next) {
  status = next;
  const shape = status.camera?.shape_px;
  if (shape) frame.style.setProperty("--aspect", shape[1] / shape[0]);
  put("tag-model", status.engine?.model ?? "–");
  nameOutput();
  showScale(shape);
  showField(shape);
  tick();
}

/** The label names the output in the picture itself, which may still be that of before a choice. */
function nameOutput() {
  const several = (status?.engine?.outputs.length ?? 0) > 1;
  for (const part of document.querySelectorAll(".of-output")) part.hidden = !several;
  if (several) put("tag-output", picture?.output ?? status.engine.shown);
}

function showScale(shape) {
  const nm = status.pixel_size_nm;
  $("scale-bar").hidden = nm === null || !shape;
  if (nm === null || !shape) return put("scale-text", "pixel size unknown");
  const widthUm = (shape[1] * nm) / 1000;
  const decade = 10 ** Math.floor(Math.log10(widthUm / 5));
  const bar = decade * [5, 2, 1].find((step) => step * decade <= widthUm / 5);
  frame.style.setProperty("--scale", `${(bar / widthUm) * 100}cqw`);
  return put("scale-text", lengthUm(bar));
}

function showField(shape) {
  const known = Boolean(shape && status.field_um !== null && status.pixel_size_nm !== null);
  const box = $("o-field");
  box.disabled = !known;
  const label = $("o-field-label");
  label.toggleAttribute("data-off", !known);
  label.title = known ? "" : "No field to outline: its diameter and the pixel size have to be known.";
  $("ring").hidden = !known || !box.checked;
  if (!known) return;
  const [height, width] = shape;
  const diameter = (status.field_um * 1000) / status.pixel_size_nm;
  const [y, x] = status.field_centre_px ?? [height / 2, width / 2];
  const { style } = $("ring");
  style.left = `${((x - diameter / 2) / width) * 100}%`;
  style.top = `${((y - diameter / 2) / height) * 100}%`;
  style.width = `${(diameter / width) * 100}%`;
  style.height = `${(diameter / height) * 100}%`;
}

// ---------- modes and the split ----------
export function setMode(next) {
  mode = next;
  flickStep = 0;
  draw();
}

export function hold(down) {
  if (down && calm.matches && mode === "flick") flickStep += 1;
  else peek = down;
  draw();
}

function setSplit(percent) {
  split = Math.max(0, Math.min(100, percent));
  frame.style.setProperty("--split", `${split}%`);
  const handle = $("split");
  handle.setAttribute("aria-valuenow", Math.round(split));
  handle.setAttribute("aria-valuetext", `${Math.round(split)} % raw`);
  frame.toggleAttribute("data-no-raw", split === 0);
  frame.toggleAttribute("data-no-enh", split === 100);
  draw();
}

function followPointer(event) {
  const box = frame.getBoundingClientRect();
  setSplit(((event.clientX - box.left) / box.width) * 100);
}

export function begin() {
  const handle = $("split");
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    handle.addEventListener("pointermove", followPointer);
    event.preventDefault();
    handle.focus({ focusVisible: false });
  });
  for (const end of ["pointerup", "pointercancel"]) {
    handle.addEventListener(end, () => handle.removeEventListener("pointermove", followPointer));
  }
  handle.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageUp: 10, PageDown: -10, Home: -100, End: 100 };
    if (!(event.key in steps)) return;
    setSplit(split + steps[event.key]);
    event.preventDefault();
  });
  $("o-field").addEventListener("change", () => update(status));
  $("o-stats").addEventListener("change", (event) => {
    $("stats").hidden = !event.target.checked;
  });
  watch(arrived);
  setInterval(tick, 100);
}
