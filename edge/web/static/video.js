// Reads /video: the parts of a multipart stream with their headers, which an <img> would keep to itself.

import { whileLookedAt } from "./streams.js";

const RETRY_MS = [250, 500, 1000, 2000, 4000];

/** Cuts a byte stream into parts. Bytes go in by push(); each complete part comes out through `onPart`. */
class Parts {
  constructor(onPart) {
    this.onPart = onPart;
    this.bytes = new Uint8Array(1 << 18);
    this.begin = 0;
    this.end = 0;
    this.head = null; // headers of the part whose body is still coming
  }

  push(chunk) {
    this.#makeRoom(chunk.length);
    this.bytes.set(chunk, this.end);
    this.end += chunk.length;
    for (;;) {
      if (this.head === null && !this.#readHead()) return;
      const size = this.head["content-length"];
      if (this.end - this.begin < size) return;
      this.onPart({ jpeg: this.bytes.slice(this.begin, this.begin + size), head: this.head });
      this.begin += size;
      this.head = null;
    }
  }

  #makeRoom(more) {
    if (this.end + more <= this.bytes.length) return;
    const kept = this.bytes.subarray(this.begin, this.end);
    const roomy = kept.length + more > this.bytes.length / 2 ? new Uint8Array(2 * (kept.length + more)) : this.bytes;
    roomy.set(kept, 0);
    this.bytes = roomy;
    this.end -= this.begin;
    this.begin = 0;
  }

  #readHead() {
    for (let i = this.begin; i + 3 < this.end; i += 1) {
      if (this.bytes[i] !== 13 || this.bytes[i + 1] !== 10 || this.bytes[i + 2] !== 13 || this.bytes[i + 3] !== 10) continue;
      const text = new TextDecoder().decode(this.bytes.subarray(this.begin, i));
      this.head = {};
      for (const [, name, value] of text.matchAll(/^([\w-]+): *(.*?)\r?$/gm)) {
        this.head[name.toLowerCase()] = ["Content-Type", "X-Output"].includes(name) ? value : Number(value);
      }
      if (!(this.head["content-length"] > 0)) throw new Error("A picture came without its length.");
      this.begin = i + 4;
      return true;
    }
    return false;
  }
}

let reading = null; // AbortController of the open stream
let fails = 0;
let why = null;

/** Why no picture comes, in the box's words, or null while the stream is open. */
export const refusal = () => why;

/** Keep reading pictures while the tab is looked at; `onPart` gets {jpeg, head} for each. */
export function watch(onPart) {
  const open = () => read(onPart);
  const close = () => {
    reading?.abort();
    reading = null;
  };
  whileLookedAt(open, close);
}

/** Give up the open stream and read anew: what came could not be understood. */
export const reopen = () => reading?.abort("unreadable");

async function read(onPart) {
  const control = new AbortController();
  reading = control;
  try {
    const answer = await fetch("/video", { signal: control.signal });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    why = null;
    const parts = new Parts((part) => {
      fails = 0;
      onPart(part);
    });
    const reader = answer.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("The box ended the video.");
      parts.push(value);
    }
  } catch (error) {
    control.abort();
    if (reading !== control) return; // closed on purpose; it is opened anew from there
    why = error instanceof TypeError ? "The video stream broke off." : String(error.message ?? error);
    const wait = RETRY_MS[Math.min(fails, RETRY_MS.length - 1)];
    fails += 1;
    setTimeout(() => {
      if (reading === control) read(onPart);
    }, wait);
  }
}
