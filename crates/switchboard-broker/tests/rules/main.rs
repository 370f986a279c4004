//! Rules that the simulated world reaches too seldom to hold them, each in the fewest steps.

mod allow_send;
mod cancel;
mod compaction;
mod device_slots;
mod ended;
mod ending;
mod ephemeral;
mod expiry;
mod memory;
mod promised;
mod quarantine;
mod records;
mod rig;
mod rollback;
mod shares;
mod space;
mod watch;
mod window;
