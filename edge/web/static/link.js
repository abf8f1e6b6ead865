// The page's link to the box: status events, commands, and how far the two clocks stand apart.

import { makeWay, whileLookedAt } from "./streams.js";

const SILENCE_MS = 3000; // the box sends an event at least every 2 s
const OLD_STATUS_MS = 5000; // the box publishes five times a second; an older status means it no longer does
const CLOCK_EVERY_MS = 60000;
const STOP_MS = 3000; // whoever pressed STOP has to know by then
const ANSWER_MS = 30000; // a start may have to open the instrument first

let lastEvent = performance.now();
let offsetMs = null; // box clock minus page clock; null until measured
let retryMs = 500;
let retry = 0; // timer of the next attempt
let source = null;
let followed = !document.hidden; // every event since the last one was seen; false from hiding the tab to the next event

/** The box's monotonic clock in ms, or null while its offset is unknown. */
export const boxNowMs = () => (offsetMs === null ? null : performance.now() + offsetMs);

/** Why nothing on the page may be taken as true now, or null. */
export function lost(status) {
  const away = "This tab was in the background.";
  if (document.hidden) return away;
  if (performance.now() - lastEvent > SILENCE_MS) return "The page has lost its link to the box.";
  if (!followed) return away;
  const now = boxNowMs();
  const published = status.box_monotonic_ns / 1e6;
  if (now !== null && published > 0 && now - published > OLD_STATUS_MS) return "The box no longer updates its status.";
  return null;
}

/** Take the round trip with the least delay of five; its middle is when the box read its clock. */
async function measureClock() {
  let best = Infinity;
  for (let i = 0; i < 5; i += 1) {
    const begun = performance.now();
    const answer = await fetch("/api/status");
    const ended = performance.now(); // the answer's head: its body was made before
    const { box_monotonic_ns: boxNs } = await answer.json();
    if (ended - begun < best) {
      best = ended - begun;
      offsetMs = boxNs / 1e6 - (begun + ended) / 2;
    }
  }
}

function refreshClock() {
  measureClock().catch(() => {
    offsetMs = null; // unknown is shown as unknown; the event stream says that the link is lost
  });
}

/** Keep the event stream open while the tab is looked at; `onStatus` gets every status. */
export function listen(onStatus) {
  whileLookedAt(() => open(onStatus), close);
}

function close() {
  clearTimeout(retry);
  source.close();
  if (document.hidden) followed = false;
}

function open(onStatus) {
  if (!followed) lastEvent = performance.now(); // the silence was the page's own
  connect(onStatus);
}

function connect(onStatus) {
  source = new EventSource("/api/events");
  source.addEventListener("open", () => {
    retryMs = 500;
    const quietMs = performance.now() - lastEvent; // a page too many gets one event each time it asks
    if (offsetMs === null || quietMs > SILENCE_MS / 2) refreshClock(); // the box may have been restarted, and its clock with it
  });
  source.addEventListener("status", (event) => {
    lastEvent = performance.now();
    followed = true;
    onStatus(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    source.close(); // reopened here and not by the browser, which gives up after a refusal
    retry = setTimeout(() => connect(onStatus), retryMs);
    retryMs = Math.min(2 * retryMs, 5000);
  });
}

setInterval(() => document.hidden || refreshClock(), CLOCK_EVERY_MS);

/** Send a command, with an object as its body if need be. Resolves to the answer's body; rejects with an Error whose message is the box's own words. */
export async function command(path, what = null, patienceMs = ANSWER_MS) {
  const payload = what === null ? {} : { body: JSON.stringify(what), headers: { "Content-Type": "application/json" } };
  let answer;
  let body;
  try {
    answer = await fetch(path, { method: "POST", signal: AbortSignal.timeout(patienceMs), ...payload });
    body = await answer.json();
  } catch (error) {
    if (error.name === "TimeoutError") {
      throw new Error(`The box did not answer within ${patienceMs / 1000} s. Close other tabs of this page, or check that superlens runs, and try again.`);
    }
    throw new Error("The box does not answer. Check that superlens runs and that the network is up.");
  }
  if (!answer.ok) throw Object.assign(new Error(body.detail), { status: answer.status });
  return body;
}

/** STOP. Rejects unless the box confirms that nothing runs any more. */
export async function sendStop() {
  const { stopped, state } = await makeWay(() => command("/api/stop", null, STOP_MS));
  if (!stopped) throw new Error(`The box is still ${state}. Press STOP again.`);
}
