// The list of connected devices: one stop for the Tab key, arrows inside, a click addresses.

const CORDS = 8;
const NUMBER = new Intl.NumberFormat();

/** The colour a device is shown in: ids next to each other differ. */
export function cordOf(id) {
  return String(Number(id.slice(-3)) % CORDS);
}

/** Shows the devices and calls `onaddress(id)` when one is chosen. */
export class Devices {
  onaddress = () => {};

  #list = document.getElementById("devices");
  #count = document.getElementById("devices-count");
  #more = document.getElementById("devices-more");
  #alone = document.getElementById("devices-alone");
  #buttons = new Map();
  #complete = false;
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

  /** Shows `{id, devices, more}`, touching only what changed. */
  show({ id, devices, more }) {
    // A bounded list may leave this device out; it is shown all the same, and counted once.
    const listed = devices.includes(id);
    const ids = listed ? devices : [id, ...devices];
    const unseen = listed ? more : Math.max(0, more - 1);
    this.#complete = unseen === 0;
    this.#forgetAllBut(id === this.#mine ? new Set(ids) : new Set());
    this.#mine = id;
    ids.forEach((each, place) => this.#place(each, place, each === id));
    this.#count.textContent = NUMBER.format(ids.length + unseen);
    this.#more.hidden = unseen === 0;
    this.#more.textContent = `and ${NUMBER.format(unseen)} more`;
    this.#alone.hidden = ids.length + unseen > 1;
    this.#ensureTabStop();
  }

  /** Marks the device that the next message goes to. */
  mark(id) {
    this.#addressed = id;
    for (const [each, button] of this.#buttons) {
      button.setAttribute("aria-pressed", String(each === id));
    }
  }

  /** Whether `id` is surely not connected: not in a list that is complete. */
  surelyGone(id) {
    return this.#complete && !this.#buttons.has(id);
  }

  #forgetAllBut(ids) {
    for (const [id, button] of this.#buttons) {
      if (ids.has(id)) continue;
      button.parentElement.remove();
      this.#buttons.delete(id);
    }
  }

  #place(id, place, mine) {
    const button = this.#buttons.get(id) ?? this.#create(id, mine);
    const item = button.parentElement;
    if (this.#list.children[place] !== item) {
      this.#list.insertBefore(item, this.#list.children[place] ?? null);
    }
  }

  #create(id, mine) {
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
    button.append(jack, digits);
    if (mine) {
      const you = document.createElement("span");
      you.className = "you";
      you.textContent = "you";
      button.append(" ", you);
    }
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
