// The list of devices: one stop for the Tab key, arrows inside, a click addresses.

const CORDS = 8;
/** Devices that are away and shown: those that left last. */
const AWAY_MAX = 100;
const ONLINE_MAX = 1_000;
const TIME = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const DATE = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const NUMBER = new Intl.NumberFormat();

/** The colour a device is shown in: ids next to each other differ. */
export function cordOf(id) {
  const tail = /^\d+$/.test(id) ? Number(id.slice(-3)) : [...id].reduce((sum, letter) => sum + letter.codePointAt(0), 0);
  return String(tail % CORDS);
}

/** Shows the devices and calls `onaddress(id)` when one is chosen. */
export class Devices {
  onaddress = () => {};

  #list = document.getElementById("devices");
  #count = document.getElementById("devices-count");
  #more = document.getElementById("devices-more");
  #alone = document.getElementById("devices-alone");
  #buttons = new Map();
  #states = new Map();
  #isComplete = false;
  #mine = "";
  #addressed = "";

  constructor() {
    this.#list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.onaddress(button.dataset.id);
    });
    this.#list.addEventListener("keydown", (event) => this.#move(event));
    this.#list.addEventListener("focusin", (event) => this.#rove(event.target));
  }

  /**
   * Shows `{id, devices: [{id, online, sinceMs}], more}`, touching only what changed: the connected
   * first, then those that are away. `devices` is null where the server does not tell, and `more`
   * is infinite where it does not count.
   */
  show({ id, devices, more }) {
    // A bounded list may leave this device out; it is shown all the same, and counted once.
    const isListed = devices?.some((each) => each.id === id) ?? false;
    const all = isListed ? devices : [{ id, online: true, sinceMs: null }, ...(devices ?? [])];
    const isOnline = (each) => each.online || each.id === id;
    const online = all.filter(isOnline);
    const away = all.filter((each) => !isOnline(each)).sort((a, b) => b.sinceMs - a.sinceMs);
    const shown = [...online.slice(0, ONLINE_MAX), ...away.slice(0, AWAY_MAX)];
    const unlisted = isListed ? more : Math.max(0, more - 1);
    this.#states = new Map(all.map((each) => [each.id, each]));
    this.#isComplete = devices !== null && unlisted === 0;
    this.#forgetAllBut(id === this.#mine ? new Set(shown.map((each) => each.id)) : new Set());
    this.#mine = id;
    shown.forEach((each, place) => this.#place(each, place));
    this.#showCounts(online.length, away.length, unlisted);
    this.#showMore(all.length - shown.length + unlisted);
    this.#alone.hidden = all.length + unlisted > 1;
    this.#alone.textContent = devices ? "No one else yet." : "This server does not show who else is there.";
    this.#ensureTabStop();
  }

  #showCounts(online, away, unlisted) {
    const plus = Number.isFinite(unlisted) ? "" : "+";
    const awayCount = document.createElement("span");
    awayCount.className = "away-count";
    awayCount.textContent = away > 0 ? `, ${NUMBER.format(away)}${plus} away` : "";
    this.#count.replaceChildren(`${NUMBER.format(plus ? online : online + unlisted)}${plus} online`, awayCount);
  }

  #showMore(count) {
    this.#more.hidden = count === 0;
    this.#more.textContent = Number.isFinite(count) ? `and ${NUMBER.format(count)} more` : "and more";
  }

  /** Marks the device that the next message goes to. */
  mark(id) {
    this.#addressed = id;
    for (const [each, button] of this.#buttons) {
      button.setAttribute("aria-pressed", String(each === id));
    }
  }

  /** What is known of `id`: `{online, sinceMs}`, null if there is surely no such device, undefined if nothing. */
  stateOf(id) {
    return this.#states.get(id) ?? (this.#isComplete ? null : undefined);
  }

  #forgetAllBut(ids) {
    for (const [id, button] of this.#buttons) {
      if (ids.has(id)) continue;
      button.parentElement.remove();
      this.#buttons.delete(id);
    }
  }

  #place(device, place) {
    const button = this.#buttons.get(device.id) ?? this.#create(device.id);
    const item = button.parentElement;
    if (this.#list.children[place] !== item) {
      const holdsFocus = document.activeElement === button;
      this.#list.insertBefore(item, this.#list.children[place] ?? null);
      if (holdsFocus) button.focus();
    }
    this.#showState(button, device);
  }

  #showState(button, { id, online, sinceMs }) {
    const isAway = !online && id !== this.#mine;
    const [, , state] = button.children;
    const words = id === this.#mine ? "you" : isAway ? awaySince(sinceMs) : "";
    button.dataset.away = String(isAway);
    if (sinceMs !== null) button.title = `${isAway ? "Away" : "Connected"} since ${new Date(sinceMs).toLocaleString()}`;
    if (state.textContent !== words) state.textContent = words;
    state.className = id === this.#mine ? "you" : "since";
  }

  #create(id) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.tabIndex = -1;
    button.dataset.id = id;
    button.dataset.cord = cordOf(id);
    button.setAttribute("aria-pressed", String(id === this.#addressed));
    const jack = document.createElement("span");
    jack.className = "jack";
    const digits = document.createElement("span");
    digits.className = "digits";
    digits.textContent = id;
    button.append(jack, digits, " ", document.createElement("span"));
    item.append(button);
    this.#buttons.set(id, button);
    return button;
  }

  #ensureTabStop() {
    const first = this.#list.querySelector("button");
    if (first && !this.#list.querySelector('button[tabindex="0"]')) first.tabIndex = 0;
  }

  #rove(target) {
    for (const button of this.#buttons.values()) button.tabIndex = button === target ? 0 : -1;
  }

  #move(event) {
    const items = [...this.#list.children];
    const here = items.indexOf(event.target.parentElement);
    const places = {
      ArrowDown: here + 1,
      ArrowRight: here + 1,
      ArrowUp: here - 1,
      ArrowLeft: here - 1,
      Home: 0,
      End: items.length - 1,
    };
    const next = items[places[event.key]];
    if (!next) return;
    event.preventDefault();
    next.firstElementChild.focus();
  }
}

/** Since when a device is away, as short as can be; older than a day, the date says more. */
export function awaySince(sinceMs) {
  const isRecent = Date.now() - sinceMs < 86_400_000;
  return `away since ${(isRecent ? TIME : DATE).format(sinceMs)}`;
}
