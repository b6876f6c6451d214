/** A vendor's queue in a file, for Node: every change is a line, and on the disk before it counts. */

import { open, readFile, rename } from "node:fs/promises";

/** Lines that say nothing any more, beyond which the file is written anew. */
const MOST_GARBAGE = 10_000;

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
        continue; // the line that a crash cut
      }
      this.apply(change.put ?? [], change.remove ?? []);
    }
    // A line cut by a crash has no end: begin anew rather than go on behind it.
    await this.compact();
    return [...this.pings.values()];
  }

  async write(put, remove) {
    this.apply(put, remove);
    this.garbage += put.length + remove.length;
    if (this.garbage > MOST_GARBAGE + 2 * this.pings.size) return this.compact();
    try {
      // not `write`, which may write a part of it and say nothing
      await this.file.appendFile(JSON.stringify({ put, remove }) + "\n");
      await this.file.datasync();
    } catch (error) {
      // The line may be cut: the next write begins anew rather than go on behind it.
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
    } catch (error) {
      await file.close();
      throw error;
    }
    await this.file?.close();
    this.file = file;
    this.garbage = 0;
  }
}
