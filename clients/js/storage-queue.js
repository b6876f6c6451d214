/**
 * A vendor's queue in a key-value store: React Native's AsyncStorage, MMKV, or any object with `getItem`, `setItem` and
 * `removeItem`. Every write is a separate record, so that a killed process loses none.
 */

/** Maximum number of records with changes, beyond which they are merged. */
const MOST_RECORDS = 100;
/** Maximum number of pings in a record, as AsyncStorage on Android can't read a value of over 2 MB. */
const MOST_PINGS = 2_000;

/** The number of the first record, from a head; null if it can't be read. */
function firstOf(head) {
  try {
    const { first } = JSON.parse(head);
    return Number.isSafeInteger(first) && first >= 0 ? first : null;
  } catch {
    return null;
  }
}

export class StorageQueue {
  /** @param storage `AsyncStorage`, or a similar store; @param name a separate name for each vendor */
  constructor(storage, name = "venta-pings") {
    this.storage = storage;
    this.name = name;
    this.copy = `${name}.head`;
    this.first = 0;
    this.next = 0;
    this.pings = new Map();
  }

  async load() {
    const head = await this.storage.getItem(this.name);
    const first = firstOf(head);
    this.first = this.next = first ?? firstOf(await this.storage.getItem(this.copy)) ?? 0;
    this.pings.clear();
    let broken = head == null || first !== null ? 0 : 1;
    // includes a record that was written just before the process ended
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
    await this.append(put, remove);
    if (this.next - this.first > MOST_RECORDS + this.pings.size / MOST_PINGS) await this.compact();
  }

  async close() {}

  key(number) {
    return `${this.name}.${number}`;
  }

  apply({ put, remove }) {
    for (const timestamp of remove) this.pings.delete(timestamp);
    for (const ping of put) this.pings.set(ping.timestamp, ping);
  }

  async append(put, remove) {
    for (let at = 0; at === 0 || at < put.length; at += MOST_PINGS) {
      const record = { put: put.slice(at, at + MOST_PINGS), remove: at === 0 ? remove : [] };
      await this.storage.setItem(this.key(this.next), JSON.stringify(record));
      this.next += 1;
      this.apply(record);
    }
  }

  /** Writes the whole queue anew; older records are removed only after the head and its copy refer to the new ones. */
  async compact() {
    const [from, to] = [this.first, this.next];
    await this.append([...this.pings.values()], []);
    // One after the other, so that a killed process truncates at most one. The records of the older head still exist.
    for (const key of [this.name, this.copy]) await this.storage.setItem(key, JSON.stringify({ first: to }));
    this.first = to;
    for (let number = from; number < to; number += 1) await this.storage.removeItem(this.key(number));
  }
}
