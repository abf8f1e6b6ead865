// When the page's two endless streams may be open: while somebody looks, and while no STOP needs a connection.
// A browser opens at most six connections to one host for all of its tabs together, and each stream holds one; with
// three pages open a further request, STOP too, would wait for ever and without an error.

const YIELD_MS = 1000; // another page's STOP has long been sent by then
const tabs = new BroadcastChannel("superlens"); // the box's other pages in this browser
const streams = []; // {open, close}
let stops = 0; // STOPs that need room now, of this page and of others
let leaving = false;
let flowing = false;

function follow() {
  const may = !document.hidden && !leaving && stops === 0;
  if (may === flowing) return;
  flowing = may;
  for (const { open, close } of streams) (may ? open : close)();
}

/** Call `open` now and `close` whenever the stream has to end, in turns. */
export function whileLookedAt(open, close) {
  streams.push({ open, close });
  if (flowing) open();
}

/** Close all streams, of every page, send, and open them again. Resolves or rejects as `send` does. */
export async function makeWay(send) {
  stops += 1;
  follow();
  tabs.postMessage("make way");
  try {
    return await send();
  } finally {
    stops -= 1;
    follow();
  }
}

tabs.addEventListener("message", () => {
  stops += 1;
  follow();
  setTimeout(() => {
    stops -= 1;
    follow();
  }, YIELD_MS);
});
document.addEventListener("visibilitychange", follow);
for (const type of ["pagehide", "pageshow"]) {
  addEventListener(type, () => {
    leaving = type === "pagehide"; // gives the places to the next viewer at once
    follow();
  });
}
follow();
