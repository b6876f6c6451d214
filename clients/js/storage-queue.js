/**
 * A vendor's queue in a key-value store: React Native's AsyncStorage, MMKV, or any object with `getItem`, `setItem` and
 * `removeItem`. Every write is a record of its own, so that a process killed at any moment loses none.
 */

/** Records that are merged into one when there are more. */
const MOST_RECORDS = 100;

export class StorageQueue {
  /** @param storage `AsyncStorage`, or anything like it; @param name a name of its own for each vendor */
  constructor(storage, name = "venta-pings") {
    this.storage = storage;
    this.name = name;
    this.first = 0;
    this.next = 0;
    this.pings = new Map();
  }

  async load() {
    const head = JSON.parse((await this.storage.getItem(this.name)) ?? '{"first":0}');
    this.first = this.next = head.first;
    this.pings.clear();
    let broken = 0;
    // a record that was written just before the process ended is there all the same
    for (let record; (record = await this.storage.getItem(this.key(this.next))) != null; this.next += 1) {
      try {
        this.apply(JSON.parse(record));
      } catch {
        broken += 1;
      }
    }
    if (broken > 0) {
      console.warn(`venta: ${broken} records of ${this.name} can't be read, and are dropped`);
      await this.compact();
    }
    return [...this.pings.values()];
  }

  async write(put, remove) {
    await this.append({ put, remove });
    if (this.next - this.first > MOST_RECORDS) await this.compact();
  }

  async close() {}

  key(number) {
    return `${this.name}.${number}`;
  }

  apply({ put, remove, whole }) {
    if (whole) this.pings.clear();
    for (const timestamp of remove) this.pings.delete(timestamp);
    for (const ping of put) this.pings.set(ping.timestamp, ping);
  }

  async append(record) {
    await this.storage.setItem(this.key(this.next), JSON.stringify(record));
    this.next += 1;
    this.apply(record);
  }

  /** The whole queue as one record; the older ones are removed only when the head names it. */
  async compact() {
    const [from, to] = [this.first, this.next];
    await this.append({ put: [...this.pings.values()], remove: [], whole: true });
    await this.storage.setItem(this.name, JSON.stringify({ first: to }));
    this.first = to;
    for (let number = from; number < to; number += 1) await this.storage.removeItem(this.key(number));
  }
}
