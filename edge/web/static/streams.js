// When the page's two endless streams may be open: while somebody looks, and while no STOP needs a connection.
// A browser opens at most six connections to one host for all of its tabs together, and each stream holds one; with
// three pages open a further request, STOP too, would wait for ever and without an error.

const HOLD_MS = 1000; // STOP has long been sent by then; a box slow to answer is watched again
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

/** Keep the streams closed for a moment; the function returned ends it sooner. */
function hold() {
  let held = true;
  const release = () => {
    if (!held) return;
    held = false;
    stops -= 1;
    follow();
  };
  stops += 1;
  follow();
  setTimeout(release, HOLD_MS);
  return release;
}

/** Close the streams of every page, and send. Resolves or rejects as `send` does; then, if not before, they are opened again. */
export async function makeWay(send) {
  const release = hold();
  tabs.postMessage("make way");
  try {
    return await send();
  } finally {
    release();
  }
}

tabs.addEventListener("message", hold);
document.addEventListener("visibilitychange", follow);
for (const type of ["pagehide", "pageshow"]) {
  addEventListener(type, () => {
    leaving = type === "pagehide"; // gives the places to the next viewer at once
    follow();
  });
}
follow();
