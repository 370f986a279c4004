//! Rules that the simulated world reaches too seldom to hold them, each in the fewest steps.

mod cancel;
mod ending;
mod reclaim;
mod records;
mod rig;
mod watch;
mod window;
