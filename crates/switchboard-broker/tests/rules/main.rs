//! Rules that the simulated world reaches too seldom to hold them, each in the fewest steps.

mod cancel;
mod reclaim;
mod rig;
mod window;
