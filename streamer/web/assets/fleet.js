/**
 * Interpolates vendors between fixes. No map and no drawing; the clock is an argument.
 *
 * A place is [x, y] on the Mercator square: 0 to 1 from west to east and from north to south.
 */

export const EARTH = 6_371_008.8;
const LIMIT = 85.051129;
/** A vendor further than this from its next fix, in metres, jumps there. */
const FARTHEST = 4_000;
/** A glide takes as long as the time between fixes, within these bounds, ms. */
const SHORTEST = 150;
const LONGEST = 6_000;
const FIRST = 900;
/** A glide takes a little longer than the expected interval, so that the vendor is still moving when a fix is late. */
const SLACK = 1.12;
const TURN = 500;
/** A heading is derived from movements longer than this, in metres. */
const STILL = 2.5;

export function project(lat, long) {
  const sine = Math.sin((Math.max(-LIMIT, Math.min(LIMIT, lat)) * Math.PI) / 180);
  return [long / 360 + 0.5, 0.5 - Math.log((1 + sine) / (1 - sine)) / (4 * Math.PI)];
}

export function unproject(x, y) {
  return [(Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) * 180) / Math.PI, (x - 0.5) * 360];
}

/** Returns the great-circle distance in metres, computed like the server's circles. */
export function distance(lat1, long1, lat2, long2) {
  const rad = Math.PI / 180;
  const a =
    Math.sin(((lat2 - lat1) * rad) / 2) ** 2 +
    Math.cos(lat1 * rad) * Math.cos(lat2 * rad) * Math.sin(((long2 - long1) * rad) / 2) ** 2;
  return 2 * EARTH * Math.asin(Math.min(1, Math.sqrt(a)));
}

/** Returns the heading from one position to another, degrees clockwise from north. */
export function bearing(lat1, long1, lat2, long2) {
  const rad = Math.PI / 180;
  const d = (long2 - long1) * rad;
  const y = Math.sin(d) * Math.cos(lat2 * rad);
  const x = Math.cos(lat1 * rad) * Math.sin(lat2 * rad) - Math.sin(lat1 * rad) * Math.cos(lat2 * rad) * Math.cos(d);
  return ((Math.atan2(y, x) * 180) / Math.PI + 360) % 360;
}

/** One vendor on the map. */
class Mover {
  constructor(card, now) {
    this.card = card;
    const [x, y] = project(card.lat, card.long);
    this.x = this.fromX = this.toX = x;
    this.y = this.fromY = this.toY = y;
    this.since = this.until = now;
    this.heading = this.fromHeading = this.toHeading = card.heading ?? null;
    this.came = now;
    this.every = null;
    /** The position from which the next heading is derived. */
    this.stood = card;
    /** False: outside the watched area, drawn faint. */
    this.watched = true;
  }

  /** Moves to the place at `now`; returns whether the glide continues. */
  at(now) {
    if (now >= this.until) {
      this.x = this.toX;
      this.y = this.toY;
      this.heading = this.toHeading;
      return false;
    }
    const part = (now - this.since) / (this.until - this.since);
    this.x = this.fromX + (this.toX - this.fromX) * part;
    this.y = this.fromY + (this.toY - this.fromY) * part;
    if (this.toHeading === null || this.fromHeading === null) this.heading = this.toHeading;
    else {
      const turned = Math.min(1, (now - this.since) / Math.min(TURN, this.until - this.since));
      const by = ((this.toHeading - this.fromHeading + 540) % 360) - 180;
      this.heading = (this.fromHeading + by * turned + 360) % 360;
    }
    return true;
  }

  take(card, now, jump) {
    const before = this.card;
    this.card = card;
    if (card.timestamp === before.timestamp && card.lat === before.lat && card.long === before.long) return;
    this.at(now);
    const [x, y] = project(card.lat, card.long);
    const far = distance(before.lat, before.long, card.lat, card.long);
    const apart = now - this.came;
    this.came = now;
    // the pause of a parked vendor does not predict its next fix
    if (apart < 2 * LONGEST) this.every = this.every === null ? apart : 0.6 * this.every + 0.4 * apart;
    this.fromX = this.x;
    this.fromY = this.y;
    this.fromHeading = this.heading;
    this.toX = x;
    this.toY = y;
    // take the short way over the antimeridian
    if (this.toX - this.fromX > 0.5) this.fromX += 1;
    else if (this.fromX - this.toX > 0.5) this.fromX -= 1;
    if (card.heading !== undefined) this.toHeading = card.heading;
    else if (distance(this.stood.lat, this.stood.long, card.lat, card.long) > STILL) {
      this.toHeading = bearing(this.stood.lat, this.stood.long, card.lat, card.long);
      this.stood = card;
    }
    const takes = Math.max(SHORTEST, Math.min(LONGEST, (this.every ?? FIRST) * SLACK));
    this.since = now;
    this.until = jump || far > FARTHEST ? now : now + takes;
    this.at(now);
  }
}

/** All vendors of all watches, each once, with the newest fix of overlapping watches. */
export class Fleet {
  constructor() {
    this.movers = new Map();
    /** Names of the watches that contain a vendor, by vendorId. */
    this.seen = new Map();
    /** When the last glide ends. */
    this.until = 0;
    this.version = 0;
  }

  get(vendorId) {
    return this.movers.get(vendorId);
  }

  put(watch, card, now, jump = false) {
    let mover = this.movers.get(card.vendorId);
    if (mover === undefined) {
      mover = new Mover(card, now);
      this.movers.set(card.vendorId, mover);
      this.seen.set(card.vendorId, new Set());
    } else if (card.timestamp >= mover.card.timestamp) mover.take(card, now, jump);
    this.seen.get(card.vendorId).add(watch);
    this.until = Math.max(this.until, mover.until);
    this.version += 1;
    return mover;
  }

  leave(watch, vendorId) {
    const watches = this.seen.get(vendorId);
    if (watches === undefined) return;
    watches.delete(watch);
    if (watches.size === 0) {
      this.seen.delete(vendorId);
      this.movers.delete(vendorId);
    }
    this.version += 1;
  }

  /** Removes vendors that only this watch contains. */
  drop(watch) {
    for (const vendorId of [...this.seen.keys()]) if (this.seen.get(vendorId).has(watch)) this.leave(watch, vendorId);
  }
}
