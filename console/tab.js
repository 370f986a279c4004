// What one tab remembers over a reload: who it is, how far it has read, what it sent, and what it showed.

const PREFIX = `switchboard ${location.pathname} `;

/** A value kept for this tab, or `otherwise` where there is none. */
export function recall(name, otherwise = null) {
  try {
    return JSON.parse(sessionStorage.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/**
 * Keeps `value` for this tab; null forgets it. Gives whether it was kept: a browser may have no room
 * or forbid it, and then the page works on until it is reloaded.
 */
export function remember(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(PREFIX + name);
    else sessionStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
