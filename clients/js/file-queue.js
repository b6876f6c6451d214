/** A vendor's queue in a file, for Node: an append-only log, flushed to disk before `write` resolves. */

import { open, readFile, rename } from "node:fs/promises";
import { dirname } from "node:path";

/** Maximum number of obsolete lines, beyond which the file is rewritten. */
const MOST_GARBAGE = 10_000;

/** Otherwise the old file could come back after a power cut, without the pings of the new one. */
async function flushFolder(path) {
  if (process.platform === "win32") return; // has no such call
  const folder = await open(path);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

export class FileQueue {
  constructor(path) {
    this.path = path;
    this.file = null;
    this.pings = new Map();
    this.garbage = 0;
  }

  async load() {
    let text = "";
    try {
      text = await readFile(this.path, "utf8");
    } catch (error) {
      if (error.code !== "ENOENT") throw error;
    }
    this.pings.clear();
    for (const line of text.split("\n")) {
      let change;
      try {
        change = JSON.parse(line);
      } catch {
        continue; // a line truncated by a crash
      }
      this.apply(change.put ?? [], change.remove ?? []);
    }
    // A line truncated by a crash has no line end: rewrite the file rather than append to it.
    await this.compact();
    return [...this.pings.values()];
  }

  async write(put, remove) {
    this.apply(put, remove);
    this.garbage += put.length + remove.length;
    if (this.garbage > MOST_GARBAGE + 2 * this.pings.size) return this.compact();
    try {
      // not `write`, which may silently write only a part
      await this.file.appendFile(JSON.stringify({ put, remove }) + "\n");
      await this.file.datasync();
    } catch (error) {
      // The line may be truncated: the next write rewrites the file rather than append to it.
      this.garbage = Infinity;
      throw error;
    }
  }

  async close() {
    await this.file?.close();
    this.file = null;
  }

  apply(put, remove) {
    for (const timestamp of remove) this.pings.delete(timestamp);
    for (const ping of put) this.pings.set(ping.timestamp, ping);
  }

  async compact() {
    const fresh = `${this.path}.new`;
    const file = await open(fresh, "w", 0o600);
    try {
      await file.writeFile(JSON.stringify({ put: [...this.pings.values()], remove: [] }) + "\n");
      await file.datasync();
      await rename(fresh, this.path);
      await flushFolder(dirname(this.path));
    } catch (error) {
      await file.close();
      throw error;
    }
    await this.file?.close();
    this.file = file;
    this.garbage = 0;
  }
}
